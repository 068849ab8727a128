"""Which pixel shows what: the person's matte, the landmarks, the colours learned over the clip."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gsavatar import assets
from gsavatar.errors import InputError
from gsavatar.landmarks import CHIN, FACE_OVAL, FACE_TOP, quiet_stderr
from gsavatar.memory import import_apart
from gsavatar.segmentation_colors import PartColors, Sample, color_bins, learn_colors
from gsavatar.segmentation_features import FeatureColors, learn_features, paint_features
from gsavatar.segmentation_shape import filled, head_plan
from gsavatar.types import Region

log = logging.getLogger("gsavatar")

Float = NDArray[np.float32]
UInt8 = NDArray[np.uint8]

MATTES = ("selfie_multiclass", "selfie_segmentation")
"""Models that tell a person from the background, the better first."""
FOREGROUND = 0.5
PART_REGION = np.array([Region.SKIN, Region.HAIR, Region.NECK, Region.TORSO], np.uint8)
"""The region of every ``Part``."""


PART_CLASSES = ((3,), (1,), (2,), (4, 5))
"""The classes of the larger model that show a ``Part``: 0 is the background, then hair, skin of
the body, skin of the face, clothes, and what else is worn."""
CLASS_DOUBT = 0.03
"""How often it takes one class for another: caps what it says."""


@dataclass(frozen=True)
class Seen:
    """What a model says of a picture without knowing the person."""

    matte: Float | None  # [H, W], share of the person, 0-1; None without a model
    beliefs: Float | None  # [4, H, W], log beliefs by ``Part``; None without the larger model


class PersonMatte:
    """Where a person is in a picture, by MediaPipe's selfie models; a context manager.

    The larger one, which also tells parts apart, is used if it is on this machine. Where neither
    can be had a plain outline around the face stands in, with a logged warning unless another
    matte has ``warned``.
    """

    def __init__(self, *, warned: bool = False) -> None:
        self._segmenter: Any = None
        self._tells_parts = False
        self._level = logging.DEBUG if warned else logging.WARNING

    def __enter__(self) -> PersonMatte:
        try:
            self._tells_parts = assets.available(MATTES[0])
            model = assets.resolve(MATTES[0 if self._tells_parts else 1])
        except InputError as error:
            log.log(self._level, "the person's outline is only guessed: %s", error)
            return self
        import_apart("mediapipe.tasks.python")
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
            self.look(np.zeros((64, 64, 3), np.uint8))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        if self._segmenter is not None:
            self._segmenter.close()

    def look(self, picture: UInt8) -> Seen:
        """What the model says of an RGB picture."""
        if self._segmenter is None:
            return Seen(None, None)
        image = self._mp.Image(
            image_format=self._mp.ImageFormat.SRGB, data=np.ascontiguousarray(picture)
        )
        masks = self._segmenter.segment(image).confidence_masks
        size = picture.shape[:2]
        if not self._tells_parts:
            return Seen(np.array(masks[-1].numpy_view(), np.float32).reshape(size), None)
        return told_parts(np.stack([m.numpy_view().reshape(size) for m in masks]))


def told_parts(shares: Float) -> Seen:
    """What the shares [6, H, W] of the larger model's classes say."""
    person = 1.0 - shares[0]
    shown = np.stack([shares[list(classes)].sum(0) for classes in PART_CLASSES])
    among = shown / np.maximum(person, CLASS_DOUBT)
    return Seen(person.astype(np.float32), np.log(among + CLASS_DOUBT).astype(np.float32))


@dataclass(frozen=True)
class Look:
    """A picture to label: RGB uint8 [H, W, 3], the person's matte or None, landmarks [478, 2|3]."""

    picture: UInt8
    matte: Float | None
    points: Float
    beliefs: Float | None = None  # as in ``Seen``

    @property
    def person(self) -> NDArray[np.bool_]:
        """Pixels [H, W] of the person."""
        size = self.picture.shape[:2]
        face = filled(self.points[list(FACE_OVAL), :2], size, 1) > FOREGROUND
        whole = _outline(self.points[:, :2], size) if self.matte is None else self.matte
        return (whole > FOREGROUND) | face


@dataclass(frozen=True)
class PersonColors:
    """What colours the parts of a person have in a clip."""

    parts: PartColors
    features: FeatureColors


def learn_person(looks: Sequence[Look]) -> PersonColors:
    """The colours of a person from some pictures of them, in which everything should be seen."""
    parts = learn_colors([_sample(look, look.person) for look in looks])
    return PersonColors(parts, learn_features([(look.picture, look.points) for look in looks]))


def _sample(look: Look, person: NDArray[np.bool_]) -> Sample:
    """The half-size grid of a picture whose person [H, W] is known."""
    import cv2

    bins = color_bins(look.picture)
    half = cv2.resize(person.astype(np.uint8), bins.shape[::-1], interpolation=cv2.INTER_NEAREST)
    return Sample(bins, half > 0, head_plan(look.points, look.picture.shape[:2]))


def label_plane(look: Look, colors: PersonColors) -> UInt8:
    """Regions, uint8 [H, W], of a picture of a person whose colours are known.

    The person is skin, hair, neck and clothes by place, colour and beliefs; the neck begins at a
    line from under the chin to the nape. Eyes, lips and the inside of the mouth lie within the
    landmarks' contours, which give way to a change of colour nearby.
    """
    import cv2

    height, width = look.picture.shape[:2]
    person = look.person
    scores = colors.parts.scores(_sample(look, person))
    if look.beliefs is not None:
        grid = scores.shape[2], scores.shape[1]
        for part, belief in enumerate(look.beliefs):
            scores[part] += cv2.resize(belief, grid, interpolation=cv2.INTER_AREA)
    full = [cv2.resize(s, (width, height), interpolation=cv2.INTER_LINEAR) for s in scores]
    labels, best = np.full((height, width), PART_REGION[0], np.uint8), full[0]
    for region, score in zip(PART_REGION[1:], full[1:], strict=True):
        labels[score > best] = region
        best = cv2.max(best, score)
    labels[~person] = int(Region.BACKGROUND)
    paint_features(labels, look.picture, look.points, colors.features)
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
