"""Which library serves a tensor, and calling its kernels by name."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import torch
from torch import Tensor

from gsavatar.ops import check, cuda_backend, native

Launch = Callable[..., None]
"""``launch("blend", structure, …)`` runs a kernel, on CUDA in the current stream.

On a CPU it raises ``ValueError`` where an argument holds NaN or infinity."""


def serves(tensor: Tensor) -> bool:
    """Whether there are kernels for tensors like this one; torch serves all others."""
    if tensor.dtype != torch.float32:
        return False
    if tensor.device.type == "cpu":
        return native.present()
    return tensor.device.type == "cuda" and cuda_backend.why_not() is None


def on_cuda(tensor: Tensor) -> bool:
    """Whether the CUDA library serves the tensor, where its scratch differs from the CPU's."""
    return tensor.device.type == "cuda"


def launcher(tensor: Tensor) -> Launch:
    """How to run kernels where the tensor is. Raises ``NativeUnavailable`` without a library."""
    if on_cuda(tensor):
        stream = torch.cuda.current_stream(tensor.device).cuda_stream
        run = launcher_of(cuda_backend.library(), stream)

        def on_device(name: str, *structures: ctypes.Structure) -> None:
            with torch.cuda.device(tensor.device):  # kernels start on the current device
                run(name, *structures)

        return on_device
    library = native.cpu()

    def launch(name: str, *structures: ctypes.Structure) -> None:
        check.raise_for(getattr(library, f"gsa_{name}")(*structures), check.ARGUMENTS.get(name, ()))

    return launch


def launcher_of(library: ctypes.CDLL, stream: int) -> Launch:
    """How to run the kernels of a CUDA library in a stream."""

    def launch(name: str, *structures: ctypes.Structure) -> None:
        cuda_backend.raise_for(getattr(library, f"gsa_cuda_{name}")(*structures, stream))

    return launch
