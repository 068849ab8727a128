"""Learns which directions of the speech features are about the mouth, from voices of known phones.

    python benchmarks/speech_sounds.py gsavatar/data/speech_sounds.npz

Four of flite's voices (Debian: apt install flite) read random words at several speeds. A ridge
regression from the features of one token gives the share of each group of phones and each mouth
shape at its instant. Prints the correlations on every voice, learned from the three others.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from numpy.typing import NDArray

from gsavatar.cli_env import prepare_process
from gsavatar.datasets.phones import Phone, mouth_track, speak
from gsavatar.speech_encoders import BLOCK_TOKENS, SAMPLE_RATE
from gsavatar.speech_features import LOG_MEL, TOKEN_RATE, WHISPER, extract
from gsavatar.speech_regression import ridge
from gsavatar.speech_sounds import NAMES

Array = NDArray[np.float64]

VOICES = ("slt", "rms", "awb", "kal16")
GROUPS = (
    "m b p", "f v", "aa ae ao aw ay ah", "eh ey ax er ih", "iy y", "uw w ow oy uh ao",
    "s z sh zh ch jh", "t d n l th dh", "k g ng hh", "r er", "pau",
)  # fmt: skip
SHAPES = ("jawOpen", "mouthPucker", "mouthFunnel", "mouthSmileLeft", "mouthPressLeft",
          "mouthRollLower")  # fmt: skip
SPEEDS = (0.85, 1.0, 1.2)
PAUSE_S, HISS = 0.3, 1e-4
TOKEN_SMOOTHING, SMOOTHING_REACH = 1.5, 6
PENALTY = 0.03
"""Ridge penalty in mean variances of the features."""


@dataclass(frozen=True)
class Reading:
    """One voice reading one sentence."""

    voice: str
    features: Array  # [T, A]
    truth: Array  # [T, 17], as ``NAMES``


def sentence(words: list[str], rng: np.random.Generator) -> str:
    """Eight of the words and a comma."""
    picked = [str(word) for word in rng.choice(words, 8)]
    picked[3] += ","
    return " ".join(picked)


def truth_of(phones: list[Phone], count: int) -> Array:
    """Shares of the groups and mouth shapes at tokens, [count, 17]."""
    time_s = np.arange(count) / TOKEN_RATE
    shares = np.zeros((count, len(GROUPS)))
    for phone in phones:
        span = (time_s >= phone.start_s) & (time_s < phone.end_s)
        for column, group in enumerate(GROUPS):
            if phone.name in group.split():
                shares[span, column] = 1.0
    at = np.arange(-SMOOTHING_REACH, SMOOTHING_REACH + 1) / TOKEN_SMOOTHING
    kernel = np.exp(-0.5 * at**2)
    padded = np.pad(shares, ((SMOOTHING_REACH, SMOOTHING_REACH), (0, 0)), mode="edge")
    blurred = [np.convolve(c, kernel / kernel.sum(), mode="valid") for c in padded.T]
    track_s, curves = mouth_track(phones, count / TOKEN_RATE)
    shapes = [np.interp(time_s, track_s, curves[name]) for name in SHAPES]
    return np.stack((*blurred, *shapes), axis=-1)


def readings(encoder: str, sentences: int) -> list[Reading]:
    """Every voice's sentences, its own for each."""
    words = Path(__file__).with_name("words.txt").read_text().split()
    rng = np.random.default_rng(0)
    found = []
    for i in range(sentences * len(VOICES)):
        voice = VOICES[i % len(VOICES)]
        samples, phones = speak(sentence(words, rng), voice, float(rng.choice(SPEEDS)))
        quiet = np.zeros(round(PAUSE_S * SAMPLE_RATE), np.float32)
        sound = np.concatenate((quiet, samples, quiet))
        sound += HISS * rng.standard_normal(len(sound)).astype(np.float32)
        heard = extract(sound, encoder).values.double().numpy()
        late = [Phone(p.name, p.start_s + PAUSE_S, p.end_s + PAUSE_S) for p in phones]
        found.append(Reading(voice, heard, truth_of(late, len(heard))))
    return found


def centred(found: list[Reading], encoder: str) -> list[Array]:
    """Features of each reading less its voice's mean at their place in the encoder's block."""
    places = BLOCK_TOKENS if encoder == WHISPER else 1
    result = [r.features.copy() for r in found]
    for voice in VOICES:
        mine = [i for i, r in enumerate(found) if r.voice == voice]
        for place in range(places):
            mean = np.concatenate([found[i].features[place::places] for i in mine]).mean(0)
            for i in mine:
                result[i][place::places] -= mean
    return result


def learned(features: list[Array], truth: list[Array]) -> Array:
    """Ridge weights [A, 17] from features to truth."""
    x, y = np.concatenate(features), np.concatenate(truth)
    penalty = PENALTY * float(x.var(0).mean())
    return ridge(x, y, np.ones(len(x)), (penalty,))[0][:-1]


def main(
    out: Annotated[Path, tyro.conf.Positional],
    sentences: Annotated[int, tyro.conf.arg(help="Sentences for each voice.")] = 50,
) -> None:
    """Writes the axes of every encoder to a file of arrays."""
    axes = {}
    for encoder in (WHISPER, LOG_MEL):
        found = readings(encoder, sentences)
        features, truth = centred(found, encoder), [r.truth for r in found]
        print(f"{encoder}: {sum(map(len, truth)) / TOKEN_RATE:.0f} s of speech")
        for voice in VOICES:
            others = [i for i, r in enumerate(found) if r.voice != voice]
            weights = learned([features[i] for i in others], [truth[i] for i in others])
            mine = [i for i, r in enumerate(found) if r.voice == voice]
            guess = np.concatenate([features[i] for i in mine]) @ weights
            real = np.concatenate([truth[i] for i in mine])
            scores = [np.corrcoef(g, r)[0, 1] for g, r in zip(guess.T, real.T, strict=True)]
            shown = ", ".join(f"{n} {s:.2f}" for n, s in zip(NAMES, scores, strict=True))
            print(f"  {voice}, never heard: {shown}")
        weights = learned(features, truth)
        spread = (np.concatenate(features) @ weights).std(0)
        axes[encoder] = (weights / spread).astype(np.float16)
    np.savez(out, **axes)


if __name__ == "__main__":
    prepare_process()
    tyro.cli(main)
