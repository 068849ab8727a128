"""Eyes, lips and the inside of the mouth: the landmarks' contours, moved to where colours change.

A contour is drawn with an accuracy of a quarter of a pixel. Near it, and only there, the colours of
the feature and of its surroundings, learned over the clip, decide which side a pixel is on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gsavatar.landmarks import (
    CHIN,
    FACE_TOP,
    INNER_LIPS,
    LEFT_EYE,
    LEFT_IRIS,
    LOWER_LIP,
    OUTER_LIPS,
    RIGHT_EYE,
    RIGHT_IRIS,
    UPPER_LIP,
)
from gsavatar.segmentation_colors import BINS, ROUNDS, UNKNOWN, blurred_frequencies, color_rows
from gsavatar.segmentation_shape import filled
from gsavatar.types import Region

Float = NDArray[np.float32]
UInt8 = NDArray[np.uint8]

SHUT_PX = 1.0
"""Lips nearer than this hide the inside of the mouth."""
RING = 0.02
"""How far around a feature its surroundings reach, over the face's height."""
CONTOUR_DEVIATION = 0.006
"""Deviation of the landmarks' contours, over the face's height."""
INSET = 0.005
"""Landmarks of the eyes follow the roots of the lashes, so far outside the eyeball."""
PUPIL = 0.7
"""Radius of a wide pupil with the shade around it, over the iris's."""
CERTAINTY = 4.0
"""Most that a pixel's colour may say, in log units."""


@dataclass(frozen=True)
class Feature:
    """A region, the contours that bound it, and those that bound what surrounds it."""

    region: Region
    contours: tuple[tuple[int, ...], ...]
    within: tuple[int, ...] | None = None  # the surroundings end at this contour
    inset: float = 0.0  # how far inside its contours it starts, over the face's height
    irises: tuple[tuple[int, ...], ...] = ()  # centre and rim of what is as dark as its rim


FEATURES = (
    Feature(Region.EYES, (LEFT_EYE, RIGHT_EYE), inset=INSET, irises=(LEFT_IRIS, RIGHT_IRIS)),
    Feature(Region.LIPS, (OUTER_LIPS,)),
    Feature(Region.INNER_MOUTH, (INNER_LIPS,), OUTER_LIPS),
)
"""In the order they are painted."""


@dataclass(frozen=True)
class FeatureColors:
    """Log odds [features, BINS ** 3] that a colour is a feature's, not its surroundings'."""

    odds: Float


@dataclass(frozen=True)
class _Patch:
    """The surroundings of one contour: its place in the picture, and depth inside it."""

    at: tuple[slice, slice]
    inside: Float  # distance to the contour over the face's height, positive inside
    allowed: NDArray[np.bool_]  # what the feature and its surroundings may cover
    telling: NDArray[np.bool_]  # where colour tells the feature from its surroundings


def _patch(points: Float, ids: tuple[int, ...], feature: Feature, size: tuple[int, int]) -> _Patch:
    """The patch of a contour, a little larger than its ring."""
    import cv2

    tall = max(float(np.linalg.norm(points[CHIN, :2] - points[FACE_TOP, :2])), 1.0)
    margin = 1.5 * RING * tall + 2.0
    contour = points[list(ids), :2]
    low = np.clip(np.floor(contour.min(0) - margin).astype(int), 0, (size[1], size[0]))
    high = np.clip(np.ceil(contour.max(0) + margin).astype(int), 0, (size[1], size[0]))
    box = (max(int(high[1] - low[1]), 0), max(int(high[0] - low[0]), 0))
    at = (slice(int(low[1]), int(high[1])), slice(int(low[0]), int(high[0])))
    if 0 in box:
        empty = np.zeros(box, np.float32)
        return _Patch(at, empty, empty > 0, empty > 0)
    share = filled(contour - low, box)
    hard = (share > 0.5).astype(np.uint8)
    depth = cv2.distanceTransform(hard, cv2.DIST_L2, 3) - cv2.distanceTransform(
        1 - hard, cv2.DIST_L2, 3
    )
    depth = depth - np.sign(depth) * 0.5
    edge = (share > 0) & (share < 1)
    depth[edge] = share[edge] - 0.5
    allowed = np.ones(box, bool)
    if feature.within is not None:
        allowed = filled(points[list(feature.within), :2] - low, box) > 0.5
    telling = np.ones(box, bool)
    for iris in feature.irises:  # a pupil is as dark as lashes
        centre, rim = points[iris[0], :2], points[list(iris[1:]), :2]
        radius = PUPIL * float(np.linalg.norm(rim - centre, axis=1).mean())
        x, y = np.arange(low[0], high[0]) + 0.5, np.arange(low[1], high[1]) + 0.5
        telling &= np.hypot(x[None] - centre[0], y[:, None] - centre[1]) > radius
    return _Patch(at, (depth / tall - feature.inset).astype(np.float32), allowed, telling)


def learn_features(samples: Sequence[tuple[UInt8, Float]]) -> FeatureColors:
    """Colours of the features in some pictures with their landmarks [478, 2 or 3]."""
    odds = []
    for feature in FEATURES:
        rows, inside = [], []
        for picture, points in samples:
            if feature.region is Region.INNER_MOUTH and is_shut(points):
                continue
            for ids in feature.contours:
                patch = _patch(points, ids, feature, picture.shape[:2])
                keep = patch.allowed & patch.telling & (patch.inside > -RING)
                rows.append(color_rows(picture[patch.at])[keep])
                inside.append(patch.inside[keep])
        odds.append(_log_odds(rows, inside))
    return FeatureColors(np.stack(odds))


def _log_odds(rows: list[NDArray[np.intp]], inside: list[Float]) -> Float:
    """Log odds of colours [BINS ** 3] by which side of the contours they lie on."""
    if not rows:
        return np.zeros(BINS**3, np.float32)
    bins, depth = np.concatenate(rows), np.concatenate(inside)
    prior = depth / CONTOUR_DEVIATION
    share = _chance(2.0 * prior)
    for _ in range(ROUNDS):
        there, around = (blurred_frequencies(bins, w) for w in (share, 1.0 - share))
        floor = UNKNOWN / BINS**3
        odds = np.log((there + floor) / (around + floor))
        odds = np.clip(odds, -CERTAINTY, CERTAINTY)
        share = _chance(prior + odds[bins])
    return odds.astype(np.float32)


def _chance(log_odds: Float) -> Float:
    """Probabilities of log odds."""
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(log_odds, -30.0, 30.0))), np.float32)


def is_shut(points: Float) -> bool:
    """Whether the lips meet."""
    return float(np.linalg.norm(points[UPPER_LIP, :2] - points[LOWER_LIP, :2])) < SHUT_PX


def paint_features(labels: UInt8, picture: UInt8, points: Float, colors: FeatureColors) -> None:
    """Writes eyes, lips and the inside of the mouth into labels [H, W]."""
    import cv2

    for k, feature in enumerate(FEATURES):
        if feature.region is Region.INNER_MOUTH and is_shut(points):
            continue
        for ids in feature.contours:
            patch = _patch(points, ids, feature, picture.shape[:2])
            if patch.inside.size == 0:
                continue
            said = colors.odds[k][color_rows(picture[patch.at])] * patch.telling
            calm = cv2.blur(said, (3, 3), borderType=cv2.BORDER_REPLICATE)
            score = patch.inside / CONTOUR_DEVIATION + calm
            part = labels[patch.at]
            part[(score > 0) & patch.allowed & (patch.inside > -RING)] = int(feature.region)
