"""The same picture from the gsplat package on a CUDA device; the only importer of gsplat.

gsplat composites colour, branch shares, depth and extra channels in one pass. It has no gradient
for the intrinsics and stops a pixel one Gaussian earlier, a difference below 1e-4.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util

import torch
from torch import Tensor

from gsavatar.ops.native import NativeUnavailable
from gsavatar.types import Rendering

TILE = 16


def why_not() -> str | None:
    """Why gsplat cannot be used here, or None if it can."""
    if importlib.util.find_spec("gsplat") is None:
        return "gsplat is not installed; pip install gsavatar[cuda]"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    return None


def version() -> str | None:
    """The installed version of gsplat, or None."""
    try:
        return importlib.metadata.version("gsplat")
    except importlib.metadata.PackageNotFoundError:
        return None


def rasterize_gsplat(
    means: Tensor,  # [N, 3]
    quats: Tensor,  # [N, 4]
    scales: Tensor,  # [N, 3]
    opacities: Tensor,  # [N]
    colors: Tensor,  # [N, 3]
    branch: Tensor,  # [N] int32
    world_to_cam: Tensor,  # [4, 4]
    K: Tensor,  # [3, 3]
    width: int,
    height: int,
    background: Tensor,  # [3] or [H, W, 3]
    *,
    screen_probe: Tensor | None = None,  # [N, 2]
    extra_channels: Tensor | None = None,  # [N, C]
) -> Rendering:
    """What ``rasterize`` returns. Raises ``NativeUnavailable`` where gsplat cannot run."""
    reason = why_not()
    if reason is not None:
        raise NativeUnavailable(f"backend gsplat: {reason}")
    from gsplat.cuda._wrapper import (
        fully_fused_projection,
        isect_offset_encode,
        isect_tiles,
        rasterize_to_pixels,
    )

    radii, screen, depths, conics, compensation = fully_fused_projection(
        means, None, quats, scales, world_to_cam[None], K[None], width, height,
        eps2d=0.3, calc_compensations=True,
    )  # fmt: skip
    if screen_probe is not None:
        screen = screen + screen_probe[None]
    across, down = -(-width // TILE), -(-height // TILE)
    _, ids, flat = isect_tiles(screen, radii, depths, TILE, across, down)
    offsets = isect_offset_encode(ids, 1, across, down)
    of_branch = torch.nn.functional.one_hot(branch.long(), 3).to(colors)
    more = colors[:, :0] if extra_channels is None else extra_channels
    channels = torch.cat((colors, of_branch, depths[0, :, None], more), dim=-1)[None]
    values, alpha = rasterize_to_pixels(
        screen, conics, channels, opacities[None] * compensation, width, height, TILE, offsets, flat
    )
    rgb = values[0, ..., :3] + (1.0 - alpha[0]) * background
    extras = None if extra_channels is None else values[0, ..., 7:]
    return Rendering(rgb, alpha[0], values[0, ..., 3:6], values[0, ..., 6:7], extras)
