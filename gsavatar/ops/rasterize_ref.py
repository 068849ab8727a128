"""The rasterizer in plain torch: slow, any float dtype, the oracle of every other backend.

Written from the textbook forms (3x3 covariance, determinant by its definition), not from the
factored ones of the kernels, so that the two can disagree.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gsavatar.types import Rendering

ALPHA_MIN, OPACITY_MAX = 1.0 / 255.0, 0.999
TRANSMITTANCE_MIN = 1e-4
SCREEN_BLUR = 0.3  # px^2
NEAR = 0.01  # metres
MARGIN = 0.15
"""How far beyond the picture, in pictures, the projection's Jacobian still follows the mean."""


def rotation_matrices(quats: Tensor) -> Tensor:
    """Rotation matrices [N, 3, 3] of quaternions [N, 4] (wxyz, any length)."""
    w, x, y, z = torch.nn.functional.normalize(quats, dim=-1).unbind(-1)
    rows = (
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    )  # fmt: skip
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def project_ref(
    means: Tensor,  # [N, 3]
    quats: Tensor,  # [N, 4]
    scales: Tensor,  # [N, 3]
    world_to_cam: Tensor,  # [4, 4]
    K: Tensor,  # [3, 3]
    width: int,
    height: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Screen means [N, 2] (px), depths [N] (m), covariances [N, 2, 2] (px^2), compensation [N]."""
    turn = world_to_cam[:3, :3]
    x, y, z = (means @ turn.mT + world_to_cam[:3, 3]).unbind(-1)
    z = torch.where(z > NEAR, z, torch.ones_like(z))  # culled by the caller
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    u, v = x / z, y / z
    screen = torch.stack((fx * u + cx, fy * v + cy), dim=-1)

    def limited(value: Tensor, focal: Tensor, centre: Tensor, side: int) -> Tensor:
        low = ((-MARGIN * side - centre) / focal).detach()
        high = (((1 + MARGIN) * side - centre) / focal).detach()
        return torch.minimum(torch.maximum(value, low), high)

    zero = torch.zeros_like(z)
    u, v = limited(u, fx, cx, width), limited(v, fy, cy, height)
    jacobian = torch.stack((fx / z, zero, -fx * u / z, zero, fy / z, -fy * v / z), dim=-1)
    jacobian = jacobian.unflatten(-1, (2, 3))
    covariance = rotation_matrices(quats) * scales[:, None]
    covariance = covariance @ covariance.mT
    to_screen = jacobian @ turn
    flat = to_screen @ covariance @ to_screen.mT
    blurred = flat + SCREEN_BLUR * torch.eye(2).to(flat)
    ratio = torch.linalg.det(flat) / torch.linalg.det(blurred)
    return screen, z, blurred, ratio.clamp_min(1e-20).sqrt()


def rasterize_ref(
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
    """What ``rasterize`` returns, by dense compositing of N x H x W values; for tiny scenes."""
    screen, depths, covariances, compensation = project_ref(
        means, quats, scales, world_to_cam, K, width, height
    )
    if screen_probe is not None:
        screen = screen + screen_probe
    visible = (means @ world_to_cam[2, :3] + world_to_cam[2, 3]) > NEAR
    order = torch.argsort(depths.detach(), stable=True)
    order = order[visible[order]]

    x = torch.arange(width).to(means) + 0.5
    y = torch.arange(height).to(means) + 0.5
    centres = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).reshape(-1, 2)
    offset = centres - screen[order, None]  # [M, P, 2]
    conic = torch.linalg.inv(covariances[order])
    power = -0.5 * torch.einsum("mpi,mij,mpj->mp", offset, conic, offset)
    alpha = (opacities * compensation).clamp_max(OPACITY_MAX)[order, None] * power.exp()
    alpha = torch.where(alpha >= ALPHA_MIN, alpha, torch.zeros_like(alpha))
    left = torch.cumprod(torch.cat((torch.ones_like(alpha[:1]), 1 - alpha)), dim=0)
    counts = left[:-1] >= TRANSMITTANCE_MIN
    alpha = torch.where(counts, alpha, torch.zeros_like(alpha))
    left = torch.cumprod(torch.cat((torch.ones_like(left[:1]), 1 - alpha)), dim=0)
    weight = alpha * left[:-1]  # [M, P]

    size = (height, width)
    rgb = (weight.mT @ colors[order]).unflatten(0, size)
    remaining = left[-1].unflatten(0, size)[..., None]
    of_branch = torch.nn.functional.one_hot(branch[order].long(), 3).to(weight)
    return Rendering(
        rgb + remaining * background,
        1 - remaining,
        (weight.mT @ of_branch).unflatten(0, size),
        (weight.mT @ depths[order]).unflatten(0, size)[..., None],
        None if extra_channels is None else (weight.mT @ extra_channels[order]).unflatten(0, size),
    )
