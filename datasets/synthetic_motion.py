"""How the synthetic head moves: speech-timed mouth, blinks, gaze and a wandering head."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gsavatar.datasets.phones import RATE, Phone, mouth_track, speak
from gsavatar.datasets.synthetic_head import NECK_BASE, NECK_TOP, rotation

Float = NDArray[np.float64]

FPS = 25.0
LEAD_S = 0.4
"""Closed-mouth silence before the first and after the last word."""
BLINK_S, BLINK_EVERY_S = 0.22, (1.8, 3.6)
JAW_TEST_S, JAW_HOLD_S = 1.2, 0.4
"""A still head at the end that keeps its lips shut, opens its jaw fully, and shuts it again."""


@dataclass(frozen=True)
class Motion:
    """How far the head goes: radians and metres reached about once in a clip."""

    yaw: float = 0.19
    pitch: float = 0.07
    roll: float = 0.04
    sway: float = 0.008
    jaw_test: bool = False  # whether the last JAW_TEST_S open the jaw of a still head


@dataclass(frozen=True)
class Performance:
    """Everything that moves, at every frame."""

    time_s: Float  # [T]
    weights: dict[str, Float]  # each [T]
    gaze: Float  # [T, 2], yaw and pitch in radians
    head_pose: Float  # [T, 4, 4], head -> room
    samples: NDArray[np.float32]
    phones: list[Phone]

    def instant(self, time_s: float) -> Instant:
        """The state at any time between the frames."""
        last = len(self.time_s) - 1
        at = float(np.clip(np.interp(time_s, self.time_s, np.arange(last + 1.0)), 0, last))
        i = min(int(at), max(last - 1, 0))
        share = at - i
        j = min(i + 1, last)
        pose = (1 - share) * self.head_pose[i] + share * self.head_pose[j]
        if 0 < share < 1:
            u, _, vt = np.linalg.svd(pose[:3, :3])
            pose[:3, :3] = u @ vt
        return Instant(
            {n: float((1 - share) * c[i] + share * c[j]) for n, c in self.weights.items()},
            (1 - share) * self.gaze[i] + share * self.gaze[j],
            pose,
        )


@dataclass(frozen=True)
class Instant:
    """One moment of a performance."""

    weights: dict[str, float]
    gaze: Float  # [2]
    head_pose: Float  # [4, 4]


def perform(
    text: str, seed: int, seconds: float | None, fps: float = FPS, motion: Motion | None = None
) -> Performance:
    """A performance of a text: speech-timed mouth, blinks, brows, gaze and head motion."""
    motion = motion or Motion()
    rng = np.random.default_rng([seed, 1])
    samples, phones = speak(text)
    lead = round(LEAD_S * RATE)
    samples = np.pad(samples, (lead, lead))
    phones = [Phone(p.name, p.start_s + LEAD_S, p.end_s + LEAD_S) for p in phones]
    length = len(samples) / RATE if seconds is None else seconds
    wanted = round(length * RATE)
    samples = np.pad(samples[:wanted], (0, max(0, wanted - len(samples)))).astype(np.float32)
    time_s = np.arange(int(length * fps)) / fps
    track_s, mouth = mouth_track(phones, length)
    weights = {name: np.interp(time_s, track_s, curve) for name, curve in mouth.items()}
    blink = _blinks(time_s, rng)
    weights["eyeBlinkLeft"] = weights["eyeBlinkRight"] = blink
    loud = np.interp(time_s, track_s, mouth["jawOpen"])
    weights["browInnerUp"] = np.clip(0.25 * _wander(time_s, 0.6, rng) + 0.25 * loud, 0, 0.6)
    for side in ("Left", "Right"):
        weights[f"mouthSmile{side}"] = weights[f"mouthSmile{side}"] + 0.08
    gaze = np.stack((0.10 * _wander(time_s, 0.5, rng), 0.05 * _wander(time_s, 0.5, rng)), -1)
    poses = np.tile(np.eye(4), (len(time_s), 1, 1))
    reach = (motion.yaw, motion.pitch, motion.roll)
    angles = [a * _wander(time_s, 0.22, rng) for a in reach]
    for i, (yaw, pitch, roll) in enumerate(zip(*angles, strict=True)):
        poses[i, :3, :3] = rotation(yaw, pitch, roll)
    for axis, share in enumerate((1.0, 0.5, 0.7)):
        poses[:, axis, 3] = share * motion.sway * _wander(time_s, 0.2, rng)
    made = Performance(time_s, weights, gaze, poses, samples, phones)
    return _with_jaw_test(made, fps) if motion.jaw_test else made


def _with_jaw_test(made: Performance, fps: float) -> Performance:
    """The performance with its last seconds replaced: the head comes to rest, the jaw opens once.

    The mouth is silent there; a pose that follows the jaw shows itself against the still truth.
    """
    count, last = round(JAW_TEST_S * fps), len(made.time_s)
    start = last - count
    poses, since = made.head_pose.copy(), np.arange(count) / fps
    poses[start:] = poses[start]
    rise = np.clip(np.minimum(since - JAW_HOLD_S, JAW_TEST_S - 0.1 - since) / 0.12, 0, 1)
    bump = rise * rise * (3 - 2 * rise)
    weights = {}
    for name, curve in made.weights.items():
        own = curve.copy()
        if name.startswith(("jaw", "mouth", "brow")):
            fade = np.clip(1 - since / 0.12, 0, 1)
            own[start:] = curve[start] * fade + (bump if name == "jawOpen" else 0.0)
        weights[name] = own
    samples = made.samples.copy()
    samples[round(start / fps * RATE) :] = 0
    phones = [p for p in made.phones if p.end_s < start / fps]
    return Performance(made.time_s, weights, made.gaze, poses, samples, phones)


def _wander(time_s: Float, hz: float, rng: np.random.Generator) -> Float:
    """A smooth random path within about -1 and 1."""
    parts = [
        np.sin(2 * np.pi * hz * f * time_s + rng.uniform(0, 2 * np.pi)) / np.sqrt(f)
        for f in (0.6, 1.0, 1.7, 2.6)
    ]
    return np.asarray(sum(parts) / 2.2)


def _blinks(time_s: Float, rng: np.random.Generator) -> Float:
    """Closure of the lids: a quick bump every few seconds."""
    closed = np.zeros(len(time_s))
    at = rng.uniform(0.8, 1.6)
    while at < time_s[-1]:
        closed = np.maximum(closed, np.clip(1.25 * np.cos((time_s - at) / BLINK_S * np.pi), 0, 1)
                            * (np.abs(time_s - at) < BLINK_S / 2))  # fmt: skip
        at += rng.uniform(*BLINK_EVERY_S)
    return closed


def in_room(points: Float, rest: Float, pose: Float) -> Float:
    """Points of the head frame in the room: the neck fades from the head's pose to none."""
    height = np.clip((rest[:, 1] - NECK_BASE) / (NECK_TOP - NECK_BASE), 0, 1)
    share = (height * height * (3 - 2 * height))[:, None]
    moved = points @ pose[:3, :3].T + pose[:3, 3]
    return np.asarray(share * moved + (1 - share) * points)
