"""The CUDA library: loading, buffers, and the rasterizer as a differentiable op on its device.

Buffers for (Gaussian, tile) pairs have a fixed capacity, so that the steady state never waits for
the device. The device counts what it wanted; the count is read one step later, without waiting.
After a step that did not fit (its farthest Gaussians are missing) the capacity grows, and
``overflowed`` tells a trainer to repeat it. Malformed values (NaN, unknown branch) are likewise
reported by the step after.

A step captured in a CUDA graph keeps the capacity it was captured with and leaves its counts
in pinned memory at every replay. Run it a few times before, call ``forget_captured``, capture, and
ask ``overflowed`` after replays: if so, capture again.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from gsavatar.ops import native
from gsavatar.ops.cuda_capacity import (
    CAPTURED_CALLS,
    MOST_PAIRS,
    Capacity,
    capacity_of,
    forget_captured,
    overflowed,
)

__all__ = [
    "CAPTURED_CALLS", "MOST_PAIRS", "Capacity", "capacity_of", "declare", "forget_captured",
    "library", "overflowed", "rasterize_op", "run_forward", "why_not",
]  # fmt: skip

LIBRARY = native.FOLDER / "libgsavatar_cuda.so"


class CudaRaster(ctypes.Structure):
    """Mirror of ``gsa_cuda_raster``."""

    _fields_ = [
        ("scene", native.Raster),
        ("capacity", c_int64),
        *((name, c_void_p) for name in
          ("status", "pair_count", "keys", "values", "owner", "temporary")),
        ("temporary_bytes", c_int64),
        ("stream", c_void_p),
    ]  # fmt: skip


_OPS = {
    "blend": (native.Motion, native.MotionGrad),
    "pose": (native.PoseArguments, native.PoseGrad),
    "sh": (native.ShArguments, native.ShGrad),
}


def declare(library: ctypes.CDLL) -> ctypes.CDLL:
    """The library with the argument types of its functions set."""
    library.gsa_cuda_temporary_bytes.argtypes = [c_int32, c_int64, c_int32]
    library.gsa_cuda_temporary_bytes.restype = c_int64
    library.gsa_cuda_forward.argtypes = [POINTER(CudaRaster)]
    library.gsa_cuda_backward.argtypes = [POINTER(CudaRaster), POINTER(native.RasterGrad)]
    for name in ("gsa_cuda_forward", "gsa_cuda_backward"):
        getattr(library, name).restype = c_int32
    for op, (arguments, grad) in _OPS.items():
        forward, backward = (getattr(library, f"gsa_cuda_{op}{end}") for end in ("", "_bwd"))
        forward.argtypes = [POINTER(arguments), c_void_p]
        backward.argtypes = [POINTER(arguments), POINTER(grad), c_void_p]
        forward.restype = backward.restype = c_int32
    library.gsa_cuda_ssim.argtypes = [POINTER(native.SsimArguments), c_void_p]
    library.gsa_cuda_ssim.restype = c_int32
    return library


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL:
    """The CUDA library. Raises ``NativeUnavailable`` where it is not built or does not load."""
    if not LIBRARY.exists():
        raise native.NativeUnavailable(
            "the CUDA kernels are not built; install again with nvcc on PATH (GSAVATAR_CUDA=1)"
        )
    try:
        opened = ctypes.CDLL(str(LIBRARY))
        stale = opened.gsa_abi() != native.ABI
    except (OSError, AttributeError) as error:
        raise native.NativeUnavailable(f"{LIBRARY.name} does not load ({error})") from error
    if stale:
        raise native.NativeUnavailable(f"{LIBRARY.name} is of another version; install again")
    return declare(opened)


def why_not() -> str | None:
    """Why the CUDA kernels cannot be used here, or None if they can."""
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    try:
        library()
    except native.NativeUnavailable as error:
        return str(error)
    return None


@dataclass(frozen=True)
class Forward:
    """The buffers of one forward call, kept for the backward one."""

    tensors: dict[str, Tensor | None]
    width: int
    height: int
    pairs: int
    stream: int
    parts: Any = None  # array of native.Part that move the cloud first

    def call(self, lib: ctypes.CDLL) -> CudaRaster:
        """The C struct. Fills in the temporary buffer of the sorts."""
        means, background = self.tensors["means"], self.tensors["background"]
        assert means is not None and background is not None
        scene = native.Raster(
            count=means.shape[0], width=self.width, height=self.height, threads=1,
            background_is_image=int(background.dim() == 3),
        )  # fmt: skip
        raster = CudaRaster(scene=scene, capacity=self.pairs, stream=self.stream)
        tiles = -(-self.width // native.TILE) * -(-self.height // native.TILE)
        wanted = lib.gsa_cuda_temporary_bytes(means.shape[0], self.pairs, tiles)
        raster.temporary_bytes = wanted
        self.tensors["temporary"] = means.new_empty(max(wanted, 1), dtype=torch.uint8)
        sh = self.tensors.get("sh")
        if sh is not None:
            raster.scene.terms = sh.shape[1]
        channels = self.tensors.get("channels")
        if channels is not None:
            raster.scene.channel_count = channels.shape[1]
        if self.parts is not None:
            raster.scene.parts = ctypes.addressof(self.parts)
            raster.scene.part_count = len(self.parts)
        for name, tensor in self.tensors.items():
            owner = raster.scene if hasattr(raster.scene, name) else raster
            setattr(owner, name, native.pointer(tensor))
        return raster


OUTPUTS = ("rgb", "alpha", "branch_alpha", "depth")
DRAWN = (*OUTPUTS, "extras")
KEPT = ("records", "pair_start", "tile_start", "list", "pair_count", "status")


def forward(
    lib: ctypes.CDLL, inputs: dict[str, Tensor | None], width: int, height: int, pairs: int,
    stream: int, parts: Any = None,
) -> dict[str, Tensor]:  # fmt: skip
    """Outputs and what the backward call needs, by name, on the device of ``inputs['means']``.

    ``parts``, an array of ``native.Part``, move the cloud, which then has ``sh`` for ``colors``;
    there is no backward call for it.
    """
    means = inputs["means"]
    assert means is not None
    count, tiles = means.shape[0], -(-width // native.TILE) * -(-height // native.TILE)
    half = max(count, pairs)

    def ints(*shape: int) -> Tensor:
        return means.new_empty(shape, dtype=torch.int32)

    made = {
        "rgb": means.new_empty(height, width, 3), "alpha": means.new_empty(height, width),
        "branch_alpha": means.new_empty(height, width, 3), "depth": means.new_empty(height, width),
        "records": means.new_empty(count, native.RECORD), "pair_start": ints(count + 1),
        "tile_start": ints(tiles + 1), "list": ints(pairs, 2), "pair_count": ints(count),
        "status": ints(4),
    }  # fmt: skip
    channels = inputs.get("channels")
    made["extras"] = means.new_empty(0 if channels is None else (height, width, channels.shape[1]))
    scratch = {
        "scratch": ints(4 * max(count, 1)), "keys": ints(2 * half), "values": ints(2 * half),
        "owner": ints(pairs),
    }  # fmt: skip
    held = {name: None if t is None else t.contiguous() for name, t in inputs.items()}
    buffers = Forward({**held, **made, **scratch}, width, height, pairs, stream, parts)
    raise_for(lib.gsa_cuda_forward(buffers.call(lib)))
    return made


def backward(
    lib: ctypes.CDLL, inputs: dict[str, Tensor | None], kept: dict[str, Tensor],
    cotangents: dict[str, Tensor | None], width: int, height: int, stream: int,
) -> dict[str, Tensor]:  # fmt: skip
    """Gradients of the inputs by name (``background`` apart, which is ``(1 - alpha) v_rgb``)."""
    means = inputs["means"]
    assert means is not None
    count, pairs = means.shape[0], kept["list"].shape[0]
    shapes = {
        "means": (count, 3), "quats": (count, 4), "scales": (count, 3), "opacities": (count,),
        "colors": (count, 3), "world_to_cam": (4, 4), "K": (3, 3), "screen_probe": (count, 2),
    }  # fmt: skip
    channels = inputs.get("channels") if cotangents.get("extras") is not None else None
    shapes["channels"] = (0,) if channels is None else tuple(channels.shape)
    results = {name: means.new_empty(shape) for name, shape in shapes.items()}
    given = {n: None if t is None else t.contiguous() for n, t in cotangents.items()}
    scratch = {
        "slots": means.new_empty(pairs, native.MOMENTS),
        "channel_slots": means.new_empty(0 if channels is None else (pairs, native.CHANNELS)),
        "partial": means.new_empty(16 * (count // native.CHUNK + 1)),
    }
    held = {name: None if t is None else t.contiguous() for name, t in inputs.items()}
    buffers = Forward({**held, **kept}, width, height, pairs, stream)
    grad = native.RasterGrad(
        **{n: native.pointer(t) for n, t in {**given, **scratch, **results}.items()}
    )
    raise_for(lib.gsa_cuda_backward(buffers.call(lib), grad))
    return results


def raise_for(error: int) -> None:
    """Raises ``RuntimeError`` for the status of a launch that failed."""
    if error != 0:
        raise RuntimeError(f"the CUDA kernels failed to launch (CUDA error {error})")


def run_forward(
    inputs: dict[str, Tensor | None], width: int, height: int, parts: Any = None
) -> dict[str, Tensor]:
    """One forward call with the capacity known so far; the first one waits to learn it."""
    means = inputs["means"]
    assert means is not None
    with torch.cuda.device(means.device):  # kernels start on the current device
        return _run_forward(inputs, means, width, height, parts)


def _run_forward(
    inputs: dict[str, Tensor | None], means: Tensor, width: int, height: int, parts: Any
) -> dict[str, Tensor]:
    capacity = capacity_of(means.device)
    capturing = torch.cuda.is_current_stream_capturing()
    if not capturing:
        capacity.poll()
    first = capacity.begin(means.shape[0])
    stream = torch.cuda.current_stream(means.device)
    made = forward(library(), inputs, width, height, capacity.pairs, stream.cuda_stream, parts)
    if first and not capturing:
        if capacity.learn(made["status"]):
            return _run_forward(inputs, means, width, height, parts)
    elif capturing:
        capacity.next_captured().copy_(made["status"], non_blocking=True)
    else:
        capacity.watch(made["status"], stream)
    return made


NAMES = ("means", "quats", "scales", "opacities", "colors", "branch", "world_to_cam", "K")


@torch.library.custom_op("gsavatar::rasterize_cuda", mutates_args=(), device_types="cuda")
def rasterize_op(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    colors: Tensor,
    branch: Tensor,
    world_to_cam: Tensor,
    K: Tensor,
    width: int,
    height: int,
    background: Tensor,
    screen_probe: Tensor | None,
    channels: Tensor | None = None,
) -> list[Tensor]:
    """rgb, alpha, branch_alpha, depth, extras, then ``KEPT`` for the backward pass."""
    cloud = (means, quats, scales, opacities, colors, branch, world_to_cam, K)
    inputs: dict[str, Tensor | None] = dict(zip(NAMES, cloud, strict=True))
    inputs |= {"background": background, "screen_probe": screen_probe, "channels": channels}
    made = run_forward(inputs, width, height)
    return [made[name] for name in (*DRAWN, *KEPT)]


@rasterize_op.register_fake
def _(means, quats, scales, opacities, colors, branch, world_to_cam, K, width, height,
      background, screen_probe, channels=None):  # fmt: skip
    count, tiles = means.shape[0], -(-width // native.TILE) * -(-height // native.TILE)
    pairs = torch.library.get_ctx().new_dynamic_size()
    picture: list[tuple[int, ...]] = [
        (height, width, 3), (height, width), (height, width, 3), (height, width),
        (0,) if channels is None else (height, width, channels.shape[1]),
    ]  # fmt: skip
    whole = [(count + 1,), (tiles + 1,), (pairs, 2), (count,), (4,)]
    return [
        *(means.new_empty(shape) for shape in (*picture, (count, native.RECORD))),
        *(branch.new_empty(shape) for shape in whole),
    ]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    *tensors, width, height, background, probe, channels = inputs
    ctx.set_materialize_grads(False)
    ctx.size, ctx.has_probe = (width, height), probe is not None
    ctx.save_for_backward(*tensors, background, channels, *output)


def _backward(ctx: Any, grads: list[Tensor | None]) -> tuple[Any, ...]:
    names = (*NAMES, "background", "channels")
    inputs = dict(zip(names, ctx.saved_tensors[: len(names)], strict=True))
    kept = dict(zip((*DRAWN, *KEPT), ctx.saved_tensors[len(names) :], strict=True))
    cotangents = dict(zip(DRAWN, grads[: len(DRAWN)], strict=True))
    if inputs["channels"] is None:
        cotangents["extras"] = None
    width, height = ctx.size
    with torch.cuda.device(kept["rgb"].device):
        stream = torch.cuda.current_stream().cuda_stream
        v = backward(library(), inputs, kept, cotangents, width, height, stream)
    v_background = None
    if ctx.needs_input_grad[10] and grads[0] is not None:
        v_background = (1.0 - kept["alpha"])[..., None] * grads[0]
        if inputs["background"].dim() == 1:
            v_background = v_background.sum((0, 1))
    return (
        v["means"], v["quats"], v["scales"], v["opacities"], v["colors"], None,
        v["world_to_cam"], v["K"], None, None, v_background,
        v["screen_probe"] if ctx.has_probe else None,
        None if cotangents["extras"] is None else v["channels"],
    )  # fmt: skip


rasterize_op.register_autograd(_backward, setup_context=_setup)
