"""What an avatar must beat: pictures anybody could show without one, as painters by position."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gsavatar.clip import Clip
from gsavatar.landmarks import RIGID_20
from gsavatar.metrics import UInt8
from gsavatar.scoring import Painter
from gsavatar.types import is_upper_face

Rows = NDArray[np.int64]

MEAN_FRAMES = 1500
"""The mean picture is taken over at most this many training frames, evenly spread."""
NEIGHBOUR = 1.5
"""A frame is the one before if it is at most this many frame times earlier."""


def mean_picture(clip: Clip, progress: Callable[[int, int], None] | None = None) -> UInt8:
    """Mean training frame, uint8 [512, 512, 3]. Raises ``ValueError`` without training frames."""
    rows = clip.train_rows
    if len(rows) == 0:
        raise ValueError(f"{clip.root}: no training frame is kept")
    rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), MEAN_FRAMES)).astype(int)]
    total = np.zeros(clip.frame(int(rows[0])).shape, np.uint32)
    for done, row in enumerate(rows):
        total += clip.frame(int(row))
        if progress is not None:
            progress(done + 1, len(rows))
    return np.round(total / len(rows)).astype(np.uint8)


def mean_frame(clip: Clip) -> Painter:
    """Shows the mean training frame all the time."""
    picture = mean_picture(clip)
    return lambda i: picture


def nearest_pose_rows(points: Tensor, train_rows: Rows, test_rows: Rows) -> Rows:
    """For each test row the training row whose 20 rigid points lie nearest (mean distance in px).

    ``points`` are the landmarks [T, 478, 3] of all rows; faces without landmarks never match.
    """
    rigid = points[:, list(RIGID_20), :2].double()
    train, test = rigid[torch.from_numpy(train_rows)], rigid[torch.from_numpy(test_rows)]
    result = np.empty(len(test_rows), np.int64)
    for i, face in enumerate(test):
        distance = (train - face).norm(dim=-1).mean(-1)
        result[i] = train_rows[int(distance.nan_to_num(float("inf")).argmin())]
    return result


def nearest_pose_frame(clip: Clip, test_rows: Rows) -> Painter:
    """Shows the training frame in which the head is nearest to where it is now."""
    rows = nearest_pose_rows(clip.landmarks.points, clip.train_rows, test_rows)
    return lambda i: clip.frame(int(rows[i]))


def previous_frame(clip: Clip, test_rows: Rows) -> Painter:
    """Shows the real frame before; nothing where that frame is missing or of another file."""
    times = clip.time_s.numpy()
    files = clip.track.file_index.numpy()
    step = float(np.median(np.diff(times))) if len(times) > 1 else 0.0

    def paint(i: int) -> UInt8 | None:
        row = int(test_rows[i])
        if row == 0 or clip.stored[row - 1] < 0 or files[row - 1] != files[row]:
            return None
        if times[row] - times[row - 1] > NEIGHBOUR * step:
            return None
        return clip.frame(row - 1)

    return paint


def still_mouth_values(names: tuple[str, ...], values: Tensor, rest: Tensor) -> Tensor:
    """Coefficients [T, K] with the lower face at its training mean ``rest`` [K]."""
    lower = torch.tensor([not is_upper_face(name) for name in names], dtype=torch.bool)
    return torch.where(lower, rest.to(values), values)
