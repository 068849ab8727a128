"""Which kernels this installation has, which it uses, and why not the others."""

from __future__ import annotations

from typing import Any

import torch

from gsavatar.ops import cuda_backend, gsplat_backend, native


def available() -> dict[str, Any]:
    """Facts for ``gsavatar doctor``; never raises.

    ``native`` is the instruction set in use (None without a library), ``libraries`` those built,
    ``machine`` the best this CPU has, ``threads`` per call, ``multithreaded`` whether more than one
    works,
    ``cuda`` whether the CUDA library is built and a device is there, ``gsplat`` its usable version,
    ``backend`` what ``backend="auto"`` takes on a CPU, and ``why`` the reasons for what is missing.
    """
    why: dict[str, str] = {}
    facts: dict[str, Any] = {
        "native": None,
        "libraries": [isa for isa in native.ISAS if native.library_path(isa).exists()],
        "machine": None,
        "threads": torch.get_num_threads(),
        "multithreaded": False,
    }
    try:
        facts["machine"] = native.machine_isa()
        facts["native"] = native.chosen_isa()
        facts["threads"] = native.threads()
        facts["multithreaded"] = bool(native.cpu().gsa_has_threads())
    except (native.NativeUnavailable, ValueError) as error:
        why["native"] = str(error)
    no_cuda = cuda_backend.why_not()
    facts["cuda"] = no_cuda is None
    if no_cuda is not None:
        why["cuda"] = no_cuda
    no_gsplat = gsplat_backend.why_not()
    facts["gsplat"] = gsplat_backend.version() if no_gsplat is None else None
    if no_gsplat is not None:
        why["gsplat"] = no_gsplat
    facts["backend"] = "native" if facts["native"] else "torch"
    facts["why"] = why
    return facts
