"""Mean structural similarity of two pictures, differentiable in the first.

Wang et al. 2004 with their 11 x 11 Gaussian window (sigma 1.5) and constants (0.01^2, 0.03^2) for
values in 0..1. Outside the picture both images count as zero, so the map has the picture's size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gsavatar.ops import check, launch, native

WINDOW, SIGMA = 11, 1.5
C1, C2 = 0.01**2, 0.03**2


def ssim(
    a: Tensor,  # [H, W, 3]
    b: Tensor,  # [H, W, 3]
    mask: Tensor | None = None,  # [H, W], weights >= 0
) -> Tensor:
    """Mean SSIM, a scalar in -1..1, over channels and over pixels weighted by ``mask``.

    An empty mask gives 0. Gradients flow to ``a`` only. Raises ``ValueError`` for malformed shapes,
    dtypes or devices, and on a CPU for NaN or infinity (on CUDA the value is then NaN). float32 on
    a CPU or CUDA runs natively, anything else in torch.
    """
    _check(a, b, mask)
    b = b.detach()
    if not launch.serves(a):
        check.finite(a=a, b=b, mask=mask)
        return ssim_ref(a, b, mask)
    return ssim_op(a, b, mask, a.requires_grad and torch.is_grad_enabled())[0]


@torch.library.custom_op("gsavatar::ssim", mutates_args=())
def ssim_op(a: Tensor, b: Tensor, mask: Tensor | None, needs_grad: bool) -> tuple[Tensor, Tensor]:
    """The mean and its gradient by ``a`` (empty unless asked for), in one pass."""
    a, b = a.contiguous(), b.contiguous()
    mask = None if mask is None else mask.contiguous()
    height, width = a.shape[:2]
    threads = min(native.threads(), height)
    value, v_a = a.new_empty(()), torch.empty_like(a) if needs_grad else a.new_empty(0)
    scratch, sums = _scratch(a, threads, needs_grad)
    call = native.SsimArguments(
        a=a.data_ptr(), b=b.data_ptr(), mask=native.pointer(mask), height=height, width=width,
        threads=threads, scratch=scratch.data_ptr(), sums=sums.data_ptr(),
        value=value.data_ptr(), v_a=v_a.data_ptr() if needs_grad else None,
    )  # fmt: skip
    launch.launcher(a)("ssim", call)
    return value, v_a


def _scratch(a: Tensor, threads: int, needs_grad: bool) -> tuple[Tensor, Tensor]:
    """What the kernels keep in between, float32 and float64: see ``abi.h`` and ``cuda_abi.h``."""
    height, width = a.shape[:2]
    if launch.on_cuda(a):
        tiles = -(-width // native.TILE) * -(-height // native.TILE)
        slopes = a.new_empty((3, *a.shape) if needs_grad else 0)
        return slopes, a.new_empty(tiles + 1, 2, dtype=torch.float64)
    stride = -(-(3 * width + 32) // 16) * 16
    rows = a.new_empty(threads, native.SSIM_ROWS, stride)
    return rows, a.new_empty(height, dtype=torch.float64)


@ssim_op.register_fake
def _(a: Tensor, b: Tensor, mask: Tensor | None, needs_grad: bool) -> tuple[Tensor, Tensor]:
    return a.new_empty(()), torch.empty_like(a) if needs_grad else a.new_empty(0)


@torch.library.custom_op("gsavatar::ssim_bwd", mutates_args=())
def ssim_bwd_op(v_a: Tensor, v_value: Tensor) -> Tensor:
    """``v_a * v_value``. On a CPU by our own threads: torch's wait for each other too long."""
    if launch.on_cuda(v_a):
        return v_a * v_value
    out = torch.empty_like(v_a)
    native.cpu().gsa_scaled(
        v_a.data_ptr(), v_value.data_ptr(), out.data_ptr(), v_a.numel(), native.threads()
    )
    return out


@ssim_bwd_op.register_fake
def _(v_a: Tensor, v_value: Tensor) -> Tensor:
    return torch.empty_like(v_a)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1])


def _backward(ctx: Any, v_value: Tensor, _: Any) -> tuple[Tensor | None, None, None, None]:
    (v_a,) = ctx.saved_tensors
    return ssim_bwd_op(v_a, v_value) if v_a.numel() else None, None, None, None


ssim_op.register_autograd(_backward, setup_context=_setup)


def _check(a: Tensor, b: Tensor, mask: Tensor | None) -> None:
    if not isinstance(a, Tensor) or a.dim() != 3 or a.shape[2] != 3 or a.numel() == 0:
        got = list(a.shape) if isinstance(a, Tensor) else type(a).__name__
        raise ValueError(f"a must have shape [H, W, 3] with H, W > 0, got {got}")
    check.shape("b", b, tuple(a.shape))
    check.dtype("b", b, a.dtype)
    check.device("b", b, a.device)
    if not a.is_floating_point():
        raise ValueError(f"a must be a float tensor, got {a.dtype}")
    if mask is not None:
        check.shape("mask", mask, tuple(a.shape[:2]))
        check.dtype("mask", mask, a.dtype)
        check.device("mask", mask, a.device)


def ssim_ref(a: Tensor, b: Tensor, mask: Tensor | None = None) -> Tensor:
    """What ``ssim`` returns, in plain torch and any float dtype; differentiable in both."""
    values = ssim_map_ref(a, b)
    if mask is None:
        return values.mean()
    return (values.mean(-1) * mask).sum() / mask.sum().clamp_min(1e-12)


def ssim_map_ref(a: Tensor, b: Tensor) -> Tensor:
    """SSIM of every pixel and channel [H, W, 3]."""
    offsets = torch.arange(WINDOW, dtype=a.dtype, device=a.device) - WINDOW // 2
    window = torch.exp(-0.5 * (offsets / SIGMA) ** 2)
    window = window / window.sum()

    def blurred(x: Tensor) -> Tensor:
        planes = x.permute(2, 0, 1)[:, None]
        planes = torch.conv2d(planes, window[None, None, None], padding=(0, WINDOW // 2))
        planes = torch.conv2d(planes, window[None, None, :, None], padding=(WINDOW // 2, 0))
        return planes[:, 0].permute(1, 2, 0)

    mean_a, mean_b = blurred(a), blurred(b)
    var_a = blurred(a * a) - mean_a * mean_a
    var_b = blurred(b * b) - mean_b * mean_b
    cov = blurred(a * b) - mean_a * mean_b
    return ((2 * mean_a * mean_b + C1) * (2 * cov + C2)) / (
        (mean_a * mean_a + mean_b * mean_b + C1) * (var_a + var_b + C2)
    )
