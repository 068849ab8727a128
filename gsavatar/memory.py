"""Memory that was freed, given back, and rows on disk that need none: what one stage needed for a
while must not add to the next, and hours of footage must not add to seconds."""

from __future__ import annotations

import ctypes
import errno
import importlib
import math
import os
import tempfile
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

FLOAT_BYTES = 4


def give_back_freed() -> None:
    """Returns freed memory to the system where the C library keeps it (glibc); elsewhere nothing.

    Arrays below some megabytes come from a heap that only ever grows by itself.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library
        return
    trim(0)


def import_apart(name: str) -> None:
    """Imports a module from a thread of its own, in which nothing of ours is going on.

    A library that keeps the exception of an import it could do without (MediaPipe does, where
    PortAudio is missing) keeps with its traceback every caller's frame, and with these all that
    they held: the landmarks of a whole clip, for as long as the process lives.
    """
    with ThreadPoolExecutor(1) as apart:
        apart.submit(importlib.import_module, name).result()


class Rows(Protocol):
    """Rows [T, ...] that can be read some at a time: an array, or ``RowsOnDisk``."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> NDArray[Any]: ...


class RowsOnDisk:
    """Rows [T, ...] of single precision in a file that is gone with the object.

    It lies in ``folder``, or where temporary files do, which may be memory. ``rows[a:b]``,
    ``rows[indices]`` and ``rows[mask]`` are arrays; they are read, not mapped, so that no page
    of the file counts as our memory. By one thread at a time. Raises ``OSError`` if the disk is
    full.
    """

    def __init__(self, *shape: int, folder: Path | None = None) -> None:
        # Closed with the object: it is handed on, so no block of code could end it.
        self._file = tempfile.TemporaryFile(prefix="gsavatar-", dir=folder)  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self._shape, self._count = shape, 0
        self._size = math.prod(shape)

    def append(self, rows: NDArray[Any]) -> None:
        """Adds rows [t, ...] at the end."""
        self._file.seek(0, os.SEEK_END)
        self._file.write(np.ascontiguousarray(rows, np.float32).tobytes())
        self._file.flush()  # a full disk is told here, not when the rows are missed
        self._count += len(rows)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, rows: slice | NDArray[Any], /) -> NDArray[np.float32]:
        if not isinstance(rows, slice):
            parts = [self._read(row, row + 1) for row in np.arange(self._count)[rows].tolist()]
            return np.concatenate([self._read(0, 0), *parts])
        start, stop, step = rows.indices(self._count)
        assert step == 1, f"rows one after the other, not every {step}"
        return self._read(start, max(start, stop))

    def _read(self, start: int, stop: int) -> NDArray[np.float32]:
        values = np.empty((stop - start, *self._shape), np.float32)
        self._file.seek(start * self._size * FLOAT_BYTES)
        if self._file.readinto(values.reshape(-1).data.cast("B")) != values.nbytes:
            raise OSError(errno.EIO, "a temporary file is shorter than what was written to it")
        return values
