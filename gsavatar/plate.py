"""The background plate: what stands behind the person, fixed to the screen."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from gsavatar.ahead import together
from gsavatar.frames import UInt8
from gsavatar.types import PROTOCOL_SIZE, Region

MARGIN_PX = 9
"""Background pixels this close to the person are not trusted: mattes are soft there."""
RARE_SHARE, ALIKE = 0.5, 24.0
"""Background in fewer frames than this share, and within so many levels of what the pixel shows as
part of the person: that is the person, labelled wrongly now and then."""
PATCH_ROWS = 32
FILL_SIZE = 128
FADE_PX = 6.0


def background_plate(frames: Iterable[tuple[UInt8, UInt8]]) -> tuple[UInt8, float]:
    """Median background [512, 512, 3] of (picture, labels) pairs, and the share never seen.

    Pixels that the person always covers are filled from their surroundings: nothing is known there.
    """
    import cv2

    pictures, seen, covered = [], [], []
    kernel = np.ones((2 * MARGIN_PX + 1, 2 * MARGIN_PX + 1), np.uint8)
    for picture, labels in frames:
        person = (labels != int(Region.BACKGROUND)).astype(np.uint8)
        pictures.append(picture)
        seen.append(cv2.dilate(person, kernel) == 0)
        covered.append(person > 0)
    plate = np.zeros((PROTOCOL_SIZE, PROTOCOL_SIZE, 3), np.uint8)
    known: np.ndarray = np.asarray(np.stack(seen).any(0))

    def strip(top: int) -> None:
        rows = slice(top, top + PATCH_ROWS)
        values = np.stack([p[rows] for p in pictures])
        behind, person = (np.stack([m[rows] for m in masks]) for masks in (seen, covered))
        shown, worn = _median(values, behind), _median(values, person)
        rare = behind.mean(0) < RARE_SHARE * (behind | person).mean(0)
        known[rows] &= ~(rare & person.any(0) & (np.abs(shown - worn).max(-1) < ALIKE))
        plate[rows] = shown.round().astype(np.uint8)

    together(strip, range(0, PROTOCOL_SIZE, PATCH_ROWS))  # some rows at a time: bounded memory
    return _filled(plate, known), float(1.0 - known.mean())


def _median(values: UInt8, counts: np.ndarray) -> np.ndarray:
    """Median [H, W, 3] of the values [F, H, W, 3] that count [F, H, W]; 0 where none does."""
    # What does not count is sorted to the end; bytes are sorted many times faster than floats that
    # may be missing.
    ordered = np.sort(np.where(counts[..., None], values, np.uint8(255)), axis=0)
    number = counts.sum(0)[None, ..., None]
    low, high = (
        np.take_along_axis(ordered, np.broadcast_to(at, ordered[:1].shape), axis=0)[0]
        for at in (np.maximum(number - 1, 0) // 2, np.minimum(number // 2, len(ordered) - 1))
    )
    return np.where(number[0] > 0, (low.astype(np.float32) + high) / 2, np.float32(0.0))


def _filled(plate: UInt8, known: np.ndarray) -> UInt8:
    """The plate with its holes painted from their rim, smoothly."""
    import cv2

    if known.all():
        return plate
    if not known.any():
        return np.full_like(plate, 128)
    size = (FILL_SIZE, FILL_SIZE)
    weight = cv2.resize(known.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    small = cv2.resize(
        plate.astype(np.float32) * known[..., None], size, interpolation=cv2.INTER_AREA
    )
    small /= np.maximum(weight, 1e-6)[..., None]
    hole = (weight < 0.5).astype(np.uint8)
    painted = cv2.inpaint(np.clip(small, 0, 255).astype(np.uint8), hole, 5, cv2.INPAINT_TELEA)
    painted = cv2.GaussianBlur(painted.astype(np.float32), (0, 0), 2.0)
    full: Any = cv2.resize(painted, (PROTOCOL_SIZE, PROTOCOL_SIZE), interpolation=cv2.INTER_CUBIC)
    # At its rim the paint is what is known there; the difference dies away inwards.
    away, nearest = cv2.distanceTransformWithLabels(
        1 - known.astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    off = np.zeros((nearest.max() + 1, 3), np.float32)
    off[nearest[known]] = plate[known] - full[known]
    full += off[nearest] * np.exp(-away / FADE_PX)[..., None]
    return np.where(known[..., None], plate, full.round().clip(0, 255).astype(np.uint8))
