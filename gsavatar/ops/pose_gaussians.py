"""Gaussians that take a share of one rigid motion, differentiable in everything.

All of it for a head that turns; for a neck, less and less towards the shoulders. With R and t the
turn and the shift and w the share, a mean m goes to ``m + w (R m + t - m)`` and a quaternion is
turned by the normalised linear interpolation between none and the turn, which for the turns a neck
makes is within 0.1 degree of the spherical one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gsavatar.ops import check, launch, native

SUMS = 16
"""Numbers a chunk of Gaussians adds up for the gradients of turn and shift."""


@dataclass(frozen=True)
class Pose:
    """A rigid motion and who takes how much of it."""

    turn: Tensor  # [4] wxyz, any length; its sign does not matter
    shift: Tensor  # [3], metres
    share: Tensor | None = None  # [N] in 0..1; None is 1 for all


def pose_gaussians(
    means: Tensor,  # [N, 3]
    quats: Tensor,  # [N, 4] wxyz
    pose: Pose,
) -> tuple[Tensor, Tensor]:
    """Posed means [N, 3] and quats [N, 4] (as long as the inputs).

    float32 on a CPU or CUDA runs natively, anything else in torch. Raises ``ValueError`` for
    malformed shapes, dtypes or devices, and on a CPU for NaN or infinity (on CUDA it reaches the
    result, and the rasterizer reports it).
    """
    _check(means, quats, pose)
    if not launch.serves(means):
        check.finite(means=means, quats=quats, turn=pose.turn, shift=pose.shift, share=pose.share)
        return pose_gaussians_ref(means, quats, pose)
    posed: tuple[Tensor, Tensor] = pose_gaussians_op(
        means, quats, pose.turn, pose.shift, pose.share
    )
    return posed


def _check(means: Tensor, quats: Tensor, pose: Pose) -> None:
    if not isinstance(means, Tensor) or means.dim() != 2 or means.shape[1] != 3:
        raise ValueError("means must be a tensor of shape [N, 3]")
    if not means.is_floating_point():
        raise ValueError(f"means must be a float tensor, got {means.dtype}")
    check_pose(pose, means)
    check.shape("quats", quats, (means.shape[0], 4))
    check.dtype("quats", quats, means.dtype)
    check.device("quats", quats, means.device)


def check_pose(pose: Pose, means: Tensor) -> None:
    """Raises ``ValueError`` unless the pose fits Gaussians with these ``means`` [N, 3]."""
    if not isinstance(pose, Pose):
        raise ValueError(f"pose must be a Pose, got {type(pose).__name__}")
    expected = {"turn": (pose.turn, (4,)), "shift": (pose.shift, (3,))}
    if pose.share is not None:
        expected["share"] = (pose.share, (means.shape[0],))
    for name, (tensor, shape) in expected.items():
        check.shape(name, tensor, shape)
        check.dtype(name, tensor, means.dtype)
        check.device(name, tensor, means.device)


def pose_gaussians_ref(means: Tensor, quats: Tensor, pose: Pose) -> tuple[Tensor, Tensor]:
    """What ``pose_gaussians`` returns, in plain torch and any float dtype."""
    turn = torch.nn.functional.normalize(pose.turn, dim=0)
    turn = torch.where(turn[0] < 0, -turn, turn)
    share = torch.ones_like(means[:, :1]) if pose.share is None else pose.share[:, None]
    axis = turn[1:].expand_as(means)
    across = 2.0 * torch.linalg.cross(axis, means)  # R m = m + w (2 v x m) + v x (2 v x m)
    turned = means + turn[0] * across + torch.linalg.cross(axis, across)
    posed = means + share * (turned + pose.shift - means)

    none = turn.new_tensor([1.0, 0.0, 0.0, 0.0])
    part = torch.nn.functional.normalize(none + share * (turn - none), dim=-1)
    w, v = part[:, :1], part[:, 1:]
    qw, qv = quats[:, :1], quats[:, 1:]
    real = w * qw - (v * qv).sum(-1, keepdim=True)
    return posed, torch.cat((real, w * qv + qw * v + torch.linalg.cross(v, qv)), dim=-1)


def pose_arguments(pose: Pose, count: int) -> Any:
    """The C struct of a pose without its cloud; the caller keeps the tensors alive."""
    return native.PoseArguments(
        turn=pose.turn.data_ptr(), shift=pose.shift.data_ptr(), share=native.pointer(pose.share),
        count=count, threads=native.threads(),
    )  # fmt: skip


def _arguments(means: Tensor, quats: Tensor, pose: Pose) -> Any:
    arguments = pose_arguments(pose, means.shape[0])
    arguments.means, arguments.quats = means.data_ptr(), quats.data_ptr()
    return arguments


def _contiguous(turn: Tensor, shift: Tensor, share: Tensor | None) -> Pose:
    return Pose(
        turn.contiguous(), shift.contiguous(), None if share is None else share.contiguous()
    )


@torch.library.custom_op("gsavatar::pose_gaussians", mutates_args=())
def pose_gaussians_op(
    means: Tensor, quats: Tensor, turn: Tensor, shift: Tensor, share: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The posed means and quats."""
    means, quats, pose = means.contiguous(), quats.contiguous(), _contiguous(turn, shift, share)
    out = torch.empty_like(means), torch.empty_like(quats)
    arguments = _arguments(means, quats, pose)
    arguments.out_means, arguments.out_quats = out[0].data_ptr(), out[1].data_ptr()
    launch.launcher(means)("pose", arguments)
    return out


@pose_gaussians_op.register_fake
def _(means, quats, turn, shift, share):
    return means.new_empty(means.shape), quats.new_empty(quats.shape)


@torch.library.custom_op("gsavatar::pose_gaussians_bwd", mutates_args=())
def pose_gaussians_bwd_op(
    means: Tensor, quats: Tensor, turn: Tensor, shift: Tensor, share: Tensor | None,
    v_means: Tensor, v_quats: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of means, quats, turn, shift and share (empty where there is none)."""
    means, quats, pose = means.contiguous(), quats.contiguous(), _contiguous(turn, shift, share)
    given = v_means.contiguous(), v_quats.contiguous()
    v_share = means.new_empty(0) if share is None else torch.empty_like(pose.share)  # type: ignore[arg-type]
    out = (
        torch.empty_like(means), torch.empty_like(quats), torch.empty_like(pose.turn),
        torch.empty_like(pose.shift), v_share,
    )  # fmt: skip
    partial = means.new_empty(means.shape[0] // native.CHUNK + 1, SUMS)
    grad = native.PoseGrad(*(t.data_ptr() for t in (*given, partial, *out)))
    if share is None:
        grad.share = None
    launch.launcher(means)("pose_bwd", _arguments(means, quats, pose), grad)
    return out


@pose_gaussians_bwd_op.register_fake
def _(means, quats, turn, shift, share, v_means, v_quats):
    v_share = means.new_empty(0 if share is None else share.shape)
    return (means.new_empty(means.shape), quats.new_empty(quats.shape), turn.new_empty(4),
            shift.new_empty(3), v_share)  # fmt: skip


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, v_means: Tensor, v_quats: Tensor) -> tuple[Tensor | None, ...]:
    means, quats, turn, shift, share = pose_gaussians_bwd_op(*ctx.saved_tensors, v_means, v_quats)
    return means, quats, turn, shift, None if ctx.saved_tensors[4] is None else share


pose_gaussians_op.register_autograd(_backward, setup_context=_setup)
