"""A head's path that is known before the fit: brought to our head frame, or kept to the digit.

Another project's head frame has its own origin, turn and unit. One similarity for the whole clip
takes ours to it: found from where our own poses, frame by frame, lie in theirs.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from gsavatar import geometry
from gsavatar.errors import InputError
from gsavatar.memory import Rows
from gsavatar.morphable import Floats, Ints
from gsavatar.tracking_motion import mean_rotation
from gsavatar.tracking_priors import RIGID_WEIGHT
from gsavatar.tracking_shape import Fit
from gsavatar.tracking_solve import Lens, Poses, chunks, first_poses, project, refine_poses
from gsavatar.types import Camera, KnownPoses, Track

log = logging.getLogger("gsavatar")

ORIGIN_SD_M = 0.05
"""How far the origins of two head frames usually lie apart."""
POSE_SD_M = 0.005
EFFECTIVE_FRAMES = 12.0
"""Errors of neighbouring poses agree: hundreds of frames know little more than a dozen."""
ROUNDS = 5
MISFIT_PX = 15.0
"""Poses whose rigid points miss their landmarks by more, at the median, belong to other pictures.
A tracker's own error is 1 to 4 px at 512 px."""


@dataclass(frozen=True)
class Alignment:
    """Our head frame -> that of the known poses: a turn, a shift, and their unit in metres."""

    turn: Floats  # [3, 3]
    shift: Floats  # [3], metres
    unit_m: float

    def applied(self, known: Poses) -> Poses:
        """Our head -> camera of every frame."""
        return Poses(known.R @ self.turn, known.R @ self.shift + self.unit_m * known.t)


def align(own: Poses, known: Poses, *, free_unit: bool) -> Alignment:
    """The similarity that brings known poses nearest to our own of the same frames.

    The unit and the shift along the line of sight are told apart by the head's travel and turns;
    where a head hardly moves, the belief that origins lie close decides.
    """
    turn = mean_rotation(known.R.transpose(0, 2, 1) @ own.R)
    count = len(own.t)
    design = np.concatenate((known.R, known.t[..., None]), axis=2)  # [T, 3, 4]
    target = own.t
    if not free_unit:
        design, target = known.R, own.t - known.t
    prior = np.full(design.shape[2], 1e-9)  # for cameras that never leave the head's origin
    prior[:3] = 1.0 / ORIGIN_SD_M**2
    trust = np.ones(count)
    solved = np.zeros(design.shape[2])
    for _ in range(ROUNDS):
        worth = trust / trust.sum() * min(count, EFFECTIVE_FRAMES) / POSE_SD_M**2
        H = np.einsum("t,tia,tib->ab", worth, design, design) + np.diag(prior)
        solved = np.linalg.solve(H, np.einsum("t,tia,ti->a", worth, design, target))
        miss = np.linalg.norm(target - design @ solved, axis=1)
        trust = 1.0 / np.maximum(miss / (2 * POSE_SD_M), 1.0)
    return Alignment(turn, solved[:3], float(solved[3]) if free_unit else 1.0)


@dataclass(frozen=True)
class KnownPath:
    """A known path in our head frame, and how it was brought there."""

    poses: Poses
    alignment: Alignment


def follow(known: KnownPoses, frame_ids: Ints, fit: Fit, seen_px: Rows, lens: Lens) -> KnownPath:
    """The known path of frames [T] whose landmarks [T, L, 2] were seen, in our head frame.

    Raises ``InputError`` if the path does not agree with the pictures.
    """
    rows = np.searchsorted(known.frame_ids.numpy(), frame_ids)
    matrices = known.head_to_cam[rows].double().numpy()
    given = Poses(matrices[:, :3, :3], matrices[:, :3, 3])
    own = first_poses(fit.rest, seen_px, RIGID_WEIGHT, lens)
    own = refine_poses(own, fit.rest[None], seen_px, fit.rigid_weight, lens)
    alignment = align(own, given, free_unit=known.room_to_cam is None)
    poses = alignment.applied(given)
    rigid = np.flatnonzero(fit.rigid_weight > 0)
    away = np.empty((2, len(own.t), len(rigid)))
    for some in chunks(len(own.t)):
        seen_rigid = seen_px[some][:, rigid]
        for path, miss in zip((poses, own), away, strict=True):
            pixels, seen = project(path[some], fit.rest[None, rigid], lens)
            off = np.linalg.norm(pixels - seen_rigid, axis=-1)
            miss[some] = np.where(seen[..., 2] > 0, off, np.inf)
    misses = [float(np.median(miss)) for miss in away]
    log.info(
        "the given poses miss the rigid landmarks by %.1f px at the median, our own by %.1f px",
        *misses,
    )
    if not misses[0] <= MISFIT_PX or alignment.unit_m <= 0:
        raise InputError(
            f"the given poses miss the face in the pictures by {misses[0]:.0f} px; they belong to "
            "other pictures or another convention: leave --poses folder away to track the head."
        )
    return KnownPath(poses, alignment)


def in_its_room(track: Track, known: KnownPoses, path: KnownPath, K: Tensor) -> Track:
    """A track whose poses are the known ones to the digit, as their head frame is ours.

    What little the new fit's head frame differs in goes into the face instead.
    """
    assert known.room_to_cam is not None
    rows = torch.searchsorted(known.frame_ids, track.frame_ids)
    head_pose = geometry.se3_invert(known.room_to_cam) @ known.head_to_cam[rows]
    turn = torch.from_numpy(path.alignment.turn).float()
    shift = torch.from_numpy(path.alignment.shift).float()
    face = replace(
        track.face,
        vertices=track.face.vertices @ turn.mT + shift,
        basis=track.face.basis @ turn.mT,
    )
    size = track.cameras[0].width
    camera = Camera(known.room_to_cam.float(), K, size, size)
    return replace(track, cameras=(camera,), head_pose=head_pose.float(), face=face)
