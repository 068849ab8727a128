"""What a fit learns from the training part alone, and the facts only a fit knows."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from importlib import resources
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gsavatar import ingest_sound, pipeline, speech
from gsavatar.clip import GUARD_S, Clip
from gsavatar.config import Settings, load_preset
from gsavatar.errors import InputError
from gsavatar.package import Package
from gsavatar.pipeline import IngestOptions, build_package, learn_speech
from gsavatar.progress import SilentReporter
from gsavatar.seeding import SeedCounts, seed_avatar
from gsavatar.sequence import load_sequence
from gsavatar.types import Landmarks

SAMPLE = Path(str(resources.files("gsavatar.datasets"))) / "sample" / "speaker.mp4"


def with_another_test_part(clip: Clip) -> Clip:
    """The clip with other coefficients, poses and landmarks from the guard before the test on."""
    later = torch.arange(len(clip)) >= int(clip.train_rows[-1]) + 1
    assert float(clip.time_s[later][0]) < float(clip.time_s[int(clip.test_rows[0])]) - 0.8 * GUARD_S
    track = clip.track
    pose = track.head_pose.clone()
    pose[later, 1, 3] += 0.05
    coefficients = torch.where(later[:, None], 3.0 - track.coefficients, track.coefficients)
    points = clip.landmarks.points.clone()
    points[later, 14, 1] += 40.0
    return replace(
        clip, track=replace(track, head_pose=pose, coefficients=coefficients),
        landmarks=Landmarks(points, clip.landmarks.found, None),
    )  # fmt: skip


@pytest.fixture(scope="module")
def talking(tiny_clip: Clip) -> Clip:
    """The cartoon with a tone as loud as its mouth is open."""
    time = np.arange(4 * 16_000) / 16_000
    loudness = 0.5 - 0.5 * np.cos(2 * np.pi * 1.5 * time)
    sound = (0.4 * loudness * np.sin(2 * np.pi * 220 * time)).astype(np.float32)
    copy = replace(tiny_clip)
    copy.__dict__["features"] = speech.extract(sound, encoder="log_mel")
    return copy


def test_speech_is_learnt_from_the_training_part(talking: Clip) -> None:
    other = with_another_test_part(talking)
    other.__dict__["features"] = talking.features
    (first, _), (second, _) = (learn_speech(clip).state() for clip in (talking, other))  # type: ignore[union-attr]
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_an_avatar_is_built_from_the_training_part(tiny_clip: Clip) -> None:
    avatar = seed_avatar(tiny_clip, SeedCounts(60, 20, 30), 0, torch.Generator().manual_seed(0))

    def built(clip: Clip) -> Package:
        return build_package(clip, avatar, None, Settings())

    first, second = built(tiny_clip), built(with_another_test_part(tiny_clip))
    assert torch.equal(first.limits, second.limits) and torch.equal(first.rest, second.rest)
    assert torch.equal(first.idle.values, second.idle.values)
    assert torch.equal(first.idle.head_pose, second.idle.head_pose)


class Stopped(Exception):
    """Ends a fit before it trains."""


@pytest.mark.parametrize("preset", ["preview", "fewshot"])
def test_a_fit_from_seconds_says_so_before_it_trains(
    tiny_clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preset: str
) -> None:
    told: list[str] = []
    reporter = SilentReporter()
    monkeypatch.setattr(reporter, "note", told.append)
    monkeypatch.setattr(pipeline, "ingest", lambda *_: tiny_clip)

    def stop(*_: object, **__: object) -> None:
        raise Stopped

    monkeypatch.setattr(pipeline, "train", stop)
    with pytest.raises(Stopped):
        settings = load_preset(preset)
        pipeline.fit([tmp_path / "a.mp4"], tmp_path / "run", settings, IngestOptions(), reporter)
    assert any("--preset fewshot" in note for note in told) == (preset == "preview")


def test_memory_is_that_of_the_process_over_all_its_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Of a child the system counts what it shares with the process it was forked from once more.
    used = {pipeline.resource.RUSAGE_SELF: 340, pipeline.resource.RUSAGE_CHILDREN: 330}
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10  # bytes there, kilobytes elsewhere
    monkeypatch.setattr(
        pipeline.resource, "getrusage",
        lambda who: SimpleNamespace(ru_maxrss=used[who] * unit),
    )  # fmt: skip
    assert pipeline.peak_rss_mb() == pytest.approx(340.0)
    clip = SimpleNamespace(meta={"av_offset_ms": 80.0})
    clock = pipeline._Clock(tmp_path, SilentReporter())
    info = clock.info(clip, Settings(), "cpu")  # type: ignore[arg-type]
    assert info["peak_rss_mb"] == pytest.approx(340.0) and info["device"].startswith("cpu, ")
    used[pipeline.resource.RUSAGE_SELF] = 100  # a resumed run that needed less
    info = pipeline._Clock(tmp_path, SilentReporter()).info(clip, Settings(), "cpu")  # type: ignore[arg-type]
    assert info["peak_rss_mb"] == pytest.approx(340.0) and info["av_offset_ms"] == 80.0


@pytest.mark.parametrize("damage", ["{", "", "[1]"])
def test_damaged_notes_are_named_with_their_cure(tmp_path: Path, damage: str) -> None:
    (tmp_path / "timing.json").write_text(damage)
    with pytest.raises(InputError, match="damaged; delete it and continue with --resume"):
        pipeline._Clock(tmp_path, SilentReporter())
    clip = tmp_path / "clip"
    clip.mkdir()
    for name in ("decode.json", "speech.json"):
        (clip / name).write_text(damage)
        with pytest.raises(InputError, match=f"{name}: damaged; delete it"):
            if name == "speech.json":
                ingest_sound.hear([], [], clip, SilentReporter(), correct_offset=True)
            else:
                pipeline.ingest([SAMPLE], clip, IngestOptions(), SilentReporter())
    (clip / "landmarks.safetensors").write_bytes(b"\x80" + damage.encode())
    with pytest.raises(InputError, match=r"landmarks\.safetensors: damaged.*--resume"):
        load_sequence(clip)


def test_a_finished_fit_without_its_clip_goes_on(tmp_path: Path) -> None:
    notes = {"finished": True, "stages": {}, "train_steps": 0}
    (tmp_path / "timing.json").write_text(json.dumps(notes))
    (tmp_path / "metrics.json").write_text(json.dumps({"protocol": {"drive": "audio"}}))
    (tmp_path / "clip").mkdir()
    name = pipeline.avatar_name(tmp_path)
    for path in (f"{name}.gsavatar", "report.html", "clip/clip.json"):
        assert pipeline._finished(tmp_path, pipeline._Clock(tmp_path, SilentReporter())) is None
        (tmp_path / path).write_text("{}")
    assert pipeline._finished(tmp_path, pipeline._Clock(tmp_path, SilentReporter())) is not None


def test_the_time_of_an_interrupted_stage_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter([0.0, 10.0, 17.0, 17.0, 17.0])
    monkeypatch.setattr(pipeline, "time", SimpleNamespace(monotonic=lambda: next(now)))
    clock = pipeline._Clock(tmp_path, SilentReporter())
    with pytest.raises(KeyboardInterrupt), clock.stage("train the avatar"):
        raise KeyboardInterrupt
    kept = json.loads((tmp_path / "timing.json").read_text())
    assert kept["stages"] == {"train the avatar": 7.0} and kept["fit_seconds"] == 17.0
