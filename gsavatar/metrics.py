"""What a picture scores against the real one: PSNR, SSIM, LPIPS, and the masks they are taken over.

Pure functions of uint8 RGB pictures [H, W, 3]; nothing here knows of clips, avatars or files.
The mouth's own measures are in ``metrics_mouth``, steadiness is in ``metrics_motion``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gsavatar import lpips_network
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
BOOTSTRAPS = 300
BLOCK_S = 1.0
"""Frames a second apart are taken as independent; closer ones are drawn together."""
CONFIDENCE = 0.90


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


Planes = NDArray[np.float32]
"""A picture [H, W, 3] in 0-1, or what a filter made of one."""


def _unit(picture: UInt8) -> Planes:
    return np.multiply(picture, np.float32(1.0 / 255.0), dtype=np.float32)


def _filtered(planes: Planes) -> Planes:
    """Every channel after the Gaussian window, where that fits: [H - 10, W - 10, 3]."""
    import cv2

    taps = cv2.getGaussianKernel(SSIM_WINDOW, SSIM_SIGMA, cv2.CV_32F)
    inside = slice(SSIM_BORDER, -SSIM_BORDER)
    return np.asarray(cv2.sepFilter2D(planes, cv2.CV_32F, taps, taps)[inside, inside])


class SsimTarget:
    """A real picture prepared for SSIM against several others (its own moments taken once)."""

    def __init__(self, real: UInt8) -> None:
        if min(real.shape[:2]) < SSIM_WINDOW:
            raise ValueError(f"SSIM needs {SSIM_WINDOW} pixels a side, got {real.shape[:2]}")
        self.planes = _unit(real)
        self.mean = _filtered(self.planes)
        squared = self.mean**2
        self.variance = _filtered(self.planes**2) - squared + np.float32(SSIM_C2)
        self.square_mean = squared + np.float32(SSIM_C1)

    def map(self, rendered: UInt8) -> NDArray[np.float32]:
        """SSIM [H - 10, W - 10] of a picture, mean of the three channels.

        Window 11 x 11, sigma 1.5, K 0.01 and 0.03 (Wang et al. 2004), and only where the window
        lies inside the picture.
        """
        planes = _unit(rendered)
        mean = _filtered(planes)
        covariance = _filtered(planes * self.planes)
        variance = _filtered(np.multiply(planes, planes, out=planes))
        product = mean * self.mean  # from here on in place: memory traffic is most of the cost
        square = np.multiply(mean, mean, out=mean)
        covariance -= product
        variance -= square
        variance += self.variance
        square += self.square_mean
        variance *= square
        covariance += SSIM_C2 / 2
        product += SSIM_C1 / 2
        covariance *= product
        covariance /= variance
        return np.asarray(covariance @ np.full(3, 4.0 / 3.0, np.float32))


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
    """LPIPS (AlexNet) of two pictures, or None and why it cannot be measured."""
    network = lpips_network.open_network()
    if isinstance(network, lpips_network.Lack):
        return None, network.why

    def distance(rendered: UInt8, real: UInt8) -> float:
        with torch.no_grad():
            pair = [torch.from_numpy(_unit(p)).permute(2, 0, 1)[None] for p in (rendered, real)]
            return float(network(*pair, normalize=True))

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
