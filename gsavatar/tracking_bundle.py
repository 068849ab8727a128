"""Bundle adjustment of skin patches that are followed from frame to frame: pose and focal length.

At 30 degrees a pose from a detector's landmarks is off by a degree or more, always in the same way.
Poses, the patches' places on the head and the focal length follow instead from one robust
least-squares problem over where patches are seen (Triggs et al., "Bundle adjustment: a modern
synthesis", 2000), the places eliminated first (Schur complement). Any other frame's pose then comes
from the same patches.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np

from gsavatar.ahead import together
from gsavatar.morphable import Floats, Ints
from gsavatar.tracking_flow import Pictures
from gsavatar.tracking_motion import mean_rotation, reach, rotvecs
from gsavatar.tracking_skin import Evened, Patches, SkinMap, evened, find, pick
from gsavatar.tracking_solve import Lens, Poses, pose_jacobian, rotations
from gsavatar.tracking_surface import Surface, bent

KEY_FRAMES, ADJUSTED_FRAMES = 14, 60
CAUCHY = 2.0
SHARED_ERROR, TURNED_SHARED_ERROR, FOCAL_SHARED_ERROR = 10.0, 1.0, 25.0
"""Errors of one patch in frame after frame agree; so many observations count as one: of heads that
hardly turn, of others, and while the focal length is sought. That hangs on the smallest of
differences, so it is sought with more caution than the poses."""
LEAST_TURN_RAD = 0.25
"""Skin slides on the skull by what it slides, while what a turn shows of a face's depth grows with
the turn. Where a head turns less than this from its mean, sliding skin widened its nods by 40 % and
flattened its face: there the face's depth and how widely the head turns are the landmarks' to say.
"""
PLACES, TURNED_PLACES = (0.6, 1.0), (1.0, 2.0)
"""Share of their deviation by which places may leave the fitted face, while the focal length is
sought and then; of a head that turns more, as its skin shows where they are."""
TURNED_PASSES = 3
"""How often a turning head's patches are looked for, each time from better poses and places."""
POSE_SD = np.array([0.02, 0.02, 0.05, 0.05, 0.05, 0.05])
"""How far a landmark pose may be off: metres (x, y, z) and radians. Holds the gauge."""
SWING_SD, SWING_NOISE_RAD = 0.3, 0.01
HELD_SWING_SD, HELD_SWING_NOISE_RAD = 0.001, 0.00005
"""How far, as a share, landmarks may be wrong about how widely a head turns, and by how much a
landmark pose errs from frame to frame. Wide turns of a flat face and small ones of a deep face look
alike (the bas-relief ambiguity, Belhumeur et al. 1999): skin that slides on the skull would decide.
Of a head that hardly turns the landmarks' answer is taken as it is (skin errs alike in all frames,
so that its evidence, counted by frames, would outweigh any softer belief).
"""
FOCAL_SD = 0.25
"""Belief in the focal length beforehand, of its logarithm."""
ROUNDS = 12
MIN_OBSERVATIONS = 25
MIN_SIGHTINGS = 3


@dataclass(frozen=True)
class Bundle:
    """The answer for the frames that were adjusted."""

    lens: Lens
    focal_sigma: float  # of the focal length's logarithm, by the curvature of the problem
    rows: Ints  # of the frames given, which were adjusted
    poses: Poses  # of those
    skin: SkinMap
    shows_depth: bool  # whether the head turned enough for its skin to tell the face's shape


def adjust(  # noqa: PLR0917
    pictures: Pictures | None, rows: Ints, poses: Poses, expressions: Floats, surface: Surface,
    lens: Lens, *, focal_known: bool,
) -> Bundle | None:  # fmt: skip
    """Poses, focal length and patches of sample frames; None where the pictures say too little.

    ``rows`` are the landmark rows of the frames, ``poses`` where landmarks put the head,
    ``expressions`` [T, K] what landmarks see of the face's motion.
    """
    shows_depth = reach(poses) >= LEAST_TURN_RAD
    some = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), ADJUSTED_FRAMES)).astype(int))
    found = [] if pictures is None else [(i, pictures(int(rows[i]))) for i in some]
    there = [(i, evened(picture)) for i, picture in found if picture is not None]
    if len(there) < MIN_OBSERVATIONS:
        return None
    index, images = np.array([i for i, _ in there]), [image for _, image in there]
    own, shown = poses[index], expressions[index]
    keys = _spread_views(own, KEY_FRAMES)
    picked = [
        pick(images[k], own[np.array([k])], shown[k], surface, lens, n) for n, k in enumerate(keys)
    ]
    parts = [p for p in picked if p is not None]
    if not parts:
        return None
    patches = Patches.join(parts)
    skin = SkinMap(tuple(images[k] for k in keys), own[keys], shown[keys], patches, surface)
    new, sigma = own, 0.0
    shared, loose = SHARED_ERROR, PLACES
    if shows_depth:
        shared, loose = TURNED_SHARED_ERROR, TURNED_PLACES
    for number in range(TURNED_PASSES if shows_depth else 2):
        cautious = number == 0
        seen = _sightings(skin, images, new, shown, lens, keys, coarse=cautious)
        count = np.bincount(seen.point, minlength=len(patches.points))
        seen = seen.at(count[seen.point] >= MIN_SIGHTINGS)
        if len(seen.point) < 10 * MIN_OBSERVATIONS:
            return None
        problem = _Problem(
            own, patches.points, patches.place_sd * loose[0 if cautious else 1], seen,
            lens, focal_known or not cautious, FOCAL_SHARED_ERROR if cautious else shared,
            swing_held=not shows_depth,
        )  # fmt: skip
        solved = problem.solve(new, skin.patches.points, lens)
        if solved is None:
            return None
        lens, found_sigma, new, places = solved
        sigma = found_sigma if cautious else sigma
        skin = replace(skin, key_poses=new[keys], patches=replace(skin.patches, points=places))
        if shows_depth:
            known = np.unique(seen.point)  # nothing says where the others are
            skin = replace(skin, surface=bent(surface, patches.points[known], places[known]))
    skin = replace(skin, patches=skin.patches.at(np.unique(seen.point)))
    return Bundle(lens, sigma, index, new, skin, shows_depth)


def _spread_views(poses: Poses, most: int) -> Ints:
    """Rows of views that lie far apart, the usual one first (farthest point sampling)."""
    turns = rotvecs(poses.R)
    first = int(np.linalg.norm(turns - np.median(turns, axis=0), axis=1).argmin())
    chosen, nearest = [first], np.linalg.norm(turns - turns[first], axis=1)
    while len(chosen) < min(most, len(turns)):
        far = int(nearest.argmax())
        if nearest[far] < 0.02:
            break
        chosen.append(far)
        nearest = np.minimum(nearest, np.linalg.norm(turns - turns[far], axis=1))
    return np.array(chosen, dtype=np.int64)


@dataclass(frozen=True)
class _Seen:
    """Sightings of patches in frames."""

    point: Ints  # [O]
    frame: Ints  # [O]
    pixels: Floats  # [O, 2], pixel centres at +0.5
    trust: Floats  # [O, 2, 2]
    by_expression: Floats  # [O, 3], what the frame's expression adds to the patch's place

    def at(self, rows: Any) -> _Seen:
        return _Seen(*(getattr(self, field.name)[rows] for field in fields(self)))


def _sightings(  # noqa: PLR0917
    skin: SkinMap, images: list[Evened], poses: Poses, expressions: Floats, lens: Lens, keys: Ints,
    *, coarse: bool,
) -> _Seen:  # fmt: skip
    """Where every patch is in every frame that sees it from nearly the same side."""
    points, frames, pixels = [], [], []
    found = together(
        lambda t: find(
            skin, images[t], poses[np.array([t])], expressions[t], lens, KEY_FRAMES, coarse=coarse
        ),
        range(len(images)),
    )
    for frame, (here, at) in enumerate(found):
        own = keys[skin.patches.key_of[here]] != frame
        points.append(here[own])
        pixels.append(at[own])
        frames.append(np.full(int(own.sum()), frame, np.int64))
    for number, key in enumerate(keys):  # in its own frame a patch is where it was picked
        mine = np.flatnonzero(skin.patches.key_of == number)
        points.append(mine)
        pixels.append(skin.patches.key_px[mine] + 0.5)
        frames.append(np.full(len(mine), int(key), np.int64))
    every, of = np.concatenate(points), np.concatenate(frames)
    shift = np.einsum("tk,pkc->tpc", expressions, skin.patches.shapes)[of, every]
    return _Seen(every, of, np.concatenate(pixels), skin.patches.trust[every], shift)


def moved(poses: Poses, change: Floats) -> Poses:
    """Poses after a shift and a turn about the head's own origin, [T, 6]."""
    return Poses(rotations(change[:, 3:]) @ poses.R, poses.t + change[:, :3])


def off_start(poses: Poses, start: Poses) -> Floats:
    """Shift and turn [T, 6] (metres, radians) by which poses differ from where they started."""
    return np.concatenate(
        (poses.t - start.t, rotvecs(poses.R @ start.R.transpose(0, 2, 1))), axis=1
    )


def _residuals(poses: Poses, points: Floats, seen: _Seen, lens: Lens) -> tuple[Floats, Floats]:
    """What sightings differ by [O, 2] in their deviations, and camera coordinates [O, 3]."""
    there = points[seen.point] + seen.by_expression
    at = np.einsum("oab,ob->oa", poses.R[seen.frame], there) + poses.t[seen.frame]
    pixels = at[:, :2] / at[:, 2:] * lens.focal + (lens.cx, lens.cy)
    return np.einsum("oij,oj->oi", seen.trust, seen.pixels - pixels), at


def robust(residual: Floats, shared_error: float) -> Floats:
    """Weights [O] of sightings: Cauchy's, thinned for errors that agree."""
    square = (residual**2).sum(1) / CAUCHY**2
    return np.asarray(1.0 / (1.0 + square) / shared_error)


@dataclass(frozen=True)
class _Problem:
    """What is believed beforehand and what was seen."""

    start: Poses  # [T], by landmarks
    places: Floats  # [N, 3], by the fitted face
    place_sd: Floats  # [N]
    seen: _Seen
    lens: Lens
    focal_known: bool
    shared_error: float = SHARED_ERROR
    swing_held: bool = False  # whether landmarks alone say how widely the head turns

    @cached_property
    def swings(self) -> Floats:
        """Rows [3, 6 T] that take ``off_start`` to the share by which the head turns too widely
        about each axis of the camera, over the deviation of that share."""
        turns = rotvecs(self.start.R @ mean_rotation(self.start.R).T)
        square = np.maximum((turns**2).sum(0), 1e-12)
        share, noise = SWING_SD, SWING_NOISE_RAD
        if self.swing_held:
            share, noise = HELD_SWING_SD, HELD_SWING_NOISE_RAD
        deviation = np.sqrt(share**2 + noise**2 / square)
        rows = np.zeros((3, len(turns), 6))
        for axis in range(3):
            rows[axis, :, 3 + axis] = turns[:, axis] / square[axis] / deviation[axis]
        return rows.reshape(3, -1)

    @cached_property
    def sums(self) -> tuple[Any, Any]:
        """Sparse matrices [T, O] and [N, O] that add up what belongs to a frame and to a place."""
        from scipy.sparse import csr_array

        seen, ones = self.seen, np.ones(len(self.seen.point))
        each = np.arange(len(ones))
        sizes = (seen.frame, len(self.start.t)), (seen.point, len(self.places))
        by_frame, by_place = (
            csr_array((ones, (index, each)), shape=(count, len(ones))) for index, count in sizes
        )
        return by_frame, by_place

    def solve(
        self, poses: Poses, points: Floats, lens: Lens
    ) -> tuple[Lens, float, Poses, Floats] | None:
        """Levenberg-Marquardt over poses, places and the focal length's logarithm."""
        damping, before = 1e-3, np.inf
        for _ in range(ROUNDS):
            cost = self.cost(poses, points, lens)
            step = _Normal(self, poses, points, lens).step(damping)
            if step is None:
                return None
            d_pose, d_point, d_focal, _ = step
            tried = moved(poses, d_pose), points + d_point, replace(
                lens, focal=float(lens.focal * np.exp(d_focal))
            )  # fmt: skip
            new = self.cost(*tried)
            if new >= cost:
                damping *= 10
                continue
            poses, points, lens = tried
            damping = max(damping * 0.2, 1e-7)
            if before - new < 1e-4 * new:
                break
            before = new
        return lens, self.doubt(poses, points, lens), poses, points

    def doubt(self, poses: Poses, points: Floats, lens: Lens) -> float:
        """Deviation of the focal length's logarithm at an answer; 0 if it is known.

        How widely the head turns is as uncertain as it is, also where it is held: what is held
        must not pass for what was seen.
        """
        if self.focal_known:
            return 0.0
        loose = replace(self, swing_held=False)
        step = _Normal(loose, poses, points, lens).step(0.0)
        return FOCAL_SD if step is None else step[3]

    def cost(self, poses: Poses, points: Floats, lens: Lens) -> float:
        """Twice the negative logarithm of the belief in an answer."""
        residual, _ = _residuals(poses, points, self.seen, lens)
        cauchy = CAUCHY**2 * np.log1p((residual**2).sum(1) / CAUCHY**2)
        off = off_start(poses, self.start)
        held = ((off / POSE_SD) ** 2).sum() / len(poses.t)
        held += ((self.swings @ off.ravel()) ** 2).sum()
        near = (((points - self.places) / self.place_sd[:, None]) ** 2).sum()
        focal = (self.log_off(lens) / FOCAL_SD) ** 2
        return float(cauchy.sum() / self.shared_error + held + near + focal)

    def log_off(self, lens: Lens) -> float:
        """How far a focal length is from the one believed."""
        return float(np.log(lens.focal / self.lens.focal))


def _summed(matrix: Any, values: Floats) -> Floats:
    """Sums [C, ...] of values [O, ...] by the rows of a matrix [C, O]."""
    flat = matrix @ values.reshape(len(values), -1)
    return np.asarray(flat.reshape(-1, *values.shape[1:]))


class _Normal:
    """The normal equations at one state, points eliminated."""

    def __init__(self, problem: _Problem, poses: Poses, points: Floats, lens: Lens) -> None:
        seen, self.focal_known = problem.seen, problem.focal_known
        residual, at = _residuals(poses, points, seen, lens)
        weight = robust(residual, problem.shared_error)
        arm = at - poses.t[seen.frame]
        J = seen.trust @ pose_jacobian(at[None], arm[None], lens)[0]  # [O, 2, 6]
        by_point = J[:, :, :3] @ poses.R[seen.frame]  # [O, 2, 3]
        by_focal = np.einsum("oij,oj->oi", seen.trust, at[:, :2] / at[:, 2:] * lens.focal)
        Jw, Pw = J * weight[:, None, None], by_point * weight[:, None, None]
        T, N = len(poses.t), len(points)
        self.count = T, N
        self.frame, self.point = seen.frame, seen.point
        # Landmark poses hold the gauge together, as one frame's worth of belief.
        hold = np.diag(1 / POSE_SD**2) / T
        by_frame, by_place = problem.sums
        self.H = hold + _summed(by_frame, np.einsum("oia,oib->oab", Jw, J))
        off = off_start(poses, problem.start)
        self.swings, self.swung = problem.swings, problem.swings @ off.ravel()
        self.g = -off @ hold - (self.swung @ self.swings).reshape(T, 6)
        self.g += _summed(by_frame, np.einsum("oia,oi->oa", Jw, residual))
        tied = 1 / problem.place_sd[:, None] ** 2
        self.V = tied[:, :, None] * np.eye(3)
        self.V += _summed(by_place, np.einsum("oia,oib->oab", Pw, by_point))
        self.v = -(points - problem.places) * tied
        self.v += _summed(by_place, np.einsum("oia,oi->oa", Pw, residual))
        self.W = np.einsum("oia,oib->oab", Jw, by_point)  # [O, 6, 3]
        self.Hf = _summed(by_frame, np.einsum("oia,oi->oa", Jw, by_focal))
        self.Vf = _summed(by_place, np.einsum("oia,oi->oa", Pw, by_focal))
        self.ff = float((weight[:, None] * by_focal**2).sum()) + 1 / FOCAL_SD**2
        self.f = (
            float((weight[:, None] * by_focal * residual).sum())
            - problem.log_off(lens) / FOCAL_SD**2
        )

    def _dense(self, blocks: Floats) -> Floats:
        """The matrix [6 T, 3 N] of blocks [O, 6, 3] of poses by points."""
        T, N = self.count
        matrix = np.zeros((T, N, 6, 3))
        matrix[self.frame, self.point] = blocks  # a frame shows a patch once
        return matrix.transpose(0, 2, 1, 3).reshape(6 * T, 3 * N)

    def step(self, damping: float) -> tuple[Floats, Floats, float, float] | None:
        """Changes of poses [T, 6], points [N, 3], log focal, and the latter's deviation."""
        from scipy.linalg import LinAlgError, cho_factor, cho_solve

        T, N = self.count
        H = self.H + damping * np.einsum("taa->ta", self.H)[:, :, None] * np.eye(6)
        V = self.V + damping * np.einsum("naa->na", self.V)[:, :, None] * np.eye(3)
        inverse = np.linalg.inv(V)
        # Every key frame's patches are seen in most frames: dense products are the faster ones.
        W, WV = self._dense(self.W), self._dense(self.W @ inverse[self.point])
        A = np.zeros((6 * T + 1, 6 * T + 1))
        A[:-1, :-1] = self.swings.T @ self.swings - WV @ W.T
        for t in range(T):
            A[6 * t : 6 * t + 6, 6 * t : 6 * t + 6] += H[t]
        A[:-1, -1] = self.Hf.ravel() - WV @ self.Vf.ravel()
        A[-1, :-1] = A[:-1, -1]
        eased = np.einsum("nab,nb->na", inverse, self.Vf)
        A[-1, -1] = self.ff - float((self.Vf * eased).sum())
        right = np.zeros(6 * T + 1)
        right[:-1] = self.g.ravel() - WV @ self.v.ravel()
        right[-1] = self.f - float((eased * self.v).sum())
        if self.focal_known:
            A[-1, :] = A[:, -1] = 0.0
            A[-1, -1], right[-1] = 1.0, 0.0
        try:
            factor = cho_factor(A)
        except LinAlgError:
            return None
        x = cho_solve(factor, right)
        last = np.zeros(len(right))
        last[-1] = 1.0
        variance = 0.0 if self.focal_known else float(cho_solve(factor, last)[-1])
        pose, focal = x[:-1].reshape(T, 6), float(x[-1])
        pull = self.v - self.Vf * focal - (W.T @ x[:-1]).reshape(N, 3)
        return pose, np.einsum("nab,nb->na", inverse, pull), focal, float(np.sqrt(variance))
