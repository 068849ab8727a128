"""The native libraries: which there are, which this machine can run, and their C interface.

They are plain shared libraries without torch in them, built by ``setup.py`` and loaded with ctypes
from this folder. They start helper threads of their own for the length of a call.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from ctypes import POINTER, c_float, c_int32, c_int64, c_void_p
from functools import lru_cache
from pathlib import Path

import torch

from gsavatar.errors import InputError

ABI = 9
RECORD, COVER, MOMENTS, TILE, CHUNK, CHANNELS = 16, 4, 10, 16, 256, 8
"""Sizes fixed by ``cuda_ext/include/abi.h``."""

FOLDER = Path(__file__).parent
ISAS = ("base", "avx2", "avx512")  # by the level that gsa_cpu_level returns


class NativeUnavailable(InputError, RuntimeError):
    """No native library can serve the call; the message says why and what to do."""


def _structure(name: str, layout: str) -> type[ctypes.Structure]:
    """A ctypes mirror of a C struct, from lines of ``kind: field field …``."""
    kinds = {"pointer": c_void_p, "int32": c_int32, "int64": c_int64, "float": c_float}
    fields = [
        (field, kinds[kind])
        for line in layout.strip().splitlines()
        for kind, names in [line.split(":")]
        for field in names.split()
        for kind in [kind.strip()]
    ]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


Raster = _structure(
    "Raster",
    """
    pointer: means quats scales opacities colors world_to_cam K background screen_probe branch
    int32: count width height background_is_image threads
    pointer: parts sh
    int32: part_count terms
    pointer: records cover order
    int32: visible
    int64: pairs
    pointer: pair_start scratch tile_start tile_counts list blocks rgb alpha branch_alpha depth
    pointer: channels extras
    int32: channel_count
    """,
)

RasterGrad = _structure(
    "RasterGrad",
    """
    pointer: rgb alpha branch_alpha depth slots partial
    pointer: means quats scales opacities colors world_to_cam K background screen_probe
    pointer: extras channel_slots channels
    """,
)

Motion = _structure(
    "Motion",
    """
    pointer: means quats scales basis coefficients
    int32: count coefficient_count threads
    float: mean_unit
    pointer: out_means out_quats out_scales
    """,
)

MotionGrad = _structure(
    "MotionGrad",
    """
    pointer: out_means out_quats out_scales partial means quats scales basis coefficients
    """,
)

PoseArguments = _structure(
    "PoseArguments",
    """
    pointer: means quats turn shift share
    int32: count threads
    pointer: out_means out_quats
    """,
)

PoseGrad = _structure(
    "PoseGrad", "pointer: out_means out_quats partial means quats turn shift share"
)


class Part(ctypes.Structure):
    """Mirror of ``gsa_part``."""

    _fields_ = [
        ("motion", Motion), ("pose", PoseArguments), ("scale_min", c_float), ("scale_max", c_float),
        ("turns_sh", c_int32),
    ]  # fmt: skip


ShArguments = _structure(
    "ShArguments",
    """
    pointer: means sh centre
    int32: count terms threads
    pointer: colors
    """,
)

ShGrad = _structure("ShGrad", "pointer: colors partial means sh centre")

SsimArguments = _structure(
    "SsimArguments",
    """
    pointer: a b mask
    int32: height width threads
    pointer: scratch sums value v_a
    """,
)
SSIM_ROWS = 69

_SIGNATURES = {
    "gsa_project": [POINTER(Raster)],
    "gsa_composite": [POINTER(Raster)],
    "gsa_channels": [POINTER(Raster)],
    "gsa_raster_bwd": [POINTER(Raster), POINTER(RasterGrad)],
    "gsa_blend": [POINTER(Motion)],
    "gsa_blend_bwd": [POINTER(Motion), POINTER(MotionGrad)],
    "gsa_pose": [POINTER(PoseArguments)],
    "gsa_pose_bwd": [POINTER(PoseArguments), POINTER(PoseGrad)],
    "gsa_sh": [POINTER(ShArguments)],
    "gsa_sh_bwd": [POINTER(ShArguments), POINTER(ShGrad)],
    "gsa_ssim": [POINTER(SsimArguments)],
    "gsa_scaled": [c_void_p, c_void_p, c_void_p, c_int64, c_int32],
}


def _open(path: Path) -> ctypes.CDLL:
    """The library at ``path``. Raises ``NativeUnavailable`` if it is missing, broken or stale."""
    if not path.exists():
        raise NativeUnavailable(
            f"{path.name}: the kernels are not built; run pip install again with a C++ compiler."
        )
    try:
        library = ctypes.CDLL(str(path))
        abi = library.gsa_abi()
    except (OSError, AttributeError) as error:
        raise NativeUnavailable(f"{path.name} does not load ({error})") from error
    if abi != ABI:
        raise NativeUnavailable(
            f"{path.name} has interface {abi}, this code needs {ABI}; run pip install again"
        )
    for name, arguments in _SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, c_int32
    library.gsa_fma.argtypes, library.gsa_fma.restype = [c_int64], c_float
    library.gsa_count_contributions.argtypes = [POINTER(Raster)]
    library.gsa_count_contributions.restype = c_int64
    return library


def library_path(isa: str) -> Path:
    """Where the library of one instruction set lies if it is built."""
    return FOLDER / f"libgsavatar_cpu_{isa}.so"


@lru_cache(maxsize=1)
def machine_isa() -> str:
    """The best instruction set of this machine: ``avx512``, ``avx2`` or ``base``."""
    return ISAS[_open(library_path("base")).gsa_cpu_level()]


def chosen_isa() -> str:
    """The instruction set to use: ``GSAVATAR_ISA``, else the best that is built and runs here.

    Raises ``ValueError`` for an unknown name and ``NativeUnavailable`` for one the CPU lacks.
    """
    return _isa_for(os.environ.get("GSAVATAR_ISA", ""))


@lru_cache(maxsize=len(ISAS) + 1)
def _isa_for(forced: str) -> str:
    if forced and forced not in ISAS:
        raise ValueError(f"GSAVATAR_ISA={forced} is unknown; use one of {', '.join(ISAS)}")
    level = ISAS.index(machine_isa())
    if forced:
        if ISAS.index(forced) > level:
            raise NativeUnavailable(f"GSAVATAR_ISA={forced}, but this CPU ends at {ISAS[level]}")
        return forced
    return next(isa for isa in reversed(ISAS[: level + 1]) if library_path(isa).exists())


@lru_cache(maxsize=len(ISAS))
def _cpu_of(isa: str) -> ctypes.CDLL:
    return _open(library_path(isa))


def cpu() -> ctypes.CDLL:
    """The CPU library in use. Raises ``NativeUnavailable`` when there is none."""
    return _cpu_of(chosen_isa())


@lru_cache(maxsize=1)
def _is_built() -> bool:
    return library_path("base").exists()


def present() -> bool:
    """Whether a CPU library is built and loads; a wrong ``GSAVATAR_ISA`` still raises."""
    return _is_built() and cpu() is not None


_kept_threads: ContextVar[int | None] = ContextVar("threads of native calls", default=None)


@contextmanager
def torch_on_one_thread() -> Iterator[None]:
    """Meanwhile torch's own operators run on one thread, native calls on as many as before.

    A training step has hundreds of small operators: waking a second thread for each costs more than
    it brings (on two cores a step takes a sixth less time without).
    """
    before = torch.get_num_threads()
    token = _kept_threads.set(threads())
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        _kept_threads.reset(token)


def threads() -> int:
    """Threads of a native call: ``GSAVATAR_THREADS``, else as many as torch uses."""
    forced = os.environ.get("GSAVATAR_THREADS", "")
    if not forced:
        return _kept_threads.get() or torch.get_num_threads()
    if not forced.isdigit() or int(forced) < 1:
        raise ValueError(f"GSAVATAR_THREADS={forced} must be a whole number from 1")
    return min(int(forced), 256)


@lru_cache(maxsize=1)
def memory() -> int:
    """Bytes of this machine's memory; without bound where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 2**63 - 1


def pointer(tensor: torch.Tensor | None) -> int | None:
    """The address of a contiguous tensor's data; None stays None."""
    return None if tensor is None else tensor.data_ptr()
