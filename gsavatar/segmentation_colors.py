"""Which colours a person's skin, hair, neck and clothes have, learned from a few of their pictures.

A table of colour frequencies per part, soft in colour, is filled from where the landmarks make a
part likely, and filled again from what it then says (expectation maximisation, as GrabCut does with
mixtures; Rother, Kolmogorov, Blake 2004). One table serves a whole clip, so labels do not flicker.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gsavatar.segmentation_shape import HeadPlan, Part

Float = NDArray[np.float32]
UInt8 = NDArray[np.uint8]
Mask = NDArray[np.bool_]

BINS = 32
"""Colours a channel is told apart into."""
SOFTNESS = 1.2
"""Deviation in bins over which a colour speaks for its neighbours."""
UNKNOWN = 0.02
"""Share of a part that may have any colour: no colour is impossible."""
ROUNDS = 3
CERTAINTY = 4.0
"""Most that one pixel's colour may say for one part over another, in log units."""
DARK, RATIO_FLOOR = 6.0, 0.05
"""Added to 8-bit channels before their ratio is taken; least deviation of a ratio's logarithm."""
JAW_SHADE = 0.15
"""How far above the neck's line skin may look like the neck, over the face's height."""
REACH = 3
"""Side in pixels of the window whose colours decide together, on the half-size grid."""


@dataclass(frozen=True)
class Sample:
    """What learning and labelling look at in one picture, on the half-size grid [h, w]."""

    bins: NDArray[np.intp]  # place of every pixel's colour in the table
    person: Mask
    plan: HeadPlan


@dataclass(frozen=True)
class PartColors:
    """Log frequency [4, BINS ** 3] of colours within every ``Part``."""

    table: Float

    def scores(self, sample: Sample) -> Float:
        """Log beliefs [4, h, w] of a picture, of colour and place together."""
        import cv2

        scores = sample.plan.log_prior()
        said_of = [self.table[part][sample.bins] for part in Part]
        shade = (sample.plan.below > -JAW_SHADE) & ~sample.plan.face
        brighter, darker = said_of[Part.SKIN], said_of[Part.NECK]
        said_of[Part.SKIN] = np.where(shade, np.maximum(brighter, darker), brighter)
        for part, said in zip(Part, said_of, strict=True):
            scores[part] += cv2.blur(said, (REACH, REACH), borderType=cv2.BORDER_REPLICATE)
        return scores


def color_bins(picture: UInt8) -> NDArray[np.intp]:
    """Table rows [h, w] of a picture [H, W, 3] on the half-size grid."""
    import cv2

    height, width = picture.shape[:2]
    half = (max(1, width // 2), max(1, height // 2))
    return color_rows(np.asarray(cv2.resize(picture, half, interpolation=cv2.INTER_AREA), np.uint8))


def color_rows(picture: UInt8) -> NDArray[np.intp]:
    """Table rows [...] of colours [..., 3]."""
    wide = (picture >> 3).astype(np.intp)
    return (wide[..., 0] * BINS + wide[..., 1]) * BINS + wide[..., 2]


def learn_colors(samples: Sequence[Sample]) -> PartColors:
    """The colours of the person in some pictures."""
    bins = np.concatenate([s.bins[s.person] for s in samples])
    prior = np.concatenate([s.plan.log_prior()[:, s.person] for s in samples], 1)
    zones = np.concatenate([s.plan.zones()[:, s.person] for s in samples], 1)
    shaded = _skin_in_any_light(bins[zones[Part.SKIN] > 0])[bins]
    zones[Part.NECK] *= shaded
    table = _table(bins, zones)
    like_skin = table[Part.SKIN][bins] > table[Part.HAIR][bins]
    zones[Part.HAIR, like_skin] = 0.0  # ears, and the heads of the bald
    table = _table(bins, zones)
    for _ in range(ROUNDS):
        share = _shares(table[:, bins] + prior)
        share[Part.NECK] *= shaded
        table = _table(bins, share)
    return PartColors(table)


def _skin_in_any_light(skin: NDArray[np.intp]) -> Float:
    """How well each colour of the table [BINS ** 3] passes for the given skin under another light.

    Light and shade scale a colour; what they leave alone are the ratios of its channels.
    """
    axis = np.log((np.arange(BINS) + 0.5) * (256 / BINS) + DARK)
    red, green, blue = np.meshgrid(axis, axis, axis, indexing="ij")
    ratios = np.stack((red - green, blue - green), -1).reshape(-1, 2)
    own = ratios[skin]
    middle = np.median(own, axis=0)
    spread = np.maximum(1.48 * np.median(np.abs(own - middle), axis=0), RATIO_FLOOR)
    away = ((ratios - middle) / spread) ** 2
    return np.exp(-0.5 * away.sum(1) / 4.0).astype(np.float32)


def _shares(scores: Float) -> Float:
    """Probabilities [4, N] of log beliefs."""
    odds = np.exp(scores - scores.max(0))
    return np.asarray(odds / odds.sum(0), np.float32)


def _table(bins: NDArray[np.intp], share: Float) -> Float:
    """Log frequency [4, BINS ** 3] of colours, of pixels [N] that belong to parts [4, N]."""
    found = np.stack([blurred_frequencies(bins, of_part) for of_part in share])
    logs = np.log((1.0 - UNKNOWN) * found + UNKNOWN / BINS**3)
    best = logs.max(0)
    return np.asarray(np.maximum(logs, best - CERTAINTY) - best, np.float32)


def blurred_frequencies(bins: NDArray[np.intp], share: Float) -> Float:
    """How often every colour [BINS ** 3] is met among pixels [N], of which a share [N] counts."""
    import cv2

    cube = np.bincount(bins, share, BINS**3).astype(np.float32)
    for _ in range(3):  # blurs the first axis, then the next becomes the first
        flat = cv2.GaussianBlur(
            cube.reshape(BINS, -1), (1, 0), sigmaX=1e-3, sigmaY=SOFTNESS,
            borderType=cv2.BORDER_CONSTANT,
        )  # fmt: skip
        cube = np.ascontiguousarray(flat.T)
    return np.asarray(cube.ravel() / max(float(cube.sum()), 1.0), np.float32)
