"""Films of an avatar: what it performs, from where it is seen, what stands behind, what is written.

Every frame goes from the curves to the file before the next one is made, so memory does not grow
with the length of the speech. A film made from its own curves is the same film.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gsavatar import audio as sound_files
from gsavatar import geometry, performance
from gsavatar.audio import Sound
from gsavatar.avatar_packed import Draw, open_draw
from gsavatar.errors import InputError
from gsavatar.film_sinks import SAMPLE_RATE, check_destination, open_sink
from gsavatar.film_views import open_background, open_view
from gsavatar.idle import IdlePath
from gsavatar.idle_generated import GeneratedIdle
from gsavatar.package import Package, load_package
from gsavatar.performance import CurveWriter, Performer, SpeechStream
from gsavatar.progress import Reporter, SilentReporter
from gsavatar.render import to_uint8
from gsavatar.types import Camera, Curves, Drive, is_upper_face
from gsavatar.video import probe

log = logging.getLogger("gsavatar")

DEFAULT_FPS = 25.0
IDLES = ("replayed", "generated")
SIZES = (64, 4096)
RATES = (1.0, 240.0)
SAME_TIME_S = 1e-6
SIDES = ("Left", "Right")
HEARD_SAMPLES = 2 * SAMPLE_RATE
"""Speech is heard and shown in pieces of 2 s."""
OPAQUE = 1.0 / 255.0
"""Least alpha whose colour can be told."""
LIMIT_MARGIN = 0.1
"""How far beyond the clip's own range speech may move a coefficient, as a share of that range."""


@dataclass(frozen=True)
class Film:
    """What ``render_film`` has written."""

    path: Path
    frames: int
    duration_s: float
    has_sound: bool


@dataclass(frozen=True)
class Source:
    """What moves the avatar: exactly one of ``curves``, ``drive``, or else ``audio``."""

    audio: Path | None = None
    curves: Path | None = None
    drive: Path | None = None
    face: str | None = None
    """Whose face in ``drive``, if it shows several: left, right or a number from the left."""
    idle: str = "replayed"
    """Head, gaze and blinks under ``audio``: the clip's own to and fro, or "generated"."""
    seed: int = 0
    """Which of the generated ones."""


def render_film(
    avatar: Path,
    out: Path,
    *,
    audio: Path | None = None,
    curves: Path | None = None,
    drive: Path | None = None,
    face: str | None = None,
    idle: str = "replayed",
    seed: int = 0,
    camera: str = "front",
    size: int = 512,
    fps: float | None = None,
    background: str = "plate",
    curves_out: Path | None = None,
    reporter: Reporter | None = None,
) -> Film:
    """Writes the film ``out`` of an avatar file or run, and says what it holds.

    Exactly one of ``audio``, ``curves`` and ``drive`` moves the mouth; ``audio`` beside another is
    only the sound track, whose clock the others then keep. The sound is exactly as long as the
    picture. Raises ``InputError`` for anything that cannot be done; then nothing is written.
    """
    from gsavatar.pipeline import find_avatar

    reporter = reporter if reporter is not None else SilentReporter()
    source = Source(audio, curves, drive, face, idle, seed)
    _check(source, size, fps)
    check_destination(out, alpha=background == "none")
    file = find_avatar(avatar)
    _check_apart(out, curves_out, (file, audio, curves, drive, Path(background), Path(camera)))
    package = load_package(file)
    behind = open_background(background, package, size)
    open_view(camera, package, size, 1.0)  # a damaged camera file is refused before the long work
    sound = None if audio is None else sound_files.open_sound(audio)
    played = perform(package, source, sound, fps, reporter)
    if drive is not None and audio is None and probe(drive).has_audio:
        reporter.note(f"The film has no sound; to hear that of the video add --audio {drive}.")
    view = open_view(camera, package, size, played.frames / played.fps)
    draw = open_draw(package.avatar)
    done = 0
    with (
        open_sink(out, size, played.fps, sound, alpha=behind is None) as sink,
        _curve_sink(curves_out, package) as curve_sink,
        reporter.stage("render the film") as progress,
    ):
        for piece in played.pieces:
            if curve_sink is not None:
                curve_sink.append(piece)
            for row in range(len(piece.time_s)):
                heard = None if piece.audio is None else piece.audio[row]
                drive_now = Drive(piece.values[row], piece.head_pose[row], heard)
                sink.write(picture(draw, drive_now, view(done / played.fps), behind))
                done += 1
                progress(done, played.frames)
    return Film(out, done, done / played.fps, sound is not None)


def _curve_sink(path: Path | None, package: Package) -> AbstractContextManager[CurveWriter | None]:
    return nullcontext() if path is None else CurveWriter(path, package.names)


@torch.no_grad()
def picture(
    draw: Draw, drive: Drive, camera: Camera, background: Tensor | None
) -> NDArray[np.uint8]:
    """One picture uint8 [H, W, 3] over a background, or [H, W, 4] with straight alpha for None."""
    if background is not None:
        return to_uint8(draw(drive, camera, background).rgb).numpy()
    seen = draw(drive, camera, torch.zeros(3))
    straight = torch.where(seen.alpha > OPAQUE, seen.rgb / seen.alpha.clamp_min(OPAQUE), 0.0)
    return to_uint8(torch.cat((straight, seen.alpha), dim=-1)).numpy()


@dataclass(frozen=True)
class Playing:
    """A performance in the avatar's own names, one row per frame, made as it is played."""

    frames: int
    fps: float
    pieces: Iterator[Curves]


def perform(
    package: Package, source: Source, sound: Sound | None, fps: float | None, reporter: Reporter
) -> Playing:
    """What to play. Raises ``InputError`` if the source cannot move this avatar."""
    if package.avatar.hearing is not None and (source.curves or source.drive) is not None:
        option = "--curves" if source.curves is not None else "--drive"
        raise InputError(
            f"{option} cannot move this avatar: it is a talkinggaussian fit, whose mouth follows "
            "sound alone; give --audio, or fit the video with another preset."
        )
    if source.curves is not None:
        curves = retarget(performance.load_curves(source.curves), package, source.curves, reporter)
        rate = fps if fps is not None else frame_rate(curves.time_s.numpy())
        return _playing(curves, rate, sound)
    rate = fps if fps is not None else DEFAULT_FPS
    if source.drive is not None:
        from gsavatar.reenact import video_curves

        copied = video_curves(source.drive, package, reporter, source.face)
        return _playing(retarget(copied, package, source.drive, reporter), rate, sound)
    assert sound is not None
    frames = performance.frame_count(len(sound) / SAMPLE_RATE, rate)
    stream = SpeechStream(performer(package, rate, source.idle, source.seed))
    return Playing(frames, rate, _spoken(stream, sound, package, reporter))


def _playing(curves: Curves, rate: float, sound: Sound | None) -> Playing:
    """Given curves; beside a sound they keep its clock: the first row is held until it comes."""
    even = resampled(curves, rate, float(curves.time_s[0]) if sound is None else 0.0)
    return Playing(len(even.time_s), rate, iter([even]))


def performer(package: Package, rate: float, idle: str = "replayed", seed: int = 0) -> Performer:
    """How this avatar performs speech; ``idle`` and ``seed`` as in ``Source``. Raises
    ``InputError`` if that was not trained."""
    if package.speech is None:
        raise InputError(
            "this avatar's video had no sound, so speech drive is not trained; move it with "
            "--curves or --drive, or fit it again from a video with sound."
        )
    moved = GeneratedIdle(package.idle, seed) if idle == "generated" else IdlePath(package.idle)
    hearing = package.avatar.hearing
    return Performer(package.speech, moved, package.names, rate, package.rest, hearing)


def _spoken(
    stream: SpeechStream, sound: Sound, package: Package, reporter: Reporter
) -> Iterator[Curves]:
    """The performance of a speech, a piece of it at a time."""
    for start in range(0, len(sound), HEARD_SAMPLES):
        yield within_limits(stream.push(sound[start : start + HEARD_SAMPLES]), package)
    yield within_limits(stream.finish(), package)
    if not stream.heard_speech:
        reporter.note("No speech was heard in the sound, so the mouth stays at rest.")


def within_limits(curves: Curves, package: Package) -> Curves:
    """Lower-face coefficients held within the clip's own range, 10 % beyond at most.

    A motion model that was fitted here keeps to this by itself; a file may hold another.
    """
    low, high = package.limits.unbind(-1)
    margin = LIMIT_MARGIN * (high - low)
    spoken = torch.tensor([not is_upper_face(name) for name in curves.names])
    clamped = curves.values.clamp(low - margin, high + margin)
    values = torch.where(spoken, clamped, curves.values)
    return replace(curves, values=values)


def retarget(
    curves: Curves, package: Package, path: Path, reporter: Reporter | None = None
) -> Curves:
    """Curves in the avatar's names; names they lack stay at rest.

    Where only one of the two tells left from right, both sides stand for their mean, and the mean
    for both. What is dropped is noted.
    """
    where = {name: column for column, name in enumerate(curves.names)}
    sources = {name: _standing_for(name, where) for name in package.names}
    if not any(sources.values()):
        raise InputError(
            f"{path}: none of its {len(where)} names belongs to this avatar, which knows "
            f"{', '.join(package.names[:3])} and {max(len(package.names) - 3, 0)} more."
        )
    given = sum(bool(columns) for columns in sources.values())
    if given < len(package.names):
        log.info("%s: %d of %d coefficients given", path, given, len(package.names))
    used = {column for columns in sources.values() for column in columns}
    moving = [n for n, c in where.items() if c not in used and bool(curves.values[:, c].any())]
    if moving and reporter is not None:
        more = f" and {len(moving) - 5} more" if len(moving) > 5 else ""
        reporter.note(f"{path.name}: this avatar has no {', '.join(moving[:5])}{more}; ignored.")
    values = package.rest.detach().float().repeat(len(curves.time_s), 1)
    for column, name in enumerate(package.names):
        if sources[name]:
            values[:, column] = curves.values[:, sources[name]].float().mean(-1)
    return Curves(package.names, curves.time_s, values, curves.head_pose.float())


def _standing_for(name: str, where: dict[str, int]) -> list[int]:
    """Columns of a curve file whose mean moves a coefficient; none if nothing there does."""
    if name in where:
        return [where[name]]
    sides = [f"{name}{side}" for side in SIDES]
    if all(side in where for side in sides):
        return [where[side] for side in sides]
    joint = next((name[: -len(side)] for side in SIDES if name.endswith(side)), None)
    return [where[joint]] if joint in where else []


def frame_rate(time_s: NDArray[np.float64]) -> float:
    """Rows per second of evenly spaced times, as a simple fraction; 25 for a single row."""
    if len(time_s) < 2:
        return DEFAULT_FPS
    rate = (len(time_s) - 1) / float(time_s[-1] - time_s[0])
    return float(Fraction(rate).limit_denominator(1001))


def resampled(curves: Curves, rate: float, start_s: float) -> Curves:
    """The same performance with one row every 1 / rate seconds, ``start_s`` being 0 of the result.

    Given rows stay exact; before the first one there is the first one.
    """
    times = curves.time_s.numpy() - start_s
    count = round(float(times[-1]) * rate) + 1
    wanted = np.arange(count) / rate
    right = np.clip(np.searchsorted(times, wanted - SAME_TIME_S), 0, len(times) - 1)
    left = np.where(np.abs(times[right] - wanted) <= SAME_TIME_S, right, np.maximum(right - 1, 0))
    span = times[right] - times[left]
    share = np.where(span > 0, (wanted - times[left]) / np.where(span > 0, span, 1.0), 0.0)
    share = np.clip(share, 0.0, 1.0)
    weight = torch.from_numpy(share).float()
    values = torch.lerp(curves.values[left], curves.values[right], weight[:, None])
    before, after = curves.head_pose[left], curves.head_pose[right]
    between = geometry.se3_interp(before, after, weight)
    poses = torch.where((weight > 0)[:, None, None], between, before)
    return Curves(curves.names, torch.from_numpy(wanted), values, poses)


def _check(source: Source, size: int, fps: float | None) -> None:
    """Raises ``InputError`` unless one thing moves the mouth and the numbers make sense."""
    if source.curves is not None and source.drive is not None:
        raise InputError("--curves and --drive both move the avatar; give one of them.")
    if source.audio is None and source.curves is None and source.drive is None:
        raise InputError("nothing moves the avatar; give --audio, --curves or --drive.")
    if source.face is not None and source.drive is None:
        raise InputError("--face chooses among the faces of --drive; give that video, or leave it.")
    if source.idle not in IDLES:
        raise InputError(f"--idle {source.idle}: should be {' or '.join(IDLES)}.")
    if source.seed < 0:
        raise InputError(f"--seed {source.seed}: should be 0 or more.")
    if source.seed and source.idle == IDLES[0]:
        raise InputError("--seed chooses among generated motions; add --idle generated.")
    if source.idle != IDLES[0] and (source.curves or source.drive) is not None:
        raise InputError(
            "--idle tells what head and eyes do under a speech; curves and videos bring their own, "
            "so leave it away."
        )
    if not SIZES[0] <= size <= SIZES[1] or size % 2:
        raise InputError(f"--size {size}: should be an even number from {SIZES[0]} to {SIZES[1]}.")
    if fps is not None and not (math.isfinite(fps) and RATES[0] <= fps <= RATES[1]):
        raise InputError(f"--fps {fps:g}: should be from {RATES[0]:g} to {RATES[1]:g}.")


def _check_apart(out: Path, curves_out: Path | None, inputs: tuple[Path | None, ...]) -> None:
    """Raises ``InputError`` if a result would replace what it is made from, or the other one, or
    the curves are to be a folder."""
    if curves_out is not None and curves_out.is_dir():
        raise InputError(f"{curves_out}: is a folder; give --curves-out a file's name.")
    for result in (out, curves_out):
        if result is None:
            continue
        for given in inputs:
            if given is not None and given.is_file() and result.resolve() == given.resolve():
                raise InputError(f"{result}: is read for this film; write it to another file.")
    if curves_out is not None and curves_out.resolve() == out.resolve():
        raise InputError(f"{out}: is both --out and --curves-out; give one another name.")
