"""LPIPS (Zhang et al. 2018), where its package and AlexNet's weights are: nothing is downloaded.

Evaluation prints it beside the other numbers; training may add it around lips, teeth and eyes.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from gsavatar.errors import InputError, first_line

TRUNK = "alexnet-owt-7be5be79.pth"
LEAST_SIDE_PX = 64
"""Smaller pictures are enlarged: AlexNet halves them five times."""


def open_network() -> tuple[Any | None, str]:
    """The network, or None and why it is not there."""
    try:
        import lpips
    except ImportError:
        return None, "the optional package lpips is not installed"
    except Exception as error:  # a torchvision made for another torch
        return None, f"the optional package lpips does not import ({first_line(error)})"
    trunk = Path(torch.hub.get_dir()) / "checkpoints" / TRUNK
    if not trunk.exists():
        return None, f"the AlexNet weights are not at {trunk}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = lpips.LPIPS(net="alex", verbose=False).eval()
    return network.requires_grad_(False), ""


def network_of(weight: float, device: torch.device | str = "cpu") -> Any | None:
    """The network on a device if a loss of this weight needs it, else None.

    Raises ``InputError`` where it is needed and not there.
    """
    if weight <= 0:
        return None
    network, why = open_network()
    if network is None:
        raise InputError(
            f"train.weights.lpips = {weight:g}: {why}; pip install 'gsavatar[lpips]' and put the "
            "weights there, or leave the setting away."
        )
    return network.to(device)


def distance(network: Any, rendered: Tensor, real: Tensor) -> Tensor:
    """LPIPS of two pictures [H, W, 3] of 0 to 1, a scalar; differentiable in ``rendered``."""
    pair = [picture.movedim(-1, 0)[None] for picture in (rendered, real)]
    height, width = rendered.shape[:2]
    scale = LEAST_SIDE_PX / min(height, width)
    if scale > 1.0:
        size = max(round(scale * height), LEAST_SIDE_PX), max(round(scale * width), LEAST_SIDE_PX)
        pair = [interpolate(p, size, mode="bilinear", align_corners=False) for p in pair]
    found: Tensor = network(*pair, normalize=True)
    return found.reshape(())
