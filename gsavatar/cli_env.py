"""The process around a command: thread and memory knobs, quiet libraries, log file."""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import logging
import os
import platform
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gsavatar import __version__

log = logging.getLogger("gsavatar")

THREADS = {
    "OMP_WAIT_POLICY": "passive",
    # numpy's matrices are small here: a second BLAS thread only burns five times the CPU.
    "OPENBLAS_NUM_THREADS": "1",
}
QUIET = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "GLOG_minloglevel": "3",
    "ABSL_MIN_LOG_LEVEL": "3",
    "OPENCV_LOG_LEVEL": "ERROR",
    "ORT_LOGGING_LEVEL": "3",
}
"""Chatter of third-party native code; a user who wants it sets the variable."""

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -2, -3, -8
KEPT_BYTES = 256 << 20
LARGEST_HEAP_BLOCK = 32 << 20
"""glibc refuses a larger mmap threshold."""


def prepare_process() -> None:
    """Sets what must stand before numpy and torch are imported; the user's own values win.

    OpenMP's default busy waiting makes two threads many times slower as soon as another process
    wants a core, and glibc returns every large tensor to the kernel only to ask for it again.
    """
    for name, value in (THREADS | QUIET).items():
        os.environ.setdefault(name, value)
    _keep_freed_memory()
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


def load_torch() -> None:
    """Imports torch while the garbage collector rests, and hides from it what has come.

    Nothing of that is garbage, but the collector goes through half a million objects several times
    on the way in and out: half a second of each command.
    """
    gc.disable()
    try:
        importlib.import_module("torch")
    finally:
        gc.enable()
    gc.freeze()
    atexit.register(gc.freeze)


def _keep_freed_memory() -> None:
    """Raises glibc's thresholds in this process; does nothing with another C library."""
    if platform.libc_ver()[0] != "glibc" or "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(M_MMAP_THRESHOLD, LARGEST_HEAP_BLOCK)
    mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
    mallopt(M_TOP_PAD, LARGEST_HEAP_BLOCK)
    # A heap of a thread's own keeps its upper end whatever is given back.
    if "MALLOC_ARENA_MAX" not in os.environ:
        mallopt(M_ARENA_MAX, 1)


class _Terminal(logging.Handler):
    """Writes ``warning: sentence`` to whatever standard error is: progress bars replace it."""

    def emit(self, record: logging.LogRecord) -> None:
        """The level in words and the message, never a traceback."""
        sys.stderr.write(f"{record.levelname.lower()}: {record.getMessage()}\n")


@contextmanager
def logging_to(path: Path | None) -> Iterator[None]:
    """Warnings of the library on the terminal, everything in the file at ``path``."""
    terminal = _Terminal(logging.WARNING)
    handlers: list[logging.Handler] = [terminal]
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = logging.FileHandler(path, encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        handlers.append(file)
    propagate, level = log.propagate, log.level
    log.propagate = False
    log.setLevel(logging.INFO)
    for handler in handlers:
        log.addHandler(handler)
    log.info("gsavatar %s, Python %s, %s", __version__, platform.python_version(), sys.argv[1:])
    try:
        yield
    finally:
        for handler in handlers:
            log.removeHandler(handler)
            handler.close()
        log.propagate, log.level = propagate, level
