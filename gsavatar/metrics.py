"""What a picture scores against the real one: PSNR, SSIM, LPIPS, and the masks they are taken over.

Pure functions of uint8 RGB pictures [H, W, 3]; nothing here knows of clips, avatars or files.
The mouth's own measures are in ``metrics_mouth``, steadiness is in ``metrics_motion``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gsavatar.types import HEAD_REGIONS

UInt8 = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Box = tuple[int, int, int, int]
Interval = tuple[float, float]

PSNR_CAP = 60.0
"""Largest PSNR of one frame in dB: equal pictures would otherwise make a mean infinite."""
SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2
SSIM_BORDER = SSIM_WINDOW // 2
SSIM_BLOCK = 64
BOOTSTRAPS = 300
BLOCK_S = 1.0
"""Frames a second apart are taken as independent; closer ones are drawn together."""
CONFIDENCE = 0.90
LPIPS_TRUNK = "alexnet-owt-7be5be79.pth"


def head_mask(regions: UInt8) -> Mask:
    """HEAD [H, W]: skin, hair, lips, inner mouth and eyes of a label plane."""
    return np.isin(regions, [int(region) for region in HEAD_REGIONS])


def square_box(
    box: tuple[float, float, float, float], growth: float, size: tuple[int, int]
) -> Box | None:
    """A box (top, left, bottom, right) grown by a share of itself and squared, within ``size``.

    None where nothing of it lies inside the picture of ``size`` (height, width).
    """
    top, left, bottom, right = box
    if not np.isfinite(box).all():
        return None
    half = 0.5 * (1.0 + growth) * max(bottom - top, right - left)
    y, x = 0.5 * (top + bottom), 0.5 * (left + right)
    height, width = size
    result = (
        max(0, round(y - half)), max(0, round(x - half)),
        min(height, round(y + half)), min(width, round(x + half)),
    )  # fmt: skip
    return result if result[2] - result[0] > 1 and result[3] - result[1] > 1 else None


def squared_error(rendered: UInt8, real: UInt8) -> NDArray[np.int32]:
    """Squared difference [H, W] of two pictures, summed over the channels, in grey levels²."""
    error = np.subtract(rendered, real, dtype=np.int32)
    result: NDArray[np.int32] = np.einsum("hwc,hwc->hw", error, error)
    return result


def psnr_of(error: NDArray[np.int32], mask: Mask | None = None, pixels: int | None = None) -> float:
    """PSNR in dB of a ``squared_error`` over a mask, at most 60; NaN for an empty mask.

    ``pixels`` is how many the error is shared by, if others than the mask's are known to be right.
    """
    chosen = error if mask is None else error[mask]
    count = chosen.size if pixels is None else pixels
    if count == 0:
        return float("nan")
    mse = float(chosen.sum(dtype=np.int64)) / (3 * count * 255.0**2)
    return PSNR_CAP if mse <= 10 ** (-PSNR_CAP / 10) else -10.0 * float(np.log10(mse))


def psnr(rendered: UInt8, real: UInt8, mask: Mask | None = None) -> float:
    """PSNR in dB over a mask's pixels and all channels, at most 60; NaN for an empty mask."""
    return psnr_of(squared_error(rendered, real), mask)


@lru_cache(maxsize=1)
def _band() -> Tensor:
    """The Gaussian window as a banded matrix [74, 64]: one product filters 64 positions."""
    offsets = torch.arange(SSIM_WINDOW, dtype=torch.float64) - SSIM_BORDER
    window = torch.exp(-offsets.square() / (2 * SSIM_SIGMA**2))
    window = (window / window.sum()).float()
    band = torch.zeros(SSIM_BLOCK + SSIM_WINDOW - 1, SSIM_BLOCK)
    for column in range(SSIM_BLOCK):
        band[column : column + SSIM_WINDOW, column] = window
    return band


def _filtered_down(planes: Tensor) -> Tensor:
    """Planes [C, H, W] after the window along H, where it fits, turned: [C, W, H - 10].

    Products of small banded blocks: an order of magnitude less work than one full matrix, and
    several times faster than a convolution of eleven taps in torch.
    """
    channels, height, width = planes.shape
    fits = height - SSIM_WINDOW + 1
    blocks = -(-fits // SSIM_BLOCK)
    spare = blocks * SSIM_BLOCK + SSIM_WINDOW - 1 - height
    padded = torch.nn.functional.pad(planes, (0, 0, 0, spare))
    parts = padded.unfold(1, SSIM_BLOCK + SSIM_WINDOW - 1, SSIM_BLOCK)  # [C, B, W, 74]
    filtered = (parts @ _band()).permute(0, 2, 1, 3)
    return filtered.reshape(channels, width, blocks * SSIM_BLOCK)[..., :fits]


def _filtered(planes: Tensor) -> Tensor:
    """Planes [C, H, W] after the window, where it fits: [C, H - 10, W - 10]."""
    return _filtered_down(_filtered_down(planes))


def _planes(picture: UInt8) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1).float() / 255.0


class SsimTarget:
    """A real picture prepared for SSIM against several others (its own moments taken once)."""

    def __init__(self, real: UInt8) -> None:
        if min(real.shape[:2]) < SSIM_WINDOW:
            raise ValueError(f"SSIM needs {SSIM_WINDOW} pixels a side, got {real.shape[:2]}")
        self.planes = _planes(real)
        self.mean = _filtered(self.planes)
        self.variance = _filtered(self.planes.square()) - self.mean.square()

    def map(self, rendered: UInt8) -> NDArray[np.float32]:
        """SSIM [H - 10, W - 10] of a picture, mean of the three channels.

        Window 11 x 11, sigma 1.5, K 0.01 and 0.03 (Wang et al. 2004), and only where the window
        lies inside the picture.
        """
        planes = _planes(rendered)
        mean = _filtered(planes)
        variance = _filtered(planes.square()) - mean.square()
        covariance = _filtered(planes * self.planes) - mean * self.mean
        top = (2 * mean * self.mean + SSIM_C1) * (2 * covariance + SSIM_C2)
        bottom = (mean.square() + self.mean.square() + SSIM_C1) * (
            variance + self.variance + SSIM_C2
        )
        result: NDArray[np.float32] = (top / bottom).mean(0).numpy()
        return result


def masked_mean(ssim_map: NDArray[np.float32], mask: Mask | None = None) -> float:
    """Mean of an SSIM map, or of its part in a mask [H, W] of the picture; NaN for none."""
    if mask is None:
        return float(ssim_map.mean(dtype=np.float64))
    inner = mask[SSIM_BORDER:-SSIM_BORDER, SSIM_BORDER:-SSIM_BORDER]
    return float(ssim_map[inner].mean(dtype=np.float64)) if inner.any() else float("nan")


def ssim(rendered: UInt8, real: UInt8, mask: Mask | None = None) -> float:
    """Mean SSIM of two pictures over a mask; 1 for equal ones."""
    return masked_mean(SsimTarget(real).map(rendered), mask)


def pasted(rendered: UInt8, real: UInt8, head: Mask) -> UInt8:
    """The rendered head on the real picture."""
    return np.where(head[..., None], rendered, real)


def open_lpips() -> tuple[Callable[[UInt8, UInt8], float] | None, str]:
    """LPIPS (AlexNet) of two pictures, or None and why it cannot be measured.

    Never downloads: the trunk's weights must lie in torch's hub cache already.
    """
    try:
        import lpips
    except ImportError:
        return None, "the optional package lpips is not installed"
    trunk = Path(torch.hub.get_dir()) / "checkpoints" / LPIPS_TRUNK
    if not trunk.exists():
        return None, f"the AlexNet weights are not at {trunk}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = lpips.LPIPS(net="alex", verbose=False).eval()

    def distance(rendered: UInt8, real: UInt8) -> float:
        with torch.no_grad():
            pair = [(_planes(p) * 2.0 - 1.0)[None] for p in (rendered, real)]
            return float(network(*pair))

    return distance, ""


def block_bootstrap(
    statistics: Callable[[NDArray[np.int64]], dict[str, Any]],
    count: int,
    block: int,
    *,
    draws: int = BOOTSTRAPS,
    seed: int = 0,
) -> dict[str, Interval | None]:
    """90 % intervals of statistics of a series of ``count`` frames.

    ``statistics`` takes the frames to use (with repeats). Blocks of ``block`` successive frames
    are drawn with replacement, because neighbouring frames err alike. None where there are fewer
    than three blocks or most draws have no value.
    """
    keys = statistics(np.arange(count)).keys() if count else {}
    block = max(1, block)
    if count < 3 * block:
        return dict.fromkeys(keys)
    rng = np.random.default_rng(seed)
    drawn: dict[str, list[float]] = {key: [] for key in keys}
    for _ in range(draws):
        starts = rng.integers(0, count, size=-(-count // block))
        rows = (starts[:, None] + np.arange(block)).reshape(-1)[:count] % count
        for key, value in statistics(rows).items():
            drawn[key].append(float("nan") if value is None else float(value))
    return {key: _interval(np.array(values)) for key, values in drawn.items()}


def _interval(values: NDArray[np.float64]) -> Interval | None:
    finite = values[np.isfinite(values)]
    if len(finite) < max(1, len(values) // 2):
        return None
    low, high = np.quantile(finite, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
