"""Head, gaze and blinks that the clip never showed, with the clip's own statistics.

The head's path has the clip's spectrum, and the clip's relations between its turns and shifts, with
new phases (surrogate data, Theiler et al. 1992). Upper face and lids are stretches of the clip in a
new order, joined where the eyes are open (block bootstrap, Kuensch 1989): blinks keep their shape
and their rhythm. Nothing repeats, and any instant can be asked for.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gsavatar.geometry import rigid, so3_exp, so3_log
from gsavatar.idle import sample
from gsavatar.types import Curves

Array = NDArray[np.float64]

RATE = 25.0
MOST_S = 60.0
"""Part of a long clip whose spectrum is taken."""
REACH = (1.0, 99.0)
"""Percentiles of the clip's path that the new one approaches but does not pass by much."""
BEYOND = 0.15
"""How far it may pass them, as a share of their distance."""
BLOCK_S = (2.0, 5.0)
JOIN_S = 0.16
"""Length of the passage from one stretch to the next: a slow saccade."""
LIDS_OPEN = 0.15
"""How far above their usual place lids are open enough for a joint."""


class GeneratedIdle:
    """An idle performance of any length that only resembles the clip's; ``IdlePath``'s stand-in.

    The same ``seed`` gives the same performance.
    """

    def __init__(self, idle: Curves, seed: int = 0) -> None:
        order = torch.argsort(idle.time_s)
        self.curves = Curves(
            idle.names, idle.time_s[order].double(), idle.values[order].float(),
            idle.head_pose[order].double(),
        )  # fmt: skip
        rng = np.random.default_rng(seed)
        self._head = _Head(self.curves, rng)
        self._blocks = _Blocks(self.curves, rng)

    def __call__(self, time_s: Any) -> Curves:
        """The performance at playing times [N] in seconds."""
        time = np.asarray(time_s, np.float64)
        path = torch.from_numpy(self._head(time))
        pose = rigid(self._head.middle @ so3_exp(path[:, 3:]), path[:, :3])
        return Curves(
            self.curves.names, torch.from_numpy(time), self._blocks(time).float(), pose.float()
        )


class _Head:
    """Shift (metres) and turn from the usual pose (radians), [N, 6] at any instants [N]."""

    def __init__(self, curves: Curves, rng: np.random.Generator) -> None:
        start = float(curves.time_s[0])
        length_s = min(float(curves.time_s[-1]) - start, MOST_S)
        even = torch.arange(start, start + length_s, 1.0 / RATE, dtype=torch.float64)
        _, pose = sample(curves, even)
        pose = pose.double()
        usual = pose[:, :3, :3].mean(0)
        u, _, vt = torch.linalg.svd(usual)
        flip = torch.diag(torch.tensor([1.0, 1.0, float(torch.linalg.det(u @ vt))]).double())
        self.middle = u @ flip @ vt
        path = torch.cat((pose[:, :3, 3], so3_log(self.middle.T @ pose[:, :3, :3])), 1).numpy()
        self._mean, own_sd = path.mean(0), path.std(0)
        window = np.hanning(len(path) + 2)[1:-1, None]
        spectrum = np.fft.rfft((path - self._mean) * window, axis=0)
        spectrum[0] = 0.0
        power = (np.abs(spectrum) ** 2).sum(0)
        scale = own_sd / np.sqrt(np.maximum(2.0 * power, 1e-30)) * 2.0
        turned = np.exp(2j * np.pi * rng.random(len(spectrum)))[:, None]  # for all six alike
        self._waves = spectrum * turned * scale  # [F, 6]
        # Frequencies within their own band: whole multiples would repeat after the clip's length.
        self._hz = (np.arange(len(spectrum)) + rng.uniform(-0.5, 0.5, len(spectrum))) / length_s
        self._low, self._high = np.percentile(path, REACH, axis=0)

    def __call__(self, time_s: Array) -> Array:
        angle = np.exp(2j * np.pi * time_s[:, None] * self._hz)
        path = self._mean + (angle @ self._waves).real
        # Rare summits of a sum of waves: eased into a little beyond what the clip did.
        room = np.maximum(BEYOND * (self._high - self._low), 1e-9)
        above, below = np.maximum(path - self._high, 0.0), np.maximum(self._low - path, 0.0)
        eased = room * (np.tanh(above / room) - np.tanh(below / room))
        return np.asarray(path - above + below + eased)


class _Blocks:
    """Stretches of the clip in a new order: all curves [N, K] at any instants [N]."""

    def __init__(self, curves: Curves, rng: np.random.Generator) -> None:
        self._curves, self._rng = curves, rng
        times: Array = curves.time_s.numpy()
        lids = [i for i, name in enumerate(curves.names) if name.startswith("eyeBlink")]
        down = curves.values[:, lids].double().mean(1).numpy() if lids else np.zeros(len(times))
        self._joints = times[down <= np.median(down) + LIDS_OPEN]
        self._starts: list[float] = []  # of playing time
        self._sources: list[float] = []  # of the clip, at the same instant
        self._end = -JOIN_S

    def __call__(self, time_s: Array) -> torch.Tensor:
        while self._end <= float(time_s.max(initial=0.0)) + JOIN_S:
            self._add()
        starts, sources = np.array(self._starts), np.array(self._sources)
        now = np.searchsorted(starts, time_s, side="right") - 1
        late = np.maximum(now - 1, 0)
        own, _ = sample(self._curves, torch.from_numpy(sources[now] + time_s - starts[now]))
        old, _ = sample(self._curves, torch.from_numpy(sources[late] + time_s - starts[late]))
        since = np.clip((time_s - starts[now]) / JOIN_S, 0.0, 1.0)
        share = torch.from_numpy(since * since * (3.0 - 2.0 * since)).float()
        return torch.lerp(old, own, share[:, None])

    def _add(self) -> None:
        """One more stretch: from one joint to another, some seconds later."""
        joints = self._joints
        latest = float(self._curves.time_s[-1]) - JOIN_S
        first = joints[joints <= max(latest - BLOCK_S[0], float(joints[0]))]
        source = float(self._rng.choice(first))
        wanted = source + self._rng.uniform(*BLOCK_S)
        later = joints[(joints >= source + 1.0 / RATE) & (joints <= latest)]
        stop = float(later[np.abs(later - wanted).argmin()]) if len(later) else latest
        self._starts.append(self._end)
        self._sources.append(source)
        self._end += max(stop - source, 2.0 * JOIN_S)
