"""Steady head paths: how much of a pose's change is motion and how much the detector's shake.

Noise and motion are told apart by the clip itself. Fourth differences of a head path are nearly
all noise, which gives the noise's covariance; in six directions that make it white, a random walk
of the velocity is fitted by maximum likelihood, each direction with its own stiffness.
"""

from __future__ import annotations

import numpy as np

from gsavatar.morphable import Floats
from gsavatar.tracking_solve import Poses, rotations

MIN_SMOOTHED = 12
"""Frames of a run below which noise cannot be told from motion; shorter runs stay as they are."""
GAP_FACTOR = 2.5
"""A pause longer than this many median frame steps starts a new run."""
STIFFNESS = np.logspace(-1.5, 5.0, 27)
"""Candidates for the penalty on squared second differences, relative to the noise: half power at
9 Hz for the first and at 0.2 Hz for the last, for 25 frames a second."""
NOISE_FLOOR = np.array([2e-5, 2e-5, 2e-4, 1e-4, 1e-4, 1e-4])
"""Least noise assumed (m, rad): about 0.02 px, so that a perfect track stays solvable."""


def smooth_poses(poses: Poses, time_s: Floats, file_index: Floats, pivot: Floats) -> Poses:
    """The poses without the detector's shake; turns and shifts about a head point ``pivot`` [3]."""
    R, t = poses.R.copy(), poses.t.copy()
    for rows in runs(time_s, file_index):
        if len(rows) < MIN_SMOOTHED:
            continue
        centre = mean_rotation(R[rows])
        turn = rotvecs(R[rows] @ centre.T)
        shift = t[rows] + R[rows] @ pivot
        path = smooth_path(np.concatenate((shift, turn), axis=1), NOISE_FLOOR)
        R[rows] = rotations(path[:, 3:]) @ centre
        t[rows] = path[:, :3] - R[rows] @ pivot
    return Poses(R, t)


def runs(time_s: Floats, file_index: Floats) -> list[np.ndarray]:
    """Rows of each stretch of one file without a pause."""
    if len(time_s) == 0:
        return []
    step = np.diff(time_s)
    usual = np.median(step) if len(step) else 0.0
    breaks = (np.diff(file_index) != 0) | (step > GAP_FACTOR * usual)
    return np.split(np.arange(len(time_s)), np.flatnonzero(breaks) + 1)


def smooth_path(path: Floats, floor: Floats) -> Floats:
    """A path [T, C] with its white noise removed as far as the data ask for it."""
    noise = _covariance(np.diff(path, 4, axis=0)) / 70 + np.diag(floor**2)  # 70 = 8 choose 4
    values, vectors = np.linalg.eigh(noise / np.outer(floor, floor))
    whiten = (vectors / np.sqrt(values)).T / floor  # rows: directions of unit noise
    motion = _covariance(np.diff(path, axis=0) @ whiten.T)
    _, turn = np.linalg.eigh(motion)
    basis = turn.T @ whiten
    channels = path @ basis.T
    smooth = np.stack([_most_likely(c) for c in channels.T], axis=1)
    return np.asarray(np.linalg.solve(basis, smooth.T).T)


def _covariance(rows: Floats) -> Floats:
    """Second moments [C, C] about zero, with outliers (lost faces) held down."""
    scale = np.median(np.abs(rows), axis=0) * 1.4826 + 1e-12
    kept = np.clip(rows, -4 * scale, 4 * scale)
    return np.asarray(kept.T @ kept / len(rows))


def _bands(count: int) -> Floats:
    """Upper bands [3, T] of D'D, the penalty on squared second differences."""
    bands = np.zeros((3, count))
    for offset, tap in ((0, 1.0), (1, -2.0), (2, 1.0)):
        bands[2, offset : count - 2 + offset] += tap**2
    bands[1, 1:-1] += -2.0
    bands[1, 2:] += -2.0
    bands[0, 2:] += 1.0
    return bands


def _most_likely(values: Floats) -> Floats:
    """The smooth path [T] under the stiffness that makes the observed one most likely."""
    from scipy.linalg import cho_solve_banded, cholesky_banded

    count = len(values)
    penalty = _bands(count)
    best, choice = np.inf, values
    for stiffness in STIFFNESS:
        system = stiffness * penalty
        system[2] += 1.0
        factor = cholesky_banded(system)
        smooth = cho_solve_banded((factor, False), values)
        bend = np.diff(smooth, 2)
        energy = ((values - smooth) ** 2).sum() + stiffness * (bend**2).sum()
        log_det = 2 * np.log(factor[2]).sum()
        cost = (count - 2) * (np.log(energy + 1e-300) - np.log(stiffness)) + log_det
        if cost < best:
            best, choice = cost, smooth
    return choice


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
