"""Folders with a ``transforms.json`` in the manner of NeRF: VHAP, INSTA and others, one camera.

Per frame a picture, a camera-to-world ``transform_matrix`` with OpenGL axes and perhaps a mask of
the person; the lens as ``fl_x``, ``fl_y``, ``cx``, ``cy`` or ``camera_angle_x``, for all frames or
in each. 25 frames a second unless ``fps`` says otherwise.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gsavatar import geometry
from gsavatar.datasets import transforms_file as tf
from gsavatar.errors import InputError
from gsavatar.footage import Lens, PictureFolder, read_picture
from gsavatar.types import KnownPoses

FPS = 25.0
WHOLE = "transforms.json"
TRAIN, TESTS = "transforms_train.json", ("transforms_val.json", "transforms_test.json")
SOUNDS = ("aud.wav", "audio.wav")
SUFFIXES = ("", ".png", ".jpg", ".jpeg")
"""What may have to be added to a ``file_path``: Blender's own files leave the suffix away."""
ID_KEYS = ("timestep_index_original", "timestep_index")
MASK_KEYS = ("fg_mask_path", "mask_path")
SQUARE = 0.01
"""Share by which the focal lengths of x and y, or of two frames, may differ."""
STILL = 1e-6
"""Cameras that differ by less stand still."""

Frames = dict[int, dict[str, Any]]


def recognises(path: Path) -> bool:
    """Whether a folder has such a file."""
    return (path / WHOLE).is_file() or (path / TRAIN).is_file()


def read(path: Path) -> PictureFolder:
    """A prepared folder as footage. Raises ``InputError`` if it lacks something or is damaged."""
    notes: list[str] = []
    source = path / WHOLE if (path / WHOLE).is_file() else path / TRAIN
    content = tf.load(source)
    train = _frames(path / TRAIN) if (path / TRAIN).is_file() else {}
    test: Frames = {}
    for name in TESTS:
        if (path / name).is_file():
            test |= _frames(path / name)
    frames = _by_id(source, content["frames"])
    frames = dict(sorted((frames if source.name == WHOLE else train | test).items()))
    if len(frames) < 2:
        raise InputError(f"{source}: states {len(frames)} frames, at least 2 are needed.")
    pictures = {i: _picture(source, f) for i, f in frames.items()}
    poses, without = _poses(source, frames)
    sound = next((path / name for name in SOUNDS if (path / name).is_file()), None)
    if sound is None:
        notes.append(f"The folder holds no sound ({' or '.join(SOUNDS)}).")
    return PictureFolder(
        path=path,
        pictures=pictures,
        fps=tf.number(source, content, "fps", 1, 240) if "fps" in content else FPS,
        sound_path=sound,
        lens=_lens(source, content, frames, next(iter(pictures.values()))),
        poses=poses,
        without_poses=without,
        masks=_masks(source, frames),
        test_from_id=_test_from(train, test, notes),
        notes=tuple(notes),
    )


def _frames(path: Path) -> Frames:
    return _by_id(path, tf.load(path)["frames"])


def _by_id(path: Path, frames: list[dict[str, Any]]) -> Frames:
    """Frames by their place in the source: a stated index, else the number in the file's name."""
    cameras = {str(f["camera_index"]) for f in frames if "camera_index" in f}
    if len(cameras) > 1:
        raise InputError(
            f"{path}: shows {len(cameras)} cameras, but one is followed; keep the frames of one "
            "camera_index."
        )
    found: Frames = {}
    for frame in frames:
        index = _index(path, frame)
        if index in found:
            raise InputError(
                f"{path}: two frames have the number {index}; give each a timestep_index."
            )
        found[index] = frame
    return found


def _index(path: Path, frame: Mapping[str, Any]) -> int:
    stated = next((frame[key] for key in ID_KEYS if key in frame), None)
    if stated is None:
        digits = re.findall(r"[0-9]+", tf.inside(path, frame.get("file_path")).stem)
        if not digits:
            raise InputError(
                f"{path}: {frame.get('file_path')!r} holds no frame number; give each frame a "
                "timestep_index."
            )
        stated = int(digits[-1][:20])
    return tf.frame_id(path, stated)


def _picture(source: Path, frame: Mapping[str, Any]) -> Path:
    plain = tf.inside(source, frame.get("file_path"))
    for suffix in SUFFIXES:
        path = plain.with_name(plain.name + suffix)
        if path.is_file():
            return path
    raise InputError(f"{plain}: no such picture, but {source.name} names it; restore the file.")


def _masks(source: Path, frames: Frames) -> dict[int, Path]:
    """Masks of the person by frame; frames without one are left out."""
    masks = {}
    for index, frame in frames.items():
        stated = next((frame[key] for key in MASK_KEYS if key in frame), None)
        if stated is None:
            continue
        masks[index] = tf.inside(source, stated)
        if not masks[index].is_file():
            raise InputError(
                f"{masks[index]}: no such mask, but {source.name} names it; restore the file."
            )
    return masks


def _lens(source: Path, content: Mapping[str, Any], frames: Frames, first: Path) -> Lens | None:
    """The lens of all frames; None if the file states no focal length."""
    height, width = read_picture(first).shape[:2]
    lenses = [_one_lens(source, {**content, **f}, width, height) for f in frames.values()]
    if any(lens is None for lens in lenses):
        return None
    known = [lens for lens in lenses if lens is not None]
    for name in ("focal_px", "cx", "cy"):
        values = [getattr(lens, name) for lens in known]
        if max(values) - min(values) > SQUARE * width:
            raise InputError(
                f"{source}: the lens changes ({name} from {min(values):.1f} to {max(values):.1f} "
                "px); footage with one lens is needed."
            )
    return known[0]


def _one_lens(source: Path, table: Mapping[str, Any], width: int, height: int) -> Lens | None:
    """The lens that one frame states, in pixels of the picture as it is on disk."""
    # Files made for another size of the same pictures state the size they mean.
    meant = tf.number(source, table, "w", 1, 1e5) if "w" in table else float(width)
    scale = width / meant
    low, high = 0.1 * meant, 100.0 * meant
    if "fl_x" in table or "fl_y" in table:
        keys = [k for k in ("fl_x", "fl_y") if k in table]
        focal = [tf.number(source, table, k, low, high) for k in keys]
        if max(focal) - min(focal) > SQUARE * max(focal):
            raise InputError(
                f"{source}: fl_x {focal[0]:.1f} and fl_y {focal[1]:.1f} differ; bring the pictures "
                "to square pixels."
            )
        focal_px = sum(focal) / len(focal)
    elif "camera_angle_x" in table:
        angle = tf.number(source, table, "camera_angle_x", 0.01, math.pi - 0.01)
        focal_px = tf.focal_of_angle(angle, meant)
    else:
        return None
    middle = [("cx", width), ("cy", height)]
    cx, cy = (
        tf.number(source, table, k, -n / scale, 2 * n / scale) * scale if k in table else n / 2
        for k, n in middle
    )
    return Lens(focal_px * scale, cx, cy)


def _poses(source: Path, frames: Frames) -> tuple[KnownPoses | None, str]:
    """World -> camera of every frame with OpenCV axes, or why it is not the head's path."""
    if not all("transform_matrix" in f for f in frames.values()):
        return None, "not every frame has a transform_matrix"
    matrices = torch.stack([tf.camera_to_head(source, f, str(i)) for i, f in frames.items()])
    if float((matrices - matrices[0]).abs().max()) < STILL:
        return None, "its camera stands still, as the head's motion is in its face model's files"
    return KnownPoses(torch.tensor(list(frames)), geometry.opengl_to_opencv(matrices)), ""


def _test_from(train: Frames, test: Frames, notes: list[str]) -> int | None:
    """First frame of the test part; None, with a note, where the folder's split cannot be kept."""
    if not train or not test:
        notes.append("The folder states no split; the last 1/11 is the test part.")
        return None
    if max(train) >= min(test):
        notes.append("Its training and test frames are mixed; the last 1/11 is the test part.")
        return None
    return min(test)
