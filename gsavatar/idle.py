"""An idle performance of any length from a short one: the path played to and fro.

Time runs along the clip at its own speed, slows down to a turn, and runs back. Turns are put
where the head hardly moves and the eyes are open, and last as long as it takes for them to be no
jerkier than the clip itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gsavatar.geometry import se3_interp, so3_log
from gsavatar.types import Curves, is_upper_face

Array = NDArray[np.float64]

TURN_S = (0.4, 0.8, 1.6)
TURN_ZONE = 0.3
"""Turns are looked for in this share of the clip at either end."""
MAX_CANDIDATES = 150
JERK_PERCENTILE = 99.0
EYES_OPEN_MARGIN = 0.2
HEAD_RADIUS_M = 0.1
CUT_RATIO = 5.0
STILL_M = 0.0005


@dataclass(frozen=True)
class Turn:
    """A place of the clip where time turns round, and how long the turn lasts."""

    at_s: float
    duration_s: float

    @property
    def reach_s(self) -> float:
        """Part of the clip that the turn runs through (twice)."""
        return self.duration_s / np.pi


class Idle(Protocol):
    """Head, gaze and blinks of any length, like those of a clip."""

    @property
    def curves(self) -> Curves:
        """The clip's own, in time order."""
        ...

    def __call__(self, time_s: Any) -> Curves:
        """The performance at playing times [N] in seconds."""
        ...


class IdlePath:
    """Clip time as a function of playing time, and the clip's curves there; constant memory."""

    def __init__(self, idle: Curves) -> None:
        order = torch.argsort(idle.time_s)
        self.curves = Curves(
            idle.names, idle.time_s[order].double(), idle.values[order].float(),
            idle.head_pose[order].double(),
        )  # fmt: skip
        self.first, self.last = _plan(self.curves)

    def __call__(self, time_s: Any) -> Curves:
        """The performance at playing times [N] in seconds; 0 is the first turn, at rest."""
        time = torch.as_tensor(np.asarray(time_s), dtype=torch.float64)
        values, pose = sample(self.curves, torch.from_numpy(self.clip_time(time.numpy())))
        return Curves(self.curves.names, time, values, pose.float())

    def clip_time(self, time_s: Array) -> Array:
        """Instants [N] of the clip that are shown at playing times [N]."""
        a, b = self.first, self.last
        straight = b.at_s - a.at_s - a.reach_s - b.reach_s
        way = a.duration_s / 2 + straight + b.duration_s / 2
        if way <= 0.0:
            return np.full(len(time_s), a.at_s)
        phase = np.mod(time_s, 2.0 * way)
        phase = np.where(phase > way, 2.0 * way - phase, phase)  # the way back is the way there
        from_a, to_b = phase, way - phase
        running = a.at_s + a.reach_s + (phase - a.duration_s / 2)
        result = np.where(from_a < a.duration_s / 2, a.at_s + _eased(from_a, a), running)
        return np.where(to_b < b.duration_s / 2, b.at_s - _eased(to_b, b), result)


def _eased(since_s: Array, turn: Turn) -> Array:
    """Way from a turning point, ``since_s`` after it: from standing to the clip's own speed."""
    if turn.duration_s <= 0.0:
        return np.zeros_like(since_s)
    return turn.reach_s * (1.0 - np.cos(np.pi * np.minimum(since_s / turn.duration_s, 0.5)))


def sample(curves: Curves, time_s: Tensor) -> tuple[Tensor, Tensor]:
    """Values [N, K] (linear) and head poses [N, 4, 4] (on SE(3)) at instants [N] of a clip."""
    times = curves.time_s
    if len(times) < 2:
        count = len(time_s)
        return curves.values[:1].repeat(count, 1), curves.head_pose[:1].repeat(count, 1, 1)
    time = time_s.clamp(times[0], times[-1])
    right = torch.searchsorted(times, time).clamp(1, len(times) - 1)
    left = right - 1
    share = (time - times[left]) / (times[right] - times[left]).clamp_min(1e-9)
    values = torch.lerp(curves.values[left], curves.values[right], share.float()[:, None])
    return values, se3_interp(curves.head_pose[left], curves.head_pose[right], share)


def jump_cuts(head_pose: Tensor) -> NDArray[np.int64]:
    """Rows [M] before which a head jumps: an editor's cut that leaves the scene as it was.

    The step into a row stands alone: it is ``CUT_RATIO`` times the two steps before and after it.
    Fast movement of a real head builds up (at most 3 times on eight clips; cuts had 11 to 35).
    ``head_pose`` is [T, 4, 4].
    """
    pose = head_pose.double()
    shift = (pose[1:, :3, 3] - pose[:-1, :3, 3]).norm(dim=-1)
    turn = so3_log(pose[:-1, :3, :3].mT @ pose[1:, :3, :3]).norm(dim=-1)
    step = (shift + HEAD_RADIUS_M * turn).numpy()
    if len(step) < 2:
        return np.zeros(0, np.int64)
    around = np.pad(step, 2, mode="reflect" if len(step) > 2 else "edge")
    usual = np.maximum.reduce([around[:-4], around[1:-3], around[3:-1], around[4:]])
    return np.flatnonzero(step > CUT_RATIO * np.maximum(usual, STILL_M)) + 1


def _signals(curves: Curves) -> list[Array]:
    """What must not jerk, each [T, D]: translation, rotation from the first frame, upper face."""
    rotation = curves.head_pose[:1, :3, :3].transpose(1, 2) @ curves.head_pose[:, :3, :3]
    signals = [curves.head_pose[:, :3, 3].numpy(), so3_log(rotation).numpy()]
    columns = [i for i, name in enumerate(curves.names) if is_upper_face(name)]
    return signals + [curves.values[:, i : i + 1].double().numpy() for i in columns]


def _plan(curves: Curves) -> tuple[Turn, Turn]:
    """The two turns between which the clip is played."""
    times: Array = curves.time_s.numpy()
    start, end = float(times[0]), float(times[-1])
    span = end - start
    if len(times) < 8:
        return Turn(start, span / 2), Turn(end, span / 2)
    step = float(np.median(np.diff(times)))
    signals = [(signal, _usual_jerk(signal)) for signal in _signals(curves)]
    blink = [i for i, name in enumerate(curves.names) if name.startswith("eyeBlink")]
    lids = curves.values[:, blink].double().mean(1).numpy() if blink else np.zeros(len(times))

    def choose(zone: Array, direction: float) -> Turn:
        best, best_score = Turn(float(zone[0]), min(TURN_S[0], span / 2)), np.inf
        for duration in (d for d in TURN_S if d <= span / 2):
            for at in zone:
                turn = Turn(float(at), duration)
                score = _roughness(times, signals, turn, direction, step)
                score += 10.0 * _lids_down(times, lids, turn, direction)
                if score < best_score:
                    best, best_score = turn, score
                if score <= 1.0:
                    return turn
        return best

    inside = times[(times >= start) & (times <= end)]
    low = inside[inside <= start + TURN_ZONE * span]
    high = inside[inside >= end - TURN_ZONE * span][::-1]
    thin = [z[:: max(1, len(z) // MAX_CANDIDATES)] for z in (low, high)]
    return choose(thin[0], 1.0), choose(thin[1], -1.0)


def _usual_jerk(signal: Array) -> float:
    """The 99th percentile of a signal's [T, D] second differences."""
    jerk = np.linalg.norm(np.diff(signal, 2, axis=0), axis=1)
    return max(float(np.percentile(jerk, JERK_PERCENTILE)), 1e-9)


def _roughness(
    times: Array, signals: list[tuple[Array, float]], turn: Turn, direction: float, step: float
) -> float:
    """Largest second difference in a turn, played at the clip's rate, over the clip's bound."""
    count = int(np.ceil(turn.duration_s / step / 2)) + 2
    worst = 0.0
    for offset in (0.0, 0.5):
        since = np.abs(np.arange(-count, count + 1) + offset) * step
        half = turn.duration_s / 2
        way = np.where(since < half, _eased(since, turn), turn.reach_s + since - half)
        at = turn.at_s + direction * way
        for signal, bound in signals:
            path = np.stack([np.interp(at, times, column) for column in signal.T], axis=1)
            jerk = np.linalg.norm(np.diff(path, 2, axis=0), axis=1)
            worst = max(worst, float(jerk.max()) / bound)
    return worst


def _lids_down(times: Array, lids: Array, turn: Turn, direction: float) -> float:
    """How far the lids are from open where time stands nearly still."""
    near = np.abs(times - turn.at_s - direction * turn.reach_s / 2) <= turn.reach_s / 2
    if not near.any():
        return 0.0
    return max(0.0, float(lids[near].max() - np.median(lids)) - EYES_OPEN_MARGIN)
