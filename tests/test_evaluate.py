"""Evaluation: fakes that must score what they are, and a whole run of the cartoon clip."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gsavatar import baselines, evaluate, metrics, metrics_file, scoring
from gsavatar.clip import GUARD_S, Clip, open_clip
from gsavatar.config import Settings
from gsavatar.errors import InputError
from gsavatar.evaluate_samples import Samples
from gsavatar.frames import decode_png
from gsavatar.landmarks import RIGID_20
from gsavatar.package import Package, load_package, save_package
from gsavatar.pipeline import build_package
from gsavatar.render import render, to_uint8
from gsavatar.scoring import TEST_KEYS, Bench, Face, Painter, Scores, TestFrames
from gsavatar.seeding import SeedCounts, seed_avatar
from gsavatar.types import ARKIT_NAMES, Drive, is_upper_face

FEW = 4
"""Test frames of a whole run."""
INNER_MOUTH = np.array([40, 10, 10])
LIPS = np.array([180, 80, 80])


def see(picture: np.ndarray) -> list[Face]:
    """A landmarker of cartoons: finds the mouth by its colour, as ``conftest.make_clip`` put it."""
    small = picture[250:400, 150:362].astype(int)
    shown = (small - LIPS).clip(-40, 40).__abs__().sum(-1) < 60
    inside = np.abs(small - INNER_MOUTH).sum(-1) < 40
    if shown.sum() < 50:
        return []
    y, x = np.nonzero(shown | inside)
    y, x = y + 250, x + 150
    centre_x, centre_y = 0.5 * (x.min() + x.max()), 0.5 * (y.min() + y.max())
    half = 0.5 * (y.max() - y.min())
    points = np.zeros((478, 3), np.float32)
    angle = np.linspace(0, 2 * np.pi, 478)
    points[:, 0] = centre_x + 40 * np.cos(angle)
    points[:, 1] = centre_y + half * np.sin(angle)
    points[10, :2], points[152, :2] = (centre_x, 111), (centre_x, 401)
    points[13, :2] = (centre_x, centre_y - (half - 13))
    points[14, :2] = (centre_x, centre_y + (half - 13))
    for corners, (x0, x1, y0, y1) in (
        ((67, 297, 334, 105), (-60, 60, 165, 215)), ((193, 417, 399, 174), (-15, 15, 220, 280)),
    ):  # fmt: skip
        for index, dx, row in zip(corners, (x0, x1, x1, x0), (y0, y0, y1, y1), strict=True):
            points[index, :2] = (centre_x + dx, row)
    scores = np.full(52, 0.1, np.float32)
    scores[ARKIT_NAMES.index("jawOpen")] = half / 50
    return [Face(points, scores)]


def frames_of(clip: Clip, rows: np.ndarray) -> TestFrames:
    return TestFrames(
        clip.time_s.numpy()[rows], lambda i: clip.frame(int(rows[i])),
        lambda i: clip.regions(int(rows[i])),
    )  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Many small products: threads only wait for one another on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def rows(tiny_clip: Clip) -> np.ndarray:
    return np.arange(20, 42)


@pytest.fixture(scope="module")
def fakes(tiny_clip: Clip, rows: np.ndarray) -> Scores:
    """Systems of known quality, measured."""
    real = frames_of(tiny_clip, rows)

    def late(i: int) -> np.ndarray:
        return tiny_clip.frame(int(rows[i]) - 2)

    def dimmed(i: int) -> np.ndarray:
        picture = real.picture(i)
        return np.where(metrics.head_mask(real.regions(i))[..., None], picture, picture // 2)

    systems: dict[str, Painter] = {
        "identity": real.picture,
        "shifted": lambda i: np.roll(real.picture(i), 2, axis=1),
        "late": late,
        "dimmed": dimmed,
        "faceless": lambda i: np.zeros_like(real.picture(i)),
        "absent": lambda i: None,
    }
    return Bench(see, None, pasted=("identity", "dimmed")).score(real, systems)


def test_the_real_frames_are_perfect(fakes: Scores) -> None:
    found = scoring.summarise(fakes, "identity").values
    assert tuple(sorted(found)) == tuple(sorted(TEST_KEYS))
    assert found["psnr"] == found["psnr_head"] == found["psnr_mouth"] == 60.0
    assert found["ssim"] == pytest.approx(1.0) and found["ssim_head"] == pytest.approx(1.0)
    assert found["lmd_px"] == 0.0 and found["blendshape_mae_lower"] == 0.0
    assert found["mouth_open_corr"] == pytest.approx(1.0)
    assert found["mouth_open_lag_ms"] == pytest.approx(0.0, abs=1e-6)
    assert found["mouth_sharpness"] == pytest.approx(1.0)
    assert found["jitter_px"] == pytest.approx(0.0, abs=1e-4)
    assert found["closure_acc"] == 1.0 and found["frames"] == 22


def test_a_shifted_picture_costs_what_it_must(
    fakes: Scores, tiny_clip: Clip, rows: np.ndarray
) -> None:
    found = scoring.summarise(fakes, "shifted").values
    expected = []
    for row in rows:
        frame = tiny_clip.frame(int(row)).astype(float)
        error = (np.roll(frame, 2, axis=1) - frame)[metrics.head_mask(tiny_clip.regions(int(row)))]
        expected.append(-10 * np.log10((error**2).mean() / 255**2))
    assert found["psnr_head"] == pytest.approx(np.mean(expected), abs=1e-6)
    assert 15 < np.mean(expected) < 40
    assert found["lmd_px"] == pytest.approx(0.0, abs=1e-4)  # the mouth moved, its shape did not
    shift = fakes.sheets["shifted"].columns["shift_x"]
    assert np.nanmedian(shift) == pytest.approx(2.0, abs=0.02)
    assert found["jitter_px"] is not None and found["jitter_px"] < 0.02  # steadily wrong


def test_a_late_mouth_is_late(fakes: Scores) -> None:
    summary = scoring.summarise(fakes, "late")
    assert summary.values["mouth_open_lag_ms"] == pytest.approx(80.0, abs=4.0)
    low, high = summary.intervals["mouth_open_lag_ms"] or (0, 0)
    assert 60 < low <= high < 100


def test_a_late_mouth_misses_closures(fakes: Scores) -> None:
    real, late = fakes.opening < 0.010, fakes.sheets["late"].columns["opening"] < 0.010
    assert real.any() and (real != late).any()
    expected = 0.5 * ((real & late).sum() / real.sum() + (~real & ~late).sum() / (~real).sum())
    assert scoring.summarise(fakes, "late").values["closure_acc"] == pytest.approx(expected)


def test_pasting_hides_what_is_outside_the_head(fakes: Scores) -> None:
    assert scoring.pasted_values(fakes, "dimmed")["psnr"] == 60.0
    assert scoring.summarise(fakes, "dimmed").values["psnr"] < 20  # type: ignore[operator]


def test_what_cannot_be_measured_is_null_with_a_reason(fakes: Scores) -> None:
    for name in ("faceless", "absent"):
        summary = scoring.summarise(fakes, name)
        for key in ("lmd_px", "mouth_open_corr", "mouth_open_lag_ms", "closure_acc", "hold_px"):
            assert summary.values[key] is None, (name, key)
        nulls = {key for key, value in summary.values.items() if value is None}
        assert nulls == set(summary.reasons) and all(summary.reasons.values())
    assert fakes.sheets["faceless"].lost_faces == 22
    assert scoring.summarise(fakes, "absent").values["frames"] == 0


def test_intervals_hold_their_value(fakes: Scores) -> None:
    summary = scoring.summarise(fakes, "shifted")
    low, high = summary.intervals["psnr_head"] or (0, 0)
    assert low <= summary.values["psnr_head"] <= high  # type: ignore[operator]


# Baselines


def test_the_mean_frame_is_the_mean(tiny_clip: Clip) -> None:
    expected = np.mean([tiny_clip.frame(int(r)).astype(float) for r in tiny_clip.train_rows], 0)
    error = baselines.mean_picture(tiny_clip).astype(float) - expected
    assert np.abs(error).max() <= 0.5 + 1e-9


def test_the_nearest_pose_is_nearest(tiny_clip: Clip) -> None:
    points = torch.zeros(6, 478, 3)
    points[:, :, 0] = torch.tensor([0.0, 10, 20, 11, 1, 300])[:, None]
    points[1] = float("nan")
    found = baselines.nearest_pose_rows(points, np.array([0, 1, 2]), np.array([3, 4, 5]))
    assert found.tolist() == [2, 0, 2]


def test_the_nearest_pose_is_shown_from_the_training_part(tiny_clip: Clip) -> None:
    paint = baselines.nearest_pose_frame(tiny_clip, tiny_clip.test_rows)
    rigid = tiny_clip.landmarks.points[:, list(RIGID_20), :2].numpy()
    for i in (0, 20, 39):
        away = rigid[tiny_clip.train_rows] - rigid[tiny_clip.test_rows[i]]
        nearest = tiny_clip.train_rows[np.linalg.norm(away, axis=-1).mean(-1).argmin()]
        assert np.array_equal(paint(i), tiny_clip.frame(int(nearest)))


def test_the_frame_before_is_not_across_a_gap(tiny_clip: Clip) -> None:
    rows = np.array([0, 5])
    paint = baselines.previous_frame(tiny_clip, rows)
    assert paint(0) is None
    shown = paint(1)
    assert shown is not None and np.array_equal(shown, tiny_clip.frame(4))
    later = tiny_clip.track.time_s.clone()
    later[5:] += 1.0
    gap = replace(tiny_clip, track=replace(tiny_clip.track, time_s=later))
    assert baselines.previous_frame(gap, rows)(1) is None


# What drives the test


class Voice:
    """Speech that says the time."""

    names = ("jawOpen",)
    encoder = "fake"

    def __call__(self, features: object, time_s: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.asarray(time_s)).float()[:, None] / 10


@pytest.fixture
def package(tiny_clip: Clip) -> Package:
    avatar = seed_avatar(tiny_clip, SeedCounts(150, 40, 60), 1, torch.Generator().manual_seed(0))
    return build_package(tiny_clip, avatar, None, Settings())


def voiced(clip: Clip) -> Clip:
    """The clip as if it had sound."""
    copy = replace(clip)
    copy.__dict__["features"] = object()
    return copy


def test_lower_face_values_of_test_frames_are_never_read(tiny_clip: Clip, package: Package) -> None:
    spoken = replace(package, speech=Voice())  # type: ignore[arg-type]
    clip, rows = voiced(tiny_clip), tiny_clip.test_rows
    values = evaluate.drive_values(clip, spoken, rows, "audio")
    assert torch.allclose(values[:, 0], clip.time_s[torch.from_numpy(rows)].float() / 10)

    changed = clip.track.coefficients.clone()
    lower = [i for i, n in enumerate(clip.track.face.names) if not is_upper_face(n)]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))
    for column in lower:
        changed[rows, column] = changed[rows[order.numpy()], column]
    assert not torch.equal(changed, clip.track.coefficients)
    other = voiced(replace(clip, track=replace(clip.track, coefficients=changed)))
    assert torch.equal(evaluate.drive_values(other, spoken, rows, "audio"), values)
    assert not torch.equal(
        evaluate.drive_values(other, spoken, rows, "expression"),
        evaluate.drive_values(clip, spoken, rows, "expression"),
    )


def test_upper_face_comes_from_the_track(tiny_clip: Clip, package: Package) -> None:
    spoken = replace(package, speech=Voice())  # type: ignore[arg-type]
    rows = tiny_clip.test_rows
    changed = tiny_clip.track.coefficients.clone()
    blink = tiny_clip.track.face.names.index("eyeBlinkLeft")
    changed[rows, blink] = 0.7
    clip = voiced(replace(tiny_clip, track=replace(tiny_clip.track, coefficients=changed)))
    values = evaluate.drive_values(clip, spoken, rows, "audio")
    assert (values[:, package.names.index("eyeBlinkLeft")] == 0.7).all()


def test_a_still_mouth_keeps_the_upper_face() -> None:
    names = ("jawOpen", "eyeBlinkLeft")
    values, rest = torch.rand(5, 2), torch.tensor([0.25, 0.5])
    still = baselines.still_mouth_values(names, values, rest)
    assert (still[:, 0] == 0.25).all() and torch.equal(still[:, 1], values[:, 1])


# A whole run


class CartoonLandmarker:
    """``see`` in the landmarker's clothes."""

    def __enter__(self) -> CartoonLandmarker:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def detect(self, picture: np.ndarray) -> list[Face]:
        return see(picture)


@pytest.fixture
def run(tiny_clip: Clip, package: Package, tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "tiny"
    shutil.copytree(tiny_clip.root, folder / "clip")
    save_package(folder / "tiny.gsavatar", package)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "FaceLandmarker", CartoonLandmarker)
        patch.setattr(evaluate, "TIMED_FRAMES", 2)
        patch.setattr(evaluate, "WARM_UP_FRAMES", 1)
        patch.setattr(evaluate, "MIN_FOLD_FRAMES", 10)
        original = open_clip

        def few(root: Path) -> Clip:
            clip = original(root)
            return replace(clip, test_rows=clip.test_rows[:FEW])

        patch.setattr(evaluate, "open_clip", few)
        yield folder


def all_nulls(content: dict, path: str = "") -> Iterator[str]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from all_nulls(value, f"{path}{key}.")
        elif value is None:
            yield f"{path}{key}"


def test_a_silent_run_is_measured_by_expression(run: Path) -> None:
    info = {"fit_seconds": 12.0, "stages": {"decode": 3.0}, "peak_rss_mb": 900.0,
            "train_iters_per_s": 40.0, "av_offset_ms": None, "seed": 3}  # fmt: skip
    frames = run / "out"
    done: list[tuple[int, int]] = []
    found = evaluate.evaluate(run, frames, progress=lambda i, n: done.append((i, n)), fit_info=info)
    assert done[-1] == (FEW, FEW)
    assert json.loads((run / "metrics.json").read_text()) == found
    assert set(found) == set(metrics_file.skeleton())
    for section, value in metrics_file.skeleton().items():
        if isinstance(value, dict):
            assert set(found[section]) >= set(value), section
    assert found["protocol"]["drive"] == "expression" and found["protocol"]["seed"] == 3
    assert found["protocol"]["train_s"] == pytest.approx(open_clip(run / "clip").train_s)
    assert found["test"]["frames"] == FEW and found["test"]["psnr_head"] > 8
    for key in scoring.SPEECH_KEYS:
        assert found["test"][key] is None
    assert found["baselines"]["previous_frame"]["psnr"] > found["baselines"]["mean_frame"]["psnr"]
    assert found["speed"]["fit_seconds"] == 12.0 and found["speed"]["render_fps"] > 0
    assert found["model"]["gaussians"] == len(load_package(run / "tiny.gsavatar").avatar)
    explained = " ".join(found["notes"])
    missing = [
        path for path in all_nulls(found)
        if path not in explained and not path.startswith(("ci.", "test_expression."))
    ]  # fmt: skip
    assert not missing
    assert any("no usable sound" in note for note in found["notes"])

    names = sorted(p.name for p in (frames / "render").iterdir())
    assert names == sorted(p.name for p in (frames / "real").iterdir()) and len(names) == FEW
    assert all(re.fullmatch(r"\d{6}\.png", name) for name in names)
    clip = open_clip(run / "clip")
    first = clip.test_rows[0]
    real = decode_png((frames / "real" / f"{int(clip.frame_ids[first]):06d}.png").read_bytes())
    assert np.array_equal(real, clip.frame(int(first)))


def test_facts_of_the_fit_survive_a_later_evaluation(run: Path) -> None:
    earlier = metrics_file.skeleton()
    earlier["speed"] |= {"fit_seconds": 12.0, "stages": {"decode": 3.0}}
    metrics_file.write(run, earlier)
    again = evaluate.evaluate(run, run / "out", composite="pasted")
    assert again["speed"]["fit_seconds"] == 12.0 and again["speed"]["stages"] == {"decode": 3.0}
    clip = open_clip(run / "clip")
    row = int(clip.test_rows[0])
    name = f"{int(clip.frame_ids[row]):06d}.png"
    outside = ~metrics.head_mask(clip.regions(row))
    shown = decode_png((run / "out" / "render" / name).read_bytes())
    assert np.array_equal(shown[outside], clip.frame(row)[outside])


def test_expression_drive_is_kept_beside_audio_drive(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = load_package(run / "tiny.gsavatar")
    limited = evaluate.open_clip
    monkeypatch.setattr(evaluate, "open_clip", lambda root: voiced(limited(root)))
    spoken = replace(package, speech=Voice())  # type: ignore[arg-type]
    monkeypatch.setattr(evaluate, "load_package", lambda path: spoken)
    monkeypatch.setattr(evaluate, "cv_open_corr", lambda *_: 0.6)
    first = evaluate.evaluate(run)
    assert first["protocol"]["drive"] == "audio"
    assert first["speech"]["cv_open_corr"] == 0.6
    assert first["test"]["hold_px"] is not None
    assert first["test_expression"]["frames"] is None
    assert any(note.startswith("test_expression: not measured") for note in first["notes"])
    second = evaluate.evaluate(run, drive="expression")
    assert second["test"] == first["test"] and second["baselines"] == first["baselines"]
    assert second["test_expression"]["frames"] == FEW
    assert second["test_pasted"] == first["test_pasted"]
    assert second["test_expression_pasted"]["psnr"] > second["test_expression"]["psnr"]
    assert not any("not measured" in note for note in second["notes"])
    third = evaluate.evaluate(run)
    for section in ("test_expression", "test_expression_pasted"):
        assert third[section] == second[section]
    assert third["test"] == first["test"]
    assert sorted(third["notes"]) == sorted(second["notes"])


def test_no_test_metric_hangs_on_the_test_frames_lower_face(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was tracked there may be anything: speech alone moves the lower face of the test."""
    spoken = replace(load_package(run / "tiny.gsavatar"), speech=Voice())  # type: ignore[arg-type]
    limited = evaluate.open_clip
    shuffle = torch.Generator().manual_seed(1)

    def shuffled(root: Path) -> Clip:
        clip = voiced(limited(root))
        rows = torch.from_numpy(clip.test_rows)
        changed = clip.track.coefficients.clone()
        lower = [i for i, n in enumerate(clip.track.face.names) if not is_upper_face(n)]
        for column in lower:
            changed[rows, column] = torch.rand(len(rows), generator=shuffle)
        copy = voiced(replace(clip, track=replace(clip.track, coefficients=changed)))
        assert not torch.equal(copy.track.coefficients, clip.track.coefficients)
        return copy

    monkeypatch.setattr(evaluate, "load_package", lambda path: spoken)
    monkeypatch.setattr(evaluate, "cv_open_corr", lambda *_: 0.6)
    found = []
    for opened in (lambda root: voiced(limited(root)), shuffled):
        monkeypatch.setattr(evaluate, "open_clip", opened)
        found.append(evaluate.evaluate(run))
    for section in ("test", "test_pasted", "baselines", "protocol"):
        assert found[1][section] == found[0][section], section
    assert found[0]["protocol"]["drive"] == "audio" and found[0]["test"]["frames"] == FEW


@pytest.mark.parametrize("drive", ["audio", "expression"])
def test_what_is_measured_is_what_the_avatar_shows(
    run: Path, monkeypatch: pytest.MonkeyPatch, drive: str
) -> None:
    package, limited = load_package(run / "tiny.gsavatar"), evaluate.open_clip
    if drive == "audio":
        package = replace(package, speech=Voice())  # type: ignore[arg-type]
        monkeypatch.setattr(evaluate, "open_clip", lambda root: voiced(limited(root)))
        monkeypatch.setattr(evaluate, "load_package", lambda path: package)
        monkeypatch.setattr(evaluate, "cv_open_corr", lambda *_: 0.6)
    found = evaluate.evaluate(run, run / "out")
    clip = open_clip(run / "clip")
    scored = []
    for row in clip.test_rows[:FEW]:
        values = package.rest.clone()
        for column, name in enumerate(package.names):
            values[column] = clip.track.coefficients[row, clip.track.face.names.index(name)]
        if drive == "audio":
            values[package.names.index("jawOpen")] = clip.time_s[row] / 10  # what Voice says
        posed = package.avatar(Drive(values, clip.track.head_pose[row]))
        plate = torch.from_numpy(clip.plates[0]).float() / 255
        expected = to_uint8(render(posed, clip.camera(row), plate).rgb).numpy()
        name = f"{int(clip.frame_ids[row]):06d}.png"
        shown = decode_png((run / "out" / "render" / name).read_bytes())
        # drawn by the kernels alone, where rounding may go the other way
        assert np.abs(shown.astype(int) - expected).max() <= 1, name
        real = clip.frame(int(row))
        scored.append(metrics.psnr(shown, real, metrics.head_mask(clip.regions(int(row)))))
    assert found["protocol"]["drive"] == drive
    assert found["test"]["psnr_head"] == pytest.approx(np.mean(scored))


def test_the_sound_is_not_judged_on_test_frames(
    tiny_clip: Clip, package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[np.ndarray] = []
    monkeypatch.setattr(evaluate, "MIN_FOLD_FRAMES", 10)
    monkeypatch.setattr(
        evaluate, "cv_open_corr", lambda _, time_s, opening: heard.append(time_s) or 0.5
    )
    job = evaluate._Job(voiced(tiny_clip), package, "audio", primary=True)
    assert job._speech_correlation() == (0.5, "")
    first_test_s = float(tiny_clip.time_s[int(tiny_clip.test_rows[0])])
    assert len(heard[0]) > 10 and heard[0].max() <= first_test_s - GUARD_S


def test_a_run_without_an_avatar_is_refused(run: Path) -> None:
    (run / "tiny.gsavatar").unlink()
    with pytest.raises(InputError, match="no avatar here"):
        evaluate.evaluate(run)
    assert not (run / "metrics.json").exists()


def test_an_avatar_of_other_frames_is_refused(run: Path, package: Package) -> None:
    meta = json.loads((run / "clip" / "clip.json").read_text())
    last = open_clip(run / "clip").time_s[-1].item()
    moved = meta | {"test_from_s": last - 0.5}
    (run / "clip" / "clip.json").write_text(json.dumps(moved))
    with pytest.raises(InputError, match="was not trained on the training part of"):
        evaluate.evaluate(run)
    package.card["training_part"] = open_clip(run / "clip").training_part
    save_package(run / "tiny.gsavatar", package)
    assert evaluate.evaluate(run)["protocol"]["drive"] == "expression"


def test_a_place_that_cannot_hold_frames_is_refused_before_work(tmp_path: Path) -> None:
    taken = tmp_path / "frames"
    taken.write_text("a file")
    with pytest.raises(InputError, match=r"frames cannot be written there .*; choose another"):
        Samples(tmp_path / "evaluation", [1, 2], taken, "full")
