"""Sub-pixel head motion: optical flow of rigid skin joined with the landmarks' poses.

Landmarks know where the head is to half a pixel, with an error that changes from frame to frame;
the flow between two frames knows how far it went to a twentieth. Both, and a weak belief in
smooth motion for what neither sees well (depth), make one sparse least-squares problem over all
poses of a run, solved by a banded Cholesky factorisation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gsavatar.ahead import in_halves
from gsavatar.morphable import Floats, Ints
from gsavatar.tracking_motion import rotvecs, runs
from gsavatar.tracking_solve import Lens, Poses, chunks, pose_jacobian, project, rotations

Pictures = Callable[[int], "NDArray[np.uint8] | None"]
"""The RGB picture of a frame by its row among the landmarks, None where it is not kept."""

WINDOW_PX = 25
LEVELS = 3
STOP = (3, 30, 0.005)
"""Lucas-Kanade ends after 30 steps or when a step is shorter than this many pixels."""
RETURN_PX = 0.4
"""A point tracked forth and back that misses its start by more is not believed."""
FLOW_SD_PX = 0.12
FLOW_HUBER_PX = 0.35
INDEPENDENT_POINTS = 10.0
"""Errors of neighbouring points agree: dozens of points know as much as ten would."""
BEND_SD = np.array([1.5e-3, 1.5e-3, 5e-4, 5e-3, 5e-3, 5e-3])
"""Usual second difference of a head's path in 40 ms: metres, radians."""
BEND_HUBER = 1.5
"""Heads rest and jolt: bends beyond this many spreads are believed rather than smoothed."""
ROUNDS = 5


@dataclass(frozen=True)
class Doubt:
    """How far a frame's own pose may be off before flow is heard."""

    point_px: float  # error of each point it was found from
    shake: tuple[float, ...]  # what they share: pixels of x and y, share of the depth, radians


BY_LANDMARKS = Doubt(0.9, (0.6, 0.6, 0.004, 0.003, 0.003, 0.003))
BY_SKIN = Doubt(0.25, (0.15, 0.15, 0.002, 0.0015, 0.0015, 0.0015))
BY_BOTH = Doubt(BY_LANDMARKS.point_px, BY_SKIN.shake)
"""Of the path halfway between theirs."""


@dataclass(frozen=True)
class Flow:
    """How far points went from each frame to the next."""

    shift: Floats  # [T - 1, P, 2] pixels, single precision
    trust: Floats  # [T - 1, P], 0 where nothing is known; single precision


def measure_flow(pictures: Pictures | None, rows: Ints, start_px: Floats) -> Flow:
    """Flow of the points ``start_px`` [T, P, 2] by pyramidal Lucas-Kanade, checked backwards.

    Without pictures nothing is known of it.
    """
    count, points = start_px.shape[:2]
    shape = max(count - 1, 0), points
    shift, trust = np.zeros((*shape, 2), np.float32), np.zeros(shape, np.float32)
    if pictures is None:
        return Flow(shift, trust)
    flow = Flow(shift, trust)
    in_halves(lambda span: _measure(pictures, rows, start_px, flow, span), range(1, count))
    return flow


def _measure(
    pictures: Pictures, rows: Ints, start_px: Floats, flow: Flow, span: Iterator[int]
) -> None:
    """Fills in the ``flow`` into the frames of ``span``, neighbours, from the one before each."""
    import cv2

    def grey(t: int) -> Any:
        picture = pictures(int(rows[t]))
        if picture is None:
            return None
        return cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2GRAY)

    before = None
    for number, t in enumerate(span):
        if number == 0:
            before = grey(t - 1)
        after = grey(t)
        if before is not None and after is not None and rows[t] == rows[t - 1] + 1:
            start = start_px[t - 1].astype(np.float32)[:, None]
            end, forth = _follow(before, after, start)
            back, home = _follow(after, before, end)
            miss = np.linalg.norm((back - start)[:, 0], axis=-1)
            good = forth & home & (miss < RETURN_PX)
            flow.shift[t - 1], flow.trust[t - 1] = (end - start)[:, 0], good
        before = after


def _follow(before: Any, after: Any, start: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """Where points [P, 1, 2] of one picture are in another, and which of them [P] were found."""
    import cv2

    end, found, _ = cv2.calcOpticalFlowPyrLK(
        before, after, start, np.empty_like(start),
        winSize=(WINDOW_PX, WINDOW_PX), maxLevel=LEVELS, criteria=STOP,
    )  # fmt: skip
    return np.asarray(end), np.asarray(found)[:, 0] > 0


def join_flow(
    raw: Poses, points: Floats, weight: Floats, flow: Flow, time_s: Floats, file_index: Ints,
    lens: Lens, doubt: Doubt = BY_LANDMARKS, sure: Floats | None = None,
) -> Poses:  # fmt: skip
    """The path of poses that agrees best with each frame's own pose ``raw`` and with the flow.

    ``points`` [P, 3] are the tracked points in the head frame, ``weight`` [P] their worth,
    ``doubt`` how far a frame's own pose may be off, ``sure`` [T] how much it counts (1 each).
    """
    R, t = raw.R.copy(), raw.t.copy()
    step = float(np.median(np.diff(time_s))) if len(time_s) > 1 else 0.04
    counts = np.ones(len(time_s)) if sure is None else sure
    for rows in runs(time_s, file_index):
        if len(rows) < 4:
            continue
        part = Flow(flow.shift[rows[:-1]], flow.trust[rows[:-1]] * weight)
        joined = _join_run(raw[rows], points, weight, part, step, lens, doubt, counts[rows])
        R[rows], t[rows] = joined.R, joined.t
    return Poses(R, t)


def _join_run(  # noqa: PLR0917
    raw: Poses, points: Floats, weight: Floats, flow: Flow, step_s: float, lens: Lens,
    doubt: Doubt, sure: Floats,
) -> Poses:  # fmt: skip
    pivot = points.mean(0)
    belief = _pose_information(raw, points, weight, pivot, lens, doubt)
    bend = 1.0 / (BEND_SD * (step_s / 0.04) ** 1.5) ** 2
    now = raw
    for _ in range(ROUNDS):
        off = _difference(raw, now, pivot)  # [T, 6]
        size = np.sqrt(np.einsum("ta,ab,tb->t", off, belief, off) / 6)
        trust = sure / np.maximum(size / 2.0, 1.0)
        diagonal = trust[:, None, None] * belief
        right = np.einsum("tab,tb->ta", diagonal, off)
        next_to = np.zeros((len(off) - 1, 6, 6))
        _add_flow(now, points, flow, pivot, lens, diagonal, next_to, right)
        after_next = _add_bend(now, bend, pivot, diagonal, next_to, right)
        now = _moved(now, _solve_banded(diagonal, next_to, after_next, right), pivot)
    return now


def _jacobians(poses: Poses, points: Floats, pivot: Floats, lens: Lens) -> tuple[Floats, Floats]:
    """Pixels [T, P, 2] and their derivatives [T, P, 2, 6] by (shift, turn about the pivot)."""
    pixels, seen = project(poses, points[None], lens)
    arm = (points - pivot) @ poses.R.transpose(0, 2, 1)
    return pixels, pose_jacobian(seen, arm, lens)


def _pose_information(  # noqa: PLR0917
    poses: Poses, points: Floats, weight: Floats, pivot: Floats, lens: Lens, doubt: Doubt
) -> Floats:
    """Inverse covariance [6, 6] of a frame's pose: own errors of points and their common shake."""
    some = poses[np.unique(np.linspace(0, len(poses.t) - 1, 50).astype(int))]
    _, J = _jacobians(some, points, pivot, lens)
    share = weight / weight.sum() * INDEPENDENT_POINTS / doubt.point_px**2
    own = np.einsum("tpia,p,tpib->ab", J, share, J) / len(some.t)
    depth = float(np.median((some.R @ pivot + some.t)[:, 2]))
    shake = np.array(doubt.shake) * np.array(
        [depth / lens.focal, depth / lens.focal, depth, 1, 1, 1]
    )
    return np.asarray(np.linalg.inv(np.linalg.inv(own) + np.diag(shake**2)))


def _difference(to: Poses, start: Poses, pivot: Floats) -> Floats:
    """What moves ``start`` to ``to``: shift of the pivot and turn about it, [T, 6]."""
    shift = (to.t + to.R @ pivot) - (start.t + start.R @ pivot)
    return np.concatenate((shift, rotvecs(to.R @ start.R.transpose(0, 2, 1))), axis=1)


def _moved(poses: Poses, change: Floats, pivot: Floats) -> Poses:
    middle = poses.t + poses.R @ pivot + change[:, :3]
    R = rotations(change[:, 3:]) @ poses.R
    return Poses(R, middle - R @ pivot)


def _add_flow(
    now: Poses, points: Floats, flow: Flow, pivot: Floats, lens: Lens, diagonal: Floats,
    next_to: Floats, right: Floats,
) -> None:  # fmt: skip
    """Adds the flow's normal equations to the blocks, in place."""
    for rows in chunks(len(flow.shift)):
        both = slice(rows.start, rows.stop + 1)
        pixels, J = _jacobians(now[both], points, pivot, lens)
        miss = flow.shift[rows] - (pixels[1:] - pixels[:-1])
        trust = flow.trust[rows] / np.maximum(np.linalg.norm(miss, axis=-1) / FLOW_HUBER_PX, 1.0)
        total = np.maximum(flow.trust[rows].sum(1, keepdims=True), 1e-9)
        share = np.minimum(INDEPENDENT_POINTS / total, 1.0) / FLOW_SD_PX**2
        worth = (trust * share)[..., None, None]
        flat = (len(miss), -1, 6)
        start, end = J[:-1].reshape(flat), J[1:].reshape(flat)
        start_w, end_w = (J[:-1] * worth).reshape(flat), (J[1:] * worth).reshape(flat)
        off = miss.reshape(len(miss), -1, 1)
        later = slice(rows.start + 1, rows.stop + 1)
        diagonal[rows] += start_w.transpose(0, 2, 1) @ start
        diagonal[later] += end_w.transpose(0, 2, 1) @ end
        next_to[rows] -= start_w.transpose(0, 2, 1) @ end
        right[rows] -= (start_w.transpose(0, 2, 1) @ off)[..., 0]
        right[later] += (end_w.transpose(0, 2, 1) @ off)[..., 0]


def _add_bend(
    now: Poses, precision: Floats, pivot: Floats, diagonal: Floats, next_to: Floats, right: Floats
) -> Floats:
    """Adds the penalty on second differences of the path; returns the blocks two apart."""
    steps = _difference(now[slice(1, None)], now[slice(None, -1)], pivot)
    bend = np.diff(steps, axis=0)  # [T - 2, 6] of the present path
    size = np.sqrt((bend**2 * precision).mean(1, keepdims=True))
    worth = precision / np.maximum(size / BEND_HUBER, 1.0)  # [T - 2, 6]
    P = worth[..., None] * np.eye(6)
    taps = (1.0, -2.0, 1.0)
    count = len(diagonal)
    for i, a in enumerate(taps):
        diagonal[i : count - 2 + i] += a * a * P
        right[i : count - 2 + i] -= a * bend * worth
    for i in (0, 1):
        next_to[i : count - 2 + i] += taps[i] * taps[i + 1] * P
    return P


def _solve_banded(diagonal: Floats, next_to: Floats, after_next: Floats, right: Floats) -> Floats:
    """Solution [T, 6] of the symmetric block pentadiagonal system."""
    from scipy.linalg import solveh_banded

    count = len(diagonal)
    bands = np.zeros((18, 6 * count))
    for apart, blocks in enumerate((diagonal, next_to, after_next)):
        columns = 6 * (np.arange(len(blocks)) + apart)
        for a in range(6):
            for b in range(6):
                if apart > 0 or a <= b:
                    bands[17 + a - b - 6 * apart, columns + b] = blocks[:, a, b]
    return np.asarray(solveh_banded(bands, right.ravel()).reshape(count, 6))
