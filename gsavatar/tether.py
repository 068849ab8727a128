"""Keeps Gaussians where only views from beside would keep them.

From the front a Gaussian looks the same wherever it lies on its pixel's ray; from beside, those
that drifted along it hang off the cheeks as flaps and splinters, and fray the shoulders. The face's
stay near the fitted mesh; the torso's, which has none, at the depth of their neighbours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gsavatar.morphable_surface import nearest_of
from gsavatar.seeding import FACE_PARTS, sample_mesh
from gsavatar.types import FittedFace

SURFACE_POINTS = 30_000
SKIN_SLACK_M, HAIR_SLACK_M = 0.004, 0.03
"""How far Gaussians may lie off the mesh: by what the mesh is wrong, and by the depth of hair."""
LEVEL_SLACK_M = 0.001
"""How far a Gaussian of the torso may lie before or behind its neighbours."""
PULL = 0.2
"""Share of what is beyond the slack that one call takes back."""
PULL_EVERY = 10
"""Training steps from one call to the next."""


class Tether:
    """The surface of a fitted face at rest, as points about 2 mm apart."""

    def __init__(self, face: FittedFace) -> None:
        generator = torch.Generator().manual_seed(0)
        evenly = dict.fromkeys(FACE_PARTS, 1.0)
        self._points = sample_mesh(face, evenly, SURFACE_POINTS, generator).means
        self._nearest = nearest_of(self._points.numpy())

    @torch.no_grad()
    def pull(self, means: Tensor, shapes: Tensor) -> None:
        """Moves means [N, 3] of the head at rest (metres), in place, towards the surface.

        Those that no shape of the seeds ``shapes`` [K, N, C] moves are hair and skull, and have the
        slack of hair.
        """
        here = means.cpu()
        nearest = torch.from_numpy(self._nearest(here.numpy()))
        off = here - self._points[nearest]
        far = off.norm(dim=-1, keepdim=True).clamp_min(1e-9)
        is_hair = (shapes == 0.0).all(-1).all(0).cpu()
        slack = torch.where(is_hair, HAIR_SLACK_M, SKIN_SLACK_M)[:, None]
        means -= (PULL * (1.0 - slack / far).clamp_min(0.0) * off).to(means.device)


@torch.no_grad()
def level(means: Tensor, around: Tensor, view: Tensor) -> None:
    """Moves means [N, 3] (metres), in place, towards the depth of their neighbours ``around``
    [N, M] along the direction ``view`` [3] in which the camera looks."""
    depth = means @ view
    off = depth - depth[around].mean(-1)
    beyond = (1.0 - LEVEL_SLACK_M / off.abs().clamp_min(1e-9)).clamp_min(0.0) * off
    means -= PULL * beyond[:, None] * view
