"""Pictures of the report: real beside rendered, where they differ, and the mouth enlarged."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gsavatar.frames import decode_png
from gsavatar.metrics import UInt8

JPEG_QUALITY = 88
SHOWN_PX = 400
MOUTH_ZOOM = 3
ERROR_FULL = 48
"""Mean absolute difference, in grey levels, that the error map shows as its brightest colour."""
STOPS = np.array(
    [[0, 0, 0, 4], [0.25, 87, 16, 110], [0.5, 188, 55, 84], [0.75, 249, 142, 9],
     [1.0, 252, 255, 164]]
)  # fmt: skip
"""Dark to bright through red: larger errors look larger in grey as well."""


@dataclass(frozen=True)
class Sample:
    """One test frame, ready to be put into the page."""

    caption: str
    real: str  # data URIs
    rendered: str
    error: str
    real_mouth: str | None
    rendered_mouth: str | None


def load_sample(folder: Path, item: dict[str, Any]) -> Sample:
    """A sample an evaluation left. Raises ``OSError`` or ``ValueError`` if its files are gone."""
    frame = int(item["frame"])
    real, rendered = (
        decode_png((folder / f"{frame:06d}_{kind}.png").read_bytes()) for kind in ("real", "render")
    )
    caption = f"frame {frame}, {float(item['time_s']):.2f} s"
    if item.get("psnr_head") is not None:
        caption += f", head {item['psnr_head']:.1f} dB"
    if item.get("why"):
        caption += f" · {item['why']}"
    mouths: list[str | None] = [None, None]
    if item.get("mouth"):
        top, left, bottom, right = (int(v) for v in item["mouth"])
        crops = (p[top:bottom, left:right] for p in (real, rendered))
        mouths = [jpeg_uri(_scaled(c, MOUTH_ZOOM * c.shape[1])) for c in crops]
    shown = [jpeg_uri(_scaled(p, SHOWN_PX)) for p in (real, rendered, error_map(rendered, real))]
    return Sample(caption, shown[0], shown[1], shown[2], mouths[0], mouths[1])


def error_map(rendered: UInt8, real: UInt8) -> UInt8:
    """Mean absolute difference of the channels in colours from black (none) to yellow."""
    error = np.abs(rendered.astype(np.float64) - real).mean(-1) / ERROR_FULL
    level = np.clip(error, 0.0, 1.0)
    channels = [np.interp(level, STOPS[:, 0], STOPS[:, c]) for c in (1, 2, 3)]
    return np.stack(channels, -1).round().astype(np.uint8)


def _scaled(picture: UInt8, width: int) -> UInt8:
    import cv2

    height = round(picture.shape[0] * width / picture.shape[1])
    how = cv2.INTER_AREA if width < picture.shape[1] else cv2.INTER_CUBIC
    return cv2.resize(picture, (width, height), interpolation=how).astype(np.uint8)


def jpeg_uri(picture: UInt8) -> str:
    """A picture as the data URI of a JPEG."""
    import cv2

    done, data = cv2.imencode(
        ".jpg", np.ascontiguousarray(picture[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    )
    if not done:
        raise ValueError(f"cannot code a picture of shape {picture.shape}")
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()
