"""One way from Gaussians to a picture, for training, evaluation, viewer and export alike."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from gsavatar import ops
from gsavatar.types import Camera, Gaussians, Rendering


def render(
    gaussians: Gaussians,
    camera: Camera,
    background: Tensor,  # [3], [H, W, 3] or [*B, H, W, 3]
    *,
    screen_probe: Tensor | None = None,  # [*B, N, 2]
    extra_channels: Tensor | None = None,  # [*B, N, C]
    backend: str = "auto",
) -> Rendering:
    """The picture of a cloud from a camera, over ``background``; differentiable.

    Cloud and camera may have batch axes, or one of the two. ``screen_probe`` is
    added to the projected means, in pixels; its gradient is that by their place. ``extra_channels``
    are composited over zero into ``extras``.
    """
    colors = view_colors(gaussians, camera)
    return ops.rasterize(
        gaussians.means,
        gaussians.quats,
        gaussians.scales,
        gaussians.opacities,
        colors,
        gaussians.branch,
        camera.world_to_cam,
        camera.K,
        camera.width,
        camera.height,
        background,
        screen_probe=screen_probe,
        extra_channels=extra_channels,
        backend=backend,
    )


def view_colors(gaussians: Gaussians, camera: Camera) -> Tensor:
    """sRGB colours [*B, N, 3] >= 0 of the spherical harmonics seen from the camera's centre."""
    rotation = camera.world_to_cam[..., :3, :3]
    centre = -(rotation.mT @ camera.world_to_cam[..., :3, 3:]).squeeze(-1)
    return ops.evaluate_sh(gaussians.means, gaussians.sh, centre)


def crop_camera(camera: Camera, box: tuple[int, int, int, int]) -> Camera:
    """The camera that sees only ``box`` (top, left, bottom, right; pixels) of the picture."""
    top, left, bottom, right = box
    shift = torch.zeros_like(camera.K)
    shift[..., 0, 2] = left
    shift[..., 1, 2] = top
    return replace(camera, K=camera.K - shift, width=right - left, height=bottom - top)


def to_uint8(rgb: Tensor) -> Tensor:
    """Pictures as they are shown and measured: clamped and rounded to 8 bits."""
    # in place: three more planes of this size would cost as much again as the arithmetic
    return rgb.detach().mul(255.0).clamp_(0.0, 255.0).round_().to(torch.uint8)
