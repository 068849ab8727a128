"""How steadily a head is held: displacement of forehead and nose bridge, and its jitter.

Displacements come from Lucas and Kanade's iteration on patches of rigid skin, from coarse to
fine. Written here, apart from the tracker's optical flow, so that one cannot flatter the other.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from gsavatar.metrics import UInt8
from gsavatar.metrics_mouth import LUMA
from gsavatar.types import Region

Array = NDArray[np.float64]
Plane = NDArray[np.float32]

FOREHEAD = (67, 297, 334, 105)
"""Corners of the forehead between hairline and brows: landmarks, clockwise from upper left."""
NOSE_BRIDGE = (193, 417, 399, 174)
FOREHEAD_GRID = (0.20, 0.70, 5, 9)
"""First and last share of the way down, rows and columns of the patch centres."""
NOSE_GRID = (0.0, 1.0, 6, 3)

HALF_WINDOW = 15
"""Wide enough for a smooth forehead: 10 px double the noise of a soft 256 px video."""
LEVELS = 2
ITERATIONS = 12
CONVERGED_PX, CONVERGED_SHARE = 0.002, 0.75
MAX_STEP_PX = 2.0
MIN_TEXTURE = 0.05
"""Least mean squared gradient (grey levels a pixel, weaker direction) of a usable patch.

Low on purpose: the median over all skin is steadier than that over the few best patches, which
lie beside brows and eyes and move with them.
"""
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


def grey_levels(picture: UInt8) -> list[Plane]:
    """Luma pyramid of a picture: [H, W], then halved again and again."""
    levels: list[Plane] = [picture.astype(np.float32) @ np.array(LUMA, np.float32)]
    for _ in range(LEVELS - 1):
        last = levels[-1]
        height, width = last.shape[0] // 2 * 2, last.shape[1] // 2 * 2
        quads = last[:height, :width].reshape(height // 2, 2, width // 2, 2)
        levels.append(quads.mean(axis=(1, 3)))
    return levels


def displacement(source: list[Plane], target: list[Plane], centres: Array) -> tuple[float, float]:
    """Median displacement (x, y) in px of the patches from one picture to another.

    Takes pyramids of ``grey_levels``. NaN where no patch has texture or none is found again.
    Patches are compared without their mean: a change of light is not a displacement.
    """
    if len(centres) == 0:
        return float("nan"), float("nan")
    moved = np.zeros_like(centres)
    texture = np.zeros(len(centres))
    for level in range(LEVELS - 1, -1, -1):
        scale = 0.5**level
        moved, texture = _refined(source[level], target[level], centres * scale, moved * scale)
        moved = moved / scale
    usable = (texture >= MIN_TEXTURE) & np.isfinite(moved).all(1)
    usable &= np.hypot(moved[:, 0], moved[:, 1]) < MAX_DISPLACEMENT_PX
    if not usable.any():
        return float("nan"), float("nan")
    x, y = np.median(moved[usable], axis=0)
    return float(x), float(y)


def _refined(source: Plane, target: Plane, points: Array, moved: Array) -> tuple[Array, Array]:
    """Displacements [P, 2] after Lucas and Kanade's iteration at one level, and texture [P]."""
    wide = _patches(source, points, HALF_WINDOW + 1)
    patch = wide[:, 1:-1, 1:-1]
    gx = 0.5 * (wide[:, 1:-1, 2:] - wide[:, 1:-1, :-2])
    gy = 0.5 * (wide[:, 2:, 1:-1] - wide[:, :-2, 1:-1])
    gx, gy, patch = (t - t.mean(axis=(1, 2), keepdims=True) for t in (gx, gy, patch))
    xx, xy, yy = (_mean_product(a, b) for a, b in ((gx, gx), (gx, gy), (gy, gy)))
    texture = 0.5 * (xx + yy - np.sqrt((xx - yy) ** 2 + 4 * xy**2))
    determinant = np.maximum(xx * yy - xy * xy, 1e-6)
    for _ in range(ITERATIONS):
        error = patch - _patches(target, points + moved, HALF_WINDOW)  # gx, gy have no mean
        bx, by = _mean_product(gx, error), _mean_product(gy, error)
        update = np.stack((yy * bx - xy * by, xx * by - xy * bx), -1) / determinant[:, None]
        moved = moved + update.clip(-MAX_STEP_PX, MAX_STEP_PX)
        if (np.abs(update) < CONVERGED_PX).mean() > CONVERGED_SHARE:
            break
    return moved, texture


def _mean_product(a: Plane, b: Plane) -> Plane:
    """Mean [P] of the product of patches [P, S, S]."""
    return np.asarray(np.einsum("pij,pij->p", a, b) / (a.shape[1] * a.shape[2]), np.float32)


def _patches(plane: Plane, centres: Array, half: int) -> Plane:
    """Bilinear patches [P, 2 half + 1, 2 half + 1] around pixels (x, y), pixel centres at +0.5.

    All pixels of a patch share one fraction, so four whole patches are mixed. Beyond the border
    the last pixel is repeated.
    """
    height, width = plane.shape
    at = np.nan_to_num(centres, nan=0.0, posinf=0.0, neginf=0.0) - 0.5
    whole = np.floor(at)
    fx, fy = (at - whole).astype(np.float32).T[..., None, None]
    first, side = whole.astype(int) - half, 2 * half + 2
    if (first >= 0).all() and (first + side <= (width, height)).all():
        block = sliding_window_view(plane, (side, side))[first[:, 1], first[:, 0]]
    else:
        columns, rows = (
            np.clip(first[:, axis, None] + np.arange(side), 0, size - 1)
            for axis, size in enumerate((width, height))
        )
        block = plane[rows[:, :, None], columns[:, None, :]]
    across = block[:, :, 1:] - block[:, :, :-1]
    across *= fx
    across += block[:, :, :-1]
    result: Plane = across[:, 1:] - across[:, :-1]
    result *= fy
    result += across[:, :-1]
    return result


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
