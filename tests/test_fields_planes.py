"""Planes of grids: read by torch and by tinycudann's rules alike."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from gsavatar import fields_planes
from gsavatar.errors import InputError
from gsavatar.fields import PLANE_LEVELS
from gsavatar.fields_planes import AXES, COARSEST, INSIDE, Levels, read_planes
from gsavatar.types import Branch

BRANCHES = (Branch.FACE, Branch.MOUTH)


class Encoding(torch.nn.Module):
    """tinycudann's dense grid encoding, written after its documentation, a point at a time.

    Single precision throughout; nodes are numbered x first, levels begin at multiples of eight,
    and a node beyond a level's last wraps around.
    """

    def __init__(self, dims: int, config: dict[str, Any], dtype: torch.dtype) -> None:
        super().__init__()
        assert (dims, dtype) == (2, torch.float32)
        assert config["otype"] == "Grid" and config["type"] == "Dense"
        assert config["interpolation"] == "Linear" and config["n_features_per_level"] == 1
        base, growth = torch.tensor(float(config["base_resolution"])), config["per_level_scale"]
        octaves = torch.tensor(math.log2(growth), dtype=torch.float32)
        self.scales = [
            float(torch.exp2(level * octaves) * base - 1.0) for level in range(config["n_levels"])
        ]
        self.sides = [math.ceil(scale) + 1 for scale in self.scales]
        self.starts = [0]
        for side in self.sides:
            self.starts.append(self.starts[-1] + -(-(side**2) // 8) * 8)
        self.params = torch.nn.Parameter(torch.full((self.starts[-1],), float("nan")))

    def forward(self, at: Tensor) -> Tensor:
        assert at.dtype == torch.float32 and self.params.shape == (self.starts[-1],)
        rows = []
        for x, y in at:
            values = []
            for level, scale in enumerate(self.scales):
                side, start = self.sides[level], self.starts[level]
                room = self.starts[level + 1] - start
                u, v = x * scale + 0.5, y * scale + 0.5
                i, j = int(u.floor()), int(v.floor())
                a, b = u - i, v - j
                corner = [
                    self.params[start + (i + p + (j + q) * side) % room]
                    for q in (0, 1) for p in (0, 1)
                ]  # fmt: skip
                low = (1 - a) * corner[0] + a * corner[1]
                high = (1 - a) * corner[2] + a * corner[3]
                values.append((1 - b) * low + b * high)
            rows.append(torch.stack(values))
        return torch.stack(rows)


@pytest.fixture
def tinycudann(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Stands for the package, which needs a GPU."""
    module = ModuleType("tinycudann")
    module.Encoding = Encoding  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tinycudann", module)
    fields_planes._encoding.cache_clear()
    yield
    fields_planes._encoding.cache_clear()


def grids(levels: Levels) -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    return [
        torch.randn(len(AXES), 1, side, side, generator=generator).requires_grad_()
        for side in levels.sides
    ]


def places(count: int, reach: float = INSIDE) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return (reach * (2 * torch.rand(count, 3, generator=generator) - 1)).requires_grad_()


@pytest.mark.parametrize("kind", BRANCHES)
def test_no_level_hangs_on_rounding(kind: Branch) -> None:
    levels = PLANE_LEVELS[kind]
    assert levels.scales[0] == COARSEST - 1
    apart = [abs(scale - round(scale)) for scale in levels.scales[1:]]
    assert min(apart) > 1e-3
    # The last node that is asked for, at the edge of what is read, is there.
    edge = 0.5 * (INSIDE + 1)
    for scale, side in zip(levels.scales, levels.sides, strict=True):
        assert math.floor(edge * scale + 0.5) + 1 <= side - 1


@pytest.mark.parametrize("kind", BRANCHES)
def test_torch_and_tinycudann_read_the_same(kind: Branch, tinycudann: None) -> None:
    levels, where = PLANE_LEVELS[kind], places(12)
    own = grids(levels)
    unit = 0.5 * (where + 1)
    at = torch.stack([unit[:, list(axes)] for axes in AXES])
    one, other = (
        read(own, at, levels)
        for read in (fields_planes._read_by_torch, fields_planes._read_by_tinycudann)
    )
    assert one.shape == (12, 36) and one.std() > 0.3
    torch.testing.assert_close(one, other, atol=2e-4, rtol=1e-4)
    weigh = torch.randn(one.shape, generator=torch.Generator().manual_seed(6))
    by_torch = torch.autograd.grad((one * weigh).sum(), [where, *own], retain_graph=True)
    by_other = torch.autograd.grad((other * weigh).sum(), [where, *own])
    for a, b in zip(by_torch, by_other, strict=True):
        assert a.any()
        torch.testing.assert_close(a, b, atol=2e-3, rtol=1e-3)


def test_a_ramp_is_read_as_it_is_and_nothing_outside() -> None:
    levels = PLANE_LEVELS[Branch.FACE]
    own = []
    for scale, side in zip(levels.scales, levels.sides, strict=True):
        u = (torch.arange(side) - 0.5) / scale  # coordinate of each node
        planes = [u[None].expand(side, side), u[:, None].expand(side, side), torch.ones(side, side)]
        own.append(torch.stack(planes)[:, None])
    where = places(50).detach()
    code = read_planes(own, where, levels).reshape(50, 3, len(levels.sides))
    unit = 0.5 * (where + 1)
    torch.testing.assert_close(code[:, 0], unit[:, :1].expand(50, 12), atol=1e-5, rtol=0)  # x
    torch.testing.assert_close(code[:, 1], unit[:, 2:].expand(50, 12), atol=1e-5, rtol=0)  # z
    torch.testing.assert_close(code[:, 2], torch.ones(50, 12))
    out = where.clone()
    out[:, 1] = INSIDE + 0.01
    assert not read_planes(own, out, levels).any()


def test_who_reads_is_chosen_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    levels, where = PLANE_LEVELS[Branch.FACE], places(3)
    usual = read_planes(grids(levels), where, levels)
    monkeypatch.setenv("GSAVATAR_PLANES", "tinycudann")
    # It has no CPU side: there torch reads, and gives the same.
    torch.testing.assert_close(read_planes(grids(levels), where, levels), usual)
    monkeypatch.setitem(sys.modules, "tinycudann", None)
    fields_planes._encoding.cache_clear()
    with pytest.raises(InputError, match=r"tinycudann is not installed; .* unset GSAVATAR_PLANES"):
        fields_planes._encoding(levels, -1)
    monkeypatch.setenv("GSAVATAR_PLANES", "nerfacc")
    with pytest.raises(InputError, match="no such reader of planes; set torch or tinycudann"):
        read_planes(grids(levels), where, levels)
