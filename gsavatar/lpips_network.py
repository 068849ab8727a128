"""LPIPS (Zhang et al. 2018), where its package and AlexNet's weights are: nothing is downloaded.

Evaluation prints it beside the other numbers; training may add it around lips, teeth and eyes.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from gsavatar.errors import InputError, first_line

TRUNK, SOURCE = "alexnet-owt-7be5be79.pth", "https://download.pytorch.org/models/"
LEAST_SIDE_PX = 64
"""Smaller pictures are enlarged: the last layer that is compared sees a sixteenth of each side."""
EPSILON = 1e-10
"""Under the root of a feature's length, whose slope at zero the package leaves infinite."""


@dataclass(frozen=True)
class Lack:
    """Why there is no LPIPS, and the cure."""

    why: str
    cure: str


def open_network() -> Any | Lack:
    """The package's network with its weights, not to be trained; or what is lacking."""
    trunk = Path(torch.hub.get_dir()) / "checkpoints" / TRUNK
    try:
        import lpips
    except ModuleNotFoundError as error:
        if error.name == "lpips":
            return Lack("the optional package lpips is not installed", "pip install lpips")
        return _broken(error)
    except Exception as error:  # a torchvision made for another torch
        return _broken(error)
    if not trunk.exists():
        return Lack(f"the AlexNet weights are not at {trunk}", f"put {SOURCE}{TRUNK} there")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network = lpips.LPIPS(net="alex", verbose=False).eval()
    except Exception as error:
        why = f"{trunk} cannot be read ({first_line(error)})"
        return Lack(why, f"delete it and put {SOURCE}{TRUNK} there again")
    return network.requires_grad_(False)


def _broken(error: Exception) -> Lack:
    why = f"the optional package lpips does not import ({first_line(error)})"
    return Lack(why, "install the torchvision that belongs to your torch")


def network_of(weight: float, device: torch.device | str = "cpu") -> Any | None:
    """The network on a device if a loss of this weight needs it, else None.

    Raises ``InputError`` where it is needed and not there.
    """
    if weight <= 0:
        return None
    network = open_network()
    if isinstance(network, Lack):
        raise InputError(
            f"train.weights.lpips = {weight:g}: {network.why}; {network.cure}, or fit without "
            "that setting into another --out."
        )
    return network.to(device)


def distance(network: Any, rendered: Tensor, real: Tensor) -> Tensor:
    """LPIPS of two pictures [H, W, 3] of 0 to 1, a scalar; differentiable in ``rendered``.

    As in the package, but for features that are all zero, where its gradient is NaN.
    """
    pair = torch.stack((rendered, real)).movedim(-1, 1)
    height, width = rendered.shape[:2]
    scale = LEAST_SIDE_PX / min(height, width)
    if scale > 1.0:
        size = max(round(scale * height), LEAST_SIDE_PX), max(round(scale * width), LEAST_SIDE_PX)
        pair = interpolate(pair, size, mode="bilinear", align_corners=False)
    layers = network.net(network.scaling_layer(2.0 * pair - 1.0))
    parts = []
    for layer, weigh in zip(layers, network.lins, strict=True):
        even = layer / (layer.square().sum(1, keepdim=True) + EPSILON).sqrt()
        parts.append(weigh((even[:1] - even[1:]).square()).mean())
    return torch.stack(parts).sum()
