"""What the fit believes beforehand: which points sit on bone, how far and how fast faces move."""

from __future__ import annotations

import numpy as np

from gsavatar.morphable import (
    FITTED_POINTS,
    ROW_IRIS_LEFT,
    ROW_IRIS_RIGHT,
    Floats,
)
from gsavatar.tracking_solve import ExpressionPrior
from gsavatar.types import ARKIT_NAMES

NOSE_BRIDGE = (
    168, 6, 197, 195, 5, 122, 351, 196, 419, 3, 248, 193, 417, 174, 399, 188, 412, 245, 465,
)  # fmt: skip
NOSE_TIP = (4, 1, 45, 275, 51, 281)
EYE_CORNERS = (33, 133, 263, 362)
FOREHEAD = (151, 69, 299, 108, 337, 104, 333, 68, 298, 67, 297, 109, 338, 10, 103, 332)
TEMPLES = (127, 356, 162, 389, 139, 368, 34, 264, 143, 372, 234, 454, 227, 447)
CHEEKBONES = (116, 345, 111, 340, 117, 346)
FACE_OVAL = (
    10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377, 152,
    148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109,
)  # fmt: skip
UPPER_LIP = (
    185, 40, 39, 37, 0, 267, 269, 270, 409, 191, 80, 81, 82, 13, 312, 311, 310, 415,
)  # fmt: skip
LOWER_LIP = (
    146, 91, 181, 84, 17, 314, 405, 321, 375, 95, 88, 178, 87, 14, 317, 402, 318, 324,
)  # fmt: skip
CORNERS = (61, 291, 78, 308)
LIPS = UPPER_LIP + LOWER_LIP + CORNERS
INNER_MIDDLE = (13, 14)
EYELIDS = (
    7, 163, 144, 145, 153, 154, 155, 173, 157, 158, 159, 160, 161, 246,
    249, 390, 373, 374, 380, 381, 382, 398, 384, 385, 386, 387, 388, 466,
)  # fmt: skip
BROWS = (
    46, 53, 52, 65, 55, 70, 63, 105, 66, 107, 276, 283, 282, 295, 285, 300, 293, 334, 296, 336,
)  # fmt: skip


def _weights(rest: float, groups: tuple[tuple[tuple[int, ...], float], ...]) -> Floats:
    """A value [L] per landmark row; later groups win."""
    table = np.full(len(FITTED_POINTS), rest)
    for points, value in groups:
        table[list(points)] = value
    return table


RIGID_WEIGHT = _weights(
    0.0,
    ((NOSE_BRIDGE, 1.0), (NOSE_TIP, 0.4), (FOREHEAD, 0.4), (TEMPLES, 0.4), (CHEEKBONES, 0.3),
     (EYE_CORNERS, 1.0)),
)  # fmt: skip
"""How much each landmark says about the skull: skin that neither speech nor brows move."""

EXPRESSION_WEIGHT = _weights(
    0.15,
    ((FACE_OVAL, 0.1), (BROWS, 0.5), (EYELIDS, 1.0), (LIPS, 1.0), (INNER_MIDDLE, 8.0),
     ((ROW_IRIS_RIGHT, ROW_IRIS_LEFT), 2.0)),
)  # fmt: skip
"""How much each landmark says about expression, in 1/px^2. The middle of the inner lips decides
whether a mouth is closed, so it counts most."""

SHAPE_WEIGHT = _weights(0.6, ((FACE_OVAL, 0.25), (LIPS, 1.0), (EYELIDS, 1.0)))
"""How much each landmark says about the person's shape, in 1/px^2."""

LOW, HIGH = -0.2, 1.3
"""Bounds of a coefficient: the rig's full shape is 1, some faces go beyond."""

SPREADS = (
    ("eyeLook", 0.5, 0.15), ("eyeBlink", 0.3, 0.4), ("eyeWide", 0.15, 0.1), ("eye", 0.2, 0.2),
    ("brow", 0.2, 0.08), ("cheek", 0.1, 0.05), ("noseSneer", 0.12, 0.08), ("jawOpen", 0.3, 0.3),
    ("jaw", 0.1, 0.1), ("mouth", 0.2, 0.2), ("", 0.25, 0.2),
)  # fmt: skip
"""By prefix, the first that fits: spread about the expected value, and of the change in 40 ms."""
BLIND_FACTOR = 0.8
"""Without scores the spread is about zero, and ambiguous shapes are held closer to it."""
REST_PERCENTILE = 15.0
USUAL_STEP_S = 0.04


def spread_of(name: str) -> tuple[float, float]:
    """Spread of a coefficient about its expectation, and of its change in 40 ms."""
    return next((own, change) for prefix, own, change in SPREADS if name.startswith(prefix))


def rest_scores(scores: Floats | None) -> Floats | None:
    """The detector's scores [52] of this person's face at rest, which are rarely zero."""
    return None if scores is None else np.percentile(scores, REST_PERCENTILE, axis=0)


def expression_prior(
    names: tuple[str, ...], scores: Floats | None, rest: Floats | None, time_s: Floats
) -> ExpressionPrior:
    """Expected coefficients [T, K] from the detector's scores, and how far to trust them."""
    mean = np.zeros((len(time_s), len(names)))
    spread, change = (np.array(v) for v in zip(*(spread_of(n) for n in names), strict=True))
    if scores is not None and rest is not None:
        for k, name in enumerate(names):
            if name in ARKIT_NAMES:
                column = ARKIT_NAMES.index(name)
                zero = min(float(rest[column]), 0.5)
                mean[:, k] = np.clip((scores[:, column] - zero) / (1.0 - zero), 0.0, 1.0)
    else:
        spread = spread * BLIND_FACTOR
    step = float(np.median(np.diff(time_s))) if len(time_s) > 1 else USUAL_STEP_S
    change = change * np.sqrt(max(step, 1e-3) / USUAL_STEP_S)
    return ExpressionPrior(mean, 1.0 / spread**2, 1.0 / change**2, LOW, HIGH)
