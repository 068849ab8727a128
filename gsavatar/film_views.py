"""From where a film is seen, and what stands behind the person.

Cameras move; the background does not: plate, picture and colour are fixed to the screen.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gsavatar import geometry, video
from gsavatar.errors import InputError
from gsavatar.package import Package
from gsavatar.types import Branch, Camera

View = Callable[[float], Camera]
"""The camera at a time in seconds."""

ORBIT_DEG = 25.0
ORBIT_PERIOD_S = (4.0, 8.0)
"""Shortest and longest time of one turn to both sides; a film between them shows one turn."""
ROTATION_TOLERANCE = 1e-3
MAX_PATH_BYTES = 64 << 20


def open_view(camera: str, package: Package, size: int, duration_s: float) -> View:
    """The view of that name: ``front``, ``orbit`` or a JSON file with a camera path.

    Raises ``InputError`` for anything else and for a damaged file.
    """
    front = package.camera.resized(size, size)
    if camera == "front":
        return lambda time_s: front
    if camera == "orbit":
        return orbit(front, head_centre(package), duration_s)
    path = Path(camera)
    if path.suffix.lower() != ".json":
        raise InputError(f"--camera {camera}: should be front, orbit or the path of a .json file.")
    return camera_path(path, front)


def head_centre(package: Package) -> Tensor:
    """Middle [3] of the face branch in the room, with the head at rest."""
    means = [b.raw.means for b in package.avatar.branches if b.kind == Branch.FACE]
    centre: Tensor = torch.cat(means).detach().median(0).values
    return centre


def orbit(front: Camera, centre: Tensor, duration_s: float) -> View:
    """From the front to 25 degrees on one side, to the other, and back, about a vertical axis.

    The head's centre stays on its place of the screen, at its distance.
    """
    period_s = min(max(duration_s, ORBIT_PERIOD_S[0]), ORBIT_PERIOD_S[1])

    def view(time_s: float) -> Camera:
        angle = math.radians(ORBIT_DEG) * math.sin(2 * math.pi * time_s / period_s)
        return geometry.orbit(front, centre, angle)

    return view


def camera_path(path: Path, front: Camera) -> View:
    """Keyframes of a JSON file, blended in between and held beyond the ends.

    The file is ``{"frames": [{"time_s": 0, "world_to_cam": 4x4, "K": 3x3}, ...], "width": 512,
    "height": 512}``: OpenCV cameras in the room frame. ``K`` (pixels of width x height) may be
    left out for the clip's own.
    """
    try:
        if path.stat().st_size > MAX_PATH_BYTES:
            raise ValueError("larger than 64 MB")
        data = json.loads(path.read_text(encoding="utf-8"))
        times, poses, lenses = _keyframes(data, front)
    except FileNotFoundError:
        raise InputError(f"{path}: no such camera file; check the path.") from None
    except (OSError, KeyError, TypeError, ValueError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise InputError(
            f"{path}: not a camera path ({reason}); it needs frames with time_s and world_to_cam."
        ) from None

    def view(time_s: float) -> Camera:
        after = int(np.searchsorted(times, time_s))
        right = min(after, len(times) - 1)
        left = max(right - 1, 0) if after > 0 else 0
        span = times[right] - times[left]
        share = min(max((time_s - times[left]) / span, 0.0), 1.0) if span > 0 else 0.0
        pose = geometry.se3_interp(poses[left], poses[right], share)
        lens = torch.lerp(lenses[left], lenses[right], share)
        return Camera(pose, lens, front.width, front.height)

    return view


def _keyframes(data: object, front: Camera) -> tuple[np.ndarray, list[Tensor], list[Tensor]]:
    """Times [F], world_to_cam and K (in pixels of ``front``) of every keyframe, checked."""
    if not isinstance(data, dict) or not isinstance(data.get("frames"), list):
        raise ValueError("no list called frames")
    width, height = float(data.get("width", front.width)), float(data.get("height", front.height))
    if not (width > 0 and height > 0):
        raise ValueError(f"width {width:g} and height {height:g} should be positive")
    scale = torch.tensor([front.width / width, front.height / height, 1.0])
    times, poses, lenses = [], [], []
    for number, frame in enumerate(data["frames"]):
        pose = torch.tensor(frame["world_to_cam"], dtype=torch.float32)
        if pose.shape != (4, 4) or not bool(torch.isfinite(pose).all()):
            raise ValueError(f"world_to_cam of frame {number} is not a finite 4x4 matrix")
        turn = pose[:3, :3]
        off = (turn @ turn.T - torch.eye(3)).abs().max()
        if float(off) > ROTATION_TOLERANCE or float(torch.det(turn)) < 0:
            raise ValueError(f"world_to_cam of frame {number} is not a rotation and a shift")
        lens = front.K
        if "K" in frame:
            lens = torch.tensor(frame["K"], dtype=torch.float32)
            if lens.shape != (3, 3) or not bool(torch.isfinite(lens).all() and lens[0, 0] > 0):
                raise ValueError(f"K of frame {number} is not a finite 3x3 matrix")
            lens = lens * scale[:, None]
        times.append(float(frame.get("time_s", 0.0)))
        poses.append(pose)
        lenses.append(lens)
    if not times:
        raise ValueError("frames is empty")
    if not np.isfinite(times).all() or np.any(np.diff(times) <= 0):
        raise ValueError("time_s should grow from frame to frame")
    return np.array(times), poses, lenses


def open_background(background: str, package: Package, size: int) -> Tensor | None:
    """Picture [size, size, 3] or colour [3], 0-1, to stand behind; None for transparency.

    Raises ``InputError`` if it is neither a known word, a colour nor a readable picture.
    """
    if background == "none":
        return None
    if background == "plate":
        return resized(package.plate, size)
    if background.startswith("#"):
        return _color(background)
    path = Path(background)
    if not path.is_file():
        raise InputError(
            f"--background {background}: should be plate, none, a colour like #20c040 or the path "
            "of a picture."
        )
    for _, _, rgb in video.decode(path):
        return resized(torch.from_numpy(np.ascontiguousarray(rgb)).float() / 255.0, size)
    raise InputError(f"{path}: holds no picture; give a PNG or JPEG file.")


def _color(text: str) -> Tensor:
    digits = text[1:]
    if len(digits) != 6 or any(c not in "0123456789abcdefABCDEF" for c in digits):
        raise InputError(f"--background {text}: a colour needs six digits, e.g. #20c040.")
    return torch.tensor([int(digits[i : i + 2], 16) / 255.0 for i in (0, 2, 4)])


def resized(picture: Tensor, size: int) -> Tensor:
    """The middle square of a picture [H, W, 3] at ``size`` pixels, smoothed when it shrinks."""
    height, width = picture.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = picture[top : top + side, left : left + side]
    if side == size:
        return square.contiguous()
    planes = square.permute(2, 0, 1)[None]
    small = torch.nn.functional.interpolate(
        planes, (size, size), mode="bilinear", align_corners=False, antialias=True
    )
    return small[0].permute(1, 2, 0).contiguous()
