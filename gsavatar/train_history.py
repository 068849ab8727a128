"""The training curve of a run: one JSON line whenever the avatar was looked at."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from gsavatar.frames import write_bytes_atomic


class History:
    """The training curve as JSON lines; a resumed run drops what lies after its checkpoint."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in lines if _step_of(line) <= step]
        write_bytes_atomic(path, "".join(line + "\n" for line in kept).encode())

    def add(self, **values: Any) -> None:
        """Appends one row; numbers that are not finite become null."""
        row = {
            k: None if isinstance(v, float) and not math.isfinite(v) else v
            for k, v in values.items()
        }
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def _step_of(line: str) -> float:
    """The step of a line of the curve; of one that was cut short when it was written, infinity."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
