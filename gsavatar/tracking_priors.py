"""What the fit believes beforehand: which points sit on bone, how far and how fast faces move."""

from __future__ import annotations

from dataclasses import dataclass

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

SKULL_SKIN_SHAPES = ("jaw", "mouthSmile", "noseSneer")
"""Beginnings of the names of shapes that move skin on nose and cheekbones and that are known well
enough to reckon with. (What brows and lids do to the skin around them is told less surely than
skin tells poses: with them poses got worse.)"""

BROW_MOTIONS = (("browInnerUp",), ("browDown",), ("browOuterUp",))
JAW_MOTIONS = (("jawOpen",),)
"""Beginnings of the names of shapes that move much of the skin a pose hangs on, by what they do.
Landmarks say too little of the brows, so that heads nodded by up to a third of a degree with them,
and not all of the jaw: what they do besides is found with the poses."""
SOUGHT_SD = 0.2
"""How far such a motion goes, as in ``SPREADS``."""


def shares(motions: tuple[tuple[str, ...], ...], names: tuple[str, ...]) -> Floats:
    """Shares [G, K] of the named shapes in each of some motions that they can express."""
    groups = [[float(name.startswith(starts)) for name in names] for starts in motions]
    rows = [row for row in groups if any(row)]
    return np.array(rows).reshape(len(rows), len(names))


LOW, HIGH = -0.2, 1.3
"""Bounds of a coefficient: the rig's full shape is 1, some faces go beyond."""

SPREADS = (
    ("eyeLook", 0.15, 0.4, 0.15), ("eyeBlink", 0.06, 0.24, 0.4), ("eyeWide", 0.1, 0.12, 0.1),
    ("eye", 0.06, 0.16, 0.2), ("brow", 0.2, 0.16, 0.08), ("cheek", 0.1, 0.08, 0.05),
    ("noseSneer", 0.12, 0.1, 0.08), ("jawOpen", 0.12, 0.24, 0.3), ("jaw", 0.1, 0.08, 0.1),
    ("mouthSmile", 0.06, 0.16, 0.2), ("mouthLeft", 0.06, 0.16, 0.2),
    ("mouthRight", 0.06, 0.16, 0.2), ("mouthPucker", 0.06, 0.16, 0.2),
    ("mouth", 0.15, 0.16, 0.2), ("", 0.25, 0.2, 0.2),
)  # fmt: skip
"""By prefix, the first that fits: spread about what the detector's scores say, spread about zero
where it gives none, and spread of the change in 40 ms."""
REST_PERCENTILE = 15.0
USUAL_STEP_S = 0.04


def spread_of(name: str, *, scored: bool) -> tuple[float, float]:
    """Spread of a coefficient about its expectation, and of its change in 40 ms."""
    for prefix, told, blind, change in SPREADS:
        if name.startswith(prefix):
            return (told if scored else blind), change
    raise AssertionError("the last prefix fits every name")


@dataclass(frozen=True)
class UsualScores:
    """What a detector's scores of one person are like over a whole clip."""

    rest: Floats  # [52], of the face at rest, which are rarely zero
    blinks: dict[str, Floats]  # of each eye's eyeBlink, [N] at the height of every blink


def usual_scores(scores: Floats | None) -> UsualScores | None:
    """The same of successive frames' scores [T, 52]; None without any."""
    if scores is None:
        return None
    blinks = {
        name: blink_peaks(scores[:, k]) for k, name in enumerate(ARKIT_NAMES) if "eyeBlink" in name
    }
    return UsualScores(np.percentile(scores, REST_PERCENTILE, axis=0), blinks)


FULL_SCORES = (("jawOpen", 0.82), ("", 1.0))
"""By prefix: the score of a shape at its fullest. Measured on rendered faces."""
DEAD_ZONES, DEAD_SCORE = (("jawOpen", 0.05), ("mouthSmile", 0.2), ("", 0.0)), 0.03
"""By prefix: how far a shape goes before its score leaves zero, and the score that shows it did."""
FULL_BLINK, BLINK_RISE, BLINK_FRAMES = 0.55, 0.15, 6
"""Usual score of shut lids; rise and half width in frames of a peak that is a blink."""


def blink_peaks(scores: Floats) -> Floats:
    """Scores [N] of an eye's lids at the height of each blink among scores [T]."""
    peaks = []
    for t in range(1, len(scores) - 1):
        before, after = scores[max(t - BLINK_FRAMES, 0) : t], scores[t + 1 : t + 1 + BLINK_FRAMES]
        highest = scores[t] > before.max() and scores[t] >= after.max()
        if highest and scores[t] - max(before.min(), after.min()) > BLINK_RISE:
            peaks.append(scores[t])
    return np.array(peaks)


def full_score(name: str, peaks: Floats) -> float:
    """The score of a shape at its fullest; ``peaks`` [N] are those of the blinks of an eye.

    Whoever blinks shuts the lids, whatever score a detector gives this person for it.
    """
    if not name.startswith("eyeBlink"):
        return next(full for prefix, full in FULL_SCORES if name.startswith(prefix))
    if len(peaks) == 0:
        return FULL_BLINK
    return float((FULL_BLINK + len(peaks) * np.median(peaks)) / (1 + len(peaks)))


def amounts(name: str, scores: Floats, rest: float, peaks: Floats) -> Floats:
    """How far a shape goes [T], 0-1, by the scores [T] a detector gives it and that of rest."""
    zero = min(rest, 0.5)
    dead = next(size for prefix, size in DEAD_ZONES if name.startswith(prefix))
    left = np.exp(-zero / DEAD_SCORE) - np.exp(-scores / DEAD_SCORE)
    return np.clip((scores - zero) / (full_score(name, peaks) - zero) + dead * left, 0.0, 1.0)


def expression_prior(
    names: tuple[str, ...], scores: Floats | None, usual: UsualScores | None, time_s: Floats
) -> ExpressionPrior:
    """Expected coefficients [T, K] from the detector's scores, and how far to trust them."""
    mean = np.zeros((len(time_s), len(names)))
    scored = scores is not None and usual is not None
    spread, change = np.array([spread_of(n, scored=scored) for n in names]).T
    if scores is not None and usual is not None:
        for k, name in enumerate(names):
            if name in ARKIT_NAMES:
                column = ARKIT_NAMES.index(name)
                peaks = usual.blinks.get(name, np.zeros(0))
                mean[:, k] = amounts(name, scores[:, column], float(usual.rest[column]), peaks)
        _look_on(mean, names)
    step = float(np.median(np.diff(time_s))) if len(time_s) > 1 else USUAL_STEP_S
    change = change * np.sqrt(max(step, 1e-3) / USUAL_STEP_S)
    return ExpressionPrior(mean, 1.0 / spread**2, 1.0 / change**2, LOW, HIGH, scored)


def _look_on(mean: Floats, names: tuple[str, ...]) -> None:
    """Takes the downward look that a detector sees in every blink out of the means, in place."""
    for side in ("Left", "Right"):
        blink, look = f"eyeBlink{side}", f"eyeLookDown{side}"
        if blink in names and look in names:
            mean[:, names.index(look)] *= 1.0 - mean[:, names.index(blink)]
