"""The 3DMM fit over a whole clip: camera, the person's rest face, every pose and expression.

The order of the work: the person's shape from a hundred frames (poses, expressions and shape in
turn); poses and focal length again, from patches of rigid skin and hair in the same frames, and the
shape with them; then every frame's pose from those patches, joined with the optical flow between
frames; and every frame's expression on landmarks from which the detector's shake was taken. Focal
length and distance cannot be told apart in frontal footage: there a prior decides.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gsavatar import geometry, tracking_known, tracking_shape
from gsavatar.errors import InputError
from gsavatar.morphable import FITTED_POINTS, Floats, Ints, choose_provider
from gsavatar.tracking_bundle import Bundle, adjust
from gsavatar.tracking_flow import (
    BY_BOTH,
    BY_LANDMARKS,
    BY_SKIN,
    Flow,
    Pictures,
    join_flow,
    measure_flow,
)
from gsavatar.tracking_gauge import on_the_face
from gsavatar.tracking_locate import locate_all
from gsavatar.tracking_motion import meeting, rest_pose
from gsavatar.tracking_priors import (
    EXPRESSION_WEIGHT,
    RIGID_WEIGHT,
    SKULL_SKIN_SHAPES,
    expression_prior,
    usual_scores,
)
from gsavatar.tracking_shape import Fit
from gsavatar.tracking_skin import FACING
from gsavatar.tracking_solve import (
    Lens,
    Poses,
    chunks,
    first_poses,
    fit_expressions,
    project,
    refine_poses,
    steadied,
)
from gsavatar.tracking_surface import facing, surface_of
from gsavatar.types import PROTOCOL_SIZE, Camera, Curves, FittedFace, KnownPoses, Landmarks, Track

log = logging.getLogger("gsavatar")

Progress = Callable[[int, int], None]

FOCAL_PRIOR = 1200 / 512
"""Focal length over the side of the picture: a short telephoto, usual for head and shoulders."""
SAMPLE_FRAMES = 120
MIN_FRAMES = 2
STEPS = 5
FLOW_POINTS = 60
UNLOOKED = 0.01
"""What the pose of a frame counts whose skin was not looked at, over that of one whose was."""
DOUBTFUL = 2.0
"""Residual over the clip's median from which a frame starts to lose weight."""


@dataclass(frozen=True)
class _Footage:
    """The usable frames of a clip."""

    rows: Ints  # of the landmarks given
    seen_px: Floats  # [T, L, 2]
    scores: Floats | None  # [T, 52]
    time_s: Floats  # [T]
    file_index: Ints  # [T]

    def at(self, rows: Ints) -> _Footage:
        scores = None if self.scores is None else self.scores[rows]
        return _Footage(
            self.rows[rows], self.seen_px[rows], scores, self.time_s[rows], self.file_index[rows]
        )


def fit_track(
    landmarks: Landmarks, time_s: Tensor, file_index: Tensor, frame_ids: Tensor, *,
    provider: str = "auto", model_file: Path | None = None, focal_px: float | None = None,
    image_size: int = PROTOCOL_SIZE, principal_point: tuple[float, float] | None = None,
    pictures: Pictures | None = None, known: KnownPoses | None = None,
    progress: Progress | None = None,
) -> Track:  # fmt: skip
    """The fit of one person over a clip; frames without landmarks are left out, ids are kept.

    ``pictures`` gives the RGB picture of a landmark row, or None for a row without one; with it the
    head's path follows the optical flow of rigid skin, without it a smoothed path of landmarks.
    ``model_file`` is the file of a provider that reads the user's own. ``known`` poses are followed
    as they are, and frames without one left out. Raises ``InputError`` if fewer than two frames
    show a face, that file cannot serve or known poses do not fit the pictures, and ``ValueError``
    for an unknown ``provider``.
    """
    tell = progress or (lambda done, total: None)
    posed = None if known is None else torch.isin(frame_ids, known.frame_ids)
    footage = _usable(landmarks, time_s, file_index, posed)
    focal = FOCAL_PRIOR * image_size if focal_px is None else float(focal_px)
    K = geometry.pinhole(focal, image_size, principal_point)
    lens = Lens(focal, float(K[0, 2]), float(K[1, 2]))
    tell(0, STEPS)
    sample = footage.at(_spread(len(footage.rows), SAMPLE_FRAMES))
    model = tracking_shape.load_model(choose_provider(provider), sample.seen_px, lens, model_file)
    usual = usual_scores(footage.scores)
    fit = tracking_shape.fit_person(
        model, sample.seen_px, sample.scores, usual, sample.time_s, lens
    )
    tell(1, STEPS)
    picked = torch.from_numpy(footage.rows)
    path, bundle = None, None
    if known is None:
        bundle = _bundle(fit, sample, lens, pictures, focal_known=focal_px is not None)
        if bundle is not None:
            lens = bundle.lens
            K = geometry.pinhole(lens.focal, image_size, (lens.cx, lens.cy))
            fit = _fit_again(fit, sample, bundle)
        tell(2, STEPS)
        poses, coefficients, weight = _all_frames(
            fit, footage, lens, pictures, bundle, lambda i: tell(2 + i, STEPS)
        )
    else:
        path = tracking_known.follow(known, frame_ids[picked].numpy(), fit, footage.seen_px, lens)
        poses, coefficients, weight = _on_path(fit, footage, lens, path.poses)
    cameras, head_pose = _rooms(poses, footage.file_index, K, image_size)
    track = Track(
        frame_ids=frame_ids[picked].long(),
        time_s=time_s[picked].double(),
        file_index=file_index[picked].long(),
        cameras=cameras,
        head_pose=head_pose,
        coefficients=torch.from_numpy(coefficients).float(),
        weight=torch.from_numpy(weight).float(),
        face=fit.model.face(fit.vertices),
        focal_sigma=None if bundle is None or focal_px is not None else bundle.focal_sigma,
    )
    if known is not None and path is not None and known.room_to_cam is not None:
        track = tracking_known.in_its_room(track, known, path, K)
    tell(STEPS, STEPS)
    return track


def drive_curves(
    landmarks: Landmarks, time_s: Tensor, face: FittedFace, *, focal_px: float | None = None,
    image_size: int = PROTOCOL_SIZE, pictures: Pictures | None = None,
    progress: Progress | None = None,
) -> Curves:  # fmt: skip
    """A driving video's performance in the coefficients of an avatar's fitted face.

    The driver's own face is fitted with the provider of ``face``, so that it may be anybody's; the
    head's path starts from the driver's own rest pose. Raises as ``fit_track`` does.
    """
    count = len(time_s)
    track = fit_track(
        landmarks, time_s, torch.zeros(count, dtype=torch.int64), torch.arange(count),
        provider=face.provider, focal_px=focal_px, image_size=image_size, pictures=pictures,
        progress=progress,
    )  # fmt: skip
    values = track.coefficients.new_zeros(len(track.time_s), len(face.names))
    for column, name in enumerate(face.names):
        if name in track.face.names:
            values[:, column] = track.coefficients[:, track.face.names.index(name)]
    return Curves(face.names, track.time_s, values, track.head_pose)


def posed_mesh(track: Track, row: int) -> Tensor:
    """Vertices [V, 3] of the fitted face in one frame, in the room frame."""
    moved = track.face.vertices + torch.einsum(
        "k,kvc->vc", track.coefficients[row], track.face.basis
    )
    return geometry.transform_points(track.head_pose[row], moved)


def project_mesh(track: Track, row: int) -> Tensor:
    """Pixels [V, 2] of the fitted face in one frame."""
    camera = track.cameras[int(track.file_index[row])]
    return geometry.project(posed_mesh(track, row), camera.world_to_cam, camera.K)[:, :2]


def _usable(
    landmarks: Landmarks, time_s: Tensor, file_index: Tensor, posed: Tensor | None
) -> _Footage:
    """Frames with landmarks, and with a pose where only ``posed`` [T] ones serve."""
    points = landmarks.points[:, torch.from_numpy(FITTED_POINTS), :2]
    good = landmarks.found & torch.isfinite(points).flatten(1).all(1)
    good = good if posed is None else good & posed
    rows = torch.nonzero(good)[:, 0]
    if len(rows) < MIN_FRAMES:
        lack = "show a face" if posed is None else "show a face and have a pose"
        raise InputError(
            f"only {len(rows)} of {len(good)} frames {lack}, at least {MIN_FRAMES} are "
            "needed; film the face larger, from the front, in good light."
        )
    scores = None
    if landmarks.scores is not None:
        scores = torch.nan_to_num(landmarks.scores[rows]).numpy()
    return _Footage(
        rows.numpy(), points[rows].numpy(), scores, time_s[rows].double().numpy(),
        file_index[rows].numpy(),
    )  # fmt: skip


def _spread(count: int, most: int) -> Ints:
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def _bundle(
    fit: Fit, sample: _Footage, lens: Lens, pictures: Pictures | None, *, focal_known: bool
) -> Bundle | None:
    """Poses and focal length from the skin of the sample frames."""
    start = first_poses(fit.rest, sample.seen_px, RIGID_WEIGHT, lens)
    start = refine_poses(start, fit.rest[None], sample.seen_px, fit.rigid_weight, lens)
    expressions = _of_the_skull(fit, _faces(fit, sample, start, lens, tied=False)[0])
    bundle = adjust(
        pictures, sample.rows, start, expressions, surface_of(fit), lens,
        focal_known=focal_known,
    )  # fmt: skip
    if bundle is not None and not focal_known:
        log.info(
            "focal length: %.0f px, give or take %.0f %%", bundle.lens.focal,
            100 * bundle.focal_sigma,
        )  # fmt: skip
    if bundle is None:
        return None
    return on_the_face(bundle, fit.rest, fit.rigid_weight, sample.seen_px[bundle.rows])


def _fit_again(fit: Fit, sample: _Footage, bundle: Bundle) -> Fit:
    """The person seen through the bundle's lens; by its poses where skin shows the face's depth."""
    some, held = sample, None
    if bundle.shows_depth:
        some, held = sample.at(bundle.rows), bundle.poses
    return tracking_shape.fit_person(
        fit.model, some.seen_px, some.scores, fit.usual, some.time_s, bundle.lens, held=held
    )


def _all_frames(  # noqa: PLR0917
    fit: Fit, footage: _Footage, lens: Lens, pictures: Pictures | None, bundle: Bundle | None,
    tell: Callable[[int], None],
) -> tuple[Poses, Floats, Floats]:  # fmt: skip
    """Poses, coefficients [T, K] and weights [T] of every frame, with the person's shape fixed."""
    seen = footage.seen_px
    start = first_poses(fit.rest, seen, RIGID_WEIGHT, lens)
    raw = refine_poses(start, fit.rest[None], seen, fit.rigid_weight, lens)
    bone = np.flatnonzero(fit.rigid_weight > 0)
    points, worth, doubt = fit.rest[bone], fit.rigid_weight[bone], BY_LANDMARKS
    shown: Floats = np.ones((len(seen), len(points)))
    talk: Floats = np.zeros(1)
    count: Floats = np.ones(len(seen))
    if bundle is not None and pictures is not None:
        expressions = _of_the_skull(fit, _faces(fit, footage, raw, lens)[0])
        located, looked = locate_all(bundle, pictures, footage.rows, raw, expressions)
        doubt = BY_SKIN
        if not bundle.shows_depth:  # there a second path is as good, and errs for other reasons
            doubt = BY_BOTH
            located = meeting(located, raw, footage.time_s, footage.file_index)
        raw = located
        count = np.where(looked, 1.0, UNLOOKED)
        sure = bundle.skin.patches.best(FLOW_POINTS)
        points, worth = sure.points, np.ones(len(sure.points))
        shown = (facing(raw, points, sure.normals) > FACING).astype(np.float64)
        talk = _talk(raw, points, sure.shapes, expressions, lens)
    start_px, _ = project(raw, points[None], lens)
    flow = measure_flow(pictures, footage.rows, start_px)
    flow = Flow(flow.shift - talk, flow.trust * shown[:-1])
    tell(1)

    def joined(raw: Poses) -> tuple[Poses, Floats, Floats]:
        poses = join_flow(
            raw, points, worth, flow, footage.time_s, footage.file_index, lens, doubt, count
        )
        return poses, *_faces(fit, footage, poses, lens)

    poses, coefficients, steady = joined(raw)
    if bundle is None:  # landmarks on a face that moves less than they thought tell poses better
        moved = fit.rest + _upper_motion(fit, coefficients)
        raw = refine_poses(raw, moved, seen, fit.rigid_weight, lens, steps=3)
        poses, coefficients, steady = joined(raw)
    tell(2)
    return poses, coefficients, _weights(fit, poses, coefficients, steady, lens)


def _faces(
    fit: Fit, footage: _Footage, poses: Poses, lens: Lens, *, tied: bool = True
) -> tuple[Floats, Floats]:
    """Coefficients [T, K] of frames that have these poses, ``tied`` to those of their neighbours
    in time, and the landmarks [T, L, 2] they explain."""
    prior = expression_prior(fit.model.names, footage.scores, fit.usual, footage.time_s)
    if not tied:
        prior = replace(prior, change_precision=np.zeros_like(prior.precision))
    steady, _ = steadied(poses, fit.rest[None], footage.seen_px, fit.rigid_weight, lens)
    steady = steady - fit.slide.pixels(poses, lens)
    found = fit_expressions(poses, fit.rest, fit.shapes, steady, EXPRESSION_WEIGHT, lens, prior)
    return found, steady


def _of_the_skull(fit: Fit, coefficients: Floats) -> Floats:
    """Coefficients [T, K] of the shapes that move the skull's skin, zero for others."""
    return coefficients * [name.startswith(SKULL_SKIN_SHAPES) for name in fit.model.names]


def _talk(poses: Poses, points: Floats, shapes: Floats, expressions: Floats, lens: Lens) -> Floats:
    """Pixels [T - 1, P, 2] by which expressions move patches [P] from each frame to the next."""
    moved = np.empty((len(poses.t), len(points), 2))
    for rows in chunks(len(poses.t)):
        still, _ = project(poses[rows], points[None], lens)
        shown = points + np.einsum("tk,pkc->tpc", expressions[rows], shapes)
        moved[rows] = project(poses[rows], shown, lens)[0] - still
    return np.diff(moved, axis=0)


def _on_path(fit: Fit, footage: _Footage, lens: Lens, poses: Poses) -> tuple[Poses, Floats, Floats]:
    """Poses as given, and the coefficients [T, K] and weights [T] of every frame on them."""
    coefficients, steady = _faces(fit, footage, poses, lens)
    return poses, coefficients, _weights(fit, poses, coefficients, steady, lens)


def _upper_motion(fit: Fit, coefficients: Floats) -> Floats:
    """What the upper face adds to the landmarks [T, L, 3]; jaw and lips must not move the skull."""
    return np.tensordot(coefficients * fit.upper, fit.shapes, 1)


def _weights(
    fit: Fit, poses: Poses, coefficients: Floats, steady: Floats, lens: Lens
) -> Floats:  # fmt: skip
    """Trust [T] in 0-1: less where the landmarks disagree with the face more than usual."""
    rms = np.empty(len(steady))
    for rows in chunks(len(steady)):
        points = fit.rest + np.tensordot(coefficients[rows], fit.shapes, 1)
        pixels, _ = project(poses[rows], points, lens)
        rms[rows] = np.sqrt(((pixels - steady[rows]) ** 2).sum(-1).mean(1))
    excess = rms / max(float(np.median(rms)), 1e-6) / DOUBTFUL
    return np.asarray(1.0 / np.maximum(excess, 1.0) ** 2)


def _rooms(
    poses: Poses, file_index: Ints, K: Tensor, image_size: int
) -> tuple[tuple[Camera, ...], Tensor]:
    """A camera per file, whose room is the head at rest, and head -> room [T, 4, 4]."""
    in_camera = geometry.rigid(torch.from_numpy(poses.R), torch.from_numpy(poses.t))
    head_pose = torch.empty_like(in_camera)
    cameras: list[Camera] = []
    rest = rest_pose(poses)
    for file in range(int(file_index.max()) + 1):
        rows = np.flatnonzero(file_index == file)
        own = rest_pose(poses[rows]) if len(rows) else rest
        view = geometry.rigid(torch.from_numpy(own.R[0]), torch.from_numpy(own.t[0]))
        head_pose[rows] = geometry.se3_invert(view) @ in_camera[rows]
        cameras.append(Camera(view.float(), K, image_size, image_size))
    return tuple(cameras), head_pose.float()
