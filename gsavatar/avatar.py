"""The avatar: three branches of Gaussians, each with its motion, and one call that poses them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from gsavatar.gaussians import MAX_SCALE_M, MIN_SCALE_M, RawGaussians
from gsavatar.geometry import matrix_to_quat, quat_multiply, rotvec_to_quat
from gsavatar.hearing import Hearing
from gsavatar.motion import MEANS_UNIT_M, LinearMotion, Motion, torso_coefficients
from gsavatar.ops.blend_motion import blend_motion
from gsavatar.ops.evaluate_sh import TERMS, sh_basis
from gsavatar.types import Branch, Drive, Gaussians

GOLDEN_ANGLE = math.pi * (3.0 - math.sqrt(5.0))


@dataclass(frozen=True)
class AvatarBranch:
    """Gaussians that move together: their canonical form, motion and share of the head's pose."""

    kind: Branch
    raw: RawGaussians
    motion: Motion
    head_weight: Tensor  # [N], 1 follows the head, 0 stays in the room

    @property
    def linear(self) -> LinearMotion:
        """The motion where it is linear. Raises ``TypeError`` for a field."""
        if not isinstance(self.motion, LinearMotion):
            raise TypeError(f"the {self.kind.name} branch is moved by a field")
        return self.motion


@dataclass(frozen=True)
class Avatar:
    """A person: ``avatar(drive)`` gives the posed Gaussians in the room frame."""

    names: tuple[str, ...]  # K coefficient names that move face and mouth
    branches: tuple[AvatarBranch, ...]
    hearing: Hearing | None = None  # makes ``Drive.audio``; None where coefficients alone move it

    def __call__(self, drive: Drive) -> Gaussians:
        """Posed Gaussians [*B, N, ...]; differentiable in every parameter and in the drive."""
        parts = [self._pose(branch, drive) for branch in self.branches]
        return Gaussians(
            means=torch.cat([p.means for p in parts], -2),
            quats=torch.cat([p.quats for p in parts], -2),
            scales=torch.cat([p.scales for p in parts], -2),
            opacities=torch.cat([p.opacities for p in parts], -1),
            sh=torch.cat([p.sh for p in parts], -3),
            branch=torch.cat([p.branch for p in parts]),
        )

    def only(self, kind: Branch) -> Avatar:
        """The avatar reduced to one branch."""
        return replace(self, branches=tuple(b for b in self.branches if b.kind == kind))

    def __len__(self) -> int:
        return sum(len(b.raw) for b in self.branches)

    @staticmethod
    def _pose(branch: AvatarBranch, drive: Drive) -> Gaussians:
        raw = branch.raw
        of_torso = branch.kind == Branch.TORSO
        if of_torso:
            drive = replace(drive, coefficients=torso_coefficients(drive.head_pose))
        batch = drive.coefficients.shape[:-1]
        means, quats, scales = _moved(raw, branch.motion, drive)
        rotation = drive.head_pose[..., :3, :3]
        posed = means @ rotation.mT + drive.head_pose[..., None, :3, 3]
        turn = matrix_to_quat(rotation)[..., None, :]  # [*B, 1, 4]
        if of_torso:
            weight = branch.head_weight[:, None]
            posed = weight * posed + (1.0 - weight) * means
            turn = _part_of_turn(turn, weight)
        opacities = raw.opacities.expand(*batch, -1)
        sh = raw.sh.expand(*batch, *raw.sh.shape)
        if not of_torso:
            sh = rotate_sh(sh, rotation)
        kinds = torch.full((len(raw),), int(branch.kind), dtype=torch.int32, device=means.device)
        return Gaussians(posed, quat_multiply(turn, quats), scales, opacities, sh, kinds)


def _moved(raw: RawGaussians, motion: Motion, drive: Drive) -> tuple[Tensor, Tensor, Tensor]:
    """Means, quats and scales [*B, N, ...] after the motion, before the head's pose."""
    if isinstance(motion, LinearMotion) and drive.coefficients.dim() == 1:
        means, quats, scales = blend_motion(
            raw.means, raw.quats, raw.log_scales.exp(), motion.basis, drive.coefficients,
            mean_unit=MEANS_UNIT_M,
        )  # fmt: skip
        return means, quats, scales.clamp(MIN_SCALE_M, MAX_SCALE_M)
    offsets = motion.offsets(raw.means, drive)
    return (
        raw.means + offsets.means,
        quat_multiply(rotvec_to_quat(offsets.rotvecs), raw.quats),
        (raw.log_scales + offsets.log_scales).exp().clamp(MIN_SCALE_M, MAX_SCALE_M),
    )


def _part_of_turn(turn: Tensor, weight: Tensor) -> Tensor:
    """The rotations [*B, N, 4] between none and ``turn`` [*B, 1, 4] by ``weight`` [N, 1].

    Normalised linear interpolation; within 0.1 degree of slerp for the turns a neck makes.
    """
    turn = torch.where(turn[..., :1] < 0, -turn, turn)
    none = torch.zeros_like(turn)
    none[..., 0] = 1.0
    return torch.nn.functional.normalize(weight * turn + (1.0 - weight) * none, dim=-1)


def rotate_sh(sh: Tensor, rotation: Tensor) -> Tensor:
    """Spherical harmonics [*B, N, S, 3] after turning the object by ``rotation`` [*B, 3, 3].

    The new coefficients c' are those with Y(d) c' = Y(R^T d) c in every direction d; as a band
    turns into itself, twice as many directions as terms determine them. Raises ``ValueError``
    unless S is 1, 4, 9 or 16.
    """
    terms = sh.shape[-2]
    if terms not in TERMS:
        raise ValueError(f"spherical harmonics have one of {TERMS} terms, got {terms} terms")
    if terms == 1:
        return sh
    directions, inverse = _sh_samples(terms, sh.device, sh.dtype)
    mix = inverse @ sh_basis(directions @ rotation.to(sh), terms)
    return mix[..., None, :, :] @ sh


@lru_cache(maxsize=2 * len(TERMS))
def _sh_samples(terms: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Directions [2 S, 3], spread evenly, and the pseudo-inverse [S, 2 S] of the basis there.

    Kept on the device: a copy at every step would make a GPU wait.
    """
    i = torch.arange(2 * terms, dtype=torch.float64) + 0.5
    z = 1.0 - i / terms
    turn, flat = GOLDEN_ANGLE * i, (1.0 - z * z).sqrt()
    directions = torch.stack((flat * turn.cos(), flat * turn.sin(), z), dim=-1)
    inverse = torch.linalg.pinv(sh_basis(directions, terms))
    return directions.to(device, dtype), inverse.to(device, dtype)
