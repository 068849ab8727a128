"""Which pixel shows what: the person's matte, the landmarks' contours, the colour of the skin."""

from __future__ import annotations

import logging
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gsavatar import assets
from gsavatar.errors import InputError
from gsavatar.landmarks import (
    CHIN,
    FACE_OVAL,
    FACE_TOP,
    INNER_LIPS,
    JAW_LINE,
    LEFT_EYE,
    OUTER_LIPS,
    RIGHT_EYE,
    quiet_stderr,
)
from gsavatar.types import Region

log = logging.getLogger("gsavatar")

Float = NDArray[np.float32]
UInt8 = NDArray[np.uint8]

FOREGROUND = 0.5
SKIN_DISTANCE = 3.0
"""Colours within this many deviations of the face's own are skin."""
CHROMA_FLOOR, LUMA_FLOOR = 4.0, 18.0
"""Least deviation of the skin's colour, in 8-bit units: light and shade are wider than noise."""
LUMA_WEIGHT, SHADED_WEIGHT = 1.6, 4.0
"""How much wider luma may spread on the head, and under the chin's shadow."""
FOREHEAD = 0.25
"""How far above the landmarks skin may reach, over the face's height."""
NECK_WIDTH = 0.62
"""Half width of the neck's possible zone over the face's width."""
NECK_DEPTH = 0.75
"""How far below the chin skin still counts as neck, over the face's height."""


class PersonMatte:
    """Share of each pixel that is the person, by MediaPipe's selfie model; a context manager.

    Where the model cannot be had a plain outline around the face stands in, with a logged warning.
    """

    def __init__(self) -> None:
        self._segmenter: Any = None

    def __enter__(self) -> PersonMatte:
        try:
            model = assets.resolve("selfie_segmentation")
        except InputError as error:
            log.warning("the person's outline is only guessed: %s", error)
            return self
        import mediapipe as mp
        from mediapipe.tasks.python import BaseOptions, vision

        self._mp = mp
        options = vision.ImageSegmenterOptions(
            base_options=BaseOptions(model_asset_path=str(model)),
            output_confidence_masks=True,
            output_category_mask=False,
        )
        with quiet_stderr():
            self._segmenter = vision.ImageSegmenter.create_from_options(options)
            self.matte(np.zeros((64, 64, 3), np.uint8))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        if self._segmenter is not None:
            self._segmenter.close()

    def matte(self, picture: UInt8) -> Float | None:
        """Matte [H, W] of an RGB picture, 0-1; None without the model."""
        if self._segmenter is None:
            return None
        image = self._mp.Image(
            image_format=self._mp.ImageFormat.SRGB, data=np.ascontiguousarray(picture)
        )
        masks = self._segmenter.segment(image).confidence_masks
        return np.array(masks[-1].numpy_view(), np.float32).reshape(picture.shape[:2])


def label_plane(picture: UInt8, matte: Float | None, points: Float) -> UInt8:
    """Regions, uint8 [H, W], of an RGB picture whose face landmarks [478, 2 or 3] are known.

    Above the jaw the person is skin where the colour is the face's own and hair elsewhere; below
    it, skin near the chin is neck and the rest torso.
    """
    import cv2

    height, width = picture.shape[:2]
    points = points[:, :2]

    def filled(ids: tuple[int, ...]) -> NDArray[np.bool_]:
        mask = np.zeros((height, width), np.uint8)
        cv2.fillPoly(mask, [np.round(points[list(ids)] * 8).astype(np.int32)], 1, shift=3)
        return mask > 0

    face = filled(FACE_OVAL)
    person = _outline(points, (height, width)) if matte is None else matte > FOREGROUND
    person = person | face
    sample = _clean_skin(points, (height, width))
    luma, chroma = _skin_distance(picture, sample)
    skin = _skin_colored(luma, chroma, LUMA_WEIGHT)
    shaded = _skin_colored(luma, chroma, SHADED_WEIGHT)
    x, y = np.arange(width)[None], np.arange(height)[:, None]
    above = y < _jaw_height(points, width)[None]

    labels = np.full((height, width), int(Region.BACKGROUND), np.uint8)
    labels[person & above] = int(Region.HAIR)
    tall = points[CHIN, 1] - points[FACE_TOP, 1]
    forehead = points[FACE_TOP, 1] - FOREHEAD * tall
    labels[person & above & skin & (y > forehead)] = int(Region.SKIN)
    labels[person & ~above] = int(Region.TORSO)
    wide = np.ptp(points[list(FACE_OVAL), 0])
    near_chin = (np.abs(x - points[CHIN, 0]) < NECK_WIDTH * wide) & (
        y < points[CHIN, 1] + NECK_DEPTH * tall
    )
    labels[person & ~above & shaded & near_chin] = int(Region.NECK)
    labels = np.asarray(cv2.medianBlur(labels, 7), np.uint8)
    labels[face & ~_hair_over_face(picture, skin, points)] = int(Region.SKIN)
    for ids, region in (
        (LEFT_EYE, Region.EYES), (RIGHT_EYE, Region.EYES), (OUTER_LIPS, Region.LIPS),
        (INNER_LIPS, Region.INNER_MOUTH),
    ):  # fmt: skip
        labels[filled(ids)] = int(region)
    return _closed_mouth(labels, points)


def _closed_mouth(labels: UInt8, points: Float) -> UInt8:
    """Labels without an inside of the mouth where the lips meet (a line of pixels is lips)."""
    gap = float(np.linalg.norm(points[13] - points[14]))
    if gap < 1.0:
        labels[labels == int(Region.INNER_MOUTH)] = int(Region.LIPS)
    return labels


def _outline(points: Float, size: tuple[int, int]) -> NDArray[np.bool_]:
    """A rough person around a face: an ellipse for the head, a trapezium for the shoulders."""
    import cv2

    mask = np.zeros(size, np.uint8)
    tall = float(points[CHIN, 1] - points[FACE_TOP, 1])
    x, y = points[list(FACE_OVAL)].mean(0)
    cv2.ellipse(mask, ((float(x), float(y) - 0.08 * tall), (1.1 * tall, 1.5 * tall), 0.0), 1, -1)
    top, low = points[CHIN, 1] + 0.15 * tall, float(size[0])
    corners = [
        [x - 0.35 * tall, top],
        [x + 0.35 * tall, top],
        [x + 1.3 * tall, low],
        [x - 1.3 * tall, low],
    ]
    cv2.fillPoly(mask, [np.array(corners, np.int32)], 1)
    return mask > 0


def _clean_skin(points: Float, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Cheeks, nose and forehead: where the skin's colour is learned."""
    import cv2

    mask = np.zeros(size, np.uint8)
    for ids in ((50, 205, 36, 117), (280, 425, 266, 346), (9, 107, 151, 336), (4, 5, 195, 197, 6)):
        cv2.fillPoly(mask, [cv2.convexHull(points[list(ids)].astype(np.int32))], 1)
    return mask > 0


def _skin_distance(picture: UInt8, sample: NDArray[np.bool_]) -> tuple[Float, Float]:
    """How far each colour is from the sample's in deviations: in luma, and in chroma; [H, W] each.

    Judged at half the size, which is both faster and calmer.
    """
    import cv2

    height, width = sample.shape
    half = (max(1, width // 2), max(1, height // 2))
    small = cv2.GaussianBlur(cv2.resize(picture, half, interpolation=cv2.INTER_AREA), (0, 0), 0.8)
    own = cv2.resize(sample.astype(np.uint8), half, interpolation=cv2.INTER_NEAREST) > 0
    color = cv2.cvtColor(small, cv2.COLOR_RGB2YCrCb).astype(np.float32)
    if not own.any():
        far = np.full((height, width), np.inf, np.float32)
        return far, far
    spread = np.maximum(color[own].std(0), (LUMA_FLOOR, CHROMA_FLOOR, CHROMA_FLOOR))
    away = (color - np.median(color[own], axis=0)) / spread.astype(np.float32)
    luma = np.abs(away[..., 0]).astype(np.float32)
    chroma = np.hypot(away[..., 1], away[..., 2]).astype(np.float32)
    full = (width, height)
    return cv2.resize(luma, full), cv2.resize(chroma, full)


def _skin_colored(luma: Float, chroma: Float, luma_width: float) -> NDArray[np.bool_]:
    """Pixels within the skin's spread, where luma may spread ``luma_width`` times as far."""
    return np.square(luma / luma_width) + np.square(chroma) < SKIN_DISTANCE**2


def _jaw_height(points: Float, width: int) -> Float:
    """Row of the jaw in every column; beside the face, the height of the ears' lobes."""
    jaw = points[list(JAW_LINE)]
    order = np.argsort(jaw[:, 0], kind="stable")
    xs, ys = jaw[order, 0], jaw[order, 1]
    tall = float(points[CHIN, 1] - points[FACE_TOP, 1])
    left, right = ys[0] + 0.25 * tall, ys[-1] + 0.25 * tall
    return np.interp(np.arange(width), xs, np.maximum(ys, 0), left=left, right=right).astype(
        np.float32
    )


def _hair_over_face(picture: UInt8, skin: NDArray[np.bool_], points: Float) -> NDArray[np.bool_]:
    """Fringe: the part of the oval above the brows that is darker than skin and not its colour."""
    brow = min(float(points[i, 1]) for i in (105, 334, 66, 296))
    rows = np.arange(picture.shape[0])[:, None] < brow - 4
    return ~skin & rows
