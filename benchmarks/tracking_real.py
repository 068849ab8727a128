"""The tracker on real footage, against the bars it has to meet; ``tracking.py --real`` runs it.

The footage is the caller's own folder and is found by name (``FOOTAGE``); what is not there is left
out and said. Nothing of it is written anywhere but into the work folder.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, get_args

import av
import mediapipe
import numpy as np
import torch
from mediapipe.tasks.python import BaseOptions, vision
from numpy.typing import NDArray
from torch import Tensor

from gsavatar import assets, ingest, ingest_sound, pipeline, progress
from gsavatar.clip import Clip, open_clip
from gsavatar.errors import InputError
from gsavatar.footage import VideoFile, sounds_of
from gsavatar.landmarks import FaceLandmarker, quiet_stderr
from gsavatar.morphable import CANONICAL_ORIGIN_M, canonical_face
from gsavatar.sequence import load_sequence
from gsavatar.speech_sync import MouthPath, sound_offset
from gsavatar.tracking_measures import head_angles, reference_of, steady_rows, total_frames
from gsavatar.tracking_steadiness import head_points, hits, path_px, residual_motion

Float = NDArray[np.float64]
Row = dict[str, Any]

Part = Literal["offset", "jitter", "turns", "small", "speed", "memory"]
PARTS: tuple[Part, ...] = get_args(Part)

FOOTAGE = {
    "anchor": "anchor*.mp4", "lieu": "lieu*.mp4", "obama": "obama*late*.mp4",
    "vidtimit": "vidtimit*/s*.mkv", "aoc": "hdtf_aoc*.mp4", "radio34": "hdtf_radio34*.mp4",
    "menendez": "hdtf_menendez*.mp4", "may": "may*.mp4", "justin": "justin*.mp4",
    "turns": "vidtimit*/head.mkv", "small": "duda*.mp4",
}  # fmt: skip
"""Name of a clip and where its files lie in the folder; several files are one person in a row."""
SHIFTED = ("anchor", "lieu", "obama", "vidtimit")
SHIFTS_MS = tuple(range(-320, 321, 80))
SHIFT_BAR_MS = 40.0
KNOWN_MS = {"obama": (240.0, 50.0), "anchor": (10.0, 40.0)}
"""What two feature sets agreed on by hand, and how far off the estimate may be."""
STEADY = ("lieu", "anchor", "aoc", "radio34", "menendez", "may", "justin", "vidtimit")
JITTER_BAR, SHARE_BAR, TURN_BAR_DEG, SPEED_BAR_MS, MEMORY_BAR = 1 / 3, 0.98, 40.0, 60.0, 1.1
MEDIAPIPE_FIELD_DEG = 63.0
"""Vertical field of view of the camera behind MediaPipe's transformation matrices."""


@dataclass(frozen=True)
class Options:
    """What is measured, and on what."""

    folder: Path
    parts: tuple[Part, ...]
    work: Path
    tracked: Path | None  # runs made before, NAME/clip each
    frames: int  # compared for jitter, of each clip
    minutes: tuple[float, ...]  # lengths of the looped clip for memory
    only: tuple[str, ...]  # names of clips, all if empty

    def files(self, name: str) -> list[Path]:
        """Files of a clip; none if they are not there or not asked for."""
        if self.only and name not in self.only:
            return []
        return sorted(self.folder.glob(FOOTAGE[name]))

    def clip(self, name: str) -> Clip:
        """The tracked clip, made before or now."""
        if self.tracked is not None and (self.tracked / name / "clip" / "clip.json").exists():
            return open_clip(self.tracked / name / "clip")
        run = self.work / name
        if not (run / "clip" / "clip.json").exists():
            pipeline.track(self.files(name), run, ingest.IngestOptions(), progress.SilentReporter())
        return open_clip(run / "clip")


def keyed(rows: list[Row]) -> Row:
    """The keys of all rows: ``real`` by clip and ``peak_rss_mb`` by minutes, as far as measured.

    ``jitter_ratio`` is the second difference that our pose leaves over what MediaPipe's leaves,
    ``motion_ratio`` the same of the motion itself.
    """
    real: dict[str, Row] = {}
    peaks: Row = {}
    for found in rows:
        if found["part"] == "memory":
            peaks |= found["keys"]
        elif found["keys"]:
            real.setdefault(found["clip"], {}).update(found["keys"])
    return {"real": real} | ({"peak_rss_mb": peaks} if peaks else {})


def row(  # noqa: PLR0917
    part: Part, clip: str, measure: str, value: float, bar: str, met: bool,
    keys: dict[str, float] | None = None,
) -> Row:  # fmt: skip
    """One number beside its bar, printed at once; ``keys`` are numbers of it for ``keyed``."""
    found = {
        "part": part, "clip": clip, "measure": measure, "value": value, "bar": bar, "met": met,
        "keys": keys or {},
    }  # fmt: skip
    words = "met" if met else "MISSED"
    print(f"{part:8} {clip:10} {measure:34} {value:9.3f}  bar {bar:22} {words}", flush=True)
    return found


def measure(options: Options) -> list[Row]:
    """The rows of all parts that were asked for."""
    run: dict[Part, Callable[[Options], Iterator[Row]]] = {
        "offset": offsets, "jitter": jitter, "turns": turns, "small": small, "speed": speed,
        "memory": memory,
    }  # fmt: skip
    return [found for part in options.parts for found in run[part](options)]


def missing(options: Options, part: Part, name: str) -> bool:
    """Whether a clip cannot be measured, which is said unless it was not asked for."""
    if options.files(name):
        return False
    if not options.only or name in options.only:
        print(f"{part:8} {name:10} left out: no {FOOTAGE[name]} in {options.folder}", flush=True)
    return True


# Sound against picture


def offsets(options: Options) -> Iterator[Row]:
    """How the estimate follows a sound that is moved on purpose, in ms."""
    for name in SHIFTED:
        if missing(options, "offset", name):
            continue
        mouth, samples = lips_and_sound(options, name)
        found = {}
        for shift in SHIFTS_MS:
            found[shift] = sound_offset(ingest_sound.shifted(samples, -shift / 1000.0), mouth)
        at_rest = found[0].late_ms
        if name in KNOWN_MS:
            known, reach = KNOWN_MS[name]
            bar = f"{known:.0f} +- {reach:.0f}"
            yield row("offset", name, "offset, ms", at_rest, bar, abs(at_rest - known) <= reach)
        off = [found[s].late_ms - at_rest - s for s in SHIFTS_MS]
        worst = max(off, key=abs)
        ok = abs(worst) <= SHIFT_BAR_MS
        bar = f"+- {SHIFT_BAR_MS:.0f}"
        yield row("offset", name, "worst miss of a moved sound, ms", worst, bar, ok,
                  {"av_offset_ms": at_rest})  # fmt: skip
        least = min(offset.confidence for offset in found.values())
        yield row("offset", name, "least confidence", least, ">= 0.5, to be used", least >= 0.5)


def lips_and_sound(options: Options, name: str) -> tuple[MouthPath, NDArray[np.float32]]:
    """What the mouth does, and the sound as it is in the files."""
    files = [VideoFile(path) for path in options.files(name)]
    made = options.tracked / name / "clip" if options.tracked is not None else None
    if made is not None and (made / "landmarks.safetensors").exists():
        sequence, _ = load_sequence(made)
        seen = sequence.landmarks.found
        mouth = MouthPath.of(sequence.landmarks.points[seen], sequence.time_s[seen.numpy()])
        durations = [s["duration_s"] for s in open_clip(made).meta["sources"]]
    else:
        mouth, durations = _look(files)
    parts = sounds_of(files, durations)
    if parts is None:
        raise ValueError(f"{name}: no sound")
    return mouth, np.concatenate(parts)


def _look(files: list[VideoFile]) -> tuple[MouthPath, list[float]]:
    times: list[float] = []
    points: list[Tensor] = []
    durations: list[float] = []
    with FaceLandmarker() as landmarker:
        for file in files:
            info, last = file.probe(), 0.0
            for _, time_s, picture in file.decode():
                last = time_s
                faces = landmarker.detect(picture)
                if faces:
                    times.append(sum(durations) + time_s)
                    points.append(torch.as_tensor(faces[0].points))
            durations.append(max(last + 1.0 / info.fps, info.duration_s))
    return MouthPath.of(torch.stack(points), np.array(times)), durations


# Jitter


def jitter(options: Options) -> Iterator[Row]:
    """What is left of the skin's motion by our pose, over what MediaPipe's own pose leaves."""
    for name in STEADY:
        if missing(options, "jitter", name):
            continue
        clip = options.clip(name)
        rows = steady_rows(clip, options.frames)
        theirs, seen = mediapipe_poses(clip, rows)
        rows, theirs = rows[seen], theirs[seen]
        reference, centres = reference_of(clip, rows)
        skin = head_points(clip.track, int(rows[reference]), centres)
        paths = [path_px(clip.track, rows, skin), mediapipe_path(theirs, reference, centres)]
        ours, raw = residual_motion(
            lambda t, clip=clip, rows=rows: clip.frame(int(rows[t])), paths, reference, centres,
            np.diff(rows) == 1,
        )  # fmt: skip
        share = {"tracked_share": len(clip) / total_frames(clip)}
        for words, key, a, b in (
            ("motion left, px", "motion_ratio", ours.rms_px, raw.rms_px),
            ("its second difference, px", "jitter_ratio", ours.jitter_px, raw.jitter_px),
        ):
            bar = f"<= {raw_bar(b):.3f} (1/3 of {b:.3f})"
            yield row("jitter", name, words, a, bar, a <= raw_bar(b), {key: a / b} | share)


def raw_bar(theirs_px: float) -> float:
    """What ours may be at most."""
    return JITTER_BAR * theirs_px


def mediapipe_poses(clip: Clip, rows: NDArray[np.int64]) -> tuple[Float, NDArray[np.bool_]]:
    """MediaPipe's facial transformation matrices [T, 4, 4] of some rows, and which it gave [T].

    The model, the mode and the pictures are those of the run; a run stores landmarks only.
    """
    options = vision.FaceLandmarkerOptions(
        base_options=BaseOptions(model_asset_path=str(assets.resolve("face_landmarker"))),
        output_facial_transformation_matrixes=True,
    )
    found, seen = np.tile(np.eye(4), (len(rows), 1, 1)), np.zeros(len(rows), bool)
    with quiet_stderr():
        landmarker = vision.FaceLandmarker.create_from_options(options)
    for i, which in enumerate(rows):
        picture = np.ascontiguousarray(clip.frame(int(which)))
        image = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=picture)
        matrices = landmarker.detect(image).facial_transformation_matrixes
        if matrices:
            found[i], seen[i] = matrices[0], True
    landmarker.close()
    return found, seen


def mediapipe_px(poses: Float, points_cm: Float, size: int) -> tuple[Float, Float]:
    """Pixels [T, P, 2] and depths [T, P] of canonical points under transformation matrices."""
    seen = points_cm @ poses[:, :3, :3].transpose(0, 2, 1) + poses[:, None, :3, 3]
    focal = size / 2 / np.tan(np.radians(MEDIAPIPE_FIELD_DEG / 2))
    depth = -seen[..., 2]  # its camera looks along -z, y points up
    flat = seen[..., :2] * (1, -1) / depth[..., None] * focal + size / 2
    return flat, depth


def mediapipe_path(poses: Float, reference: int, centres: Float, size: int = 512) -> Float:
    """Where MediaPipe's poses put the skin that is seen at ``centres`` of one frame."""
    vertices, triangles = canonical_face()
    rest = (vertices - CANONICAL_ORIGIN_M) * 100.0
    flat, depth = mediapipe_px(poses[reference][None], rest, size)
    skin = hits(centres, flat[0], depth[0], rest, triangles)
    return mediapipe_px(poses, skin, size)[0]


# Hard footage


def turns(options: Options) -> Iterator[Row]:
    """Whether a head is tracked to the ends of a wide turn."""
    if missing(options, "turns", "turns"):
        return
    clip = options.clip("turns")
    share = len(clip) / total_frames(clip)
    yield row("turns", "turns", "share of frames tracked", share, f">= {SHARE_BAR}",
              share >= SHARE_BAR, {"tracked_share": share})  # fmt: skip
    yaw = head_angles(clip)[0]
    for side, reach in (("right", -float(yaw.min())), ("left", float(yaw.max()))):
        yield row("turns", "turns", f"turn to the {side}, degrees", reach,
                  f">= {TURN_BAR_DEG:.0f}", reach >= TURN_BAR_DEG)  # fmt: skip


def small(options: Options) -> Iterator[Row]:
    """Whether a small face is tracked, or refused with what to do about it."""
    if missing(options, "small", "small"):
        return
    try:
        clip = options.clip("small")
    except InputError as error:
        print(f"refused: {error}", flush=True)
        cured = ";" in str(error)
        yield row("small", "small", "refused with a cure", float(cured), "tracked or this", cured)
        return
    share = len(clip) / total_frames(clip)
    yield row("small", "small", "share of frames tracked", share, ">= 0.9 or refused",
              share >= 0.9, {"tracked_share": share})  # fmt: skip


# Cost


def speed(options: Options) -> Iterator[Row]:
    """Wall time of a whole ``gsavatar track`` in a process of its own."""
    for name in ("obama", "lieu"):
        if missing(options, "speed", name):
            continue
        seconds, _, frames = tracked_alone(options.files(name), options.work / f"speed_{name}")
        ms = 1000.0 * seconds / frames
        yield row("speed", name, f"ms a frame, {frames} frames", ms, f"<= {SPEED_BAR_MS:.0f}",
                  ms <= SPEED_BAR_MS, {"ms_per_frame": ms})  # fmt: skip


def memory(options: Options) -> Iterator[Row]:
    """Largest memory of a whole ``gsavatar track`` over the length of a looped clip."""
    if missing(options, "memory", "lieu"):
        return
    options.work.mkdir(parents=True, exist_ok=True)
    peaks: list[float] = []
    for minutes in options.minutes:
        film = options.work / f"looped_{minutes:g}.mp4"
        loop(options.files("lieu")[0], film, 60.0 * minutes)
        seconds, peak_mb, frames = tracked_alone([film], options.work / f"memory_{minutes:g}")
        film.unlink()
        peaks.append(peak_mb)
        bar = f"<= {MEMORY_BAR * peaks[0]:.0f} MB"
        words = f"peak MB, {minutes:g} min"
        yield row("memory", "lieu", words, peak_mb, bar, peak_mb <= MEMORY_BAR * peaks[0],
                  {f"{minutes:g}": peak_mb})  # fmt: skip
        print(f"         {frames} frames, {1000 * seconds / frames:.0f} ms each", flush=True)


def tracked_alone(files: list[Path], run: Path) -> tuple[float, float, int]:
    """Seconds, peak resident MB and frames of a track in another process, start included."""
    command = [sys.executable, "-m", "gsavatar", "track", *map(str, files), "--out", str(run)]
    started = time.monotonic()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - started
    if child.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: exit code {child.returncode}")
    return seconds, usage.ru_maxrss / 1024, total_frames(open_clip(run / "clip"))


def loop(source: Path, target: Path, seconds: float) -> None:
    """A film that plays the coded packets of another again and again, for so long."""
    with av.open(str(source)) as first, av.open(str(target), "w") as out:
        streams = {s.index: out.add_stream_from_template(s) for s in first.streams
                   if s.type in ("video", "audio")}  # fmt: skip
        start = end = Fraction(0)
        while start < seconds:
            first.seek(0)
            for packet in first.demux():
                if packet.dts is None or packet.stream.index not in streams:
                    continue
                base = packet.time_base
                end = max(end, start + (packet.pts + (packet.duration or 1)) * base)
                primes = packet.pts < 0 and start > 0  # the coder's run-up, once is enough
                if primes or start + packet.pts * base >= seconds:
                    continue
                shift = round(start / base)
                packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                packet.stream = streams[packet.stream.index]
                out.mux(packet)
            start = end
