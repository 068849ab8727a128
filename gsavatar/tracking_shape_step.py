"""One step towards a person's shape: identity and offsets that explain all frames together.

Shapes as in ``tracking_solve``: T frames, L landmarks; I identity weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gsavatar.ahead import HANDS, together
from gsavatar.morphable import Floats
from gsavatar.tracking_outline import RimSightings
from gsavatar.tracking_solve import (
    DAMPING,
    HUBER_PX,
    NEAR,
    Lens,
    Poses,
    chunks,
    pixel_jacobian,
    pose_jacobian,
    project,
)


@dataclass(frozen=True)
class ShapePrior:
    """Belief about a person's departure from the model at the landmarks."""

    identity_precision: float
    offset_precision: Floats  # [L, L], the same for x, y and z


def fit_shape(
    poses: Poses, base: Floats, moved: Floats, identity: Floats, seen_px: Floats, weight: Floats,
    lens: Lens, prior: ShapePrior, effective_frames: float, start: tuple[Floats, Floats],
    *, poses_known: bool = False, rim: RimSightings | None = None,
) -> tuple[Floats, Floats]:  # fmt: skip
    """Identity weights [I] and landmark offsets [L, 3] that explain all frames together.

    ``base`` [L, 3] is the average face, ``moved`` [T, L, 3] what expression adds to it. Frames
    count as ``effective_frames`` independent ones, since a detector errs alike in similar frames.
    ``poses_known`` keeps the poses; else they give way as the shape changes. ``rim`` is where the
    face was seen to end.
    One Gauss-Newton step from ``start``; ``weight`` [L] is in 1/px^2.
    """
    own, L = len(identity), len(base)
    beta, offset = start
    flat = identity.reshape(own, 3 * L)
    points = base + np.tensordot(beta, identity, 1) + offset
    share = effective_frames / max(len(poses.t), 1)
    H, g, tie, grip, tug = _point_systems(poses, points, moved, seen_px, weight * share, lens)
    # By coordinate, then by landmark: the prior is one dense block for each of x, y and z.
    A = np.zeros((own + 3 * L, own + 3 * L))
    believed = np.concatenate([prior.offset_precision @ offset[:, a] for a in range(3)])
    each = np.arange(L)
    for a in range(3):
        for b in range(3):
            A[own + a * L + each, own + b * L + each] = H[:, a, b]
    ordered = flat.reshape(own, L, 3).transpose(0, 2, 1).reshape(own, 3 * L)
    A[:own, own:] = ordered @ A[own:, own:]
    A[:own, :own] = A[:own, own:] @ ordered.T + prior.identity_precision * np.eye(own)
    A[own:, :own] = A[:own, own:].T
    for a in range(3):
        block = slice(own + a * L, own + (a + 1) * L)
        A[block, block] += prior.offset_precision
    pull = g.T.ravel()
    right = np.concatenate((ordered @ pull - prior.identity_precision * beta, pull - believed))
    by_pose: Floats = np.zeros((len(right), 6 * len(poses.t)))
    if rim is not None:
        by_pose = _add_rim(rim, poses, points.mean(0), lens, A, right, grip, tug)
    if poses_known:
        step = _solve_spd(A, right)
        return beta + step[:own], offset + step[own:].reshape(3, L).T
    # Poses give way as the shape changes (Schur complement); without it depth and turn, which
    # nearly compensate each other, would creep towards their values over hundreds of rounds.
    tie = tie.transpose(1, 0, 2, 3).reshape(3 * L, -1)  # [3L, 6T]
    both = np.concatenate((ordered @ tie, tie)) + by_pose
    root = np.linalg.cholesky(np.linalg.inv(grip))
    eased = (both.reshape(len(A), -1, 6).transpose(1, 0, 2) @ root).transpose(1, 0, 2)
    eased = eased.reshape(len(A), -1)
    right -= eased @ (root.transpose(0, 2, 1) @ tug[..., None]).ravel()
    for square in together(lambda part: part @ part.T, np.array_split(eased, HANDS, axis=1)):
        A -= square
    step = _solve_spd(A, right)
    return beta + step[:own], offset + step[own:].reshape(3, L).T


def _add_rim(  # noqa: PLR0917
    rim: RimSightings, poses: Poses, middle: Floats, lens: Lens, A: Floats, right: Floats,
    grip: Floats, tug: Floats,
) -> Floats:  # fmt: skip
    """Adds a rim's equations to those of the shape and of the poses, in place.

    Returns what ties both together [I + 3 L, 6 T].
    """
    by_shape, by_pose = rim.equations(poses, middle, lens)
    weighted = by_shape * np.sqrt(rim.weight)[:, None]
    A += weighted.T @ weighted  # of one matrix with itself: half the work
    weighted *= np.sqrt(rim.weight)[:, None]
    right += weighted.T @ rim.off_px
    turned = by_pose * rim.weight[:, None]
    np.add.at(grip, rim.frame, turned[:, :, None] * by_pose[:, None])
    np.add.at(tug, rim.frame, turned * rim.off_px[:, None])
    tie = np.zeros((len(right), len(poses.t), 6))
    for frame in np.unique(rim.frame):
        own = rim.frame == frame
        tie[:, frame] = weighted[own].T @ by_pose[own]
    return tie.reshape(len(right), -1)


def _solve_spd(A: Floats, right: Floats) -> Floats:
    from scipy.linalg import cho_factor, cho_solve

    return np.asarray(cho_solve(cho_factor(A, overwrite_a=True, check_finite=False), right))


def _point_systems(
    poses: Poses, points: Floats, moved: Floats, seen_px: Floats, weight: Floats, lens: Lens
) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    """Normal equations of points in the head frame and of the poses they hang on.

    Of the points: information [L, 3, 3] and right-hand side [L, 3]; of both together [L, 3, T, 6];
    of the poses: information [T, 6, 6] and right-hand side [T, 6].
    """
    count, L = len(poses.t), len(points)
    H, g = np.zeros((L, 3, 3)), np.zeros((L, 3))
    tie, grip, tug = np.empty((L, 3, count, 6)), np.empty((count, 6, 6)), np.empty((count, 6))
    middle = points.mean(0)

    def linearise(rows: slice) -> tuple[Floats, Floats]:
        pixels, seen = project(poses[rows], points + moved[rows], lens)
        residual = seen_px[rows] - pixels
        trust = weight / np.maximum(np.linalg.norm(residual, axis=-1) / (3 * HUBER_PX), 1.0)
        J = pixel_jacobian(seen, lens) @ poses.R[rows, None]  # [t, L, 2, 3]
        turned = seen - (poses.t[rows] + poses.R[rows] @ middle)[:, None]
        G = pose_jacobian(seen, turned, lens)  # [t, L, 2, 6]
        Jt = (J * trust[..., None, None]).transpose(0, 1, 3, 2)
        tie[:, :, rows] = (Jt @ G).transpose(1, 2, 0, 3)
        Gt = (G * trust[..., None, None]).reshape(len(pixels), -1, 6).transpose(0, 2, 1)
        grip[rows] = Gt @ G.reshape(len(pixels), -1, 6)
        tug[rows] = (Gt @ residual.reshape(len(pixels), -1, 1))[..., 0]
        return (Jt @ J).sum(0), (Jt @ residual[..., None])[..., 0].sum(0)

    for information, right in together(linearise, chunks(count, NEAR)):
        H += information
        g += right
    grip += DAMPING * np.eye(6) * np.trace(grip, axis1=1, axis2=2)[:, None, None]
    return H, g, tie, grip, tug
