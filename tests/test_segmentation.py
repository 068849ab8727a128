"""Labels of a drawn face whose points are known; no model is needed."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from gsavatar.landmarks import INNER_LIPS, LEFT_EYE, OUTER_LIPS, RIGHT_EYE
from gsavatar.morphable import canonical_face
from gsavatar.segmentation import label_plane
from gsavatar.types import Region

SKIN, TEETH, THROAT, RED = (205, 160, 140), (240, 238, 230), (40, 12, 12), (180, 80, 80)


def filled(points: np.ndarray, ids: tuple[int, ...]) -> np.ndarray:
    """Pixels [H, W] inside a contour."""
    mask = np.zeros((512, 512), np.uint8)
    cv2.fillPoly(mask, [np.round(points[list(ids)] * 8).astype(np.int32)], 1, shift=3)
    return mask > 0


def face(gap_px: float) -> tuple[np.ndarray, np.ndarray]:
    """A drawn face with teeth above a dark throat, and its landmarks [478, 2]."""
    vertices, _ = canonical_face()
    points = np.zeros((478, 2), np.float32)
    points[:468] = vertices[:, :2] * [1500.0, -1500.0] + [256.0, 270.0]
    left, right = points[78, 0], points[308, 0]
    middle = 0.5 * (points[13, 1] + points[14, 1])
    across = np.clip((points[:, 0] - left) / (right - left), 0.0, 1.0)
    arch = np.sqrt(np.clip(1.0 - (2.0 * across - 1.0) ** 2, 0.0, None))
    half = len(INNER_LIPS) // 2
    for contour in (INNER_LIPS, OUTER_LIPS):
        thick = 0.0 if contour is INNER_LIPS else 14.0
        for k, index in enumerate(contour):
            side = 1.0 if 0 < k < half else -1.0  # first the lower lip, then the upper
            points[index, 1] = middle + side * (0.5 * gap_px + thick) * arch[index]
    picture = np.full((512, 512, 3), (70, 110, 90), np.uint8)
    cv2.ellipse(picture, (256, 250), (150, 190), 0, 0, 360, SKIN, -1)
    picture[filled(points, OUTER_LIPS)] = RED
    inside = filled(points, INNER_LIPS)
    picture[inside] = THROAT
    rows = np.arange(512)[:, None] < middle
    picture[inside & rows] = TEETH
    return picture, points


@pytest.mark.parametrize("gap_px", [12.0, 45.0])
def test_teeth_and_throat_are_the_inside_of_the_mouth(gap_px: float) -> None:
    picture, points = face(gap_px)
    labels = label_plane(picture, None, points)
    inside = filled(points, INNER_LIPS)
    teeth, throat = ((picture == color).all(-1) & inside for color in (TEETH, THROAT))
    assert teeth.sum() > 150 and throat.sum() > 150
    assert (labels[inside] == int(Region.INNER_MOUTH)).all()
    assert ((labels == int(Region.INNER_MOUTH)) == inside).all()
    lips = filled(points, OUTER_LIPS) & ~inside
    assert (labels[lips] == int(Region.LIPS)).all()
    for eye in (LEFT_EYE, RIGHT_EYE):
        assert (labels[filled(points, eye)] == int(Region.EYES)).all()


def test_lips_that_meet_have_no_inside() -> None:
    picture, points = face(0.5)
    labels = label_plane(picture, None, points)
    assert not (labels == int(Region.INNER_MOUTH)).any()
    assert (labels == int(Region.LIPS)).sum() > 500
