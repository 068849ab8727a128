"""What a frame counts by how well it shows the face, on pictures whose faults are known."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import make_clip
from numpy.typing import NDArray

from gsavatar import tracking
from gsavatar.sequence import Sequence, load_sequence, save_sequence
from gsavatar.tracking_observations import observed
from gsavatar.types import Landmarks
from gsavatar.visibility import BLURRED, HIDDEN, FaceView, Visibility, judged, look, told

UInt8 = NDArray[np.uint8]
FRAMES = 80
SKIN, RED = (200, 150, 125), (190, 80, 80)


def face(t: int) -> tuple[UInt8, NDArray[np.float32]]:
    """A face that turns a little and talks, and the landmarks that are read of it."""
    rng = np.random.default_rng(t)
    x = 256 + 20 * np.sin(0.13 * t)
    picture = np.full((512, 512, 3), (90, 110, 130), np.uint8)
    cv2.ellipse(picture, (int(x), 256), (110, 150), 0, 0, 360, SKIN, -1)
    for side in (-45, 45):
        cv2.circle(picture, (int(x) + side, 210), 14, (60, 45, 40), -1)
    cv2.line(picture, (int(x), 210), (int(x), 280), (170, 120, 100), 6)
    opening = int(8 + 8 * abs(np.sin(0.6 * t)))
    cv2.ellipse(picture, (int(x), 330), (42, 10 + opening), 0, 0, 360, RED, -1)
    cv2.ellipse(picture, (int(x), 330), (34, opening), 0, 0, 360, (60, 20, 20), -1)
    noise = rng.normal(0, 4, picture.shape)
    points = np.zeros((478, 3), np.float32)
    angle = np.linspace(0, 2 * np.pi, 478)
    points[:, 0], points[:, 1] = x + 110 * np.cos(angle), 256 + 150 * np.sin(angle)
    for number, place in {
        172: (x - 80, 345), 397: (x + 80, 345), 168: (x, 205), 234: (x - 110, 256),
        454: (x + 110, 256), 1: (x, 280),
    }.items():  # fmt: skip
        points[number, :2] = place
    return np.clip(picture + noise, 0, 255).astype(np.uint8), points


def hand(picture: UInt8, points: NDArray[np.float32]) -> UInt8:
    """Skin before the lips: nothing but their colour is missing."""
    covered = picture.copy()
    cv2.ellipse(covered, (int(points[1, 0]), 335), (60, 45), 20, 0, 360, SKIN, -1)
    return covered


def microphone(picture: UInt8, points: NDArray[np.float32]) -> UInt8:
    covered = picture.copy()
    cv2.circle(covered, (int(points[1, 0]) + 15, 345), 38, (35, 35, 38), -1)
    return covered


def views_with(fault: object, at: slice) -> list[FaceView | None]:
    """All frames' faces, those of a stretch with a fault."""
    found: list[FaceView | None] = []
    for t in range(FRAMES):
        picture, points = face(t)
        if t in range(FRAMES)[at]:
            picture = fault(picture, points)  # type: ignore[operator]
        found.append(look(picture, points))
    return found


@pytest.fixture(scope="module")
def clean() -> list[FaceView | None]:
    return views_with(None, slice(0, 0))


def test_a_clear_face_counts_fully(clean: list[FaceView | None]) -> None:
    shown = judged(clean)
    assert not shown.blurred.any() and not shown.hidden.any()
    assert shown.weight.min() == 1.0
    assert told(shown, np.arange(FRAMES) / 25.0) == []


@pytest.mark.parametrize("fault", [hand, microphone])
def test_what_is_before_the_mouth_is_seen(fault: object) -> None:
    shown = judged(views_with(fault, slice(30, 42)))
    expected = np.zeros(FRAMES, bool)
    expected[30:42] = True
    assert np.array_equal(shown.hidden, expected)
    assert shown.weight[expected].max() < 1.0 and shown.weight[~expected].min() == 1.0
    (said,) = told(shown, np.arange(FRAMES) / 25.0)
    assert said.startswith("12 of 80 frames have something before the mouth")
    assert "the first at 1.2 s" in said


@pytest.mark.parametrize("blur", [lambda p: cv2.blur(p, (15, 1)), lambda p: cv2.blur(p, (7, 7))])
def test_smeared_and_unfocused_frames_count_less(blur: object) -> None:
    shown = judged(views_with(lambda p, _: blur(p), slice(50, 60)))  # type: ignore[operator]
    assert shown.blurred[50:60].all() and not shown.blurred[:50].any()
    assert shown.detail[50:60].max() < BLURRED
    assert shown.weight[50:60].max() < 1.0


def test_frames_without_a_face_are_nothing(clean: list[FaceView | None]) -> None:
    shown = judged([None, *clean[1:]])
    assert np.isnan(shown.detail[0]) and not shown.hidden[0] and shown.weight[0] == 1.0
    nothing = judged([None, None])
    assert np.isnan(nothing.detail).all() and nothing.weight.tolist() == [1.0, 1.0]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the fixture's landmarks are no face
def test_it_reaches_the_weights_of_the_track(tmp_path: Path) -> None:
    """Saved with the first pass, read for the fit, and a factor of every frame's trust."""
    clip = make_clip(tmp_path / "clip", frames=40)
    detail, strange = np.ones(40), np.ones(40)
    detail[5], strange[20] = 0.5 * BLURRED, 2.0 * HIDDEN
    sequence = Sequence(
        clip.frame_ids.numpy(), clip.time_s.numpy(), clip.track.file_index.numpy(), clip.landmarks,
        Visibility(detail, strange),
    )  # fmt: skip
    save_sequence(tmp_path, sequence, clip.stored)
    read, _ = load_sequence(tmp_path)
    assert read.clear[[4, 5, 20]].tolist() == pytest.approx([1.0, 0.25, 0.25])
    seen = observed(
        read.landmarks, clip.time_s, clip.track.file_index, clip.frame_ids, clear=read.clear
    )
    track = tracking.fit_track(seen, provider="clip")
    plain = tracking.fit_track(
        observed(read.landmarks, clip.time_s, clip.track.file_index, clip.frame_ids),
        provider="clip",
    )
    torch.testing.assert_close(track.weight[5], 0.25 * plain.weight[5])


def test_old_clips_count_all_frames() -> None:
    landmarks = Landmarks(torch.zeros(3, 478, 3), torch.ones(3, dtype=torch.bool), None)
    old = Sequence(np.arange(3), np.arange(3) / 25.0, np.zeros(3, np.int64), landmarks)
    assert old.clear.tolist() == [1.0, 1.0, 1.0]
