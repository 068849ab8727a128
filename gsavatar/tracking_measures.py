"""What a tracked clip shows and how well it was tracked, as plain numbers for the report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gsavatar import metrics_motion
from gsavatar.clip import Clip
from gsavatar.landmarks import (
    FACE_OVAL,
    LEFT_EYE,
    LEFT_IRIS,
    LIPS_40,
    RIGHT_EYE,
    RIGHT_IRIS,
    RIGID_20,
)
from gsavatar.morphable import FITTED_POINTS
from gsavatar.sequence import Sequence
from gsavatar.tracking_steadiness import (
    Residual,
    head_points,
    path_px,
    residual_motion,
    spectrum,
)

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]
Progress = Callable[[int, int], None]

STEADY_FRAMES = 200
"""Frames whose pictures are compared for steadiness: the longest unbroken stretch, up to here."""
NEIGHBOUR = 1.5
"""Successive frames are at most this many frame times apart."""
DOUBTED_WEIGHT = 0.5
FACE_PARTS: dict[str, tuple[int, ...]] = {
    "forehead and nose bridge": RIGID_20, "lips": LIPS_40, "eyelids": LEFT_EYE + RIGHT_EYE,
    "irises": (LEFT_IRIS[0], RIGHT_IRIS[0]), "outline of the face": FACE_OVAL,
}  # fmt: skip


@dataclass(frozen=True)
class Dropped:
    """Successive frames that are missing in the track, and why."""

    source: int
    first: int  # ids of the clip
    last: int
    start_s: float
    reason: str

    @property
    def count(self) -> int:
        return self.last - self.first + 1


@dataclass(frozen=True)
class Fit:
    """How far the landmarks lie from the fitted mesh, in protocol pixels."""

    frame_px: Array  # [T], mean over all landmarks
    part_px: dict[str, float]

    @property
    def mean_px(self) -> float:
        return float(self.frame_px.mean())


@dataclass(frozen=True)
class Steadiness:
    """What the path leaves of the skin's motion, beside each frame's landmarks alone."""

    ours: Residual
    landmarks: Residual
    hz: Array
    ours_px: Array  # rms by frequency
    landmarks_px: Array
    start_s: float
    frames: int


@dataclass(frozen=True)
class Lens:
    """The focal length, in protocol pixels."""

    focal_px: float
    sigma: float | None  # share of the focal length; None where it was given or assumed
    field_deg: float  # angle that the picture's width takes in


@dataclass(frozen=True)
class Measures:
    """Everything the tracking report states; angles in degrees, one value a tracked frame."""

    time_s: Array
    total: int  # frames of the sources
    dropped: tuple[Dropped, ...]
    doubted: int
    blurred: int | None  # frames of the sources; None for a clip of an older version
    hidden: int | None  # likewise, something is before the mouth
    kept: int  # frames whose pictures are kept
    fit: Fit | None  # None for a clip of a version that kept no landmark places
    steadiness: Steadiness | None  # None where too few neighbouring pictures are kept
    lens: Lens
    yaw: Array
    pitch: Array
    roll: Array
    reach: tuple[tuple[str, float, float], ...]  # name, 1 % and 99 % of every coefficient


def measure(clip: Clip, sequence: Sequence, progress: Progress | None = None) -> Measures:
    """All measures of a clip; ``sequence`` is what its first pass found."""
    yaw, pitch, roll = head_angles(clip)
    low, high = np.percentile(clip.track.coefficients.double().numpy(), (1, 99), axis=0)
    names, shown = clip.track.face.names, sequence.visibility
    return Measures(
        clip.time_s.double().numpy(), total_frames(clip), dropped(clip, sequence),
        int((clip.track.weight < DOUBTED_WEIGHT).sum()),
        None if shown is None else int(shown.blurred.sum()),
        None if shown is None else int(shown.hidden.sum()), int((clip.stored >= 0).sum()),
        reprojection(clip), steadiness(clip, progress), lens(clip), yaw, pitch, roll,
        tuple(zip(names, low.tolist(), high.tolist(), strict=True)),
    )  # fmt: skip


def total_frames(clip: Clip) -> int:
    """Frames of all sources, used or not."""
    return sum(_length(source) for source in clip.meta["sources"])


def _length(source: dict[str, Any]) -> int:
    """Frames of a source; clips of older versions know of the used ones alone."""
    if "frames" in source:
        return int(source["frames"])
    return int(source.get("last_index", round(source["duration_s"] * source["fps"]) - 1)) + 1


def dropped(clip: Clip, sequence: Sequence) -> tuple[Dropped, ...]:
    """Frames of the sources that the track has not, in stretches with one reason."""
    tracked = set(clip.frame_ids.tolist())
    found = dict(zip(sequence.frame_ids.tolist(), sequence.landmarks.found.tolist(), strict=True))
    parts: list[Dropped] = []
    start_id, start_s = 0, 0.0
    for file, source in enumerate(clip.meta["sources"]):
        count, fps = _length(source), float(source["fps"])
        used = source.get("last_index", count - 1) + 1
        for index in range(count):
            # Ids behind the used part belong to the next file already.
            reason = "behind the longest scene"
            if index < used:
                if start_id + index in tracked:
                    continue
                reason = _reason(found.get(start_id + index), index, source)
            _append(parts, Dropped(file, index, index, start_s + index / fps, reason))
        start_id += used
        start_s += source["duration_s"]
    return tuple(parts)


def _reason(face: bool | None, index: int, source: dict[str, Any]) -> str:
    """Why a frame of the used part is not tracked; ``face`` is None where it was never read."""
    if face is None:
        before = index < source.get("first_index", 0)
        return "before the longest scene" if before else "missing or damaged in the file"
    return "no pose known for it" if face else "no face found"


def _append(parts: list[Dropped], one: Dropped) -> None:
    """Adds a frame to the stretch it continues, or as a new one."""
    last = parts[-1] if parts else None
    if last and (last.source, last.reason, last.last + 1) == (one.source, one.reason, one.first):
        parts[-1] = Dropped(last.source, last.first, one.last, last.start_s, last.reason)
    else:
        parts.append(one)


def reprojection(clip: Clip) -> Fit | None:
    """Distance of every frame's landmarks from their places on the fitted mesh."""
    face, track = clip.track.face, clip.track
    if face.landmark_corners is None or face.landmark_shares is None:
        return None
    shares = face.landmark_shares.double().numpy()[..., None]
    corners = face.landmark_corners.numpy()
    rest = (face.vertices.double().numpy()[corners] * shares).sum(1)  # [L, 3]
    basis = (face.basis.double().numpy()[:, corners] * shares).sum(2)  # [K, L, 3]
    values = track.coefficients.double().numpy()
    place = {int(point): i for i, point in enumerate(FITTED_POINTS)}
    parts = {n: [place[p] for p in points if p in place] for n, points in FACE_PARTS.items()}
    frame_px, part_px = np.empty(len(values)), np.empty((len(values), len(parts)))
    for row, every in enumerate(clip.landmarks.points.numpy()):
        points = rest + np.tensordot(values[row], basis, 1)
        pixels = path_px(track, np.array([row]), points)[0]
        away = np.hypot(*(pixels - every[FITTED_POINTS, :2]).T)
        frame_px[row] = away.mean()
        part_px[row] = [away[own].mean() for own in parts.values()]
    return Fit(frame_px, dict(zip(parts, part_px.mean(0).tolist(), strict=True)))


def steadiness(clip: Clip, progress: Progress | None = None) -> Steadiness | None:
    """Optical flow of rigid skin after the head's path was taken out of the pictures."""
    rows = steady_rows(clip, STEADY_FRAMES)
    if len(rows) < 3:
        return None
    reference, centres = reference_of(clip, rows)
    skin = head_points(clip.track, int(rows[reference]), centres)
    if len(skin) < metrics_motion.MIN_PATCHES:
        return None
    points = clip.landmarks.points[rows].double().numpy()
    paths = [path_px(clip.track, rows, skin), points[:, list(RIGID_20), :2]]
    ours, raw = residual_motion(
        lambda t: clip.frame(int(rows[t])), paths, reference, centres,
        np.ones(len(rows) - 1, bool), progress,
    )  # fmt: skip
    fps = 1.0 / float(np.median(np.diff(clip.time_s.numpy()[rows])))
    (hz, ours_px), (_, raw_px) = (spectrum(r.motion_px, fps) for r in (ours, raw))
    start_s = float(clip.time_s[int(rows[0])])
    return Steadiness(ours, raw, hz, ours_px, raw_px, start_s, len(rows))


def reference_of(clip: Clip, rows: NDArray[np.int64]) -> tuple[int, Array]:
    """Which of some rows turns least from rest, and its patches of rigid skin [C, 2] in pixels."""
    reference = int(np.argmin(_away_from_rest(clip, rows)))
    row = int(rows[reference])
    points = clip.landmarks.points[row].double().numpy()
    return reference, metrics_motion.patch_centres(points, clip.regions(row))[::2]


def steady_rows(clip: Clip, most: int) -> NDArray[np.int64]:
    """Rows of the longest run of neighbouring frames with pictures, cut to ``most``."""
    times = clip.time_s.numpy()
    if len(times) < 2:
        return np.zeros(0, np.int64)
    steps = np.diff(times)
    broken = steps > NEIGHBOUR * np.median(steps)
    broken |= np.diff(clip.track.file_index.numpy()) != 0
    kept = clip.stored >= 0
    broken |= ~(kept[:-1] & kept[1:])
    edges = np.concatenate(([0], np.flatnonzero(broken) + 1, [len(times)]))
    longest = int(np.argmax(np.diff(edges)))
    start, end = int(edges[longest]), int(edges[longest + 1])
    rows = np.arange(start, min(end, start + most))
    return rows[kept[rows]]


def _away_from_rest(clip: Clip, rows: NDArray[np.int64]) -> Array:
    """Turn of the head away from the clip's rest pose in some rows, as a cosine's complement."""
    R = clip.track.head_pose[rows, :3, :3].double().numpy()
    return np.asarray(3.0 - np.trace(R, axis1=1, axis2=2))


def lens(clip: Clip) -> Lens:
    """The focal length and how sure it is."""
    camera = clip.track.cameras[0]
    focal = float(camera.K[0, 0])
    field = float(np.degrees(2.0 * np.arctan(camera.width / (2.0 * focal))))
    return Lens(focal, clip.meta.get("focal_sigma"), field)


def head_angles(clip: Clip) -> tuple[Array, Array, Array]:
    """Yaw (positive to the subject's left), pitch (up) and roll (to the left shoulder)
    of the head against the camera, in degrees."""
    views = np.stack([c.world_to_cam.double().numpy() for c in clip.track.cameras])
    poses = views[clip.track.file_index.numpy()] @ clip.track.head_pose.double().numpy()
    ahead, up = poses[:, :3, 2], poses[:, :3, 1]
    yaw = np.degrees(np.arctan2(ahead[:, 0], -ahead[:, 2]))
    pitch = np.degrees(np.arcsin(np.clip(-ahead[:, 1], -1.0, 1.0)))
    side = np.column_stack((-ahead[:, 2], np.zeros(len(ahead)), ahead[:, 0]))
    side /= np.maximum(np.linalg.norm(side, axis=1, keepdims=True), 1e-9)
    roll = np.degrees(np.arcsin(np.clip((up * side).sum(1), -1.0, 1.0)))
    return yaw, pitch, roll
