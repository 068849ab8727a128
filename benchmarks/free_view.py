"""How an avatar looks from where it was not filmed, against true pictures from there.

    python benchmarks/free_view.py synthetic --seeds 3000 --preset preview --json out.json
    python benchmarks/free_view.py real runs/person head.mkv --json out.json

Synthetic: a subject who turns the head by 12 degrees at most is fitted, then rendered from eight
cameras at frames it was not trained on. The fitted head frame is mapped to the true one by the
similarity that brings rigid skin together, as nothing else says where either lies. Real: another
film of a fitted person, in which the head turns farther; poses and expressions come from a track of
its own, whose face is laid onto the avatar's. Expressions drive the avatar in both. What it must
beat: the front picture laid on the fitted mesh, and the training frame of nearest pose. Synthetic
subjects also tell how the curves of the fit open the mouth, of the avatar and of the true head.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from quality import fitted
from torch import Tensor
from tracking import into_fitted_frame, matched, rotation_errors, seeds_of

from gsavatar import metrics, pipeline, progress
from gsavatar.clip import Clip, open_clip
from gsavatar.datasets.synthetic import Shot, cached, rigid_skin
from gsavatar.datasets.synthetic_motion import Motion
from gsavatar.geometry import se3_invert, transform_points
from gsavatar.ingest import IngestOptions
from gsavatar.landmarks import FaceLandmarker, mouth_opening
from gsavatar.morphable_ict import load_ict
from gsavatar.package import Package, load_package
from gsavatar.pipeline import find_avatar
from gsavatar.render import render, to_uint8
from gsavatar.speech import pearson
from gsavatar.types import PROTOCOL_SIZE, Camera, Drive, FacePart, FittedFace, Region

Float = NDArray[np.float64]
UInt8 = NDArray[np.uint8]
Row = dict[str, Any]

YAW_RAD, SECONDS, EVERY = 0.21, 24.0, 10
PLAYED_EVERY = 8
SENTENCE = (
    "Every morning the baker opens his shop before the sun comes up over the bay. "
    "Seven small boats moved past the pier while people waved from above. "
    "We found five funny puppies behind the barn, and they followed us home. "
    "My brother bought a purple umbrella because it may rain all week in May. "
    "Good food, warm rooms and a map of the valley are what visitors hope for."
)
BINS_DEG = ((0, 15), (15, 30), (30, 48))
OPAQUE = 0.5
SOLID_PARTS = (FacePart.SKIN, FacePart.SCALP)


@dataclass(frozen=True)
class Similarity:
    """x -> scale * turn @ x + shift."""

    scale: float
    turn: Float  # [3, 3]
    shift: Float  # [3]

    @staticmethod
    def between(source: Float, target: Float) -> Similarity:
        """The one that maps points [P, 3] onto others best (Umeyama 1991)."""
        a, b = source - source.mean(0), target - target.mean(0)
        u, s, vt = np.linalg.svd(b.T @ a)
        flip = np.diag([1.0, 1.0, float(np.sign(np.linalg.det(u @ vt)))])
        turn = u @ flip @ vt
        scale = float((s * np.diag(flip)).sum() / (a**2).sum())
        return Similarity(scale, turn, target.mean(0) - scale * turn @ source.mean(0))

    def seen_by(self, pose: Float) -> Float:
        """The rigid [4, 4] that shows points as ``pose`` shows them after the similarity.

        A camera cannot tell a larger head farther away: everything is divided by the scale.
        """
        moved = np.eye(4)
        moved[:3, :3] = pose[:3, :3] @ self.turn
        moved[:3, 3] = (pose[:3, :3] @ self.shift + pose[:3, 3]) / self.scale
        return moved


def drawn(
    package: Package, values: Tensor, head_pose: Tensor, to_camera: Float, K: Float, plate: Tensor
) -> tuple[UInt8, NDArray[np.bool_]]:
    """The avatar's picture, and where its head covers the background.

    ``to_camera`` [4, 4] takes the avatar's head frame to the camera.
    """
    world_to_cam = torch.from_numpy(to_camera).float() @ se3_invert(head_pose)
    camera = Camera(world_to_cam, torch.from_numpy(K).float(), PROTOCOL_SIZE, PROTOCOL_SIZE)
    with torch.no_grad():
        shown = render(package.avatar(Drive(values, head_pose)), camera, plate)
    head = shown.branch_alpha[..., :2].sum(-1).numpy() > OPAQUE
    return to_uint8(shown.rgb).numpy(), head


def coefficients(package: Package, names: tuple[str, ...], tracked: Tensor) -> Tensor:
    """Tracked values [K'] in the order of the avatar's names."""
    values = torch.zeros(len(package.names))
    for column, name in enumerate(package.names):
        if name in names:
            values[column] = tracked[names.index(name)]
    return values


def psnr_head(picture: UInt8, real: UInt8, regions: UInt8) -> float:
    """PSNR in dB over the true head."""
    return metrics.psnr(picture, real, metrics.head_mask(regions))


def subject(seed: int) -> Shot:
    """Somebody who talks and hardly turns the head."""
    motion = Motion(yaw=YAW_RAD, pitch=0.10, roll=0.05, sway=0.012)
    return Shot(
        seed=seed, text=SENTENCE, seconds=SECONDS, focal_px=1200.0, grain=2.0, motion=motion,
        deviation_m=0.002, light=seed % 4,
    )  # fmt: skip


def fitted_to_true(clip: Clip, truth: Row, shot: Shot) -> Similarity:
    """The map from the fitted head frame to the true one."""
    m = matched(clip, truth)
    _, A = rotation_errors(m)
    head = shot.head()
    points = head.vertices[rigid_skin(head, set(shot.performance().weights))]
    return Similarity.between(into_fitted_frame(m, points, A), points)


def front_on_mesh(
    clip: Clip, face: FittedFace, row: int, to_camera: Float, K: Float, plate: UInt8
) -> UInt8:
    """The frame of a row laid on the fitted mesh and seen from elsewhere: a textured mask."""
    moved = face.vertices + torch.einsum("k,kvc->vc", clip.track.coefficients[row], face.basis)
    camera = clip.camera(row)
    seen = transform_points(camera.world_to_cam @ clip.track.head_pose[row], moved).double().numpy()
    source = seen @ camera.K.double().numpy().T
    source = source[:, :2] / source[:, 2:]
    there = moved.double().numpy() @ to_camera[:3, :3].T + to_camera[:3, 3]
    target = there @ K.T
    target = target[:, :2] / target[:, 2:]
    solid = np.isin(face.part.numpy(), [int(p) for p in SOLID_PARTS])
    triangles = face.faces.numpy()
    triangles = triangles[solid[triangles].all(1)]
    order = np.argsort(-there[triangles][..., 2].mean(1))  # far ones first
    frame, picture = clip.frame(row), plate.copy()
    for a, b, c in triangles[order]:
        _lay(frame, source[[a, b, c]], picture, target[[a, b, c]])
    return picture


def _lay(frame: UInt8, source: Float, picture: UInt8, target: Float) -> None:
    """One triangle of ``frame`` into ``picture``, in place; those that face away are left out."""
    (ax, ay), (bx, by), (cx, cy) = target
    (px, py), (qx, qy), (rx, ry) = source
    facing = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
    if facing * ((qx - px) * (ry - py) - (qy - py) * (rx - px)) <= 0:
        return
    low, high = np.floor(target.min(0)).astype(int), np.ceil(target.max(0)).astype(int) + 1
    low, high = np.maximum(low, 0), np.minimum(high, PROTOCOL_SIZE)
    if (high <= low).any():
        return
    affine = cv2.getAffineTransform(
        (target - low - 0.5).astype(np.float32), (source - 0.5).astype(np.float32)
    )
    size = (int(high[0] - low[0]), int(high[1] - low[1]))
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    patch = cv2.warpAffine(frame, affine, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
    mask = np.zeros(size[::-1], np.uint8)
    cv2.fillConvexPoly(mask, np.round(target - low - 0.5).astype(np.int32), 1)
    inside = picture[low[1] : high[1], low[0] : high[0]]
    inside[mask > 0] = patch[mask > 0]


def measure_subject(seed: int, preset: str, cache: Path, work: Path, look: Path | None) -> Row:
    """One subject made, fitted and looked at from all cameras."""
    shot = subject(seed)
    folder = cached(shot, cache, labels_every=EVERY, novel=True)
    run = fitted(folder / "film.mp4", preset, work / str(seed))
    clip, package = open_clip(run / "clip"), load_package(find_avatar(run))
    truth = json.loads((folder / "film.truth.json").read_text())
    S = fitted_to_true(clip, truth, shot)
    poses = np.array(truth["head_pose"])
    rows = {int(clip.frame_ids[row]): int(row) for row in clip.test_rows}
    front = int(clip.train_rows[np.abs(poses[clip.frame_ids[clip.train_rows], 0, 2]).argmin()])
    views = {}
    for view in sorted((folder / "novel").iterdir()):
        camera = json.loads((view / "camera.json").read_text())
        plate_u8 = _background(view)
        plate = torch.from_numpy(plate_u8).float() / 255.0
        half = PROTOCOL_SIZE / 2
        K = np.array([[camera["focal_px"], 0, half], [0, camera["focal_px"], half], [0, 0, 1.0]])
        ours, mesh, overlap = [], [], []
        for path in sorted((view / "pictures").glob("*.png")):
            row = rows.get(int(path.stem))
            if row is None:
                continue
            real, regions = _picture(path), _labels(view / "regions" / path.name)
            to_camera = S.seen_by(np.array(camera["room_to_camera"]) @ poses[int(path.stem)])
            values = coefficients(package, clip.track.face.names, clip.track.coefficients[row])
            head_pose = clip.track.head_pose[row]
            picture, covered = drawn(package, values, head_pose, to_camera, K, plate)
            laid = front_on_mesh(clip, clip.track.face, front, to_camera, K, plate_u8)
            ours.append(psnr_head(picture, real, regions))
            mesh.append(psnr_head(laid, real, regions))
            true = metrics.head_mask(regions)
            about = cv2.dilate(true.astype(np.uint8), np.ones((41, 41))) > 0
            about &= ~np.isin(regions, (int(Region.NECK), int(Region.TORSO)))
            overlap.append(float((covered & true).sum() / ((covered | true) & about).sum()))
            if look is not None and len(ours) == 1:
                cv2.imwrite(
                    str(look / f"{seed}-{view.name}.png"),
                    np.concatenate((real, picture, laid), 1)[..., ::-1],
                )
        views[view.name] = {
            "psnr_head": float(np.mean(ours)), "front_on_mesh": float(np.mean(mesh)),
            "silhouette_iou": float(np.mean(overlap)), "frames": len(ours),
        }  # fmt: skip
    played = played_curves(shot, truth, clip, package)
    return {"seed": seed, "preset": preset, "views": views, **played}


def played_curves(shot: Shot, truth: Row, clip: Clip, package: Package) -> Row:
    """Correlation of the true mouth's opening with that of the true head moved by the curves of the
    fit, and with that seen in the avatar's pictures, over frames of the whole film."""
    head, model = shot.head(), load_ict()

    def opening(weights: dict[str, float]) -> float:
        posed = head.posed(weights, (0.0, 0.0))[: len(model.neutral)]
        return float(mouth_opening(model.at_landmarks(posed)))

    true, again, seen = [], [], []
    plate = torch.from_numpy(clip.plates[0]).float() / 255.0
    with FaceLandmarker() as landmarker:
        for row in range(0, len(clip.frame_ids), PLAYED_EVERY):
            frame, tracked = int(clip.frame_ids[row]), clip.track.coefficients[row]
            values = coefficients(package, clip.track.face.names, tracked)
            with torch.no_grad():
                posed = package.avatar(Drive(values, clip.track.head_pose[row]))
                shown = to_uint8(render(posed, clip.camera(row), plate).rgb).numpy()
            faces = landmarker.detect(shown)
            if faces:
                true.append(opening({k: v[frame] for k, v in truth["weights"].items()}))
                curves = zip(clip.track.face.names, tracked.tolist(), strict=True)
                again.append(opening(dict(curves)))
                seen.append(float(mouth_opening(faces[0].points)))
    return {
        "curves_r": pearson(np.array(again), np.array(true)),
        "avatar_r": pearson(np.array(seen), np.array(true)), "curves_frames": len(true),
    }  # fmt: skip


def _picture(path: Path) -> UInt8:
    return np.ascontiguousarray(cv2.imread(str(path))[..., ::-1])


def _labels(path: Path) -> UInt8:
    return np.asarray(cv2.imread(str(path), cv2.IMREAD_UNCHANGED))


def _background(view: Path) -> UInt8:
    """The background from a camera: the median where no person is, the rest continued."""
    total = np.zeros((PROTOCOL_SIZE, PROTOCOL_SIZE, 3))
    seen = np.zeros((PROTOCOL_SIZE, PROTOCOL_SIZE, 1))
    for path in sorted((view / "pictures").glob("*.png"))[:20]:
        free = (_labels(view / "regions" / path.name) == int(Region.BACKGROUND))[..., None]
        total += _picture(path) * free
        seen += free
    mean = (total / np.maximum(seen, 1)).astype(np.uint8)
    return np.asarray(cv2.inpaint(mean, (seen[..., 0] == 0).astype(np.uint8), 3, cv2.INPAINT_TELEA))


def crop_map(source: Clip, target: Clip) -> Float:
    """Protocol pixels of one clip's crop to those of another's, of the same camera, [2, 3]."""
    (t0, l0, b0, _), (t1, l1, b1, _) = (c.meta["sources"][0]["crop"] for c in (source, target))
    scale = (b0 - t0) / (b1 - t1)
    per_px = PROTOCOL_SIZE / (b1 - t1)
    return np.array([[scale, 0, (l0 - l1) * per_px], [0, scale, (t0 - t1) * per_px]])


def measure_film(run: Path, video: Path, work: Path, look: Path | None) -> Row:
    """Another film of a fitted person, by how far the head is turned."""
    clip, package = open_clip(run / "clip"), load_package(find_avatar(run))
    if not (work / "clip" / "clip.json").exists():
        pipeline.track([video], work, IngestOptions(), progress.make_reporter())
    other = open_clip(work / "clip")
    solid = np.isin(clip.track.face.part.numpy(), [int(p) for p in SOLID_PARTS])
    S = Similarity.between(
        clip.track.face.vertices.double().numpy()[solid],
        other.track.face.vertices.double().numpy()[solid],
    )
    into = crop_map(clip, other)
    rigid = clip.landmarks.points[torch.from_numpy(clip.train_rows)][..., :2].double().numpy()
    rigid = rigid @ into[:, :2].T + into[:, 2]
    found: list[tuple[float, float, float]] = []
    rest = np.linalg.inv(clip.camera(0).world_to_cam.double().numpy())
    for row in np.flatnonzero(other.stored >= 0):
        camera = other.camera(int(row))
        in_camera = (camera.world_to_cam @ other.track.head_pose[row]).double().numpy()
        to_camera = S.seen_by(in_camera)
        head_pose = torch.from_numpy(rest @ to_camera).float()
        yaw = math.degrees(math.atan2(float(head_pose[0, 2]), float(head_pose[2, 2])))
        values = coefficients(package, other.track.face.names, other.track.coefficients[row])
        plate = torch.from_numpy(other.plates[0]).float() / 255.0
        K = camera.K.double().numpy()
        picture, _ = drawn(package, values, head_pose, to_camera, K, plate)
        real, regions = other.frame(int(row)), other.regions(int(row))
        away = np.linalg.norm(rigid - other.landmarks.points[row, :, :2].numpy(), axis=-1).mean(-1)
        near = clip.frame(int(clip.train_rows[int(np.nanargmin(away))]))
        near = cv2.warpAffine(near, into, (PROTOCOL_SIZE,) * 2, borderMode=cv2.BORDER_REPLICATE)
        scores = (yaw, psnr_head(picture, real, regions), psnr_head(near, real, regions))
        found.append(scores)
        if look is not None and row % 40 == 0:
            both = np.concatenate((real, picture, near), 1)
            cv2.imwrite(str(look / f"{row:05d}-yaw{yaw:+.0f}.png"), both[..., ::-1])
    table = np.array(found)
    bins = {}
    for low, high in BINS_DEG:
        inside = (np.abs(table[:, 0]) >= low) & (np.abs(table[:, 0]) < high)
        bins[f"{low}-{high}"] = {
            "psnr_head": float(table[inside, 1].mean()) if inside.any() else None,
            "nearest_pose_frame": float(table[inside, 2].mean()) if inside.any() else None,
            "frames": int(inside.sum()),
        }  # fmt: skip
    return {"run": str(run), "film": video.name, "yaw": bins}


# ---- commands ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Synthetic:
    """Subjects of known geometry."""

    seeds: str = "3000"
    preset: str = "preview"
    cache: Path = Path("~/.cache/gsavatar/synthetic")
    work: Path = Path("runs/free_view")
    json_out: Annotated[Path | None, tyro.conf.arg(name="json")] = None
    look: Path | None = None
    """Folder for true, rendered and baseline pictures side by side."""


@dataclass(frozen=True)
class Real:
    """Another film of a fitted person."""

    run: Annotated[Path, tyro.conf.Positional]
    film: Annotated[Path, tyro.conf.Positional]
    work: Path | None = None
    json_out: Annotated[Path | None, tyro.conf.arg(name="json")] = None
    look: Path | None = None
    """Folder for real, rendered and nearest training pictures side by side."""


def main(command: Synthetic | Real) -> int:
    """Measures, prints, and writes what was measured."""
    if command.look is not None:
        command.look.mkdir(parents=True, exist_ok=True)
    result: Row
    if isinstance(command, Synthetic):
        cache, work = command.cache.expanduser(), command.work
        rows = [
            measure_subject(seed, command.preset, cache, work, command.look)
            for seed in seeds_of(command.seeds)
        ]
        result = {"synthetic": rows}
        for row in rows:
            for name, view in row["views"].items():
                print(row["seed"], name, "  ".join(f"{k} {v:.3g}" for k, v in view.items()))
            print(row["seed"], "curves", f"r {row['curves_r']:.3f}  avatar's {row['avatar_r']:.3f}")
    else:
        with tempfile.TemporaryDirectory() as scratch:
            row = measure_film(
                command.run, command.film, command.work or Path(scratch), command.look
            )
        result = {"real": row}
        for name, values in row["yaw"].items():
            print(f"|yaw| {name}", values)
    if command.json_out is not None:
        command.json_out.write_text(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Synthetic | Real)))  # type: ignore[arg-type]
