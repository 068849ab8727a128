"""The ablation's other form of motion: a learnt embedding for every Gaussian, and a small decoder.

Per-Gaussian embeddings (Bae et al. 2024; EmbedTalk for talking heads) give every Gaussian some
numbers of its own, which a network shared by a branch turns, together with what drives the head,
into the Gaussian's offsets. Losses, stages, draws, growth and learning rates are those of our own
model, so that a comparison speaks of the form of the motion alone:

- the fitted face model's shapes are added to what the decoder gives, which starts at zero: both
  forms begin with the same moving face;
- as a basis returns to its seed, the decoder's last layer returns to zero by the same share;
- as a basis approaches its neighbours', the embeddings do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import linear

from gsavatar.avatar import Avatar, AvatarBranch
from gsavatar.densify import BRANCH_AXES
from gsavatar.gaussians import RawGaussians
from gsavatar.motion import MEANS_UNIT_M, LinearMotion, Motion
from gsavatar.optimizer import RowAdam
from gsavatar.train import REGULARISE_EVERY, SPLATS, LinearRecipe, stage_at
from gsavatar.train_state import TrainState
from gsavatar.types import Branch, Drive, Offsets

EMBEDDING = 16
WIDTH = 64
OUTPUTS = 9
PLACE_M = 0.03
KINDS = (Branch.FACE, Branch.MOUTH)
NAMES = ("embedding", "weight.0", "bias.0", "weight.1", "bias.1", "weight.2", "bias.2")


@dataclass(frozen=True)
class EmbeddingMotion:
    """The fitted model's shapes and what a network makes of embedding and coefficients."""

    parameters: dict[str, Tensor]  # as ``NAMES`` says; the embedding is [N, 16]
    seed: Tensor  # [K, N, 3]: the fitted model's displacement in metres

    def offsets(self, means: Tensor, drive: Drive) -> Offsets:
        """``Motion``: the offsets belong to the Gaussians, wherever their means are."""
        del means
        p, coefficients = self.parameters, drive.coefficients
        count = self.seed.shape[1]
        seeded = (coefficients @ self.seed.flatten(1)).unflatten(-1, (count, 3))
        # The first layer sees [embedding, coefficients]; its halves are multiplied apart, since
        # the coefficients are the same for all Gaussians.
        own, common = p["weight.0"].split((EMBEDDING, coefficients.shape[-1]), dim=1)
        x = linear(p["embedding"], own) + linear(coefficients, common, p["bias.0"])[..., None, :]
        for layer in (1, 2):
            x = linear(x.relu(), p[f"weight.{layer}"], p[f"bias.{layer}"])
        moved, rotvecs, log_scales = x.split(3, dim=-1)
        return Offsets(seeded + MEANS_UNIT_M * moved, rotvecs, log_scales)


def new_parameters(means: Tensor, inputs: int, generator: torch.Generator) -> dict[str, Tensor]:
    """An untrained network of ``inputs`` that decodes zero for Gaussians at ``means`` [N, 3].

    Embeddings begin as waves over the place, about a decimetre long: neighbours start alike, as
    they do in a seeded basis. In a schedule as short as ours, embeddings that begin at zero leave
    turning and stretching nearly unlearnt.
    """
    waves = torch.randn(3, EMBEDDING, generator=generator) / PLACE_M
    phases = 2.0 * math.pi * torch.rand(EMBEDDING, generator=generator)
    parameters = {"embedding": (means @ waves + phases).sin()}
    for layer, (a, b) in enumerate(pairwise((inputs, WIDTH, WIDTH, OUTPUTS))):
        bound = 0.0 if layer == 2 else 1.0 / math.sqrt(a)
        parameters[f"weight.{layer}"] = bound * (2.0 * torch.rand(b, a, generator=generator) - 1.0)
        parameters[f"bias.{layer}"] = torch.zeros(b)
    return parameters


class EmbeddingRecipe(LinearRecipe):
    """``train.Recipe``: our own, with face and mouth moved by embeddings; the torso stays linear.

    The tensors are called ``basis.*``: what a stage says of the basis holds for them too.
    """

    axes: ClassVar[dict[str, int]] = {**BRANCH_AXES, "basis.embedding": 0}

    def start(self) -> TrainState:
        """``Recipe``: our own seeds, with a network in place of each basis."""
        state = super().start()
        params = dict(state.adam.params)
        for kind in KINDS:
            coefficients = len(params.pop(f"{kind.name}.basis"))
            means = params[f"{kind.name}.means"].detach()
            own = new_parameters(means, EMBEDDING + coefficients, state.generator)
            params |= {f"{kind.name}.basis.{k}": v.requires_grad_() for k, v in own.items()}
        state.adam = RowAdam(params)
        return state

    def avatar(self, state: TrainState) -> Avatar:
        """``Recipe``."""
        branches = []
        for kind in Branch:
            params = state.adam.params
            raw = RawGaussians(**{key: params[f"{kind.name}.{key}"] for key in SPLATS})
            seed = state.seeds[kind.name]
            motion: Motion
            if kind in KINDS:
                own = {name: params[f"{kind.name}.basis.{name}"] for name in NAMES}
                motion = EmbeddingMotion(own, seed)
            else:
                motion = LinearMotion(params[f"{kind.name}.basis"], seed)
            branches.append(AvatarBranch(kind, raw, motion, state.head_weights[kind.name]))
        return Avatar(self.clip.track.face.names, tuple(branches))

    def step(self, state: TrainState) -> float:
        """``Recipe``."""
        loss = super().step(state)
        stage = stage_at(state.step / self.settings.steps)
        if "basis" in stage.learns and state.step % REGULARISE_EVERY == 0:
            self._regularise(state)
        return loss

    @torch.no_grad()
    def _regularise(self, state: TrainState) -> None:
        """What ``motion.regularise`` does to a basis, done to embeddings and decoders."""
        pull = REGULARISE_EVERY * self.settings.basis_pull
        blend = REGULARISE_EVERY * self.settings.basis_blend
        for kind in KINDS:
            own = {name: state.adam.params[f"{kind.name}.basis.{name}"] for name in NAMES}
            own["weight.2"].mul_(1.0 - pull)
            own["bias.2"].mul_(1.0 - pull)
            embedding = own["embedding"]
            embedding.lerp_(embedding[state.around[kind.name]].mean(1), blend)
