"""Training on the cartoon clip: it learns, grows within its budget and resumes bit-equal."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gsavatar import densify
from gsavatar.batches import Batches
from gsavatar.clip import Clip
from gsavatar.config import TrainSettings
from gsavatar.errors import InputError
from gsavatar.losses import LossWeights, RegionMasks, total
from gsavatar.optimizer import RowAdam
from gsavatar.train import learning_rates, stage_at, train
from gsavatar.train_state import load_checkpoint
from gsavatar.types import Region

STEPS = 220


class Killed(Exception):
    """Stands for a kill between two steps."""


def settings(**changes: object) -> TrainSettings:
    from gsavatar.config import load_preset

    base = load_preset("preview").train
    small = replace(base, size=64, steps=STEPS, gaussians_max=700, face_init=300, mouth_init=80,
                    torso_init=120, checkpoint_every=50, validate_every=55)  # fmt: skip
    return replace(small, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def trained(tiny_clip: Clip, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list]:
    folder = tmp_path_factory.mktemp("trained")
    avatar = train(tiny_clip, settings(), folder)
    return folder, [(b.raw.parameters(), b.motion.basis) for b in avatar.branches]


def test_the_curve_falls_and_the_cloud_grows_within_budget(trained: tuple[Path, list]) -> None:
    folder, _ = trained
    rows = [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [55, 110, 165, 220]
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert 500 < rows[-1]["gaussians"] <= 700


def test_a_killed_run_ends_bit_equal(
    trained: tuple[Path, list], tiny_clip: Clip, tmp_path: Path
) -> None:
    def stop(step: int, _total: int) -> None:
        if step == 137:
            raise Killed

    with pytest.raises(Killed):
        train(tiny_clip, settings(), tmp_path, progress=stop)
    resumed = train(tiny_clip, settings(), tmp_path)
    for branch, (raw, basis) in zip(resumed.branches, trained[1], strict=True):
        assert torch.equal(branch.motion.basis, basis)
        for key, value in branch.raw.parameters().items():
            assert torch.equal(value, raw[key]), key
    logs = [(f / "train_log.jsonl").read_text() for f in (trained[0], tmp_path)]
    assert logs[0] == logs[1]


def test_other_settings_do_not_continue_a_run(trained: tuple[Path, list], tiny_clip: Clip) -> None:
    with pytest.raises(InputError, match="other training settings"):
        train(tiny_clip, settings(seed=5), trained[0])


def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    trained: tuple[Path, list], tmp_path: Path
) -> None:
    from dataclasses import asdict

    (tmp_path / "checkpoints").mkdir()
    for path in (trained[0] / "checkpoints").iterdir():
        (tmp_path / "checkpoints" / path.name).write_bytes(path.read_bytes())
    newest = sorted((tmp_path / "checkpoints").iterdir())[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    state = load_checkpoint(tmp_path, asdict(settings()))
    assert state is not None and state.step == 200


def test_three_bad_steps_stop_with_a_sentence(
    tiny_clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(terms: dict[str, torch.Tensor], weights: LossWeights) -> torch.Tensor:
        return total(terms, weights) * float("nan")

    monkeypatch.setattr("gsavatar.train.total", broken)
    with pytest.raises(InputError, match="3 steps in a row without a finite loss"):
        train(tiny_clip, settings(), tmp_path)


def test_stages_and_rates_are_a_table() -> None:
    assert [stage_at(s).name for s in (0.0, 0.3, 0.99, 1.0)] == [
        "still",
        "motion",
        "detail",
        "detail",
    ]
    assert "basis" not in learning_rates(0.0, stage_at(0.0))
    first, last = (learning_rates(s, stage_at(s))["means"] for s in (0.0, 1.0))
    assert first > 20 * last


def test_terms_need_weights() -> None:
    with pytest.raises(KeyError, match="unheard"):
        total({"unheard": torch.zeros(())}, LossWeights())


def test_masks_cover_what_they_name() -> None:
    labels = torch.tensor([[int(r) for r in Region]], dtype=torch.uint8)
    masks = RegionMasks.of(labels)
    assert masks.inner_mouth[0].nonzero()[:, 0].tolist() == [Region.INNER_MOUTH]
    assert masks.lips_outline[0].nonzero()[:, 0].tolist() == [Region.LIPS, Region.INNER_MOUTH]
    assert masks.head[0].nonzero()[:, 0].tolist() == [1, 2, 3, 4, 5]
    empty = RegionMasks.of(torch.zeros(8, 8, dtype=torch.uint8))
    assert empty.head.sum() == 0 and torch.isfinite(empty.color_weight).all()


def test_growing_respects_the_budget_and_prunes_the_transparent() -> None:
    scores, opacities = torch.arange(100.0), torch.full((100,), 0.5)
    opacities[:10] = 0.001
    change = densify.plan_round(scores, opacities, budget=92)
    assert change.kept.tolist() == list(range(10, 100))
    assert sorted(change.parents.tolist()) == [98, 99]
    assert len(densify.plan_round(scores, opacities * 0, budget=100).kept) == 100


def test_new_rows_start_without_momentum() -> None:
    adam = RowAdam({"a": torch.ones(3, 2, requires_grad=True)})
    adam.params["a"].grad = torch.ones(3, 2)
    adam.step({"a": 0.1})
    adam.replace("a", torch.zeros(4, 2), torch.tensor([2, 0]), 0)
    state = adam.state()
    assert state["exp_avg.a"][:2].abs().min() > 0 and state["exp_avg.a"][2:].abs().max() == 0
    again = RowAdam.load(state, ("a",)).state()
    assert all(torch.equal(state[k], again[k]) for k in state)


def test_draws_repeat_with_the_generator_and_leave_validation_out(tiny_clip: Clip) -> None:
    batches = Batches(tiny_clip, 64)

    def indices() -> list[int]:
        generator = torch.Generator().manual_seed(3)
        return [batches.draw(generator, full_size=False).frame.index for _ in range(20)]

    assert indices() == indices()
    held = {s.frame.index for s in batches.validation()}
    assert not held & set(indices())


def test_crops_are_the_full_frame_seen_through_a_window(tiny_clip: Clip) -> None:
    sample = Batches(tiny_clip, 128).draw(torch.Generator().manual_seed(0), full_size=True)
    assert sample.frame.image.shape == (128, 128, 3)
    full = tiny_clip.frame(sample.frame.index)
    shift = tiny_clip.camera(0).K[:2, 2] - sample.frame.camera.K[:2, 2]
    left, top = (int(v) for v in shift)
    expected = torch.from_numpy(full[top : top + 128, left : left + 128].copy()).float() / 255
    assert torch.equal(sample.frame.image, expected)
