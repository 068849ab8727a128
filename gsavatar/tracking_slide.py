"""How a detector's landmarks slide over the skin as the head turns, learned from the clip itself.

At a yaw of 40 degrees a chin is seen 10 pixels from where it is, and lips 5: read as motion of the
face, that is a smile or a mouth pulled aside. The slide is a smooth field over the face for each of
a few functions of the view, in the plane of the picture. Expressions are free meanwhile, within
what the detector's scores say of them: each frame's are eliminated from the least-squares problem.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gsavatar.morphable import Floats
from gsavatar.tracking_fields import both_ways, smooth_modes
from gsavatar.tracking_solve import ExpressionPrior, Lens, Poses, pixel_jacobian, project

LENGTH_M = 0.03
"""Over which distance on the face the slide changes."""
SIZE_M = np.array([0.008, 0.008, 0.016, 0.016, 0.016])
"""Its deviation for each function of the view at 1: right, up, right^2, right * up, up^2."""
MODES = 40
LEARNED_FRAMES = 40
OUTLIER_PX = 4.0


@dataclass(frozen=True)
class Slide:
    """Fields of the picture's plane in metres, one for each function of the view."""

    middle: Floats  # [2], the usual view
    centre: Floats  # [3], of the face, in the head frame
    mean: Floats  # [5], of the functions
    fields: Floats  # [5, L, 2]

    def pixels(self, poses: Poses, lens: Lens) -> Floats:
        """How far landmarks are seen from where they are, [T, L, 2]."""
        turned = _functions(poses, self.centre, self.middle) - self.mean
        depth = (poses.R @ self.centre + poses.t)[:, 2]
        return np.tensordot(turned, self.fields, 1) * (lens.focal / depth)[:, None, None]


def _functions(poses: Poses, centre: Floats, middle: Floats) -> Floats:
    """Functions [T, 5] of the direction of the camera as the head sees it."""
    at = poses.R @ centre + poses.t
    towards = -np.einsum("tji,tj->ti", poses.R, at / np.linalg.norm(at, axis=1, keepdims=True))
    x, y = (towards[:, :2] - middle).T
    return np.stack((x, y, x * x, x * y, y * y), axis=1)


def no_slide(points: int) -> Slide:
    """The slide of a detector that makes no such error."""
    return Slide(np.zeros(2), np.zeros(3), np.zeros(5), np.zeros((5, points, 2)))


def learn_slide(
    poses: Poses, rest: Floats, shapes: Floats, seen_px: Floats, weight: Floats, lens: Lens,
    prior: ExpressionPrior, effective_frames: float,
) -> Slide:  # fmt: skip
    """The slide that the landmarks of sample frames [T, L, 2] show beside any expression."""
    count, L, K = len(poses.t), len(rest), len(shapes)
    centre = rest.mean(0)
    middle = np.median(_functions(poses, centre, np.zeros(2))[:, :2], axis=0)
    raw = _functions(poses, centre, middle)
    mean = raw.mean(0)
    turned = raw - mean
    plane = both_ways(smooth_modes(rest, ((1.0, LENGTH_M),), MODES))
    size = plane.shape[1]
    # A unit of a mode is one deviation; each function has its own.
    A = np.zeros((5, size, 5, size))
    b = np.zeros((5, size))
    some = np.unique(np.linspace(0, count - 1, min(count, LEARNED_FRAMES)).astype(int))
    share = effective_frames / len(some)
    by_landmark = shapes.transpose(1, 2, 0)
    for t in some:
        one = slice(t, t + 1)
        pixels, seen = project(poses[one], rest[None], lens)
        J = ((pixel_jacobian(seen, lens) @ poses.R[t])[0] @ by_landmark).reshape(2 * L, K)
        off = (seen_px[t] - pixels[0]).ravel() - J @ prior.mean[t]
        far = np.linalg.norm(off.reshape(L, 2), axis=1)
        w = np.repeat(weight / np.maximum(far / OUTLIER_PX, 1.0), 2) * share
        depth = (poses.R[t] @ centre + poses.t[t])[2]
        X = plane * (lens.focal / depth)
        WJ, WX = J * w[:, None], X * w[:, None]
        tie = WJ.T @ X
        held = np.linalg.solve(
            J.T @ WJ + np.diag(prior.precision) * share, np.column_stack((tie, WJ.T @ off))
        )
        Q = X.T @ WX - tie.T @ held[:, :-1]
        q = WX.T @ off - tie.T @ held[:, -1]
        f = turned[t] * SIZE_M
        A += f[:, None, None, None] * f[:, None] * Q[:, None, :][None]
        b += f[:, None] * q
    A = A.reshape(5 * size, 5 * size) + np.eye(5 * size)
    a = np.linalg.solve(A, b.ravel()).reshape(5, size)
    fields = (SIZE_M[:, None] * a) @ plane.T
    return Slide(middle, centre, mean, fields.reshape(5, L, 2))
