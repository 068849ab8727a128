"""Reading the JSON files in which prepared folders state lens, frames and camera poses.

Such a file comes from anywhere: every number is checked before it is used, and no path in it may
lead out of its folder.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gsavatar.errors import InputError

MAX_BYTES = 256 << 20
MAX_ID = 1_000_000
"""Largest frame id, eleven hours at 25 frames a second: sound is as long as the last id says."""
ORTHONORMAL = 0.01
"""How far a camera's axes may be from unit length and right angles: files hold rounded numbers."""


def load(path: Path) -> dict[str, Any]:
    """The object in a JSON file with a list of ``frames``. Raises ``InputError`` otherwise."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path}: over {MAX_BYTES >> 20} MB; keep the frames of one camera.")
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); prepare the folder again, or give the "
            "video itself."
        ) from None
    except (ValueError, RecursionError):
        raise InputError(f"{path}: is not valid JSON; prepare the folder again.") from None
    frames = content.get("frames") if isinstance(content, dict) else None
    if not isinstance(frames, list) or not all(isinstance(f, dict) for f in frames):
        raise InputError(f"{path}: holds no list of frames; prepare the folder again.")
    return dict(content)


def number(path: Path, table: Mapping[str, Any], key: str, low: float, high: float) -> float:
    """A number of a JSON object within a range. Raises ``InputError`` if it is none."""
    value = table.get(key)
    fine = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not fine or not low <= value <= high:  # type: ignore[operator]
        raise InputError(
            f"{path}: {key} is {_short(value)} but must be a number from {low:g} to {high:g}."
        )
    return float(value)  # type: ignore[arg-type]


def frame_id(path: Path, value: Any) -> int:
    """A frame's id: a whole number from 0. Raises ``InputError`` if it is none."""
    fine = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not fine or not (0 <= value < MAX_ID and int(value) == value):
        raise InputError(f"{path}: {_short(value)} is no frame id from 0 to {MAX_ID - 1}.")
    return int(value)


def inside(path: Path, stated: Any) -> Path:
    """The file that a JSON file ``path`` names, relative to its folder.

    Raises ``InputError`` if the name is none or leads out of the folder.
    """
    if not isinstance(stated, str) or not stated or "\0" in stated:
        raise InputError(f"{path}: {_short(stated)} is no file name.")
    plain = PurePosixPath(stated.replace("\\", "/"))
    escapes = plain.is_absolute() or ".." in plain.parts or PureWindowsPath(stated).drive
    if escapes:
        raise InputError(
            f"{path}: names {_short(stated)}, which lies outside of the folder; copy the file into "
            "the folder and name it there."
        )
    return path.parent / plain


def camera_to_head(path: Path, frame: Mapping[str, Any], name: str) -> Tensor:
    """The ``transform_matrix`` of a frame [4, 4] float64, a turn and a shift.

    Raises ``InputError`` if it is no such matrix.
    """
    try:
        matrix = np.asarray(frame.get("transform_matrix"), dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        matrix = np.zeros(0)
    fine = matrix.shape in ((4, 4), (3, 4)) and bool(np.isfinite(matrix).all())
    if fine:
        turn = matrix[:3, :3]
        off = float(np.abs(turn.T @ turn - np.eye(3)).max())
        fine = off < ORTHONORMAL and np.linalg.det(turn) > 0 and np.abs(matrix).max() < 1e6
    if not fine:
        raise InputError(
            f"{path}: the transform_matrix of frame {name} is not a turn and a shift; prepare the "
            "folder again."
        )
    # The nearest turn: files hold rounded numbers, and inverses by transposition need true turns.
    u, _, vt = np.linalg.svd(matrix[:3, :3])
    result = np.eye(4)
    result[:3, :3], result[:3, 3] = u @ vt, matrix[:3, 3]
    return torch.from_numpy(result)


def focal_of_angle(angle_rad: float, size_px: float) -> float:
    """Focal length in pixels of a picture that is ``size_px`` wide and shows ``angle_rad``."""
    return size_px / (2 * math.tan(angle_rad / 2))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
