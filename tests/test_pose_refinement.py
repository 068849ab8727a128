"""Corrections of head poses against twists that are known, and their place in a training run."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from gsavatar.clip import Clip
from gsavatar.config import load_preset
from gsavatar.geometry import se3_exp
from gsavatar.pose_refinement import KNOT_S, STARTS, UNITS, PoseCorrections
from gsavatar.train import train
from gsavatar.train_state import load_checkpoint
from gsavatar.types import Drive

STEPS = 3000


def wanted(time_s: float) -> torch.Tensor:
    """Smooth errors of some units, of zero mean over four seconds."""
    waves = [math.sin(2 * math.pi * (k % 3 + 1) * time_s / 4.0 + k) for k in range(6)]
    return 3.0 * torch.tensor(waves)


def test_known_errors_are_learnt_between_knots_too() -> None:
    corrections = PoseCorrections(PoseCorrections.count(torch.arange(0, 4, 0.04)))
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(200, 3, generator=generator) * 0.08
    for step in range(STEPS):
        time_s = 4.0 * float(torch.rand((), generator=generator))
        correction = corrections.at(time_s)
        true = se3_exp(wanted(time_s) * torch.tensor(UNITS))
        pose = correction.applied(Drive(torch.zeros(2), torch.eye(4))).head_pose
        miss = (points @ (pose - true)[:3, :3].T + (pose - true)[:3, 3]).square().sum()
        miss.backward()
        corrections.learn(correction, STARTS + (1 - STARTS) * step / STEPS)
    assert corrections.twists.mean(0).abs().max() < 1e-4
    off = torch.stack([corrections.at(t).leaf.detach() - wanted(t) for t in (0.31, 1.5, 2.77, 3.3)])
    assert off.abs().max() < 0.8  # of up to three units


def test_poses_wait_until_the_cloud_is_there_and_stay_where_no_frame_was_drawn() -> None:
    corrections = PoseCorrections(10)
    early = corrections.at(0.3)
    early.leaf.grad = torch.ones(6)
    corrections.learn(early, STARTS / 2)
    assert not corrections.twists.any()
    first, second = corrections.at(0.05 * KNOT_S), corrections.at(3.5 * KNOT_S)
    first.leaf.grad, second.leaf.grad = torch.ones(6), -torch.ones(6)
    corrections.learn(first, 0.5)
    corrections.learn(second, 0.5)
    moved = corrections.twists.abs().sum(1) > 0
    assert moved.tolist() == [True, True, False, True, True, *[False] * 5]
    assert corrections.twists.sum(0).abs().max() < 1e-6


def test_instants_outside_the_clip_take_its_ends() -> None:
    corrections = PoseCorrections(PoseCorrections.count(torch.tensor([5.0, 6.0])))
    assert corrections.at(-1.0).knots.tolist() == [0, 1]
    assert corrections.at(9.0).knots.tolist()[1] == len(corrections.twists) - 1


class Killed(Exception):
    pass


def test_a_killed_run_continues_its_corrections(tiny_clip: Clip, tmp_path: Path) -> None:
    preset = load_preset("preview").train
    settings = replace(
        preset, size=64, steps=12, gaussians_max=400, face_init=200, mouth_init=40, torso_init=60,
        checkpoint_every=5, validate_every=6, refine_poses=True,
    )  # fmt: skip

    def stop(step: int, _total: int) -> None:
        if step == 8:
            raise Killed

    with pytest.raises(Killed):
        train(tiny_clip, settings, tmp_path / "killed", progress=stop)
    train(tiny_clip, settings, tmp_path / "killed")
    train(tiny_clip, settings, tmp_path / "whole")
    ends = [load_checkpoint(tmp_path / name, asdict(settings)) for name in ("killed", "whole")]
    assert ends[0] is not None and ends[1] is not None
    assert ends[0].poses is not None and ends[1].poses is not None
    assert ends[0].poses.twists.any()
    for name, value in ends[0].poses.state().items():
        assert torch.equal(value, ends[1].poses.state()[name]), name
