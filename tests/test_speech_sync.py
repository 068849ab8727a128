"""The sound's offset from the lips: on readings whose lips are known, and who is asked first."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.signal import lfilter

from gsavatar import speech_sync
from gsavatar.ingest_sound import doubts
from gsavatar.speech_features import LOG_MEL, SpeechFeatures
from gsavatar.speech_sounds import NAMES, sound_axes
from gsavatar.speech_sync import (
    SAMPLE_RATE,
    MouthPath,
    Offset,
    fullest,
    offset_by_readings,
    sound_offset,
)

RATE, FPS = 50.0, 25.0


def wander(steps: int, rng: np.random.Generator) -> np.ndarray:
    """A syllable-like path at 50 Hz, of deviation 1."""
    path = lfilter([1.0], [1.0, -1.75, 0.85], rng.normal(size=steps + 200))[200:]
    return np.asarray(path / path.std())


def talk(seconds: float, seed: int, noise: float = 1.0) -> tuple[SpeechFeatures, MouthPath]:
    """Features whose readings follow an opening and a breadth, with noise, and that mouth."""
    rng = np.random.default_rng(seed)
    steps = round(seconds * RATE)
    opening, breadth = wander(steps, rng), wander(steps, rng)
    wanted = noise * np.stack([wander(steps, rng) for _ in NAMES], 1)
    for name, value in (
        ("jawOpen", opening), ("mouthPress", -opening), ("mouthSmile", breadth),
        ("mouthPucker", -breadth),
    ):  # fmt: skip
        wanted[:, NAMES.index(name)] += value
    axes = sound_axes(LOG_MEL).double().numpy()
    values = torch.from_numpy(wanted @ np.linalg.pinv(axes)).float()
    voice = torch.ones(steps)
    features = SpeechFeatures(values, voice, torch.zeros(values.shape[1]), RATE, LOG_MEL)
    time_s = np.arange(round(seconds * FPS)) / FPS
    at = np.arange(steps) / RATE
    slow = 0.05 * np.sin(0.3 * time_s)  # a smile that comes and goes
    mouth = MouthPath(
        time_s, 0.02 + 0.01 * np.interp(time_s, at, opening),
        0.6 + 0.05 * np.interp(time_s, at, breadth) + slow,
    )  # fmt: skip
    return features, mouth


@pytest.mark.parametrize("late_s", [-0.3, -0.1, 0.0, 0.13, 0.5])
def test_known_readings_tell_the_offset_of_a_few_seconds(late_s: float) -> None:
    features, mouth = talk(8.0, 1)
    some = (mouth.time_s > 0.6) & (mouth.time_s < 7.0)
    some[60:64] = False
    # Frames stamped early by `late_s` are frames whose sound comes late.
    moved = mouth.at(some, late_s)
    moved.opening[5] = np.nan  # no face
    found = offset_by_readings(features, moved)
    lead_ms = 1000 * speech_sync.speech.LIP_LEAD_S
    assert found.late_ms + lead_ms == pytest.approx(1000 * late_s, abs=12)
    assert found.sure


def test_the_sound_of_another_clip_is_not_believed() -> None:
    talks = [talk(7.0, seed) for seed in range(8)]
    own = [offset_by_readings(features, mouth) for features, mouth in talks]
    other = [
        offset_by_readings(features, mouth)
        for (features, _), (_, mouth) in zip(talks, talks[1:] + talks[:1], strict=True)
    ]
    assert all(offset.sure and not offset.counts for offset in own)
    assert not any(offset.sure for offset in other)


def test_too_little_to_compare_gives_no_offset() -> None:
    features, mouth = talk(8.0, 1)
    nothing = Offset(0.0, 0.0)
    assert offset_by_readings(features, mouth.at(mouth.time_s < 3.0)) == nothing
    lost = MouthPath(mouth.time_s, np.full(len(mouth.time_s), np.nan), mouth.width)
    assert offset_by_readings(features, lost) == nothing
    still = MouthPath(mouth.time_s, np.full(len(mouth.time_s), 0.01), np.ones(len(mouth.time_s)))
    assert not offset_by_readings(features, still).sure
    elsewhere = MouthPath(mouth.time_s + 100.0, mouth.opening, mouth.width)
    assert offset_by_readings(features, elsewhere) == nothing


def test_a_strange_soundtrack_is_said() -> None:
    features, mouth = talk(10.0, 1)
    assert len(doubts(0.1, mouth, features)) == 1
    assert doubts(0.3, mouth, features) == []
    quiet = replace(features, voice=0.1 * features.voice)
    assert doubts(0.1, mouth, quiet) == []
    assert doubts(0.1, mouth.at(mouth.time_s < 8.0), features) == []
    ends = (mouth.time_s < 1.0) | (mouth.time_s > 9.0)  # a few frames far apart are too little
    assert doubts(0.1, mouth.at(ends), features) == []
    assert doubts(0.1, mouth.at(mouth.time_s < 0.0), features) == []


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the clip's own witness says (``own``), and what was encoded how (``asked``)."""
    told: dict[str, Any] = {"own": (120.0, 0.9), "asked": [], "features": talk(8.0, 1)[0]}

    def extract(part: np.ndarray, encoder: str = "auto") -> SpeechFeatures:
        told["asked"].append((len(part), encoder))
        return told["features"]

    monkeypatch.setattr(speech_sync.speech, "extract", extract)
    monkeypatch.setattr(speech_sync.speech, "estimate_av_offset", lambda *_: told["own"])
    return told


def seconds(count: float) -> np.ndarray:
    """Silence."""
    return np.zeros(round(count * SAMPLE_RATE), np.float32)


def test_a_short_clip_is_told_by_known_readings(heard: dict[str, Any]) -> None:
    mouth = talk(8.0, 1)[1]
    found = sound_offset(seconds(8), mouth)  # however sure its own witness is
    assert found.sure and abs(found.late_ms) < 30 and heard["asked"][-1][1] == "auto"
    stranger = talk(8.0, 2)[1]
    assert sound_offset(seconds(8), stranger) == Offset(120.0, speech_sync.UNBELIEVED)
    heard["own"] = (120.0, 0.1)
    assert not sound_offset(seconds(8), stranger).sure


def test_a_long_clip_is_its_own_witness_if_it_is_sure(heard: dict[str, Any]) -> None:
    time_s = np.arange(0.0, 100.0, 0.04)
    mouth = MouthPath(time_s, np.zeros(len(time_s)), np.ones(len(time_s)))
    assert sound_offset(seconds(100), mouth) == Offset(120.0, 0.9)
    assert heard["asked"] == [(100 * SAMPLE_RATE, "log_mel")]
    heard["own"] = (500.0, 0.3)
    assert sound_offset(seconds(100), mouth) == Offset(500.0, 0.3)
    assert heard["asked"][-1] == (60 * SAMPLE_RATE, "auto")


def test_readings_are_sought_where_a_face_is(heard: dict[str, Any]) -> None:
    mouth = talk(8.0, 1)[1]
    late = MouthPath(mouth.time_s + 90.0, mouth.opening, mouth.width)
    heard["own"] = (0.0, 0.0)
    heard["features"] = replace(
        heard["features"], values=torch.cat((torch.zeros(1500, 80), heard["features"].values)),
        voice=torch.ones(1900),
    )  # fmt: skip
    found = sound_offset(seconds(100), late)
    assert found.sure and abs(found.late_ms) < 30
    assert heard["asked"][-1] == (40 * SAMPLE_RATE, "auto")  # from 60 s on
    assert fullest(np.zeros(0)) == 0.0
