"""Speech for the synthetic head: flite's own phone times, and the mouth shapes of phones."""

from __future__ import annotations

import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gsavatar.errors import InputError

VOICE = "slt"
RATE = 16_000
TRACK_HZ = 100.0
COARTICULATION_S, CLOSURE_S = 0.045, 0.025
"""Widths of the smoothing of ordinary shapes and of lip closures, in seconds."""

Float = NDArray[np.float64]

SHAPES: dict[str, dict[str, float]] = {
    "pau": {},
    "aa": {"jawOpen": 0.62}, "ae": {"jawOpen": 0.5, "mouthStretch": 0.25},
    "ah": {"jawOpen": 0.45}, "ao": {"jawOpen": 0.5, "mouthFunnel": 0.45},
    "aw": {"jawOpen": 0.5, "mouthFunnel": 0.3}, "ax": {"jawOpen": 0.3},
    "ay": {"jawOpen": 0.5, "mouthStretch": 0.2}, "eh": {"jawOpen": 0.4, "mouthStretch": 0.2},
    "er": {"jawOpen": 0.25, "mouthFunnel": 0.25}, "ey": {"jawOpen": 0.32, "mouthSmile": 0.3},
    "ih": {"jawOpen": 0.26, "mouthSmile": 0.15}, "iy": {"jawOpen": 0.18, "mouthSmile": 0.4},
    "ow": {"jawOpen": 0.38, "mouthPucker": 0.45}, "oy": {"jawOpen": 0.38, "mouthPucker": 0.35},
    "uh": {"jawOpen": 0.24, "mouthPucker": 0.3}, "uw": {"jawOpen": 0.16, "mouthPucker": 0.65},
    "w": {"jawOpen": 0.1, "mouthPucker": 0.65}, "r": {"jawOpen": 0.16, "mouthFunnel": 0.35},
    "y": {"jawOpen": 0.14, "mouthSmile": 0.25}, "l": {"jawOpen": 0.26},
    "m": {"mouthPress": 0.3, "mouthRoll": 0.15}, "b": {"mouthPress": 0.35, "mouthRoll": 0.15},
    "p": {"mouthPress": 0.4, "mouthRoll": 0.15},
    "f": {"jawOpen": 0.06, "mouthRollLower": 0.45, "mouthUpperUp": 0.15},
    "v": {"jawOpen": 0.07, "mouthRollLower": 0.4, "mouthUpperUp": 0.15},
    "th": {"jawOpen": 0.18}, "dh": {"jawOpen": 0.18},
    "s": {"jawOpen": 0.07, "mouthSmile": 0.2}, "z": {"jawOpen": 0.08, "mouthSmile": 0.2},
    "sh": {"jawOpen": 0.1, "mouthFunnel": 0.4}, "zh": {"jawOpen": 0.1, "mouthFunnel": 0.4},
    "ch": {"jawOpen": 0.12, "mouthFunnel": 0.35}, "jh": {"jawOpen": 0.12, "mouthFunnel": 0.35},
    "t": {"jawOpen": 0.12}, "d": {"jawOpen": 0.14}, "n": {"jawOpen": 0.14},
    "k": {"jawOpen": 0.18}, "g": {"jawOpen": 0.18}, "ng": {"jawOpen": 0.18},
    "hh": {"jawOpen": 0.28},
}  # fmt: skip
"""Mouth shape of each of flite's phones; names without a side stand for both sides."""

CLOSURES = ("m", "b", "p")
PAIRED = ("mouthStretch", "mouthSmile", "mouthPress", "mouthUpperUp")
ROLLS = ("mouthRollLower", "mouthRollUpper")


@dataclass(frozen=True)
class Phone:
    """A sound of speech with its times in seconds."""

    name: str
    start_s: float
    end_s: float


def speak(
    text: str, voice: str = VOICE, stretch: float = 1.0
) -> tuple[NDArray[np.float32], list[Phone]]:
    """Samples (mono, 16 kHz) and phones of a text, by the flite program.

    ``stretch`` is the length of the speech, 1 as the voice has it.

    Raises ``InputError`` if flite is not installed.
    """
    with tempfile.TemporaryDirectory() as folder:
        wav = Path(folder) / "a.wav"
        command = ["flite", "-voice", voice, "--setf", f"duration_stretch={stretch}", "-psdur",
                   "-t", text, "-o", str(wav)]  # fmt: skip
        try:
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        except (OSError, subprocess.CalledProcessError):
            raise InputError(
                "flite: the speech program cannot be run; install it (Debian: apt install flite)."
            ) from None
        import soundfile

        samples, rate = soundfile.read(wav, dtype="float32")
    if rate != RATE:
        raise InputError(f"flite gave {rate} Hz, expected {RATE}; choose a 16 kHz voice.")
    return samples, parse_phones(out)


def parse_phones(text: str) -> list[Phone]:
    """Phones from flite's ``-psdur`` output, which names each with the time it ends."""
    phones, before = [], 0.0
    for word in text.split():
        name, _, end = word.partition(":")
        try:
            end_s = float(end)
        except ValueError:
            continue
        phones.append(Phone(name, before, end_s))
        before = end_s
    return phones


def mouth_track(phones: list[Phone], duration_s: float) -> tuple[Float, dict[str, Float]]:
    """Times [T] at 100 Hz and the curve [T] of every mouth coefficient that speech moves.

    Each phone holds its shape for its time; smoothing blends neighbours, and closures of the lips
    are smoothed less, so that m, b and p really close.
    """
    time_s = np.arange(0.0, duration_s, 1.0 / TRACK_HZ)
    names = sorted({side for shape in SHAPES.values() for name in shape for side in _sides(name)})
    curves = {name: np.zeros(len(time_s)) for name in names}
    closed = np.zeros(len(time_s))
    for phone in phones:
        span = (time_s >= phone.start_s) & (time_s < phone.end_s)
        for name, value in SHAPES.get(phone.name, {"jawOpen": 0.2}).items():
            for side in _sides(name):
                curves[side][span] = value
        if phone.name in CLOSURES:
            closed[span] = 1.0
    shut = np.clip(1.6 * _smoothed(closed, CLOSURE_S), 0.0, 1.0)
    for name in names:
        smooth = _smoothed(curves[name], COARTICULATION_S)
        opens = name in ("jawOpen", "mouthFunnel", *_sides("mouthUpperUp"), *_sides("mouthStretch"))
        curves[name] = smooth * (1.0 - shut) if opens else smooth
    return time_s, curves


def _sides(name: str) -> tuple[str, ...]:
    """The coefficient names that a shape's name stands for."""
    if name == "mouthRoll":
        return ROLLS
    return (f"{name}Left", f"{name}Right") if name in PAIRED else (name,)


def _smoothed(values: Float, width_s: float) -> Float:
    """Gaussian smoothing without delay."""
    sigma = width_s * TRACK_HZ
    reach = int(4 * sigma) + 1
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    padded = np.pad(values, reach, mode="edge")
    return np.convolve(padded, kernel / kernel.sum(), mode="valid")
