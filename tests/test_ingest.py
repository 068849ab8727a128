"""Stages of ingestion on made footage: the sound's offset and the background plate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import babble, make_clip

from gsavatar import ingest, ingest_sound, speech_sync
from gsavatar.clip import Clip, load_features
from gsavatar.footage import VideoFile
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
    ("found", "correct", "moved_s"),
    [
        ((200.0, 0.9), True, 0.2),
        ((-80.0, 0.9), True, -0.08),
        ((200.0, 0.3), True, 0.0),  # a guess
        ((30.0, 0.9), True, 0.0),  # less than a frame
        ((200.0, 0.9), False, 0.0),
    ],
)
def test_the_offset_is_noted_and_corrected_where_it_is_sure(
    tiny_clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    found: tuple[float, float], correct: bool, moved_s: float,
) -> None:  # fmt: skip
    ramp = np.linspace(0.01, 0.02, 4 * RATE, dtype=np.float32)
    extract = ingest_sound.speech.extract
    heard: list[np.ndarray] = []

    def listened(samples: np.ndarray, encoder: str = "log_mel", progress: Any = None) -> Any:
        heard.append(samples.copy())
        return extract(samples[:RATE], encoder=encoder)

    monkeypatch.setattr(ingest_sound, "sounds_of", lambda *_: [ramp])
    monkeypatch.setattr(ingest_sound.speech, "extract", listened)
    offset = ingest_sound.Offset(*found)
    monkeypatch.setattr(ingest_sound, "heard_offset", lambda *_: (offset, None))
    save_sequence(tmp_path, sequence_of(tiny_clip), tiny_clip.stored)
    footage = [VideoFile(Path("me.mp4"))]
    told = ingest_sound.hear(footage, [4.0], tmp_path, SilentReporter(), correct_offset=correct)
    assert (told["av_offset_ms"], told["av_offset_confidence"]) == found
    kept = np.load(tmp_path / "audio.npy")
    middle = 2 * RATE
    assert len(kept) == len(ramp)
    assert kept[middle] == ramp[middle + round(moved_s * RATE)]
    assert np.array_equal(heard[-1], kept)  # what is learnt from is what is kept
    assert bool(told["speech_notes"]) == (moved_s != 0.0)


@pytest.mark.parametrize(("late_ms", "times"), [(0.0, 1), (200.0, 2)])
def test_a_short_sound_is_encoded_once_unless_it_is_moved(
    tiny_clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late_ms: float, times: int
) -> None:
    """Its offset is sought in the same features that are kept."""
    extract = ingest_sound.speech.extract
    encoded: list[np.ndarray] = []

    def listened(samples: np.ndarray, encoder: str = "auto", progress: Any = None) -> Any:
        if encoder == "auto":
            encoded.append(samples.copy())
        return extract(samples, encoder="log_mel")

    found = ingest_sound.Offset(late_ms, 0.9)
    monkeypatch.setattr(ingest_sound, "sounds_of", lambda *_: [babble(4.0)])
    monkeypatch.setattr(ingest_sound.speech, "extract", listened)
    monkeypatch.setattr(speech_sync, "offset_by_readings", lambda *_: found)
    save_sequence(tmp_path, sequence_of(tiny_clip), tiny_clip.stored)
    footage = [VideoFile(Path("me.mp4"))]
    told = ingest_sound.hear(footage, [4.0], tmp_path, SilentReporter(), correct_offset=True)
    assert (told["av_offset_ms"], len(encoded)) == (late_ms, times)
    kept = np.load(tmp_path / "audio.npy")
    assert np.array_equal(encoded[-1], kept)  # what is learnt from is what is kept
    features = load_features(tmp_path / "features.safetensors")
    assert torch.equal(features.values, extract(kept, encoder="log_mel").values)


def test_each_of_several_files_has_its_own_offset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve seconds in sync, seven 240 ms late, and three that are too few to tell."""
    lengths_s = (12.0, 7.0, 3.0)
    parts = [np.full(round(s * RATE), 0.1 * (i + 1), np.float32) for i, s in enumerate(lengths_s)]
    parts[1][: RATE // 2] = 0.0
    time_s = np.arange(0.0, sum(lengths_s), 0.04)
    file = np.searchsorted(np.cumsum(lengths_s), time_s, side="right")
    path = ingest_sound.MouthPath(time_s, np.zeros(len(time_s)), np.ones(len(time_s)))
    lips = ingest_sound.Lips(path, file)
    asked: list[tuple[int, float, float]] = []

    def estimate(samples: np.ndarray, mouth: ingest_sound.MouthPath) -> ingest_sound.Offset:
        asked.append((len(samples), float(mouth.time_s[0]), float(mouth.time_s[-1])))
        confidence = 0.2 if len(samples) > 12.0 * RATE else 0.9
        return ingest_sound.Offset(240.0 if samples[0] == 0.0 else 0.0, confidence)

    monkeypatch.setattr(ingest_sound, "sound_offset", estimate)
    usual = estimate(np.concatenate(parts), path)
    own = [ingest_sound.of_file(i, parts, lips, usual) for i in range(3)]
    assert [o.late_ms * o.counts for o in own] == [0.0, 240.0, 0.0]
    assert own[0] == own[2] == usual and len(asked) == 3
    assert asked[2] == (7 * RATE, pytest.approx(0.0), pytest.approx(6.96))  # on its own clock
    names = ["a.mp4", "b.mp4", "c.mp4"]
    assert ingest_sound._told(names, own) == ["The sound was 240 ms late in b.mp4; corrected."]
    assert ingest_sound._told(names, [own[1]] * 3) == ["The sound was 240 ms late; corrected."]


def test_the_plate_of_a_clip_shows_no_person(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip", frames=40)
    (clip.root / "plate0.png").unlink()
    meta: dict[str, Any] = {"sources": [{"crop": [0.0, 0.0, 512.0, 512.0]}], "notes": []}
    save_sequence(clip.root, sequence_of(clip), clip.stored)
    track = replace(clip.track, notes=("The skin says nothing.",))
    ingest._finish(clip.root, meta, track, None, SilentReporter())
    assert meta["notes"][0] == "The skin says nothing."
    plate = decode_png((clip.root / "plate0.png").read_bytes())
    first, labels = clip.frame(0), clip.regions(0)
    person = labels != int(Region.BACKGROUND)
    away = np.abs(plate.astype(int) - first).sum(-1)
    assert away[person].mean() > 60 and away[:100, :100].mean() < 6
    background = first[~person].mean(0)
    assert np.abs(plate[person].mean(0) - background).max() < 12
    assert meta["plate_unseen"][0] == pytest.approx(float(person.mean()), abs=0.12)
