"""Head paths: runs without a pause, mean rotations and the pose of rest."""

from __future__ import annotations

import numpy as np

from gsavatar.morphable import Floats, Ints
from gsavatar.tracking_solve import Poses, rotations

MEETING_S = 0.3
"""Deviation of the window in time over which two paths' difference is taken."""
GAP_FACTOR = 2.5
"""A pause longer than this many median frame steps starts a new run."""


def runs(time_s: Floats, file_index: Ints) -> list[np.ndarray]:
    """Rows of each stretch of one file without a pause."""
    if len(time_s) == 0:
        return []
    step = np.diff(time_s)
    usual = np.median(step) if len(step) else 0.0
    breaks = (np.diff(file_index) != 0) | (step > GAP_FACTOR * usual)
    return np.split(np.arange(len(time_s)), np.flatnonzero(breaks) + 1)


def mean_rotation(R: Floats) -> Floats:
    """The rotation nearest to all rotations [T, 3, 3] in the least-squares sense."""
    u, _, vt = np.linalg.svd(R.mean(0))
    u[:, 2] *= np.sign(np.linalg.det(u @ vt))
    return np.asarray(u @ vt)


def rotvecs(R: Floats) -> Floats:
    """Rotation vectors [T, 3] of rotations [T, 3, 3]."""
    from scipy.spatial.transform import Rotation

    return np.asarray(Rotation.from_matrix(R).as_rotvec())


def rest_pose(poses: Poses) -> Poses:
    """One pose [1] from which the median shift and the median turn of the others are zero."""
    R, t = mean_rotation(poses.R), np.median(poses.t, axis=0)
    for _ in range(20):
        turn = np.median(rotvecs(R.T @ poses.R), axis=0)
        shift = np.median((poses.t - t) @ R, axis=0)
        R, t = R @ rotations(turn[None])[0], t + R @ shift
    return Poses(R[None], t[None])


def reach(poses: Poses) -> float:
    """How far a head turns from its mean, in radians; the widest twentieth is left out."""
    turns = np.linalg.norm(rotvecs(poses.R @ mean_rotation(poses.R).T), axis=1)
    return float(np.percentile(turns, 95))


def meeting(steady: Poses, other: Poses, time_s: Floats, file_index: Ints) -> Poses:
    """The path halfway between two, with the quick motion of the steady one alone.

    Where the errors of both paths are slow, alike in size and independent, the middle errs less
    than either.
    """
    from scipy.ndimage import gaussian_filter1d

    R, t = steady.R.copy(), steady.t.copy()
    step = float(np.median(np.diff(time_s))) if len(time_s) > 1 else 1.0
    for rows in runs(time_s, file_index):
        turn = rotvecs(other.R[rows] @ steady.R[rows].transpose(0, 2, 1))
        apart = np.concatenate((turn, other.t[rows] - steady.t[rows]), axis=1)
        half = 0.5 * gaussian_filter1d(apart, MEETING_S / step, axis=0, mode="nearest")
        R[rows], t[rows] = rotations(half[:, :3]) @ R[rows], t[rows] + half[:, 3:]
    return Poses(R, t)
