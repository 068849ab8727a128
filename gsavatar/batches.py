"""Training samples of a clip: which frame, at which size, with its masks and its background."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gsavatar.clip import Clip
from gsavatar.hearing import Hearing
from gsavatar.landmarks import LEFT_EYE, RIGHT_EYE, mouth_opening
from gsavatar.losses import Box, RegionMasks, certain_of, feature_box
from gsavatar.render import crop_camera
from gsavatar.types import PROTOCOL_SIZE, Frame, Region, to_device

MOUTH_SHARE = 0.3
"""Share of the draws that pick a mouth opening first: wide-open frames are rare in speech."""
OPENING_BINS = 8
LIDS_SHARE = 0.1
"""Share of the draws that pick shut lids, which a clip shows for a fiftieth of its time."""
LEAST_SHUT = 3
"""Frames of them from which they are picked."""
FULL_BLINK_PERCENTILE, LEAST_BLINK = 99.0, 0.25
"""How far a blink goes in a clip; one that goes less far above rest is none."""
EYE_RIM = 0.01
"""How far the eyes' surroundings reach, over the side of the picture."""
VALIDATION_FRAMES = 12
CACHE_BYTES = 768 << 20
LIP_MARGIN = 0.35
MIN_LIP_BOX = 24


@dataclass(frozen=True)
class Sample:
    """One frame (or a crop of it) ready to train on."""

    frame: Frame
    background: Tensor  # [H, W, 3]
    masks: RegionMasks
    lip_box: Box | None  # top, left, bottom, right in the frame's pixels; None if outside
    feature_box: Box | None  # around lips and eyes, ``losses.feature_box``
    row: int  # of the clip


@dataclass(frozen=True)
class Planes:
    """What is kept of a frame, as bytes."""

    picture: np.ndarray  # [H, W, 3]
    labels: np.ndarray  # [H, W]
    certain: np.ndarray  # [H, W], ``certain_of`` the labels
    eyes: np.ndarray  # [H, W], 1 on eyes and their lids, shut ones too

    def cropped(self, box: Box) -> Planes:
        """The planes of a box (top, left, bottom, right; pixels)."""
        top, left, bottom, right = box
        return Planes(*(plane[top:bottom, left:right] for plane in self._all()))

    def tensors(self) -> tuple[Tensor, ...]:
        """The same planes, contiguous."""
        return tuple(torch.from_numpy(np.ascontiguousarray(plane)) for plane in self._all())

    def _all(self) -> tuple[np.ndarray, ...]:
        return self.picture, self.labels, self.certain, self.eyes


class Batches:
    """Samples of a clip's training part; every random choice comes from the caller's generator.

    With a ``hearing`` the samples' drives hold the sound as well. Pictures go to ``device`` as
    bytes; what is drawn at random is drawn on the CPU, so that it is the same everywhere.
    """

    def __init__(
        self, clip: Clip, size: int, hearing: Hearing | None = None,
        device: torch.device | str = "cpu",
    ) -> None:  # fmt: skip
        self.clip = clip
        self.size = size
        self.device = device
        self.hearing = hearing
        rows = clip.train_rows
        picks = np.linspace(0, len(rows) - 1, VALIDATION_FRAMES + 2).round().astype(int)[1:-1]
        held = np.unique(picks) if len(rows) >= 10 * VALIDATION_FRAMES else picks[:0]
        self._validation_rows = [int(rows[i]) for i in held]
        self._rows = np.delete(rows, held)
        self._plates = [torch.from_numpy(p).float() / 255.0 for p in clip.plates]
        self._bins = _opening_bins(mouth_opening(clip.landmarks.points[self._rows]).numpy())
        self._shut = _lids_shut(clip, self._rows)
        self._backgrounds: dict[tuple[int, int], Tensor] = {}
        self._cache: OrderedDict[tuple[int, int], Planes] = OrderedDict()

    def draw(self, generator: torch.Generator, *, full_size: bool) -> Sample:
        """A random training sample: the whole frame at ``size``, or, with ``full_size``, a crop of
        ``size`` pixels from the full frame around the head."""
        return self.at(self._pick(generator), generator, full_size=full_size)

    @property
    def rows(self) -> np.ndarray:
        """Rows of the clip that may be drawn."""
        return self._rows

    def at(self, row: int, generator: torch.Generator, *, full_size: bool) -> Sample:
        """The sample ``draw`` makes of a row."""
        if not full_size or self.size >= PROTOCOL_SIZE:
            return self._sample(row, self.size, None)
        return self._sample(row, PROTOCOL_SIZE, self._crop(row, generator))

    def box_at(self, row: int, box: Box) -> Sample:
        """A box (top, left, bottom, right) of a row's full frame."""
        return self._sample(row, PROTOCOL_SIZE, box)

    def validation(self) -> Iterator[Sample]:
        """Whole frames of the training part that are never drawn: for choices and the curve."""
        for row in self._validation_rows:
            yield self._sample(row, self.size, None)

    def _pick(self, generator: torch.Generator) -> int:
        def below(limit: int) -> int:
            return int(torch.randint(0, limit, (), generator=generator))

        chance = float(torch.rand((), generator=generator))
        if chance >= 1.0 - LIDS_SHARE and len(self._shut) >= LEAST_SHUT:
            return int(self._rows[self._shut[below(len(self._shut))]])
        if chance < MOUTH_SHARE:
            members = self._bins[below(len(self._bins))]
            return int(self._rows[members[below(len(members))]])
        return int(self._rows[below(len(self._rows))])

    def _crop(self, row: int, generator: torch.Generator) -> Box:
        """A square of ``size`` pixels whose centre lies within the head's box."""
        top, left, bottom, right = self._head_box(row)
        u, v = torch.rand(2, generator=generator).tolist()
        limit = PROTOCOL_SIZE - self.size
        y = int(np.clip(top + v * (bottom - top) - self.size / 2, 0, limit))
        x = int(np.clip(left + u * (right - left) - self.size / 2, 0, limit))
        return y, x, y + self.size, x + self.size

    def _head_box(self, row: int) -> tuple[float, float, float, float]:
        points = self.clip.landmarks.points[row, :, :2]
        (left, top), (right, bottom) = points.amin(0).tolist(), points.amax(0).tolist()
        return top - 0.3 * (bottom - top), left, bottom, right

    def _pictures(self, row: int, size: int) -> Planes:
        """The planes of a row at ``size``; the cache holds what was asked for last."""
        key = (row, size)
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        frame, labels = self.clip.frame(row), self.clip.regions(row)
        if size != PROTOCOL_SIZE:
            frame, labels = resized(frame, labels, size)
        certain = certain_of(torch.from_numpy(labels)).to(torch.uint8)
        points = self.clip.landmarks.points[row, :, :2].numpy() * (size / PROTOCOL_SIZE)
        planes = Planes(frame, labels, certain.numpy(), eyes_of(points, size))
        self._cache[key] = planes
        while len(self._cache) * 6 * size * size > CACHE_BYTES:
            self._cache.popitem(last=False)
        return planes

    def _sample(self, row: int, size: int, crop: Box | None) -> Sample:
        planes = self._pictures(row, size)
        camera = self.clip.camera(row).resized(size, size)
        background = self._background(int(self.clip.track.file_index[row]), size)
        scale = size / PROTOCOL_SIZE
        lips = tuple(v * scale for v in self.clip.lips(row))
        if crop is not None:
            top, left, bottom, right = crop
            planes = planes.cropped(crop)
            background = background[top:bottom, left:right]
            camera = crop_camera(camera, crop)
            lips = (lips[0] - top, lips[1] - left, lips[2] - top, lips[3] - left)
        labels = planes.labels
        picture, regions, certain, eyes = to_device(planes.tensors(), self.device)
        image = picture.float() / 255.0
        frame = self.clip.as_frame(row, image, regions, lips, camera, self._heard(row))
        return Sample(
            to_device(frame, self.device), background, RegionMasks.of(regions, certain, eyes),
            _lip_box(labels, lips), feature_box(labels), row,
        )  # fmt: skip

    def _heard(self, row: int) -> Tensor | None:
        """The sound around a row's instant [L, C]; None where nothing hears it."""
        features = self.clip.features
        if self.hearing is None or features is None:
            return None
        return self.hearing(features, self.clip.time_s[row : row + 1].numpy())[0]

    def _background(self, file: int, size: int) -> Tensor:
        """The plate of a file at a size; kept, for there are few of them."""
        key = (file, size)
        if key not in self._backgrounds:
            plate = self._plates[file].permute(2, 0, 1)[None]
            small = torch.nn.functional.interpolate(plate, size=(size, size), mode="area")
            self._backgrounds[key] = small[0].permute(1, 2, 0).contiguous().to(self.device)
        return self._backgrounds[key]


def _lids_shut(clip: Clip, rows: np.ndarray) -> np.ndarray:
    """Positions in ``rows`` of frames whose lids are down at least half as far as in a blink."""
    lids = [i for i, name in enumerate(clip.track.face.names) if name.startswith("eyeBlink")]
    if not lids or len(rows) == 0:
        return np.zeros(0, np.int64)
    down = clip.track.coefficients[rows][:, lids].mean(1).numpy()
    full = float(np.percentile(down, FULL_BLINK_PERCENTILE))
    rest = float(np.median(down))
    if full - rest < LEAST_BLINK:
        return np.zeros(0, np.int64)
    return np.flatnonzero(down > 0.5 * (rest + full))


def resized(frame: np.ndarray, labels: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """A frame averaged down and its labels sampled at ``size`` pixels."""
    import cv2

    small = cv2.resize(frame, (size, size), interpolation=cv2.INTER_AREA)
    nearest = cv2.resize(labels, (size, size), interpolation=cv2.INTER_NEAREST)
    return small, nearest


def eyes_of(points: np.ndarray, size: int) -> np.ndarray:
    """1 within the lids' landmarks of points [478, 2] and a little around, uint8 [size, size].

    Labels call a shut lid skin, like a cheek.
    """
    import cv2

    plane = np.zeros((size, size), np.uint8)
    for eye in (RIGHT_EYE, LEFT_EYE):
        outline = cv2.convexHull(points[list(eye)].astype(np.float32))
        cv2.fillConvexPoly(plane, outline.astype(np.int32), 1)
    reach = max(1, round(EYE_RIM * size))
    return np.asarray(cv2.dilate(plane, np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)))


def _opening_bins(opening: np.ndarray) -> list[np.ndarray]:
    """Positions of the frames in equal ranges of mouth opening; empty ranges are left out."""
    low, high = np.percentile(opening, [1, 99])
    level = np.clip((opening - low) / max(high - low, 1e-6) * OPENING_BINS, 0, OPENING_BINS - 1)
    bins = [np.flatnonzero(level.astype(int) == b) for b in range(OPENING_BINS)]
    return [b for b in bins if len(b)]


def _lip_box(labels: np.ndarray, lips: tuple[float, ...]) -> Box | None:
    """The lips' box grown by a margin and squared, inside the picture of ``labels`` [H, W]; None
    if they are outside it."""
    top, left, bottom, right = lips
    side = max(bottom - top, right - left) * (1 + 2 * LIP_MARGIN)
    side = int(max(side, MIN_LIP_BOX))
    y, x = int((top + bottom - side) / 2), int((left + right - side) / 2)
    height, width = labels.shape
    if y < 0 or x < 0 or y + side > height or x + side > width:
        return None
    if not ((labels == Region.LIPS) | (labels == Region.INNER_MOUTH)).any():
        return None
    return y, x, y + side, x + side
