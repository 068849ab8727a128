"""A device that is not there: tensors that say they are elsewhere and refuse to meet those here.

What runs on a GPU fails on a machine without one only in this: some tensor was left behind. Here
tensors are wrapped, computed on the CPU and named after a device that no build of torch uses, and
an operation that mixes both kinds is refused, as CUDA refuses it. Values, autograd and everything
that reads a value back work as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

ELSEWHERE = torch.device("lazy")
MOVES = ("aten::_to_copy", "aten::copy_")
SHAPES: dict[str, Callable[..., Any]] = {
    "aten::dim": torch.Tensor.dim,
    "aten::numel": torch.Tensor.numel,
    "aten::size": torch.Tensor.size,
    "aten::sym_numel": torch.Tensor.numel,
    "aten::sym_size": torch.Tensor.size,
    "aten::sym_storage_offset": torch.Tensor.storage_offset,
    "aten::sym_stride": torch.Tensor.stride,
    "aten::is_contiguous": lambda here, *_: here.is_contiguous(),
    "aten::is_non_overlapping_and_dense": lambda here, *_: here.is_contiguous(),
    "aten::is_strides_like_format": lambda *_: False,
}
"""What torch asks about a shape: always the wrapped tensor's, which may be squeezed in place."""


class Elsewhere(torch.Tensor):
    """A tensor of the pretended device around one of the CPU."""

    here: torch.Tensor

    @staticmethod
    def __new__(cls, here: torch.Tensor) -> Elsewhere:
        made: Any = torch.Tensor._make_wrapper_subclass(
            cls, here.shape, strides=here.stride(), storage_offset=here.storage_offset(),
            dtype=here.dtype, device=ELSEWHERE, dispatch_sizes_strides_policy="sizes",
        )  # fmt: skip
        made.here = here
        return made

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _computed(func, args, kwargs or {})


class _Everywhere(TorchDispatchMode):
    """Sees the calls that have no tensor to tell where they belong or move one."""

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return _computed(func, args, kwargs or {})


def _computed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An operation on the CPU, whose results are where those of a real device would be."""
    name = func._schema.name
    if name in SHAPES:
        return SHAPES[name](*tree_map(_here, args))
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    there = [isinstance(t, Elsewhere) for t in tensors]
    if any(there) and name not in MOVES:
        left = [tuple(t.shape) for t in tensors if not isinstance(t, Elsewhere) and t.dim()]
        if left:
            raise RuntimeError(f"{name}: tensors of shapes {left} are here, the others elsewhere")
    away = there[0] if name == "aten::copy_" else any(there)
    device = kwargs.get("device")
    if device is not None:
        away = torch.device(device).type == ELSEWHERE.type
        kwargs = kwargs | {"device": torch.device("cpu")}
    result = func(*tree_map(_here, args), **tree_map(_here, kwargs))
    if name.endswith("_"):
        return args[0] if isinstance(args[0], torch.Tensor) else None
    return tree_map(_there, result) if away else result


def _here(value: Any) -> Any:
    return value.here if isinstance(value, Elsewhere) else value


def _there(value: Any) -> Any:
    return Elsewhere(value) if type(value) is torch.Tensor else value


@contextmanager
def pretended_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """The device, while it can be used; the fused Adam, which asks for it by name, serves it."""
    from torch.optim import optimizer

    served: Callable[[], list[str]] = optimizer._get_fused_kernels_supported_devices
    monkeypatch.setattr(
        optimizer, "_get_fused_kernels_supported_devices", lambda: [*served(), ELSEWHERE.type]
    )
    lifts = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # ``new_tensor`` makes its values here, then moves
    try:
        with _Everywhere():
            yield ELSEWHERE
    finally:
        torch._C._set_only_lift_cpu_tensors(lifts)
