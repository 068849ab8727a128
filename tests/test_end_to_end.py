"""One small fit of the bundled sample: all files, all numbers, and the same bits after three kills.

Each run is a process of its own that kills itself with SIGKILL at a chosen point, so that nothing
depends on timing.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import zipfile
from importlib import resources
from itertools import islice
from pathlib import Path

import pytest

from gsavatar import audio, video
from gsavatar.film import render_film

SAMPLE = Path(str(resources.files("gsavatar.datasets"))) / "sample"
SECONDS = 5
RUNNER = """
import os, signal, sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
import torch
torch.set_num_threads(1)
from gsavatar import pipeline
from gsavatar.config import load_preset
from gsavatar.ingest import IngestOptions

clip, run = Path(sys.argv[1]), Path(sys.argv[2])
stage_to_die, step_to_die = sys.argv[3], int(sys.argv[4])

class Reporter:
    @contextmanager
    def stage(self, name):
        def progress(done, total):
            if name == stage_to_die and done >= step_to_die:
                os.kill(os.getpid(), signal.SIGKILL)
        yield progress
    def note(self, text):
        pass

settings = load_preset("preview")
small = replace(
    settings.train, size=64, steps=60, gaussians_max=1400, face_init=700, mouth_init=200,
    torso_init=300, checkpoint_every=20, validate_every=20,
)
pipeline.fit([clip], run, replace(settings, train=small), IngestOptions(), Reporter())
"""
KILLS = (("decode and find landmarks", 40), ("fit the face", 1), ("train the avatar", 33))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first seconds of the sample with its sound."""
    path = tmp_path_factory.mktemp("clip") / "short.mp4"
    sound = audio.load(SAMPLE / "speaker.mp4")[: SECONDS * 16_000]
    with video.VideoWriter(path, 512, 512, 25.0, audio=sound) as writer:
        for _, _, picture in islice(video.decode(SAMPLE / "speaker.mp4"), SECONDS * 25):
            writer.write(picture)
    return path


def run_fit(clip: Path, run: Path, die: tuple[str, int] = ("never", 0)) -> int:
    command = [sys.executable, "-c", RUNNER, str(clip), str(run), die[0], str(die[1])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GSAVATAR_THREADS": "1"}
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr[-2000:]
    return done.returncode


@pytest.fixture(scope="module")
def fitted(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "whole"
    assert run_fit(clip, run) == 0
    return run


def test_a_fit_leaves_an_avatar_numbers_and_a_report(fitted: Path) -> None:
    metrics = json.loads((fitted / "metrics.json").read_text())
    assert metrics["protocol"]["drive"] == "audio" and metrics["test"]["frames"] > 30
    assert metrics["test"]["psnr_head"] > metrics["baselines"]["mean_frame"]["psnr_head"]
    assert set(metrics["speed"]["stages"]) >= {"train the avatar", "fit the face"}
    assert "<html" in (fitted / "report.html").read_text()[:200].lower()
    assert (fitted / "whole.gsavatar").stat().st_size > 100_000
    rows = [json.loads(r) for r in (fitted / "train_log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [20, 40, 60] and all(r["loss"] < 0.5 for r in rows)


def test_a_run_killed_three_times_ends_bit_equal(clip: Path, fitted: Path, tmp_path: Path) -> None:
    run = tmp_path / "whole"
    for die in KILLS:
        assert run_fit(clip, run, die) == -signal.SIGKILL
        assert not (run / "whole.gsavatar").exists()
    assert run_fit(clip, run) == 0
    with (
        zipfile.ZipFile(run / "whole.gsavatar") as resumed,
        zipfile.ZipFile(fitted / "whole.gsavatar") as whole,
    ):
        for name in ("tensors.safetensors", "plate.png", "thumbnail.png"):
            assert resumed.read(name) == whole.read(name), name
    tests = [json.loads((r / "metrics.json").read_text())["test"] for r in (run, fitted)]
    assert tests[0] == tests[1]
    assert not list(run.rglob("*.partial"))


def test_a_finished_fit_is_not_done_again(clip: Path, fitted: Path) -> None:
    names = ("metrics.json", "report.html", "whole.gsavatar", "timing.json")
    before = [(fitted / name).read_bytes() for name in names]
    assert run_fit(clip, fitted) == 0
    assert [(fitted / name).read_bytes() for name in names] == before


def test_it_says_another_sentence_with_sound(fitted: Path, tmp_path: Path) -> None:
    out = tmp_path / "talk.mp4"
    render_film(fitted, out, audio=SAMPLE / "sentence.flac", camera="orbit", size=128)
    frames = sum(1 for _ in video.decode(out))
    seconds = len(audio.load(SAMPLE / "sentence.flac")) / 16_000
    assert abs(frames / 25 - seconds) <= 0.04
    heard = audio.load(out)
    assert abs(len(heard) / 16_000 - frames / 25) <= 0.04 and not audio.is_silent(heard)
