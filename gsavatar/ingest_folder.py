"""What ingestion takes from a folder that another project prepared, brought to the crop."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gsavatar import crop
from gsavatar.clip import split_rows
from gsavatar.errors import InputError
from gsavatar.footage import Footage, PictureFolder, the_folder
from gsavatar.frames import UInt8
from gsavatar.sequence import Sequence
from gsavatar.types import PROTOCOL_SIZE, KnownPoses

MIN_TRAIN_FRAMES, MIN_TEST_FRAMES = 10, 5
"""A folder's split is kept if it leaves so many frames with a face."""


def known_poses(footage: SequenceOf[Footage], wanted: str) -> KnownPoses | None:
    """The head's path that the user wants taken from the folder; None to ``track`` it.

    Raises ``InputError`` if a folder's path is wanted and there is none.
    """
    if wanted != "folder":
        return None
    folder = the_folder(footage)
    why = "a video brings none" if folder is None else folder.without_poses
    if folder is None or folder.poses is None:
        raise InputError(
            f"{footage[0].path}: no poses can be taken from it ({why}); leave --poses folder away "
            "to have the head tracked."
        )
    return folder.poses


def lens(
    folder: PictureFolder | None, sources: SequenceOf[dict[str, Any]]
) -> tuple[float | None, tuple[float, float] | None]:
    """Focal length and principal point in protocol pixels, each None where it is not known.

    A folder states both. Of videos only the middle of the uncropped picture is known, and that
    only if the files agree in it.
    """
    if folder is not None and folder.lens is not None:
        cropped = folder.lens.cropped(tuple(sources[0]["crop"]))
        return cropped.focal_px, (cropped.cx, cropped.cy)
    points = set()
    for source in sources:
        top, left, bottom, _ = source["crop"]
        scale = PROTOCOL_SIZE / (bottom - top)
        x, y = (source["width"] / 2 - left) * scale, (source["height"] / 2 - top) * scale
        points.add((round(x, 3), round(y, 3)))
    return None, points.pop() if len(points) == 1 else None


def about(folder: PictureFolder, poses: str, focal_px: float | None) -> list[str]:
    """What the report says of a folder, given what the user said of poses and focal length."""
    notes = list(folder.notes)
    if folder.lens is not None and not focal_px:
        notes.append(f"The focal length is the folder's: {folder.lens.focal_px:.0f} px.")
    if poses == "folder":
        notes.append("The head's path is the folder's own; expressions are fitted to it.")
    return notes


def test_part(folder: PictureFolder, sequence: Sequence) -> tuple[float | None, list[str]]:
    """When the folder's test part begins in seconds, and what the report says of it.

    None, and so this project's own split, if the folder states no split or one that leaves too few
    frames with a face.
    """
    if folder.test_from_id is None:
        return None, []
    start_s = folder.test_from_id / folder.fps
    rows = np.flatnonzero(sequence.landmarks.found.numpy())
    train, test = split_rows(sequence.time_s[rows], rows, start_s)
    if len(train) >= MIN_TRAIN_FRAMES and len(test) >= MIN_TEST_FRAMES:
        return start_s, [f"The test part is the folder's, from frame {folder.test_from_id} on."]
    return None, [
        f"The folder's split leaves {len(train)} training and {len(test)} test frames, which is "
        "too few; the last 1/11 is the test part instead."
    ]


def person(folder: PictureFolder | None, box: crop.Box, index: int) -> NDArray[np.float32] | None:
    """The folder's mask of a picture in the crop [512, 512], 0-1; None if it has none."""
    mask = None if folder is None else folder.mask(index)
    if mask is None:
        return None
    return crop.apply_crop(mask, box, PROTOCOL_SIZE).astype(np.float32) / np.float32(255.0)


def plate(folder: PictureFolder | None, box: crop.Box) -> tuple[UInt8, float] | None:
    """The folder's background in the crop [512, 512, 3], of which no pixel counts as unseen.

    None if it has none.
    """
    given = None if folder is None else folder.plate()
    return None if given is None else (crop.apply_crop(given, box, PROTOCOL_SIZE), 0.0)
