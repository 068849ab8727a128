"""Which of the known layouts a folder has, and its content as footage."""

from __future__ import annotations

from pathlib import Path

from gsavatar.datasets import adnerf, transforms
from gsavatar.errors import InputError
from gsavatar.footage import PictureFolder

LAYOUTS = (adnerf, transforms)
"""Asked in this order: AD-NeRF's folders hold files named like those of the other layout."""


def read_folder(path: Path) -> PictureFolder:
    """The footage in a folder that another project prepared.

    Raises ``InputError`` if the folder has none of the known layouts or is damaged.
    """
    for layout in LAYOUTS:
        if layout.recognises(path):
            return layout.read(path)
    raise InputError(
        f"{path}: is a folder that is neither AD-NeRF's (ori_imgs, transforms_train.json) nor "
        "NeRF's (transforms.json); name the video files themselves."
    )
