"""What an evaluation leaves for eyes: chosen test frames, series over time, and all frames."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from gsavatar import metrics, metrics_motion
from gsavatar.errors import InputError
from gsavatar.frames import encode_png, write_text_atomic
from gsavatar.metrics import Box, Mask, UInt8
from gsavatar.scoring import Scores

SAMPLES = 9
"""Test frames kept for the report, evenly spread; the worst one comes on top."""
FOLDER = "evaluation"
SERIES = "series.json"


class Samples:
    """Collects pictures while frames stream by; writes them atomically as one folder.

    Raises ``InputError`` at once if ``frames_dir`` cannot hold them.
    """

    def __init__(
        self, folder: Path, frame_ids: list[int], frames_dir: Path | None, composite: str
    ) -> None:
        self.folder = folder
        self.frame_ids = frame_ids
        self.frames_dir = frames_dir
        self.composite = composite
        if frames_dir is not None:
            _make_folders(frames_dir)
        self.partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(self.partial, ignore_errors=True)
        self.partial.mkdir(parents=True)
        count = len(frame_ids)
        self.spread = set(np.linspace(0, count - 1, min(count, SAMPLES)).astype(int).tolist())
        self.worst: tuple[float, int, UInt8, UInt8] | None = None
        self.chosen: list[dict[str, Any]] = []

    def add(self, i: int, real: UInt8, rendered: UInt8, head: Mask, lips: Box | None) -> None:
        """One test frame: written if it is asked for, remembered if it is worth showing."""
        if self.frames_dir is not None:
            shown = metrics.pasted(rendered, real, head) if self.composite == "pasted" else rendered
            for kind, picture in (("render", shown), ("real", real)):
                _write(self.frames_dir / kind / f"{self.frame_ids[i]:06d}.png", picture)
        if i in self.spread:
            self._keep(i, real, rendered, lips, "")
            return
        score = metrics.psnr(rendered, real, head)
        if np.isfinite(score) and (self.worst is None or score < self.worst[0]):
            self.worst = (score, i, real, rendered)
            self._worst_lips = lips

    def _keep(self, i: int, real: UInt8, rendered: UInt8, lips: Box | None, why: str) -> None:
        frame = self.frame_ids[i]
        _write(self.partial / f"{frame:06d}_real.png", real)
        _write(self.partial / f"{frame:06d}_render.png", rendered)
        self.chosen.append({"frame": frame, "row": i, "mouth": lips, "why": why})

    def finish(self, scores: Scores, name: str) -> None:
        """Writes the series and moves the folder into place."""
        if self.worst is not None:
            _, i, real, rendered = self.worst
            self._keep(i, real, rendered, self._worst_lips, "the worst head")
        columns = scores.sheets[name].columns
        shifts = np.stack((columns["shift_x"], columns["shift_y"]), -1)
        jerks = metrics_motion.jerks(shifts, scores.time_s)
        for item in self.chosen:
            item["psnr_head"] = _plain(columns["psnr_head"][[item["row"]]])[0]
            item["time_s"] = float(scores.time_s[item["row"]])
        series = {
            "time_s": [float(t) for t in scores.time_s],
            "opening_real": _plain(scores.opening),
            "opening_render": _plain(columns["opening"]),
            "psnr_head": _plain(columns["psnr_head"]),
            "jitter_px": _plain(np.hypot(jerks[:, 0], jerks[:, 1])),
            "samples": self.chosen,
        }
        write_text_atomic(self.partial / SERIES, json.dumps(series))
        shutil.rmtree(self.folder, ignore_errors=True)
        os.replace(self.partial, self.folder)


def _make_folders(frames_dir: Path) -> None:
    """Makes the folders of all frames before any work is spent on them."""
    try:
        for kind in ("render", "real"):
            (frames_dir / kind).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{frames_dir}: frames cannot be written there ({error.strerror}); choose another "
            "--frames."
        ) from None


def _write(path: Path, picture: UInt8) -> None:
    """A PNG, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(encode_png(picture))
    os.replace(partial, path)


def _plain(values: np.ndarray) -> list[float | None]:
    """Numbers for JSON, NaN as null."""
    return [float(v) if np.isfinite(v) else None for v in values]
