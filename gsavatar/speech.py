"""From sound to lips: features, the offset between sound and picture, and the motion model.

The parts live in ``speech_features`` (sound to numbers), ``speech_regression`` and
``speech_motion`` (numbers to coefficients); this module adds what compares the two with
a clip, and is what others import.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gsavatar.speech_features import (
    FeatureStream,
    SpeechFeatures,
    choose_encoder,
    extract,
)
from gsavatar.speech_motion import SpeechMotion, fit_speech_motion
from gsavatar.speech_regression import (
    Array,
    cross_validated,
    held_out,
    kernel_design,
    token_inputs,
)

__all__ = [
    "FeatureStream",
    "SpeechFeatures",
    "SpeechMotion",
    "choose_encoder",
    "cv_open_corr",
    "cv_opening",
    "estimate_av_offset",
    "extract",
    "fit_speech_motion",
]

OFFSET_REACH_S = 0.8
"""Broadcasts are up to a third of a second late, and re-cut ones by as much again."""
OFFSET_STEP_S = 0.04
OFFSET_TOKENS = 5
OFFSET_TAPER = 1.0
"""Context of the probe: enough to be steady; tapered, so that a shift does not hide in it."""
OFFSET_COMPONENTS = 32
OFFSET_PENALTIES = (0.1, 0.3, 1.0, 3.0)
LIP_LEAD_S = 0.015
"""In footage known to be in sync the probe finds the lips this much ahead of the sound."""
RIVAL_DISTANCE_S = 0.16
SURE_MARGIN = 0.2
MIN_CORRELATION = 0.2


def pearson(a: Array, b: Array) -> float:
    """Correlation of two series, 0 where one of them is constant."""
    x, y = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale > 1e-12 else 0.0


def estimate_av_offset(features: SpeechFeatures, time_s: Any, opening: Any) -> tuple[float, float]:
    """How late the sound is, in ms (positive = sound late), and how sure that is, 0-1.

    The answer is the shift at which a ridge regression on the features explains the mouth opening
    [T] of held-out frames best. Sharper with log-mel than with Whisper features, whose tokens have
    heard their neighbours. (0.0, 0.0) where there is too little to compare.
    """
    time, gap = np.asarray(time_s, np.float64), np.asarray(opening, np.float64)
    usable = np.isfinite(gap)
    time, gap = time[usable], gap[usable]
    if len(time) < 40 or len(features.values) < 40 or float(gap.std()) < 1e-6:
        return 0.0, 0.0
    probe = token_inputs(features, time, OFFSET_COMPONENTS, OFFSET_TOKENS, OFFSET_TAPER)
    weight = np.ones(len(gap))

    def explained(step: int) -> float:
        inputs = probe.at_times(features, time + step * OFFSET_STEP_S)
        guesses = held_out(inputs, gap[:, None], weight, time, OFFSET_PENALTIES)
        return max(pearson(guess[:, 0], gap) for guess in guesses)

    # The peak is wider than two steps, so every second one finds it.
    reach = 2 * round(OFFSET_REACH_S / OFFSET_STEP_S / 2)
    scores = {step: explained(step) for step in range(-reach, reach + 1, 2)}
    coarse = max(scores, key=lambda step: scores[step])
    if scores[coarse] < MIN_CORRELATION or abs(coarse) == reach:
        return 0.0, 0.0
    scores |= {step: explained(step) for step in (coarse - 1, coarse + 1)}
    top = max(scores, key=lambda step: scores[step])
    away = round(RIVAL_DISTANCE_S / OFFSET_STEP_S)
    margin = scores[top] - max(s for step, s in scores.items() if abs(step - top) >= away)
    before, at, after = (scores[step] for step in (top - 1, top, top + 1))
    curvature = min(before - 2.0 * at + after, -1e-9)
    peak_s = OFFSET_STEP_S * (top + 0.5 * (before - after) / curvature)
    return 1000.0 * float(peak_s - LIP_LEAD_S), float(np.clip(margin / SURE_MARGIN, 0.0, 1.0))


def cv_opening(features: SpeechFeatures, time_s: Any, opening: Any) -> float:
    """Correlation of the mouth opening [T] with its prediction over five chronological folds."""
    time, gap = np.asarray(time_s, np.float64), np.asarray(opening, np.float64)
    usable = np.isfinite(gap)
    time, gap = time[usable], gap[usable]
    inputs = kernel_design(features, time).features
    guess = cross_validated(inputs, gap[:, None], np.ones(len(gap)), time)[1]
    return pearson(guess[:, 0], gap)


cv_open_corr = cv_opening
