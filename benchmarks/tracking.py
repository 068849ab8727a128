"""How good the tracker is, against known truth and on real footage.

    python benchmarks/tracking.py --seeds 1000-1007 --json out.json
    python benchmarks/tracking.py --real CLIPS --parts offset jitter --json out.json

Synthetic: every seed is another subject who departs from the face model (2 mm, smooth), talks,
turns the head and at the end opens the jaw while the skull holds still; filmed with 1200 px of
focal length (``--focal-px``), which the tracker is not told. Films are made once and kept in
``--cache`` (needs flite and VTK). Real (``tracking_real.py``): steadiness of rigid skin against
MediaPipe's own pose, how the measured offset follows a sound that is moved on purpose, a wide turn,
a small face, time and memory, each beside its bar; ``--parts`` chooses among them. The JSON has
``synthetic`` and ``ms_per_frame``, and of real footage ``real`` by clip (``jitter_ratio``,
``av_offset_ms``, ``tracked_share``), ``peak_rss_mb`` by minutes and all ``rows``.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tracking_real
import tyro
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation
from tracking_real import PARTS, Part

from gsavatar import pipeline, progress
from gsavatar.clip import Clip, open_clip
from gsavatar.datasets.synthetic import Shot, cached, rigid_skin
from gsavatar.datasets.synthetic_motion import JAW_HOLD_S, JAW_TEST_S, Motion, Performance
from gsavatar.ingest import IngestOptions
from gsavatar.types import PROTOCOL_SIZE, Region

Float = NDArray[np.float64]
Row = dict[str, Any]

FOCAL_PX, SECONDS, DEVIATION_M, GRAIN = 1200.0, 6.0, 0.002, 2.0
YAW_RAD = (0.22, 0.80)
LABELS_EVERY = 15
JUDGED_SHAPES = (
    "jawOpen", "mouthPucker", "mouthSmileLeft", "mouthSmileRight", "mouthLeft", "mouthRight",
    "eyeBlinkLeft", "eyeBlinkRight",
)  # fmt: skip
TEXTS = (
    "Every morning the baker opens his shop before the sun comes up over the bay.",
    "Please put the papers away, and come back with me to the meeting about farms.",
    "Seven small boats moved past the pier while people waved from above.",
    "My brother bought a purple umbrella because it may rain all week in May.",
    "We found five funny puppies behind the barn, and they followed us home.",
    "Who would have thought that moving a mouse could open so many windows?",
    "Good food, warm rooms and a map of the valley are what visitors hope for.",
    "Both of them believe that the problem began when the pump broke down.",
)


def subject(seed: int, focal_px: float = FOCAL_PX) -> Shot:
    """The film of a seed: another person, sentence, light and reach of the head's turn."""
    rng = np.random.default_rng([seed, 9])
    yaw = float(rng.uniform(*YAW_RAD))
    motion = Motion(yaw=yaw, pitch=0.12, roll=0.06, sway=0.012, jaw_test=True)
    return Shot(
        seed=seed, text=TEXTS[seed % len(TEXTS)], seconds=SECONDS, focal_px=focal_px, grain=GRAIN,
        motion=motion, deviation_m=DEVIATION_M, glasses=bool(rng.random() < 0.25),
        light=int(rng.integers(0, 4)), shutter=float(rng.choice([0.0, 0.0, 0.0, 0.3])),
    )  # fmt: skip


@dataclass(frozen=True)
class Matched:
    """A track beside the truth, rows are tracked frames."""

    R_true: Float  # [T, 3, 3], head -> camera
    t_true: Float  # [T, 3]
    R_fit: Float
    t_fit: Float
    focal_true: float
    to_px: Float  # [2, 3], from pixels of the film to protocol pixels
    focal_fit: Float  # protocol pixels
    centre_fit: Float  # [2]
    time_s: Float
    yaw_deg: Float  # [T]

    def true_px(self, points: Float) -> Float:
        """Where head points [P, 3] of the truth are seen, [T, P, 2] in protocol pixels."""
        seen = points @ self.R_true.transpose(0, 2, 1) + self.t_true[:, None]
        film = seen[..., :2] / seen[..., 2:] * self.focal_true + PROTOCOL_SIZE / 2
        return film @ self.to_px[:, :2].T + self.to_px[:, 2]

    def fitted_px(self, points: Float) -> Float:
        """Where the track puts points [P, 3] of its own head frame."""
        seen = points @ self.R_fit.transpose(0, 2, 1) + self.t_fit[:, None]
        return seen[..., :2] / seen[..., 2:] * self.focal_fit + self.centre_fit


def matched(clip: Clip, truth: Row) -> Matched:
    """The clip's track and the truth of its film, frame by frame."""
    ids = clip.frame_ids.numpy()
    room = np.array(truth["room_to_camera"])
    true = room @ np.array(truth["head_pose"])[ids]
    camera = clip.track.cameras[0]
    fit = camera.world_to_cam.double().numpy() @ clip.track.head_pose.double().numpy()
    top, left, bottom, _ = clip.meta["sources"][0]["crop"]
    scale = PROTOCOL_SIZE / (bottom - top)
    to_px = np.array([[scale, 0, -left * scale], [0, scale, -top * scale]])
    poses = np.array(truth["head_pose"])[ids]
    yaw = np.degrees(np.arctan2(poses[:, 0, 2], poses[:, 2, 2]))
    K = camera.K.double().numpy()
    return Matched(
        true[:, :3, :3], true[:, :3, 3], fit[:, :3, :3], fit[:, :3, 3],
        truth["focal_px"], to_px, K[0, 0], K[:2, 2], clip.time_s.numpy(), yaw,
    )  # fmt: skip


def rotation_errors(m: Matched) -> tuple[Float, Float]:
    """Residual turns [T, 3] in degrees after one constant alignment, and that alignment [3, 3]."""
    A = Rotation.from_matrix(m.R_true.transpose(0, 2, 1) @ m.R_fit).mean()
    residual = (A.inv() * Rotation.from_matrix(m.R_true.transpose(0, 2, 1) @ m.R_fit)).as_rotvec()
    return np.degrees(residual), A.as_matrix()


def into_fitted_frame(m: Matched, points: Float, A: Float) -> Float:
    """True head points [P, 3] in the fitted head frame: the similarity that reprojects best."""
    some = np.unique(np.linspace(0, len(m.R_true) - 1, 60).astype(int))
    few = Matched(
        m.R_true[some], m.t_true[some], m.R_fit[some], m.t_fit[some], m.focal_true, m.to_px,
        m.focal_fit, m.centre_fit, m.time_s[some], m.yaw_deg[some],
    )  # fmt: skip
    target = few.true_px(points)
    middle = points.mean(0)

    def moved(x: Float) -> Float:
        turn = Rotation.from_rotvec(x[:3]).as_matrix() @ A.T
        return np.asarray(np.exp(x[6]) * (points - middle) @ turn.T + x[3:6])

    def miss(x: Float) -> Float:
        return np.asarray((few.fitted_px(moved(x)) - target).ravel())

    start = np.concatenate((np.zeros(3), A.T @ middle, [0.0]))
    return moved(least_squares(miss, start, x_scale="jac", loss="huber", f_scale=1.0).x)


def score(clip: Clip, folder: Path, shot: Shot) -> Row:
    """Everything the truth says about one track."""
    truth = json.loads((folder / "film.truth.json").read_text())
    m = matched(clip, truth)
    residual, A = rotation_errors(m)
    size = np.linalg.norm(residual, axis=1)
    front = np.abs(m.yaw_deg) <= 30
    performance = shot.performance()
    head = shot.head()
    points = head.vertices[rigid_skin(head, set(performance.weights))]
    off = m.fitted_px(into_fitted_frame(m, points, A)) - m.true_px(points)  # [T, P, 2]
    bend = off[1:-1] - 0.5 * (off[:-2] + off[2:])
    focal = m.focal_fit / m.to_px[0, 0]
    sigma = clip.meta.get("focal_sigma")
    sigmas = None if sigma is None else float(abs(focal - m.focal_true) / (sigma * focal))
    return {
        "seed": shot.seed, "yaw_reach_deg": float(np.abs(m.yaw_deg).max()),
        "tracked_share": len(clip) / len(performance.time_s),
        "rotation_deg": size[front].tolist(), "rotation_deg_wide": size[~front].tolist(),
        "reprojection_px": float(np.linalg.norm(off, axis=-1).mean()),
        "jitter_px": float(np.sqrt((bend**2).sum(-1).mean())),
        "focal_error": float(focal / m.focal_true - 1.0),
        "focal_sigma": sigmas,
        "leak_deg": leak(residual, m.time_s, performance),
        "expression_rel_rms": expression_error(clip, performance, m.yaw_deg),
        "region_iou": region_ious(clip, folder),
    }  # fmt: skip


def leak(residual_deg: Float, time_s: Float, performance: Performance) -> float:
    """How far the pose goes when only the jaw opens, in degrees."""
    start = performance.time_s[-1] + 1 / 25 - JAW_TEST_S
    jaw = np.interp(time_s, performance.time_s, performance.weights["jawOpen"])
    shut = (time_s >= start + 0.16) & (time_s < start + JAW_HOLD_S) & (jaw < 0.05)
    wide = (time_s > start) & (jaw > 0.95)
    if shut.sum() < 3 or wide.sum() < 3:
        raise ValueError("the jaw test has too few tracked frames")
    return float(np.linalg.norm(residual_deg[wide].mean(0) - residual_deg[shut].mean(0)))


def expression_error(clip: Clip, performance: Performance, yaw_deg: Float) -> float:
    """Root mean square of the coefficients' errors over that of the truth, near the front."""
    ids, names = clip.frame_ids.numpy(), clip.track.face.names
    near = np.abs(yaw_deg) <= 20
    wrong, there = 0.0, 0.0
    for name in JUDGED_SHAPES:
        true = performance.weights.get(name, np.zeros(len(performance.time_s)))[ids][near]
        fit = np.zeros(len(true))
        if name in names:
            fit = clip.track.coefficients[:, names.index(name)].double().numpy()[near]
        wrong += float(((fit - true) ** 2).sum())
        there += float((true**2).sum())
    return float(np.sqrt(wrong / there))


def region_ious(clip: Clip, folder: Path) -> dict[str, float]:
    """Overlap of every region with the truth, over the frames that have true labels."""
    both, either = np.zeros(len(Region)), np.zeros(len(Region))
    top, left, bottom, _ = clip.meta["sources"][0]["crop"]
    side = PROTOCOL_SIZE / (bottom - top)
    to_px = np.array([[side, 0, -left * side], [0, side, -top * side]])
    rows = {int(i): row for row, i in enumerate(clip.frame_ids)}
    for path in sorted((folder / "regions").glob("*.png")):
        row = rows.get(int(path.stem))
        if row is None:
            continue
        true = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        true = cv2.warpAffine(true, to_px, (PROTOCOL_SIZE,) * 2, flags=cv2.INTER_NEAREST)
        mine = clip.regions(row)
        for region in Region:
            a, b = true == int(region), mine == int(region)
            both[region] += (a & b).sum()
            either[region] += (a | b).sum()
    return {r.name: float(both[r] / either[r]) for r in Region if either[r] > 0}


def track_subject(seed: int, focal_px: float, cache: Path, work: Path) -> Row:
    """One subject made, tracked and measured."""
    shot = subject(seed, focal_px)
    folder = cached(shot, cache, labels_every=LABELS_EVERY)
    started = time.monotonic()
    run = work / str(seed)
    pipeline.track([folder / "film.mp4"], run, IngestOptions(), progress.SilentReporter())
    took = time.monotonic() - started
    clip = open_clip(run / "clip")
    return score(clip, folder, shot) | {"ms_per_frame": 1000 * took / max(len(clip), 1)}


def summary(rows: list[Row]) -> Row:
    """The subjects together, by the keys of the judges."""
    front = np.concatenate([r["rotation_deg"] for r in rows])
    wide = np.concatenate([r["rotation_deg_wide"] for r in rows])
    turned = [r for r in rows if r["yaw_reach_deg"] >= 20]
    sigmas = [r["focal_sigma"] for r in turned if r["focal_sigma"] is not None]
    ious = [np.mean(list(r["region_iou"].values())) for r in rows]
    return {
        "rotation_deg_median": float(np.median(front)),
        "rotation_deg_p95": float(np.percentile(front, 95)),
        "rotation_deg_wide_median": float(np.median(wide)) if len(wide) else None,
        "rotation_deg_wide_p95": float(np.percentile(wide, 95)) if len(wide) else None,
        "reprojection_px": float(np.mean([r["reprojection_px"] for r in rows])),
        "jitter_px": float(np.mean([r["jitter_px"] for r in rows])),
        "focal_error": [abs(r["focal_error"]) for r in turned],
        "focal_sigma": sigmas,
        "leak_deg": float(np.mean([r["leak_deg"] for r in rows])),
        "expression_rel_rms": float(np.mean([r["expression_rel_rms"] for r in rows])),
        "region_miou": float(np.mean(ious)),
        "subjects": rows,
    }


def seeds_of(text: str) -> list[int]:
    """``1000-1003`` or ``5,9`` as numbers."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


@dataclass(frozen=True)
class Main:
    """Tracks synthetic subjects and compares with their truth, or real clips with the bars."""

    seeds: str | None = None
    """Subjects to make; by default 1000-1007, and none with --real."""
    json: Path | None = None
    """File for all numbers."""
    focal_px: float = FOCAL_PX
    """Focal length of the films, which the tracker is not told."""
    cache: Path = Path("~/.cache/gsavatar/synthetic")
    """Where films are kept."""
    work: Path | None = None
    """Where runs are kept; by default nowhere."""
    real: Path | None = None
    """Folder of real clips, found by their names (see tracking_real.FOOTAGE)."""
    parts: tuple[Part, ...] = PARTS
    """Which of the real measurements to make."""
    tracked: Path | None = None
    """Folder of runs made before, NAME/clip each, which then need not be tracked again."""
    frames: int = 250
    """Frames of each real clip that are compared for jitter."""
    minutes: tuple[float, ...] = (1.0, 10.0)
    """Lengths of the looped clip whose memory is compared."""
    only: tuple[str, ...] = ()
    """Names of the real clips to look at; all by default."""


def synthetic(seeds: str, options: Main, scratch: Path) -> Row:
    """Subjects tracked and beside their truth."""
    rows = []
    for seed in seeds_of(seeds):
        row = track_subject(
            seed, options.focal_px, options.cache.expanduser(), options.work or scratch
        )
        rows.append(row)
        shown = {k: v for k, v in row.items() if not k.startswith(("rotation_deg", "region"))}
        shown["rotation"] = float(np.median(row["rotation_deg"]))
        shown["miou"] = float(np.mean(list(row["region_iou"].values())))
        print("  ".join(f"{k} {v:.4g}" for k, v in shown.items() if v is not None), flush=True)
    result: Row = {"synthetic": summary(rows)}
    result["ms_per_frame"] = float(np.median([r["ms_per_frame"] for r in rows]))
    for key, value in result["synthetic"].items():
        if key != "subjects":
            print(f"{key:26} {value}")
    return result


def main(options: Main) -> None:
    """Both halves, as asked for."""
    # The judges' keys are always there: null is what was not asked for.
    result: Row = {"synthetic": None, "real": None, "ms_per_frame": None, "peak_rss_mb": None}
    seeds = options.seeds or ("1000-1007" if options.real is None else None)
    with tempfile.TemporaryDirectory() as scratch:
        if seeds is not None:
            result |= synthetic(seeds, options, Path(scratch))
        if options.real is not None:
            result["rows"] = tracking_real.measure(
                tracking_real.Options(
                    options.real, options.parts, options.work or Path(scratch), options.tracked,
                    options.frames, options.minutes, options.only,
                )
            )  # fmt: skip
            result |= tracking_real.keyed(result["rows"])
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Main)))
