"""Landmarks, labels and crops on the bundled sample, whose truth is known."""

from __future__ import annotations

import contextlib
import json
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from gsavatar import assets, crop, video
from gsavatar.errors import InputError
from gsavatar.footage import VideoFile
from gsavatar.frames import decode_png
from gsavatar.landmarks import (
    CHIN,
    FACE_TOP,
    LIPS_40,
    RIGID_20,
    FaceDetection,
    FaceLandmarker,
    mouth_opening,
)
from gsavatar.landmarks_opencv import anchors
from gsavatar.segmentation import Look, PersonMatte, label_plane, learn_person
from gsavatar.types import Region
from gsavatar.upright import Stance
from gsavatar.video_colour import turned

SAMPLE = Path(str(resources.files("gsavatar.datasets"))) / "sample" / "speaker.mp4"
TRUTH = json.loads(SAMPLE.with_suffix(".truth.json").read_text())


@pytest.fixture(scope="module")
def frames() -> dict[int, np.ndarray]:
    """A shut, a wide-open and a middling mouth of the sample."""
    jaw = np.array(TRUTH["weights"]["jawOpen"])
    wanted = {0, int(jaw.argmax()), int(np.abs(jaw - 0.25).argmin()), 120}
    return {i: p for i, _, p in video.decode(SAMPLE) if i in wanted}


@pytest.mark.parametrize("backend", ["opencv", "mediapipe"])
def test_faces_are_found_where_they_are(frames: dict[int, np.ndarray], backend: str) -> None:
    if backend == "mediapipe" and not assets.available("face_landmarker"):
        pytest.skip("face_landmarker.task is not on this machine")
    jaw = np.array(TRUTH["weights"]["jawOpen"])
    opening = {}
    with FaceLandmarker(backend) as landmarker:
        for index, picture in frames.items():
            faces = landmarker.detect(picture)
            assert len(faces) == 1
            points = faces[0].points
            assert points.shape == (478, 3) and np.isfinite(points).all()
            opening[index] = float(mouth_opening(points))
            expected = np.array(TRUTH["room_to_camera"]) @ np.array(TRUTH["head_pose"][index])
            nose = expected @ [0.0, 0.0, 0.13, 1.0]
            at = TRUTH["focal_px"] * nose[:2] / nose[2] + 256
            assert np.linalg.norm(points[1, :2] - at) < 14
            again = landmarker.detect(picture)[0].points
            np.testing.assert_array_equal(points, again)
    assert opening[int(jaw.argmax())] > opening[0] + 0.03


def test_nothing_is_found_where_nothing_is() -> None:
    with FaceLandmarker("opencv") as landmarker:
        assert landmarker.detect(np.full((256, 256, 3), 90, np.uint8)) == []


def test_a_small_face_is_found_by_zooming(frames: dict[int, np.ndarray]) -> None:
    import cv2

    small = cv2.resize(frames[0], (200, 200), interpolation=cv2.INTER_AREA)
    large = np.full((1000, 1000, 3), 110, np.uint8)
    large[620:820, 640:840] = small
    with FaceLandmarker("opencv") as landmarker:
        faces = landmarker.detect(large)
    assert len(faces) == 1
    x, y = faces[0].points[:, :2].mean(0)
    assert 680 < x < 800 and 640 < y < 760


def test_point_sets_are_what_they_say() -> None:
    assert len(set(LIPS_40)) == 40 and len(set(RIGID_20)) == 20
    assert not set(LIPS_40) & set(RIGID_20)
    assert anchors().shape == (896, 2)
    points = np.zeros((2, 478, 3))
    points[:, CHIN, 1] = 100.0
    points[1, 14, 1] = 5.0
    np.testing.assert_allclose(mouth_opening(points), [0.0, 0.05])
    assert points[0, FACE_TOP, 1] == 0


def test_labels_cover_the_sample(frames: dict[int, np.ndarray]) -> None:
    index = int(np.array(TRUTH["weights"]["jawOpen"]).argmax())
    picture = frames[index]
    with FaceLandmarker("opencv") as landmarker, PersonMatte() as matte:
        points = landmarker.detect(picture)[0].points
        look = Look(picture, matte.look(picture).matte, points)
        labels = label_plane(look, learn_person([look]))
    share = {region: float((labels == int(region)).mean()) for region in Region}
    assert share[Region.SKIN] > 0.05 and share[Region.HAIR] > 0.01 and share[Region.TORSO] > 0.05
    assert share[Region.INNER_MOUTH] > 0.0005 and share[Region.EYES] > 0.0005
    assert labels[5, 5] == Region.BACKGROUND and labels[500, 256] == Region.TORSO
    order = (Region.HAIR, Region.SKIN, Region.TORSO)
    rows = {region: np.nonzero(labels == int(region))[0].mean() for region in order}
    assert rows[Region.HAIR] < rows[Region.SKIN] < rows[Region.TORSO]


def test_a_square_picture_with_a_fitting_face_is_kept_whole() -> None:
    (plan,) = crop.plan([SAMPLE])
    side = plan.box[2] - plan.box[0]
    assert side == plan.box[3] - plan.box[1] and 300 <= side <= 512
    assert (plan.first_index, plan.last_index) == (0, len(TRUTH["head_pose"]) - 1)


def test_crops_repeat_the_edge_outside_the_picture() -> None:
    picture = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    out = crop.apply_crop(picture, (-2.0, -2.0, 6.0, 6.0), 8)
    np.testing.assert_array_equal(out[2:6, 2:6], picture)
    np.testing.assert_array_equal(out[0, 0], picture[0, 0])


def film(path: Path, pictures: list[np.ndarray]) -> Path:
    height, width = pictures[0].shape[:2]
    with video.VideoWriter(path, width, height, 25) as writer:
        for picture in pictures:
            writer.write(picture)
    return path


def test_no_face_is_an_error_with_a_cure(tmp_path: Path) -> None:
    path = film(tmp_path / "empty.mp4", [np.full((128, 128, 3), 90, np.uint8)] * 60)
    with pytest.raises(InputError, match="no face was found") as caught:
        crop.plan([path])
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("quarters", [1, 3])
def test_a_video_that_lies_on_its_side_is_turned(tmp_path: Path, quarters: int) -> None:
    pictures = [p for i, _, p in video.decode(SAMPLE) if i < 60]
    wide = [np.pad(p, ((0, 0), (40, 0), (0, 0)), mode="edge") for p in pictures]
    (upright,) = crop.plan([film(tmp_path / "upright.mp4", wide)])
    (plan,) = crop.plan([film(tmp_path / "lies.mp4", [turned(p, quarters) for p in wide])])
    assert plan.footage == VideoFile(tmp_path / "lies.mp4", 4 - quarters)
    assert (plan.info.width, plan.info.height) == (552, 512)
    assert any(f"turned by {90 * (4 - quarters)} degrees" in note for note in plan.notes)
    np.testing.assert_allclose(plan.box, upright.box, atol=8)
    (_, _, first), *_ = plan.footage.decode()
    assert np.abs(first.astype(int) - wide[0]).mean() < 4


class Seer:
    """A landmarker that sees faces turned by given angles, or none, one look after the other."""

    def __init__(self, rolls_deg: list[float | None]) -> None:
        self.rolls_deg = iter(rolls_deg)

    def detect(self, picture: np.ndarray) -> list[FaceDetection]:
        roll = next(self.rolls_deg)
        if roll is None:
            return []
        points = np.zeros((478, 3), np.float32)
        points[263, :2] = np.cos(np.radians(roll)), np.sin(np.radians(roll))
        return [FaceDetection(points, None, (0.0, 0.0, 1.0, 1.0))]


@pytest.mark.parametrize(
    ("rolls_deg", "quarters"),
    [
        ([0.0, 20.0, -30.0, 50.0], 0),
        ([90.0, 80.0, 110.0, 10.0, 95.0], 3),
        ([-90.0, -70.0, -100.0, -95.0], 1),
        ([178.0, -175.0, 160.0], 2),
        ([90.0, -90.0, 0.0, 180.0], 0),  # each another way
        ([70.0, -3.0, 40.0, 75.0, 2.0], 0),
        ([88.0, -80.0, 95.0, 90.0, 2.0], 3),  # one the wrong way round
        ([None] * 4, 0),
        ([None, None, 0.0, None, 5.0, None, 2.0], 0),  # a face that is away
        ([None, 0.0, None, 0.0, None, 3.0, 2.0, 1.0], 2),  # found where it is turned over
        ([], 0),
    ],
)
def test_which_way_up_faces_are(rolls_deg: list[float | None], quarters: int) -> None:
    seer, stance = Seer(rolls_deg), Stance()
    picture = np.zeros((4, 4, 3), np.uint8)
    with contextlib.suppress(StopIteration):
        while True:
            stance.faces(picture, seer)  # type: ignore[arg-type]
    assert stance.quarters == quarters


def test_two_faces_ask_for_a_choice_with_a_numbered_picture(
    tmp_path: Path, frames: dict[int, np.ndarray]
) -> None:
    import cv2

    one = cv2.resize(frames[0], (256, 256), interpolation=cv2.INTER_AREA)
    path = film(tmp_path / "two.mp4", [np.concatenate((one, one[:, ::-1]), axis=1)] * 60)
    thumbnail = tmp_path / "faces.png"
    with pytest.raises(InputError, match=r"--face left.*--face N"):
        crop.plan([path], thumbnail=thumbnail)
    assert thumbnail.exists()
    (left,), (right,) = (crop.plan([path], face=face) for face in ("left", "2"))
    assert (left.box[1] + left.box[3]) / 2 < 256 < (right.box[1] + right.box[3]) / 2
    with pytest.raises(InputError, match="--face 7 is not"):
        crop.plan([path], face="7")


def test_the_face_that_was_asked_for_is_taken_although_it_shows_less() -> None:
    path, near, aside = Path("two.mp4"), crop._Person(), crop._Person()
    near.boxes = {scan: (100.0, 300.0, 200.0, 400.0) for scan in range(100)}
    aside.boxes = {scan: (100.0, 50.0, 200.0, 150.0) for scan in range(40)}
    scan = crop._Scan([], [], [near, aside], [], 0, 0.0)
    assert crop._choose(path, scan, None, None) is near
    assert crop._choose(path, scan, "left", None) is aside
    assert crop._choose(path, scan, "2", None) is near
    with pytest.raises(InputError, match="--face 9 is not left, right or a number from 1 to 2"):
        crop._choose(path, scan, "9", None)


def test_faces_keep_the_numbers_of_the_picture_that_shows_them(tmp_path: Path) -> None:
    path, people = Path("three.mp4"), [crop._Person() for _ in range(3)]
    for person, left, scans in zip(people, (50.0, 300.0, 550.0), (20, 100, 80), strict=True):
        person.boxes = {scan: (100.0, left, 200.0, left + 100.0) for scan in range(scans)}
    scan = crop._Scan([], [], people, [], 0, 0.0)
    picture = tmp_path / "faces.png"
    with pytest.raises(InputError, match="2 faces are visible equally long"):
        crop._choose(path, scan, None, picture)
    assert decode_png(picture.read_bytes()).shape == (160, 3 * 160, 3)
    for number, person in enumerate(people, 1):
        assert crop._choose(path, scan, str(number), None) is person
    assert crop._choose(path, scan, "left", None) is people[1]  # of the two it was asked about


def planned(box: crop.Box, size: tuple[int, int]) -> crop.CropPlan:
    info = video.VideoInfo(*size, 25.0, 4.0, 100, False, 0)
    return crop.CropPlan(VideoFile(Path("a.mp4")), box, 0, 99, 100, (), info)


def test_one_camera_has_one_focal_length_in_all_files() -> None:
    wide, high = (1280, 720), (720, 1280)
    near = [planned((10.0, 100.0, 510.0, 600.0), wide), planned((30.0, 120.0, 490.0, 580.0), wide)]
    assert [plan.box for plan in crop._framed_alike(near)] == [(10.0, 100.0, 510.0, 600.0)] * 2
    apart = [near[0], planned((100.0, 900.0, 300.0, 1100.0), wide)]
    first, second = crop._framed_alike(apart)
    assert first.box == near[0].box and second.box == (0.0, 750.0, 500.0, 1250.0)
    assert not first.notes
    mixed = crop._framed_alike([near[0], planned((10.0, 20.0, 210.0, 220.0), high)])
    assert "1280 x 720, 720 x 1280" in mixed[0].notes[0]
    assert mixed[1].box == (10.0, 20.0, 210.0, 220.0)


def test_the_longest_scene_is_kept_after_a_cut(
    tmp_path: Path, frames: dict[int, np.ndarray]
) -> None:
    import cv2

    one = cv2.resize(frames[0], (256, 256), interpolation=cv2.INTER_AREA)
    other = 255 - one
    path = film(tmp_path / "cut.mp4", [one] * 75 + [other] * 30)
    (plan,) = crop.plan([path])
    assert plan.first_index == 0 and 60 <= plan.last_index < 85
    assert any("cut" in note for note in plan.notes)
