"""Sound files in, 16 kHz mono out; what cannot be read is said in one sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from gsavatar import audio, video
from gsavatar.errors import InputError

RATES = (8_000, 16_000, 22_050, 44_100, 48_000)


def tone(rate: int, seconds: float = 0.5, hz: float = 440.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hz * np.arange(round(rate * seconds)) / rate)).astype("f4")


@pytest.mark.parametrize("rate", RATES)
def test_a_tone_keeps_its_length_pitch_and_level(tmp_path: Path, rate: int) -> None:
    path = tmp_path / "tone.wav"
    soundfile.write(path, tone(rate), rate, subtype="FLOAT")
    samples = audio.load(path)
    assert samples.dtype == np.float32 and samples.shape == (8000,)
    assert np.abs(samples[800:-800] - tone(16_000)[800:-800]).max() < 2e-3


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg", "mp3"])
def test_formats(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"tone.{kind}"
    soundfile.write(path, np.stack([tone(16_000), tone(16_000)], 1), 16_000)
    samples = audio.load(path)
    assert abs(len(samples) - 8000) <= 1200  # mp3 pads to whole frames
    spectrum = np.abs(np.fft.rfft(samples))
    assert np.fft.rfftfreq(len(samples), 1 / 16_000)[spectrum.argmax()] == pytest.approx(440, abs=3)


def test_channels_are_averaged_and_peaks_clipped(tmp_path: Path) -> None:
    path = tmp_path / "stereo.wav"
    left = np.full(1600, 0.5, np.float32)
    soundfile.write(path, np.stack([left, -0.1 * left], 1), 16_000, subtype="FLOAT")
    assert audio.load(path) == pytest.approx(0.225)
    soundfile.write(path, np.full(1600, 3.0, np.float32), 16_000, subtype="FLOAT")
    assert audio.load(path).max() == 1.0


def test_the_sound_of_a_video(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    with video.VideoWriter(path, 64, 64, 25.0, audio=tone(16_000, 1.0)) as writer:
        for _ in range(25):
            writer.write(np.zeros((64, 64, 3), np.uint8))
    samples = audio.load(path)
    assert len(samples) == pytest.approx(16_000, abs=700)
    spectrum = np.abs(np.fft.rfft(samples))
    assert np.fft.rfftfreq(len(samples), 1 / 16_000)[spectrum.argmax()] == pytest.approx(440, abs=3)
    with video.VideoWriter(path, 64, 64, 25.0) as writer:
        writer.write(np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(InputError, match=r"clip\.mp4 has no audio track"):
        audio.load(path)


def test_a_long_sound_is_read_from_disk_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "long.wav"
    soundfile.write(path, np.stack([tone(44_100, 3.0)] * 2, 1), 44_100, subtype="FLOAT")
    whole = audio.load(path)
    monkeypatch.setattr(audio, "BLOCK_SAMPLES", 1000)
    sound = audio.open_sound(path)
    assert len(sound) == 48_000 and np.abs(sound[:] - whole).max() < 1e-6
    assert np.array_equal(sound[20_000:20_010], sound[:][20_000:20_010])
    assert len(sound[47_990:60_000]) == 10 and len(sound[60_000:70_000]) == 0
    with pytest.raises(InputError, match=r"long\.wav lasts longer than 2 s"):
        audio.open_sound(path, longest_s=2.0)


def test_files_that_are_no_sound(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.wav does not exist"):
        audio.load(tmp_path / "nothing.wav")
    with pytest.raises(InputError, match="is a folder"):
        audio.load(tmp_path)
    empty = tmp_path / "empty.wav"
    empty.touch()
    with pytest.raises(InputError, match=r"empty\.wav is empty"):
        audio.load(empty)
    text = tmp_path / "text.wav"
    text.write_text("this is no sound at all\n" * 20)
    with pytest.raises(InputError, match=r"text\.wav cannot be read as sound"):
        audio.load(text)
    nothing = tmp_path / "none.wav"
    soundfile.write(nothing, np.zeros(0, np.float32), 16_000)
    with pytest.raises(InputError, match=r"none\.wav holds 0 samples"):
        audio.load(nothing)
    broken = tmp_path / "nan.wav"
    soundfile.write(broken, np.full(1600, np.nan, np.float32), 16_000, subtype="FLOAT")
    with pytest.raises(InputError, match="not numbers"):
        audio.load(broken)


def test_silence_is_told_from_a_whisper() -> None:
    rng = np.random.default_rng(0)
    assert audio.is_silent(np.zeros(0, np.float32))
    assert audio.is_silent(np.zeros(16_000, np.float32))
    assert audio.is_silent(rng.normal(0, 3e-5, 16_000).astype(np.float32))
    late = np.zeros(32_000, np.float32)
    late[-1000:] = 0.01 * tone(16_000)[:1000]
    assert not audio.is_silent(late)
