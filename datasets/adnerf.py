"""Folders prepared for AD-NeRF and its family: RAD-NeRF, ER-NeRF, TalkingGaussian and others.

``ori_imgs/ID.jpg`` and ``ID.lms``, ``bc.jpg``, ``aud.wav``, ``transforms_train.json`` and
``transforms_val.json`` (``focal_len``, ``cx``, ``cy``, and per frame ``img_id`` and a
camera-to-head ``transform_matrix`` with OpenGL axes). 25 frames a second. ``track_params.pt`` is a
pickle with nothing that the JSON files lack, so it is never opened.
"""

from __future__ import annotations

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
TRAIN, VAL = "transforms_train.json", "transforms_val.json"
PICTURES, REPAINTED = "ori_imgs", "gt_imgs"
SUFFIXES = (".jpg", ".jpeg", ".png")
PLATE, SOUND = "bc.jpg", "aud.wav"
OWN = "gsavatar"
"""Key under which ``export_adnerf`` says that head frame and unit are this project's."""


def recognises(path: Path) -> bool:
    """Whether a folder has the layout's folder of pictures."""
    return any((path / name).is_dir() for name in (PICTURES, REPAINTED))


def read(path: Path) -> PictureFolder:
    """A prepared folder as footage. Raises ``InputError`` if it lacks something or is damaged."""
    notes = []
    pictures = _numbered(path / PICTURES, SUFFIXES)
    if not pictures:
        pictures = _numbered(path / REPAINTED, SUFFIXES)
        notes.append(f"{PICTURES} holds no pictures: {REPAINTED}, coded once more, are used.")
    if not pictures:
        raise InputError(
            f"{path}: {PICTURES} holds no picture named by its number, such as 0.jpg; prepare the "
            "folder again, or give the video itself."
        )
    parts = {name: tf.load(path / name) for name in (TRAIN, VAL)}
    train, val = ([(_id(path / n, f), f) for f in c["frames"]] for n, c in parts.items())
    fps = FPS
    if "fps" in parts[TRAIN]:
        fps = tf.number(path / TRAIN, parts[TRAIN], "fps", 1, 240)
    renamed = _true_ids(path, [i for i, _ in train + val])
    if renamed:
        notes.append(
            f"Its poses were numbered without the {len(pictures) - len(renamed)} frames that have "
            "no landmarks; they are put back to their pictures."
        )
    if not (path / SOUND).is_file():
        notes.append(f"The folder holds no {SOUND}.")
    return PictureFolder(
        path=path,
        pictures=pictures,
        fps=fps,
        sound_path=path / SOUND if (path / SOUND).is_file() else None,
        lens=_lens(path / TRAIN, parts[TRAIN], next(iter(pictures.values()))),
        poses=_poses(path / TRAIN, parts[TRAIN], train + val, renamed),
        plate_path=path / PLATE if (path / PLATE).is_file() else None,
        test_from_id=_test_from(train, val, renamed, notes),
        notes=tuple(notes),
    )


def _numbered(folder: Path, suffixes: tuple[str, ...]) -> dict[int, Path]:
    """Files of a folder whose names are numbers, by that number, ascending."""
    if not folder.is_dir():
        return {}
    found: dict[int, Path] = {}
    for path in folder.iterdir():
        stem = path.stem
        if path.suffix.lower() in suffixes and stem.isascii() and stem.isdecimal():
            number = tf.frame_id(path, int(stem[:20]))
            if number in found:
                raise InputError(f"{path} and {found[number].name} are one frame; delete one.")
            found[number] = path
    return dict(sorted(found.items()))


def _id(path: Path, frame: Mapping[str, Any]) -> int:
    return tf.frame_id(path, frame.get("img_id"))


def _true_ids(path: Path, ids: list[int]) -> dict[int, int]:
    """Picture of each pose where the folder's tool counted only the frames with landmarks.

    The family's tracker drops frames without landmarks, and several of its tools then number what
    is left from 0: pose and picture go apart from the first such frame on. Empty where ids agree.
    """
    seen = list(_numbered(path / PICTURES, (".lms",)))
    counted = sorted(ids) == list(range(len(ids)))
    if not counted or len(seen) != len(ids) or seen == list(range(len(seen))):
        return {}
    return dict(enumerate(seen))


def _lens(path: Path, content: Mapping[str, Any], first: Path) -> Lens:
    height, width = read_picture(first).shape[:2]
    focal = tf.number(path, content, "focal_len", 0.1 * width, 100.0 * width)
    stated = [("cx", width), ("cy", height)]
    cx, cy = (tf.number(path, content, k, -n, 2 * n) if k in content else n / 2 for k, n in stated)
    return Lens(focal, cx, cy)


def _poses(
    path: Path, content: Mapping[str, Any], frames: list[tuple[int, dict[str, Any]]],
    renamed: Mapping[int, int],
) -> KnownPoses:  # fmt: skip
    """Head -> camera of every stated frame, with OpenCV axes."""
    by_id: dict[int, Any] = {}
    for index, frame in frames:
        by_id[renamed.get(index, index)] = tf.camera_to_head(path, frame, str(index))
    if not by_id:
        raise InputError(f"{path}: states no frame; prepare the folder again.")
    ids = sorted(by_id)
    head_to_cam = geometry.opengl_to_opencv(torch.stack([by_id[i] for i in ids]))
    return KnownPoses(torch.tensor(ids), head_to_cam, _room(path, content))


def _room(path: Path, content: Mapping[str, Any]) -> torch.Tensor | None:
    """The room of a folder that ``export_adnerf`` wrote; None for those of others."""
    own = content.get(OWN)
    if own is None:
        return None
    if not isinstance(own, dict) or own.get("version") != 1:
        raise InputError(f"{path}: its entry {OWN!r} is not of version 1; export the folder again.")
    return geometry.opengl_to_opencv(tf.camera_to_head(path, own, "of the room"))


def _test_from(
    train: list[tuple[int, Any]], val: list[tuple[int, Any]], renamed: Mapping[int, int],
    notes: list[str],
) -> int | None:  # fmt: skip
    """First frame of the test part; None, with a note, where the two parts are mixed."""
    if not train or not val:
        notes.append("The folder states no split; the last 1/11 is the test part.")
        return None
    first = min(i for i, _ in val)
    if max(i for i, _ in train) >= first:
        notes.append("Its training and test frames are mixed; the last 1/11 is the test part.")
        return None
    return renamed.get(first, first)
