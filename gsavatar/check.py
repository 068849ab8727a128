"""``gsavatar check``: what a clip is good for before an hour is spent on it.

A few dozen looks spread over the clip tell light, focus, size and turns of the head; one stretch
of consecutive frames tells the mouth and whether sound and picture fit together. It takes at most
ten seconds or a tenth of the clip's length, whichever is more.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gsavatar import audio, video, visibility
from gsavatar.crop import AMBIGUOUS_SHARE, SCAN_SIDE
from gsavatar.errors import InputError
from gsavatar.findings import Finding, State
from gsavatar.footage import VideoFile
from gsavatar.landmarks import RIGID_20, FaceLandmarker, mouth_opening, mouth_width
from gsavatar.morphable import canonical_face
from gsavatar.progress import Progress
from gsavatar.speech_motion import CLOSED_OPENING
from gsavatar.speech_sync import MouthPath, sound_offset
from gsavatar.tracking_solve import Lens, first_poses
from gsavatar.upright import Stance

Array = NDArray[np.float64]
UInt8 = NDArray[np.uint8]

LOOKS = 60
STRETCH_S = 15.0
MIN_SYNC_S = 5.0
"""Shorter stretches of lips match a wrong place of the sound too easily."""
BUDGET_S, BUDGET_SHARE = 7.0, 0.1
"""Of looking: what is heard takes up to three seconds more."""
LOOKS_SHARE, STRETCH_SHARE = 0.3, 0.85
"""Shares of the time budget by which the looks and the stretch must have ended."""
LEAST_LOOKS, LEAST_STRETCH = 8, 30
"""Looks and frames of the stretch that are taken however slow the machine is."""
FOCUS_PX = 256
"""Height to which faces are brought before their sharpness is compared."""
BURNT, BLACK = 250, 6

MIN_S, SHORT_S, GOOD_S = 2.0, 10.0, 30.0
MIN_FACE_PX, GOOD_FACE_PX = 48.0, 160.0
DARK, BRIGHT = 0.22, 0.82
CLIPPED_SHARE = 0.03
UNEVEN = 0.45
FLICKER = 0.04
SOFT, BLURRED = 0.10, 0.065
"""Sharp footage has 0.11 to 0.24; a blur of 2 px at 512 px brings it to 0.07 to 0.10, of 4 px to
0.05 to 0.08."""
LEAST_FACE_PX = 24
"""Of smaller faces there is nothing to judge."""
FEW_TURNS_DEG, GOOD_TURNS_DEG = 8.0, 20.0
WIDE_YAW_DEG = 50.0
CLOSED_SHARE, OPEN_WIDE = 0.03, 0.06
QUIET_DB, NOISY_DB, CLIPPED_SOUND = -40.0, 20.0, 1e-3
COUNTS = {2: "two", 3: "three", 4: "four"}
CHOOSE = "`fit` will ask whose: name it with --face left, right or a number, or crop to one."
MAY_CHOOSE = "should `fit` ask whose, choose the person with --face, or crop to one."


@dataclass(frozen=True)
class Look:
    """What one frame shows of the face that is largest in it."""

    time_s: float
    faces: int
    face_px: float  # height in the file's own pixels
    points: Array  # [478, 3], in pixels of the frame as it was searched
    luma: float  # mean of the face, 0-1
    clipped: float  # share of its pixels that are burnt out or black
    uneven: float  # difference of its halves over their mean
    sharpness: float


@dataclass(frozen=True)
class Footage:
    """What was seen and heard of a clip."""

    info: video.VideoInfo
    looks: tuple[Look | None, ...]  # spread over the clip; None where no face was found
    stretch_s: Array  # [N], times of consecutive frames
    opening: Array  # [N], of the mouth; NaN where no face was found
    width: Array  # [N], likewise
    sound: audio.Sound | None
    quarters: int = 0  # by which a fit turns the pictures clockwise

    @property
    def seen(self) -> list[Look]:
        return [look for look in self.looks if look is not None]


def check_video(path: Path, progress: Progress | None = None) -> list[Finding]:
    """What a clip is good for, one finding per line of the report.

    Raises ``InputError`` if the file is no video or holds no face to judge.
    """
    footage = _watch(path, progress)
    if not footage.seen:
        raise InputError(
            f"{path}: no face was found in {len(footage.looks)} frames looked at; film the face "
            "larger, from the front and in good light."
        )
    judges = (_length, _face, _size, _light, _focus, _turns, _mouth, _sound, _sync)
    findings = [judge(footage) for judge in judges]
    if progress is not None:
        progress(100, 100)
    return findings


def _watch(path: Path, progress: Progress | None) -> Footage:
    info = video.probe(path)
    budget_s = max(BUDGET_S, BUDGET_SHARE * info.duration_s)
    begun = time.monotonic()
    told = progress if progress is not None else lambda done, total: None

    def spent() -> float:
        share = (time.monotonic() - begun) / budget_s
        told(min(int(100 * share), 99), 100)
        return share

    times: list[float] = []
    mouths: list[tuple[float, float]] = []
    wanted = (np.arange(LOOKS) + 0.5) * info.duration_s / LOOKS
    length_s = min(STRETCH_S, info.duration_s)
    first_s = (info.duration_s - length_s) / 2

    def looked(stance: Stance, share: float) -> list[Look | None]:
        looks: list[Look | None] = []
        for at_s, picture in file.pictures_at(wanted.tolist()):
            looks.append(_look(at_s, picture, landmarker, stance))
            if spent() > share and len(looks) >= LEAST_LOOKS:
                break
        return looks

    with FaceLandmarker() as landmarker:
        file, stance = VideoFile(path), Stance()
        looks = looked(stance, LOOKS_SHARE)
        if stance.quarters:
            file = VideoFile(path, stance.quarters)
            looks = looked(Stance(), 2 * LOOKS_SHARE)
        dense = np.arange(first_s, first_s + length_s, 1.0 / min(info.fps, 30.0))
        for at_s, picture in file.pictures_at(dense.tolist()):
            faces = landmarker.detect(_small(picture)[0])
            times.append(at_s)
            mouths.append(_mouth_of(faces[0].points) if faces else (math.nan, math.nan))
            if spent() > STRETCH_SHARE and len(times) >= LEAST_STRETCH:
                break
    sound = audio.sound_of_video(path) if info.has_audio else None
    opening, width = np.array(mouths).reshape(-1, 2).T
    return Footage(
        file.probe(), tuple(looks), np.array(times), opening, width, sound, file.quarters
    )


def _mouth_of(points: NDArray[np.floating[Any]]) -> tuple[float, float]:
    return float(mouth_opening(points)), float(mouth_width(points))


def _small(picture: UInt8) -> tuple[UInt8, float]:
    """A picture as it is searched, and its scale."""
    import cv2

    scale = min(1.0, SCAN_SIDE / max(picture.shape[:2]))
    if scale == 1.0:
        return picture, 1.0
    shrunk = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return np.asarray(shrunk, np.uint8), scale


def _look(at_s: float, picture: UInt8, landmarker: FaceLandmarker, stance: Stance) -> Look | None:
    import cv2

    small, scale = _small(picture)
    faces = stance.faces(small, landmarker)
    if not faces:
        return None
    face = faces[0]
    top, left, bottom, right = (v / scale for v in face.box)
    height, width = picture.shape[:2]
    y, x = max(0, round(top)), max(0, round(left))
    crop = picture[y : min(height, round(bottom)), x : min(width, round(right))]
    if min(crop.shape[:2]) < LEAST_FACE_PX:
        return None
    luma = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY).astype(np.float64)
    # The middle of the box is skin, eyes and mouth; its corners are background.
    inner = luma[len(luma) // 8 : -len(luma) // 8, luma.shape[1] // 6 : -luma.shape[1] // 6]
    in_crop = face.points[:, :2].astype(np.float64) / scale - (x, y)
    halves = [float(h.mean()) for h in np.array_split(inner, 2, axis=1)]
    return Look(
        at_s, len(faces), bottom - top, face.points.astype(np.float64),
        float(inner.mean()) / 255.0, float(((inner >= BURNT) | (inner <= BLACK)).mean()),
        abs(halves[0] - halves[1]) / max(sum(halves) / 2, 1.0), _sharpness(crop, in_crop),
    )  # fmt: skip


def _sharpness(crop: UInt8, points: Array) -> float:
    """Fine detail of a face at its landmarks in its crop, as the fit compares the frames of a clip
    by it; all faces brought to one size, so that those of different videos compare too."""
    import cv2

    scale = min(1.0, FOCUS_PX / len(crop))
    even = cv2.resize(crop, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return visibility.detail(np.asarray(even, np.uint8), scale * points)


def _length(footage: Footage) -> Finding:
    duration = footage.info.duration_s
    text = f"{duration:.1f} s at {footage.info.fps:.3g} frames a second"
    if duration < MIN_S:
        return Finding("length", State.BAD, text, "give at least 2 s; a minute is better.")
    if duration < SHORT_S:
        return Finding("length", State.NOTE, text, "use --preset fewshot, or film a minute.")
    if duration < GOOD_S:
        return Finding("length", State.NOTE, text, "a minute or more of talking teaches the mouth.")
    return Finding("length", State.GOOD, text)


def _face(footage: Footage) -> Finding:
    seen, looks = footage.seen, footage.looks
    share = len(seen) / len(looks)
    several = sum(look.faces > 1 for look in seen) / len(seen)
    text = f"seen in {100 * share:.0f} % of {len(looks)} looks"
    if footage.quarters:
        text += f", not upright: `fit` turns it by {90 * footage.quarters} degrees clockwise"
    most = COUNTS.get(max(look.faces for look in seen), "several")
    if share < 0.5:
        cure = "cut the video to the parts that show the face, from the front."
        return Finding("face", State.BAD, text, cure)
    if several > 0.2:
        text += f"; {most} faces in {100 * several:.0f} %"
        asks = several >= AMBIGUOUS_SHARE
        return Finding("face", State.NOTE, text, CHOOSE if asks else MAY_CHOOSE)
    if share < 0.95:
        return Finding("face", State.NOTE, text, "keep hands and hair out of the face.")
    return Finding("face", State.GOOD, text)


def _size(footage: Footage) -> Finding:
    tall = float(np.median([look.face_px for look in footage.seen]))
    text = f"the face is {tall:.0f} px high in {footage.info.width} x {footage.info.height}"
    if tall < MIN_FACE_PX:
        return Finding("size", State.BAD, text, f"film closer: at least {MIN_FACE_PX:.0f} px.")
    if tall < GOOD_FACE_PX:
        return Finding("size", State.NOTE, text, f"film closer: {GOOD_FACE_PX:.0f} px look sharp.")
    return Finding("size", State.GOOD, text)


def _light(footage: Footage) -> Finding:
    luma = np.array([look.luma for look in footage.seen])
    clipped = float(np.median([look.clipped for look in footage.seen]))
    uneven = float(np.median([look.uneven for look in footage.seen]))
    level = float(np.median(luma))
    change = float(np.abs(np.diff(luma)).mean()) if len(luma) > 1 else 0.0
    text = f"face brightness {level:.2f} of 1"
    if level < DARK:
        return Finding("light", State.BAD, text, "too dark: put a lamp or window before the face.")
    if level > BRIGHT or clipped > CLIPPED_SHARE:
        text += f", {100 * clipped:.0f} % burnt out or black"
        return Finding("light", State.BAD, text, "lower the exposure, soften the light.")
    if uneven > UNEVEN:
        text += f", one side {100 * uneven:.0f} % brighter"
        return Finding("light", State.NOTE, text, "light the face from the front as well.")
    if change > FLICKER:
        text += f", changing by {100 * change:.0f} % between looks"
        return Finding("light", State.NOTE, text, "fix the camera's exposure and the lamps.")
    return Finding("light", State.GOOD, text)


def _focus(footage: Footage) -> Finding:
    told = [look.sharpness for look in footage.seen if np.isfinite(look.sharpness)]
    if not told:
        return Finding("focus", State.NOTE, "fine detail unknown", "film the face larger.")
    sharpness = float(np.median(told))
    text = f"fine detail {sharpness:.3f}"
    if sharpness < BLURRED:
        cure = "out of focus, or enlarged from a small picture: film it again, focus on the eyes."
        return Finding("focus", State.BAD, text, cure)
    if sharpness < SOFT:
        return Finding("focus", State.NOTE, text, "soft: give more light, compress less.")
    return Finding("focus", State.GOOD, text)


def head_angles(looks: list[Look]) -> tuple[Array, Array]:
    """Yaw (positive to the subject's left) and pitch (positive up) of each look, in degrees."""
    vertices, _ = canonical_face()
    points = np.stack([look.points[list(RIGID_20), :2] for look in looks])
    lens = Lens(1000.0, 0.0, 0.0)
    poses = first_poses(vertices[list(RIGID_20)], points, np.ones(len(RIGID_20)), lens)
    forward = poses.R[:, :, 2]  # the head looks along its +z; the camera looks along its own
    yaw = np.degrees(np.arctan2(forward[:, 0], -forward[:, 2]))
    pitch = np.degrees(np.arctan2(-forward[:, 1], -forward[:, 2]))
    return yaw, pitch


def _turns(footage: Footage) -> Finding:
    yaw, pitch = head_angles(footage.seen)
    low, high = np.percentile(yaw, (3, 97))
    nod = float(np.ptp(np.percentile(pitch, (3, 97))))
    text = f"turns {low:+.0f} to {high:+.0f} degrees, nods over {nod:.0f}"
    if max(abs(low), abs(high)) > WIDE_YAW_DEG:
        return Finding("turns", State.NOTE, text, "profiles are hard to track; stay below 50.")
    if high - low < FEW_TURNS_DEG:
        cure = "turn the head slowly to both sides once: other views are a guess without it."
        return Finding("turns", State.NOTE, text, cure)
    if high - low < GOOD_TURNS_DEG:
        return Finding("turns", State.GOOD, text + "; views beyond that are a guess")
    return Finding("turns", State.GOOD, text)


def _mouth(footage: Footage) -> Finding:
    known = footage.opening[np.isfinite(footage.opening)]
    if len(known) < 10:
        return Finding("mouth", State.BAD, "hardly seen", "show the whole face, mouth included.")
    closed = float((known < CLOSED_OPENING).mean())
    wide = float(np.percentile(known, 98))
    text = f"lips closed in {100 * closed:.0f} % of the frames, open to {wide:.2f} of the face"
    if closed < CLOSED_SHARE:
        return Finding("mouth", State.NOTE, text, "keep silent with closed lips for two seconds.")
    if wide < OPEN_WIDE / 2:
        return Finding("mouth", State.NOTE, text, "speak clearly: the mouth hardly opens.")
    return Finding("mouth", State.GOOD, text)


def _sound(footage: Footage) -> Finding:
    sound = footage.sound
    if sound is None:
        cure = "film with sound if the avatar is to be driven by speech."
        return Finding("sound", State.NOTE, "the video has none", cure)
    step = audio.SAMPLE_RATE // 10
    levels: list[float] = []
    clipped = 0
    for start in range(0, len(sound), 600 * step):
        part = sound[start : start + 600 * step]
        whole = part[: len(part) // step * step].astype(np.float64).reshape(-1, step)
        levels.extend((10.0 * np.log10((whole**2).mean(1) + 1e-10)).tolist())
        clipped += int((np.abs(part) >= 0.999).sum())
    if not levels or max(levels) < -80.0:
        return Finding("sound", State.BAD, "silent", "check the microphone and film it again.")
    loud, quiet = (float(x) for x in np.percentile(levels, (90, 10)))
    text = f"speech at {loud:.0f} dBFS, {loud - quiet:.0f} dB above the pauses"
    if loud < QUIET_DB:
        return Finding("sound", State.NOTE, text, "too soft: go nearer to the microphone.")
    if clipped > CLIPPED_SOUND * len(sound):
        return Finding("sound", State.NOTE, text + ", overdriven", "lower the recording level.")
    if loud - quiet < NOISY_DB / 2:
        return Finding("sound", State.NOTE, text, "noise or music: record in a quiet room.")
    return Finding("sound", State.GOOD, text)


def _sync(footage: Footage) -> Finding:
    times = footage.stretch_s
    if footage.sound is None:
        return Finding("sync", State.NOTE, "cannot be told without sound")
    length_s = float(np.ptp(times)) if len(times) else 0.0  # a damaged file may end before
    if length_s < MIN_SYNC_S:
        return Finding("sync", State.NOTE, f"cannot be told from {length_s:.0f} s")
    first_s = max(0.0, times[0] - 1.0)
    part = footage.sound[
        round(first_s * audio.SAMPLE_RATE) : round((times[-1] + 1.0) * audio.SAMPLE_RATE)
    ]
    mouth = MouthPath(times - first_s, footage.opening, footage.width)
    offset = sound_offset(part, mouth)
    if not offset.sure:
        return Finding("sync", State.NOTE, f"cannot be told from {length_s:.0f} s")
    side = "late" if offset.late_ms > 0 else "early"
    if offset.counts:
        text = f"the sound seems about {abs(offset.late_ms):.0f} ms {side}; a fit corrects that"
        return Finding("sync", State.NOTE, text)
    return Finding("sync", State.GOOD, "sound and lips agree, as far as a first look can tell")


def is_spoilt(findings: list[Finding]) -> bool:
    """Whether something about the clip will spoil the avatar, so that it should be filmed again."""
    return any(f.state is State.BAD for f in findings)


def verdict(findings: list[Finding]) -> str:
    """One sentence: whether to fit this clip, and what to film again first."""
    bad: list[Any] = [f.name for f in findings if f.state is State.BAD]
    if bad:
        return f"Film it again: {', '.join(bad)} will spoil the avatar."
    asks = any(f.cure == CHOOSE for f in findings)
    good = "Good to fit once you say whose face with --face" if asks else "Good to fit"
    notes = [f.name for f in findings if f.state is State.NOTE and f.cure not in ("", CHOOSE)]
    if notes:
        return f"{good}; better with attention to {', '.join(notes)}."
    return f"{good}."
