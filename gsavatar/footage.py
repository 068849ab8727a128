"""What a clip is made from: a video file, or a folder of pictures that another project prepared.

Both give upright pictures with their ids and times, and the sound on the same clock. A folder may
know more: the lens, the head's path, a background, a test part. Who wrote such a folder, and how,
is the business of ``gsavatar.datasets``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gsavatar import audio, video
from gsavatar.errors import InputError
from gsavatar.frames import decode_png
from gsavatar.types import PROTOCOL_SIZE, KnownPoses
from gsavatar.video_colour import turned

UInt8 = NDArray[np.uint8]
Float = NDArray[np.float32]
Box = tuple[float, float, float, float]

WHITE = 255.0
"""What shows through transparent pictures: what the tools that write them take as background."""
TRANSPARENT_SUFFIXES = (".png", ".webp")


class Footage(Protocol):
    """Pictures with ids and times, and their sound."""

    @property
    def path(self) -> Path:
        """The file or folder, to be named to the user."""

    def probe(self) -> video.VideoInfo:
        """Size, rate and length; ``frames`` is one past the largest id."""

    def decode(self) -> Iterator[tuple[int, float, UInt8]]:
        """Id, time in seconds and upright RGB of every picture, in time order."""

    def glimpses(self, every_s: float) -> Iterator[tuple[int, float, UInt8 | None]]:
        """As ``decode``, with None for pictures that follow one by less than ``every_s``."""

    def sound(self) -> Float | None:
        """Sound at 16 kHz that starts at time 0; None if there is none."""


@dataclass(frozen=True)
class VideoFile:
    """A video as footage; ids count its frames."""

    path: Path
    quarters: int = 0
    """Clockwise quarter turns that set its pictures upright after what the file says of them."""

    def probe(self) -> video.VideoInfo:
        """See ``video.probe``."""
        info = video.probe(self.path)
        if self.quarters % 2:
            info = replace(info, width=info.height, height=info.width)
        return replace(info, rotation=(info.rotation + 90 * self.quarters) % 360)

    def decode(self) -> Iterator[tuple[int, float, UInt8]]:
        """See ``video.decode``."""
        for index, time_s, picture in video.decode(self.path):
            yield index, time_s, turned(picture, self.quarters)

    def glimpses(self, every_s: float) -> Iterator[tuple[int, float, UInt8 | None]]:
        """See ``video.glimpses``."""
        for index, time_s, picture in video.glimpses(self.path, every_s):
            yield index, time_s, None if picture is None else turned(picture, self.quarters)

    def pictures_at(self, times_s: Sequence[float]) -> Iterator[tuple[float, UInt8]]:
        """See ``video.pictures_at``."""
        for time_s, picture in video.pictures_at(self.path, times_s):
            yield time_s, turned(picture, self.quarters)

    def sound(self) -> Float | None:
        """The sound of the file, or None without an audio track or with nothing in it."""
        sound = audio.sound_of_video(self.path) if self.probe().has_audio else None
        return None if sound is None else sound[:]


@dataclass(frozen=True)
class Lens:
    """A known pinhole, in pixels of the pictures; the corner of the picture is (0, 0)."""

    focal_px: float
    cx: float
    cy: float

    def cropped(self, box: Box, size: int = PROTOCOL_SIZE) -> Lens:
        """The same lens in pixels of a square crop (top, left, bottom, right) of ``size``."""
        top, left, bottom, _ = box
        scale = size / (bottom - top)
        return Lens(self.focal_px * scale, (self.cx - left) * scale, (self.cy - top) * scale)


@dataclass(frozen=True)
class PictureFolder:
    """Pictures of one person that another project prepared, and what it knew about them.

    A picture of id i stands at i / ``fps`` seconds; ids may have gaps and are kept for ever.
    """

    path: Path
    pictures: Mapping[int, Path]  # by id, ascending
    fps: float
    sound_path: Path | None = None
    lens: Lens | None = None
    poses: KnownPoses | None = None
    without_poses: str = "it states none"  # why ``poses`` is None
    masks: Mapping[int, Path] = field(default_factory=dict)  # the person white, by id
    plate_path: Path | None = None
    test_from_id: int | None = None
    notes: tuple[str, ...] = ()

    def probe(self) -> video.VideoInfo:
        """Size of the first picture, which all others share; the length up to the last id."""
        height, width = self._first().shape[:2]
        frames = max(self.pictures) + 1
        has_audio = self.sound_path is not None
        return video.VideoInfo(width, height, self.fps, frames / self.fps, frames, has_audio, 0)

    def _first(self) -> UInt8:
        return read_picture(next(iter(self.pictures.values())))

    def decode(self) -> Iterator[tuple[int, float, UInt8]]:
        """Every picture by its id. Raises ``InputError`` where one is unreadable or differs."""
        shape: tuple[int, ...] | None = None
        for index, path in self.pictures.items():
            picture = read_picture(path)
            if shape is not None and picture.shape != shape:
                raise InputError(
                    f"{path}: {picture.shape[1]} x {picture.shape[0]} px but the pictures before "
                    f"it have {shape[1]} x {shape[0]}; all must have one size."
                )
            shape = picture.shape
            yield index, index / self.fps, picture

    def glimpses(self, every_s: float) -> Iterator[tuple[int, float, UInt8 | None]]:
        """As ``Footage.glimpses``; every picture is read and compared with the ones before."""
        due_s = 0.0
        for index, time_s, picture in self.decode():
            due = time_s + 1e-6 >= due_s
            due_s = time_s + every_s if due else due_s
            yield index, time_s, picture if due else None

    def sound(self) -> Float | None:
        """The folder's sound file, or None without one."""
        return None if self.sound_path is None else audio.load(self.sound_path)

    def mask(self, index: int) -> UInt8 | None:
        """The person of a picture, uint8 [H, W] with 255 inside, by the folder's mask or else the
        picture's own transparency; None if there is neither."""
        if index in self.masks:
            mask = _decoded(self.masks[index])
            return mask if mask.ndim == 2 else np.ascontiguousarray(mask[..., 0])
        path = self.pictures[index]
        if path.suffix.lower() not in TRANSPARENT_SUFFIXES:
            return None
        pixels = _decoded(path)
        if pixels.ndim == 2 or pixels.shape[2] == 3:
            return None
        return np.ascontiguousarray(pixels[..., 3])

    def plate(self) -> UInt8 | None:
        """The background as a whole picture, uint8 [H, W, 3]; None if the folder has none."""
        if self.plate_path is None:
            return None
        plate, first = read_picture(self.plate_path), self._first()
        if plate.shape != first.shape:
            raise InputError(
                f"{self.plate_path}: {plate.shape[1]} x {plate.shape[0]} px but the pictures have "
                f"{first.shape[1]} x {first.shape[0]}; delete it to have a background made."
            )
        return plate


def as_footage(source: Path | Footage) -> Footage:
    """A path as the video file it means; footage as it is."""
    return VideoFile(source) if isinstance(source, Path) else source


def the_folder(sources: Sequence[Footage]) -> PictureFolder | None:
    """The prepared folder among the sources; None for video files.

    Raises ``InputError`` if there is other footage beside it: one lens and one path rule the fit.
    """
    folders = [s for s in sources if isinstance(s, PictureFolder)]
    if folders and len(sources) > 1:
        raise InputError(
            f"{folders[0].path}: a prepared folder must be the only input; fit it alone."
        )
    return folders[0] if folders else None


def read_picture(path: Path) -> UInt8:
    """uint8 RGB [H, W, 3] of a picture file, over white where it is transparent.

    Raises ``InputError`` if the file is missing or no picture.
    """
    pixels = _decoded(path)
    if pixels.ndim == 2:
        return np.repeat(pixels[..., None], 3, axis=2)
    if pixels.shape[2] == 3:
        return pixels
    alpha = pixels[..., 3:] / np.float32(255.0)
    return np.asarray(pixels[..., :3] * alpha + WHITE * (1 - alpha) + 0.5, np.uint8)


def _decoded(path: Path) -> UInt8:
    """The pixels of a picture file at 8 bits, [H, W] or [H, W, 3 or 4]."""
    try:
        pixels = decode_png(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); restore the file.") from None
    except ValueError:
        raise InputError(f"{path}: is not a picture that can be read; restore the file.") from None
    return pixels


def sounds_of(sources: Sequence[Footage], durations_s: Sequence[float]) -> list[Float] | None:
    """Sound of each source, padded or cut to its picture's length; None if none has any."""
    parts: list[Float] = []
    heard = False
    for source, duration_s in zip(sources, durations_s, strict=True):
        length = round(duration_s * audio.SAMPLE_RATE)
        part = source.sound()
        if part is None:
            part = np.zeros(0, np.float32)
        else:
            heard = heard or not audio.is_silent(part)
        parts.append(np.pad(part[:length], (0, max(0, length - len(part)))))
    return parts if heard else None
