"""Colours of Gaussians seen from a point: spherical harmonics of degree 0 to 3, differentiable.

Real basis in Cartesian form (Sloan 2013, appendix A2) with the signs of 3D Gaussian Splatting
(Kerbl et al. 2023): band l starts at term l^2, m from -l to l.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gsavatar.ops import batch, check, launch, native

TERMS = (1, 4, 9, 16)
"""Number of coefficients by degree."""
SH_0, SH_1 = 0.28209479177387814, 0.4886025119029199
SH_2 = (1.0925484305920792, 0.31539156525252005, 0.5462742152960396)
SH_3 = (0.5900435899266435, 2.890611442640554, 0.4570457994644658, 0.37317633259011546,
        1.445305721320277)  # fmt: skip


OWN_AXES = {"means": 2, "sh": 3, "centre": 1}


def evaluate_sh(
    means: Tensor,  # [*B, N, 3]
    sh: Tensor,  # [*B, N, S, 3]
    centre: Tensor,  # [*B, 3]
) -> Tensor:
    """sRGB colours [*B, N, 3] >= 0: ``max(0, 1/2 + sum_s Y_s(d) sh_s)``.

    ``d`` points from the camera's ``centre`` to the Gaussian, S is 1, 4, 9 or 16. All three inputs
    get gradients; one without batch axes is shared. float32 on a CPU or CUDA runs natively from
    degree 1 on, anything else in torch. Raises ``ValueError`` for malformed shapes, dtypes or
    devices, and on a CPU for NaN or infinity (on CUDA it reaches the colours, and the rasterizer
    reports it).
    """
    inputs = {"means": means, "sh": sh, "centre": centre}
    axes = batch.axes_of(inputs, OWN_AXES)
    if axes:
        parts = [evaluate_sh(**e) for e in batch.elements(inputs, OWN_AXES, axes)]
        return batch.joined(parts, axes)
    _check(means, sh, centre)
    if sh.shape[1] == 1 or not launch.serves(sh):
        check.finite(means=means, sh=sh, centre=centre)
        return evaluate_sh_ref(means, sh, centre)
    return evaluate_sh_op(means, sh, centre)


def _check(means: Tensor, sh: Tensor, centre: Tensor) -> None:
    if not isinstance(means, Tensor) or means.dim() != 2 or means.shape[1] != 3:
        raise ValueError("means must be a tensor of shape [N, 3]")
    if not means.is_floating_point():
        raise ValueError(f"means must be a float tensor, got {means.dtype}")
    if not isinstance(sh, Tensor) or sh.dim() != 3 or sh.shape[1] not in TERMS:
        got = list(sh.shape) if isinstance(sh, Tensor) else type(sh).__name__
        raise ValueError(f"sh must have shape [N, S, 3] with S one of {TERMS}, got {got}")
    wanted = (("sh", sh, (means.shape[0], sh.shape[1], 3)), ("centre", centre, (3,)))
    for name, tensor, shape in wanted:
        check.shape(name, tensor, shape)
        check.dtype(name, tensor, means.dtype)
        check.device(name, tensor, means.device)


def sh_basis(directions: Tensor, terms: int) -> Tensor:
    """The first ``terms`` basis values [*B, S] at unit directions [*B, 3]."""
    x, y, z = directions.unbind(-1)
    values = [torch.full_like(x, SH_0)]
    if terms > 1:
        values += [-SH_1 * y, SH_1 * z, -SH_1 * x]
    xx, yy, zz = x * x, y * y, z * z
    if terms > 4:
        a, b, c = SH_2
        values += [a * x * y, -a * y * z, b * (2 * zz - xx - yy), -a * x * z, c * (xx - yy)]
    if terms > 9:
        a, b, c, d, e = SH_3
        values += [
            -a * y * (3 * xx - yy), b * x * y * z, -c * y * (4 * zz - xx - yy),
            d * z * (2 * zz - 3 * xx - 3 * yy), -c * x * (4 * zz - xx - yy), e * z * (xx - yy),
            -a * x * (xx - 3 * yy),
        ]  # fmt: skip
    return torch.stack(values, dim=-1)


def evaluate_sh_ref(means: Tensor, sh: Tensor, centre: Tensor) -> Tensor:
    """What ``evaluate_sh`` returns, in plain torch and any float dtype."""
    if sh.shape[-2] == 1:  # the same from everywhere
        return (SH_0 * sh[..., 0, :] + 0.5).clamp_min(0.0)
    offset = means - centre
    length = offset.square().sum(-1, keepdim=True).clamp_min(1e-24).sqrt()
    basis = sh_basis(offset / length, sh.shape[-2])
    return ((basis[..., None] * sh).sum(-2) + 0.5).clamp_min(0.0)


def _arguments(means: Tensor, sh: Tensor, centre: Tensor, colors: Tensor | None) -> Any:
    return native.ShArguments(
        means=means.data_ptr(), sh=sh.data_ptr(), centre=centre.data_ptr(), count=means.shape[0],
        terms=sh.shape[1], threads=native.threads(), colors=native.pointer(colors),
    )  # fmt: skip


@torch.library.custom_op("gsavatar::evaluate_sh", mutates_args=())
def evaluate_sh_op(means: Tensor, sh: Tensor, centre: Tensor) -> Tensor:
    """The colours [N, 3]."""
    means, sh, centre = means.contiguous(), sh.contiguous(), centre.contiguous()
    colors = torch.empty_like(means)
    launch.launcher(means)("sh", _arguments(means, sh, centre, colors))
    return colors


@evaluate_sh_op.register_fake
def _(means: Tensor, sh: Tensor, centre: Tensor) -> Tensor:
    return means.new_empty(means.shape)


@torch.library.custom_op("gsavatar::evaluate_sh_bwd", mutates_args=())
def evaluate_sh_bwd_op(
    means: Tensor, sh: Tensor, centre: Tensor, v_colors: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of means, sh and centre."""
    means, sh, centre = means.contiguous(), sh.contiguous(), centre.contiguous()
    v_colors = v_colors.contiguous()
    out = torch.empty_like(means), torch.empty_like(sh), torch.empty_like(centre)
    partial = means.new_empty(means.shape[0] // native.CHUNK + 1, 3)
    grad = native.ShGrad(*(t.data_ptr() for t in (v_colors, partial, *out)))
    launch.launcher(means)("sh_bwd", _arguments(means, sh, centre, None), grad)
    return out


@evaluate_sh_bwd_op.register_fake
def _(means, sh, centre, v_colors):
    return means.new_empty(means.shape), sh.new_empty(sh.shape), centre.new_empty(3)


def _setup(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, v_colors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    means, sh, centre = evaluate_sh_bwd_op(*ctx.saved_tensors, v_colors)
    return means, sh, centre


evaluate_sh_op.register_autograd(_backward, setup_context=_setup)
