"""Which frames the TalkingGaussian baseline trains on: any, and now and then a wanted opening.

The paper draws small mouth openings first and wide ones later. Here every draw looks up a sorted
table, so none can wait for a frame that the clip does not have.
"""

from __future__ import annotations

import numpy as np
import torch

from gsavatar.batches import Box
from gsavatar.clip import Clip
from gsavatar.landmarks import INNER_LIPS, mouth_opening
from gsavatar.types import PROTOCOL_SIZE

WINDOW_EVERY = 7
"""Steps between draws from the moving window of mouth openings."""
WINDOW_END = 40_000 / 50_000
WINDOW_HALF = 0.16
WIDE_OPEN = 0.95
"""Quantile of the openings from which the mouth's still stage draws."""
MIN_MOUTH_PX = 20.0
LIP_MARGIN = 0.6
MIN_OPEN_ROWS = 8


def lip_box(clip: Clip, row: int) -> Box:
    """A square around the lips of a row, within the full frame."""
    top, left, bottom, right = clip.lips(row)
    side = round(max(bottom - top, right - left, 24.0) * (1.0 + 2.0 * LIP_MARGIN))
    side = min(side, PROTOCOL_SIZE)
    limit = PROTOCOL_SIZE - side
    y = int(np.clip((top + bottom - side) / 2, 0, limit))
    x = int(np.clip((left + right - side) / 2, 0, limit))
    return y, x, y + side, x + side


class ApertureDraws:
    """Rows of a clip's training part by mouth opening. ``share`` is how far the branch has come."""

    def __init__(self, clip: Clip, rows: np.ndarray) -> None:
        self.rows = rows
        opening = mouth_opening(clip.landmarks.points[rows]).numpy()
        low, high = np.percentile(opening, [1, 99])
        level = np.clip((opening - low) / max(float(high - low), 1e-6), 0.0, 1.0)
        order = np.argsort(level, kind="stable")
        self.by_level, self.levels = rows[order], level[order]
        area = _polygon_area(clip.landmarks.points[rows][:, list(INNER_LIPS), :2].numpy())[order]
        open_enough = area >= MIN_MOUTH_PX
        if open_enough.sum() < MIN_OPEN_ROWS:  # a mouth that never opens: its widest frames
            open_enough = np.arange(len(area)) >= len(area) - MIN_OPEN_ROWS
        self.open_rows, self.open_levels = self.by_level[open_enough], self.levels[open_enough]

    def face(self, step: int, share: float, generator: torch.Generator) -> int:
        """A row for the face: the window moves from small openings to wide ones."""
        if share < WINDOW_END and step % WINDOW_EVERY == 0:
            middle = 0.2 + 0.8 * share / WINDOW_END
            window = (middle - WINDOW_HALF, middle + WINDOW_HALF)
            return _within(self.by_level, self.levels, *window, generator)
        return int(self.rows[_below(len(self.rows), generator)])

    def mouth(self, step: int, share: float, generator: torch.Generator) -> int:
        """A row that shows the mouth's inside; now and then from a window that grows downwards."""
        rows, levels = self.open_rows, self.open_levels
        if share < WINDOW_END and step % WINDOW_EVERY == 0:
            low = 1.0 - share / WINDOW_END * (1.0 - float(np.quantile(levels, 0.25)))
            return _within(rows, levels, low, 1.0, generator)
        return int(rows[_below(len(rows), generator)])

    def wide_mouth(self, generator: torch.Generator) -> int:
        """One of the rows whose mouth is open widest."""
        low = float(np.quantile(self.open_levels, WIDE_OPEN))
        return _within(self.open_rows, self.open_levels, low, 1.0, generator)


def _within(
    rows: np.ndarray, levels: np.ndarray, low: float, high: float, generator: torch.Generator
) -> int:
    """A random row whose level (sorted) lies from ``low`` to ``high``; the nearest if none does."""
    first = int(np.searchsorted(levels, low, side="left"))
    last = int(np.searchsorted(levels, high, side="right"))
    if first < last:
        return int(rows[first + _below(last - first, generator)])
    return int(rows[int(np.abs(levels - 0.5 * (low + high)).argmin())])


def _below(limit: int, generator: torch.Generator) -> int:
    return int(torch.randint(0, limit, (), generator=generator))


def _polygon_area(points: np.ndarray) -> np.ndarray:
    """Areas [T] of polygons [T, N, 2] in square pixels."""
    x, y = points[..., 0], points[..., 1]
    cross = x * np.roll(y, -1, axis=-1) - y * np.roll(x, -1, axis=-1)
    area: np.ndarray = 0.5 * np.abs(cross.sum(-1))
    return area
