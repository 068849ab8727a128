"""Pictures of a clip on disk: one append-only file per plane, read one picture at a time.

``raw`` shards hold uint8 pictures one after another. Above ``RAW_LIMIT`` bytes a shard is
``coded``: every picture is a lossless PNG of its own, so any one of them can be read alone.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gsavatar.errors import InputError

RAW_LIMIT = 2 << 30
"""Largest raw shard in bytes; more frames than fit are stored coded."""
SPARE_BYTES = 200 << 20
"""Room for labels, sound and a small avatar."""

UInt8 = NDArray[np.uint8]


class FrameWriter:
    """Writes pictures of one shape to ``path``; nothing is visible there until ``close``.

    ``path`` gets the pictures and ``path.json`` their index, both moved into place at the end.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], *, coded: bool) -> None:
        self.path = path
        self.shape = shape
        self.coded = coded
        self._offsets = [0]
        self._partial = path.with_name(path.name + ".partial")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._partial.open("wb")

    def append(self, picture: UInt8) -> None:
        """Adds one picture. Raises ``ValueError`` if its shape is not the shard's."""
        if picture.shape != self.shape or picture.dtype != np.uint8:
            raise ValueError(f"expected uint8 {self.shape}, got {picture.dtype} {picture.shape}")
        data = encode_png(picture) if self.coded else np.ascontiguousarray(picture).tobytes()
        self._file.write(data)
        self._offsets.append(self._offsets[-1] + len(data))

    def close(self) -> None:
        """Moves the finished shard into place."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        index = {
            "shape": list(self.shape),
            "coded": self.coded,
            "count": len(self._offsets) - 1,
            "offsets": self._offsets if self.coded else [],
        }
        os.replace(self._partial, self.path)
        write_text_atomic(index_path(self.path), json.dumps(index))

    def __enter__(self) -> FrameWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
            return
        self._file.close()
        self._partial.unlink(missing_ok=True)


def check_room(folder: Path, frames: int, shape: tuple[int, ...]) -> None:
    """Raises ``InputError`` if the disk of a folder has no room for a shard of so many pictures.

    Of coded pictures half their size is reckoned, which few exceed.
    """
    size = frames * int(np.prod(shape))
    needed = (size if size <= RAW_LIMIT else size // 2) + SPARE_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(
            f"{folder}: {frames} pictures need {needed / 1e9:.1f} GB and its disk has "
            f"{free / 1e9:.1f} GB left; make room, or choose a folder on another disk."
        )


class FrameStore:
    """Pictures written by ``FrameWriter``: ``store[i]`` is uint8 of the shard's shape.

    Raises ``InputError`` when the shard is missing or does not match its index.
    """

    def __init__(self, path: Path) -> None:
        try:
            index = json.loads(index_path(path).read_text())
            size = path.stat().st_size
        except (OSError, ValueError) as error:
            raise InputError(
                f"{path}: the stored frames cannot be read ({error}); delete the folder "
                f"{path.parent} and run the fit again."
            ) from None
        self.shape: tuple[int, ...] = tuple(index["shape"])
        self.coded: bool = index["coded"]
        self._count: int = index["count"]
        self._offsets: list[int] = index["offsets"]
        expected = self._offsets[-1] if self.coded else self._count * int(np.prod(self.shape))
        self._path = path
        if size != expected:
            raise InputError(
                f"{path}: {size} bytes but its index says {expected}; delete the "
                f"folder {path.parent} and run the fit again."
            )

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, i: int) -> UInt8:
        if not 0 <= i < self._count:
            raise IndexError(f"picture {i} of {self._count}")
        if self.coded:
            return decode_png(self._read(self._offsets[i], self._offsets[i + 1]))
        size = int(np.prod(self.shape))
        return self._read(i * size, (i + 1) * size).reshape(self.shape)

    def _read(self, start: int, end: int) -> UInt8:
        """Bytes of the shard; read, not mapped, so that no page of it counts as our memory."""
        return np.fromfile(self._path, dtype=np.uint8, count=end - start, offset=start)


def index_path(path: Path) -> Path:
    """Where the index of a shard lies."""
    return path.with_name(path.name + ".json")


def encode_png(picture: UInt8) -> bytes:
    """A lossless PNG of a grey [H, W] or RGB(A) [H, W, 3|4] picture."""
    import cv2

    order = {2: picture, 3: picture[..., ::-1]}[picture.ndim]
    if picture.ndim == 3 and picture.shape[2] == 4:
        order = picture[..., [2, 1, 0, 3]]
    options = [
        cv2.IMWRITE_PNG_COMPRESSION,
        1,
        cv2.IMWRITE_PNG_STRATEGY,
        cv2.IMWRITE_PNG_STRATEGY_RLE,
    ]
    if hasattr(cv2, "IMWRITE_PNG_FILTER"):  # OpenCV 4.12; one filter, not the best of five a row
        options += [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP]
    done, data = cv2.imencode(".png", order, options)
    if not done:
        raise ValueError(f"cannot code a picture of shape {picture.shape}")
    return data.tobytes()


def encode_jpg(picture: UInt8, quality: int = 96) -> bytes:
    """A JPEG of an RGB [H, W, 3] picture, its colours at full resolution."""
    import cv2

    options = [cv2.IMWRITE_JPEG_QUALITY, quality]
    options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    done, data = cv2.imencode(".jpg", picture[..., ::-1], options)
    if not done:
        raise ValueError(f"cannot code a picture of shape {picture.shape}")
    return data.tobytes()


def decode_png(data: UInt8 | bytes) -> UInt8:
    """The picture of ``encode_png``, or of another picture file at 8 bits, as it is stored.

    Raises ``ValueError`` on anything else.
    """
    import cv2

    try:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:  # nothing in it, or larger than any picture
        picture = None
    if picture is None:
        raise ValueError("not a picture")
    if picture.dtype == np.uint16:
        picture = (np.asarray(picture, np.uint16) >> 8).astype(np.uint8)
    if picture.dtype != np.uint8:
        raise ValueError(f"a picture of {picture.dtype}")
    if picture.ndim == 2:
        return np.asarray(picture, np.uint8)
    order = [2, 1, 0] if picture.shape[2] == 3 else [2, 1, 0, 3]
    return np.ascontiguousarray(picture[..., order])


def read_notes(path: Path) -> dict[str, Any]:
    """What an earlier call noted as a JSON object. Raises ``InputError`` if it cannot be read."""
    try:
        found = json.loads(path.read_text())
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise InputError(f"{path}: damaged; delete it and continue with --resume.")
    return found


def write_text_atomic(path: Path, text: str) -> None:
    """Replaces ``path`` by ``text`` in one step, so that a reader sees the old or the new."""
    write_bytes_atomic(path, text.encode())


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """Replaces ``path`` by ``data`` in one step, so that a reader sees the old or the new."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def write_tensors_atomic(path: Path, tensors: Mapping[str, Tensor], info: str = "") -> None:
    """Replaces ``path`` by a safetensors file in one step, with ``info`` as its metadata.

    Straight to the disk: as bytes the tensors would be in memory three times.
    """
    from safetensors.torch import save_file

    partial = path.with_name(path.name + ".partial")
    own = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(own, partial, {"info": info} if info else None)
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)
