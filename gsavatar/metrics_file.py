"""``metrics.json``: its skeleton, what stays of an earlier one, the facts beside the scores."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gsavatar.clip import TEST_MAX_FRAMES
from gsavatar.devices import device_words
from gsavatar.frames import write_text_atomic
from gsavatar.scoring import PASTED_COLUMNS, TEST_KEYS
from gsavatar.types import PROTOCOL_SIZE

if TYPE_CHECKING:
    from gsavatar.package import Package

VERSION = 1
SPLIT = (
    "first 10/11 train, last 1/11 (at least 2 s, of which at most the first "
    f"{TEST_MAX_FRAMES} frames are measured) test, 0.5 s between them dropped"
)
BASELINES = ("mean_frame", "nearest_pose_frame", "still_mouth", "previous_frame")
SPEED_KEYS = (
    "fit_seconds", "stages", "render_fps", "train_iters_per_s", "peak_rss_mb", "peak_vram_mb",
)  # fmt: skip
EXPRESSION = "test_expression"
EXPRESSION_PASTED = "test_expression_pasted"
"""Only there once it was measured: most runs are never driven by the expression."""
FILE = "metrics.json"


def split_words(test_from_s: float | None) -> str:
    """How a clip is divided: by this project's rule, or as the footage came."""
    if test_from_s is None:
        return SPLIT
    return f"as the folder states it: test from {test_from_s:g} s on, 0.5 s before it dropped"


def skeleton() -> dict[str, Any]:
    """A ``metrics.json`` with every key and no number."""
    blank: dict[str, Any] = dict.fromkeys(TEST_KEYS)
    return {
        "version": VERSION,
        "protocol": {"split": SPLIT, "size": PROTOCOL_SIZE, "drive": "audio", "seed": 0},
        "test": dict(blank),
        "test_pasted": dict.fromkeys(PASTED_COLUMNS),
        EXPRESSION: dict(blank),
        "speech": {"cv_open_corr": None},
        "ci": {key: None for key in TEST_KEYS if key != "frames"},
        "baselines": {name: dict(blank) for name in BASELINES},
        "speed": dict.fromkeys(SPEED_KEYS),
        "model": dict.fromkeys(("gaussians", "coefficients", "file_mb")),
        "av_offset_ms": None,
        "device": "",
        "notes": [],
    }


def read(run_dir: Path) -> dict[str, Any]:
    """An earlier ``metrics.json`` over the skeleton; the skeleton if there is none of ours."""
    result = skeleton()
    try:
        found = json.loads((run_dir / FILE).read_text())
    except (OSError, ValueError):
        return result
    if not isinstance(found, dict) or found.get("version") != VERSION:
        return result
    for key, value in found.items():
        if isinstance(result.get(key), dict):
            result[key] |= value if isinstance(value, dict) else {}
        else:
            result[key] = value
    if not isinstance(result["notes"], list):
        result["notes"] = []
    return result


def write(run_dir: Path, content: dict[str, Any]) -> None:
    """Replaces ``metrics.json``. Raises ``ValueError`` for a number that is not finite."""
    write_text_atomic(run_dir / FILE, json.dumps(content, indent=1, allow_nan=False) + "\n")


def merged(old: dict[str, Any], new: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """Earlier metrics with newly measured sections in their place.

    Notes begin with the section they belong to; those of sections measured anew are replaced.
    """
    result = {**old, **new}
    result["protocol"] = {**old["protocol"], **new.get("protocol", {})}
    only_expression = EXPRESSION in new
    if only_expression:
        kept = [n for n in old["notes"] if not n.startswith(EXPRESSION)]
    else:
        kept = [n for n in old["notes"] if n.startswith(EXPRESSION)]
        if old[EXPRESSION]["frames"] is None:
            kept = [f"{EXPRESSION}: not measured; run `gsavatar evaluate RUN --drive expression`"]
    if only_expression and old["test"]["frames"] is None:
        kept.append("test: not measured yet; run `gsavatar evaluate RUN`")
    result["notes"] = list(dict.fromkeys([*notes, *kept]))
    return result


def add_facts(
    content: dict[str, Any],
    package: Package,
    avatar: Path,
    fit_info: Mapping[str, Any] | None,
    render_fps: float,
) -> None:
    """Fills in speed, model, seed, offset and device; what only a fit knows stays without one."""
    info = dict(fit_info or {})
    speed = content["speed"]
    for key in SPEED_KEYS:
        if info.get(key) is not None:
            speed[key] = info[key]
    speed["render_fps"] = render_fps
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated() > 0:
        speed["peak_vram_mb"] = torch.cuda.max_memory_allocated() / 2**20
    content["model"] = {
        "gaussians": len(package.avatar), "coefficients": len(package.names),
        "file_mb": avatar.stat().st_size / 1e6,
    }  # fmt: skip
    if "seed" in info:
        content["protocol"]["seed"] = info["seed"]
    content["av_offset_ms"] = info.get("av_offset_ms", package.card.get("av_offset_ms"))
    content["device"] = info.get("device") or content["device"] or device_words("cpu")
    missing = [f"speed.{key}" for key in SPEED_KEYS if speed[key] is None]
    notes = content["notes"] = [n for n in content["notes"] if not n.startswith(("speed.", "av_"))]
    if "speed.peak_vram_mb" in missing:
        missing.remove("speed.peak_vram_mb")
        notes.append("speed.peak_vram_mb: no GPU was used")
    if missing:
        notes.append(f"{', '.join(missing)}: only a finished fit knows this")
    if content["av_offset_ms"] is None:
        notes.append("av_offset_ms: the clip has no sound to compare with the lips")
