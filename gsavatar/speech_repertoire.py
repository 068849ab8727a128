"""What a person's face does when they speak; predictions are drawn towards it.

A regression that hears an unknown voice, or little of a known one, mixes movements that never go
together. Each prediction is rebuilt from the most similar frames of the clip by weights that sum
to one (locally linear embedding, Roweis and Saul 2000; for faces GeneFace++, Ye et al. 2023). The
mouth's opening, which is predicted for itself, is left as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]

FRAMES = 512
"""Frames of the clip that are kept: bounds time and the size of an avatar."""
NEIGHBOURS = 20
SHARE = 0.6
"""How far a prediction goes towards its reconstruction."""
EASE = 0.01
"""Belief in even weights, as a share of the mean square distance of the neighbours."""
ROWS = 128
"""Predictions rebuilt at once: bounds memory."""


@dataclass(frozen=True)
class Repertoire:
    """Frames of a clip, as K coefficients."""

    frames: Tensor  # [M, K]; M = 0 draws nothing anywhere
    spread: Tensor  # [K], of each coefficient over the clip

    @staticmethod
    def of(values: Array) -> Repertoire:
        """That of a clip's frames [T, K]."""
        rows = np.unique(np.linspace(0, len(values) - 1, min(len(values), FRAMES)).round())
        # Half precision is what the avatar file keeps, so the fit sees the same frames.
        frames = torch.from_numpy(values[rows.astype(int)]).half()
        return Repertoire(frames, torch.from_numpy(values.std(0) + 1e-6).float())

    @staticmethod
    def none(count: int) -> Repertoire:
        """That of a model of K coefficients which has none."""
        return Repertoire(torch.zeros(0, count).half(), torch.ones(count))

    def __call__(self, predicted: Tensor) -> Tensor:
        """Predictions [N, K] or [N, K + 1], the coefficients drawn towards what their neighbours
        can rebuild of them; row by row the same, however many are asked for at once."""
        if len(self.frames) <= NEIGHBOURS:
            return predicted
        k = len(self.spread)
        drawn = [self._drawn(part) for part in predicted[:, :k].split(ROWS)]
        return torch.cat((torch.cat(drawn), predicted[:, k:]), dim=1)

    def _drawn(self, predicted: Tensor) -> Tensor:
        frames, spread = self.frames.double(), self.spread.double()
        own = predicted.double() / spread
        every = frames / spread
        exact = "donot_use_mm_for_euclid_dist"  # a product's rounding hangs on the batch
        away = torch.cdist(own, every, compute_mode=exact)
        near = away.topk(NEIGHBOURS, largest=False).indices
        off = every[near] - own[:, None]
        alike = off @ off.mT
        size = alike.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(1e-12)
        alike = alike + (EASE * size)[:, None, None] * torch.eye(NEIGHBOURS).double()
        weight = torch.linalg.solve(alike, torch.ones(len(own), NEIGHBOURS, 1).double())[..., 0]
        weight = weight / weight.sum(-1, keepdim=True)
        rebuilt = (weight[..., None] * frames[near]).sum(1)
        return torch.lerp(predicted.double(), rebuilt, SHARE).to(predicted.dtype)
