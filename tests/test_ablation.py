"""The ablation's embeddings: they begin as our model does, learn, grow with the cloud, resume."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import torch

from benchmarks.ablation_embedding import KINDS, EmbeddingRecipe
from gsavatar.clip import Clip
from gsavatar.config import TrainSettings, load_preset
from gsavatar.train import LinearRecipe, train
from gsavatar.train_state import TrainState, load_checkpoint
from gsavatar.types import Branch, Drive


def settings() -> TrainSettings:
    return replace(
        load_preset("preview").train, model="embedding", size=64, steps=150, gaussians_max=700,
        face_init=300, mouth_init=80, torso_init=120, checkpoint_every=95, validate_every=75,
    )  # fmt: skip


def fit(clip: Clip, folder: Path) -> TrainState:
    """The last state of a small fit, which goes on from a checkpoint in ``folder``."""
    train(clip, settings(), folder, recipe=EmbeddingRecipe(clip, settings()))
    state = load_checkpoint(folder, asdict(settings()))
    assert state is not None and state.step == settings().steps
    return state


def test_an_untrained_decoder_leaves_the_face_models_shapes(tiny_clip: Clip) -> None:
    recipes = EmbeddingRecipe(tiny_clip, settings()), LinearRecipe(tiny_clip, settings())
    drive = Drive(torch.tensor([0.5, 0.2]), torch.eye(4))
    rest = Drive(torch.zeros(2), torch.eye(4))
    ours, linear = (recipe.avatar(recipe.start()) for recipe in recipes)
    assert float((ours(drive).means - ours(rest).means).abs().max()) > 0.005  # metres
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
    state.step = 100
    recipe.grow(state)
    for kind in KINDS:
        rows = state.adam.params[f"{kind.name}.basis.embedding"][:, 0]
        assert len(rows) == len(state.adam.params[f"{kind.name}.means"])
        assert torch.equal(rows, state.seeds[kind.name][0, :, 0])
        assert rows.min() == 10 and len(rows.unique()) < len(rows)


def test_embeddings_learn_and_a_killed_run_ends_bit_equal(tiny_clip: Clip, tmp_path: Path) -> None:
    whole = fit(tiny_clip, tmp_path / "whole")
    log = (tmp_path / "whole" / "train_log.jsonl").read_text()
    losses = [json.loads(line)["loss"] for line in log.splitlines()]
    assert losses[1] < losses[0]
    assert sum(len(whole.head_weights[kind.name]) for kind in Branch) > 500
    start = EmbeddingRecipe(tiny_clip, settings()).start().adam.params
    for kind in KINDS:
        for part in ("embedding", "weight.0", "weight.2", "bias.2"):
            name = f"{kind.name}.basis.{part}"
            before, after = start[name], whole.adam.params[name]
            assert before.shape != after.shape or not torch.equal(before, after), name

    checkpoint = Path("checkpoints", "step_0000095.safetensors")  # before the cloud grows
    (tmp_path / "killed" / "checkpoints").mkdir(parents=True)
    shutil.copy(tmp_path / "whole" / checkpoint, tmp_path / "killed" / checkpoint)
    resumed = fit(tiny_clip, tmp_path / "killed").adam.state()
    for name, value in whole.adam.state().items():
        assert torch.equal(resumed[name], value), name
