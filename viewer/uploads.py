"""Sound from a browser: checked for kind and size, then decoded in a process of its own.

A few megabytes of a compressed file can unfold to days of silence and codecs have bugs, so the
decoding process has a limit on its time, its memory and the length of what it may return.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np
from numpy.typing import NDArray

from gsavatar.errors import InputError

TYPES = (".wav", ".flac", ".mp3", ".ogg", ".m4a")


@dataclass(frozen=True)
class UploadLimits:
    """What one upload may cost."""

    size_bytes: int = 30 << 20
    duration_s: float = 180.0
    decode_s: float = 20.0
    memory_bytes: int = 2 << 30


LIMITS = UploadLimits()


def check_upload(name: str, size: int, limits: UploadLimits = LIMITS) -> None:
    """Raises ``InputError`` unless the file's kind and size are acceptable."""
    shown = shown_name(name)
    suffix = PurePath(name).suffix.lower()
    if suffix not in TYPES:
        kinds = ", ".join(t[1:].upper() for t in TYPES)
        raise InputError(f"{shown} is not a kind of sound file known here; upload {kinds}.")
    if size == 0:
        raise InputError(f"{shown} is empty (0 bytes); upload a file with recorded speech.")
    if size > limits.size_bytes:
        raise InputError(
            f"{shown} has {size / 2**20:.1f} MB; upload at most {limits.size_bytes / 2**20:.0f} MB."
        )


def shown_name(name: str) -> str:
    """A file name fit for a message: no folders, no control characters, at most 60 letters."""
    plain = "".join(c for c in name.replace("\\", "/").rsplit("/", 1)[-1] if c.isprintable())
    return plain[-60:] or "the file"


def decode_upload(name: str, content: bytes, limits: UploadLimits = LIMITS) -> NDArray[np.float32]:
    """Samples float32 [S], 16 kHz mono, of an uploaded file.

    Raises ``InputError`` if it is refused, cannot be decoded, is too long or takes too long.
    """
    check_upload(name, len(content), limits)
    shown = shown_name(name)
    with tempfile.TemporaryDirectory(prefix="gsavatar-") as folder:
        source = Path(folder) / f"upload{PurePath(name).suffix.lower()}"
        target = Path(folder) / "samples.npy"
        source.write_bytes(content)
        command = [
            sys.executable, "-m", "gsavatar.viewer.decode", str(source), str(target),
            str(limits.duration_s), str(limits.memory_bytes), str(limits.decode_s),
        ]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        try:
            done = subprocess.run(  # elsewhere: a source tree here would hide the installed package
                command, timeout=limits.decode_s, capture_output=True, env=environment,
                check=False, cwd=folder,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise InputError(
                f"{shown} took over {limits.decode_s:g} s to decode; upload a shorter WAV file."
            ) from None
        if done.returncode == 2:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise InputError((said[-1] if said else "").replace(str(source), shown))
        if done.returncode != 0 or not target.exists():
            raise InputError(f"{shown} cannot be decoded within the limits; upload a WAV file.")
        samples: NDArray[np.float32] = np.load(target, allow_pickle=False)
    return samples
