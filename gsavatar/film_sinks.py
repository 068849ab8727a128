"""Where the pictures of a film go: a movie file, or a folder of PNGs with a wav file.

Nothing is visible at the destination until the last picture is written.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import wave
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gsavatar.errors import InputError
from gsavatar.frames import encode_png
from gsavatar.video import Samples, VideoWriter

SAMPLE_RATE = 16_000
WAV_SAMPLES = 1 << 20

UInt8 = NDArray[np.uint8]


class Sink(Protocol):
    """Takes uint8 pictures [H, W, 3|4] in order; finished when its context ends without error."""

    def write(self, picture: UInt8) -> None:
        """Adds the next picture."""
        ...

    def __enter__(self) -> Sink: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...  # fmt: skip


def check_destination(out: Path, *, alpha: bool) -> None:
    """Raises ``InputError`` if a film of this kind cannot be written to ``out``."""
    kind = out.suffix.lower()
    if kind == ".mp4" and alpha:
        raise InputError(
            f"{out}: MP4 has no transparency; with --background none write a .webm or a folder."
        )
    if kind not in (".mp4", ".webm", ""):
        raise InputError(f"{out}: {kind} cannot be written; use .mp4, .webm or a folder's name.")
    if kind == "":
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise InputError(f"{out}: is already there; choose a new folder or remove it first.")
    elif out.is_dir():
        raise InputError(f"{out}: is a folder; give the film another name.")
    parent = next(p for p in (out.absolute(), *out.absolute().parents)[1:] if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InputError(f"{out}: {parent} cannot be written to; choose another place with --out.")


def open_sink(out: Path, size: int, fps: float, sound: Samples | None, *, alpha: bool) -> Sink:
    """The writer for ``out``, by its suffix; ``sound`` is 16 kHz mono, and becomes as long as the
    picture."""
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == "":
        return FolderSink(out, fps, sound)
    return VideoWriter(out, size, size, fps, audio=sound, alpha=alpha)


class FolderSink:
    """Pictures as ``000000.png`` and on, the sound as ``sound.wav`` (16 bit)."""

    def __init__(self, folder: Path, fps: float, sound: Samples | None) -> None:
        self.folder, self.fps, self.sound = folder, fps, sound
        self.count = 0
        self.partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))

    def write(self, picture: UInt8) -> None:
        """Adds the next picture."""
        (self.partial / f"{self.count:06d}.png").write_bytes(encode_png(picture))
        self.count += 1

    def __enter__(self) -> FolderSink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        try:
            if kind is None:
                self._finish()
        finally:
            shutil.rmtree(self.partial, ignore_errors=True)

    def _finish(self) -> None:
        if self.sound is not None:
            length = round(self.count * SAMPLE_RATE / self.fps)
            write_wav(self.partial / "sound.wav", self.sound, length)
        self.partial.chmod(0o755)
        if self.folder.exists():  # an empty folder; checked before
            self.folder.rmdir()
        os.replace(self.partial, self.folder)


def write_wav(path: Path, sound: Samples, length: int) -> None:
    """16-bit mono wav file at 16 kHz of ``length`` samples; silence follows where sound ends."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        for start in range(0, length, WAV_SAMPLES):
            part = np.zeros(min(WAV_SAMPLES, length - start), np.float32)
            known = sound[start : start + len(part)]
            part[: len(known)] = known
            file.writeframes((np.clip(part, -1, 1) * 32767).round().astype("<i2").tobytes())
