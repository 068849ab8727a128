"""Training on another device than the CPU: nothing is left behind, and it learns the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from pretended_device import ELSEWHERE, pretended_device
from torch import Tensor

from gsavatar import devices, surround, train_fields, unseen
from gsavatar import train as training
from gsavatar.avatar import Avatar
from gsavatar.clip import Clip
from gsavatar.config import TrainSettings, load_preset
from gsavatar.errors import InputError
from gsavatar.ops import cuda_backend, gsplat_backend, native
from gsavatar.train_state import load_checkpoint, on_device

STEPS = 15


def settings(preset: str, **changes: object) -> TrainSettings:
    small = replace(
        load_preset(preset).train, size=24, steps=STEPS, gaussians_max=90, face_init=40,
        mouth_init=16, torso_init=16, checkpoint_every=6, validate_every=8, sh_degree=1,
    )  # fmt: skip
    return replace(small, **changes)  # type: ignore[arg-type]


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that a short training would not reach happens, by what every device can run."""
    monkeypatch.setattr(native, "present", lambda: False)
    monkeypatch.setattr(training, "GROW_EVERY", 4)
    monkeypatch.setattr(train_fields, "GROW_EVERY", 4)
    monkeypatch.setattr(training, "PAINT_EVERY", 5)
    monkeypatch.setattr(unseen, "FRAMES", 2)
    monkeypatch.setattr(unseen, "SIZE", 32)
    monkeypatch.setattr(surround, "SIZE", 24)
    monkeypatch.setattr(training, "REGULARISE_EVERY", 5)
    monkeypatch.setattr(train_fields, "REGULARISE_EVERY", 5)
    monkeypatch.setattr(train_fields, "HEED_EVERY", 2)


def parameters(avatar: Avatar) -> dict[str, Tensor]:
    found = {}
    for branch in avatar.branches:
        motion = branch.motion
        own = getattr(motion, "parameters", None) or {"basis": branch.linear.basis}
        found |= {f"{branch.kind.name}.{k}": v for k, v in (branch.raw.parameters() | own).items()}
    return found


class Killed(Exception):
    """Stands for a kill between two steps."""


def until(last: int) -> Callable[[int, int], None]:
    def stop(step: int, _total: int) -> None:
        if step == last:
            raise Killed

    return stop


def test_a_run_on_two_devices_ends_as_one_on_the_cpu(
    tiny_clip: Clip, tmp_path: Path, often: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = settings("preview")
    whole = parameters(training.train(tiny_clip, few, tmp_path / "whole"))
    parts = tmp_path / "parts"
    with pretended_device(monkeypatch) as device, pytest.raises(Killed):
        training.train(tiny_clip, few, parts, progress=until(8), device=device)
    with pytest.raises(Killed):
        training.train(tiny_clip, few, parts, progress=until(13))
    with pretended_device(monkeypatch) as device:
        ended = parameters(training.train(tiny_clip, few, parts, device=device))
    same(ended, whole)
    logs = [(tmp_path / name / "train_log.jsonl").read_text() for name in ("whole", "parts")]
    assert logs[0] == logs[1]


def test_the_baseline_learns_the_same_elsewhere(
    spoken: Clip, tmp_path: Path, often: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = settings("talkinggaussian")
    here = parameters(training.train(spoken, few, tmp_path / "here"))
    with pretended_device(monkeypatch) as device:
        there = parameters(training.train(spoken, few, tmp_path / "there", device=device))
    same(there, here)


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        assert value.device.type == "cpu", name
        assert torch.equal(value, wanted[name]), name


def test_a_checkpoint_moves_whole(
    tiny_clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = settings("preview", steps=7)
    training.train(tiny_clip, few, tmp_path)
    state = load_checkpoint(tmp_path, asdict(few))
    assert state is not None and on_device(state, "cpu") is state
    with pretended_device(monkeypatch) as device:
        moved = on_device(state, device)
        tensors = [*moved.adam.state().values(), *moved.seeds.values(), *moved.around.values()]
        tensors += [*moved.head_weights.values(), *(m.sum for m in moved.meters.values())]
        tensors += moved.average.sums.values()
        assert len(moved.average.sums) > 0
        assert all(t.device.type == device.type for t in tensors)


def test_what_was_left_behind_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pretended_device(monkeypatch) as device:
        there = torch.ones(3, device=device)
        assert there.device == ELSEWHERE and float((2.0 * there).sum()) == 6.0
        with pytest.raises(RuntimeError, match="elsewhere"):
            there + torch.ones(3)


def test_cuda_is_refused_with_the_cure_or_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices.training_device("auto") == devices.training_device("cpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="no CUDA device is visible here; use --device cpu"):
        devices.training_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(cuda_backend, "why_not", lambda: "not built")
    monkeypatch.setattr(gsplat_backend, "why_not", lambda: "not installed")
    with pytest.raises(InputError, match=r"not built; .*GSAVATAR_CUDA=1"):
        devices.training_device("cuda")
    monkeypatch.setattr(gsplat_backend, "why_not", lambda: None)
    assert devices.training_device("cuda") == "cuda"


def test_a_fit_without_kernels_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "cpu", lambda: native._open(tmp_path / "lib.so"))
    with pytest.raises(InputError, match=r"the kernels are not built; .* C\+\+ compiler"):
        devices.training_device("auto")
