"""A clip in the layout of AD-NeRF's family, so that their methods can be trained on our tracks.

What is written, and what the readers of the layout expect, is in ``datasets/FORMAT.md``. Pictures
keep their ids, poses their digits: ``adnerf.read`` gets back the very poses of the clip.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from gsavatar import geometry
from gsavatar.clip import Clip
from gsavatar.datasets.adnerf import FPS, OWN, PICTURES, PLATE, REPAINTED, SOUND, TRAIN, VAL
from gsavatar.errors import InputError
from gsavatar.film_sinks import write_wav
from gsavatar.frames import UInt8, encode_jpg, encode_png, write_text_atomic
from gsavatar.landmarks import IBUG_68
from gsavatar.progress import Progress
from gsavatar.types import HEAD_REGIONS, PROTOCOL_SIZE, Region

PARSING, TORSO = "parsing", "torso_imgs"
WHITE, BLUE, BLACK, GREY = (255, 255, 255), (0, 0, 255), (0, 0, 0), (100, 100, 100)
GREEN, RED = (0, 255, 0), (255, 0, 0)
COLOURS: dict[Region, tuple[int, int, int]] = {
    Region.BACKGROUND: WHITE,
    Region.SKIN: BLUE,
    Region.HAIR: BLACK,
    Region.LIPS: BLUE,
    Region.INNER_MOUTH: GREY,
    Region.EYES: BLUE,
    Region.NECK: GREEN,
    Region.TORSO: RED,
}
"""What each region is in the layout's parsing pictures, RGB, as TalkingGaussian reads them."""
LATE_S = 0.5 / FPS
"""A frame this far from where 25 frames a second put it is another frame."""
FILL_PX, UNDER_PX, FADE = 48, 4, 0.98
"""Neck and clothes are painted on under the head: so far, in the colour found so far below their
rim, darkening so much from row to row."""
FRAME_BYTES = 1 << 20
"""A frame needs less than this on disk, all its pictures together."""


@dataclass(frozen=True)
class Exported:
    """What was written."""

    path: Path
    frames: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Canvas:
    """The protocol picture with edges repeated until the optical axis meets its middle.

    Several readers of the layout take the middle for granted, some as ``2 * int(cx)``.
    """

    left: int
    top: int
    right: int
    bottom: int
    cx: float
    cy: float

    @property
    def width(self) -> int:
        return PROTOCOL_SIZE + self.left + self.right

    @property
    def height(self) -> int:
        return PROTOCOL_SIZE + self.top + self.bottom

    def spread(self, picture: UInt8) -> UInt8:
        """A picture or label plane on the canvas."""
        room = [(self.top, self.bottom), (self.left, self.right), (0, 0)][: picture.ndim]
        return np.pad(picture, room, mode="edge")


def check_destination(out: Path) -> None:
    """Raises ``InputError`` unless ``out`` is a new or empty folder that can be written."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: is already there; choose a new folder with --export-adnerf.")
    parent = next(p for p in out.absolute().parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InputError(f"{out}: {parent} cannot be written to; choose another place.")


def export(clip: Clip, out: Path, progress: Progress) -> Exported:
    """Writes a clip to a new folder ``out``, which appears when it is whole.

    Raises ``InputError`` for a clip that the layout cannot hold: several files, or another rate
    than 25 frames a second.
    """
    check_destination(out)
    _check_clip(clip)
    rows = np.flatnonzero(clip.stored >= 0)
    out.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(out.parent).free
    if free < len(rows) * FRAME_BYTES:
        raise InputError(
            f"{out}: {len(rows)} frames need up to {len(rows) * FRAME_BYTES >> 20} MB but "
            f"{free >> 20} MB are free there; choose another place."
        )
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        notes = _write(clip, rows.tolist(), partial, progress)
        partial.chmod(0o755)
        if out.exists():  # an empty folder; checked before
            out.rmdir()
        os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Exported(out, len(rows), tuple(notes))


def _check_clip(clip: Clip) -> None:
    if len(clip.track.cameras) > 1:
        raise InputError(
            f"{clip.root}: holds {len(clip.track.cameras)} files, but the layout is of one; track "
            "one video alone and export that."
        )
    late = (clip.time_s - clip.frame_ids / FPS).abs()
    if float(late.max()) > LATE_S:
        row = int(late.argmax())
        index, at_s = int(clip.frame_ids[row]), float(clip.time_s[row])
        raise InputError(
            f"{clip.root}: frame {index} stands at {at_s:.2f} s, but the layout means {FPS:g} "
            "frames a second; convert the video to that rate and track it again."
        )


def _write(clip: Clip, rows: list[int], root: Path, progress: Progress) -> list[str]:
    """All files of the layout; what the user should know of them."""
    canvas = _canvas(clip.camera(0).K)
    plate = canvas.spread(clip.plates[0])
    (root / PLATE).write_bytes(encode_jpg(plate))
    for name in (PICTURES, REPAINTED, PARSING, TORSO):
        (root / name).mkdir()
    for done, row in enumerate(rows):
        _write_frame(clip, row, root, canvas, plate)
        progress(done + 1, len(rows))
    head_to_cam = poses(clip)
    for name, part in ((TRAIN, clip.train_rows), (VAL, clip.test_rows)):
        write_text_atomic(root / name, json.dumps(_transforms(clip, part, head_to_cam, canvas)))
    notes = []
    if clip.audio is None:
        notes.append(f"The clip has no sound, so there is no {SOUND}.")
    else:
        write_wav(root / SOUND, clip.audio, len(clip.audio))
    if canvas.width * canvas.height > PROTOCOL_SIZE**2:
        notes.append(
            f"The pictures are {canvas.width} x {canvas.height} px: edges are repeated so that the "
            "optical axis is in the middle, where the layout's readers expect it."
        )
    return notes


def _write_frame(clip: Clip, row: int, root: Path, canvas: _Canvas, plate: UInt8) -> None:
    """The four pictures and the landmarks of one frame."""
    picture, labels = canvas.spread(clip.frame(row)), canvas.spread(clip.regions(row))
    repainted = np.where((labels == int(Region.BACKGROUND))[..., None], plate, picture)
    index = int(clip.frame_ids[row])
    (root / PICTURES / f"{index}.jpg").write_bytes(encode_jpg(picture))
    (root / REPAINTED / f"{index}.jpg").write_bytes(encode_jpg(repainted))
    (root / PARSING / f"{index}.png").write_bytes(encode_png(parsing(labels)))
    (root / TORSO / f"{index}.png").write_bytes(encode_png(torso(repainted, labels)))
    points = clip.landmarks.points[row, list(IBUG_68), :2].numpy()
    lines = (f"{x + canvas.left:.4f} {y + canvas.top:.4f}" for x, y in points)
    (root / PICTURES / f"{index}.lms").write_text("\n".join(lines) + "\n")


def parsing(labels: UInt8) -> UInt8:
    """Regions [H, W] in the layout's colours [H, W, 3]."""
    table = np.zeros((max(COLOURS) + 1, 3), np.uint8)
    for region, colour in COLOURS.items():
        table[int(region)] = colour
    return np.asarray(table[labels], np.uint8)


def torso(picture: UInt8, labels: UInt8) -> UInt8:
    """Neck and clothes [H, W, 4] of a picture, transparent elsewhere, painted on under the head.

    Without that a gap would open wherever the rendered head leaves the place of the real one.
    """
    body = np.isin(labels, (int(Region.NECK), int(Region.TORSO)))
    head = np.isin(labels, [int(r) for r in HEAD_REGIONS])
    rim = np.zeros_like(body)
    rim[1:] = body[1:] & head[:-1]
    top = rim.argmax(0)  # 0 where a column has no rim: row 0 has none
    columns = np.arange(labels.shape[1])
    below = np.minimum(top + UNDER_PX, len(labels) - 1)
    source = np.where(body[below, columns], below, top)
    above = top[None] - np.arange(len(labels))[:, None]
    fill = head & (top > 0)[None] & (above > 0) & (above <= FILL_PX)
    painted = picture[source, columns][None] * (FADE ** above.clip(0, FILL_PX))[..., None]
    result = np.zeros((*labels.shape, 4), np.uint8)
    result[..., :3] = np.where(body[..., None], picture, 0)
    result[fill, :3] = painted[fill].round().astype(np.uint8)
    result[body | fill, 3] = 255
    return result


def poses(clip: Clip) -> Tensor:
    """Head -> camera [T, 4, 4] float64 of every row, OpenCV axes, metres."""
    view = clip.camera(0).world_to_cam.double()
    return view @ clip.track.head_pose.double()


def _transforms(
    clip: Clip, rows: Iterable[int], head_to_cam: Tensor, canvas: _Canvas
) -> dict[str, Any]:
    """One of the layout's two files of frames: OpenGL cameras in the head's frame."""
    ids = clip.frame_ids.tolist()
    camera_to_head = geometry.opencv_to_opengl(head_to_cam)
    room = geometry.opencv_to_opengl(clip.camera(0).world_to_cam.double())
    return {
        "focal_len": float(clip.camera(0).K[0, 0]), "cx": canvas.cx, "cy": canvas.cy,
        "w": canvas.width, "h": canvas.height, "fps": FPS,
        OWN: {"version": 1, "transform_matrix": room.tolist()},
        "frames": [
            {"img_id": ids[row], "aud_id": ids[row],
             "transform_matrix": camera_to_head[row].tolist()}
            for row in rows
        ],
    }  # fmt: skip


def _canvas(K: Tensor) -> _Canvas:
    (left, right, cx), (top, bottom, cy) = (_margins(float(K[axis, 2])) for axis in (0, 1))
    return _Canvas(left, top, right, bottom, cx, cy)


def _margins(centre: float) -> tuple[int, int, float]:
    """Pixels to add before and after a side so that ``centre`` is its middle, and where it then is.

    The rest, under a pixel, is left on the far side of the middle, which ``int`` rounds away.
    """
    off = math.floor(centre - PROTOCOL_SIZE / 2 + 1e-3)
    before, after = max(-2 * off, 0), max(2 * off, 0)
    middle = (PROTOCOL_SIZE + before + after) / 2
    return before, after, max(centre + before, middle)
