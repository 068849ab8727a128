"""The short way to an op, for calls that need nothing of torch's dispatcher.

A ``torch.library.custom_op`` can be traced, compiled and exported. For that each call takes about
0.3 ms of Python, and twice that once a kernel has swept the caches: a tenth of a small picture.
Ordinary tensors in an ordinary call go straight to the kernel, with the same functions around it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

PLAIN = (Tensor, torch.nn.Parameter)


def is_plain(arguments: tuple[Any, ...]) -> bool:
    """Whether nobody traces the call: ordinary tensors, no compiler, transform or dispatch mode."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    if _get_current_dispatch_mode() is not None:
        return False
    return all(type(a) in PLAIN for a in arguments if isinstance(a, Tensor))


def shortcut(
    op: Callable[..., Any],
    forward: Callable[..., Any],
    setup: Callable[..., None],
    backward: Callable[..., tuple[Any, ...]],
    visible: int,
) -> Callable[..., Any]:
    """``op`` by the short way wherever a call is plain.

    ``forward`` is what the op runs; ``setup`` and ``backward`` do what those of its
    ``register_autograd`` do. Only the first ``visible`` outputs are returned: torch spends as much
    on one that is just kept for the backward pass. With gradients enabled, which asks for second
    derivatives, ``backward`` must take an op that refuses them.
    """

    class Plain(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *arguments: Any) -> Any:
            """Forward with the context in hand: binding the arguments for a setup takes 50 us."""
            output = forward(*arguments)
            setup(ctx, arguments, output)
            return output[:visible]

        @staticmethod
        def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
            return backward(ctx, *cotangents)

    def call(*arguments: Any) -> Any:
        return Plain.apply(*arguments) if is_plain(arguments) else op(*arguments)[:visible]

    return call
