"""What training minimises: named terms over one frame, weighted by a table of the same names."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from gsavatar import ops
from gsavatar.avatar import AvatarBranch
from gsavatar.surround import CoarseView
from gsavatar.types import Branch, Region, Rendering

HEAD_WEIGHT, FEATURE_WEIGHT, BACKGROUND_WEIGHT = 1.5, 4.0, 0.5
"""Relative weight of a pixel's colour on the head, on lips, mouth and eyes, and behind."""

MAX_SCALE_WANTED_M = 0.012
MAX_STRETCH_WANTED = 8.0


@dataclass(frozen=True)
class LossWeights:
    """Weight of every term of this module."""

    color: float = 0.8
    structure: float = 0.2
    """1 - SSIM over the frame."""
    face_off_mouth: float = 0.05
    """Share of the face branch where the inside of the mouth shows."""
    mouth_off_face: float = 0.05
    """Share of the mouth branch outside the lips' outline."""
    torso_off_head: float = 0.05
    """Share of the torso branch on the head."""
    matte: float = 0.02
    """Opacity on the background and transparency on the person."""
    mouth_color: float = 0.2
    """Colour of the mouth branch alone on the inside of the mouth."""
    mouth_fill: float = 0.02
    """Transparency of the mouth branch alone inside the lips' outline."""
    surround_color: float = 0.1
    """Colour of the coloured mesh from views that no frame shows."""
    surround_fill: float = 0.05
    """Transparency of the face branch, and share of the mouth's, where that mesh is skin."""
    size: float = 1.0
    """Scales above 12 mm and stretch above 8, in log units."""


def total(terms: dict[str, Tensor], weights: LossWeights) -> Tensor:
    """Weighted sum of the terms. Raises ``KeyError`` for a term without a weight."""
    table = {f.name: getattr(weights, f.name) for f in fields(weights)}
    return torch.stack([table[name] * value for name, value in terms.items()]).sum()


@dataclass(frozen=True)
class RegionMasks:
    """Float masks [H, W] of one frame, made once from its label plane."""

    color_weight: Tensor
    inner_mouth: Tensor
    lips_outline: Tensor  # lips and what lies between them
    head: Tensor
    person: Tensor
    background: Tensor

    @staticmethod
    def of(regions: Tensor) -> RegionMasks:
        """Masks of a uint8 label plane [H, W]."""
        planes = _MASKS.index_select(1, regions.flatten().long()).reshape(-1, *regions.shape)
        weight, inner, outline, head, background = planes
        person = _eroded(1.0 - background)
        return RegionMasks(weight, inner, outline, head, person, _eroded(background))

    def cropped(self, box: tuple[int, int, int, int]) -> RegionMasks:
        """The masks of a box (top, left, bottom, right; pixels)."""
        top, left, bottom, right = box
        parts = {f.name: getattr(self, f.name)[top:bottom, left:right] for f in fields(self)}
        return RegionMasks(**parts)


def _mask_table() -> Tensor:
    """Rows of colour weight, inner mouth, lips' outline, head and background over ``Region``."""
    inner, outline, features, head, background = torch.zeros(5, len(Region))
    inner[Region.INNER_MOUTH] = 1.0
    outline[[Region.INNER_MOUTH, Region.LIPS]] = 1.0
    features[[Region.INNER_MOUTH, Region.LIPS, Region.EYES]] = 1.0
    head[[Region.INNER_MOUTH, Region.LIPS, Region.EYES, Region.SKIN, Region.HAIR]] = 1.0
    background[Region.BACKGROUND] = 1.0
    weight = (
        1.0
        + (HEAD_WEIGHT - 1.0) * head
        + (FEATURE_WEIGHT - HEAD_WEIGHT) * features
        + (BACKGROUND_WEIGHT - 1.0) * background
    )
    return torch.stack((weight, inner, outline, head, background))


_MASKS = _mask_table()


def _eroded(mask: Tensor, radius: int = 2) -> Tensor:
    """The mask without its rim: labels are least certain there."""
    height, width = mask.shape
    wide = torch.nn.functional.pad(mask, (radius, radius, radius, radius), value=1.0)
    rows = functools.reduce(torch.minimum, (wide[i : i + height] for i in range(2 * radius + 1)))
    return functools.reduce(torch.minimum, (rows[:, i : i + width] for i in range(2 * radius + 1)))


def frame_terms(rendering: Rendering, image: Tensor, masks: RegionMasks) -> dict[str, Tensor]:
    """Scalar terms of the full composite [H, W, 3] against the frame."""
    error = (rendering.rgb - image).abs().mean(-1)
    share = rendering.branch_alpha
    alpha = rendering.alpha[..., 0]
    return {
        "color": (error * masks.color_weight).sum() / masks.color_weight.sum(),
        "structure": 1.0 - ops.ssim(rendering.rgb, image, None),
        "face_off_mouth": mean_over(share[..., Branch.FACE], masks.inner_mouth),
        "mouth_off_face": mean_over(share[..., Branch.MOUTH], 1.0 - masks.lips_outline),
        "torso_off_head": mean_over(share[..., Branch.TORSO], masks.head),
        "matte": mean_over(alpha, masks.background) + mean_over(1.0 - alpha, masks.person),
    }


def mouth_terms(rendering: Rendering, image: Tensor, masks: RegionMasks) -> dict[str, Tensor]:
    """Scalar terms of the mouth branch alone, rendered over black on the lip crop.

    Behind closed lips the full composite gives the mouth no gradient; this does, and nothing but
    this stops the face branch from painting the mouth's inside.
    """
    error = (rendering.rgb - image).abs().mean(-1)
    return {
        "mouth_color": mean_over(error, masks.inner_mouth),
        "mouth_fill": mean_over(1.0 - rendering.alpha[..., 0], masks.lips_outline),
    }


def surround_terms(rendering: Rendering, view: CoarseView) -> dict[str, Tensor]:
    """Scalar terms of a small rendering from beside the camera against the coloured mesh."""
    error = (rendering.rgb - view.color).abs().mean(-1)
    share = rendering.branch_alpha
    leak = 1.0 - share[..., Branch.FACE] + share[..., Branch.MOUTH]
    return {
        "surround_color": mean_over(error, view.covered),
        "surround_fill": mean_over(leak, view.covered),
    }


def mean_over(value: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``value`` under ``mask``; zero, never NaN, where the mask is empty."""
    return (value * mask).sum() / mask.sum().clamp_min(1.0)


def size_term(branches: tuple[AvatarBranch, ...]) -> Tensor:
    """How far scales exceed 12 mm and stretch exceeds 8, a scalar."""
    parts = []
    for branch in branches:
        log_scales = branch.raw.log_scales
        too_large = (log_scales.exp() / MAX_SCALE_WANTED_M - 1.0).relu().mean()
        x, y, z = log_scales.unbind(-1)  # amax over an axis of three is many times slower
        stretch = torch.maximum(torch.maximum(x, y), z) - torch.minimum(torch.minimum(x, y), z)
        too_long = (stretch - math.log(MAX_STRETCH_WANTED)).relu().mean()
        parts.append(0.1 * too_large + 0.01 * too_long)
    return torch.stack(parts).sum()
