"""The picture of a cloud that moves first, for inference: the moved cloud is never written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gsavatar.ops import check, cuda_backend, native
from gsavatar.ops.blend_motion import OFFSETS, blend_motion_ref
from gsavatar.ops.evaluate_sh import TERMS
from gsavatar.ops.pose_gaussians import Pose, check_pose, pose_arguments, pose_gaussians_ref
from gsavatar.ops.rasterize import project_and_composite
from gsavatar.types import Rendering


@dataclass(frozen=True)
class Part:
    """Gaussians in a row of a cloud that move together: ``blend_motion``, then the limits of the
    scales, then ``pose_gaussians``."""

    basis: Tensor  # [K, M, 9] of the part's M Gaussians
    coefficients: Tensor  # [K]
    pose: Pose | None = None
    mean_unit: float = 1.0
    scale_limits: tuple[float, float] = (0.0, math.inf)  # metres
    turns_sh: bool = True  # whether the harmonics turn with the pose


@torch.no_grad()
def rasterize_blended(
    means: Tensor,  # [N, 3]
    quats: Tensor,  # [N, 4]
    scales: Tensor,  # [N, 3]
    parts: Sequence[Part],
    opacities: Tensor,  # [N]
    sh: Tensor,  # [N, S, 3]
    branch: Tensor,  # [N] int32
    world_to_cam: Tensor,  # [4, 4]
    K: Tensor,  # [3, 3]
    width: int,
    height: int,
    background: Tensor,  # [3] or [H, W, 3]
) -> Rendering:
    """``rasterize`` of the cloud moved by its ``parts``, which follow each other and are all of it.

    The colours are ``evaluate_sh`` of the moved cloud, S is 1, 4, 9 or 16. float32 on a CPU or
    CUDA; for inference, nothing has a gradient. Raises ``ValueError`` for malformed arguments and
    ``NativeUnavailable`` without kernels.
    """
    if not isinstance(means, Tensor) or means.dim() != 2 or means.shape[1] != 3:
        raise ValueError("means must be a tensor of shape [N, 3]")
    terms = sh.shape[1] if isinstance(sh, Tensor) and sh.dim() == 3 else 0
    check.shape("sh", sh, (means.shape[0], terms if terms in TERMS else 1, 3))
    check.dtype("sh", sh, means.dtype)
    check.device("sh", sh, means.device)
    check.raster_arguments(
        means, quats, scales, opacities, sh[:, 0], branch, world_to_cam, K, width, height,
        background, None,
    )  # fmt: skip
    check.dtype("means", means, torch.float32)
    if means.device.type not in {"cpu", "cuda"}:
        raise native.NativeUnavailable(f"there are no kernels for tensors on {means.device}")
    _check_parts(parts, means)
    rgb, alpha, share, depth = rasterize_blended_op(
        means, quats, scales, opacities, sh, branch, world_to_cam, K, width, height, background,
        *_flat(parts, means),
    )  # fmt: skip
    return Rendering(rgb, alpha[..., None], share, depth[..., None])


def _flat(parts: Sequence[Part], means: Tensor) -> tuple[list[Any], ...]:
    """The parts as the lists of ``rasterize_blended_op``: what a part lacks is an empty tensor."""
    none = means.new_empty(0)
    poses = [part.pose or Pose(none, none) for part in parts]
    return (
        [part.basis for part in parts],
        [part.coefficients for part in parts],
        [pose.turn for pose in poses],
        [pose.shift for pose in poses],
        [none if pose.share is None else pose.share for pose in poses],
        [float(part.mean_unit) for part in parts],
        [float(limit) for part in parts for limit in part.scale_limits],
        [bool(part.turns_sh) for part in parts],
    )


@torch.library.custom_op("gsavatar::rasterize_blended", mutates_args=())
def rasterize_blended_op(
    means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, sh: Tensor, branch: Tensor,
    world_to_cam: Tensor, K: Tensor, width: int, height: int, background: Tensor,
    bases: list[Tensor], coefficients: list[Tensor], turns: list[Tensor], shifts: list[Tensor],
    shares: list[Tensor], mean_units: list[float], scale_limits: list[float],
    turns_sh: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """rgb, alpha, branch_alpha and depth. An op like the others, so that a compiled program can
    hold it; it has no derivative because it keeps nothing that one would read."""
    held = [
        contiguous(
            Part(basis, weights, _pose(turn, shift, share), unit, (low, high), turning)
        )
        for basis, weights, turn, shift, share, unit, low, high, turning in zip(
            bases, coefficients, turns, shifts, shares, mean_units, scale_limits[::2],
            scale_limits[1::2], turns_sh, strict=True,
        )
    ]  # fmt: skip
    cloud: dict[str, Tensor | None] = {
        "means": means, "quats": quats, "scales": scales, "opacities": opacities,
        "sh": sh, "world_to_cam": world_to_cam, "K": K, "background": background,
        "screen_probe": None, "branch": branch,
    }  # fmt: skip
    if means.device.type == "cuda":
        made = cuda_backend.run_forward(cloud, width, height, structures(held))
        return tuple(made[name] for name in cuda_backend.OUTPUTS)  # type: ignore[return-value]
    return project_and_composite(cloud, width, height, structures(held))[:4]  # type: ignore[return-value]


def _pose(turn: Tensor, shift: Tensor, share: Tensor) -> Pose | None:
    return Pose(turn, shift, share if share.numel() else None) if turn.numel() else None


@rasterize_blended_op.register_fake
def _(means, quats, scales, opacities, sh, branch, world_to_cam, K, width, height, background,
      bases, coefficients, turns, shifts, shares, mean_units, scale_limits,
      turns_sh):  # fmt: skip
    return (means.new_empty(height, width, 3), means.new_empty(height, width),
            means.new_empty(height, width, 3), means.new_empty(height, width))  # fmt: skip


def _check_parts(parts: Sequence[Part], means: Tensor) -> None:
    """Raises ``ValueError`` unless the parts are well formed and cover the cloud."""
    if not isinstance(parts, Sequence) or not all(isinstance(part, Part) for part in parts):
        raise ValueError("parts must be a sequence of Part")
    first = 0
    for part in parts:
        if not isinstance(part.coefficients, Tensor) or part.coefficients.dim() != 1:
            raise ValueError("coefficients must be a tensor of shape [K]")
        basis = part.basis
        count = basis.shape[1] if isinstance(basis, Tensor) and basis.dim() == 3 else 0
        check.shape("basis", part.basis, (part.coefficients.shape[0], count, OFFSETS))
        for name, tensor in (("basis", part.basis), ("coefficients", part.coefficients)):
            check.dtype(name, tensor, means.dtype)
            check.device(name, tensor, means.device)
        check.numbers(mean_unit=part.mean_unit)
        low, high = part.scale_limits
        if not 0.0 <= low <= high:
            raise ValueError(f"scale_limits must be 0 <= low <= high, got {low} and {high}")
        # the basis and the shares show in the moved Gaussians, which the kernel checks
        check.finite(coefficients=part.coefficients)
        if part.pose is not None:
            check_pose(part.pose, means[first : first + count])
            check.finite(turn=part.pose.turn, shift=part.pose.shift)
        first += count
    if first != means.shape[0]:
        raise ValueError(f"the parts hold {first} Gaussians, the cloud {means.shape[0]}")


def contiguous(part: Part) -> Part:
    """The part with contiguous tensors, as the kernels read them."""
    pose = part.pose
    if pose is not None:
        share = None if pose.share is None else pose.share.contiguous()
        pose = Pose(pose.turn.contiguous(), pose.shift.contiguous(), share)
    return Part(
        part.basis.contiguous(), part.coefficients.contiguous(), pose, part.mean_unit,
        part.scale_limits, part.turns_sh,
    )  # fmt: skip


def structures(parts: Sequence[Part]) -> Any:
    """The C structs of contiguous parts; the caller keeps the parts alive."""
    made = (native.Part * len(parts))()
    for into, part in zip(made, parts, strict=True):
        count = part.basis.shape[1]
        into.motion = native.Motion(
            basis=part.basis.data_ptr(), coefficients=part.coefficients.data_ptr(), count=count,
            coefficient_count=part.coefficients.shape[0], mean_unit=part.mean_unit,
        )  # fmt: skip
        if part.pose is not None:
            into.pose = pose_arguments(part.pose, count)
        into.scale_min, into.scale_max = part.scale_limits
        into.turns_sh = int(part.turns_sh)
    return made


def moved_ref(
    means: Tensor, quats: Tensor, scales: Tensor, parts: Sequence[Part]
) -> tuple[Tensor, Tensor, Tensor]:
    """The moved means, quats and scales in plain torch and any float dtype."""
    counts = [part.basis.shape[1] for part in parts]
    moved = []
    clouds = zip(means.split(counts), quats.split(counts), scales.split(counts), strict=True)
    for part, cloud in zip(parts, clouds, strict=True):
        m, q, s = blend_motion_ref(*cloud, part.basis, part.coefficients, mean_unit=part.mean_unit)
        s = s.clamp(*part.scale_limits)
        if part.pose is not None:
            m, q = pose_gaussians_ref(m, q, part.pose)
        moved.append((m, q, s))
    m, q, s = (torch.cat(values) for values in zip(*moved, strict=True))
    return m, q, s
