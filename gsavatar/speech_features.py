"""Speech features at 50 Hz, their voice activity, and the windows of them a model reads.

Token i stands for the instant i / 50 s: Whisper's mel frames are centred on multiples of 10 ms and
its strided convolution keeps every second one. Encoder features come in blocks of 0.2 s. A block
is read at one fixed place of an 8 s window that ends 0.1 s after the block, because the same
instant read elsewhere in the window differs by half of its spread. The level is normalised by that
window alone, so training, rendering and a stream see the same numbers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gsavatar import assets
from gsavatar.errors import InputError

logger = logging.getLogger("gsavatar")

SAMPLE_RATE = 16_000
TOKEN_RATE = 50.0
TOKEN_SAMPLES = 320
BLOCK_TOKENS = 10
WINDOW_SAMPLES = 8 * SAMPLE_RATE
FIRST_TOKEN = 385
"""Place of a block's first token in the window: 5 tokens (0.1 s) of look-ahead follow the block."""
LEAD_SAMPLES = FIRST_TOKEN * TOKEN_SAMPLES

WHISPER = "whisper_tiny"
LOG_MEL = "log_mel"
ENCODERS = (WHISPER, LOG_MEL)
ENCODER_OUTPUT = "layer_norm_4"
MEL_BANDS = 80
MEL_HOP = 160
FFT_SIZE = 400
MEL_DYNAMICS = 8.0
"""Whisper keeps this many decades below the loudest band of a window."""

VAD_CHUNK = 512
VAD_CONTEXT = 64
VAD_RESET_CHUNKS = 62
"""The detector's memory is cleared after about 2 s, once it has been sure of a pause."""
VAD_QUIET_CHUNKS = 5
VAD_QUIET = 0.1

Float = NDArray[np.float32]
Progress = Callable[[int, int], None]


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


def token_count(samples: int) -> int:
    """Tokens that cover a number of samples."""
    return -(-samples // TOKEN_SAMPLES)


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
        raise InputError(f"Speech encoder {encoder!r} is unknown; use auto or {ENCODERS}.")
    return encoder


def extract(
    samples: Float, encoder: str = "auto", progress: Progress | None = None
) -> SpeechFeatures:
    """Features of a whole 16 kHz mono recording, ceil(S / 320) rows; ``progress`` counts blocks.

    Raises ``InputError`` as ``choose_encoder`` does.
    """
    name = choose_encoder(encoder)
    samples = np.ascontiguousarray(samples, np.float32)
    count = token_count(len(samples))
    if name == WHISPER:
        values, silence = _encode_blocks(samples, count, progress), silence_features(name)
    else:
        values, silence = log_mel_tokens(samples, count), silence_features(name)
    return SpeechFeatures(
        torch.from_numpy(values), torch.from_numpy(voice_activity(samples, count)),
        torch.from_numpy(silence), TOKEN_RATE, name,
    )  # fmt: skip


def _encode_blocks(samples: Float, count: int, progress: Progress | None) -> Float:
    """Whisper tokens [count, 384], a window per block."""
    blocks = -(-count // BLOCK_TOKENS)
    width = len(silence_features(WHISPER))
    values = np.empty((blocks * BLOCK_TOKENS, width), np.float32)
    for block in range(blocks):
        start = block * BLOCK_TOKENS * TOKEN_SAMPLES - LEAD_SAMPLES
        rows = slice(block * BLOCK_TOKENS, (block + 1) * BLOCK_TOKENS)
        values[rows] = encode_window(_cut(samples, start, WINDOW_SAMPLES))
        if progress is not None:
            progress(block + 1, blocks)
    return values[:count]


def encode_window(window: Float) -> Float:
    """Tokens 385-394 [10, 384] of an 8 s window [128000]."""
    mel = whisper_log_mel(window)[None]
    (tokens,) = _encoder_session().run([ENCODER_OUTPUT], {"input_features": mel})
    return np.asarray(tokens[0, FIRST_TOKEN : FIRST_TOKEN + BLOCK_TOKENS], np.float32)


def _cut(samples: Float, start: int, length: int) -> Float:
    """``samples[start : start + length]`` with zeros where there is no sound."""
    inside = samples[max(start, 0) : max(start + length, 0)]
    before = min(max(-start, 0), length)
    return np.pad(inside, (before, length - before - len(inside)))


@cache
def silence_features(encoder: str) -> Float:
    """The features [A] of digital silence."""
    if encoder == WHISPER:
        return encode_window(np.zeros(WINDOW_SAMPLES, np.float32)).mean(0)
    return log_mel_tokens(np.zeros(SAMPLE_RATE, np.float32), 10)[5]


def windows(features: SpeechFeatures, time_s: Any, tokens: int = 17) -> Tensor:
    """Features around each instant, [N, tokens, A], 20 ms apart and linearly interpolated.

    ``time_s`` is [N] in seconds; beyond both ends stand the features of silence.
    """
    time = torch.as_tensor(np.asarray(time_s), dtype=torch.float64)
    at = time[:, None] * features.rate + (torch.arange(tokens) - tokens // 2)
    base = at.floor()
    share = (at - base).to(torch.float32)[..., None]
    row = base.long()
    return token_rows(features, row) * (1.0 - share) + token_rows(features, row + 1) * share


def token_rows(features: SpeechFeatures, row: Tensor) -> Tensor:
    """Feature rows by index [*B] -> [*B, A], silence where there is no such row."""
    count = len(features.values)
    if count == 0:
        return features.silence.expand(*row.shape, -1)
    picked = features.values[row.clamp(0, count - 1)]
    outside = (row < 0) | (row >= count)
    return torch.where(outside[..., None], features.silence, picked)


# Log-mel


@cache
def mel_filters() -> Float:
    """Triangles [80, 201] of equal area on Slaney's mel scale, 0 to 8 kHz, as Whisper has them."""
    # The scale is linear to 1 kHz (15 mel) and then logarithmic, 27 steps to a factor of 6.4.
    step = np.log(6.4) / 27.0
    top = 15.0 + np.log(8000.0 / 1000.0) / step
    mels = np.linspace(0.0, top, MEL_BANDS + 2)
    edges = np.where(mels < 15.0, mels * 200.0 / 3.0, 1000.0 * np.exp(step * (mels - 15.0)))
    bins = np.linspace(0.0, SAMPLE_RATE / 2, FFT_SIZE // 2 + 1)
    low, mid, high = (edges[i : MEL_BANDS + i, None] for i in range(3))
    rising, falling = (bins - low) / (mid - low), (high - bins) / (high - mid)
    return (np.maximum(0.0, np.minimum(rising, falling)) * 2.0 / (high - low)).astype(np.float32)


def _mel_power(samples: Float, pad_mode: Any) -> NDArray[np.float64]:
    """Mel power [80, S // 160] of frames centred on multiples of 10 ms."""
    padded = np.pad(samples.astype(np.float64), FFT_SIZE // 2, mode=pad_mode)
    count = len(samples) // MEL_HOP
    frames = np.lib.stride_tricks.sliding_window_view(padded, FFT_SIZE)[::MEL_HOP][:count]
    taper = 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(FFT_SIZE) / FFT_SIZE)
    spectrum = np.fft.rfft(frames * taper, axis=1)
    power: NDArray[np.float64] = mel_filters() @ (spectrum.real**2 + spectrum.imag**2).T
    return power


def whisper_log_mel(window: Float) -> Float:
    """Whisper's input [80, S // 160]: unit-variance sound, log10 mel power, 8 decades, scaled."""
    level = (window - window.mean()) / np.sqrt(window.var() + 1e-7)
    log = np.log10(np.maximum(_mel_power(level, "reflect"), 1e-10))
    log = np.maximum(log, log.max() - MEL_DYNAMICS)
    return ((log + 4.0) / 4.0).astype(np.float32)


def log_mel_tokens(samples: Float, count: int) -> Float:
    """The fallback features [count, 80]: log-mel per token, level of the 8 s before normalised.

    Nothing later than 30 ms after a token is read.
    """
    from scipy.ndimage import maximum_filter1d

    length = (count + 1) * TOKEN_SAMPLES
    power = _mel_power(_cut(samples, 0, length), "constant")
    # A token sees what Whisper's stem sees, the mel frames around its instant.
    around = np.pad(power, ((0, 0), (1, 0)))[:, : 2 * count + 1]
    token_power = 0.25 * around[:, :-2:2] + 0.5 * around[:, 1:-1:2] + 0.25 * around[:, 2::2]
    energy = np.pad(np.square(samples[:length], dtype=np.float64), (0, length))[:length]
    span = WINDOW_SAMPLES // TOKEN_SAMPLES
    total = np.concatenate((np.zeros(span), np.cumsum(energy.reshape(-1, TOKEN_SAMPLES).sum(1))))
    level = (total[span : span + count] - total[:count]) / WINDOW_SAMPLES + 1e-7
    log = np.log10(np.maximum(token_power / level, 1e-10))
    loudest = maximum_filter1d(log.max(0), span, mode="nearest", origin=span // 2 - 1)
    return ((np.maximum(log, loudest - MEL_DYNAMICS) + 4.0) / 4.0).T.astype(np.float32)


# Voice activity


def voice_activity(samples: Float, count: int) -> Float:
    """How surely somebody speaks at each token [count], 0-1; by loudness without the detector."""
    if not assets.available("silero_vad"):
        return _loudness_gate(samples, count)
    chunks = max(1, -(-len(samples) // VAD_CHUNK))
    padded = _cut(samples, -VAD_CONTEXT, chunks * VAD_CHUNK + VAD_CONTEXT)
    detector = VoiceDetector()
    chance = [
        detector.step(padded[i * VAD_CHUNK : (i + 1) * VAD_CHUNK + VAD_CONTEXT])
        for i in range(chunks)
    ]
    centres_s = (np.arange(chunks) + 0.5) * VAD_CHUNK / SAMPLE_RATE
    return np.interp(np.arange(count) / TOKEN_RATE, centres_s, chance).astype(np.float32)


class VoiceDetector:
    """Silero's recurrent detector over chunks of 32 ms."""

    def __init__(self) -> None:
        self._session = _session_of(assets.resolve("silero_vad").read_bytes())
        self._forget()

    def _forget(self) -> None:
        self._state = np.zeros((2, 1, 128), np.float32)
        self._since_reset = self._quiet = 0

    def step(self, chunk: Float) -> float:
        """Chance of speech in the last 512 of 576 samples."""
        chance, self._state = self._session.run(
            None,
            {"input": chunk[None], "state": self._state, "sr": np.array(SAMPLE_RATE, np.int64)},
        )
        value = float(chance[0, 0])
        self._since_reset += 1
        self._quiet = self._quiet + 1 if value < VAD_QUIET else 0
        if self._since_reset >= VAD_RESET_CHUNKS and self._quiet >= VAD_QUIET_CHUNKS:
            self._forget()
        return value


def _loudness_gate(samples: Float, count: int) -> Float:
    """1 within 25 dB of the loudest token of the last 8 s, 0 below 35 dB or under -60 dBFS."""
    from scipy.ndimage import maximum_filter1d

    tokens = _cut(samples, 0, count * TOKEN_SAMPLES).reshape(count, TOKEN_SAMPLES)
    level_db = 10.0 * np.log10(np.square(tokens, dtype=np.float64).mean(1) + 1e-12)
    span = WINDOW_SAMPLES // TOKEN_SAMPLES
    loudest = maximum_filter1d(level_db, span, mode="nearest", origin=span // 2 - 1)
    gate = np.clip((level_db - loudest + 35.0) / 10.0, 0.0, 1.0) * (level_db > -60.0)
    return gate.astype(np.float32)


# ONNX


def _session_of(model: bytes) -> Any:
    """A quiet CPU session with a fixed number of threads, so that results repeat."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


@cache
def _encoder_session() -> Any:
    model = assets.resolve("speech_encoder").read_bytes()
    return _session_of(cut_graph(model, ENCODER_OUTPUT))


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A protobuf integer and the position after it."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at


def _fields(data: bytes, start: int, end: int) -> list[tuple[int, int, int, int]]:
    """Protobuf fields of a message: number, start of the field, start of its payload, end."""
    found, at = [], start
    while at < end:
        key, payload = _varint(data, at)
        kind = key & 7
        if kind == 2:
            size, payload = _varint(data, payload)
            stop = payload + size
        elif kind == 0:
            _, stop = _varint(data, payload)
        else:
            stop = payload + (8 if kind == 1 else 4)
        found.append((key >> 3, at, payload, stop))
        at = stop
    return found


def _wrapped(number: int, payload: bytes) -> bytes:
    """A length-delimited protobuf field."""
    size, left = b"", len(payload)
    while left >= 0x80:
        size += bytes([left & 0x7F | 0x80])
        left >>= 7
    return bytes([number << 3 | 2]) + size + bytes([left]) + payload


def cut_graph(model: bytes, output: str) -> bytes:
    """The ONNX model that ends at an inner float tensor: later nodes are left out.

    ``onnx`` is not needed for that: nodes are field 1 and outputs field 12 of the graph (field 7
    of the model), and nodes are in order of evaluation.
    """
    wanted = output.encode()
    float_tensor = _wrapped(1, bytes([0x08, 0x01]))  # TypeProto.tensor_type.elem_type = FLOAT
    entry = _wrapped(12, _wrapped(1, wanted) + _wrapped(2, float_tensor))
    result, reached = b"", False
    for number, at, payload, stop in _fields(model, 0, len(model)):
        if number != 7:
            result += model[at:stop]
            continue
        kept: list[bytes] = []
        for inner, start, body, end in _fields(model, payload, stop):
            if inner == 12 or (inner == 1 and reached):
                continue
            kept.append(model[start:end])
            if inner == 1:
                node = _fields(model, body, end)
                reached = wanted in (model[b:e] for n, _, b, e in node if n == 2)
        result += _wrapped(7, b"".join(kept) + entry)
    if not reached:
        raise InputError(
            f"The speech encoder has no tensor {output!r}; remove the file and fetch it again."
        )
    return result
