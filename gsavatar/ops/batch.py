"""Leading batch axes of an op's inputs: which there are, and the inputs of each element."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

Inputs = Mapping[str, Tensor | None]


def axes_of(inputs: Inputs, own: Mapping[str, int]) -> tuple[int, ...]:
    """The common batch axes of the inputs; ``own`` is how many axes each has by itself.

    Inputs without batch axes are shared by all elements. Raises ``ValueError`` if the axes differ.
    """
    found = {
        name: tuple(tensor.shape[: tensor.dim() - own[name]])
        for name, tensor in inputs.items()
        if isinstance(tensor, Tensor) and tensor.dim() > own[name]
    }
    axes = set(found.values())
    if len(axes) > 1:
        listed = ", ".join(f"{name} {list(shape)}" for name, shape in found.items())
        raise ValueError(f"batch axes must agree or be absent, got {listed}")
    return axes.pop() if axes else ()


def elements(
    inputs: Inputs, own: Mapping[str, int], axes: tuple[int, ...]
) -> Iterator[dict[str, Any]]:
    """The inputs of one batch element after the other; gradients add up in what they share."""
    count = torch.Size(axes).numel()
    flat = {
        name: tensor.flatten(0, len(axes) - 1).unbind(0)
        if isinstance(tensor, Tensor) and tensor.dim() > own[name]
        else (tensor,) * count
        for name, tensor in inputs.items()
    }
    for i in range(count):
        yield {name: parts[i] for name, parts in flat.items()}


def joined(parts: list[Tensor], axes: tuple[int, ...]) -> Tensor:
    """The elements' results [*axes, …]. Raises ``ValueError`` for an empty batch."""
    if not parts:
        raise ValueError(f"the batch axes {list(axes)} hold nothing")
    return torch.stack(parts).unflatten(0, axes)
