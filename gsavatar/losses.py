"""What training minimises: named terms over one frame, weighted by a table of the same names."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding, max_pool2d

from gsavatar import ops
from gsavatar.avatar import AvatarBranch
from gsavatar.losses_perceptual import contrast_distance
from gsavatar.lpips_network import distance
from gsavatar.surround import CoarseView
from gsavatar.types import Branch, Region, Rendering

Box = tuple[int, int, int, int]

HEAD_WEIGHT, FEATURE_WEIGHT, BACKGROUND_WEIGHT = 1.5, 4.0, 0.5
"""Relative weight of a pixel's colour on the head, on lips, mouth and eyes, and behind."""
EYES_WEIGHT = 8.0
"""The same on eyes with their lids, which are small, and shut for a fiftieth of the time."""

FEATURE_MARGIN, FEATURE_RIM = 8, 2
"""Pixels around lips, mouth and eyes that their contrast is seen against, and that count too."""
MAX_SCALE_WANTED_M = 0.012
MAX_STRETCH_WANTED = 8.0


@dataclass(frozen=True)
class LossWeights:
    """Weight of every term of this module."""

    color: float = 0.8
    structure: float = 0.2
    """1 - SSIM over the frame."""
    contrast: float = 0.1
    """Perceptual distance around lips, teeth and eyes (``losses_perceptual``)."""
    lpips: float = 0.0
    """LPIPS there, where its package and weights are (``lpips_network``)."""
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
    opacity: float = 0.0
    """Opacities that are neither 0 nor 1."""


def total(terms: dict[str, Tensor], weights: LossWeights) -> Tensor:
    """Weighted sum of the terms. Raises ``KeyError`` for a term without a weight."""
    table = {f.name: getattr(weights, f.name) for f in fields(weights)}
    return torch.stack([table[name] * value for name, value in terms.items()]).sum()


@dataclass(frozen=True)
class RegionMasks:
    """What the label plane [H, W] of one frame says about its pixels."""

    regions: Tensor  # uint8
    color_weight: Tensor  # [H, W, 3], for all channels the same
    off_limits: Tensor  # [H, W, B], 1 where a branch must not show
    person: Tensor
    background: Tensor

    @staticmethod
    def of(
        regions: Tensor, certain: Tensor | None = None, eyes: Tensor | None = None
    ) -> RegionMasks:
        """Masks of a uint8 label plane [H, W]; ``certain`` is its ``certain_of``, if known, and
        ``eyes`` is not 0 where eyes and lids are."""
        index = regions.long()
        sure = certain_of(regions) if certain is None else certain.float()
        background = sure * (regions == Region.BACKGROUND)
        color_weight, off_limits = _tables(regions.device)
        weight = embedding(index, color_weight)
        if eyes is not None:
            weight = torch.where(eyes[..., None] > 0, EYES_WEIGHT, weight)
        return RegionMasks(
            regions, weight, embedding(index, off_limits), sure - background, background,
        )  # fmt: skip

    @property
    def inner_mouth(self) -> Tensor:
        """1 on teeth, tongue and what else the lips leave open, [H, W]."""
        return _any_of(self.regions, INNER_MOUTH)

    @property
    def lips_outline(self) -> Tensor:
        """1 on the lips and what lies between them, [H, W]."""
        return _any_of(self.regions, LIPS_OUTLINE)

    @property
    def head(self) -> Tensor:
        """1 on face and hair, [H, W]."""
        return _any_of(self.regions, HEAD)


INNER_MOUTH = (Region.INNER_MOUTH,)
LIPS_OUTLINE = (Region.INNER_MOUTH, Region.LIPS)
FEATURES = (*LIPS_OUTLINE, Region.EYES)
HEAD = (Region.INNER_MOUTH, Region.LIPS, Region.EYES, Region.SKIN, Region.HAIR)


def _any_of(regions: Tensor, wanted: tuple[Region, ...]) -> Tensor:
    return functools.reduce(torch.logical_or, (regions == r for r in wanted)).float()


def _color_weights() -> Tensor:
    """Weight of a pixel's channels (columns) by its ``Region`` (rows)."""
    weight = torch.ones(len(Region), 3)
    weight[list(HEAD)] = HEAD_WEIGHT
    weight[list(FEATURES)] = FEATURE_WEIGHT
    weight[Region.BACKGROUND] = BACKGROUND_WEIGHT
    return weight


def _off_limits() -> Tensor:
    """1 where a ``Branch`` (columns) must not show, by ``Region`` (rows)."""
    limits = torch.zeros(len(Region), len(Branch))
    limits[list(INNER_MOUTH), Branch.FACE] = 1.0
    limits[[r for r in Region if r not in LIPS_OUTLINE], Branch.MOUTH] = 1.0
    limits[list(HEAD), Branch.TORSO] = 1.0
    return limits


@functools.lru_cache(maxsize=8)
def _tables(device: torch.device) -> tuple[Tensor, Tensor]:
    """``_color_weights`` and ``_off_limits`` where the labels are."""
    return _color_weights().to(device), _off_limits().to(device)


def certain_of(regions: Tensor, radius: int = 2) -> Tensor:
    """1 where all labels within ``radius`` pixels agree on who is background, [H, W].

    Labels are least certain at the rim of a person.
    """
    height, width = regions.shape
    behind = (regions == Region.BACKGROUND).float()

    def least(mask: Tensor) -> Tensor:
        wide = torch.nn.functional.pad(mask, (radius, radius, radius, radius), value=1.0)
        shifts = range(2 * radius + 1)
        rows = functools.reduce(torch.minimum, (wide[i : i + height] for i in shifts))
        return functools.reduce(torch.minimum, (rows[:, i : i + width] for i in shifts))

    return least(behind) + least(1.0 - behind)


def frame_terms(rendering: Rendering, image: Tensor, masks: RegionMasks) -> dict[str, Tensor]:
    """Scalar terms of the full composite [H, W, 3] against the frame."""
    error = (rendering.rgb - image).abs() * masks.color_weight
    shares = (rendering.branch_alpha * masks.off_limits).sum((0, 1))
    off = shares / masks.off_limits.sum((0, 1)).clamp_min(1.0)
    alpha = rendering.alpha[..., 0]
    return {
        "color": error.sum() / masks.color_weight.sum(),
        "structure": 1.0 - ops.ssim(rendering.rgb, image, None),
        "face_off_mouth": off[Branch.FACE],
        "mouth_off_face": off[Branch.MOUTH],
        "torso_off_head": off[Branch.TORSO],
        "matte": mean_over(alpha, masks.background) + mean_over(1.0 - alpha, masks.person),
    }


def mouth_terms(rendering: Rendering, image: Tensor, regions: Tensor) -> dict[str, Tensor]:
    """Scalar terms of the mouth branch alone, rendered over black on the lip crop, whose labels
    are ``regions`` [H, W].

    Behind closed lips the full composite gives the mouth no gradient; this does, and nothing but
    this stops the face branch from painting the mouth's inside.
    """
    error = (rendering.rgb - image).abs().mean(-1)
    return {
        "mouth_color": mean_over(error, _any_of(regions, INNER_MOUTH)),
        "mouth_fill": mean_over(1.0 - rendering.alpha[..., 0], _any_of(regions, LIPS_OUTLINE)),
    }


def feature_box(labels: np.ndarray) -> Box | None:
    """The box around lips, mouth and eyes of labels [H, W] with what their contrast is seen
    against (top, left, bottom, right); None where they do not show."""
    features = np.isin(labels, FEATURES)
    rows, columns = (np.flatnonzero(features.any(axis)) for axis in (1, 0))
    if not len(rows):
        return None
    top, left = max(rows[0] - FEATURE_MARGIN, 0), max(columns[0] - FEATURE_MARGIN, 0)
    bottom, right = rows[-1] + 1 + FEATURE_MARGIN, columns[-1] + 1 + FEATURE_MARGIN
    return int(top), int(left), int(bottom), int(right)


def feature_terms(  # noqa: PLR0917
    rendering: Rendering, image: Tensor, regions: Tensor, box: Box | None,
    weights: LossWeights, lpips: Any | None,
) -> dict[str, Tensor]:  # fmt: skip
    """Perceptual distances around lips, teeth and eyes, scalars; of those that have a weight, and
    none where they do not show.

    ``box`` is the ``feature_box`` of the labels ``regions`` [H, W], ``lpips`` the network if
    it has a weight.
    """
    if box is None:
        return {}
    inside = slice(box[0], box[2]), slice(box[1], box[3])
    rendered, real = rendering.rgb[inside], image[inside]
    terms = {}
    if weights.contrast > 0:
        features = _any_of(regions[inside], FEATURES)
        near = max_pool2d(features[None], 2 * FEATURE_RIM + 1, stride=1, padding=FEATURE_RIM)[0]
        terms["contrast"] = contrast_distance(rendered, real, near)
    if weights.lpips > 0:
        terms["lpips"] = distance(lpips, rendered.clamp(0, 1), real)
    return terms


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


def opacity_term(branches: tuple[AvatarBranch, ...]) -> Tensor:
    """How far opacities are from both 0 and 1, the mean of o (1 - o), a scalar."""
    opacities = torch.cat([branch.raw.raw_opacities.sigmoid() for branch in branches])
    return (opacities * (1.0 - opacities)).mean()
