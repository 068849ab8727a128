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
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gsavatar import geometry, tracking_known, tracking_shape
from gsavatar.memory import give_back_freed
from gsavatar.morphable import Floats, Ints, choose_provider
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
from gsavatar.tracking_observations import Observations, observed
from gsavatar.tracking_outline import read_outlines
from gsavatar.tracking_priors import (
    EXPRESSION_WEIGHT,
    RIGID_WEIGHT,
    SKULL_SKIN_SHAPES,
    expression_prior,
    usual_scores,
)
from gsavatar.tracking_shape import Fit
from gsavatar.tracking_skin import FACING, Patches
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
from gsavatar.types import PROTOCOL_SIZE, Camera, Curves, KnownPoses, Landmarks, Track

log = logging.getLogger("gsavatar")

Progress = Callable[[int, int], None]

FOCAL_PRIOR = 1200 / 512
"""Focal length over the side of the picture: a short telephoto, usual for head and shoulders."""
SAMPLE_FRAMES = 120
STEPS = 5
TRIES = 3
"""How often the person is fitted through the lens that the skin showed, at most."""
FLOW_POINTS = 60
UNLOOKED = 0.01
"""What the pose of a frame counts whose skin was not looked at, over that of one whose was."""
DOUBTFUL = 2.0
"""Residual over the clip's median from which a frame starts to lose weight."""


def fit_track(
    seen: Observations, *,
    provider: str = "auto", model_file: Path | None = None, focal_px: float | None = None,
    image_size: int = PROTOCOL_SIZE, principal_point: tuple[float, float] | None = None,
    pictures: Pictures | None = None, regions: Pictures | None = None,
    known: KnownPoses | None = None, progress: Progress | None = None,
) -> Track:  # fmt: skip
    """The fit of one person over a clip, in the frames that were observed.

    ``pictures`` gives the RGB picture of a landmark row, or None for a row without one; with it the
    head's path follows the optical flow of rigid skin, without it a smoothed path of landmarks.
    ``regions`` gives its labels likewise, whose edge of the face says more of the face's shape.
    ``model_file`` is the file of a provider that reads the user's own. ``known`` poses are followed
    as they are; every observed frame must have one. Raises ``InputError`` if that file cannot
    serve or known poses do not fit the pictures, and ``ValueError`` for an unknown ``provider``.
    """
    tell = progress or (lambda done, total: None)
    focal = FOCAL_PRIOR * image_size if focal_px is None else float(focal_px)
    K = geometry.pinhole(focal, image_size, principal_point)
    lens = Lens(focal, float(K[0, 2]), float(K[1, 2]))
    tell(0, STEPS)
    sample = seen.at(_sample(seen, SAMPLE_FRAMES))
    model = tracking_shape.load_model(choose_provider(provider), sample.seen_px, lens, model_file)
    fit = tracking_shape.fit_person(
        model, sample.seen_px, sample.scores, usual_scores(seen.scores), sample.time_s, lens,
        outlines=read_outlines(regions, sample.rows),
    )  # fmt: skip
    tell(1, STEPS)
    path, bundle = None, None
    if known is None:
        believed = None if focal_px is not None else focal
        for tries_left in range(TRIES - 1, -1, -1):
            bundle = _bundle(fit, sample, lens, pictures, believed, last=tries_left == 0)
            if bundle is None:
                break
            lens = bundle.lens
            fit = _fit_again(fit, sample, bundle, regions)
            if bundle.settled:
                break
        K = geometry.pinhole(lens.focal, image_size, (lens.cx, lens.cy))
        tell(2, STEPS)
        poses, coefficients, weight = _all_frames(
            fit, seen, lens, pictures, bundle, lambda i: tell(2 + i, STEPS)
        )
    else:
        path = tracking_known.follow(known, seen.frame_ids, fit, seen.px, lens)
        poses = path.poses
        coefficients = _faces(fit, seen, poses, lens)
        weight = _weights(fit, seen, poses, coefficients, lens)
    cameras, head_pose = _rooms(poses, seen.file_index, K, image_size)
    track = Track(
        frame_ids=torch.from_numpy(seen.frame_ids).long(),
        time_s=torch.from_numpy(seen.time_s),
        file_index=torch.from_numpy(seen.file_index).long(),
        cameras=cameras,
        head_pose=head_pose,
        coefficients=torch.from_numpy(coefficients).float(),
        weight=torch.from_numpy(weight).float(),
        face=fit.model.face(fit.vertices),
        focal_sigma=None if bundle is None or focal_px is not None else bundle.focal_sigma,
        notes=() if known is not None or pictures is None else _notes(bundle),
    )
    if known is not None and path is not None and known.room_to_cam is not None:
        track = tracking_known.in_its_room(track, known, path, K)
    tell(STEPS, STEPS)
    return track


def drive_curves(
    landmarks: Landmarks, time_s: Tensor, provider: str, *, focal_px: float | None = None,
    image_size: int = PROTOCOL_SIZE, progress: Progress | None = None,
) -> Curves:  # fmt: skip
    """A driving video's performance in the coefficients of a fit of its own, by that provider.

    The driver may be anybody; the head's path starts from the driver's own rest pose. Raises as
    ``observed`` and ``fit_track`` do.
    """
    count = len(time_s)
    seen = observed(landmarks, time_s, torch.zeros(count, dtype=torch.int64), torch.arange(count))
    track = fit_track(
        seen, provider=provider, focal_px=focal_px, image_size=image_size, progress=progress
    )
    return Curves(track.face.names, track.time_s, track.coefficients, track.head_pose)


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


def _notes(bundle: Bundle | None) -> tuple[str, ...]:
    """What the user should know of how the skin was followed."""
    if bundle is None:
        return (
            "The skin shows too little to be followed, or the clip too few pictures: the head's "
            "path hangs on landmarks and shakes more; a longer clip, more light or a sharper "
            "picture would help.",
        )
    if bundle.swims:
        return (
            "The skin's texture swims over the face, as in film that was enlarged or compressed "
            "hard: how deep the face is was told by its landmarks. The camera's own file, or a "
            "head that turns further, tells it better.",
        )
    return ()


def _sample(seen: Observations, most: int) -> Ints:
    """At most so many frames from all over a clip, if possible such as have their picture."""
    rows = np.flatnonzero(seen.pictured)
    rows = rows if len(rows) >= most // 2 else np.arange(len(seen))
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), most)).round().astype(int))]


def _bundle(
    fit: Fit, sample: Observations, lens: Lens, pictures: Pictures | None, believed: float | None,
    *, last: bool,
) -> Bundle | None:  # fmt: skip
    """Poses and focal length from the skin of the sample frames."""
    start = first_poses(fit.rest, sample.seen_px, RIGID_WEIGHT, lens)
    start = refine_poses(start, fit.rest[None], sample.seen_px, fit.rigid_weight, lens)
    expressions = _of_the_skull(fit, _faces(fit, sample, start, lens, tied=False))
    bundle = adjust(
        pictures, sample.rows, start, expressions, surface_of(fit), lens,
        believed=believed, one_light=len(np.unique(sample.file_index)) == 1, last=last,
    )  # fmt: skip
    if bundle is not None and believed is not None:
        log.info(
            "focal length: %.0f px, give or take %.0f %%%s", bundle.lens.focal,
            100 * bundle.focal_sigma, "" if bundle.settled else "; the person is fitted again",
        )  # fmt: skip
    give_back_freed()
    if bundle is None:
        return None
    return on_the_face(bundle, fit.rest, fit.rigid_weight, sample.seen_px[bundle.rows])


def _fit_again(fit: Fit, sample: Observations, bundle: Bundle, regions: Pictures | None) -> Fit:
    """The person seen through the bundle's lens; by its poses where skin shows the face's depth."""
    some, held = sample, None
    if bundle.shows_depth:
        some, held = sample.at(bundle.rows), bundle.poses
    again = tracking_shape.fit_person(
        fit.model, some.seen_px, some.scores, fit.usual, some.time_s, bundle.lens, held=held,
        outlines=read_outlines(regions, some.rows), begun=fit,
    )  # fmt: skip
    give_back_freed()
    return again


def _all_frames(  # noqa: PLR0917
    fit: Fit, seen: Observations, lens: Lens, pictures: Pictures | None, bundle: Bundle | None,
    tell: Callable[[int], None],
) -> tuple[Poses, Floats, Floats]:  # fmt: skip
    """Poses, coefficients [T, K] and weights [T] of every frame, with the person's shape fixed."""
    start = first_poses(fit.rest, seen.px, RIGID_WEIGHT, lens)
    raw = refine_poses(start, fit.rest[None], seen.px, fit.rigid_weight, lens)
    bone = np.flatnonzero(fit.rigid_weight > 0)
    points, worth, doubt = fit.rest[bone], fit.rigid_weight[bone], BY_LANDMARKS
    count: Floats = np.ones(len(seen))
    if bundle is None or pictures is None:
        flow = measure_flow(pictures, seen.rows, project(raw, points[None], lens)[0])
    else:
        expressions = _of_the_skull(fit, _faces(fit, seen, raw, lens))
        located, looked = locate_all(bundle, pictures, seen.rows, raw, expressions)
        doubt = BY_SKIN
        if not bundle.shows_depth:  # there a second path is as good, and errs for other reasons
            doubt = BY_BOTH
            located = meeting(located, raw, seen.time_s, seen.file_index)
        raw = located
        count = np.where(looked, 1.0, UNLOOKED)
        sure = bundle.skin.patches.best(FLOW_POINTS)
        points, worth = sure.points, np.ones(len(sure.points))
        flow = _flow_of_skin(sure, raw, seen, pictures, expressions, lens)
    tell(1)

    def joined(raw: Poses) -> tuple[Poses, Floats]:
        poses = join_flow(
            raw, points, worth, flow, seen.time_s, seen.file_index, lens, doubt, count
        )
        return poses, _faces(fit, seen, poses, lens)

    poses, coefficients = joined(raw)
    if bundle is None:  # landmarks on a face that moves less than they thought tell poses better
        # What the upper face adds to them; jaw and lips must not move the skull.
        moved = points + np.tensordot(coefficients * fit.upper, fit.shapes[:, bone], 1)
        raw = refine_poses(raw, moved, seen.of(bone), worth, lens, steps=3)
        poses, coefficients = joined(raw)
    tell(2)
    return poses, coefficients, _weights(fit, seen, poses, coefficients, lens)


def _flow_of_skin(  # noqa: PLR0917
    skin: Patches, poses: Poses, seen: Observations, pictures: Pictures, expressions: Floats,
    lens: Lens,
) -> Flow:  # fmt: skip
    """Flow of patches of skin that face the camera, without what expressions move them by."""
    flow = measure_flow(pictures, seen.rows, project(poses, skin.points[None], lens)[0])
    shown = facing(poses, skin.points, skin.normals) > FACING
    talk = _talk(poses, skin.points, skin.shapes, expressions, lens)
    return Flow(flow.shift - talk, flow.trust * shown[:-1])


def _steady(fit: Fit, seen: Observations, poses: Poses, lens: Lens, rows: slice) -> Floats:
    """The landmarks [t, L, 2] of some frames that expressions have to explain."""
    steady, _ = steadied(poses[rows], fit.rest[None], seen.px[rows], fit.rigid_weight, lens)
    steady -= fit.slide.pixels(poses[rows], lens)
    return steady


def _faces(fit: Fit, seen: Observations, poses: Poses, lens: Lens, *, tied: bool = True) -> Floats:
    """Coefficients [T, K] of frames that have these poses, ``tied`` to those of their neighbours
    in time."""
    prior = expression_prior(fit.model.names, seen.scores, fit.usual, seen.time_s)
    if not tied:
        prior = replace(prior, change_precision=np.zeros_like(prior.precision))
    return fit_expressions(
        poses, fit.rest, fit.shapes, lambda rows: _steady(fit, seen, poses, lens, rows),
        EXPRESSION_WEIGHT, lens, prior,
    )  # fmt: skip


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


def _weights(
    fit: Fit, seen: Observations, poses: Poses, coefficients: Floats, lens: Lens
) -> Floats:
    """Trust [T] in 0-1: less where the landmarks disagree with the face more than usual, and where
    it is blurred or hidden."""
    rms = np.empty(len(seen))
    for rows in chunks(len(seen)):
        points = fit.rest + np.tensordot(coefficients[rows], fit.shapes, 1)
        away = project(poses[rows], points, lens)[0] - _steady(fit, seen, poses, lens, rows)
        rms[rows] = np.sqrt((away**2).sum(-1).mean(1))
    excess = rms / max(float(np.median(rms)), 1e-6) / DOUBTFUL
    return np.asarray(seen.clear / np.maximum(excess, 1.0) ** 2)


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
