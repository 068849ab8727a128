"""Checks of the arguments of every op: malformed calls raise ``ValueError``, never crash."""

from __future__ import annotations

import math

import torch
from torch import Tensor

MAX_SIDE = 16384
"""Largest picture side in pixels."""

NOT_FINITE = 1
BAD_BRANCH = 32
TOO_MANY = 33
RASTER_ARGUMENTS = (
    "means", "quats", "scales", "opacities", "colors", "world_to_cam", "K", "background",
    "screen_probe", "basis", "extra_channels",
)  # fmt: skip
ARGUMENTS = {
    "blend": ("means", "quats", "scales", "the weighted basis", "coefficients"),
    "pose": ("means", "quats", "turn", "shift", "share"),
    "sh": ("means", "sh", "centre"),
    "ssim": ("a, b or mask",),
}
"""What a kernel's codes from ``NOT_FINITE`` on mean."""


def shape(name: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    """Raises ``ValueError`` unless ``tensor`` is a tensor of the expected shape."""
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if tuple(tensor.shape) != expected:
        raise ValueError(f"{name} must have shape {list(expected)}, got {list(tensor.shape)}")


def dtype(name: str, tensor: Tensor, expected: torch.dtype) -> None:
    """Raises ``ValueError`` unless ``tensor`` has the expected dtype."""
    if tensor.dtype != expected:
        raise ValueError(f"{name} must be {expected}, got {tensor.dtype}")


def raster_arguments(
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
) -> None:
    """Raises ``ValueError`` naming the first argument of ``rasterize`` that is malformed."""
    for name, side in (("width", width), ("height", height)):
        if not isinstance(side, int) or not 1 <= side <= MAX_SIDE:
            raise ValueError(f"{name} must be a whole number from 1 to {MAX_SIDE}, got {side}")
    if not isinstance(means, Tensor) or means.dim() != 2 or means.shape[1] != 3:
        raise ValueError(f"means must be a tensor of shape [N, 3], got {_described(means)}")
    count = means.shape[0]
    expected = {
        "quats": (quats, (count, 4)),
        "scales": (scales, (count, 3)),
        "opacities": (opacities, (count,)),
        "colors": (colors, (count, 3)),
        "world_to_cam": (world_to_cam, (4, 4)),
        "K": (K, (3, 3)),
    }
    if screen_probe is not None:
        expected["screen_probe"] = (screen_probe, (count, 2))
    if channels is not None:
        expected["extra_channels"] = (channels, (count, *_last_side(channels)))
    for name, (tensor, wanted) in expected.items():
        shape(name, tensor, wanted)
        dtype(name, tensor, means.dtype)
        device(name, tensor, means.device)
    if not isinstance(background, Tensor) or tuple(background.shape) not in {
        (3,),
        (height, width, 3),
    }:
        raise ValueError(
            f"background must have shape [3] or [{height}, {width}, 3], "
            f"got {_described(background)}"
        )
    dtype("background", background, means.dtype)
    device("background", background, means.device)
    shape("branch", branch, (count,))
    dtype("branch", branch, torch.int32)
    device("branch", branch, means.device)


def _last_side(channels: Tensor) -> tuple[int]:
    """How many channels [N, C] there are; -1, which no tensor has, if it is no such tensor."""
    two = isinstance(channels, Tensor) and channels.dim() == 2
    return (channels.shape[1] if two else -1,)


def _described(value: object) -> str:
    return str(list(value.shape)) if isinstance(value, Tensor) else type(value).__name__


def device(name: str, tensor: Tensor, expected: torch.device) -> None:
    """Raises ``ValueError`` unless ``tensor`` is on the expected device."""
    if tensor.device != expected:
        raise ValueError(f"{name} is on {tensor.device}, the others on {expected}; move it")


def numbers(**values: float) -> None:
    """Raises ``ValueError`` naming the first value that is not a finite number."""
    for name, value in values.items():
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError(f"{name} must be a finite number, got {value}")


def finite(**tensors: Tensor | None) -> None:
    """Raises ``ValueError`` naming the first tensor that holds NaN or infinity.

    A sum tells nearly always; only one that overflowed is looked at number by number. Tensors on a
    device are not read, because that would wait for it: the rasterizer reports their values later.
    """
    for name, tensor in tensors.items():
        if tensor is None or tensor.device.type != "cpu":
            continue
        values = tensor.detach()
        if not math.isfinite(values.sum()) and not bool(torch.isfinite(values).all()):
            raise ValueError(f"{name} holds NaN or infinity")


BYTES_PER_PAIR = 112
"""Memory that a (Gaussian, tile) pair takes at most: lists, sort, gradients, extra channels."""


def most_pairs(memory: int) -> int:
    """How many pairs of Gaussians and tiles fit into so many bytes."""
    return min(memory // BYTES_PER_PAIR, 2**31 - 1)


def pairs_fit(pairs: int, memory: int) -> None:
    """Raises ``ValueError`` where the pairs need more memory than the machine has, which would end
    the process instead of the call."""
    if pairs > most_pairs(memory):
        raise ValueError(
            f"{pairs} overlaps of Gaussians and tiles need {pairs * BYTES_PER_PAIR / 2**30:.1f} GiB"
            f" of {memory / 2**30:.1f}; the scales are too large, or the picture is"
        )


def raise_for(code: int, arguments: tuple[str, ...] = RASTER_ARGUMENTS) -> None:
    """Turns the status of a native call into a ``ValueError``; 0 is success."""
    if code == 0:
        return
    if code == BAD_BRANCH:
        raise ValueError("branch holds a value outside 0..2")
    if code == TOO_MANY:
        raise ValueError("more than 2^31 overlaps of Gaussians and tiles; the scales are too large")
    raise ValueError(f"{arguments[code - NOT_FINITE]} holds NaN or infinity")
