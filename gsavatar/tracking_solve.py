"""The pieces of the fit, each a small least-squares problem vectorised over frames.

Shapes: T frames, L landmarks, K expressions. Poses are head -> camera (OpenCV): ``R`` [T, 3, 3],
``t`` [T, 3]. Landmarks in the head frame are in metres, observations and residuals in pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gsavatar.ahead import together
from gsavatar.memory import Rows
from gsavatar.morphable import Floats
from gsavatar.tracking_fields import both_ways, smooth_modes

HUBER_PX = 2.0
GAUSS_NEWTON_STEPS = 6
DAMPING = 1e-6
CHUNK, NEAR = 256, 64
"""Frames worked on at once: bounds the memory of the Jacobians whatever the clip's length, and
keeps those that are used again and again near the processor."""


@dataclass(frozen=True)
class Lens:
    """A pinhole in pixels."""

    focal: float
    cx: float
    cy: float


@dataclass(frozen=True)
class Poses:
    """Head -> camera of every frame."""

    R: Floats  # [T, 3, 3]
    t: Floats  # [T, 3]

    def __getitem__(self, rows: slice | np.ndarray) -> Poses:
        return Poses(self.R[rows], self.t[rows])

    @staticmethod
    def join(parts: list[Poses]) -> Poses:
        """Poses one after the other."""
        return Poses(np.concatenate([p.R for p in parts]), np.concatenate([p.t for p in parts]))


def rotations(rotvec: Floats) -> Floats:
    """Rotation matrices [T, 3, 3] of rotation vectors [T, 3]."""
    angle = np.linalg.norm(rotvec, axis=-1)[:, None, None]
    safe = np.maximum(angle, 1e-12)
    x, y, z = (rotvec / safe[:, :, 0]).T
    zero = np.zeros_like(x)
    cross = np.stack((zero, -z, y, z, zero, -x, -y, x, zero), -1).reshape(-1, 3, 3)
    turned = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * (cross @ cross)
    return np.asarray(turned)


def project(poses: Poses, points: Floats, lens: Lens) -> tuple[Floats, Floats]:
    """Pixels [T, L, 2] and camera coordinates [T, L, 3] of head points [T or 1, L, 3]."""
    seen = points @ poses.R.transpose(0, 2, 1) + poses.t[:, None]
    pixels = seen[..., :2] / seen[..., 2:] * lens.focal + (lens.cx, lens.cy)
    return pixels, seen


def pixel_jacobian(seen: Floats, lens: Lens) -> Floats:
    """Derivative [T, L, 2, 3] of pixels by camera coordinates."""
    x, y, z = seen[..., 0], seen[..., 1], seen[..., 2]
    zero = np.zeros_like(z)
    rows = (
        lens.focal / z,
        zero,
        -lens.focal * x / z**2,
        zero,
        lens.focal / z,
        -lens.focal * y / z**2,
    )
    return np.stack(rows, -1).reshape(*z.shape, 2, 3)


def pose_jacobian(seen: Floats, arm: Floats, lens: Lens) -> Floats:
    """Derivative [T, L, 2, 6] of pixels by (shift, turn about where ``arm`` [T, L, 3] starts)."""
    by_point = pixel_jacobian(seen, lens)
    a, b, c = (arm[..., i, None] for i in range(3))
    x, y, z = (by_point[..., i] for i in range(3))
    turn = np.stack((b * z - c * y, c * x - a * z, a * y - b * x), axis=-1)
    return np.concatenate((by_point, turn), axis=-1)


def first_poses(points: Floats, seen_px: Rows, weight: Floats, lens: Lens) -> Poses:
    """Poses by a scaled orthographic camera: linear, needs no starting point.

    ``points`` [L, 3], ``seen_px`` [T, L, 2], ``weight`` [L].
    """
    used = np.flatnonzero(weight > 0)
    points, weight = points[used], weight[used]
    middle = (points * weight[:, None]).sum(0) / weight.sum()
    root = np.sqrt(weight)[:, None]
    inverse = np.linalg.pinv(root * np.column_stack((points - middle, np.ones(len(points)))))
    affine = np.empty((len(seen_px), 4, 2))
    for some in chunks(len(seen_px)):
        affine[some] = inverse @ ((seen_px[some][:, used] - (lens.cx, lens.cy)) * root)
    rows, shift = affine[:, :3].transpose(0, 2, 1), affine[:, 3]
    scale = np.linalg.norm(rows, axis=-1).mean(-1)
    third = np.cross(rows[:, 0], rows[:, 1]) / scale[:, None]
    u, _, vt = np.linalg.svd(np.concatenate((rows, third[:, None]), axis=1))
    flip = np.sign(np.linalg.det(u @ vt))
    u[:, :, 2] *= flip[:, None]
    R = u @ vt
    depth = lens.focal / scale
    centre = np.column_stack((shift / scale[:, None], depth))
    return Poses(R, centre - R @ middle)


def refine_poses(
    poses: Poses, points: Floats, seen_px: Rows, weight: Floats, lens: Lens,
    steps: int = GAUSS_NEWTON_STEPS,
) -> Poses:  # fmt: skip
    """Poses that bring head points [T or 1, L, 3] onto pixels [T, L, 2], robustly (Huber).

    ``weight`` [L]. Each frame is its own 6-parameter Gauss-Newton problem, solved in one batch.
    """
    used = np.flatnonzero(weight > 0)
    points, weight = points[:, used], weight[used]

    def refined(rows: slice) -> Poses:
        part, observed = poses[rows], seen_px[rows][:, used].astype(np.float64)
        own = points if len(points) == 1 else points[rows]
        for _ in range(steps):
            pixels, seen = project(part, own, lens)
            residual = observed - pixels
            size = np.linalg.norm(residual, axis=-1)
            trust = weight / np.maximum(size / HUBER_PX, 1.0)
            J = pose_jacobian(seen, seen - part.t[:, None], lens)
            Jw = J * trust[..., None, None]
            flat, flat_w = (a.reshape(len(observed), -1, 6) for a in (J, Jw))
            H = flat_w.transpose(0, 2, 1) @ flat
            H += DAMPING * np.eye(6) * np.trace(H, axis1=1, axis2=2)[:, None, None] / 6
            g = flat_w.transpose(0, 2, 1) @ residual.reshape(len(observed), -1, 1)
            step = np.linalg.solve(H, g)[..., 0]
            part = Poses(rotations(step[:, 3:]) @ part.R, part.t + step[:, :3])
        return part

    return Poses.join(together(refined, chunks(len(poses.t), NEAR)))


def chunks(count: int, size: int = CHUNK) -> list[slice]:
    """Slices that cover ``count`` rows."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def steadied(
    poses: Poses, points: Floats, seen_px: Floats, weight: Floats, lens: Lens
) -> tuple[Floats, Floats]:
    """Observations [T, L, 2] moved by the 2D similarity that fits the weighted points to ``poses``.

    Takes the detector's common shake out of every landmark, so that expressions do not explain it.
    Also returns the largest shift [T] it took, in pixels.
    """
    steady = np.empty_like(seen_px)
    moved = np.empty(len(seen_px))
    used = np.flatnonzero(weight > 0)
    points, weight = points[:, used], weight[used]
    total = weight.sum()
    for rows in chunks(len(seen_px)):
        target, _ = project(poses[rows], points if len(points) == 1 else points[rows], lens)
        every = seen_px[rows].astype(np.float64)
        source = every[:, used]
        mean_t = (target * weight[:, None]).sum(1, keepdims=True) / total
        mean_s = (source * weight[:, None]).sum(1, keepdims=True) / total
        a, b = target - mean_t, source - mean_s
        norm = (weight * (b**2).sum(-1)).sum(1)
        cos = (weight * (a * b).sum(-1)).sum(1) / norm
        sin = (weight * (a[..., 1] * b[..., 0] - a[..., 0] * b[..., 1])).sum(1) / norm
        turn = np.stack((cos, -sin, sin, cos), -1).reshape(-1, 2, 2)
        steady[rows] = (every - mean_s) @ turn.transpose(0, 2, 1) + mean_t
        moved[rows] = np.linalg.norm(mean_t - mean_s, axis=-1)[:, 0]
    return steady, moved


@dataclass(frozen=True)
class ExpressionPrior:
    """What is believed about coefficients before a frame's landmarks are seen."""

    mean: Floats  # [T, K]
    precision: Floats  # [K], 1 / variance
    change_precision: Floats  # [K], of the change from frame to frame
    low: float
    high: float
    told: bool  # whether the mean is what a detector's scores say


ERROR_FIELDS_M, ERROR_MODES = ((0.003, 0.08), (0.001, 0.03)), 40
"""Errors that neighbouring landmarks of a frame share: deviation and length of smooth fields."""
SWEEPS = 40
"""They stop 0.004 to 0.02 (rms) before the least squares' answer. Going on to it let the skull of
three of eight synthetic subjects follow the jaw by 0.1 to 0.2 degrees more."""
SEGMENT, OVERLAP = 1024, 24
"""Rows solved together in time, and rows shared with the neighbours at either end."""


def fit_expressions(
    poses: Poses, rest: Floats, shapes: Floats, seen_px: Callable[[slice], Floats], weight: Floats,
    lens: Lens, prior: ExpressionPrior,
) -> Floats:  # fmt: skip
    """Coefficients [T, K] of bounded least squares with the prior and smoothness in time.

    ``rest`` [L, 3] and ``shapes`` [K, L, 3] are in the head frame; ``weight`` [L] is in 1/px^2.
    ``seen_px`` gives the landmarks [t, L, 2] of some frames, so that no more of them need be
    there at once.
    """
    total = len(poses.t)
    result = np.empty((total, len(shapes)))
    for core in chunks(total, SEGMENT):
        rows = slice(max(core.start - OVERLAP, 0), min(core.stop + OVERLAP, total))
        H, g = _expression_systems(
            poses[rows], rest, shapes, seen_px(rows), weight, lens, prior.told
        )
        solved = _bounded_solve(H, g, prior, prior.mean[rows])
        result[core] = solved[core.start - rows.start : core.stop - rows.start]
    return result


def _expression_systems(
    poses: Poses, rest: Floats, shapes: Floats, seen_px: Floats, weight: Floats, lens: Lens,
    told: bool,
) -> tuple[Floats, Floats]:  # fmt: skip
    """Normal matrices [T, K, K] and right-hand sides [T, K] linearised at rest.

    A detector errs alike at neighbouring landmarks; such a smooth field of errors is sought beside
    the coefficients and eliminated (Schur complement).
    """
    count, K = len(poses.t), len(shapes)
    H, g = np.empty((count, K, K), np.float32), np.empty((count, K), np.float32)
    by_landmark = np.ascontiguousarray(shapes.transpose(1, 2, 0))  # [L, 3, K]
    root = np.sqrt(weight)
    G, eased = _common_errors(rest, root, poses, lens, told)

    def linearise(rows: slice) -> None:
        pixels, seen = project(poses[rows], rest[None], lens)
        turned = pixel_jacobian(seen, lens) @ poses.R[rows, None]  # [t, L, 2, 3]
        J = (turned * root[:, None, None]) @ by_landmark
        J = J.reshape(len(pixels), -1, K).astype(np.float32)
        residual = ((seen_px[rows] - pixels) * root[:, None]).reshape(len(pixels), -1, 1)
        residual = residual.astype(np.float32)
        Jt = J.transpose(0, 2, 1)
        tie = Jt @ G
        H[rows] = Jt @ J - tie @ eased @ tie.transpose(0, 2, 1)
        g[rows] = (Jt @ residual - tie @ (eased @ (G.T @ residual)))[..., 0]

    together(linearise, chunks(count, NEAR))
    return H, g


def _common_errors(
    rest: Floats, root: Floats, poses: Poses, lens: Lens, told: bool
) -> tuple[Floats, Floats]:
    """Modes [2 L, M] of the common errors in landmark deviations, and their covariance [M, M].

    Where nothing but landmarks tells of expressions, all of their motion is believed: no modes.
    """
    depth = float(np.median((poses.R @ rest.mean(0) + poses.t)[:, 2]))
    own = smooth_modes(rest, ERROR_FIELDS_M, ERROR_MODES if told else 1)
    G = both_ways(own * (lens.focal / depth if told else 0.0) * root[:, None])
    eased = np.linalg.inv(G.T @ G + np.eye(G.shape[1]))
    return G.astype(np.float32), eased.astype(np.float32)


def _bounded_solve(H: Floats, g: Floats, prior: ExpressionPrior, mean: Floats) -> Floats:
    """Projected Gauss-Seidel over coefficients, all frames at once.

    The smoothness term couples neighbouring frames; odd and even frames are updated in turn,
    which keeps the sweep a true Gauss-Seidel one and hence convergent.
    """
    count, K = g.shape
    c = np.clip(mean, prior.low, prior.high).astype(np.float32)
    if count == 0:
        return c
    ends = np.ones(count)
    ends[[0, -1]] = 0.5
    stiff = 2 * ends[:, None] * prior.change_precision  # [T, K]
    every = np.arange(K)
    curvature = H[:, every, every] + prior.precision + stiff
    pull = (g + prior.precision * mean).T.astype(np.float32)
    by_row = np.ascontiguousarray(H.transpose(1, 0, 2))
    by_row[every, :, every] += (prior.precision + stiff).T
    gain = np.ascontiguousarray((1.0 / curvature).T, np.float32)
    half = np.ascontiguousarray(stiff.T / 2, np.float32)
    index, last = np.arange(count), count - 1
    # The first and the last frame have one neighbour, which stands in for both.
    before, after = np.minimum(abs(index - 1), last), last - abs(last - index - 1)
    halves = (slice(0, None, 2), slice(1, None, 2))
    for _ in range(SWEEPS):
        for k in range(K):
            tied = prior.change_precision[k] > 0
            for rows in halves if tied else (slice(None),):
                excess = pull[k, rows] - np.einsum("tk,tk->t", by_row[k, rows], c[rows])
                if tied:
                    excess += half[k, rows] * (c[before[rows], k] + c[after[rows], k])
                moved = c[rows, k] + gain[k, rows] * excess
                c[rows, k] = np.minimum(np.maximum(moved, prior.low), prior.high)
    return c
