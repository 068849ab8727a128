"""Drawing an avatar when nothing is learned: its branches packed once, a frame in one native call.

``Avatar.__call__`` poses the cloud in torch, so that everything has a gradient. A film, a page of
the viewer and an evaluation need none: there the kernels sum the basis, turn and clamp each
Gaussian on its way to the screen, and the posed cloud is never written. Both give the same picture
within float rounding.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gsavatar import ops
from gsavatar.avatar import Avatar, AvatarBranch
from gsavatar.gaussians import MAX_SCALE_M, MIN_SCALE_M
from gsavatar.geometry import matrix_to_quat
from gsavatar.motion import MEANS_UNIT_M, LinearMotion, torso_coefficients
from gsavatar.ops import cuda_backend, native
from gsavatar.render import render
from gsavatar.types import Branch, Camera, Drive, Rendering

log = logging.getLogger("gsavatar")

Draw = Callable[[Drive, Camera, Tensor], Rendering]
"""What a camera sees of an avatar in one drive over a background [3] or [H, W, 3]; no gradients."""


@dataclass(frozen=True)
class PackedMotion:
    """What moves one branch of a packed avatar; the tensors are the avatar's own."""

    kind: Branch
    basis: Tensor  # [K, M, 9], of M Gaussians
    share: Tensor | None  # [M], of the head's pose; None is all of it

    def __len__(self) -> int:
        return self.basis.shape[1]


@dataclass(frozen=True)
class PackedAvatar:
    """The branches of an avatar as one cloud at rest, with what moves each."""

    means: Tensor  # [N, 3]
    quats: Tensor  # [N, 4]
    scales: Tensor  # [N, 3], metres, before motion and limits
    opacities: Tensor  # [N]
    sh: Tensor  # [N, S, 3]
    branch: Tensor  # [N] int32
    motions: tuple[PackedMotion, ...]

    @torch.no_grad()
    def draw(self, drive: Drive, camera: Camera, background: Tensor) -> Rendering:
        """What ``render(avatar(drive), camera, background)`` gives, for a single drive."""
        return ops.rasterize_blended(
            self.means, self.quats, self.scales, self._parts(drive), self.opacities, self.sh,
            self.branch, camera.world_to_cam, camera.K, camera.width, camera.height, background,
        )  # fmt: skip

    def only(self, branches: frozenset[Branch]) -> PackedAvatar:
        """The avatar reduced to some branches."""
        if branches >= {motion.kind for motion in self.motions}:
            return self
        kept = torch.isin(self.branch, self.branch.new_tensor(sorted(branches)))
        return PackedAvatar(
            self.means[kept], self.quats[kept], self.scales[kept], self.opacities[kept],
            self.sh[kept], self.branch[kept],
            tuple(motion for motion in self.motions if motion.kind in branches),
        )  # fmt: skip

    def _parts(self, drive: Drive) -> list[ops.Part]:
        """The motion of every branch in a drive."""
        turn, shift = matrix_to_quat(drive.head_pose[:3, :3]), drive.head_pose[:3, 3].contiguous()
        parts = []
        for motion in self.motions:
            torso = motion.kind == Branch.TORSO
            parts.append(
                ops.Part(
                    motion.basis,
                    torso_coefficients(drive.head_pose) if torso else drive.coefficients,
                    ops.Pose(turn, shift, motion.share),
                    MEANS_UNIT_M,
                    (MIN_SCALE_M, MAX_SCALE_M),
                    turns_sh=not torso,
                )
            )
        return parts


def pack(avatar: Avatar) -> PackedAvatar:
    """The packed avatar. Raises ``TypeError`` where a field moves a branch."""

    def joined(of: Callable[[AvatarBranch], Tensor]) -> Tensor:
        return torch.cat([of(branch).detach() for branch in avatar.branches])

    return PackedAvatar(
        means=joined(lambda b: b.raw.means),
        quats=joined(lambda b: b.raw.quats),
        scales=joined(lambda b: b.raw.log_scales.exp()),
        opacities=joined(lambda b: b.raw.opacities),
        sh=joined(lambda b: b.raw.sh),
        branch=joined(
            lambda b: torch.full_like(b.raw.raw_opacities, int(b.kind), dtype=torch.int32)
        ),
        motions=tuple(
            PackedMotion(
                b.kind,
                b.linear.basis.detach(),
                b.head_weight.detach() if b.kind == Branch.TORSO else None,
            )
            for b in avatar.branches
        ),
    )


def why_not_packed(avatar: Avatar) -> str | None:
    """Why an avatar cannot be drawn by the kernels alone, or None if it can."""
    if not all(isinstance(branch.motion, LinearMotion) for branch in avatar.branches):
        return "a field moves it"
    means = avatar.branches[0].raw.means
    if means.device.type == "cuda":
        return cuda_backend.why_not()
    return None if native.present() else "the native kernels are not built"


def open_draw(avatar: Avatar) -> Draw:
    """How to draw an avatar from now on: packed if that can be, else posed in torch, which is
    logged with the reason."""
    reason = why_not_packed(avatar)
    if reason is None:
        return pack(avatar).draw
    log.info("the avatar is posed in torch, which draws fewer frames a second: %s", reason)
    return lambda drive, camera, background: render(avatar(drive), camera, background)
