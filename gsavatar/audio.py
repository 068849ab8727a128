"""Sound files in, 16 kHz mono float out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gsavatar.errors import InputError

SAMPLE_RATE = 16_000
SILENT_RMS = 1e-4
"""-80 dBFS: below the noise of any room that was recorded."""
SILENT_WINDOW = SAMPLE_RATE // 10
VIDEO_SUFFIXES = {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".m4a", ".aac", ".ts", ".mts"}

Float = NDArray[np.float32]


def load(path: str | Path) -> Float:
    """The sound of an audio or video file, float32 [S] mono at 16 kHz, within -1 and 1.

    Raises ``InputError`` if the file is missing, holds no sound, is empty or cannot be decoded.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise InputError(f"{path} {what}; give a WAV, FLAC, MP3, OGG or video file with sound.")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes); give a file with recorded speech.")
    samples, rate = _read_video(path) if path.suffix.lower() in VIDEO_SUFFIXES else _read(path)
    if len(samples) == 0:
        raise InputError(f"{path} holds 0 samples of sound; give a file with recorded speech.")
    if not np.isfinite(samples).all():
        raise InputError(f"{path} holds samples that are not numbers; save it as 16-bit WAV.")
    return resample(samples.mean(axis=1, dtype=np.float32), rate)


def _read(path: Path) -> tuple[Float, int]:
    """Samples [S, C] and their rate by libsndfile, or by the video decoder where it gives up."""
    import soundfile

    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        try:
            return _read_video(path)
        except InputError:
            raise InputError(
                f"{path} cannot be read as sound ({error.error_string.rstrip('.')}); "
                "convert it to WAV, FLAC, MP3 or OGG."
            ) from None
    return samples, int(rate)


def _read_video(path: Path) -> tuple[Float, int]:
    """Samples [S, C] and their rate from a container with streams."""
    from gsavatar import video

    sound = video.audio_of(path)
    if sound is None:
        raise InputError(f"{path} has no audio track; give a file with recorded speech.")
    samples, rate = sound
    if samples.ndim == 1:
        samples = samples[:, None]
    return np.asarray(samples, np.float32), int(rate)


def resample(samples: Float, rate: int) -> Float:
    """Mono samples at 16 kHz, round(S * 16000 / rate) of them, clipped to -1 ... 1."""
    import soxr

    wanted = max(1, round(len(samples) * SAMPLE_RATE / rate))
    if rate != SAMPLE_RATE:
        samples = soxr.resample(samples, rate, SAMPLE_RATE, quality="HQ")
        samples = np.pad(samples[:wanted], (0, max(0, wanted - len(samples))))
    return np.clip(samples, -1.0, 1.0).astype(np.float32)


def is_silent(samples: Float) -> bool:
    """Whether no tenth of a second of 16 kHz sound rises above -80 dBFS."""
    whole = -(-len(samples) // SILENT_WINDOW) * SILENT_WINDOW
    padded = np.pad(np.asarray(samples, np.float32), (0, whole - len(samples)))
    power = np.square(padded.reshape(-1, SILENT_WINDOW), dtype=np.float64).mean(axis=1)
    return not bool((power > SILENT_RMS**2).any())
