"""The least-squares problem of a bundle adjustment: what is sought, what was seen and one step.

The places of patches are eliminated first (Schur complement; Triggs et al., "Bundle adjustment: a
modern synthesis", 2000), for there are many and each hangs on the frames alone.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from gsavatar.ahead import HANDS, together
from gsavatar.morphable import Floats, Ints
from gsavatar.tracking_motion import mean_rotation, rotvecs
from gsavatar.tracking_priors import SOUGHT_SD
from gsavatar.tracking_solve import Lens, Poses, pose_jacobian, rotations

CAUCHY = 2.0
SHARED_ERROR, TURNED_SHARED_ERROR, FOCAL_SHARED_ERROR = 10.0, 1.0, 25.0
"""Errors of one patch in frame after frame agree; so many observations count as one: of heads that
hardly turn, of others, and while the focal length is sought. That hangs on the smallest of
differences, so it is sought with more caution than the poses."""
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
FOCAL_SD = 0.5
"""Belief in the focal length beforehand, of its logarithm."""
ROUNDS = 12


@dataclass(frozen=True)
class Sightings:
    """Where patches were seen in frames, one frame after the other."""

    point: Ints  # [O]
    frame: Ints  # [O]
    pixels: Floats  # [O, 2], pixel centres at +0.5
    trust: Floats  # [O, 2, 2]
    by_expression: Floats  # [O, 3], what the frame's expression adds to the patch's place

    def at(self, rows: Any) -> Sightings:
        """Some of them."""
        return Sightings(*(getattr(self, field.name)[rows] for field in fields(self)))


@dataclass(frozen=True)
class State:
    """What is sought."""

    poses: Poses  # [T]
    amounts: Floats  # [T, G], what brows and jaw do beside what is known of them
    places: Floats  # [N, 3]
    lens: Lens

    def after(self, step: Step) -> State:
        """The state after a step."""
        ratio = float(np.exp(step.focal))
        return State(
            moved(at_focal(self.poses, ratio), step.poses), self.amounts + step.amounts,
            self.places + step.places, replace(self.lens, focal=self.lens.focal * ratio),
        )  # fmt: skip


@dataclass(frozen=True)
class Step:
    """A change of a state."""

    poses: Floats  # [T, 6], shift and turn
    amounts: Floats  # [T, G]
    places: Floats  # [N, 3]
    focal: float  # of its logarithm; the head goes away with it
    focal_sigma: float  # deviation of the same; 0 if it is known


def moved(poses: Poses, change: Floats) -> Poses:
    """Poses after a shift and a turn about the head's own origin, [T, 6]."""
    return Poses(rotations(change[:, 3:]) @ poses.R, poses.t + change[:, :3])


def at_focal(poses: Poses, ratio: float) -> Poses:
    """Poses that look nearly the same through a lens of ``ratio`` times the focal length."""
    return Poses(poses.R, poses.t * (1.0, 1.0, ratio))


def off_start(poses: Poses, start: Poses) -> Floats:
    """Shift and turn [T, 6] (metres, radians) by which poses differ from where they started."""
    return np.concatenate(
        (poses.t - start.t, rotvecs(poses.R @ start.R.transpose(0, 2, 1))), axis=1
    )


def robust(residual: Floats, shared_error: float) -> Floats:
    """Weights [O] of sightings: Cauchy's, thinned for errors that agree."""
    square = (residual**2).sum(1) / CAUCHY**2
    return np.asarray(1.0 / (1.0 + square) / shared_error)


@dataclass(frozen=True)
class Problem:
    """What is believed beforehand and what was seen."""

    start: Poses  # [T], by landmarks
    places: Floats  # [N, 3], by the fitted face
    place_sd: Floats  # [N]
    by_motion: Floats  # [N, G, 3], how far a place goes with each sought motion
    seen: Sightings
    lens: Lens
    focal_known: bool
    shared_error: float = SHARED_ERROR
    swing_held: bool = False  # whether landmarks alone say how widely the head turns

    @cached_property
    def swings(self) -> Floats:
        """Rows [3, T, 6] that take ``off_start`` to the share by which the head turns too widely
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
        return rows

    @cached_property
    def spans(self) -> list[slice]:
        """Where each frame's sightings are."""
        edges = np.searchsorted(self.seen.frame, np.arange(len(self.start.t) + 1))
        return [slice(*edge) for edge in pairwise(edges)]

    @cached_property
    def ties(self) -> Floats:
        """Room for what ties frames to places, [T, D, N, 3]; zero where a frame shows no place."""
        count, motions = self.by_motion.shape[:2]
        return np.zeros((len(self.start.t), 6 + motions, count, 3))

    def began(self, poses: Poses, places: Floats, lens: Lens) -> State:
        """A state in which nothing is known of the sought motions."""
        return State(poses, np.zeros((len(poses.t), self.by_motion.shape[1])), places, lens)

    def solve(self, state: State) -> tuple[State, float] | None:
        """The best state (Levenberg-Marquardt) and the deviation of the logarithm of its focal
        length, 0 if that is known; None where the problem is singular."""
        damping, before = 1e-3, np.inf
        cost, equations = self.cost(state), NormalEquations(self, state)
        for _ in range(ROUNDS):
            step = equations.step(damping)
            if step is None:
                return None
            tried = state.after(step)
            new = self.cost(tried)
            if not new < cost:
                damping *= 10
                continue
            state, cost, damping = tried, new, max(damping * 0.2, 1e-7)
            if before - new < 1e-4 * new:
                break
            before, equations = new, NormalEquations(self, state)
        return state, self.doubt(state)

    def doubt(self, state: State) -> float:
        """Deviation of the focal length's logarithm at an answer; 0 if it is known.

        How widely the head turns is as uncertain as it is, also where it is held: what is held
        must not pass for what was seen.
        """
        if self.focal_known:
            return 0.0
        step = NormalEquations(replace(self, swing_held=False), state).step(0.0)
        return FOCAL_SD if step is None else step.focal_sigma

    def residuals(self, state: State) -> tuple[Floats, Floats]:
        """What sightings differ by [O, 2] in their deviations, and camera coordinates [O, 3]."""
        seen, poses, lens = self.seen, state.poses, state.lens
        shift = np.einsum("og,ogc->oc", state.amounts[seen.frame], self.by_motion[seen.point])
        there = state.places[seen.point] + seen.by_expression + shift
        at = np.einsum("oab,ob->oa", poses.R[seen.frame], there) + poses.t[seen.frame]
        pixels = at[:, :2] / at[:, 2:] * lens.focal + (lens.cx, lens.cy)
        return np.einsum("oij,oj->oi", seen.trust, seen.pixels - pixels), at

    def misfit(self, state: State) -> float:
        """How far sightings are off at an answer, in their deviations: the median."""
        residual, _ = self.residuals(state)
        return float(np.median(np.linalg.norm(residual, axis=1)))

    def cost(self, state: State) -> float:
        """Twice the negative logarithm of the belief in an answer."""
        residual, _ = self.residuals(state)
        cauchy = CAUCHY**2 * np.log1p((residual**2).sum(1) / CAUCHY**2)
        off = self.off(state)
        held = ((off / POSE_SD) ** 2).sum() / len(off)
        held += (np.einsum("atc,tc->a", self.swings, off) ** 2).sum()
        held += ((state.amounts / SOUGHT_SD) ** 2).sum()
        near = (((state.places - self.places) / self.place_sd[:, None]) ** 2).sum()
        focal = (self.log_off(state.lens) / FOCAL_SD) ** 2
        return float(cauchy.sum() / self.shared_error + held + near + focal)

    def off(self, state: State) -> Floats:
        """How far poses [T, 6] are from landmarks', both seen through the lens believed."""
        return off_start(at_focal(state.poses, self.lens.focal / state.lens.focal), self.start)

    def log_off(self, lens: Lens) -> float:
        """How far a focal length is from the one believed."""
        return float(np.log(lens.focal / self.lens.focal))


def _by_place(point: Ints, count: int, values: Floats) -> Floats:
    """Sums [N, ...] of values [O, ...] by the place that they belong to."""
    columns = [np.bincount(point, column, count) for column in values.reshape(len(values), -1).T]
    return np.asarray(np.stack(columns, axis=1).reshape(count, *values.shape[1:]), np.float64)


def _each(left: Floats, right: Floats) -> Floats:
    """The product [O, A, B] of every two of matrices [O, 2, A], transposed, and [O, 2, B]."""
    return np.asarray(left.transpose(0, 2, 1) @ right)


class NormalEquations:
    """The normal equations at one state.

    A frame has D = 6 + G unknowns: its pose and the amounts of the sought motions.
    """

    def __init__(self, problem: Problem, state: State) -> None:
        seen, poses, self.focal_known = problem.seen, state.poses, problem.focal_known
        T, N, D = self.size = len(poses.t), len(state.places), 6 + state.amounts.shape[1]
        self.spans, self.point, self.ties = problem.spans, seen.point, problem.ties
        residual, at = problem.residuals(state)
        root = np.sqrt(robust(residual, problem.shared_error))
        trust = seen.trust * root[:, None, None]
        residual *= root[:, None]
        # A longer lens farther away: what is left is how much nearer near points look.
        nearer = 1.0 - poses.t[seen.frame, 2:] / at[:, 2:]
        by_focal = at[:, :2] / at[:, 2:] * state.lens.focal * nearer
        by_focal = np.einsum("oij,oj->oi", trust, by_focal)
        # Landmark poses hold the gauge together, as one frame's worth of belief.
        believed = np.full(D - 6, 1 / SOUGHT_SD**2)
        hold = np.concatenate((1 / POSE_SD**2 / T, believed))
        off_by = np.ones(D)  # what the unknowns add to ``Problem.off``
        off_by[2] = problem.lens.focal / state.lens.focal
        self.H = np.tile(np.diag(hold * off_by**2), (T, 1, 1))
        off = np.hstack((problem.off(state), state.amounts))
        still = np.zeros((3, *state.amounts.shape))
        self.swings = np.concatenate((problem.swings, still), axis=2).reshape(3, -1)
        self.g = -off * hold * off_by
        self.g -= ((self.swings @ off.ravel()) @ self.swings).reshape(off.shape)
        self.Hf = np.zeros((T, D))
        self.W = np.empty((len(seen.point), D, 3))
        by_place = np.empty((len(seen.point), 2, 3))
        for t, rows in enumerate(self.spans):  # what one frame needs stays near the processor
            by_pose = pose_jacobian(at[None, rows], at[None, rows] - poses.t[t], state.lens)[0]
            J = np.empty((len(by_pose), 2, D))
            np.matmul(trust[rows], by_pose, out=J[:, :, :6])
            np.matmul(J[:, :, :3], poses.R[t], out=by_place[rows])
            by_motion = problem.by_motion[seen.point[rows]].transpose(0, 2, 1)
            np.matmul(by_place[rows], by_motion, out=J[:, :, 6:])
            self.W[rows] = _each(J, by_place[rows])
            J = J.reshape(-1, D)
            self.H[t] += J.T @ J
            self.g[t] += J.T @ residual[rows].ravel()
            self.Hf[t] += J.T @ by_focal[rows].ravel()
        tied = 1 / problem.place_sd[:, None] ** 2
        self.V = tied[:, :, None] * np.eye(3)
        self.V += _by_place(seen.point, N, _each(by_place, by_place))
        self.v = -(state.places - problem.places) * tied
        self.v += _by_place(seen.point, N, np.einsum("oia,oi->oa", by_place, residual))
        self.Vf = _by_place(seen.point, N, np.einsum("oia,oi->oa", by_place, by_focal))
        self.ff = float((by_focal**2).sum()) + 1 / FOCAL_SD**2
        self.f = float((by_focal * residual).sum()) - problem.log_off(state.lens) / FOCAL_SD**2

    def _tied(self, root: Floats) -> Floats:
        """The matrix [D T, 3 N] of what ties frames to places that are counted by ``root``."""
        T, N, D = self.size
        for t, rows in enumerate(self.spans):
            here = self.point[rows]  # a frame shows a patch once
            tied = self.W[rows] @ root[here].transpose(0, 2, 1)  # [O, D, 3]
            self.ties[t][:, here] = tied.transpose(1, 0, 2)
        return self.ties.reshape(D * T, 3 * N)

    def step(self, damping: float) -> Step | None:
        """The step to the least cost; None where the equations are singular."""
        from scipy.linalg import LinAlgError, cho_factor, cho_solve

        T, N, D = self.size
        H = self.H + damping * np.einsum("taa->ta", self.H)[:, :, None] * np.eye(D)
        V = self.V + damping * np.einsum("naa->na", self.V)[:, :, None] * np.eye(3)
        # V^-1 = root^T root: places are counted in their own deviations.
        try:
            root = np.linalg.inv(np.linalg.cholesky(V))
        except LinAlgError:
            return None
        v, Vf = ((root @ a[..., None])[..., 0] for a in (self.v, self.Vf))
        # Every key frame's patches are seen in most frames: dense products are the faster ones.
        W = self._tied(root)
        A = np.zeros((D * T + 1, D * T + 1))
        squares = together(lambda part: part @ part.T, np.array_split(W, HANDS, axis=1))
        A[:-1, :-1] = self.swings.T @ self.swings - sum(squares)
        for t in range(T):
            A[D * t : D * t + D, D * t : D * t + D] += H[t]
        right = np.concatenate((self.g.ravel() - W @ v.ravel(), [0.0]))
        A[-1, -1] = 1.0
        if not self.focal_known:
            A[:-1, -1] = self.Hf.ravel() - W @ Vf.ravel()
            A[-1, -1] = self.ff - float((Vf**2).sum())
            right[-1] = self.f - float((Vf * v).sum())
        try:
            factor = cho_factor(A)
        except LinAlgError:
            return None
        x = cho_solve(factor, right)
        last = np.zeros(len(right))
        last[-1] = 1.0
        variance = 0.0 if self.focal_known else float(cho_solve(factor, last)[-1])
        frames, focal = x[:-1].reshape(T, D), float(x[-1])
        pull = v - Vf * focal - (W.T @ x[:-1]).reshape(N, 3)
        places = np.einsum("nba,nb->na", root, pull)
        return Step(frames[:, :6], frames[:, 6:], places, focal, float(np.sqrt(variance)))
