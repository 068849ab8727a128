"""How surely somebody speaks, 50 times a second: Silero's detector, or loudness without it."""

from __future__ import annotations

import functools
import logging
from collections import deque
from typing import Protocol

import numpy as np

from gsavatar import assets
from gsavatar.speech_encoders import (
    SAMPLE_RATE,
    TOKEN_SAMPLES,
    WINDOW_TOKENS,
    Float,
    cut,
    onnx_session,
)

log = logging.getLogger("gsavatar")

CHUNK = 512
CONTEXT = 64
RESET_CHUNKS = 62
"""The detector's memory is cleared after about 2 s, once it has been sure of a pause."""
QUIET_CHUNKS = 5
QUIET = 0.1
FLOOR_DB = -60.0
FULL_DB, NOTHING_DB = 25.0, 35.0
"""A token this far below the loudest of the last 8 s counts as speech, or not at all."""


class Voice(Protocol):
    """Chances of speech at tokens 0, 1, ... of sound that arrives in pieces."""

    def ready(self, samples: int, *, ended: bool) -> int:
        """Tokens that are certain once this much sound is there."""
        ...

    def step(self, sound: Float, start: int, token: int, *, ended: bool) -> float:
        """The chance at the next token; ``sound`` begins at sample ``start``."""
        ...


def open_voice() -> Voice:
    """The detector, or the loudness gate where its file is missing, which is said."""
    if assets.available("silero_vad"):
        return Silero()
    _warn_of_loudness()
    return Loudness()


@functools.cache
def _warn_of_loudness() -> None:
    """Says once that speech is told from silence by the second-best means, and the cure."""
    log.warning(
        "silero_vad.onnx is not here: speech is told from silence by its loudness alone (gsavatar "
        "assets --fetch brings it)"
    )


def token_count(samples: int) -> int:
    """Tokens that cover a number of samples."""
    return -(-samples // TOKEN_SAMPLES)


class Silero:
    """Silero's recurrent detector over chunks of 32 ms, linear between their centres."""

    def __init__(self) -> None:
        self._session = onnx_session(assets.resolve("silero_vad").read_bytes())
        self._chances: deque[float] = deque(maxlen=4)
        self._done = 0
        self._forget()

    def _forget(self) -> None:
        self._state = np.zeros((2, 1, 128), np.float32)
        self._since_reset = self._quiet = 0

    def ready(self, samples: int, *, ended: bool) -> int:
        """Tokens whose neighbouring chunks are complete."""
        if ended:
            return token_count(samples)
        last = samples // CHUNK - 1  # a token needs the chunk whose centre follows it
        return max(0, -int(-(last + 0.5) * CHUNK // TOKEN_SAMPLES)) if last >= 1 else 0

    def step(self, sound: Float, start: int, token: int, *, ended: bool) -> float:
        """The chance at the next token."""
        place = token * TOKEN_SAMPLES / CHUNK - 0.5
        left = max(0, int(np.floor(place)))
        last = max(0, -(-(start + len(sound)) // CHUNK) - 1) if ended else left + 1
        right = min(left + 1, last)
        while self._done <= right:
            at = self._done * CHUNK - CONTEXT - start
            self._chances.append(self._chance(cut(sound, at, CHUNK + CONTEXT)))
            self._done += 1
        before, after = (self._chances[i - self._done] for i in (min(left, right), right))
        return before + float(np.clip(place - left, 0.0, 1.0)) * (after - before)

    def _chance(self, chunk: Float) -> float:
        """Chance of speech in the last 512 of 576 samples."""
        inputs = {"input": chunk[None], "state": self._state, "sr": np.array(SAMPLE_RATE, np.int64)}
        chance, self._state = self._session.run(None, inputs)
        value = float(chance[0, 0])
        self._since_reset += 1
        self._quiet = self._quiet + 1 if value < QUIET else 0
        if self._since_reset >= RESET_CHUNKS and self._quiet >= QUIET_CHUNKS:
            self._forget()
        return value


class Loudness:
    """1 within 25 dB of the loudest token of the last 8 s, 0 below 35 dB or under -60 dBFS."""

    def __init__(self) -> None:
        self._levels_db: deque[float] = deque(maxlen=WINDOW_TOKENS)

    def ready(self, samples: int, *, ended: bool) -> int:
        """Tokens whose 20 ms are complete."""
        return token_count(samples) if ended else samples // TOKEN_SAMPLES

    def step(self, sound: Float, start: int, token: int, *, ended: bool) -> float:
        """The chance at the next token."""
        del ended
        own = cut(sound, token * TOKEN_SAMPLES - start, TOKEN_SAMPLES).astype(np.float64)
        level_db = 10.0 * np.log10(float(own @ own) / TOKEN_SAMPLES + 1e-12)
        self._levels_db.append(level_db)
        above_db = level_db - max(self._levels_db) + NOTHING_DB
        gate = float(np.clip(above_db / (NOTHING_DB - FULL_DB), 0.0, 1.0))
        return gate if level_db > FLOOR_DB else 0.0
