"""Whether an avatar stays the person in voices it never heard, and is silent when nobody speaks.

    python benchmarks/voices.py RUN voice.wav another.flac --json out.json

Every file is performed and drawn from the front; the landmarker that looked at the footage looks at
the drawn frames. Printed beside each other: how far the mouth opens, how often it is closed, how
restless it and the head are, in the film and in the footage. Then the first file again with ten
seconds of zeros and of faint noise after it: from 0.4 s on the mouth should be closed.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from numpy.typing import NDArray

from gsavatar import film, metrics_motion, progress
from gsavatar.audio import SAMPLE_RATE, open_sound
from gsavatar.avatar_packed import open_draw
from gsavatar.clip import Clip, open_clip
from gsavatar.landmarks import FaceLandmarker, mouth_opening
from gsavatar.metrics_mouth import CLOSED
from gsavatar.package import Package, load_package
from gsavatar.performance import SpeechStream
from gsavatar.pipeline import find_avatar
from gsavatar.types import Drive

Array = NDArray[np.float64]
Samples = NDArray[np.float32]
Row = dict[str, Any]

RATE = 25.0
RANGE = (1.0, 99.0)
"""Percentiles of the footage's openings that are the person's own range."""
QUIET_S, SETTLED_S = 10.0, 0.4
NOISE_DBFS = -50.0
STEADY_FRAMES = 100
"""Frames of the footage whose head's unrest is measured."""


@dataclass(frozen=True)
class Seen:
    """What a landmarker sees in successive pictures."""

    opening: Array  # [T], shares of the face's height; NaN without a face
    shifts: Array  # [T, 2], px that forehead and nose moved since the picture before
    time_s: Array

    def row(self, low: float, high: float) -> Row:
        """The numbers of the table; ``low`` and ``high`` bound the person's own range."""
        known = self.opening[np.isfinite(self.opening)]
        if len(known) == 0:
            return {"frames": len(self.opening), "faces": 0.0}
        middle, wide = np.percentile(known, [50, 95])
        jerk = np.diff(self.opening, n=2)
        # From steps to places: the difference of two steps is twice a place's jerk.
        unrest = 0.5 * np.diff(self.shifts, axis=0)
        return {
            "frames": len(self.opening),
            "faces": len(known) / len(self.opening),
            "opening_median": float(middle),
            "opening_p95": float(wide),
            "in_range": float(((known >= low) & (known <= high)).mean()),
            "closed": float((known < CLOSED).mean()),
            "opening_jerk": float(np.sqrt(np.nanmean(jerk**2))),
            "head_jerk_px": metrics_motion.rms(unrest),
        }


class Watcher:
    """Takes pictures one by one and notes what is seen in them."""

    def __init__(self, landmarker: FaceLandmarker) -> None:
        self.landmarker = landmarker
        self.opening: list[float] = []
        self.shifts: list[tuple[float, float]] = []
        self._before: tuple[Any, Array] | None = None

    def look(self, picture: NDArray[np.uint8]) -> None:
        """The next picture."""
        face = next(iter(self.landmarker.detect(picture)), None)
        levels = metrics_motion.grey_levels(picture)
        shift = (float("nan"), float("nan"))
        if self._before is not None:
            shift = metrics_motion.displacement(self._before[0], levels, self._before[1])
        self.shifts.append(shift)
        self.opening.append(float("nan") if face is None else float(mouth_opening(face.points)))
        centres = np.zeros((0, 2)) if face is None else metrics_motion.patch_centres(face.points)
        self._before = (levels, centres)

    def seen(self) -> Seen:
        """All of it."""
        times = np.arange(len(self.opening)) / RATE
        return Seen(np.array(self.opening), np.array(self.shifts).reshape(-1, 2), times)


@torch.no_grad()
def watched(package: Package, samples: Samples, landmarker: FaceLandmarker, name: str) -> Seen:
    """The avatar saying ``samples`` [16 kHz], seen from the front."""
    stream = SpeechStream(film.performer(package, RATE))
    draw, watcher = open_draw(package.avatar), Watcher(landmarker)
    pieces = (stream.push(samples), stream.finish())
    total = sum(len(piece.time_s) for piece in pieces)
    with progress.make_reporter().stage(name) as tell:
        for piece in (film.within_limits(p, package) for p in pieces):
            for row in range(len(piece.time_s)):
                heard = None if piece.audio is None else piece.audio[row]
                drive = Drive(piece.values[row], piece.head_pose[row], heard)
                watcher.look(film.picture(draw, drive, package.camera, package.plate))
                tell(len(watcher.opening), total)
    return watcher.seen()


def footage(clip: Clip, landmarker: FaceLandmarker) -> Seen:
    """The person themselves: openings of all frames, unrest of the head in a hundred."""
    watcher = Watcher(landmarker)
    first = max(len(clip.time_s) // 2 - STEADY_FRAMES // 2, 0)
    for row in range(first, min(first + STEADY_FRAMES, len(clip.time_s))):
        watcher.look(clip.frame(row))
    opening = np.asarray(mouth_opening(clip.landmarks.points), np.float64)
    return Seen(opening, watcher.seen().shifts, clip.time_s.numpy())


def silences(samples: Samples) -> dict[str, Samples]:
    """The sound with ten seconds of nothing after it, twice."""
    count = int(QUIET_S * SAMPLE_RATE)
    noise = np.random.default_rng(0).standard_normal(count) * 10 ** (NOISE_DBFS / 20)
    zeros = np.zeros(count, np.float32)
    return {
        "zeros": np.concatenate((samples, zeros)),
        "noise": np.concatenate((samples, noise.astype(np.float32))),
    }


def main(
    run: Annotated[Path, tyro.conf.Positional],
    speech: Annotated[tuple[Path, ...], tyro.conf.Positional],
    json_out: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> int:
    """Performs, draws and watches; prints a line for the footage and for every file."""
    clip, package = open_clip(run / "clip"), load_package(find_avatar(run))
    sounds = {path.stem: read(path) for path in speech}
    with FaceLandmarker() as landmarker:
        own = footage(clip, landmarker)
        low, high = np.nanpercentile(own.opening, RANGE)
        rows = {"footage": own.row(low, high)}
        show("footage", rows["footage"])
        for name, samples in sounds.items():
            rows[name] = watched(package, samples, landmarker, name).row(low, high)
            show(name, rows[name])
        name, samples = next(iter(sounds.items()))
        quiet = {}
        for kind, longer in silences(samples).items():
            seen = watched(package, longer, landmarker, f"{name} and then {kind}")
            after = seen.opening[seen.time_s >= len(samples) / SAMPLE_RATE + SETTLED_S]
            quiet[kind] = float((after < CLOSED).mean())
            print(f"closed in {100 * quiet[kind]:.0f} % of frames from {SETTLED_S} s after speech, "
                  f"ten seconds of {kind}")  # fmt: skip
    if json_out is not None:
        json_out.write_text(json.dumps({"run": run.name, "rows": rows, "quiet": quiet}, indent=1))
    return 0


def read(path: Path) -> Samples:
    """A whole sound, 16 kHz mono."""
    sound = open_sound(path)
    return np.asarray(sound[0 : len(sound)], np.float32)


def show(name: str, row: Row) -> None:
    """A line of the table."""
    cells = [f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()]
    print(f"{name:20}", "  ".join(cells), flush=True)


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
