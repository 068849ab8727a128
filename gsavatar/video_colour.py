"""Upright sRGB of decoded frames: their matrix and range, HDR made SDR, the display matrix.

Phones film in HLG and PQ (ITU-R BT.2100) by default, in colours of BT.2020 and ten bits. Such
frames are mapped by one curve for all pixels: diffuse white becomes 1, lights above it get a soft
shoulder. The curves are tables, as a picture has millions of values and few different ones.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

UInt8 = NDArray[np.uint8]

HD_LINES = 720
"""Untagged video is BT.709 from this many lines up and BT.601 below."""
BT601, BT709, BT2020 = 5, 1, 9
"""Values of swscale's and the stream's colour-space tags (ITU-T H.273 has 5 and 6 for BT.601)."""
MPEG_RANGE, JPEG_RANGE = 1, 2
PQ, HLG = 16, 18
PQ_WHITE_NITS = 203.0
"""Diffuse white of HDR pictures (ITU-R BT.2408): it becomes 1.0."""
HLG_WHITE = 0.265
"""Scene light of the signal of 75 %, which is diffuse white, over the largest."""
KNEE, SHOULDER = 0.8, 0.6
"""Light from which it is compressed, and the light above it that the rest of the range shares."""
TO_BT709 = (
    (1.6605, -0.5876, -0.0728), (-0.1246, 1.1329, -0.0083), (-0.0182, -0.1006, 1.1187),
)  # fmt: skip
"""Linear light in BT.2020's primaries to that in BT.709's."""
CODES = 1 << 16
STEPS = 1 << 14
"""Entries of the table for light of 1: near black, one of them is a fifth of an 8-bit code."""


def to_rgb(frame: Any) -> UInt8:
    """Upright sRGB uint8 [H, W, 3] of a decoded frame."""
    transfer = int(getattr(frame, "color_trc", 0) or 0)
    hdr = transfer in (PQ, HLG)
    matrix = _matrix(frame, BT2020 if hdr else BT709 if frame.height >= HD_LINES else BT601)
    picture = frame.to_ndarray(
        format="rgb48le" if hdr else "rgb24",
        src_colorspace=matrix,
        dst_colorspace=matrix,
        src_color_range=frame.color_range if frame.color_range in (1, 2) else MPEG_RANGE,
        dst_color_range=JPEG_RANGE,
    )
    if hdr:
        picture = _hdr_to_sdr(picture, transfer)
    return turned(picture, rotation(frame) // 90)


def turned(picture: UInt8, quarters: int) -> UInt8:
    """A picture [H, W, 3] turned clockwise by so many quarters."""
    return np.ascontiguousarray(np.rot90(picture, -quarters % 4))


def rotation(frame: Any) -> int:
    """Clockwise turn in degrees that makes a frame upright, from its display matrix."""
    return round(-float(getattr(frame, "rotation", 0) or 0) / 90.0) * 90 % 360


def _matrix(frame: Any, usual: int) -> int:
    """swscale's name of the YUV matrix that a frame was made with; ``usual`` if it does not say."""
    tag = int(getattr(frame, "colorspace", 2) or 2)
    if tag in (1, 4, 5, 6, 7, 9):
        return {6: BT601, 4: BT601}.get(tag, tag)
    return usual


def _hdr_to_sdr(picture: NDArray[np.uint16], transfer: int) -> UInt8:
    """A plain global mapping of PQ or HLG [H, W, 3] to SDR."""
    import cv2

    light = _light(transfer)[picture]
    steps = cv2.transform(light, np.array(TO_BT709, np.float32) * STEPS)
    return np.asarray(_shown()[np.clip(steps, 0, CODES - 1).astype(np.uint16)])


@cache
def _light(transfer: int) -> NDArray[np.float32]:
    """Linear light of each code, diffuse white 1."""
    signal = np.arange(CODES) / (CODES - 1)
    if transfer == PQ:  # SMPTE ST 2084
        m1, m2, c1, c2, c3 = 0.1593017578, 78.84375, 0.8359375, 18.8515625, 18.6875
        power = signal ** (1 / m2)
        light = (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)
        light *= 10_000.0 / PQ_WHITE_NITS
    else:  # ITU-R BT.2100 HLG
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        light = np.where(signal <= 0.5, signal**2 / 3.0, (np.exp((signal - c) / a) + b) / 12.0)
        light /= HLG_WHITE
    return np.asarray(light, np.float32)


@cache
def _shown() -> UInt8:
    """The 8-bit sRGB code of each step of light."""
    light = np.arange(CODES) / STEPS
    over = (1.0 - KNEE) * np.tanh((light - KNEE) / SHOULDER)
    light = np.where(light < KNEE, light, KNEE + over)
    srgb = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.asarray((srgb * 255.0).round(), np.uint8)
