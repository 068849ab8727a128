"""Decodes one uploaded sound and exits: ``python -m gsavatar.viewer.decode`` (see uploads.py)."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np

from gsavatar import audio
from gsavatar.errors import InputError


def limit_resources(memory_bytes: int, cpu_s: float) -> None:
    """Bounds this process where the system can (not on Windows)."""
    try:
        import resource
    except ImportError:
        return
    seconds = math.ceil(cpu_s) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    if sys.platform != "darwin":  # there the limit is below what a bare interpreter maps
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))


def main(source: Path, target: Path, duration_s: float, memory_bytes: int, cpu_s: float) -> int:
    """Writes the samples as ``target``; 2 and a sentence on stderr if the sound is refused."""
    limit_resources(memory_bytes, cpu_s)
    try:
        samples = audio.load(source, duration_s)
    except MemoryError:
        sys.stderr.write(f"{source} unfolds to too much sound; upload at most {duration_s:g} s.")
        return 2
    except InputError as error:
        sys.stderr.write(str(error))
        return 2
    np.save(target, samples)
    return 0


if __name__ == "__main__":
    _, source_, target_, duration_, memory_, cpu_ = sys.argv
    sys.exit(main(Path(source_), Path(target_), float(duration_), int(memory_), float(cpu_)))
