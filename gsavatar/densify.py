"""Growing and pruning: more Gaussians where the picture asks for them, none where unseen.

Two criteria share the room: the mean gradient of the projected mean, as in 3D Gaussian Splatting
(Kerbl et al. 2023, section 5), and the error of the pixels that a Gaussian paints (Rota Bulo et
al., "Revising densification in Gaussian splatting", 2024), which also sees flat patches whose
gradients cancel. (The baseline's recipe measures no errors and grows by gradients alone.)
Thresholds are ranks within a budget, not absolute numbers, so that they do not depend on the clip's
resolution or contrast.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gsavatar.optimizer import RowAdam

SPLIT_SCALE_M = 0.004
SPLIT_SHRINK = 1.6
PRUNE_OPACITY = 0.02
GROW_SHARE = 0.06
"""Largest share of a branch's Gaussians that one round adds."""


@dataclass(frozen=True)
class RowChange:
    """How a round changes the rows of one branch."""

    kept: Tensor  # [M] int64, old rows that stay, in order
    parents: Tensor  # [G] int64, old row of every new Gaussian


class Meter:
    """Mean of something about every Gaussian over the pictures since the last round."""

    def __init__(self, count: int, device: torch.device | str = "cpu") -> None:
        self.sum = torch.zeros(count, device=device)
        self.seen = torch.zeros(count, device=device)

    def add(self, size: Tensor) -> None:
        """Takes the values [N] >= 0 of one picture; it does not show Gaussians of value zero."""
        self.sum += size
        self.seen += (size > 0).float()

    def mean(self) -> Tensor:
        """Mean over the pictures that showed the Gaussian, [N]."""
        return self.sum / self.seen.clamp_min(1.0)


def plan_round(
    scores: tuple[Tensor, ...],  # each [N]
    opacities: Tensor,  # [N]
    *,
    budget: int,
) -> RowChange:
    """Rows to keep and rows to double so that at most ``budget`` Gaussians remain.

    Every score has an equal part of the room; what one does not use is left to the next.
    """
    alive = opacities > PRUNE_OPACITY
    if int(alive.sum()) < 16:  # never prune a branch away: it could not come back
        alive = torch.ones_like(alive)
    kept = alive.nonzero()[:, 0]
    room = min(budget - len(kept), math.ceil(GROW_SHARE * len(kept)))
    parents = [kept[:0]]
    for left, score in zip(range(len(scores), 0, -1), scores, strict=True):
        wanted = torch.where(alive, score, 0.0)
        wanted[torch.cat(parents)] = 0.0
        free = max(room, 0) - sum(len(rows) for rows in parents)
        parents.append(wanted.topk(min(free // left, int((wanted > 0).sum()))).indices)
    return RowChange(kept, torch.cat(parents))


@torch.no_grad()
def apply_round(
    adam: RowAdam,
    branch: str,
    change: RowChange,
    generator: torch.Generator,
    axes: dict[str, int],  # like BRANCH_AXES
) -> None:
    """Rebuilds the branch's parameters and their Adam state for the new rows.

    A large parent is split: both halves shrink and the child moves along a sample of the parent's
    shape. A small one is cloned in place with the opacity shared between the two.
    """
    kept, parents = change.kept, change.parents
    axes = {k: axis for k, axis in axes.items() if f"{branch}.{k}" in adam.params}
    params = {k: adam.params[f"{branch}.{k}"] for k in axes}
    scales = params["log_scales"].exp()
    large = scales.amax(-1) > SPLIT_SCALE_M
    is_parent = torch.zeros_like(large)
    is_parent[parents] = True

    log_scales = params["log_scales"] - math.log(SPLIT_SHRINK) * (is_parent & large)[:, None]
    shared = 1.0 - (1.0 - params["raw_opacities"].sigmoid()).clamp_min(1e-4).sqrt()
    raw_opacities = torch.where(
        is_parent & ~large, torch.logit(shared.clamp(1e-4, 1 - 1e-4)), params["raw_opacities"]
    )
    noise = torch.randn(len(parents), 3, generator=generator).to(scales) * 0.7
    shift = _rotate(params["raw_quats"][parents], noise * scales[parents])
    children = params["means"][parents] + shift
    changed = {**params, "log_scales": log_scales, "raw_opacities": raw_opacities}
    for key, axis in axes.items():
        new = changed[key].index_select(axis, parents) if key != "means" else children
        value = torch.cat((changed[key].index_select(axis, kept), new), dim=axis)
        adam.replace(f"{branch}.{key}", value, kept, axis)


BRANCH_AXES = {
    "means": 0, "raw_quats": 0, "log_scales": 0, "raw_opacities": 0, "sh": 0, "basis": 1,
}  # fmt: skip
"""A branch's trainable tensors and the axis that counts its Gaussians; a field has no basis."""


def _rotate(quats: Tensor, vectors: Tensor) -> Tensor:
    """Vectors [N, 3] turned by quaternions [N, 4] (wxyz, any length)."""
    quats = torch.nn.functional.normalize(quats, dim=-1)
    w, xyz = quats[:, :1], quats[:, 1:]
    t = 2.0 * torch.linalg.cross(xyz, vectors)
    return vectors + w * t + torch.linalg.cross(xyz, t)
