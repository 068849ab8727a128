"""Clips, plates, seeds and the pieces of ingestion that need no video."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gsavatar.batches import Batches
from gsavatar.clip import Clip, open_clip, split_rows
from gsavatar.errors import InputError
from gsavatar.ingest_sound import shifted
from gsavatar.plate import background_plate
from gsavatar.seeding import SeedCounts, project, seed_avatar
from gsavatar.sequence import Sequence, choose_frames
from gsavatar.types import Branch, Landmarks, Region


def test_split_is_chronological_with_a_guard() -> None:
    time_s = np.arange(0, 66, 0.04)
    train, test = split_rows(time_s, np.arange(len(time_s)))
    assert time_s[test[0]] == pytest.approx(60.0, abs=0.05) and test[-1] == len(time_s) - 1
    assert time_s[test[0]] - time_s[train[-1]] >= 0.5
    assert train[0] == 0


@pytest.mark.parametrize(("seconds", "expected"), [(10.0, 2.0), (3.0, 1.2)])
def test_short_clips_keep_a_test_part(seconds: float, expected: float) -> None:
    time_s = np.arange(0, seconds, 0.04)
    train, test = split_rows(time_s, np.arange(len(time_s)))
    assert len(test) * 0.04 == pytest.approx(expected, abs=0.1) and len(train) > 20


def test_rows_without_pictures_are_in_neither_part() -> None:
    time_s = np.arange(0, 22, 0.04)
    stored = np.where(np.arange(len(time_s)) % 3 == 0, np.arange(len(time_s)), -1)
    train, test = split_rows(time_s, stored)
    assert (train % 3 == 0).all() and (test % 3 == 0).all()


def test_a_clip_opens_as_it_was_saved(tiny_clip: Clip) -> None:
    again = open_clip(tiny_clip.root)
    assert torch.equal(again.track.coefficients, tiny_clip.track.coefficients)
    assert again.track.face.names == ("jawOpen", "eyeBlinkLeft")
    assert again.frame(3).shape == (512, 512, 3) and again.regions(3).shape == (512, 512)
    top, left, bottom, right = again.lips(3)
    assert 250 < top < 320 < bottom < 380 and 200 < left < 256 < right < 310
    assert again.features is None and again.audio is None


def test_a_row_is_a_frame_with_everything_known_about_it(tiny_clip: Clip) -> None:
    """The same that training draws, which keeps its pictures in other sizes."""
    row = int(tiny_clip.train_rows[7])
    frame, drawn = tiny_clip[row], Batches(tiny_clip, 64).box_at(row, (0, 0, 512, 512)).frame
    assert (frame.index, frame.time_s) == (row, pytest.approx(row / 25.0))
    assert frame.image.shape == (512, 512, 3) and 0.5 < float(frame.image.max()) <= 1.0
    assert int(Region.LIPS) in frame.regions
    for found, expected in (
        (frame, drawn), (frame.camera, drawn.camera), (frame.drive, drawn.drive),
    ):  # fmt: skip
        for field in fields(found):
            value = getattr(found, field.name)
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, getattr(expected, field.name)), field.name
    assert sum(1 for _ in replace(tiny_clip, stored=tiny_clip.stored[:3])) == 3


def test_a_loop_over_a_clip_does_not_end_where_a_picture_is_not_kept(tiny_clip: Clip) -> None:
    thinned = replace(tiny_clip, stored=np.where(np.arange(len(tiny_clip)) == 2, -1, 0))
    with pytest.raises(LookupError, match="picture of row 2 is not kept"):
        list(thinned)


def test_an_unfinished_clip_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no finished clip here"):
        open_clip(tmp_path)


def test_the_plate_shows_what_stands_behind() -> None:
    truth = np.random.default_rng(0).integers(0, 255, (512, 512, 3)).astype(np.uint8)
    frames = []
    for shift in (0, 300):
        picture, labels = truth.copy(), np.zeros((512, 512), np.uint8)
        picture[100:, 50 + shift : 150 + shift] = 255
        labels[100:, 50 + shift : 150 + shift] = int(Region.TORSO)
        frames.append((picture, labels))
    plate, unseen = background_plate(frames)
    assert unseen == 0.0
    only_first = np.s_[120:, 60:140]
    np.testing.assert_array_equal(plate[only_first], truth[only_first])


def test_the_plate_fills_what_was_never_seen() -> None:
    picture = np.full((512, 512, 3), 80, np.uint8)
    labels = np.zeros((512, 512), np.uint8)
    picture[200:, 100:400] = 250
    labels[200:, 100:400] = int(Region.TORSO)
    plate, unseen = background_plate([(picture, labels)])
    assert unseen == pytest.approx(0.38, abs=0.03)
    assert np.abs(plate.astype(int) - 80).max() <= 6  # paint; the person itself would be 170 off


def test_paint_meets_what_is_known_without_a_step() -> None:
    down, across = np.indices((512, 512))
    stripes = (128 + 60 * np.sin(across / 9) + 40 * np.sin(down / 23)).astype(np.uint8)
    picture = stripes[..., None].repeat(3, axis=2)
    labels = np.zeros((512, 512), np.uint8)
    labels[np.hypot(down - 256, across - 256) < 120] = int(Region.SKIN)
    plate, unseen = background_plate([(picture, labels)])
    known = np.hypot(down - 256, across - 256) > 145
    np.testing.assert_array_equal(plate[known], picture[known])
    steps = np.abs(np.diff(plate[..., 0].astype(int), axis=1))
    assert 0 < unseen < 1 and steps.max() <= np.abs(np.diff(stripes.astype(int), axis=1)).max() + 3


def test_a_collar_labelled_wrongly_in_some_frames_is_no_background() -> None:
    picture = np.full((512, 512, 3), 80, np.uint8)
    picture[200:, 100:400] = 250
    labels = np.zeros((512, 512), np.uint8)
    labels[200:, 100:400] = int(Region.TORSO)
    wrong = labels.copy()
    wrong[200:300, 100:200] = int(Region.BACKGROUND)
    plate, _ = background_plate([(picture, labels)] * 7 + [(picture, wrong)] * 3)
    assert np.abs(plate.astype(int) - 80).max() <= 6
    behind = picture.copy()  # another place is uncovered as rarely, and shows another colour
    behind[200:300, 100:200] = 30
    plate, _ = background_plate([(picture, labels)] * 7 + [(behind, wrong)] * 3)
    assert np.abs(plate[212:288, 112:188].astype(int) - 30).max() <= 6


@pytest.mark.parametrize("late_s", [0.25, -0.25, 0.0])
def test_late_sound_moves_forward(late_s: float) -> None:
    samples = np.arange(16_000, dtype=np.float32)
    moved = shifted(samples, late_s)
    assert len(moved) == len(samples)
    middle = 8000
    assert moved[middle] == samples[middle + round(late_s * 16_000)]


def test_long_footage_keeps_rare_frames() -> None:
    count = 20_000
    points = torch.zeros(count, 478, 3)
    points[:, 234, 0], points[:, 454, 0], points[:, 1, 0] = 100, 300, 200
    points[:, 10, 1], points[:, 152, 1] = 100, 300
    points[:, 14, 1] = 1.0
    rare = torch.arange(0, count, 500)
    points[rare, 14, 1] = 60.0
    sequence = Sequence(
        np.arange(count), np.arange(count) / 25.0, np.zeros(count, np.int64),
        Landmarks(points, torch.ones(count, dtype=torch.bool), None),
    )  # fmt: skip
    stored = choose_frames(sequence)
    assert (stored >= 0).sum() == 7500
    train_rare = rare[rare < count * 10 // 11 - 20].numpy()
    assert (stored[train_rare] >= 0).all()
    kept = stored[stored >= 0]
    np.testing.assert_array_equal(kept, np.arange(7500))
    # The tracker follows skin from frame to frame: pictures without neighbours are of no use to it.
    assert (np.diff(np.flatnonzero(stored >= 0)) == 1).mean() > 0.85


def test_seeds_lie_where_their_labels_are(tiny_clip: Clip) -> None:
    avatar = seed_avatar(tiny_clip, SeedCounts(400, 80, 150), 0, torch.Generator().manual_seed(0))
    assert [b.kind for b in avatar.branches] == [Branch.FACE, Branch.MOUTH, Branch.TORSO]
    labels = tiny_clip.regions(0)
    torso = avatar.branches[2]
    seen = project(torso.raw.means, torch.eye(4), tiny_clip.camera(0))
    under = labels[seen[:, 1].long().clamp(0, 511), seen[:, 0].long().clamp(0, 511)]
    assert np.isin(under, [int(Region.TORSO), int(Region.NECK)]).mean() > 0.9
    assert (torso.head_weight >= 0).all() and (torso.head_weight <= 1).all()
    face = avatar.branches[0]
    torch.testing.assert_close(face.motion(torch.zeros(2)).means, torch.zeros(400, 3))
    moved = face.motion(torch.tensor([1.0, 0.0])).means[:, 1]
    assert moved.min() < -0.015 and moved.max() < 1e-6
