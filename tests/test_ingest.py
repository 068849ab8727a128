"""Stages of ingestion on made footage: the sound's offset and the background plate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_clip

from gsavatar import ingest
from gsavatar.clip import Clip
from gsavatar.frames import decode_png
from gsavatar.progress import SilentReporter
from gsavatar.sequence import Sequence, save_sequence
from gsavatar.types import Region

RATE = 16_000


def sequence_of(clip: Clip) -> Sequence:
    return Sequence(
        clip.frame_ids.numpy(), clip.time_s.numpy(), clip.track.file_index.numpy(), clip.landmarks
    )


@pytest.mark.parametrize(
    ("found", "options", "moved_s"),
    [
        ((200.0, 0.9), ingest.IngestOptions(), 0.2),
        ((-80.0, 0.9), ingest.IngestOptions(), -0.08),
        ((200.0, 0.3), ingest.IngestOptions(), 0.0),  # a guess
        ((30.0, 0.9), ingest.IngestOptions(), 0.0),  # less than a frame
        ((200.0, 0.9), ingest.IngestOptions(correct_offset=False), 0.0),
    ],
)
def test_the_offset_is_noted_and_corrected_where_it_is_sure(
    tiny_clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    found: tuple[float, float], options: ingest.IngestOptions, moved_s: float,
) -> None:  # fmt: skip
    ramp = np.linspace(0.01, 0.02, 4 * RATE, dtype=np.float32)
    extract = ingest.speech.extract
    heard: list[np.ndarray] = []

    def listened(samples: np.ndarray, encoder: str = "log_mel", progress: Any = None) -> Any:
        heard.append(samples.copy())
        return extract(samples[:RATE], encoder=encoder)

    monkeypatch.setattr(ingest, "joined_sound", lambda *_: ramp)
    monkeypatch.setattr(ingest.speech, "extract", listened)
    monkeypatch.setattr(ingest.speech, "estimate_av_offset", lambda *_: found)
    meta: dict[str, Any] = {"sources": []}
    save_sequence(tmp_path, sequence_of(tiny_clip), tiny_clip.stored)
    told = ingest._speech([], meta, tmp_path, options, SilentReporter())
    assert (told["av_offset_ms"], told["av_offset_confidence"]) == found
    kept = np.load(tmp_path / "audio.npy")
    middle = 2 * RATE
    assert len(kept) == len(ramp)
    assert kept[middle] == ramp[middle + round(moved_s * RATE)]
    assert np.array_equal(heard[-1], kept)  # what is learnt from is what is kept
    assert bool(told["speech_notes"]) == (moved_s != 0.0)


def test_the_plate_of_a_clip_shows_no_person(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip", frames=40)
    (clip.root / "plate0.png").unlink()
    meta: dict[str, Any] = {"sources": [{"crop": [0.0, 0.0, 512.0, 512.0]}], "notes": []}
    save_sequence(clip.root, sequence_of(clip), clip.stored)
    ingest._finish(clip.root, meta, clip.track, None, SilentReporter())
    plate = decode_png((clip.root / "plate0.png").read_bytes())
    first, labels = clip.frame(0), clip.regions(0)
    person = labels != int(Region.BACKGROUND)
    away = np.abs(plate.astype(int) - first).sum(-1)
    assert away[person].mean() > 60 and away[:100, :100].mean() < 6
    background = first[~person].mean(0)
    assert np.abs(plate[person].mean(0) - background).max() < 12
    assert meta["plate_unseen"][0] == pytest.approx(float(person.mean()), abs=0.12)
