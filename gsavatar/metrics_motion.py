"""How steadily a head is held: displacement of forehead and nose bridge, and its jitter.

Displacements come from Lucas and Kanade's iteration on patches of rigid skin, from coarse to
fine. Written here, apart from the tracker's optical flow, so that one cannot flatter the other.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gsavatar.metrics import UInt8
from gsavatar.metrics_mouth import LUMA
from gsavatar.types import Region

Array = NDArray[np.float64]

FOREHEAD = (67, 297, 334, 105)
"""Corners of the forehead between hairline and brows: landmarks, clockwise from upper left."""
NOSE_BRIDGE = (193, 417, 399, 174)
FOREHEAD_GRID = (0.20, 0.70, 5, 11)
"""First and last share of the way down, rows and columns of the patch centres."""
NOSE_GRID = (0.0, 1.0, 7, 4)

HALF_WINDOW = 10
LEVELS = 3
ITERATIONS = 12
CONVERGED_PX = 0.003
MIN_TEXTURE = 2.0
"""Least mean squared gradient (grey levels a pixel, weaker direction) of a usable patch."""
MIN_PATCHES = 8
MAX_DISPLACEMENT_PX = 20.0
MAX_GAP = 1.5
"""Successive frames are at most this many frame times apart."""


def patch_centres(points: NDArray[np.floating], regions: UInt8 | None = None) -> Array:
    """Pixels [P, 2] (x, y) on forehead and nose bridge of a face; those on hair are left out."""
    found = np.concatenate(
        [_grid(points, FOREHEAD, FOREHEAD_GRID), _grid(points, NOSE_BRIDGE, NOSE_GRID)]
    )
    found = found[np.isfinite(found).all(1)]
    if regions is None or len(found) == 0:
        return found
    height, width = regions.shape
    x, y = np.floor(found).astype(int).T
    inside = (x >= 0) & (y >= 0) & (x < width) & (y < height)
    x, y = np.clip(x, 0, width - 1), np.clip(y, 0, height - 1)
    skin = inside & (regions[y, x] == int(Region.SKIN))
    return found[skin] if skin.sum() >= MIN_PATCHES else found[inside]


def _grid(
    points: NDArray[np.floating], corners: tuple[int, ...], grid: tuple[float, float, int, int]
) -> Array:
    first, last, rows, columns = grid
    upper_left, upper_right, lower_right, lower_left = np.asarray(points, np.float64)[
        list(corners), :2
    ]
    down = np.linspace(first, last, rows)[:, None, None]
    across = np.linspace(0.1, 0.9, columns)[None, :, None]
    upper = upper_left * (1 - across) + upper_right * across
    lower = lower_left * (1 - across) + lower_right * across
    return (upper * (1 - down) + lower * down).reshape(-1, 2)


def grey_levels(picture: UInt8) -> list[Tensor]:
    """Luma pyramid of a picture: [1, 1, H, W], then halved again and again."""
    luma = torch.from_numpy(picture.astype(np.float32) @ np.array(LUMA, np.float32))[None, None]
    levels = [luma]
    for _ in range(LEVELS - 1):
        levels.append(torch.nn.functional.avg_pool2d(levels[-1], 2))
    return levels


def displacement(source: list[Tensor], target: list[Tensor], centres: Array) -> tuple[float, float]:
    """Median displacement (x, y) in px of the patches from one picture to another.

    Takes pyramids of ``grey_levels``. NaN where no patch has texture or none is found again.
    Patches are compared without their mean: a change of light is not a displacement.
    """
    if len(centres) == 0:
        return float("nan"), float("nan")
    points = torch.from_numpy(centres).float()
    moved = torch.zeros_like(points)
    texture = torch.zeros(len(points))
    for level in range(LEVELS - 1, -1, -1):
        scale = 0.5**level
        moved, texture = _refined(source[level], target[level], points * scale, moved * scale)
        moved = moved / scale
    usable = texture >= MIN_TEXTURE
    if int(usable.sum()) < MIN_PATCHES:  # a smooth forehead: the best there is
        usable = torch.zeros_like(usable)
        usable[texture.argsort(descending=True)[:MIN_PATCHES]] = True
        usable &= texture > 0.05 * MIN_TEXTURE
    usable &= (moved.norm(dim=1) < MAX_DISPLACEMENT_PX) & moved.isfinite().all(1)
    if not bool(usable.any()):
        return float("nan"), float("nan")
    x, y = np.median(moved[usable].double().numpy(), axis=0)
    return float(x), float(y)


def _refined(
    source: Tensor, target: Tensor, points: Tensor, moved: Tensor
) -> tuple[Tensor, Tensor]:
    """Displacements [P, 2] after Lucas and Kanade's iteration at one level, and texture [P]."""
    side = torch.arange(-HALF_WINDOW, HALF_WINDOW + 1, dtype=torch.float32)
    window = torch.stack(torch.meshgrid(side, side, indexing="xy"), -1)[None]  # [1, W, W, 2]
    at = points[:, None, None, :] + window
    patch = _sampled(source, at)
    step_x, step_y = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    gx = 0.5 * (_sampled(source, at + step_x) - _sampled(source, at - step_x))
    gy = 0.5 * (_sampled(source, at + step_y) - _sampled(source, at - step_y))
    gx, gy, patch = (t - t.mean(dim=(1, 2), keepdim=True) for t in (gx, gy, patch))
    xx, xy, yy = ((a * b).mean(dim=(1, 2)) for a, b in ((gx, gx), (gx, gy), (gy, gy)))
    texture = 0.5 * (xx + yy - ((xx - yy).square() + 4 * xy.square()).sqrt())
    determinant = (xx * yy - xy * xy).clamp_min(1e-6)
    for _ in range(ITERATIONS):
        seen = _sampled(target, at + moved[:, None, None, :])
        error = patch - (seen - seen.mean(dim=(1, 2), keepdim=True))
        bx, by = (gx * error).mean(dim=(1, 2)), (gy * error).mean(dim=(1, 2))
        update = torch.stack((yy * bx - xy * by, xx * by - xy * bx), -1) / determinant[:, None]
        update = update.clamp(-2.0, 2.0)
        moved = moved + update
        if float(update.abs().median()) < CONVERGED_PX:
            break
    return moved, texture


def _sampled(plane: Tensor, at: Tensor) -> Tensor:
    """Bilinear values [P, W, W] of a plane [1, 1, H, W] at pixels (x, y), centres at +0.5."""
    height, width = plane.shape[2:]
    grid = at / torch.tensor([width, height]) * 2.0 - 1.0
    flat = grid.reshape(1, at.shape[0], -1, 2)
    values = torch.nn.functional.grid_sample(
        plane, flat, mode="bilinear", padding_mode="border", align_corners=False
    )
    return values.reshape(at.shape[:3])


def jerks(displacements: Array, time_s: Array) -> Array:
    """d_t - (d_{t-1} + d_{t+1}) / 2 in px [T, 2]; NaN at the ends and beside missing frames."""
    result = np.full((len(time_s), 2), np.nan)
    if len(time_s) < 3:
        return result
    middle = displacements[1:-1] - 0.5 * (displacements[:-2] + displacements[2:])
    step = np.diff(time_s)
    whole = step <= MAX_GAP * np.median(step)
    result[1:-1] = np.where((whole[:-1] & whole[1:])[:, None], middle, np.nan)
    return result


def rms(vectors: Array) -> float:
    """Root mean square length of vectors [T, 2], NaN rows left out; NaN if none is left."""
    squared = (vectors**2).sum(1)
    squared = squared[np.isfinite(squared)]
    return float(np.sqrt(squared.mean())) if len(squared) else float("nan")
