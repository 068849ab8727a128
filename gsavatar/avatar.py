"""The avatar: three branches of Gaussians, each with its motion, and one call that poses them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gsavatar.gaussians import MAX_SCALE_M, MIN_SCALE_M, RawGaussians
from gsavatar.geometry import matrix_to_quat, quat_multiply, rotvec_to_quat
from gsavatar.hearing import Hearing
from gsavatar.motion import LinearMotion, Motion, torso_coefficients
from gsavatar.types import Branch, Drive, Gaussians


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
        offsets = branch.motion.offsets(raw.means, drive)
        batch = drive.coefficients.shape[:-1]
        means = raw.means + offsets.means
        quats = quat_multiply(rotvec_to_quat(offsets.rotvecs), raw.quats)
        scales = (raw.log_scales + offsets.log_scales).exp().clamp(MIN_SCALE_M, MAX_SCALE_M)

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


def _part_of_turn(turn: Tensor, weight: Tensor) -> Tensor:
    """The rotations [*B, N, 4] between none and ``turn`` [*B, 1, 4] by ``weight`` [N, 1].

    Normalised linear interpolation; within 0.1 degree of slerp for the turns a neck makes.
    """
    turn = torch.where(turn[..., :1] < 0, -turn, turn)
    none = torch.zeros_like(turn)
    none[..., 0] = 1.0
    return torch.nn.functional.normalize(weight * turn + (1.0 - weight) * none, dim=-1)


def rotate_sh(sh: Tensor, rotation: Tensor) -> Tensor:
    """Spherical harmonics [*B, N, S, 3] of degree <= 1 after turning the object by ``rotation``.

    Degree 1 is a vector in the order (y, z, x) with signs (-, +, -). Raises ``ValueError`` for
    higher degrees, which the avatar does not use.
    """
    if sh.shape[-2] == 1:
        return sh
    if sh.shape[-2] != 4:
        raise ValueError(f"spherical harmonics of degree 0 or 1 expected, got {sh.shape[-2]} terms")
    vector = torch.stack((-sh[..., 3, :], -sh[..., 1, :], sh[..., 2, :]), dim=-2)
    x, y, z = (rotation[..., None, :, :] @ vector).unbind(-2)
    return torch.cat((sh[..., :1, :], torch.stack((-y, z, -x), dim=-2)), dim=-2)
