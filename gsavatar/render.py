"""One way from Gaussians to a picture, for training, evaluation, viewer and export alike."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from gsavatar import ops
from gsavatar.types import Camera, Gaussians, Rendering

SH_0 = 0.28209479177387814
SH_1 = 0.4886025119029199


def render(
    gaussians: Gaussians,
    camera: Camera,
    background: Tensor,  # [3] or [H, W, 3]
    *,
    screen_probe: Tensor | None = None,  # [N, 2]
    extra_channels: Tensor | None = None,  # [N, C]
    backend: str = "auto",
) -> Rendering:
    """The picture of one cloud from one camera, over ``background``; differentiable.

    Neither may have batch axes (``render_batch`` takes those). The gradient of ``screen_probe``
    (zeros) is the gradient with respect to the projected means, in pixels. ``extra_channels``
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


def render_batch(gaussians: Gaussians, camera: Camera, background: Tensor) -> Rendering:
    """``render`` over one leading batch axis of the Gaussians; the camera is shared."""
    views = [
        render(
            Gaussians(
                gaussians.means[b], gaussians.quats[b], gaussians.scales[b],
                gaussians.opacities[b], gaussians.sh[b], gaussians.branch,
            ),
            camera,
            background,
        )
        for b in range(gaussians.means.shape[0])
    ]  # fmt: skip
    return Rendering(
        torch.stack([v.rgb for v in views]),
        torch.stack([v.alpha for v in views]),
        torch.stack([v.branch_alpha for v in views]),
        torch.stack([v.depth for v in views]),
    )


def view_colors(gaussians: Gaussians, camera: Camera) -> Tensor:
    """sRGB colours [N, 3] >= 0 of the spherical harmonics seen from the camera's centre.

    Basis and signs are those of 3D Gaussian Splatting (Kerbl et al. 2023), offset by 0.5.
    """
    sh = gaussians.sh
    colors = SH_0 * sh[..., 0, :] + 0.5
    if sh.shape[-2] > 1:
        rotation = camera.world_to_cam[..., :3, :3]
        centre = -(rotation.mT @ camera.world_to_cam[..., :3, 3:]).squeeze(-1)
        x, y, z = torch.nn.functional.normalize(gaussians.means - centre, dim=-1).unbind(-1)
        basis = torch.stack((-y, z, -x), dim=-1)
        colors = colors + SH_1 * (basis[..., None] * sh[..., 1:4, :]).sum(-2)
    return colors.clamp_min(0.0)


def crop_camera(camera: Camera, box: tuple[int, int, int, int]) -> Camera:
    """The camera that sees only ``box`` (top, left, bottom, right; pixels) of the picture."""
    top, left, bottom, right = box
    shift = torch.zeros_like(camera.K)
    shift[..., 0, 2] = left
    shift[..., 1, 2] = top
    return replace(camera, K=camera.K - shift, width=right - left, height=bottom - top)


def to_uint8(rgb: Tensor) -> Tensor:
    """Pictures as they are shown and measured: clamped and rounded to 8 bits."""
    return (rgb.detach().clamp(0.0, 1.0) * 255.0).round().to(torch.uint8)
