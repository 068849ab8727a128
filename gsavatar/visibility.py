"""How well each frame shows the face: how sharp it is, and whether something hides the mouth.

A landmark detector puts plausible lips on a hand and on a smear; their places cannot tell. So every
frame's face is compared with how the same face usually looks in the clip: fine detail over
contrast, and the colours of the lower face beside their usual spread at the same turn of the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
UInt8 = NDArray[np.uint8]

JAW_CORNERS, BRIDGE = (172, 397), 168
SIDES = (234, 454)
NOSE = 1
SIZE = 16
"""Side of the stored picture of the lower face."""
FINE = 8
"""It is made from one this many times larger, so that it shows means over small squares."""
PLACES = ((0.1, 0.75), (0.9, 0.75), (0.5, -0.3))
"""Where the jaw's corners and the nose bridge lie in it, as shares of its side."""
TURNS = 8
"""The usual look is learned at so many turns of the head."""
SPREAD_LEVELS = 3.0
"""Added to the usual spread of a colour, of 255: noise and compression."""
MOUTH = (slice(5, 14), slice(4, 12))
"""Rows and columns of it that show the mouth."""
MOST_STRANGE = 6.0
"""Colours farther off, in spreads, count no more."""
HOLD_FRAMES = 5
"""Nothing hides a mouth for less; a median over so many frames leaves out single odd ones."""
BLURRED = 0.6
"""Share of the usual detail below which a frame counts less."""
HIDDEN, PALE = 2.8, 2.5
"""Times the usual strangeness, and spreads of the lips' red, beyond which something is before the
mouth. Ten clips with nothing there, one turning to profile and far up, reach 2.6 and 2.0."""


@dataclass(frozen=True)
class FaceView:
    """What is kept of a frame until all of them can be compared."""

    detail: float
    lower: UInt8  # [SIZE, SIZE, 3], the lower face in Lab
    turn: float  # of the nose between the sides of the face, 0-1


@dataclass(frozen=True)
class Visibility:
    """How well the frames [T] show the face; NaN where there is none."""

    detail: Floats  # over the clip's median
    strangeness: Floats  # of the lower face, over the clip's median; of the lips' red, likewise

    @property
    def blurred(self) -> NDArray[np.bool_]:
        """Frames [T] that are out of focus or smeared."""
        return np.nan_to_num(self.detail, nan=1.0) < BLURRED

    @property
    def hidden(self) -> NDArray[np.bool_]:
        """Frames [T] in which something is before the mouth."""
        return np.nan_to_num(self.strangeness, nan=1.0) > HIDDEN

    @property
    def weight(self) -> Floats:
        """What each frame counts [T], 1 for a clear one."""
        detail = np.nan_to_num(self.detail, nan=1.0)
        strange = np.nan_to_num(self.strangeness, nan=1.0)
        sharp, shown = np.minimum(detail / BLURRED, 1.0), HIDDEN / np.maximum(strange, HIDDEN)
        return np.asarray((sharp * shown) ** 2)


def look(picture: UInt8, points: NDArray[np.float32]) -> FaceView:
    """The face of an RGB picture, at its landmarks [478, 3]."""
    import cv2

    side = SIZE * FINE
    there = np.array(PLACES, np.float32) * side
    affine = cv2.getAffineTransform(points[[*JAW_CORNERS, BRIDGE], :2].astype(np.float32), there)
    large = cv2.warpAffine(picture, affine, (side, side), borderMode=cv2.BORDER_REPLICATE)
    lower = cv2.resize(large, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    left, right = points[list(SIDES), 0]
    turn = float((points[NOSE, 0] - left) / max(float(right - left), 1.0))
    lab = np.asarray(cv2.cvtColor(lower, cv2.COLOR_RGB2LAB), np.uint8)
    return FaceView(detail(picture, points), lab, turn)


def detail(picture: UInt8, points: NDArray[np.floating[Any]]) -> float:
    """Strength of fine detail over the contrast of the middle of a face, at its landmarks
    [478, 3]; NaN where it is too small. The low-pass leaves out noise, which is finer still."""
    import cv2

    height, width = picture.shape[:2]
    (x0, y0), (x1, y1) = points[:468, :2].min(0), points[:468, :2].max(0)
    rows = slice(max(int(0.75 * y0 + 0.25 * y1), 0), min(int(0.3 * y0 + 0.7 * y1), height))
    columns = slice(max(int(0.8 * x0 + 0.2 * x1), 0), min(int(0.2 * x0 + 0.8 * x1), width))
    part = picture[rows, columns]
    if min(part.shape[:2]) < 8:
        return float("nan")
    grey = cv2.GaussianBlur(cv2.cvtColor(part, cv2.COLOR_RGB2GRAY), (0, 0), 1.0).astype(np.float32)
    return float(cv2.Laplacian(grey, cv2.CV_32F).std() / max(float(grey.std()), 1.0))


def judged(views: Sequence[FaceView | None]) -> Visibility:
    """All frames of a clip compared with what is usual in it."""
    detail, strangeness = np.full(len(views), np.nan), np.full(len(views), np.nan)
    seen = np.array([i for i, view in enumerate(views) if view is not None], dtype=np.int64)
    known = [view for view in views if view is not None]
    if not known:
        return Visibility(detail, strangeness)
    details = np.array([view.detail for view in known])
    detail[seen] = details / max(float(np.nanmedian(details)), 1e-9)
    lower = np.stack([view.lower for view in known])
    raw = _strangeness(lower, np.array([view.turn for view in known]))
    colours = _held(raw) / max(float(np.median(raw)), 1e-9)
    strangeness[seen] = np.maximum(colours, HIDDEN / PALE * _held(_paleness(lower)))
    return Visibility(detail, strangeness)


def told(visibility: Visibility, time_s: Floats) -> list[str]:
    """What the user should know of frames [T] that count less, in sentences."""
    said = []
    for which, what in (
        (visibility.blurred, "are blurred"), (visibility.hidden, "have something before the mouth"),
    ):  # fmt: skip
        if which.any():
            first_s = float(time_s[int(np.argmax(which))])
            said.append(
                f"{int(which.sum())} of {len(which)} frames {what} and count less (the first at "
                f"{first_s:.1f} s)."
            )
    return said


def _strangeness(lower: UInt8, turn: Floats) -> Floats:
    """How far lower faces [T, S, S, 3] are from the usual ones, in spreads: [T], the least over
    turns of the head."""
    order = np.argsort(turn, kind="stable")
    least = np.full(len(lower), np.inf)
    for some in np.array_split(order, min(TURNS, max(1, len(lower) // TURNS))):
        usual = np.median(lower[some], axis=0)
        spread = 1.4826 * np.median(np.abs(lower[some] - usual), axis=0) + SPREAD_LEVELS
        for i, face in enumerate(lower):
            off = face - usual
            off -= off.mean((0, 1))  # the light of the whole face may change
            strange = float(np.minimum(np.abs(off) / spread, MOST_STRANGE).mean())
            least[i] = min(least[i], strange)
    return least


def _paleness(lower: UInt8) -> Floats:
    """How far the red of the lips [T] in lower faces is from the usual, in spreads: a hand has the
    colour of skin, and that alone."""
    red = lower[..., 1].astype(np.float64)
    mouth = red[:, MOUTH[0], MOUTH[1]].reshape(len(red), -1)
    lips = np.percentile(mouth, 90, axis=1) - np.median(red.reshape(len(red), -1), axis=1)
    off = np.abs(lips - np.median(lips))
    return np.asarray(off / (1.4826 * np.median(off) + 1.0))


def _held(values: Floats) -> Floats:
    """The median of each value [T] and those around it."""
    reach = HOLD_FRAMES // 2
    padded = np.pad(values, reach, mode="reflect" if len(values) > reach else "edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, HOLD_FRAMES)
    return np.asarray(np.median(windows, axis=1))
