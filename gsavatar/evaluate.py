"""How good an avatar is on frames it never saw: ``metrics.json`` and what the report shows.

On test frames the avatar is given the sound, the tracked head pose and the tracked upper face;
its mouth comes from the sound alone. Silent clips are driven by the tracked expression, and then
everything that is about speech is null.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gsavatar import baselines, metrics, metrics_file, metrics_motion, metrics_mouth, scoring
from gsavatar.avatar_packed import Draw, open_draw
from gsavatar.clip import Clip, open_clip
from gsavatar.errors import InputError
from gsavatar.evaluate_samples import FOLDER, Samples
from gsavatar.landmarks import FaceLandmarker, mouth_opening
from gsavatar.metrics import UInt8
from gsavatar.metrics_file import BASELINES, EXPRESSION, EXPRESSION_PASTED
from gsavatar.package import Package, load_package
from gsavatar.render import to_uint8
from gsavatar.scoring import Bench, Painter, Scores, Summary, TestFrames
from gsavatar.speech import cv_open_corr
from gsavatar.types import Drive, is_upper_face

OURS = "avatar"
HOLD_FRAMES = 125
TIMED_FRAMES = 20
WARM_UP_FRAMES = 3
MIN_FOLD_FRAMES = 50
NO_SOUND = "the clip has no usable sound; the avatar is driven by the tracked expression"
NO_DRIVE = "nothing is driven by the sound here"

Progress = Callable[[int, int], None]
Rows = NDArray[np.int64]


def evaluate(
    run_dir: Path,
    frames_dir: Path | None = None,
    drive: str = "audio",
    composite: str = "full",
    progress: Progress | None = None,
    *,
    fit_info: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Measures a run on its test frames and writes ``run_dir/metrics.json``; returns its contents.

    ``drive`` "expression" fills ``test_expression`` (of a silent clip ``test``) and keeps the rest.
    ``frames_dir`` gets ``render/NNNNNN.png`` and ``real/NNNNNN.png`` of every test frame; with
    ``composite`` "pasted" the rendered head on the real picture. ``fit_info`` holds what only the
    fit knows (fit_seconds, stages, peak_rss_mb, train_iters_per_s, av_offset_ms, seed); without it
    the values of an existing file stay. Raises ``InputError`` if the run has no clip, avatar or
    test frames, or the avatar was trained on other frames than the clip says.
    """
    from gsavatar.pipeline import find_avatar

    clip = open_clip(run_dir / "clip")
    avatar = find_avatar(run_dir)
    package = load_package(avatar)
    if package.card.get("training_part", clip.training_part) != clip.training_part:
        raise InputError(
            f"{avatar}: was not trained on the training part of {run_dir / 'clip'}, so its test "
            "frames prove nothing; fit again into another --out."
        )
    if len(clip.test_rows) == 0:
        raise InputError(f"{run_dir}: the clip has no test frames; fit a longer video.")
    if drive == "expression" and package.avatar.hearing is not None:
        raise InputError(
            f"{run_dir}: --drive expression cannot move a talkinggaussian fit, whose mouth follows "
            "sound alone; leave it away."
        )
    silent = clip.features is None or package.speech is None
    primary = silent or drive == "audio"
    job = _Job(clip, package, "expression" if silent else drive, primary)
    folder = run_dir / (FOLDER if primary else f"{FOLDER}_expression")
    ids = [int(i) for i in clip.frame_ids[torch.from_numpy(clip.test_rows)]]
    measured, notes = job.measure(Samples(folder, ids, frames_dir, composite), progress)
    content = metrics_file.merged(metrics_file.read(run_dir), measured, notes)
    metrics_file.add_facts(content, package, avatar, fit_info, job.render_fps())
    metrics_file.write(run_dir, content)
    return content


def drive_values(clip: Clip, package: Package, rows: Rows, drive: str) -> Tensor:
    """What moves the face on some rows: coefficients [T, K] in the order of ``package.names``.

    "audio" reads only the upper-face names of the track; the rest is said by the sound, or is at
    rest where the sound says nothing of it. "expression" reads the whole track.
    """
    picked = torch.from_numpy(rows)
    values = package.rest.float().repeat(len(rows), 1)
    tracked = {name: i for i, name in enumerate(clip.track.face.names)}
    spoken: dict[str, int] = {}
    said = values
    if drive == "audio":
        if package.speech is None or clip.features is None:
            raise ValueError("a silent clip cannot be driven by its sound")
        said = package.speech(clip.features, clip.time_s[picked].numpy())
        spoken = {name: i for i, name in enumerate(package.speech.names)}
    for column, name in enumerate(package.names):
        if is_upper_face(name) or drive == "expression":
            if name in tracked:
                values[:, column] = clip.track.coefficients[picked, tracked[name]]
        elif name in spoken:
            values[:, column] = said[:, spoken[name]]
    return values


@dataclass(frozen=True)
class _Job:
    """One evaluation: whom, driven by what, and whether the baselines are measured beside it."""

    clip: Clip
    package: Package
    drive: str
    primary: bool

    @property
    def silent(self) -> bool:
        return self.clip.features is None or self.package.speech is None

    @cached_property
    def draw(self) -> Draw:
        """How the avatar is drawn, as films and the viewer draw it."""
        return open_draw(self.package.avatar)

    def measure(
        self, samples: Samples, progress: Progress | None
    ) -> tuple[dict[str, Any], list[str]]:
        """The sections of ``metrics.json`` that depend on the drive, and their notes."""
        clip, rows = self.clip, self.clip.test_rows
        values = drive_values(clip, self.package, rows, self.drive)
        systems = self._systems(values)
        lpips, why_no_lpips = metrics.open_lpips()
        frames = TestFrames(
            clip.time_s.numpy()[rows],
            lambda i: clip.frame(int(rows[i])),
            lambda i: clip.regions(int(rows[i])),
        )

        def keep(i: int, real: UInt8, drawn: Mapping[str, UInt8]) -> None:
            row = int(rows[i])
            box = metrics_mouth.mouth_box(clip.landmarks.points[row].numpy(), real.shape[:2])
            samples.add(i, real, drawn[OURS], metrics.head_mask(clip.regions(row)), box)

        with FaceLandmarker() as landmarker:
            bench = Bench(_detector(landmarker), lpips, pasted=(OURS,))
            scores = bench.score(frames, systems, keep, progress)
        samples.finish(scores, OURS)
        held = self._held(values) if self.drive == "audio" else None
        summaries = {
            name: scoring.summarise(
                scores, name, held=held if name == OURS else None, lpips_reason=why_no_lpips
            )
            for name in systems
        }
        return self._sections(scores, summaries, why_no_lpips)

    def _systems(self, values: Tensor) -> dict[str, Painter]:
        """The avatar, and its baselines beside it, as painters of test frames."""
        clip, rows = self.clip, self.clip.test_rows
        if not self.primary:
            return {OURS: self._painter(values)}
        still = baselines.still_mouth_values(self.package.names, values, self.package.rest)
        return {
            OURS: self._painter(values),
            "mean_frame": baselines.mean_frame(clip),
            "nearest_pose_frame": baselines.nearest_pose_frame(clip, rows),
            "still_mouth": self._painter(still, speaks=False),
            "previous_frame": baselines.previous_frame(clip, rows),
        }

    def _painter(
        self, values: Tensor, held_row: int | None = None, *, speaks: bool = True
    ) -> Painter:
        """The avatar moved by coefficients [T, K] and, if its motion is a field and it ``speaks``,
        by the sound; its pose is the row's, or that of one row."""
        clip, rows = self.clip, self.clip.test_rows
        plates = [torch.from_numpy(plate).float() / 255.0 for plate in clip.plates]
        heard = self._heard()

        @torch.no_grad()
        def paint(i: int) -> UInt8:
            row = int(rows[i]) if held_row is None else held_row
            drive = Drive(values[i], clip.track.head_pose[row], heard[i] if speaks else None)
            plate = plates[int(clip.track.file_index[row])]
            picture: UInt8 = to_uint8(self.draw(drive, clip.camera(row), plate).rgb).numpy()
            return picture

        return paint

    def _heard(self) -> Sequence[Tensor | None]:
        """The sound of every test frame as a field hears it; None where nothing does."""
        hearing, features = self.package.avatar.hearing, self.clip.features
        rows = self.clip.test_rows
        if hearing is None or features is None:
            return [None] * len(rows)
        return list(hearing(features, self.clip.time_s.numpy()[rows]))

    def _held(self, values: Tensor) -> NDArray[np.float64]:
        """Jerks of the head while only the mouth speaks: pose and upper face are held."""
        rows = self.clip.test_rows
        middle = len(rows) // 2
        upper = torch.tensor([is_upper_face(name) for name in self.package.names])
        still = torch.where(upper, values[middle], values)[:HOLD_FRAMES]
        row = int(rows[middle])
        points = self.clip.landmarks.points[row].numpy()
        centres = metrics_motion.patch_centres(points, self.clip.regions(row))
        times = self.clip.time_s.numpy()[rows][: len(still)]
        return scoring.hold_jerks(self._painter(still, row), centres, times)

    def _sections(
        self, scores: Scores, summaries: dict[str, Summary], why_no_lpips: str
    ) -> tuple[dict[str, Any], list[str]]:
        """Values by section, speech measures null where no sound drives."""
        section = "test" if self.primary else EXPRESSION
        names = {OURS: section} | {name: f"baselines.{name}" for name in BASELINES}
        spoken = self.drive == "audio"
        why = "" if spoken else (NO_SOUND if self.silent else NO_DRIVE)
        values = {
            name: summary.values if spoken else _without_speech(summary.values)
            for name, summary in summaries.items()
        }
        notes = _null_notes({names[n]: s for n, s in summaries.items()}, why)
        notes += _lost_notes(scores, names)
        pasted = scoring.pasted_values(scores, OURS)
        beside = "test_pasted" if self.primary else EXPRESSION_PASTED
        if pasted["lpips"] is None:
            notes.append(f"{beside}.lpips: {why_no_lpips}")
        if not self.primary:
            return {EXPRESSION: values[OURS], EXPRESSION_PASTED: pasted}, notes
        intervals = summaries[OURS].intervals
        correlation, reason = self._speech_correlation()
        if correlation is None:
            notes.append(f"speech.cv_open_corr: {reason}")
        measured = {
            "protocol": {
                "drive": self.drive,
                "split": metrics_file.split_words(self.clip.meta.get("test_from_s")),
                "train_s": self.clip.train_s,
            },
            "test": values[OURS],
            "ci": intervals if spoken else _without_speech(intervals),
            "test_pasted": pasted,
            "baselines": {name: values[name] for name in BASELINES},
            "speech": {"cv_open_corr": correlation},
        }
        return measured, notes

    def _speech_correlation(self) -> tuple[float | None, str]:
        """How well the sound explains the opening of held-out training frames, motion only."""
        clip = self.clip
        if clip.features is None:
            return None, NO_SOUND
        if len(clip.train_rows) < MIN_FOLD_FRAMES:
            return None, f"only {len(clip.train_rows)} training frames for five folds"
        last = float(clip.time_s[int(clip.train_rows[-1])])
        rows = torch.nonzero(clip.time_s <= last)[:, 0]
        opening = mouth_opening(clip.landmarks.points[rows]).numpy()
        value = float(cv_open_corr(clip.features, clip.time_s[rows].numpy(), opening))
        return (value, "") if np.isfinite(value) else (None, "the opening does not vary")

    def render_fps(self) -> float:
        """Pictures a second from coefficients to uint8 512² over the plate, one at a time."""
        rows = self.clip.test_rows
        paint = self._painter(drive_values(self.clip, self.package, rows, "expression"))
        seconds = []
        for i in range(WARM_UP_FRAMES + TIMED_FRAMES):
            started = time.perf_counter()
            paint(i % len(rows))
            seconds.append(time.perf_counter() - started)
        return 1.0 / float(np.median(seconds[WARM_UP_FRAMES:]))


def _detector(landmarker: FaceLandmarker) -> scoring.Detector:
    """The landmarker in IMAGE mode, as faces."""
    return lambda picture: [scoring.Face(f.points, f.scores) for f in landmarker.detect(picture)]


def _without_speech(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values with everything that is about speech set to null."""
    return {key: None if key in scoring.SPEECH_KEYS else value for key, value in values.items()}


def _null_notes(sections: Mapping[str, Summary], why_no_speech: str) -> list[str]:
    """One note a section for each reason a value is null, naming all keys it holds for."""
    notes = []
    for section, summary in sections.items():
        reasons = dict(summary.reasons)
        if why_no_speech:
            reasons |= dict.fromkeys(scoring.SPEECH_KEYS, why_no_speech)
        keys: dict[str, list[str]] = {}
        for key, reason in reasons.items():
            keys.setdefault(reason, []).append(f"{section}.{key}")
        notes += [f"{', '.join(named)}: {reason}" for reason, named in keys.items()]
    return notes


def _lost_notes(scores: Scores, names: Mapping[str, str]) -> list[str]:
    """What the landmarker missed; those frames are left out of the measures of the mouth."""
    total = len(scores.time_s)
    notes = []
    if scores.lost_faces:
        lost = f"{scores.lost_faces} of {total} real frames"
        notes.append(f"{names[OURS]}: no face was found in {lost}")
    for name, sheet in scores.sheets.items():
        if sheet.lost_faces:
            notes.append(
                f"{names[name]}: no face was found in {sheet.lost_faces} of {total} rendered "
                "frames; the measures of lips, mouth and face scores are over the others"
            )
    return notes
