"""Speech features at 50 Hz and their voice activity, of whole recordings and of streams.

Encoder features come in blocks of 0.2 s. A block is read at one fixed place of an 8 s window that
ends 0.1 s after the block, because the same instant read elsewhere in the window differs by half
of its spread. The level is normalised by that window alone, so training, rendering and a stream
see the same numbers: ``extract`` is a stream that is given everything at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from gsavatar import assets, speech_encoders
from gsavatar.ahead import together
from gsavatar.errors import InputError
from gsavatar.speech_encoders import (
    BLOCK_TOKENS,
    FIRST_TOKEN,
    LOG_MEL_REACH,
    MEL_BANDS,
    SAMPLE_RATE,
    TOKEN_SAMPLES,
    WHISPER_CHANNELS,
    WINDOW_SAMPLES,
    Float,
    cut,
)
from gsavatar.voice import open_voice, token_count

logger = logging.getLogger("gsavatar")

TOKEN_RATE = 50.0
LEAD_SAMPLES = FIRST_TOKEN * TOKEN_SAMPLES
TAIL_SAMPLES = WINDOW_SAMPLES - LEAD_SAMPLES
"""Sound a block needs from its start on: itself and 0.1 s."""

WHISPER = "whisper_tiny"
LOG_MEL = "log_mel"
ENCODERS = {WHISPER: WHISPER_CHANNELS, LOG_MEL: MEL_BANDS}
"""Names of the encoders and how many numbers their tokens have."""

Progress = Callable[[int, int], None]


class FeatureSource(Protocol):
    """Tokens by number, 50 a second, from a recording or from a stream."""

    @property
    def encoder(self) -> str:
        """Name of the encoder that made them."""
        ...

    @property
    def rate(self) -> float:
        """Tokens per second."""
        ...

    @property
    def length(self) -> int:
        """Tokens there are (so far)."""
        ...

    def rows(self, first: int, count: int) -> Tensor:
        """Features [count, A] of tokens first, first + 1, ..., silence beyond both ends."""
        ...

    def voice_rows(self, first: int, count: int) -> Tensor:
        """Chances of speech [count], 0 beyond both ends."""
        ...


def instants(source: FeatureSource, encoder: str, time_s: Any) -> Tensor:
    """Instants [N] in seconds as float64, to be asked of features of one encoder.

    Raises ``ValueError`` if the features come from another.
    """
    if source.encoder != encoder:
        raise ValueError(f"this avatar hears {encoder} features, got {source.encoder}")
    return torch.as_tensor(np.asarray(time_s), dtype=torch.float64)


@dataclass(frozen=True)
class SpeechFeatures:
    """What a piece of sound says, 50 times a second; row i stands for the instant i / rate."""

    values: Tensor  # [T, A] float32
    voice: Tensor  # [T] float32, 0-1: how surely somebody speaks
    silence: Tensor  # [A] float32, the features of digital silence, which stand beyond both ends
    rate: float = TOKEN_RATE
    encoder: str = WHISPER

    @property
    def duration_s(self) -> float:
        return len(self.values) / self.rate

    @property
    def length(self) -> int:
        return len(self.values)

    def rows(self, first: int, count: int) -> Tensor:
        """Features [count, A] of tokens first, first + 1, ..., silence beyond both ends."""
        row = torch.arange(first, first + count)
        if self.length == 0:
            return self.silence.repeat(count, 1)
        outside = (row < 0) | (row >= self.length)
        picked = self.values[row.clamp(0, self.length - 1)]
        return torch.where(outside[:, None], self.silence, picked)

    def voice_rows(self, first: int, count: int) -> Tensor:
        """Chances of speech [count], 0 beyond both ends."""
        return _padded(self.voice, first, count)


def _padded(values: Tensor, first: int, count: int) -> Tensor:
    """``values[first : first + count]`` of a series [T], 0 beyond both ends."""
    row = torch.arange(first, first + count)
    inside = (row >= 0) & (row < len(values))
    result = torch.zeros(count)
    result[inside] = values[row[inside]]
    return result


def choose_encoder(encoder: str = "auto") -> str:
    """The encoder's name; ``auto`` is Whisper where its file can be had, log-mel otherwise.

    Raises ``InputError`` for an unknown name, or if Whisper is asked for and cannot be had.
    """
    if encoder == "auto":
        try:
            assets.resolve("speech_encoder")
        except InputError as error:
            logger.warning("speech features fall back to log-mel: %s", error)
            return LOG_MEL
        return WHISPER
    if encoder not in ENCODERS:
        choice = " or ".join(("auto", *ENCODERS))
        raise InputError(f"Speech encoder {encoder!r} is unknown; use {choice}.")
    return encoder


def silence_features(encoder: str) -> Float:
    """The features [A] of digital silence."""
    whisper = encoder == WHISPER
    return speech_encoders.whisper_silence() if whisper else speech_encoders.log_mel_silence()


def last_heard(encoder: str, token: Tensor) -> Tensor:
    """The last token that is known when a token [*B] is: the end of its block.

    A model that reads no further has a look-ahead of at most 0.3 s. Log-mel has no blocks; there
    the model's own context is the limit.
    """
    if encoder == WHISPER:
        return torch.div(token, BLOCK_TOKENS, rounding_mode="floor") * BLOCK_TOKENS + (
            BLOCK_TOKENS - 1
        )
    return token + _FAR


_FAR = 1 << 20


class FeatureStream:
    """Features of sound that arrives in pieces; the same numbers as ``extract`` of the whole.

    ``push`` as the sound comes, ``finish`` at its end, ``forget`` what will not be asked for again.
    """

    def __init__(self, encoder: str = "auto") -> None:
        self._encoder = choose_encoder(encoder)
        self._silence = torch.from_numpy(silence_features(self._encoder))
        self._log_mel = speech_encoders.LogMel()
        self._voice_of = open_voice()
        self._sound = np.zeros(0, np.float32)
        self._sound_at = 0  # sample at which it starts
        self._values: list[Tensor] = []
        self._voice: list[float] = []
        self._values_at = self._voice_at = 0  # token at which the lists start
        self._ended = False
        self._surest_voice = 0.0

    @property
    def encoder(self) -> str:
        """Name of the encoder."""
        return self._encoder

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return TOKEN_RATE

    @property
    def samples(self) -> int:
        """Samples heard so far."""
        return self._sound_at + len(self._sound)

    @property
    def length(self) -> int:
        """Tokens whose features are certain; all of them once the sound has ended."""
        return self._values_at + len(self._values)

    @property
    def voice_length(self) -> int:
        """Tokens whose chance of speech is certain."""
        return self._voice_at + len(self._voice)

    @property
    def surest_voice(self) -> float:
        """The highest chance of speech so far."""
        return self._surest_voice

    @property
    def ended(self) -> bool:
        """Whether no more sound will come."""
        return self._ended

    def push(self, samples: Float) -> None:
        """Takes the next sound, 16 kHz mono."""
        self._sound = np.concatenate((self._sound, np.asarray(samples, np.float32)))
        self._hear()

    def finish(self) -> None:
        """Takes silence for all that follows."""
        self._ended = True
        self._hear()

    def _hear(self) -> None:
        """Works out what has become certain and drops sound that is not needed again."""
        ready = self._voice_of.ready(self.samples, ended=self._ended)
        for token in range(self.voice_length, ready):
            chance = self._voice_of.step(self._sound, self._sound_at, token, ended=self._ended)
            self._voice.append(chance)
            self._surest_voice = max(self._surest_voice, chance)
        ready = self._ready()
        for tokens in self._new(ready):
            self._values.extend(tokens[: ready - self.length])
        needed = min(self.length * TOKEN_SAMPLES - LEAD_SAMPLES, self.samples - WINDOW_SAMPLES)
        if needed > self._sound_at:
            self._sound = self._sound[needed - self._sound_at :].copy()
            self._sound_at = needed

    def _ready(self) -> int:
        if self._ended:
            return token_count(self.samples)
        if self._encoder == WHISPER:
            block_samples = BLOCK_TOKENS * TOKEN_SAMPLES
            blocks = (self.samples - (TAIL_SAMPLES - block_samples)) // block_samples
            return max(0, blocks) * BLOCK_TOKENS
        return max(0, (self.samples - LOG_MEL_REACH) // TOKEN_SAMPLES + 1)

    def _new(self, ready: int) -> list[Tensor]:
        """Features of the tokens up to ``ready``, each [N, A]: Whisper's by blocks, or one of
        log-mel."""
        block = BLOCK_TOKENS if self._encoder == WHISPER else 1
        starts = [token * TOKEN_SAMPLES - self._sound_at
                  for token in range(self.length, ready, block)]  # fmt: skip
        if self._encoder == WHISPER:
            windows = [cut(self._sound, at - LEAD_SAMPLES, WINDOW_SAMPLES) for at in starts]
            return [torch.from_numpy(b) for b in together(speech_encoders.encode_window, windows)]
        around = [cut(self._sound, at - LOG_MEL_REACH, 2 * LOG_MEL_REACH) for at in starts]
        return [torch.from_numpy(self._log_mel.step(sound))[None] for sound in around]

    def rows(self, first: int, count: int) -> Tensor:
        """Features [count, A]; ``IndexError`` for tokens forgotten or not yet certain."""
        self._check(first, count, self._values_at, self.length)
        result = self._silence.repeat(count, 1)
        low, high = max(first, 0), min(first + count, self.length)
        if high > low:
            mine = self._values[low - self._values_at : high - self._values_at]
            result[low - first : high - first] = torch.stack(mine)
        return result

    def voice_rows(self, first: int, count: int) -> Tensor:
        """Chances of speech [count]; ``IndexError`` for tokens forgotten or not yet certain."""
        self._check(first, count, self._voice_at, self.voice_length)
        return _padded(torch.tensor(self._voice), first - self._voice_at, count)

    def _check(self, first: int, count: int, kept: int, length: int) -> None:
        if max(first, 0) < kept or (first + count > length and not self._ended):
            raise IndexError(f"tokens {first} to {first + count}: {kept} to {length} are at hand")

    def forget(self, before: int) -> None:
        """Gives up all tokens before this one."""
        drop = max(0, min(before, self.length) - self._values_at)
        del self._values[:drop]
        self._values_at += drop
        drop = max(0, min(before, self.voice_length) - self._voice_at)
        del self._voice[:drop]
        self._voice_at += drop


def extract(
    samples: Float, encoder: str = "auto", progress: Progress | None = None
) -> SpeechFeatures:
    """Features of a whole 16 kHz mono recording, ceil(S / 320) rows; ``progress`` counts tokens.

    Raises ``InputError`` as ``choose_encoder`` does.
    """
    stream = FeatureStream(encoder)
    total = token_count(len(samples))
    for start in range(0, len(samples), SAMPLE_RATE):
        stream.push(samples[start : start + SAMPLE_RATE])
        if progress is not None:
            progress(stream.length, total)
    stream.finish()
    if progress is not None and total:
        progress(total, total)
    return SpeechFeatures(
        stream.rows(0, total), stream.voice_rows(0, total),
        torch.from_numpy(silence_features(stream.encoder)), TOKEN_RATE, stream.encoder,
    )  # fmt: skip
