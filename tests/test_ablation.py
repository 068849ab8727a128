"""The ablation's embeddings: they begin as our model does, learn, grow with the cloud, resume."""

from __future__ import annotations

import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from benchmarks.ablation_embedding import KINDS, EmbeddingRecipe
from gsavatar.clip import Clip
from gsavatar.config import TrainSettings, load_preset
from gsavatar.train import LinearRecipe, train
from gsavatar.train_state import TrainState, load_checkpoint
from gsavatar.types import Branch, Drive


def settings() -> TrainSettings:
    return replace(
        load_preset("preview").train, model="embedding", size=64, steps=60, gaussians_max=700,
        face_init=300, mouth_init=80, torso_init=120, checkpoint_every=35, validate_every=60,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def growing_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Growth that even so short a fit sees, at the steps 20 and 40."""
    monkeypatch.setattr("gsavatar.train.GROW_EVERY", 20)


class Watched(EmbeddingRecipe):
    """The recipe, with the loss of every step."""

    losses: tuple[float, ...] = ()

    def step(self, state: TrainState) -> float:
        self.losses += (super().step(state),)
        return self.losses[-1]


def fit(clip: Clip, folder: Path) -> tuple[TrainState, tuple[float, ...]]:
    """The last state and the losses of a fit that goes on from a checkpoint in ``folder``."""
    recipe = Watched(clip, settings())
    train(clip, settings(), folder, recipe=recipe)
    state = load_checkpoint(folder, asdict(settings()))
    assert state is not None and state.step == settings().steps
    return state, recipe.losses


def test_an_untrained_decoder_leaves_the_face_models_shapes(tiny_clip: Clip) -> None:
    recipes = EmbeddingRecipe(tiny_clip, settings()), LinearRecipe(tiny_clip, settings())
    drive = Drive(torch.tensor([0.5, 0.2]), torch.eye(4))
    rest = Drive(torch.zeros(2), torch.eye(4))
    ours, linear = (recipe.avatar(recipe.start()) for recipe in recipes)
    moved = (ours(drive).means - ours(rest).means).detach()
    assert float(moved.abs().max()) > 0.005  # metres
    for name in ("means", "quats", "scales", "opacities", "sh"):
        torch.testing.assert_close(getattr(ours(drive), name), getattr(linear(drive), name))


def test_a_child_moves_as_its_parent(tiny_clip: Clip) -> None:
    recipe = EmbeddingRecipe(tiny_clip, settings())
    state = recipe.start()
    for kind in KINDS:
        params = state.adam.params
        count = len(params[f"{kind.name}.means"])
        with torch.no_grad():
            params[f"{kind.name}.basis.embedding"][:, 0] = torch.arange(count)
            params[f"{kind.name}.raw_opacities"][:10] = -9.0  # these are pruned
        state.seeds[kind.name][0, :, 0] = torch.arange(count)
        state.meters[kind.name].sum += torch.rand(count, generator=state.generator)
    state.step = 20
    recipe.grow(state)
    for kind in KINDS:
        rows = state.adam.params[f"{kind.name}.basis.embedding"][:, 0]
        assert len(rows) == len(state.adam.params[f"{kind.name}.means"])
        assert torch.equal(rows, state.seeds[kind.name][0, :, 0])
        assert rows.min() == 10 and len(rows.unique()) < len(rows)


def test_embeddings_learn_and_a_killed_run_ends_bit_equal(tiny_clip: Clip, tmp_path: Path) -> None:
    whole, losses = fit(tiny_clip, tmp_path / "whole")
    assert sum(losses[-20:]) < 0.8 * sum(losses[:20])
    assert sum(len(whole.head_weights[kind.name]) for kind in Branch) > 500
    start = EmbeddingRecipe(tiny_clip, settings()).start().adam.params
    for kind in KINDS:
        for part in ("embedding", "weight.0", "weight.2", "bias.2"):
            name = f"{kind.name}.basis.{part}"
            before, after = start[name], whole.adam.params[name]
            assert before.shape != after.shape or not torch.equal(before, after), name

    checkpoint = Path("checkpoints", "step_0000035.safetensors")  # the cloud grows once more
    (tmp_path / "killed" / "checkpoints").mkdir(parents=True)
    shutil.copy(tmp_path / "whole" / checkpoint, tmp_path / "killed" / checkpoint)
    resumed, again = fit(tiny_clip, tmp_path / "killed")
    assert again == losses[35:]
    for name, value in whole.adam.state().items():
        assert torch.equal(resumed.adam.state()[name], value), name
