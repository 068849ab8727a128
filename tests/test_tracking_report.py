"""The tracking report: its measures against known motion, its page and its film."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_clip
from test_report import read

from gsavatar import pipeline, tracking_sounds, tracking_words, video
from gsavatar.cli import main
from gsavatar.clip import Clip, load_track, open_clip, save_meta, save_track
from gsavatar.morphable import FITTED_POINTS
from gsavatar.progress import SilentReporter
from gsavatar.sequence import Sequence, load_sequence, save_sequence
from gsavatar.tracking_measures import dropped, head_angles, measure, reprojection, total_frames
from gsavatar.tracking_overlay import MAX_FRAMES, PANEL, chosen_rows, level_lines
from gsavatar.tracking_report import FILM, PAGE
from gsavatar.tracking_sounds import hissing, runs, sound_kinds
from gsavatar.tracking_steadiness import (
    SEGMENT,
    head_points,
    path_px,
    residual_motion,
    spectrum,
)
from gsavatar.types import Landmarks

RATE = 16_000


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tracked run of the cartoon whose file had five more frames, two of them without a face."""
    root = tmp_path_factory.mktemp("tracked") / "me & <you>"
    clip = make_clip(root / "clip", frames=40)
    found = torch.ones(42, dtype=torch.bool)
    found[40:] = False
    points = torch.cat((clip.landmarks.points, torch.full((2, 478, 3), torch.nan)))
    sequence = Sequence(
        np.arange(42), np.arange(42) / 25.0, np.zeros(42, np.int64), Landmarks(points, found, None)
    )
    save_sequence(root / "clip", sequence, np.arange(42))
    source = {
        "path": "/home/me/a <b>clip.mp4", "width": 640, "height": 480, "fps": 25.0,
        "duration_s": 1.8, "crop": [0.0, 10.0, 480.0, 490.0], "first_index": 0, "last_index": 41,
        "frames": 45,
    }  # fmt: skip
    notes = ["2 of 42 frames show no face and are skipped (the first is frame 40)."]
    save_meta(
        root / "clip",
        {"sources": [source], "notes": notes, "provider": "tiny", "focal_sigma": 0.03,
         "speech_notes": ["The sound was 75 ms late; corrected."], "av_offset_ms": 75.0,
         "av_offset_confidence": 0.9},
    )  # fmt: skip
    (root / "config.toml").write_text('preset = "preview"\nmodel_file = "/home/me/flame.pkl"\n')
    return root


def test_every_dropped_frame_has_a_reason(run: Path) -> None:
    clip, (sequence, _) = open_clip(run / "clip"), load_sequence(run / "clip")
    parts = dropped(clip, sequence)
    assert total_frames(clip) == 45
    assert [(d.first, d.last, d.reason) for d in parts] == [
        (40, 41, "no face found"), (42, 44, "behind the longest scene"),
    ]  # fmt: skip
    assert parts[0].start_s == pytest.approx(1.6)
    assert sum(d.count for d in parts) + len(clip) == total_frames(clip)


def test_frames_of_a_second_file_are_counted_from_its_start(run: Path) -> None:
    clip, (sequence, _) = open_clip(run / "clip"), load_sequence(run / "clip")
    first = clip.meta["sources"][0] | {"last_index": 19, "frames": 21, "duration_s": 0.84}
    second = first | {"first_index": 2, "last_index": 21, "frames": 22}
    clip.meta["sources"] = [first, second]
    keep = np.setdiff1d(np.arange(40), (20, 21))  # before the second file's scene nothing is read
    rows = torch.from_numpy(keep)
    track = replace(clip.track, frame_ids=clip.frame_ids[rows])
    known = replace(sequence, frame_ids=keep, landmarks=Landmarks(
        sequence.landmarks.points[rows], sequence.landmarks.found[rows], None))  # fmt: skip
    parts = dropped(replace(clip, track=track), known)
    assert [(d.source, d.first, d.last, d.reason) for d in parts] == [
        (0, 20, 20, "behind the longest scene"), (1, 0, 1, "before the longest scene"),
        (1, 20, 21, "missing or damaged in the file"),
    ]  # fmt: skip


def with_landmark_places(clip: Clip, away_px: float) -> Clip:
    """The clip with landmarks ``away_px`` to the right of vertices of its mesh."""
    corner = torch.arange(len(FITTED_POINTS)) % 200
    shares = torch.zeros(len(FITTED_POINTS), 3)
    shares[:, 0] = 1.0
    face = replace(
        clip.track.face, landmark_corners=corner[:, None].repeat(1, 3), landmark_shares=shares
    )
    track = replace(clip.track, face=face)
    points = clip.landmarks.points.clone()
    for row in range(len(clip)):
        moved = face.vertices + torch.einsum("k,kvc->vc", track.coefficients[row], face.basis)
        pixels = path_px(track, np.array([row]), moved[corner].double().numpy())[0]
        points[row, FITTED_POINTS, :2] = torch.from_numpy(pixels).float()
    points[..., 0] += away_px
    return replace(clip, track=track, landmarks=Landmarks(points, clip.landmarks.found, None))


def test_reprojection_is_the_distance_from_the_mesh(run: Path) -> None:
    clip = open_clip(run / "clip")
    assert reprojection(clip) is None  # its version kept no places of landmarks
    fit = reprojection(with_landmark_places(clip, 2.0))
    assert fit is not None and fit.frame_px == pytest.approx(np.full(40, 2.0), abs=1e-3)
    assert fit.part_px["lips"] == pytest.approx(2.0, abs=1e-3)


def test_places_of_landmarks_are_kept_with_the_track(run: Path, tmp_path: Path) -> None:
    clip = with_landmark_places(open_clip(run / "clip"), 0.0)
    save_track(tmp_path / "track", clip.track, clip.landmarks, clip.stored)
    face = load_track(tmp_path / "track")[0].face
    assert face.landmark_corners is not None and face.landmark_shares is not None
    assert torch.equal(face.landmark_corners, clip.track.face.landmark_corners)  # type: ignore[arg-type]
    assert torch.equal(face.landmark_shares, clip.track.face.landmark_shares)  # type: ignore[arg-type]


def test_angles_have_the_signs_that_are_named(run: Path) -> None:
    clip = open_clip(run / "clip")
    pose = clip.track.head_pose.clone()
    for row, (axis, angle) in enumerate(((1, 0.3), (0, -0.2), (2, 0.1))):
        turn = torch.zeros(3)
        turn[axis] = angle
        pose[row, :3, :3] = torch.matrix_exp(
            torch.linalg.cross(torch.eye(3), turn.expand(3, 3), dim=1).T
        )
    yaw, pitch, roll = head_angles(replace(clip, track=replace(clip.track, head_pose=pose)))
    assert abs(yaw[0]) == pytest.approx(np.degrees(0.3), abs=0.01)
    assert abs(pitch[1]) == pytest.approx(np.degrees(0.2), abs=0.01)
    assert abs(roll[2]) == pytest.approx(np.degrees(0.1), abs=0.01)
    ahead = pose[0, :3, 2]  # +x of the head frame is the person's left
    assert np.sign(yaw[0]) == np.sign(float(ahead[0]))
    assert np.sign(pitch[1]) == np.sign(float(pose[1, 1, 2]))
    assert np.sign(roll[2]) == np.sign(float(pose[2, 0, 1]))


# Steadiness


def textured(count: int, path: np.ndarray) -> list[np.ndarray]:
    """Pictures of one smooth texture moved along ``path`` [T, 2] in pixels."""
    y, x = np.mgrid[:160, :160].astype(np.float64)
    rng = np.random.default_rng(3)
    waves = [(*rng.uniform(-0.35, 0.35, 2), rng.uniform(0, 6)) for _ in range(12)]
    pictures = []
    for dx, dy in path[:count]:
        level = sum(np.sin(a * (x - dx) + b * (y - dy) + c) for a, b, c in waves)
        grey = np.clip(128 + 12 * np.asarray(level), 0, 255)
        pictures.append(np.repeat(grey[..., None], 3, 2).round().astype(np.uint8))
    return pictures


def test_what_a_path_misses_is_what_moves_on() -> None:
    rng = np.random.default_rng(0)
    true = np.cumsum(rng.uniform(-1.0, 1.0, (12, 2)), 0)
    noise = rng.normal(0, 0.4, (12, 2))
    pictures = textured(12, true)
    corners = np.array([[60.0, 60.0], [100.0, 60.0], [60.0, 100.0], [100.0, 95.0]])
    centres = corners + 2.0
    paths = [corners + (true - true[4])[:, None], corners + (true - true[4] + noise)[:, None]]
    right, wrong = residual_motion(lambda t: pictures[t], paths, 4, centres, np.ones(11, bool))
    assert right.rms_px < 0.05 and right.jitter_px < 0.05
    # A path that goes too far leaves the skin behind it.
    np.testing.assert_allclose(wrong.motion_px, -np.diff(noise, axis=0), atol=0.1)


def test_frames_behind_a_gap_are_not_compared() -> None:
    pictures = textured(4, np.zeros((4, 2)))
    path = np.tile(np.array([[60.0, 60.0], [100.0, 60.0], [60.0, 100.0]]), (4, 1, 1))
    (found,) = residual_motion(
        lambda t: pictures[t], [path], 0, path[0], np.array([True, False, True])
    )
    assert np.isfinite(found.motion_px).all(1).tolist() == [True, False, True]


def test_the_spectrum_finds_the_frequency_and_keeps_the_power() -> None:
    time = np.arange(4 * SEGMENT) / 25.0
    motion = np.stack((np.sin(2 * np.pi * 6.25 * time), np.zeros_like(time)), -1)
    hz, level = spectrum(motion, 25.0)
    assert hz[level.argmax()] == pytest.approx(6.25)
    assert (level**2).sum() == pytest.approx((motion**2).sum(1).mean(), rel=0.02)
    assert len(spectrum(motion[: SEGMENT - 1], 25.0)[0]) == 0


def test_a_pixel_sees_the_place_that_is_drawn_there(run: Path) -> None:
    clip = open_clip(run / "clip")
    pixels = np.array([[256.0, 256.0], [300.0, 200.0], [5.0, 5.0]])
    places = head_points(clip.track, 7, pixels)
    assert len(places) == 2  # the last looks past the head
    back = path_px(clip.track, np.array([7]), places)[0]  # the cartoon's mouth moves none of them
    np.testing.assert_allclose(back, pixels[:2], atol=1e-3)


# Film


def test_lines_lie_at_equal_heights_and_breadths() -> None:
    vertices = np.array([[0.0, 0, 0], [0.05, 0, 0], [0.05, 0.04, 0.01], [0, 0.04, 0.02]])
    lines = level_lines(vertices, np.array([[0, 1, 2], [0, 2, 3]]), 0.015)
    ends = vertices[lines.ends]
    at = ends[:, :, 0] * (1 - lines.share[..., None]) + ends[:, :, 1] * lines.share[..., None]
    off = np.abs(at / 0.015 - np.round(at / 0.015))[..., :2].max(1)  # [S, 2]
    assert len(at) >= 10 and (off.min(1) < 1e-9).all()
    assert len(level_lines(vertices, np.zeros((0, 3), np.int64), 0.015).share) == 0


def test_a_long_clip_is_drawn_in_stretches_from_all_over_it(run: Path) -> None:
    clip = replace(open_clip(run / "clip"), stored=np.arange(5000))
    rows = chosen_rows(clip)
    assert len(rows) == MAX_FRAMES and rows[0] < 700 and rows[-1] > 4300
    assert (np.diff(rows) == 1).mean() > 0.97


# Sounds


def test_hisses_are_told_from_hums() -> None:
    time = np.arange(RATE) / RATE
    noise = np.random.default_rng(0).normal(size=RATE)
    high = np.fft.irfft(np.fft.rfft(noise) * (np.fft.rfftfreq(RATE, 1 / RATE) > 4000))
    sound = np.where(time < 0.5, 0.3 * np.sin(2 * np.pi * 200 * time), 0.2 * high)
    found = hissing(sound.astype(np.float32), np.array([0.2, 0.3, 0.7, 0.8]))
    assert found.tolist() == [False, False, True, True]
    assert not hissing(np.zeros(RATE, np.float32), np.array([0.2, 0.3])).any()


def test_kinds_of_sounds_are_counted(run: Path) -> None:
    kinds = {k.name: k for k in sound_kinds(open_clip(run / "clip"))}
    assert set(kinds) == {"lips closed", "wide open", "rounded", "spread"}  # the clip is silent
    assert kinds["wide open"].times == 3 and kinds["wide open"].seconds > 0.3
    assert runs(np.array([True, True, False, True])) == 2
    assert tracking_sounds.ENOUGH > 1


# The page


def test_the_report_says_what_was_found(run: Path) -> None:
    (run / "timing.json").write_text('{"finished": true, "fit_seconds": 5.0}')
    result = pipeline.describe_track(run, SilentReporter())
    assert result.report_path == run / PAGE and result.film_path == run / FILM
    text, page = read(result.report_path)
    raw = result.report_path.read_text()
    assert "/home/me" not in raw and "flame.pkl" not in raw
    assert "me & <you>" in text and "a <b>clip.mp4" in text  # escaped, not interpreted
    outside = [a for a in page.addresses if not a.startswith("data:image/jpeg;base64,")]
    assert outside == [FILM] and len(page.addresses) > 4
    for words in (
        "40 of 45", "behind the longest scene", "no face found", "75 ms late", "3.0 %", "yaw",
        "jawOpen", "wide open", "What it means", "inner mouth", "64 neighbouring frames",
    ):  # fmt: skip
        assert words in text, words
    assert "nan" not in text.lower() and "None:" not in text
    info = video.probe(run / FILM)
    assert (info.width, info.height, info.frames) == (2 * PANEL, PANEL, 40)
    assert json.loads((run / "curves.json").read_text())["format"] == "gsavatar-curves"
    assert json.loads((run / "timing.json").read_text())["finished"]  # a fit stays finished


def test_a_finished_run_stands_in_place_of_footage(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / FILM).unlink(missing_ok=True)
    assert main(["track", str(run)]) == 0
    assert str(run / PAGE) in capsys.readouterr().out and (run / FILM).exists()


def test_measures_of_a_clip_without_pictures_leave_steadiness_out(run: Path) -> None:
    clip, (sequence, _) = open_clip(run / "clip"), load_sequence(run / "clip")
    assert measure(clip, sequence).steadiness is not None
    bare = replace(clip, stored=np.full(len(clip), -1))
    assert measure(bare, sequence).steadiness is None


def test_an_offset_that_could_not_be_told_is_not_shown(run: Path) -> None:
    clip, (sequence, _) = open_clip(run / "clip"), load_sequence(run / "clip")
    measures = measure(clip, sequence)
    for sure, value, beside in ((0.9, "75", "the sound is late"), (0.1, "–", "could not be told")):
        tile = tracking_words.tiles(measures, clip.meta | {"av_offset_confidence": sure})[-1]
        assert tile.value == value and beside in tile.beside
