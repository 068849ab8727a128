"""Which kinds of speech sounds a clip shows, told from lips and sound alone, so in any language.

Nothing here recognises words or phones: a kind is what lips and sound have in common for a group
of phones. An avatar can only show mouth shapes that its footage has shown.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gsavatar.clip import Clip
from gsavatar.landmarks import mouth_opening, mouth_width
from gsavatar.metrics_mouth import CLOSED
from gsavatar.speech_motion import VOICE_ON

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]

SAMPLE_RATE = 16_000
WINDOW_S = 0.04
WIDE_OPEN = 0.06
"""Gap of the lips over the face's height: an a, or a laugh."""
ROUNDED, SPREAD = 0.90, 1.08
"""Width of the mouth over that of the same mouth closed."""
SPEECH_REACH_S = 0.12
"""A breath or hiss this close to a voice belongs to the speech."""
HISS_HZ, HUM_HZ = 3500.0, 1500.0
HISS_SHARE = 1.0
"""Power above ``HISS_HZ`` over that below ``HUM_HZ`` from which a sound hisses."""
QUIET_DB = -50.0
"""Frames this far below the loudest are no sound."""
ENOUGH = 10
"""Times from which a kind of sound is taught well."""


@dataclass(frozen=True)
class SoundKind:
    """How often a group of phones was seen."""

    name: str
    phones: str
    times: int
    seconds: float


def sound_kinds(clip: Clip) -> list[SoundKind]:
    """Every kind of speech sound with its occurrences; without sound by the lips alone."""
    points = clip.landmarks.points
    opening = mouth_opening(points).double().numpy()
    width = mouth_width(points).double().numpy()
    closed = opening < CLOSED
    usual = float(np.median(width[closed])) if closed.sum() >= 5 else float(np.median(width))
    time_s = clip.time_s.double().numpy()
    speech, hiss = np.ones(len(opening), bool), None
    if clip.audio is not None and clip.features is not None:
        voice = clip.features.voice.double().numpy()
        at = np.arange(len(voice)) / clip.features.rate
        reach = max(1, round(SPEECH_REACH_S * clip.features.rate))
        near = np.convolve(voice >= VOICE_ON, np.ones(2 * reach + 1), "same") > 0
        speech = np.interp(time_s, at, near.astype(float)) > 0.5
        hiss = hissing(clip.audio, time_s) & speech
    masks = [
        ("lips closed", "m, b, p", speech & closed),
        ("wide open", "a", speech & (opening > WIDE_OPEN)),
        ("rounded", "o, u, w", speech & ~closed & (width < ROUNDED * usual)),
        ("spread", "e, i", speech & ~closed & (width > SPREAD * usual)),
    ]
    if hiss is not None:
        masks += [("hissing", "s, sh, f", hiss), ("silence, lips closed", "", ~speech & closed)]
    step = float(np.median(np.diff(time_s))) if len(time_s) > 1 else 0.0
    return [SoundKind(n, p, runs(mask), float(mask.sum()) * step) for n, p, mask in masks]


def runs(mask: Bools) -> int:
    """How many times a condition begins."""
    return int((mask & ~np.concatenate(([False], mask[:-1]))).sum())


def hissing(sound: NDArray[np.float32], time_s: Array) -> Bools:
    """Whether the sound around each instant [T] hisses: more power high than low, and not quiet."""
    half = round(WINDOW_S * SAMPLE_RATE / 2)
    window = np.hanning(2 * half)
    hz = np.fft.rfftfreq(2 * half, 1.0 / SAMPLE_RATE)
    bands = np.column_stack((hz >= HISS_HZ, (hz > 80.0) & (hz <= HUM_HZ), np.ones(len(hz))))
    power = np.zeros((len(time_s), 3))
    for row, instant in enumerate(time_s):
        middle = round(float(instant) * SAMPLE_RATE)
        part = np.asarray(sound[max(0, middle - half) : max(0, middle + half)], np.float64)
        if len(part) == 2 * half:
            power[row] = np.abs(np.fft.rfft(part * window)) ** 2 @ bands
    high, low, loud = power.T
    return np.asarray((high > HISS_SHARE * low) & (loud > loud.max() * 10 ** (QUIET_DB / 10)))
