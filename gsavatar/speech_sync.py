"""How late the sound of a clip is, by what the lips do.

Two witnesses. The clip's own: the shift at which a regression on the features explains the opening
of held-out frames best (``speech.estimate_av_offset``); it has to learn the person first and is
believed from half a minute on. And what every clip may know beforehand: the readings of jaw, lips
and rounding of ``speech_sounds``, compared with the opening and the width of the mouth; six to ten
seconds do.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from gsavatar import assets, speech
from gsavatar.audio import SAMPLE_RATE
from gsavatar.errors import InputError
from gsavatar.landmarks import mouth_opening, mouth_width
from gsavatar.speech_features import SpeechFeatures
from gsavatar.speech_regression import COMPONENTS, CONTEXT_TOKENS, TAPER_TOKENS, token_inputs
from gsavatar.speech_sounds import NAMES, sound_axes

Array = NDArray[np.float64]

MIN_OFFSET_CONFIDENCE = 0.5
MIN_OFFSET_MS = 40.0
"""Less than a frame is neither visible nor surely measured."""
LEAST_S = 4.0
LEARNED_S = 30.0
"""From so much of a face on the clip's own witness is believed alone. Of 10 s it found an offset
in three of ten soundtracks of somebody else."""
UNBELIEVED = 0.4
"""Highest confidence of that witness where less of the face was seen."""
ENOUGH_S = 60.0
"""So much of a long clip is compared with the known readings."""
WIDTHS = (0.2, 2.0)
"""Beyond these a profile's eyes, one behind the other, make the width meaningless."""

WIDER = {"jawOpen": 1.0, "mouthPress": -1.0, "mouthPucker": -0.7}
BROADER = {"mouthSmile": 1.0, "mouthPucker": -1.0}
"""Readings that say how open and how broad the mouth is, and their weights."""
BREADTH_WEIGHT = 0.5
SMOOTHING = (0.0625, 0.25, 0.375, 0.25, 0.0625)
"""Of readings over neighbouring tokens, 20 ms apart."""
SLOW_S = 1.0
"""What changes more slowly than this is posture and expression, not speech."""
STEP_S, FAR_S = 0.02, 3.0
"""Shifts are tried in such steps, up to where none is believed, to see what chance brings."""
RIVAL_S = 0.3
SURE_SCORE, SURE_MARGIN = 0.55, 1.8
"""Least agreement of a sure offset, and least lead over the best rival in deviations of what chance
brings."""


@dataclass(frozen=True)
class MouthPath:
    """What a mouth does; NaN in frames without a face."""

    time_s: Array  # [T]
    opening: Array  # [T], over the face's height
    width: Array  # [T], over that of the eyes

    @staticmethod
    def of(points: torch.Tensor, time_s: Array) -> MouthPath:
        """Of landmarks [T, 478, 2 or 3]."""
        p = points.double()
        return MouthPath(time_s, mouth_opening(p).numpy(), mouth_width(p).numpy())

    @property
    def seen_s(self) -> float:
        """How long it was seen, all frames together."""
        step_s = float(np.median(np.diff(self.time_s))) if len(self.time_s) > 1 else 0.0
        return len(self.time_s) * step_s

    def at(self, rows: NDArray[np.bool_], clock_s: float = 0.0) -> MouthPath:
        """Some frames of it, on a clock that starts at ``clock_s``."""
        return MouthPath(self.time_s[rows] - clock_s, self.opening[rows], self.width[rows])


@dataclass(frozen=True)
class Offset:
    """How late a sound is, and how sure that is, 0-1."""

    late_ms: float
    confidence: float

    @property
    def sure(self) -> bool:
        """Whether it may be believed."""
        return self.confidence >= MIN_OFFSET_CONFIDENCE

    @property
    def counts(self) -> bool:
        """Whether it is sure and large enough to be corrected."""
        return self.sure and abs(self.late_ms) >= MIN_OFFSET_MS


def sound_offset(samples: NDArray[np.float32], mouth: MouthPath) -> Offset:
    """The offset of a 16 kHz mono sound from the lips, on the sound's clock."""
    return heard_offset(samples, mouth)[0]


def heard_offset(
    samples: NDArray[np.float32], mouth: MouthPath
) -> tuple[Offset, SpeechFeatures | None]:
    """As ``sound_offset``, and ``speech.extract`` of the sound if all of it was needed for that."""
    with suppress(InputError):  # fetched first: the voice detector comes with it
        assets.resolve("speech_encoder")
    long = mouth.seen_s >= LEARNED_S
    own = _learned_offset(samples, mouth) if long else None
    if own is not None and own.sure:
        return own, None
    start_s = fullest(mouth.time_s)
    part = samples[round(start_s * SAMPLE_RATE) : round((start_s + ENOUGH_S) * SAMPLE_RATE)]
    inside = (mouth.time_s >= start_s) & (mouth.time_s < start_s + ENOUGH_S)
    features = speech.extract(part)
    known = offset_by_readings(features, mouth.at(inside, start_s))
    whole = features if len(part) == len(samples) else None
    if known.sure:
        return known, whole
    own = own or _learned_offset(samples, mouth)
    own = Offset(own.late_ms, min(own.confidence, UNBELIEVED))
    return max(own, known, key=lambda offset: offset.confidence), whole


def _learned_offset(samples: NDArray[np.float32], mouth: MouthPath) -> Offset:
    """What the clip itself says."""
    quick = speech.extract(samples, encoder="log_mel")
    return Offset(*speech.estimate_av_offset(quick, mouth.time_s, mouth.opening))


def fullest(time_s: Array) -> float:
    """When the ``ENOUGH_S`` begin that hold most of the frames."""
    last_s = float(time_s[-1]) if len(time_s) else 0.0
    starts = np.arange(0.0, max(last_s - ENOUGH_S / 2, 0.0) + 1e-9, ENOUGH_S / 2)
    counts = [((time_s >= s) & (time_s < s + ENOUGH_S)).sum() for s in starts]
    return float(starts[int(np.argmax(counts))])


def offset_by_readings(features: SpeechFeatures, mouth: MouthPath) -> Offset:
    """The offset at which known readings of the sound agree best with opening and width.

    (0, 0) where there is too little to compare.
    """
    usable = np.isfinite(mouth.opening) & np.isfinite(mouth.width)
    usable &= (mouth.width > WIDTHS[0]) & (mouth.width < WIDTHS[1])
    usable &= (mouth.time_s >= 0.0) & (mouth.time_s <= features.duration_s)
    mouth = mouth.at(usable)
    nothing = Offset(0.0, 0.0)
    if len(mouth.time_s) < 40 or np.ptp(mouth.time_s) < LEAST_S:
        return nothing
    steps = np.arange(-round(FAR_S / STEP_S), round(FAR_S / STEP_S) + 1)
    scores = _agreement(features, mouth, steps)
    known = np.isfinite(scores)
    near = known & (np.abs(steps) <= round(speech.OFFSET_REACH_S / STEP_S))
    if not near.any():
        return nothing
    top = int(np.flatnonzero(near)[scores[near].argmax()])
    rivals = np.abs(steps - steps[top]) > round(RIVAL_S / STEP_S)
    spread = float(scores[known & rivals].std()) if (known & rivals).sum() > 10 else 0.0
    if spread < 1e-6 or not near[top - 1 : top + 2].all() or not (near & rivals).any():
        return nothing  # at an end of the reach, or nothing to compare it with
    margin = (scores[top] - scores[near & rivals].max()) / spread
    before, at, after = scores[top - 1 : top + 2]
    bend = min(before - 2.0 * at + after, -1e-9)
    late_s = STEP_S * (steps[top] + 0.5 * (before - after) / bend) - speech.LIP_LEAD_S
    sure = MIN_OFFSET_CONFIDENCE * min(at / SURE_SCORE, margin / SURE_MARGIN)
    return Offset(1000.0 * float(late_s), float(np.clip(sure, 0.0, 1.0)))


def _agreement(features: SpeechFeatures, mouth: MouthPath, steps: NDArray[np.int64]) -> Array:
    """Correlation of opening and breadth with their readings, shifted by numbers of steps; NaN
    where the sound covers less than half of the frames."""
    inputs = token_inputs(features, mouth.time_s, COMPONENTS, CONTEXT_TOKENS, TAPER_TOKENS)
    values = features.values.double().numpy()
    means = inputs.means.double().numpy()
    values = values - means[np.arange(len(values)) % len(means)]
    heard = values @ sound_axes(features.encoder).double().numpy()
    pairs = []
    for wanted, seen, weight in (
        (WIDER, mouth.opening, 1.0),
        (BROADER, mouth.width, BREADTH_WEIGHT),
    ):
        reading = heard @ np.array([wanted.get(name, 0.0) for name in NAMES])
        pairs.append((np.convolve(reading, SMOOTHING, "same"), _quick(seen, mouth.time_s), weight))
    tokens_s = np.arange(len(heard)) / features.rate
    scores = np.full(len(steps), np.nan)
    for i, step in enumerate(steps):
        at_s = mouth.time_s + STEP_S * step
        inside = (at_s >= tokens_s[0]) & (at_s <= tokens_s[-1])
        if inside.mean() < 0.5:
            continue
        scores[i] = sum(
            weight * speech.pearson(
                _quick(np.interp(at_s, tokens_s, reading), mouth.time_s)[inside], seen[inside]
            )
            for reading, seen, weight in pairs
        )  # fmt: skip
    return scores


def _quick(values: Array, time_s: Array) -> Array:
    """Values [T] less their running mean over ``SLOW_S``."""
    width = round(SLOW_S / float(np.median(np.diff(time_s)))) | 1
    window = np.ones(min(width, len(values)))
    count = np.convolve(np.ones(len(values)), window, "same")
    return values - np.convolve(values, window, "same") / count
