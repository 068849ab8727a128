"""What turns sound into tokens: Whisper's encoder over a window, and log-mel without it.

A token stands for 20 ms. Whisper's mel frames are centred on multiples of 10 ms and its strided
convolution keeps every second one, so token i stands for the instant i / 50 s.
"""

from __future__ import annotations

import math
from collections import deque
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gsavatar import assets
from gsavatar.errors import InputError

SAMPLE_RATE = 16_000
TOKEN_SAMPLES = 320
BLOCK_TOKENS = 10
WINDOW_SAMPLES = 8 * SAMPLE_RATE
WINDOW_TOKENS = WINDOW_SAMPLES // TOKEN_SAMPLES
FIRST_TOKEN = 385
"""Place of a block's first token in the window: 5 tokens (0.1 s) of look-ahead follow the block."""

ENCODER_OUTPUT = "layer_norm_4"
WHISPER_CHANNELS, MEL_BANDS = 384, 80
MEL_HOP = 160
FFT_SIZE = 400
MEL_DYNAMICS = 8.0
"""Whisper keeps this many decades below the loudest band of a window."""
LOG_MEL_REACH = MEL_HOP + FFT_SIZE // 2
"""Samples on either side of a token's instant that its log-mel features read (22.5 ms)."""

Float = NDArray[np.float32]


def cut(samples: Float, start: int, length: int) -> Float:
    """``samples[start : start + length]`` with zeros where there is no sound."""
    inside = samples[max(start, 0) : max(start + length, 0)]
    before = min(max(-start, 0), length)
    return np.pad(inside, (before, length - before - len(inside)))


# Whisper


def encode_window(window: Float) -> Float:
    """Tokens 385-394 [10, 384] of an 8 s window [128000]."""
    mel = whisper_log_mel(window)[None]
    (tokens,) = _encoder_session().run([ENCODER_OUTPUT], {"input_features": mel})
    # A copy: a part of it would keep all 400 tokens of the window in memory.
    return np.array(tokens[0, FIRST_TOKEN : FIRST_TOKEN + BLOCK_TOKENS], np.float32)


@cache
def whisper_silence() -> Float:
    """Whisper's features [384] of digital silence."""
    return encode_window(np.zeros(WINDOW_SAMPLES, np.float32)).mean(0)


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


def _mel_power(samples: Float) -> NDArray[np.float64]:
    """Mel power [80, F] of the frames of 25 ms that fit into the sound, 10 ms apart."""
    frames = np.lib.stride_tricks.sliding_window_view(samples.astype(np.float64), FFT_SIZE)
    frames = frames[::MEL_HOP]
    taper = 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(FFT_SIZE) / FFT_SIZE)
    spectrum = np.fft.rfft(frames * taper, axis=1)
    power: NDArray[np.float64] = mel_filters() @ (spectrum.real**2 + spectrum.imag**2).T
    return power


def whisper_log_mel(window: Float) -> Float:
    """Whisper's input [80, S // 160]: unit-variance sound, log10 mel power, 8 decades, scaled."""
    level = (window - window.mean()) / np.sqrt(window.var() + 1e-7)
    padded = np.pad(level, FFT_SIZE // 2, mode="reflect")
    power = _mel_power(padded)[:, : len(window) // MEL_HOP]
    log = np.log10(np.maximum(power, 1e-10))
    log = np.maximum(log, log.max() - MEL_DYNAMICS)
    return ((log + 4.0) / 4.0).astype(np.float32)


class LogMel:
    """The fallback features, token by token; the level of the 8 s before is normalised."""

    def __init__(self) -> None:
        self._energy: deque[float] = deque(maxlen=WINDOW_TOKENS)
        self._loudest: deque[float] = deque(maxlen=WINDOW_TOKENS)

    def step(self, around: Float) -> Float:
        """The next token [80], from the sound 360 samples before its instant to 360 after."""
        # A token sees what Whisper's stem sees, the mel frames around its instant.
        power = _mel_power(around) @ _STEM
        own = around[LOG_MEL_REACH : LOG_MEL_REACH + TOKEN_SAMPLES].astype(np.float64)
        self._energy.append(float(own @ own))
        level = math.fsum(self._energy) / WINDOW_SAMPLES + 1e-7
        log = np.log10(np.maximum(power / level, 1e-10))
        self._loudest.append(float(log.max()))
        floor = max(self._loudest) - MEL_DYNAMICS
        return ((np.maximum(log, floor) + 4.0) / 4.0).astype(np.float32)


_STEM = np.array([0.25, 0.5, 0.25])


@cache
def log_mel_silence() -> Float:
    """The log-mel features [80] of digital silence."""
    return LogMel().step(np.zeros(2 * LOG_MEL_REACH, np.float32))


# ONNX


def onnx_session(model: bytes) -> Any:
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
    return onnx_session(cut_graph(model, ENCODER_OUTPUT))


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
