"""What planes of grids at twelve resolutions hold at a place: the code of TalkingGaussian's field.

Sizes, and which cell a coordinate lies in, are those of Instant-NGP's grids (Mueller et al. 2022,
section 3) where none is large enough to be hashed: level l has ``COARSEST * growth**l`` nodes along
a side, rounded up, and a coordinate u of 0-1 lies ``u * scale + 0.5`` nodes from the first, with
``scale = COARSEST * growth**l - 1``. So torch and tinycudann read the same tensors alike.

torch's ``grid_sample`` serves every device. ``GSAVATAR_PLANES=tinycudann`` has tinycudann, where it
is installed, read them on a CUDA device.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from gsavatar.errors import InputError

LEVELS = 12
COARSEST = 16
AXES = ((0, 1), (1, 2), (0, 2))  # xy, yz, xz
INSIDE = 0.93
"""Share of a plane, from its middle, that is read: no cell beyond its last node is asked for."""
CHOICE = "GSAVATAR_PLANES"
ROW = 8
"""tinycudann begins each level at a multiple of this many numbers."""


@dataclass(frozen=True)
class Levels:
    """The resolutions of one field's planes."""

    finest: float
    """Nodes along a side of the finest level, before rounding. No level may come so near a whole
    number of nodes that single precision could round it to another."""

    @property
    def growth(self) -> float:
        """Ratio of successive resolutions."""
        return float((self.finest / COARSEST) ** (1.0 / (LEVELS - 1)))

    @property
    def scales(self) -> tuple[float, ...]:
        """Of each level, the nodes that the coordinate goes over on its way from 0 to 1."""
        return tuple(COARSEST * self.growth**level - 1.0 for level in range(LEVELS))

    @property
    def sides(self) -> tuple[int, ...]:
        """Nodes along a side of each level."""
        return tuple(math.ceil(scale) + 1 for scale in self.scales)


def read_planes(grids: list[Tensor], places: Tensor, levels: Levels) -> Tensor:
    """What the planes hold at places [N, 3] of -1 to 1, [N, 36]: xy, yz and xz after one another.

    ``grids`` holds one tensor [3, 1, side, side] per level. Zeros outside ``INSIDE``. Raises
    ``InputError`` if ``GSAVATAR_PLANES`` names an unknown reader, or one that is not installed and
    the places are on a CUDA device.
    """
    inside = (places.abs() <= INSIDE).all(dim=-1, keepdim=True)
    unit = 0.5 * (places.clamp(-INSIDE, INSIDE) + 1.0)
    at = torch.stack([unit[:, list(axes)] for axes in AXES])  # [3, N, 2]
    read = _read_by_tinycudann if reader() == "tinycudann" and places.is_cuda else _read_by_torch
    return read(grids, at, levels) * inside


def reader() -> str:
    """Who reads planes on a CUDA device: torch or tinycudann."""
    name = os.environ.get(CHOICE, "torch")
    if name not in ("torch", "tinycudann"):
        raise InputError(f"{CHOICE}={name}: no such reader of planes; set torch or tinycudann.")
    return name


def _read_by_torch(grids: list[Tensor], at: Tensor, levels: Levels) -> Tensor:
    """Codes [N, 36] at coordinates [3, N, 2] of 0-1."""
    codes = []
    for grid, scale, side in zip(grids, levels.scales, levels.sides, strict=True):
        node = at * scale + 0.5
        where = node * (2.0 / (side - 1)) - 1.0  # nodes 0 and side - 1 are at -1 and 1
        codes.append(functional.grid_sample(grid, where[:, :, None], align_corners=True))
    return torch.cat(codes, dim=1)[..., 0].flatten(0, 1).T


def _read_by_tinycudann(grids: list[Tensor], at: Tensor, levels: Levels) -> Tensor:
    """The same from one grid encoding a plane, with the caller's tensors for its own."""
    encoding = _encoding(levels, at.get_device())
    codes = []
    for plane, own in enumerate(at):
        flat = torch.cat([_padded(grid[plane].flatten()) for grid in grids])
        codes.append(torch.func.functional_call(encoding, {"params": flat}, (own,)))
    return torch.cat(codes, dim=1)


def _padded(values: Tensor) -> Tensor:
    return functional.pad(values, (0, -len(values) % ROW))


@cache
def _encoding(levels: Levels, device: int) -> Any:
    """tinycudann's grid encoding of a plane on a CUDA device; its own parameters are never read."""
    try:
        import tinycudann
    except ImportError:
        raise InputError(
            f"{CHOICE}=tinycudann: tinycudann is not installed; install it from its repository "
            f"(github.com/NVlabs/tiny-cuda-nn), or unset {CHOICE}."
        ) from None
    config = {
        "otype": "Grid", "type": "Dense", "n_levels": LEVELS, "n_features_per_level": 1,
        "base_resolution": COARSEST, "per_level_scale": levels.growth, "interpolation": "Linear",
    }  # fmt: skip
    with torch.cuda.device(device):
        return tinycudann.Encoding(2, config, dtype=torch.float32)
