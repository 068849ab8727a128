"""Face landmarks of a picture, by MediaPipe's landmarker or by its older models under OpenCV.

Points are MediaPipe's 468 face-mesh points followed by five per iris, in pixels of the picture; z
has the unit of x and is smaller nearer to the camera. A result depends on the picture alone.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from gsavatar import assets
from gsavatar.errors import InputError
from gsavatar.memory import import_apart

log = logging.getLogger("gsavatar")

Float = NDArray[np.float32]
UInt8 = NDArray[np.uint8]
A = TypeVar("A")

POINTS = 478
UPPER_LIP, LOWER_LIP, FACE_TOP, CHIN, NOSE_TIP = 13, 14, 10, 152, 1
MOUTH_CORNERS, OUTER_EYE_CORNERS = (61, 291), (33, 263)
OUTER_LIPS = (
    61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185,
)  # fmt: skip
INNER_LIPS = (
    78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 415, 310, 311, 312, 13, 82, 81, 80, 191,
)  # fmt: skip
"""Closed contours of the lips, in order around the mouth."""
LIPS_40 = OUTER_LIPS + INNER_LIPS
LEFT_EYE = (
    263, 249, 390, 373, 374, 380, 381, 382, 362, 398, 384, 385, 386, 387, 388, 466,
)  # fmt: skip
RIGHT_EYE = (33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246)
"""Closed contours of the eyes; left and right are the subject's."""
LEFT_IRIS, RIGHT_IRIS = tuple(range(473, 478)), tuple(range(468, 473))
FACE_OVAL = (
    10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377, 152,
    148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109,
)  # fmt: skip
RIGID_20 = (
    10, 151, 9, 8, 168, 6, 197, 67, 297, 109, 338, 103, 332, 54, 284, 21, 251, 127, 356, 195,
)  # fmt: skip
"""Points that speech and expressions hardly move: forehead, nose bridge, temples."""
IBUG_68 = (
    127, 234, 93, 132, 58, 136, 150, 176, 152, 400, 379, 365, 288, 361, 323, 454, 356,
    70, 63, 105, 66, 107, 336, 296, 334, 293, 300, 168, 197, 5, 4, 75, 97, 2, 326, 305,
    33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380,
    61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181, 78, 82, 13, 312, 308, 317, 14, 87,
)  # fmt: skip
"""The points nearest to iBUG's 68: jaw, brows, nose, eyes, lips, each from the picture's left."""
MAX_FACES = 4


@dataclass(frozen=True)
class FaceDetection:
    """One face of a picture."""

    points: Float  # [478, 3] px
    scores: Float | None  # [52] in ARKIT_NAMES order, None if the backend has none
    box: tuple[float, float, float, float]  # top, left, bottom, right of the points, px


def mouth_opening(points: A) -> A:
    """Gap of the inner lips over the height of the face, [...] for points [..., 478, 2 or 3]."""
    opening: A = _distance(points, UPPER_LIP, LOWER_LIP) / _distance(points, FACE_TOP, CHIN)
    return opening


def mouth_width(points: A) -> A:
    """Distance of the mouth's corners over that of the eyes' outer ones, which a turn of the head
    shortens alike, [...] for points [..., 478, 2 or 3]."""
    width: A = _distance(points, *MOUTH_CORNERS) / _distance(points, *OUTER_EYE_CORNERS)
    return width


def _distance(points: Any, a: int, b: int) -> Any:
    gap = points[..., a, :2] - points[..., b, :2]
    return (gap * gap).sum(-1) ** 0.5


class FaceLandmarker:
    """Finds faces and their points; a context manager, to be used by one thread at a time.

    ``backend`` is ``mediapipe`` (the landmarker bundle), ``opencv`` (MediaPipe's older models) or
    ``auto`` for the best whose files can be had. Raises ``InputError`` if there is none.
    """

    def __init__(self, backend: str = "auto") -> None:
        self.backend = choose_backend(backend)

    def __enter__(self) -> FaceLandmarker:
        self._model: Any = _Mediapipe() if self.backend == "mediapipe" else _OpenCV()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self._model.close()

    def detect(self, picture: UInt8) -> list[FaceDetection]:
        """Faces of an RGB picture, the largest first; where none is found, smaller parts of the
        picture are enlarged and searched."""
        faces = self._model.detect(np.ascontiguousarray(picture))
        if not faces:
            faces = self._zoomed(picture)
        return sorted(faces, key=lambda f: f.box[0] - f.box[2])

    def _zoomed(self, picture: UInt8) -> list[FaceDetection]:
        height, width = picture.shape[:2]
        side = min(height, width) // 2
        if side < 96:
            return []
        found: list[FaceDetection] = []
        for top in range(0, height - side + 1, max(1, side // 2)):
            for left in range(0, width - side + 1, max(1, side // 2)):
                part = np.ascontiguousarray(picture[top : top + side, left : left + side])
                for face in self._model.detect(part):
                    moved = face.points + np.array([left, top, 0], np.float32)
                    if not any(_same(moved, other.points) for other in found):
                        found.append(FaceDetection(moved, face.scores, box_of(moved)))
        return found[:MAX_FACES]


def nearest(faces: list[FaceDetection], centre: NDArray[Any]) -> FaceDetection | None:
    """The face nearest to a place [2] of the picture, such as where it was before; None of none."""
    return min(
        faces,
        key=lambda face: float(np.hypot(*(face.points[:, :2].mean(0) - centre))),
        default=None,
    )


def _same(a: Float, b: Float) -> bool:
    """Whether two detections are of one face."""
    size = max(float(np.ptp(a[:, 0])), 1.0)
    return bool(np.linalg.norm(a[:, :2].mean(0) - b[:, :2].mean(0)) < 0.4 * size)


def box_of(points: Float) -> tuple[float, float, float, float]:
    """Top, left, bottom and right of some points."""
    (left, top), (right, bottom) = points[:468, :2].min(0), points[:468, :2].max(0)
    return float(top), float(left), float(bottom), float(right)


def choose_backend(backend: str = "auto") -> str:
    """``mediapipe`` or ``opencv``, whichever can be had. Raises ``InputError`` if neither."""
    if backend in ("auto", "mediapipe"):
        try:
            assets.resolve("face_landmarker")
            return "mediapipe"
        except InputError:
            if backend == "mediapipe":
                raise
            _warn_of_older_models()
    assets.resolve("face_detection")
    assets.resolve("face_landmark")
    return "opencv"


@functools.cache
def _warn_of_older_models() -> None:
    """Says once that the landmarks are of the second-best kind, and the cure."""
    log.warning(
        "face_landmarker.task cannot be had: older models find the landmarks, without scores of "
        "expressions and without gaze; lids and lips are told less well (gsavatar doctor says how "
        "to get it)"
    )


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Hides what native code prints while a model is made: notices no user can act upon."""
    saved = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)


class _Mediapipe:
    """The landmarker bundle in IMAGE mode, which is deterministic."""

    def __init__(self) -> None:
        import_apart("mediapipe.tasks.python")
        import mediapipe as mp
        from mediapipe.tasks.python import BaseOptions, vision

        self._mp = mp
        options = vision.FaceLandmarkerOptions(
            base_options=BaseOptions(model_asset_path=str(assets.resolve("face_landmarker"))),
            output_face_blendshapes=True,
            num_faces=MAX_FACES,
        )
        with quiet_stderr():
            self._landmarker = vision.FaceLandmarker.create_from_options(options)
            self.detect(np.zeros((64, 64, 3), np.uint8))

    def detect(self, picture: UInt8) -> list[FaceDetection]:
        image = self._mp.Image(image_format=self._mp.ImageFormat.SRGB, data=picture)
        result = self._landmarker.detect(image)
        height, width = picture.shape[:2]
        unit = np.array([width, height, width], np.float32)
        faces = []
        for face, categories in zip(result.face_landmarks, result.face_blendshapes, strict=True):
            points = np.array([[p.x, p.y, p.z] for p in face], np.float32) * unit
            scores = np.array([c.score for c in categories], np.float32)
            faces.append(FaceDetection(points, scores, box_of(points)))
        return faces

    def close(self) -> None:
        self._landmarker.close()


class _OpenCV:
    """MediaPipe's short-range detector and face mesh of 2021, run by OpenCV's network module."""

    def __init__(self) -> None:
        from gsavatar.landmarks_opencv import FaceMesh

        self._mesh = FaceMesh()

    def detect(self, picture: UInt8) -> list[FaceDetection]:
        found = self._mesh.detect(picture)
        return [FaceDetection(points, None, box_of(points)) for points in found[:MAX_FACES]]

    def close(self) -> None:
        """Nothing to release."""
