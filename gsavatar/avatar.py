"""The avatar: three branches of Gaussians, each with its motion, and one call that poses them."""

from __future__ import annotations

import itertools
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
from gsavatar.ops.pose_gaussians import Pose, pose_gaussians
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
        if drive.coefficients.dim() > 1:
            return self._each(drive)
        moved = [_moved(branch, drive) for branch in self.branches]
        means, quats, scales = (torch.cat(parts) for parts in zip(*moved, strict=True))
        rotation = drive.head_pose[:3, :3]
        pose = Pose(matrix_to_quat(rotation), drive.head_pose[:3, 3], self._shares())
        means, quats = pose_gaussians(means, quats, pose)
        return Gaussians(
            means=means,
            quats=torch.nn.functional.normalize(quats, dim=-1),
            scales=scales.clamp(MIN_SCALE_M, MAX_SCALE_M),
            opacities=torch.cat([b.raw.raw_opacities for b in self.branches]).sigmoid(),
            sh=torch.cat([_turned_sh(b, rotation) for b in self.branches]),
            branch=torch.cat([b.raw.means.new_full((len(b.raw),), int(b.kind), dtype=torch.int32)
                              for b in self.branches]),
        )  # fmt: skip

    def _each(self, drive: Drive) -> Gaussians:
        """The same for every element of a batch, one after the other."""
        batch = drive.coefficients.shape[:-1]
        audio = drive.audio
        posed = [
            self(Drive(
                drive.coefficients[at], drive.head_pose[at], None if audio is None else audio[at]
            ))
            for at in itertools.product(*map(range, batch))
        ]  # fmt: skip

        def together(name: str) -> Tensor:
            values = torch.stack([getattr(one, name) for one in posed])
            return values.reshape(*batch, *values.shape[1:])

        names = ("means", "quats", "scales", "opacities", "sh")
        return replace(posed[0], **{name: together(name) for name in names})

    def _shares(self) -> Tensor:
        """How much of the head's pose every Gaussian takes, [N]."""
        return torch.cat([
            b.head_weight if b.kind == Branch.TORSO else torch.ones_like(b.head_weight)
            for b in self.branches
        ])  # fmt: skip

    def only(self, kind: Branch) -> Avatar:
        """The avatar reduced to one branch."""
        return replace(self, branches=tuple(b for b in self.branches if b.kind == kind))

    def __len__(self) -> int:
        return sum(len(b.raw) for b in self.branches)


def _moved(branch: AvatarBranch, drive: Drive) -> tuple[Tensor, Tensor, Tensor]:
    """Means, quats of any length and scales after the motion, before the head's pose."""
    raw, motion = branch.raw, branch.motion
    if branch.kind == Branch.TORSO:
        drive = replace(drive, coefficients=torso_coefficients(drive.head_pose))
    if isinstance(motion, LinearMotion):
        return blend_motion(
            raw.means, raw.raw_quats, raw.log_scales.exp(), motion.basis, drive.coefficients,
            mean_unit=MEANS_UNIT_M,
        )  # fmt: skip
    offsets = motion.offsets(raw.means, drive)
    return (
        raw.means + offsets.means,
        quat_multiply(rotvec_to_quat(offsets.rotvecs), raw.raw_quats),
        (raw.log_scales + offsets.log_scales).exp(),
    )


def _turned_sh(branch: AvatarBranch, rotation: Tensor) -> Tensor:
    """A branch's harmonics [N, S, 3] in the room; those of the torso stay."""
    sh = branch.raw.sh
    return sh if branch.kind == Branch.TORSO else rotate_sh(sh, rotation)


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
