"""Generated head motion, gaze and blinks: the clip's statistics, but never the clip."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gsavatar.geometry import rigid, so3_exp, so3_log
from gsavatar.idle_generated import GeneratedIdle
from gsavatar.types import Curves

SECONDS, RATE = 40.0, 25.0
NAMES = ("eyeBlinkLeft", "eyeBlinkRight", "eyeLookUpLeft", "jawOpen")


@pytest.fixture(scope="module")
def idle() -> Curves:
    """A head that sways and turns, looks elsewhere now and then, and blinks every few seconds."""
    rng = np.random.default_rng(3)
    time = np.arange(0.0, SECONDS, 1.0 / RATE)
    count = len(time)

    def slow(size: float, smooth: int) -> np.ndarray:
        noise = np.convolve(rng.normal(size=count + 4 * smooth), np.hanning(smooth), "same")
        part = noise[2 * smooth : 2 * smooth + count]
        return size * part / part.std()

    yaw = slow(0.10, 40)
    turn = np.stack((slow(0.04, 30), yaw, slow(0.02, 30)), 1)
    shift = np.stack((0.05 * yaw + slow(0.001, 20), slow(0.004, 50), slow(0.006, 60)), 1)
    blink = np.zeros(count)
    at = 1.0
    while at < SECONDS - 1.0:
        blink += 0.9 * np.exp(-(((time - at) / 0.07) ** 2))
        at += rng.uniform(2.0, 5.0)
    gaze = np.repeat(rng.normal(0, 0.1, count // 25), 25)
    values = np.stack((blink, blink, gaze, np.zeros(count)), 1)
    pose = rigid(so3_exp(torch.from_numpy(turn)), torch.from_numpy(shift))
    return Curves(NAMES, torch.from_numpy(time), torch.from_numpy(values).float(), pose.float())


def path_of(curves: Curves) -> np.ndarray:
    turn = so3_log(curves.head_pose[:, :3, :3].double())
    return torch.cat((curves.head_pose[:, :3, 3].double(), turn), 1).numpy()


def blinks(curves: Curves) -> np.ndarray:
    """Instants at which the lids come down."""
    down = curves.values[:, 0].numpy() > 0.45
    return curves.time_s.numpy()[1:][down[1:] & ~down[:-1]]


def test_it_moves_as_the_clip_does_but_not_the_same(idle: Curves) -> None:
    made = GeneratedIdle(idle, seed=1)(np.arange(0.0, 300.0, 1.0 / RATE))
    own, new = path_of(idle), path_of(made)
    np.testing.assert_allclose(new.mean(0), own.mean(0), atol=0.35 * own.std(0).max())
    np.testing.assert_allclose(new.std(0) / own.std(0), 1.0, atol=0.3)
    speed = [np.diff(p, axis=0).std(0) for p in (own, new)]
    np.testing.assert_allclose(speed[1] / speed[0], 1.0, atol=0.3)
    jerk = [np.percentile(np.abs(np.diff(p, 2, axis=0)), 99, axis=0) for p in (own, new)]
    assert (jerk[1] < 1.5 * jerk[0]).all()
    # Who turns moves aside as well: channels keep their relations.
    relation = [np.corrcoef(p[:, 0], p[:, 4])[0, 1] for p in (own, new)]
    assert relation[0] > 0.9 and relation[1] > 0.8
    low, high = own.min(0), own.max(0)
    assert (new > low - 0.2 * (high - low)).all() and (new < high + 0.2 * (high - low)).all()
    length = len(own)
    again = [np.abs(new[k * length : (k + 1) * length] - own).mean() for k in range(5)]
    assert min(again) > 0.3 * own.std(0).mean()


def test_blinks_keep_their_rhythm_and_shape(idle: Curves) -> None:
    made = GeneratedIdle(idle, seed=2)(np.arange(0.0, 400.0, 1.0 / RATE))
    rate = [len(blinks(c)) / float(c.time_s[-1]) for c in (idle, made)]
    assert rate[1] == pytest.approx(rate[0], rel=0.35)
    assert float(made.values[:, 0].max()) == pytest.approx(float(idle.values[:, 0].max()), abs=0.02)
    assert torch.equal(made.values[:, 0], made.values[:, 1])  # both eyes
    gaps = np.diff(blinks(made))
    assert gaps.min() > 0.15 and len(np.unique(gaps.round(2))) > 30
    steps = made.values[:, 0].diff().abs().max()
    assert steps <= 1.2 * idle.values[:, 0].diff().abs().max()  # no lid jumps at a joint


def test_it_repeats_with_its_seed_whatever_the_pieces(idle: Curves) -> None:
    time = np.arange(0.0, 30.0, 1.0 / RATE)
    whole = GeneratedIdle(idle, seed=5)(time)
    in_parts = GeneratedIdle(idle, seed=5)
    parts = [in_parts(time[i : i + 7]) for i in range(0, len(time), 7)]
    assert torch.equal(torch.cat([p.values for p in parts]), whole.values)
    torch.testing.assert_close(torch.cat([p.head_pose for p in parts]), whole.head_pose)
    other = GeneratedIdle(idle, seed=6)(time)
    assert not torch.allclose(other.head_pose, whole.head_pose, atol=1e-3)
    late = GeneratedIdle(idle, seed=5)(time[500:])
    torch.testing.assert_close(late.head_pose, whole.head_pose[500:])
    assert torch.equal(late.values, whole.values[500:])


def test_short_and_still_clips_serve(idle: Curves) -> None:
    few = Curves(NAMES, idle.time_s[:30], idle.values[:30], idle.head_pose[:30])
    made = GeneratedIdle(few)(np.arange(0.0, 10.0, 0.04))
    assert torch.isfinite(made.values).all() and torch.isfinite(made.head_pose).all()
    upright = torch.eye(4).repeat(len(idle.time_s), 1, 1)
    still = Curves(NAMES, idle.time_s, torch.zeros_like(idle.values), upright)
    made = GeneratedIdle(still)(np.arange(0.0, 10.0, 0.04))
    torch.testing.assert_close(made.head_pose, torch.eye(4).repeat(250, 1, 1), atol=1e-5, rtol=0)
