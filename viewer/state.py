"""What one page of the viewer shows and how it answers: values and pure functions, no browser.

A page's state is a frozen value. Widgets replace it; the drawing thread reads it. Time comes in as
seconds of one monotonic clock, the server's, so that everything here can be tested without waiting.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from gsavatar import geometry
from gsavatar.types import Branch, Curves, Drive

LEVELS = (128, 192, 256, 384, 512, 640, 768)
"""Heights of a server-rendered picture, in pixels."""
STILL_HEIGHT = LEVELS[-1]
TARGET_MS = 60.0
"""Render time of a moving picture that still feels direct on two cores."""
TOO_SLOW = 1.3
FAST_ENOUGH = 0.75
"""A level is left downwards beyond 1.3 times the target, upwards if the next would stay below 0.75
times it: between the two the size rests."""
SETTLE_FRAMES = 3
SMOOTHING = 0.4


class Mode(str, Enum):
    """Who draws the avatar."""

    SPLATS = "browser"
    FRAMES = "server"


def slider_range(low: float, high: float, rest: float) -> tuple[float, float]:
    """Ends of a slider: rest, the rig's full shape (1) and all that the clip showed."""
    return math.floor(min(0.0, low, rest) * 20) / 20, math.ceil(max(1.0, high, rest) * 20) / 20


@dataclass(frozen=True)
class Playback:
    """A performance that began when its button was clicked; the server's clock picks the row."""

    curves: Curves
    started_at: float  # seconds of the monotonic clock
    loop: bool = False

    @property
    def duration_s(self) -> float:
        """Length, the last row's own share included."""
        time = self.curves.time_s
        if len(time) < 2:
            return 0.04
        span = float(time[-1] - time[0])
        return span + span / (len(time) - 1)

    def position(self, now: float) -> float | None:
        """Seconds into the performance; None once it is over."""
        elapsed = max(0.0, now - self.started_at)
        if self.loop:
            return elapsed % self.duration_s
        return elapsed if elapsed < self.duration_s else None

    def row(self, now: float) -> int | None:
        """The row to show at ``now``, however many were missed before; None once it is over."""
        position = self.position(now)
        if position is None:
            return None
        times = self.curves.time_s.numpy()
        return max(int(np.searchsorted(times - times[0], position + 1e-9, side="right")) - 1, 0)

    def until_next(self, now: float) -> float:
        """Seconds from ``now`` until another row is due."""
        position, row = self.position(now), self.row(now)
        if position is None or row is None:
            return 0.0
        times = self.curves.time_s
        due = float(times[row + 1] - times[0]) if row + 1 < len(times) else self.duration_s
        return max(due - position, 0.0)


@dataclass(frozen=True)
class ViewState:
    """Everything a page's widgets have set."""

    overrides: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    branches: frozenset[Branch] = frozenset(Branch)
    follow_head: bool = True
    turn_deg: tuple[float, float, float] = (0.0, 0.0, 0.0)  # yaw, pitch, roll
    mode: Mode = Mode.SPLATS
    background: str = "plate"  # or the name of a colour in scene.COLORS
    playback: Playback | None = None

    def with_slider(self, name: str, value: float) -> ViewState:
        """The state after a coefficient's slider was moved: its value holds, playing or not."""
        return replace(self, overrides=MappingProxyType({**self.overrides, name: value}))

    def without_sliders(self) -> ViewState:
        """The state with every coefficient given back to rest or to the performance."""
        return replace(self, overrides=MappingProxyType({}), turn_deg=(0.0, 0.0, 0.0))

    def with_branch(self, branch: Branch, shown: bool) -> ViewState:
        """The state with one branch shown or hidden."""
        changed = self.branches | {branch} if shown else self.branches - {branch}
        return replace(self, branches=changed)


def coefficients_at(state: ViewState, names: Sequence[str], rest: Tensor, now: float) -> Tensor:
    """The coefficients [K] to show: the performance where one runs, else rest; sliders win."""
    values = rest.detach().clone().float()
    row = state.playback.row(now) if state.playback is not None else None
    column = {name: k for k, name in enumerate(names)}
    if state.playback is not None and row is not None:
        played = state.playback.curves
        for k, name in enumerate(played.names):
            if name in column:
                values[column[name]] = played.values[row, k]
    for name, value in state.overrides.items():
        if name in column:
            values[column[name]] = value
    return values


def head_pose_at(state: ViewState, now: float) -> Tensor:
    """The head's pose [4, 4] in the room: the performance's if followed, turned by the sliders."""
    pose = torch.eye(4)
    row = state.playback.row(now) if state.playback is not None else None
    if state.playback is not None and row is not None and state.follow_head:
        pose = state.playback.curves.head_pose[row].float().clone()
    if any(state.turn_deg):
        turn = torch.eye(4)
        turn[:3, :3] = turned(*state.turn_deg)
        pose = pose @ turn
    return pose


def turned(yaw_deg: float, pitch_deg: float, roll_deg: float) -> Tensor:
    """Rotation [3, 3] of the head: to its left, then down, then towards its right shoulder."""
    yaw, pitch, roll = (math.radians(d) for d in (yaw_deg, pitch_deg, roll_deg))
    axes = torch.tensor([[0.0, yaw, 0.0], [pitch, 0.0, 0.0], [0.0, 0.0, roll]])
    about_y, about_x, about_z = (geometry.so3_exp(axis) for axis in axes)
    matrix: Tensor = about_y @ about_x @ about_z
    return matrix


def drive_at(state: ViewState, names: Sequence[str], rest: Tensor, now: float) -> Drive:
    """What moves the avatar at an instant of the server's clock."""
    row = state.playback.row(now) if state.playback is not None else None
    heard = None
    if state.playback is not None and row is not None and state.playback.curves.audio is not None:
        heard = state.playback.curves.audio[row]
    return Drive(coefficients_at(state, names, rest, now), head_pose_at(state, now), heard)


@dataclass(frozen=True)
class Resolution:
    """How large the server renders while things move; follows the measured render time."""

    height: int = 256
    mean_ms: float | None = None
    frames: int = 0  # rendered since the size last changed

    def after(self, ms: float, target_ms: float = TARGET_MS) -> Resolution:
        """The size for the next frame, given what this one took."""
        mean = ms if self.mean_ms is None else self.mean_ms + SMOOTHING * (ms - self.mean_ms)
        seen = Resolution(self.height, mean, self.frames + 1)
        if seen.frames < SETTLE_FRAMES:
            return seen
        level = LEVELS.index(self.height)
        if mean > TOO_SLOW * target_ms and level > 0:
            return Resolution(LEVELS[level - 1])
        if level + 1 < len(LEVELS):
            larger = LEVELS[level + 1]
            if mean * (larger / self.height) ** 2 < FAST_ENOUGH * target_ms:
                return Resolution(larger)
        return seen
