"""The benchmarks' own bookkeeping: what they report under which name, and what they refuse."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(FOLDER))

import quality  # noqa: E402
import tracking_real  # noqa: E402


def test_real_rows_are_reported_by_clip_and_minutes() -> None:
    rows = [
        tracking_real.row("jitter", "may", "a", 0.1, "", True, {"jitter_ratio": 0.25}),
        tracking_real.row("offset", "may", "b", 3.0, "", True, {"av_offset_ms": 12.0}),
        tracking_real.row("offset", "may", "c", 0.9, "", True),
        tracking_real.row("memory", "lieu", "d", 900.0, "", True, {"1": 900.0}),
        tracking_real.row("memory", "lieu", "e", 950.0, "", True, {"10": 950.0}),
    ]
    assert tracking_real.keyed(rows) == {
        "real": {"may": {"jitter_ratio": 0.25, "av_offset_ms": 12.0}},
        "peak_rss_mb": {"1": 900.0, "10": 950.0},
    }
    assert tracking_real.keyed(rows[:1]) == {"real": {"may": {"jitter_ratio": 0.25}}}


@pytest.mark.parametrize("name", ["quality", "tracking", "ablation", "voices", "speech_settings"])
def test_every_benchmark_writes_its_numbers_with_json(name: str) -> None:
    words = [sys.executable, str(FOLDER / f"{name}.py"), "--help"]
    shown = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert "--json " in shown and "--json-out" not in shown


def test_a_run_of_another_clip_is_not_reported_as_this_one(tmp_path: Path) -> None:
    one, other = tmp_path / "a" / "video.mp4", tmp_path / "b" / "video.mp4"
    for path, size in ((one, 10), (other, 11)):
        path.parent.mkdir()
        path.write_bytes(b"0" * size)
    run = tmp_path / "work" / "video-preview"
    run.mkdir(parents=True)
    (run / "run.json").write_text(
        json.dumps({"videos": [{"name": "video.mp4", "bytes": 10}], "face": None})
    )
    (run / "timing.json").write_text(json.dumps({"finished": True}))
    assert quality.fitted(one, "preview", tmp_path / "work") == run
    with pytest.raises(SystemExit, match="made of another"):
        quality.fitted(other, "preview", tmp_path / "work")
