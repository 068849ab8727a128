"""Trainable Gaussians of one branch, in the rest frame, before motion."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from gsavatar.ops.evaluate_sh import SH_0

MIN_SCALE_M = 1e-5
MAX_SCALE_M = 0.05


@dataclass(frozen=True)
class RawGaussians:
    """Unconstrained parameters of N Gaussians; the properties give the constrained values."""

    means: Tensor  # [N, 3], metres, rest frame
    raw_quats: Tensor  # [N, 4], wxyz, any length
    log_scales: Tensor  # [N, 3], log metres
    raw_opacities: Tensor  # [N], logit
    sh: Tensor  # [N, S, 3]

    def __len__(self) -> int:
        return self.means.shape[0]

    @property
    def quats(self) -> Tensor:
        return torch.nn.functional.normalize(self.raw_quats, dim=-1)

    @property
    def opacities(self) -> Tensor:
        return self.raw_opacities.sigmoid()

    def parameters(self) -> dict[str, Tensor]:
        """Every trainable tensor by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


def from_points(
    points: Tensor,  # [N, 3]
    colors: Tensor,  # [N, 3], 0-1
    spacing: Tensor,  # [N], metres to the neighbours
    *,
    sh_degree: int,
    opacity: float = 0.5,
) -> RawGaussians:
    """Round Gaussians that just touch their neighbours."""
    count = points.shape[0]
    sh = points.new_zeros(count, (sh_degree + 1) ** 2, 3)
    sh[:, 0] = (colors - 0.5) / SH_0
    quats = points.new_zeros(count, 4)
    quats[:, 0] = 1.0
    log_scales = spacing.clamp(2e-4, 0.02).mul(0.6).log()[:, None].repeat(1, 3)
    raw_opacity = torch.logit(torch.tensor(opacity)).item()
    return RawGaussians(
        points.clone(), quats, log_scales, points.new_full((count,), raw_opacity), sh
    )


def neighbours(points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Distances [N, k] and indices [N, k] of the k nearest other points.

    Fewer where there are fewer points; a single one is its own neighbour at no distance.
    """
    from scipy.spatial import cKDTree

    if len(points) == 1:
        return points.new_zeros(1, 1), torch.zeros(1, 1, dtype=torch.int64, device=points.device)
    places = points.detach().double().cpu().numpy()
    distances, indices = cKDTree(places).query(places, min(k, len(places) - 1) + 1)
    return (
        torch.from_numpy(distances[:, 1:]).to(points),
        torch.from_numpy(indices[:, 1:]).to(points.device),
    )
