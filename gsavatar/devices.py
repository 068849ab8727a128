"""Where training computes, by name and in words."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

from gsavatar.errors import InputError
from gsavatar.ops import cuda_backend, gsplat_backend, native


def training_device(wanted: str) -> str:
    """``"cpu"`` or ``"cuda"`` for what ``--device`` says; auto is the CPU until CUDA is proven.

    Raises ``InputError`` where CUDA is wanted, or else the CPU's kernels, and cannot be used.
    """
    if wanted != "cuda":
        native.cpu()
        return "cpu"
    if not torch.cuda.is_available():
        raise InputError("--device cuda: no CUDA device is visible here; use --device cpu.")
    why = cuda_backend.why_not()
    if why is not None and gsplat_backend.why_not() is not None:
        raise InputError(
            f"--device cuda: {why}; install gsavatar from source with nvcc and GSAVATAR_CUDA=1, "
            "or pip install gsplat, or use --device cpu."
        )
    return "cuda"


def device_words(device: str) -> str:
    """The GPU's name, or the processor's with the cores in use."""
    if device == "cuda":
        return f"cuda, {torch.cuda.get_device_name(0)}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"cpu, {_processor()}, {cores} cores"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.machine() or "unknown processor"
