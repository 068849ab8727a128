"""Gaussians moved by a weighted sum of basis offsets, differentiable in everything.

A basis row has nine numbers per Gaussian: displacement (in units of ``mean_unit``), rotation vector
(radians, shorter than a full turn) and logarithm of the stretch. The moved Gaussian is
``means + d``, ``exp(r) (x) quats``, ``scales * exp(l)``. Coefficients of exactly zero cost nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gsavatar.ops import check, launch, native

OFFSETS = 9


def blend_motion(
    means: Tensor,  # [N, 3]
    quats: Tensor,  # [N, 4] wxyz
    scales: Tensor,  # [N, 3]
    basis: Tensor,  # [K, N, 9]
    coefficients: Tensor,  # [K]
    *,
    mean_unit: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Moved means [N, 3] (metres), quats [N, 4] (as long as the inputs) and scales [N, 3].

    float32 on a CPU or CUDA runs natively, anything else in torch. Raises ``ValueError`` for
    malformed shapes, dtypes or devices, and on a CPU for NaN or infinity wherever it would reach
    the result (on CUDA it does reach it, and the rasterizer reports it).
    """
    _check(means, quats, scales, basis, coefficients)
    check.numbers(mean_unit=mean_unit)
    if not launch.serves(means):
        check.finite(
            means=means, quats=quats, scales=scales, coefficients=coefficients, basis=basis
        )
        return blend_motion_ref(means, quats, scales, basis, coefficients, mean_unit=mean_unit)
    return blend_motion_op(means, quats, scales, basis, coefficients, float(mean_unit))


def _check(
    means: Tensor, quats: Tensor, scales: Tensor, basis: Tensor, coefficients: Tensor
) -> None:
    if not isinstance(means, Tensor) or means.dim() != 2 or means.shape[1] != 3:
        raise ValueError("means must be a tensor of shape [N, 3]")
    if not isinstance(coefficients, Tensor) or coefficients.dim() != 1:
        raise ValueError("coefficients must be a tensor of shape [K]")
    count = means.shape[0]
    expected = {
        "quats": (quats, (count, 4)),
        "scales": (scales, (count, 3)),
        "basis": (basis, (coefficients.shape[0], count, OFFSETS)),
        "coefficients": (coefficients, tuple(coefficients.shape)),
    }
    for name, (tensor, shape) in expected.items():
        check.shape(name, tensor, shape)
        check.dtype(name, tensor, means.dtype)
        check.device(name, tensor, means.device)
    if not means.is_floating_point():
        raise ValueError(f"means must be a float tensor, got {means.dtype}")


def blend_motion_ref(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    basis: Tensor,
    coefficients: Tensor,
    *,
    mean_unit: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """What ``blend_motion`` returns, in plain torch and any float dtype."""
    moved = torch.einsum("k,kno->no", coefficients, basis)
    shift, turn, stretch = moved.split(3, dim=-1)
    squared = turn.square().sum(-1, keepdim=True)
    angle = squared.clamp_min(1e-24).sqrt()
    small = squared < 1e-8  # where sin(a / 2) / a loses its gradient; its series is exact there
    sine = torch.where(small, 0.5 - squared / 48.0, torch.sin(0.5 * angle) / angle)
    cosine = torch.where(small, 1.0 - squared / 8.0, torch.cos(0.5 * angle))
    w, x, y, z = torch.cat((cosine, sine * turn), dim=-1).unbind(-1)
    qw, qx, qy, qz = quats.unbind(-1)
    turned = torch.stack(
        (
            w * qw - x * qx - y * qy - z * qz,
            w * qx + x * qw + y * qz - z * qy,
            w * qy - x * qz + y * qw + z * qx,
            w * qz + x * qy - y * qx + z * qw,
        ),
        dim=-1,
    )
    return means + mean_unit * shift, turned, scales * stretch.exp()


def _motion(
    cloud: tuple[Tensor, Tensor, Tensor, Tensor, Tensor], mean_unit: float, **outputs: int
) -> Any:
    means, quats, scales, basis, coefficients = cloud
    return native.Motion(
        means=means.data_ptr(), quats=quats.data_ptr(), scales=scales.data_ptr(),
        basis=basis.data_ptr(), coefficients=coefficients.data_ptr(), count=means.shape[0],
        coefficient_count=coefficients.shape[0], threads=native.threads(), mean_unit=mean_unit,
        **outputs,
    )  # fmt: skip


@torch.library.custom_op("gsavatar::blend_motion", mutates_args=())
def blend_motion_op(
    means: Tensor, quats: Tensor, scales: Tensor, basis: Tensor, coefficients: Tensor,
    mean_unit: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The moved means, quats and scales."""
    means, quats, scales = means.contiguous(), quats.contiguous(), scales.contiguous()
    cloud = (means, quats, scales, basis.contiguous(), coefficients.contiguous())
    out = torch.empty_like(means), torch.empty_like(quats), torch.empty_like(scales)
    motion = _motion(
        cloud, mean_unit, out_means=out[0].data_ptr(), out_quats=out[1].data_ptr(),
        out_scales=out[2].data_ptr(),
    )  # fmt: skip
    launch.launcher(means)("blend", motion)
    return out


@blend_motion_op.register_fake
def _(means, quats, scales, basis, coefficients, mean_unit):
    return (means.new_empty(means.shape), quats.new_empty(quats.shape),
            scales.new_empty(scales.shape))  # fmt: skip


@torch.library.custom_op("gsavatar::blend_motion_bwd", mutates_args=())
def blend_motion_bwd_op(
    means: Tensor, quats: Tensor, scales: Tensor, basis: Tensor, coefficients: Tensor,
    mean_unit: float, v_means: Tensor, v_quats: Tensor, v_scales: Tensor, needs_basis: bool,
    needs_coefficients: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of means, quats, scales, and, unless not asked for, basis and coefficients."""
    means, quats, scales = means.contiguous(), quats.contiguous(), scales.contiguous()
    basis, coefficients = basis.contiguous(), coefficients.contiguous()
    given = (v_means.contiguous(), v_quats.contiguous(), v_scales.contiguous())
    v_basis = basis.new_empty(basis.shape if needs_basis else 0)
    v_coefficients = coefficients.new_empty(coefficients.shape if needs_coefficients else 0)
    out = (
        torch.empty_like(means), torch.empty_like(quats), torch.empty_like(scales), v_basis,
        v_coefficients,
    )  # fmt: skip
    partial = means.new_empty(means.shape[0] // native.CHUNK + 1, max(coefficients.shape[0], 1))
    pointers = [t.data_ptr() for t in (*given, partial, *out)]
    grad = native.MotionGrad(*pointers)
    if not needs_basis:
        grad.basis = None
    if not needs_coefficients:
        grad.coefficients = None
    motion = _motion((means, quats, scales, basis, coefficients), mean_unit)
    launch.launcher(means)("blend_bwd", motion, grad)
    return out


@blend_motion_bwd_op.register_fake
def _(means, quats, scales, basis, coefficients, mean_unit, v_means, v_quats, v_scales,
      needs_basis, needs_coefficients):  # fmt: skip
    return (means.new_empty(means.shape), quats.new_empty(quats.shape),
            scales.new_empty(scales.shape), basis.new_empty(basis.shape if needs_basis else 0),
            coefficients.new_empty(coefficients.shape if needs_coefficients else 0))  # fmt: skip


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.mean_unit = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, v_means: Tensor, v_quats: Tensor, v_scales: Tensor) -> tuple[Any, ...]:
    needs_basis, needs_coefficients = ctx.needs_input_grad[3:5]
    means, quats, scales, basis, coefficients = blend_motion_bwd_op(
        *ctx.saved_tensors, ctx.mean_unit, v_means, v_quats, v_scales, needs_basis,
        needs_coefficients,
    )  # fmt: skip
    return (
        means, quats, scales, basis if needs_basis else None,
        coefficients if needs_coefficients else None, None,
    )  # fmt: skip


blend_motion_op.register_autograd(_backward, setup_context=_setup)
