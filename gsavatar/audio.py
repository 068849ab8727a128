"""Sound files in, 16 kHz mono float out."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gsavatar.errors import InputError

SAMPLE_RATE = 16_000
BYTES = 4
BLOCK_SAMPLES = 1 << 16
SILENT_RMS = 1e-4
"""-80 dBFS: below the noise of any room that was recorded."""
SILENT_WINDOW = SAMPLE_RATE // 10
VIDEO_SUFFIXES = {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".m4a", ".aac", ".ts", ".mts"}

Float = NDArray[np.float32]


class Sound:
    """16 kHz mono sound [S] in a nameless file on disk: memory stays flat however long it is.

    Reads like an array: ``len(sound)``, ``sound[a:b]``. The file is gone with the object.
    """

    def __init__(self) -> None:
        # Closed with the object: it is handed on, so no block of code could end it.
        self._file = tempfile.TemporaryFile(prefix="gsavatar-")  # noqa: SIM115
        self._count = 0

    def append(self, samples: Float) -> None:
        """Adds samples at the end."""
        self._file.seek(self._count * BYTES)
        self._file.write(np.ascontiguousarray(samples, np.float32).tobytes())
        self._count += len(samples)

    def resize(self, count: int) -> None:
        """Cuts the sound, or pads it with silence, to ``count`` samples."""
        self._file.truncate(count * BYTES)
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, part: slice) -> Float:
        start, stop, _ = part.indices(self._count)
        self._file.seek(start * BYTES)
        return np.frombuffer(bytearray(self._file.read(max(0, stop - start) * BYTES)), np.float32)


def load(path: str | Path, longest_s: float = math.inf) -> Float:
    """The sound of an audio or video file in memory; see ``open_sound``."""
    return open_sound(path, longest_s)[:]


def open_sound(path: str | Path, longest_s: float = math.inf) -> Sound:
    """The sound of an audio or video file, mono at 16 kHz, within -1 and 1.

    Raises ``InputError`` if the file is missing, holds no sound, is empty, cannot be decoded or
    lasts longer than ``longest_s``.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise InputError(f"{path} {what}; give a WAV, FLAC, MP3, OGG or video file with sound.")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes); give a file with recorded speech.")
    read = _from_video if path.suffix.lower() in VIDEO_SUFFIXES else _from_file
    sound = read(path, longest_s)
    if len(sound) == 0:
        raise InputError(f"{path} holds 0 samples of sound; give a file with recorded speech.")
    return sound


def sound_of_video(path: Path) -> Sound | None:
    """The sound of a video that has a track for it, as ``open_sound``; None if the track is empty.

    Raises ``InputError`` if it cannot be decoded.
    """
    sound = _from_video(path, math.inf)
    return sound if len(sound) else None


def _from_file(path: Path, longest_s: float) -> Sound:
    """Sound by libsndfile, or by the video decoder where it gives up."""
    import soundfile

    try:
        with soundfile.SoundFile(path) as file:
            blocks = file.blocks(BLOCK_SAMPLES, dtype="float32", always_2d=True)
            return _collected(path, blocks, file.samplerate, longest_s)
    except soundfile.LibsndfileError as error:
        try:
            return _from_video(path, longest_s)
        except InputError:
            raise InputError(
                f"{path} cannot be read as sound ({error.error_string.rstrip('.')}); "
                "convert it to WAV, FLAC, MP3 or OGG."
            ) from None


def _from_video(path: Path, longest_s: float) -> Sound:
    """Sound of a container with streams."""
    from gsavatar import video

    found = video.audio_blocks(path)
    if found is None:
        raise InputError(f"{path} has no audio track; give a file with recorded speech.")
    return _collected(path, found.blocks, found.rate, longest_s)


def _collected(path: Path, blocks: Iterable[Float], rate: int, longest_s: float) -> Sound:
    """Blocks [S, C] as mono at 16 kHz, round(S * 16000 / rate) samples, clipped to -1 ... 1."""
    import soxr

    resampler = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
    sound, count = Sound(), 0
    for block in blocks:
        count += len(block)
        if count > longest_s * rate:
            raise InputError(f"{path} lasts longer than {longest_s:g} s; give a shorter one.")
        mono = block.mean(axis=1, dtype=np.float32)
        if not np.isfinite(mono).all():
            raise InputError(f"{path} holds samples that are not numbers; save it as 16-bit WAV.")
        mono = mono if rate == SAMPLE_RATE else resampler.resample_chunk(mono)
        sound.append(np.clip(mono, -1.0, 1.0))
    if count and rate != SAMPLE_RATE:
        rest = resampler.resample_chunk(np.zeros(0, np.float32), last=True)
        sound.append(np.clip(rest, -1.0, 1.0))
    sound.resize(max(1, round(count * SAMPLE_RATE / rate)) if count else 0)
    return sound


def is_silent(samples: Float) -> bool:
    """Whether no tenth of a second of 16 kHz sound rises above -80 dBFS."""
    whole = -(-len(samples) // SILENT_WINDOW) * SILENT_WINDOW
    padded = np.pad(np.asarray(samples, np.float32), (0, whole - len(samples)))
    power = np.square(padded.reshape(-1, SILENT_WINDOW), dtype=np.float64).mean(axis=1)
    return not bool((power > SILENT_RMS**2).any())
