"""The whole job: footage to avatar, report and numbers, each part cached in the run folder."""

from __future__ import annotations

import json
import logging
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gsavatar import __version__, metrics_file
from gsavatar.avatar import Avatar
from gsavatar.clip import Clip, open_clip
from gsavatar.config import Settings
from gsavatar.devices import device_words
from gsavatar.errors import InputError
from gsavatar.evaluate import evaluate
from gsavatar.footage import Footage, as_footage
from gsavatar.frames import read_notes, write_text_atomic
from gsavatar.idle import jump_cuts
from gsavatar.ingest import IngestOptions, ingest
from gsavatar.landmarks import mouth_opening
from gsavatar.lpips_network import network_of
from gsavatar.package import Package, save_package
from gsavatar.performance import save_curves
from gsavatar.progress import Progress, Reporter
from gsavatar.render import render, to_uint8
from gsavatar.report import write_report
from gsavatar.report_words import few_seconds
from gsavatar.speech import SpeechMotion, fit_speech_motion
from gsavatar.tracking_report import FILM, write_tracking_report
from gsavatar.train import train
from gsavatar.train_state import newest_step
from gsavatar.types import Curves, Drive, is_upper_face, to_device

log = logging.getLogger("gsavatar")

LIVE_EVERY_S = 20.0
MAX_IDLE_GAP_S = 0.2
MAX_IDLE_FRAMES = 3000
LIMIT_PERCENTILES = (0.01, 0.99)


@dataclass(frozen=True)
class FitResult:
    """Where a finished fit left its results."""

    avatar_path: Path
    report_path: Path
    metrics: dict[str, Any]
    speaks: bool  # whether it can be driven by speech


def fit(
    videos: Sequence[Path | Footage], run: Path, settings: Settings, options: IngestOptions,
    reporter: Reporter, device: str = "cpu", started_s: float | None = None,
) -> FitResult:  # fmt: skip
    """Everything from videos or a prepared folder to ``run/NAME.gsavatar``, metrics and report.

    Continues whatever an earlier call in the same folder left, on whichever device; ``device`` is
    where the avatar is trained. The fit is timed from ``started_s`` on (monotonic), by default from
    now. Raises ``InputError`` if the footage cannot be used or ``run`` was made otherwise.
    """
    clock = _Clock(run, reporter, started_s)
    done = _finished(run, clock)
    if done is not None:
        reporter.note("This fit was finished before; nothing is done again.")
        return done
    network_of(settings.train.weights.lpips)  # refused before any work is spent
    clip = ingest(videos, run / "clip", options, clock)
    if len(clip.train_rows) < 10:
        raise InputError(
            f"{as_footage(videos[0]).path}: only {len(clip.train_rows)} training frames are left; "
            "give a longer clip."
        )
    for note in few_seconds(clip.train_s, settings.preset):
        clock.note(note)
    speech = None
    if clip.features is not None:
        with clock.stage("learn how speech moves the face"):
            speech = learn_speech(clip)
    live = _LiveFile(run / "live.gsavatar", clip, speech, settings, clock)
    if (run / "checkpoints").is_dir():
        kept = newest_step(run)
        reporter.note(
            f"Training goes on from step {kept} of {settings.train.steps}." if kept else
            "Training starts anew: it was stopped before its first checkpoint."
        )  # fmt: skip
    with clock.stage("train the avatar") as progress:
        pace = _Pace(progress)
        try:
            avatar = train(clip, settings.train, run, progress=pace, live=live, device=device)
        except torch.OutOfMemoryError as error:
            raise InputError(
                "the GPU has too little free memory; free some or train on the processor: continue "
                "with --resume and without --device."
            ) from error
        finally:
            clock.trained(pace.steps, pace.seconds)
    path = run / f"{avatar_name(run)}.gsavatar"
    package = build_package(clip, avatar, speech, settings)
    save_package(path, package, thumbnail(package))
    (run / "live.gsavatar").unlink(missing_ok=True)
    with clock.stage("measure on the test frames") as progress:
        metrics = evaluate(run, fit_info=clock.info(clip, settings, device), progress=progress)
    metrics["speed"]["fit_seconds"] = clock.seconds()
    metrics["speed"]["stages"] = dict(clock.stages)
    metrics_file.write(run, metrics)
    package.card["metrics"] = metrics["test"]
    save_package(path, package, thumbnail(package))
    with clock.stage("write the report"):
        report = write_report(run)
    clock.finish()
    return FitResult(path, report, metrics, speech is not None)


def _finished(run: Path, clock: _Clock) -> FitResult | None:
    """What an earlier call made, if it came to its end and its files are still there."""
    avatar, report = run / f"{avatar_name(run)}.gsavatar", run / "report.html"
    needed = (avatar, report, run / "metrics.json", run / "clip" / "clip.json")
    there = all(path.exists() for path in needed)
    if not (there and clock.before.get("finished")):
        return None
    metrics = read_notes(run / "metrics.json")
    return FitResult(avatar, report, metrics, metrics["protocol"]["drive"] == "audio")


class _Pace:
    """Passes progress on and notes how many steps were really taken, in what time."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.first: int | None = None
        self.steps, self.seconds, self.started = 0, 0.0, time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """A step was taken."""
        if self.first is None:
            self.first, self.started = done, time.monotonic()
        self.steps, self.seconds = done - self.first, time.monotonic() - self.started
        self.progress(done, total)


@dataclass(frozen=True)
class TrackResult:
    """Where a track left its results."""

    curves_path: Path
    report_path: Path
    film_path: Path


def track(
    videos: Sequence[Path | Footage], run: Path, options: IngestOptions, reporter: Reporter
) -> TrackResult:
    """The clip folder of some footage, its tracked performance as curves, and how good it is.

    Raises ``InputError`` when the footage cannot be used.
    """
    clock = _Clock(run, reporter)
    ingest(videos, run / "clip", options, clock)
    return describe_track(run, clock)


def describe_track(run: Path, reporter: Reporter) -> TrackResult:
    """Curves, report and film of a run whose footage is tracked already.

    Raises ``InputError`` if the run has no finished clip.
    """
    tracked = open_clip(run / "clip").track
    path = run / "curves.json"
    save_curves(
        path, Curves(tracked.face.names, tracked.time_s, tracked.coefficients, tracked.head_pose)
    )
    report = write_tracking_report(run, reporter)
    return TrackResult(path, report, run / FILM)


def avatar_name(run: Path) -> str:
    """The avatar's name: that of its run folder."""
    return run.resolve().name


def find_avatar(path: Path) -> Path:
    """The avatar file meant by a file or a run folder. Raises ``InputError`` if there is none."""
    if path.is_file():
        return path
    named = path / f"{avatar_name(path)}.gsavatar"
    live = path / "live.gsavatar"
    for candidate in (named, live):
        if candidate.exists():
            return candidate
    raise InputError(f"{path}: no avatar here; give a NAME.gsavatar file or the folder of a fit.")


def learn_speech(clip: Clip) -> SpeechMotion | None:
    """The motion model of a clip's training part; None if the clip is silent."""
    if clip.features is None or len(clip.train_rows) == 0:
        return None
    last = float(clip.time_s[int(clip.train_rows[-1])])
    rows = torch.nonzero(clip.time_s <= last)[:, 0]
    names = clip.track.face.names
    columns = [i for i, name in enumerate(names) if not is_upper_face(name)]
    return fit_speech_motion(
        clip.features,
        clip.time_s[rows].numpy(),
        clip.track.coefficients[rows][:, columns],
        tuple(names[i] for i in columns),
        weight=clip.track.weight[rows],
        opening=mouth_opening(clip.landmarks.points[rows]),
    )


def build_package(
    clip: Clip, avatar: Avatar, speech: SpeechMotion | None, settings: Settings
) -> Package:
    """The avatar with everything it needs to perform, from the training part alone."""
    last = float(clip.time_s[int(clip.train_rows[-1])])
    rows = torch.nonzero(clip.time_s <= last)[:, 0]
    values = clip.track.coefficients[rows]
    low, high = values.quantile(torch.tensor(LIMIT_PERCENTILES), dim=0)
    card = {
        "program": f"gsavatar {__version__}",
        "sources": [Path(s["path"]).name for s in clip.meta["sources"]],
        "training_part": clip.training_part,
        "preset": settings.preset,
        "train": asdict(settings.train),
        "provider": clip.meta["provider"],
        "speech_encoder": clip.meta.get("encoder"),
        "av_offset_ms": clip.meta.get("av_offset_ms"),
        "notes": clip.meta["notes"] + clip.meta.get("speech_notes", []),
    }
    return Package(
        avatar=avatar,
        camera=clip.track.cameras[0],
        plate=torch.from_numpy(clip.plates[0]).float() / 255.0,
        idle=idle_performance(clip, rows),
        speech=speech,
        limits=torch.stack((low, high), dim=-1),
        rest=values.mean(0),
        card=card,
    )


def idle_performance(clip: Clip, rows: torch.Tensor) -> Curves:
    """The longest stretch of the training part without gap or cut: poses and curves to replay."""
    times = clip.time_s[rows].numpy()
    files = clip.track.file_index[rows].numpy()
    gaps = np.flatnonzero((np.diff(times) > MAX_IDLE_GAP_S) | (np.diff(files) != 0)) + 1
    breaks = np.union1d(gaps, jump_cuts(clip.track.head_pose[rows]))
    edges = [0, *breaks.tolist(), len(rows)]
    spans = [(b - a, a, b) for a, b in pairwise(edges)]
    _, start, end = max(spans, key=lambda s: (s[0], -s[1]))
    picked = rows[start : min(end, start + MAX_IDLE_FRAMES)]
    track = clip.track
    return Curves(
        track.face.names, clip.time_s[picked] - clip.time_s[picked[0]],
        track.coefficients[picked], track.head_pose[picked],
    )  # fmt: skip


@torch.no_grad()
def thumbnail(package: Package) -> np.ndarray:
    """The avatar at rest from its own camera, uint8 [512, 512, 3]."""
    gaussians = package.avatar(Drive(package.rest, torch.eye(4)))
    return to_uint8(render(gaussians, package.camera, package.plate).rgb).numpy()


class _LiveFile:
    """Writes the avatar in training every 20 s for a viewer to pick up."""

    def __init__(
        self, path: Path, clip: Clip, speech: SpeechMotion | None, settings: Settings, clock: _Clock
    ) -> None:
        self.path, self.clip, self.speech, self.settings = path, clip, speech, settings
        self.clock = clock
        self.next = time.monotonic() + LIVE_EVERY_S

    def __call__(self, avatar: Avatar, step: int) -> None:
        if time.monotonic() < self.next:
            return
        with torch.no_grad():
            here = to_device(avatar, "cpu")
        package = build_package(self.clip, here, self.speech, self.settings)
        package.card["step"] = step
        save_package(self.path, package)
        self.clock.save()
        self.next = time.monotonic() + LIVE_EVERY_S


class _Clock:
    """A reporter that also times every stage, summed over resumed runs."""

    def __init__(self, run: Path, reporter: Reporter, started_s: float | None = None) -> None:
        self.path = run / "timing.json"
        self.reporter = reporter
        run.mkdir(parents=True, exist_ok=True)
        self.before = read_notes(self.path) if self.path.exists() else {}
        self.stages: dict[str, float] = dict(self.before.get("stages", {}))
        self.train_steps = int(self.before.get("train_steps", 0))
        self.train_seconds = float(self.before.get("train_seconds", 0.0))
        self.finished = False
        self.started = time.monotonic() if started_s is None else started_s

    @contextmanager
    def stage(self, name: str) -> Iterator[Any]:
        """A stage of the reporter, timed."""
        started = time.monotonic()
        try:
            with self.reporter.stage(name) as progress:
                yield progress
        finally:  # an interrupted session counts as well
            self.stages[name] = self.stages.get(name, 0.0) + time.monotonic() - started
            with suppress(OSError):  # a full disk must not hide what went wrong
                self.save()

    def note(self, text: str) -> None:
        """Passes a note on."""
        self.reporter.note(text)

    def seconds(self) -> float:
        """Wall time of this and all earlier runs."""
        return float(self.before.get("fit_seconds", 0.0)) + time.monotonic() - self.started

    def trained(self, steps: int, seconds: float) -> None:
        """Adds training steps that were really taken, over all resumes."""
        self.train_steps += steps
        self.train_seconds += seconds

    def finish(self) -> None:
        """Notes that the fit came to its end."""
        self.finished = True
        self.save()

    def save(self) -> None:
        """Keeps the times for a resumed run."""
        state = {
            "finished": self.finished, "train_steps": self.train_steps,
            "train_seconds": self.train_seconds,
            "fit_seconds": self.seconds(), "stages": self.stages,
            "peak_rss_mb": max(peak_rss_mb(), float(self.before.get("peak_rss_mb", 0.0))),
        }  # fmt: skip
        write_text_atomic(self.path, json.dumps(state))

    def info(self, clip: Clip, settings: Settings, device: str) -> dict[str, Any]:
        """What only the fit knows of the numbers in metrics.json."""
        self.save()
        rate = self.train_steps / self.train_seconds if self.train_seconds > 0 else None
        return {
            **json.loads(self.path.read_text()), "train_iters_per_s": rate,
            "av_offset_ms": clip.meta.get("av_offset_ms"), "seed": settings.train.seed,
            "device": device_words(device),
        }  # fmt: skip


def peak_rss_mb() -> float:
    """Largest resident memory so far of any one process of the tree, in MiB.

    The fit is one process. What it forks for a moment shares its pages, which the system counts
    again for the child: a sum would count them twice.
    """
    unit = 1 if sys.platform == "darwin" else 1024
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(part).ru_maxrss for part in who) * unit / 2**20


__all__ = ["FitResult", "IngestOptions", "find_avatar", "fit", "track"]
