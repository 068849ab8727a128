"""How well a mouth follows: lip shape, opening over time, closures, sharpness.

Points are face landmarks [478, 3] in pixels of the protocol picture; NaN where no face was found.
Series are one value a frame and may hold NaN; what cannot be measured is NaN.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gsavatar.landmarks import LIPS_40
from gsavatar.metrics import Box, UInt8, square_box

Array = NDArray[np.float64]

MOUTH_GROWTH = 0.25
CLOSED = 0.010
"""A mouth with a smaller opening (share of the face's height) is closed."""
LAG_REACH = 8
"""Lags are looked for this many frames to either side."""
MIN_PAIRS = 8
CONSTANT = 1e-6
"""A series with a smaller standard deviation does not move."""
SHARPNESS_SIGMA_PX = 1.0
LUMA = (0.2126, 0.7152, 0.0722)


def mouth_box(points: NDArray[np.floating], size: tuple[int, int]) -> Box | None:
    """MOUTH: the box of the 40 lip landmarks grown by a quarter and squared."""
    lips = np.asarray(points, np.float64)[list(LIPS_40), :2]
    (left, top), (right, bottom) = lips.min(0), lips.max(0)
    return square_box((top, left, bottom, right), MOUTH_GROWTH, size)


def lip_distance(rendered: NDArray[np.floating], real: NDArray[np.floating]) -> float:
    """Mean distance in px of the 40 lip landmarks, each face's own mean removed."""
    ours = np.asarray(rendered, np.float64)[list(LIPS_40), :2]
    truth = np.asarray(real, np.float64)[list(LIPS_40), :2]
    error = (ours - ours.mean(0)) - (truth - truth.mean(0))
    return float(np.hypot(error[:, 0], error[:, 1]).mean())


def pearson(a: Array, b: Array) -> float:
    """Correlation over the frames where both are known; NaN if too few, or if one is constant."""
    both = np.isfinite(a) & np.isfinite(b)
    if both.sum() < MIN_PAIRS:
        return float("nan")
    x, y = a[both] - a[both].mean(), b[both] - b[both].mean()
    if min(x.std(), y.std()) < CONSTANT:
        return float("nan")
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))


def lagged(rendered: Array, time_s: Array) -> tuple[Array, float]:
    """The series [17, T] read ``k`` frame times later, k = -8..8, and the frame time in seconds.

    True times: where frames are missing or unevenly spaced the series is interpolated, but never
    across a gap of more than one and a half frame times.
    """
    if len(time_s) < 2:
        return np.full((2 * LAG_REACH + 1, len(time_s)), np.nan), float("nan")
    step = float(np.median(np.diff(time_s)))
    shifts = np.arange(-LAG_REACH, LAG_REACH + 1) * step
    at = time_s[None, :] + shifts[:, None]
    right = np.clip(np.searchsorted(time_s, at - 1e-6 * step), 1, len(time_s) - 1)
    left = right - 1
    gap = time_s[right] - time_s[left]
    share = (at - time_s[left]) / np.maximum(gap, 1e-12)
    # A neighbour of weight zero must not spoil the value with its NaN.
    share = np.where(np.abs(share - np.round(share)) < 1e-4, np.round(share), share)
    ends = (
        np.where(share == 1.0, 0.0, (1.0 - share) * rendered[left]),
        np.where(share == 0.0, 0.0, share * rendered[right]),
    )
    exact = (share == 0.0) | (share == 1.0)
    inside = (share >= 0.0) & (share <= 1.0) & (exact | (gap <= 1.5 * step))
    return np.where(inside, ends[0] + ends[1], np.nan), step


def lag_frames(real: Array, shifted: Array) -> float:
    """Delay of the rendered series in frame times; positive = late.

    ``shifted`` is that of ``lagged``. The top of the parabola through the best correlation and
    its neighbours; NaN where the best lies at the end of the search.
    """
    scores = np.array([pearson(real, row) for row in shifted])
    if not np.isfinite(scores).any():
        return float("nan")
    top = int(np.nanargmax(scores))
    if not 0 < top < len(scores) - 1 or not np.isfinite(scores[top - 1 : top + 2]).all():
        return float("nan")
    before, at, after = scores[top - 1 : top + 2]
    curvature = before - 2.0 * at + after
    offset = 0.5 * (before - after) / curvature if curvature < -1e-12 else 0.0
    return top - LAG_REACH + float(offset)


def lag_ms(real: Array, rendered: Array, time_s: Array) -> float:
    """Delay of the rendered opening in ms; positive = late."""
    shifted, step = lagged(rendered, time_s)
    return 1000.0 * step * lag_frames(real, shifted)


def closure_accuracy(real: Array, rendered: Array) -> float:
    """Balanced accuracy of "the mouth is closed"; NaN unless it is both closed and open."""
    both = np.isfinite(real) & np.isfinite(rendered)
    truth, guess = real[both] < CLOSED, rendered[both] < CLOSED
    if truth.all() or not truth.any():
        return float("nan")
    return 0.5 * (float(guess[truth].mean()) + float((~guess[~truth]).mean()))


def gradient_energy(picture: UInt8, box: Box) -> float:
    """Mean gradient magnitude of luma in a box, grey levels a pixel, after a 1 px low-pass."""
    height, width = picture.shape[:2]
    margin = 5  # the low-pass and the central difference see real neighbours
    top, left, bottom, right = box
    y0, x0 = max(0, top - margin), max(0, left - margin)
    y1, x1 = min(height, bottom + margin), min(width, right + margin)
    luma = picture[y0:y1, x0:x1].astype(np.float64) @ np.array(LUMA)
    gy, gx = np.gradient(_low_pass(luma))
    inner = np.hypot(gx, gy)[top - y0 : bottom - y0, left - x0 : right - x0]
    return float(inner.mean())


def _low_pass(plane: Array) -> Array:
    """A Gaussian of sigma 1 px, the border repeated."""
    offsets = np.arange(-4, 5)
    window = np.exp(-(offsets**2) / (2 * SHARPNESS_SIGMA_PX**2))
    window /= window.sum()
    height, width = plane.shape
    padded = np.pad(plane, 4, mode="edge")
    rows = sum(w * padded[k : k + height] for k, w in enumerate(window))
    result: Array = sum(w * rows[:, k : k + width] for k, w in enumerate(window))
    return result
