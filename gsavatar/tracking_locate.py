"""Where a head is in any frame, by the patches of its skin that the bundle placed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from gsavatar.ahead import in_halves
from gsavatar.morphable import Floats, Ints
from gsavatar.tracking_bundle import Bundle
from gsavatar.tracking_flow import Pictures
from gsavatar.tracking_least_squares import (
    POSE_SD,
    SHARED_ERROR,
    TURNED_SHARED_ERROR,
    moved,
    off_start,
    robust,
)
from gsavatar.tracking_motion import rotvecs
from gsavatar.tracking_priors import SOUGHT_SD
from gsavatar.tracking_skin import MIN_POINTS, SkinMap, evened, find
from gsavatar.tracking_solve import Lens, Poses, pose_jacobian, project, rotations

NEAREST_KEYS, STILL_NEAREST_KEYS = 5, 3
"""Key frames whose patches are looked for, of heads that turn and of others."""
LOOK_EVERY, STILL_LOOK_EVERY = 2, 4
"""Frames from one that is searched for patches to the next, of heads that turn and of others."""
RESECTION_STEPS = 6
MOTION_DOUBT = 2.0
"""How far, as a share, landmarks may be wrong about how an expression moves a patch: a patch that a
jaw or a smile moves has little to say of the pose meanwhile."""


def locate(  # noqa: PLR0917
    skin: SkinMap, picture: NDArray[np.uint8], start: Poses, expression: Floats, lens: Lens,
    passes: int = 1,
) -> Poses | None:  # fmt: skip
    """The pose [1] of a head in a picture by its patches; None where too few are found.

    ``start`` [1] is right to a few degrees; another pass finds more patches from a better start.
    ``expression`` [K] says how the face is moved meanwhile.
    """
    image = evened(picture)
    pose, shared, nearest = start, SHARED_ERROR, STILL_NEAREST_KEYS
    if skin.shows_depth:
        shared, nearest = TURNED_SHARED_ERROR, NEAREST_KEYS
    for number in range(1, passes + 1):
        point, pixels = find(skin, image, pose, expression, lens, nearest, coarse=number < passes)
        if len(point) < MIN_POINTS:
            return None
        known = skin.patches.at(point)
        by_motion = np.einsum("gk,pkc->pgc", skin.sought, known.shapes)
        since_key = expression - skin.key_expressions[known.key_of]
        moved_m = np.linalg.norm(np.einsum("pk,pkc->pc", since_key, known.shapes), axis=1)
        trust = _doubted(known.trust, MOTION_DOUBT * moved_m * lens.focal / pose.t[0, 2])
        pose = _resect(pose, start, known.shown(expression), by_motion, pixels, trust, lens, shared)
    return pose


def _doubted(trust: Floats, deviation_px: Floats) -> Floats:
    """Roots of information [P, 2, 2] of patches whose place is uncertain by so much more [P]."""
    surest = np.linalg.norm(trust, ord=2, axis=(1, 2))
    return np.asarray(trust / np.sqrt(1 + (surest * deviation_px) ** 2)[:, None, None])


def locate_all(
    bundle: Bundle, pictures: Pictures, rows: Ints, raw: Poses, expressions: Floats
) -> tuple[Poses, NDArray[np.bool_]]:
    """Poses of all frames by their patches, and which frames were looked at and recognised.

    ``raw`` [T] are the landmarks' poses, ``expressions`` [T, K] their coefficients. Every few
    frames are looked at, as optical flow knows the way between them; the others get what their
    neighbours' patches say of the landmarks' error.
    """
    every = LOOK_EVERY if bundle.shows_depth else STILL_LOOK_EVERY
    walks = in_halves(
        lambda looks: _walked(bundle, pictures, rows, raw, expressions, looks, 2 * every),
        range(0, len(rows), every),
    )
    R, t = raw.R.copy(), raw.t.copy()
    good = np.zeros(len(R), dtype=bool)
    for i, found in (step for walk in walks for step in walk):
        R[i], t[i], good[i] = found.R[0], found.t[0], True
    known = np.flatnonzero(good)
    if len(known):
        turns = rotvecs(R[known] @ raw.R[known].transpose(0, 2, 1))
        shifts = t[known] - raw.t[known]
        frames = np.arange(len(R))
        between = [np.interp(frames, known, column) for column in np.hstack((turns, shifts)).T]
        rest = np.flatnonzero(~good)
        fix = np.stack(between, axis=1)[rest]
        R[rest], t[rest] = rotations(fix[:, :3]) @ raw.R[rest], raw.t[rest] + fix[:, 3:]
    return Poses(R, t), good


def _walked(  # noqa: PLR0917
    bundle: Bundle, pictures: Pictures, rows: Ints, raw: Poses, expressions: Floats,
    looks: Iterator[int], near: int,
) -> list[tuple[int, Poses]]:  # fmt: skip
    """The frames among ``looks`` in which the head is recognised, each with its pose [1].

    Each starts from what the one before says of the landmarks' error, if that is at most ``near``
    frames away.
    """
    found: list[tuple[int, Poses]] = []
    for i in looks:
        picture = pictures(int(rows[i]))
        if picture is None:
            continue
        start, passes = raw[np.array([i])], 2
        if found and i - found[-1][0] <= near:
            last, pose = found[-1]
            turn = pose.R[0] @ raw.R[last].T
            start = Poses((turn @ raw.R[i])[None], (raw.t[i] + pose.t[0] - raw.t[last])[None])
            passes = 1
        pose_here = locate(bundle.skin, picture, start, expressions[i], bundle.lens, passes)
        if pose_here is not None:
            found.append((i, pose_here))
    return found


def _resect(  # noqa: PLR0917
    start: Poses, belief: Poses, points: Floats, by_motion: Floats, pixels: Floats, trust: Floats,
    lens: Lens, shared_error: float,
) -> Poses:  # fmt: skip
    """The pose [1] that puts known places [P, 3] onto pixels [P, 2], held weakly to ``belief``.

    What brows and jaw do to the places meanwhile, combinations of ``by_motion`` [P, G, 3], is
    sought with it: a lifted forehead is no nod. So many observations as ``shared_error`` count as
    one.
    """
    pose, amounts = start, np.zeros(by_motion.shape[1])
    hold = np.full(6 + len(amounts), 1 / SOUGHT_SD**2)
    hold[:6] = 1 / (POSE_SD * (0.1, 0.1, 1, 1, 1, 1)) ** 2 * 1e-2
    for _ in range(RESECTION_STEPS):
        shown = points + np.einsum("g,pgc->pc", amounts, by_motion)
        at, seen = project(pose, shown[None], lens)
        residual = np.einsum("pij,pj->pi", trust, pixels - at[0])
        weight = robust(residual, shared_error)
        by_pose = pose_jacobian(seen, seen - pose.t[:, None], lens)[0]
        by_amount = by_pose[:, :, :3] @ pose.R[0] @ by_motion.transpose(0, 2, 1)
        J = trust @ np.concatenate((by_pose, by_amount), axis=2)
        H = np.einsum("pia,p,pib->ab", J, weight, J) + np.diag(hold)
        off = np.concatenate((off_start(pose, belief)[0], amounts))
        step = np.linalg.solve(H, np.einsum("pia,p,pi->a", J, weight, residual) - hold * off)
        pose, amounts = moved(pose, step[None, :6]), amounts + step[6:]
    return pose
