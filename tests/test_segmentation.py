"""Labels of a drawn person: the drawing knows what every pixel shows; no model is needed."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from gsavatar import assets
from gsavatar.landmarks import FACE_OVAL, INNER_LIPS, LEFT_EYE, OUTER_LIPS, RIGHT_EYE
from gsavatar.morphable import canonical_face
from gsavatar.segmentation import Look, PersonMatte, label_plane, learn_person, told_parts
from gsavatar.segmentation_shape import filled, head_plan
from gsavatar.types import Region

SIDE, FINE = 512, 4
PAINT = {
    Region.BACKGROUND: (70, 110, 90), Region.SKIN: (205, 160, 140), Region.HAIR: (60, 42, 30),
    Region.LIPS: (180, 80, 80), Region.INNER_MOUTH: (240, 238, 230), Region.EYES: (225, 225, 220),
    Region.NECK: (118, 90, 78), Region.TORSO: (40, 60, 120),
}  # fmt: skip
"""Colours as they are lit: the neck is skin in the chin's shadow."""
THROAT = (40, 12, 12)
MIDDLE = np.array([256.0, 230.0])


def landmarks(gap_px: float) -> np.ndarray:
    """The average face's landmarks [478, 2] with lips apart by ``gap_px``."""
    vertices, _ = canonical_face()
    points = np.zeros((478, 2), np.float32)
    points[:468] = vertices[:, :2] * [1500.0, -1500.0] + MIDDLE
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
    return points


def drawing(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A picture and what each of its pixels shows, both [512, 512], drawn four times as large."""
    truth = np.zeros((SIDE * FINE, SIDE * FINE), np.uint8)

    def polygon(corners: np.ndarray, region: Region) -> None:
        cv2.fillPoly(truth, [np.round(np.asarray(corners) * FINE).astype(np.int32)], int(region))

    def ellipse(x: float, y: float, a: float, b: float, region: Region) -> None:
        at, axes = (round(x * FINE), round(y * FINE)), (round(a * FINE), round(b * FINE))
        cv2.ellipse(truth, at, axes, 0, 0, 360, int(region), -1)

    chin, x = points[152], points[152, 0]
    polygon([[x - 230, 512], [x - 150, 420], [x + 150, 420], [x + 230, 512]], Region.TORSO)
    polygon([[x - 75, 300], [x + 75, 300], [x + 75, 430], [x - 75, 430]], Region.NECK)
    polygon([[x - 90, 400], [x + 90, 400], [x + 90, 440], [x - 90, 440]], Region.TORSO)  # collar
    top = points[10]
    ellipse(x, top[1] + 90, 132, 150, Region.HAIR)
    for ear in (points[234], points[454]):
        ellipse(ear[0], ear[1], 14, 30, Region.SKIN)
    polygon(points[list(FACE_OVAL)], Region.SKIN)
    polygon(top + np.array([[-70, -30], [70, -30], [70, 26], [-70, 26]]), Region.HAIR)
    for eye in (LEFT_EYE, RIGHT_EYE):
        polygon(points[list(eye)], Region.EYES)
    polygon(points[list(OUTER_LIPS)], Region.LIPS)
    polygon(points[list(INNER_LIPS)], Region.INNER_MOUTH)
    color = np.array([PAINT[Region(i)] for i in range(len(Region))], np.uint8)[truth]
    rows = np.arange(SIDE * FINE)[:, None] > 0.5 * (points[13, 1] + points[14, 1]) * FINE
    color[(truth == int(Region.INNER_MOUTH)) & rows] = THROAT
    picture = cv2.resize(color, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    picture += np.random.default_rng(0).normal(0.0, 2.0, picture.shape)
    assert chin[1] < 400
    return np.clip(picture, 0, 255).astype(np.uint8), truth[FINE // 2 :: FINE, FINE // 2 :: FINE]


def labelled(gap_px: float, off_px: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Labels and truth of a drawing whose landmarks of eyes and lips are off by so much."""
    points = landmarks(gap_px)
    picture, truth = drawing(points)
    shaken = points.copy()
    for contour in (LEFT_EYE, RIGHT_EYE, OUTER_LIPS, INNER_LIPS):
        shaken[list(contour)] += [off_px, -0.7 * off_px]
    matte = (truth != int(Region.BACKGROUND)).astype(np.float32)
    look = Look(picture, matte, shaken)
    return label_plane(look, learn_person([look])), truth


def overlap(labels: np.ndarray, truth: np.ndarray, region: Region) -> float:
    """Intersection over union of a region."""
    mine, true = labels == int(region), truth == int(region)
    assert true.sum() > 100
    return float((mine & true).sum() / (mine | true).sum())


@pytest.mark.parametrize("gap_px", [12.0, 45.0])
def test_every_region_is_found_where_it_was_drawn(gap_px: float) -> None:
    labels, truth = labelled(gap_px)
    for region in Region:
        least = {Region.EYES: 0.80, Region.NECK: 0.85}.get(region, 0.90)
        assert overlap(labels, truth, region) > least, region.name


def test_teeth_and_throat_are_the_inside_of_the_mouth() -> None:
    labels, truth = labelled(45.0)
    inside = cv2.erode((truth == int(Region.INNER_MOUTH)).astype(np.uint8), np.ones((3, 3))) > 0
    assert inside.sum() > 500
    assert (labels[inside] == int(Region.INNER_MOUTH)).all()


def test_contours_move_to_where_the_colour_changes() -> None:
    off_px = 2.0
    labels, truth = labelled(30.0, off_px)
    moved = np.float32([[1, 0, off_px], [0, 1, -0.7 * off_px]])
    stiff = cv2.warpAffine(truth, moved, (SIDE, SIDE), flags=cv2.INTER_NEAREST)
    for region in (Region.LIPS, Region.EYES, Region.INNER_MOUTH):
        left_alone = overlap(stiff, truth, region)
        assert overlap(labels, truth, region) > left_alone + 0.05, region.name


def test_lips_that_meet_have_no_inside() -> None:
    points = landmarks(0.5)
    picture, truth = drawing(points)
    look = Look(picture, (truth > 0).astype(np.float32), points)
    labels = label_plane(look, learn_person([look]))
    assert not (labels == int(Region.INNER_MOUTH)).any()
    assert (labels == int(Region.LIPS)).sum() > 500


def test_a_shadow_on_the_neck_is_neither_hair_nor_cloth() -> None:
    labels, truth = labelled(12.0)
    neck = cv2.erode((truth == int(Region.NECK)).astype(np.uint8), np.ones((9, 9))) > 0
    assert neck.sum() > 2000
    assert (labels[neck] == int(Region.NECK)).mean() > 0.9
    assert np.isin(labels[neck], (int(Region.NECK), int(Region.SKIN))).all()  # its very top is jaw


def test_the_neck_begins_further_up_behind_the_jaw_of_a_turned_head() -> None:
    vertices, _ = canonical_face()
    turn = cv2.Rodrigues(np.array([0.0, 0.7, 0.0]))[0]
    points = np.zeros((478, 3), np.float32)
    points[:468] = (vertices @ turn.T) * [1500.0, -1500.0, -1500.0] + [256.0, 230.0, 0.0]
    plan = head_plan(points, (SIDE, SIDE))
    nape = vertices[58] + [0.012, -0.016, -0.076]  # by the face models' cut, on the near side
    chin = vertices[152] + [0.0, -0.005, -0.034]
    for place in (nape, chin):
        at = (place @ turn.T)[:2] * [1500.0, -1500.0] + [256.0, 230.0]
        x, y = int(at[0] / 2), int(at[1] / 2)
        assert abs(float(plan.below[y, x])) < 0.03
    assert nape[1] > chin[1] + 0.02


def test_contours_are_filled_to_a_part_of_a_pixel() -> None:
    square = np.array([[2.25, 3.5], [6.25, 3.5], [6.25, 5.0], [2.25, 5.0]], np.float32)
    share = filled(square, (9, 9))
    assert share.sum() == pytest.approx(4.0 * 1.5, abs=0.1)
    np.testing.assert_allclose(share[4, 3:6], 1.0)
    assert share[3, 4] == pytest.approx(0.5, abs=0.13) and share[4, 2] == pytest.approx(
        0.75, abs=0.13
    )
    assert filled(square + 100.0, (9, 9)).sum() == 0.0


def classes_of(truth: np.ndarray) -> np.ndarray:
    """What the larger model would say of a drawing, [6, H, W]: sure, but coarse."""
    mine = {Region.BACKGROUND: 0, Region.HAIR: 1, Region.NECK: 2, Region.TORSO: 4}
    shares = np.zeros((6, *truth.shape), np.float32)
    for region in Region:
        shares[mine.get(region, 3)] += truth == int(region)
    shares = np.stack([cv2.GaussianBlur(s, (0, 0), 3.0) for s in shares])
    return 0.9 * shares + 0.1 / 6


def test_hair_of_the_skins_colour_is_told_by_the_larger_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(PAINT, Region.HAIR, PAINT[Region.SKIN])
    points = landmarks(12.0)
    picture, truth = drawing(points)
    seen = told_parts(classes_of(truth))
    assert seen.matte is not None and seen.beliefs is not None
    plain = Look(picture, seen.matte, points)
    helped = Look(picture, seen.matte, points, seen.beliefs)
    found = [label_plane(look, learn_person([look])) for look in (plain, helped)]
    before, after = (overlap(labels, truth, Region.HAIR) for labels in found)
    assert before < 0.7 and after > 0.85
    for region in (Region.SKIN, Region.NECK, Region.TORSO):
        before, after = (overlap(labels, truth, region) for labels in found)
        assert after > before - 0.01, region


def test_the_larger_model_is_used_where_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its classes are asked for, and nothing is fetched for it."""
    vision = pytest.importorskip("mediapipe.tasks.python.vision")
    asked: list[str] = []

    class Mask:
        def __init__(self, share: float) -> None:
            self.share = share

        def numpy_view(self) -> np.ndarray:
            return np.full((64, 64, 1), self.share, np.float32)

    class Segmenter:
        def segment(self, image: object) -> object:
            return type("Result", (), {"confidence_masks": [Mask(s) for s in shares]})()

        def close(self) -> None:
            asked.append("closed")

    shares = (0.2, 0.5, 0.1, 0.1, 0.06, 0.04)
    monkeypatch.setattr(assets, "available", lambda name: name == "selfie_multiclass")
    monkeypatch.setattr(assets, "resolve", lambda name: asked.append(name) or Path(name))
    monkeypatch.setattr(vision.ImageSegmenter, "create_from_options", lambda _: Segmenter())
    with PersonMatte() as matte:
        seen = matte.look(np.zeros((64, 64, 3), np.uint8))
    assert asked == ["selfie_multiclass", "closed"]
    assert seen.matte is not None and seen.beliefs is not None
    np.testing.assert_allclose(seen.matte, 0.8, atol=1e-6)
    parts = np.exp(seen.beliefs[:, 0, 0])
    np.testing.assert_allclose(parts, np.array([0.1, 0.5, 0.1, 0.1]) / 0.8 + 0.03, rtol=1e-4)
