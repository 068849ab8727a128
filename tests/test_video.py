"""Video in and out: colours, times, turns, damage, sound of exactly the picture's length."""

from __future__ import annotations

import logging
from pathlib import Path

import av
import numpy as np
import pytest

from gsavatar import audio, video
from gsavatar.errors import InputError

SIZE = 128


def chart() -> np.ndarray:
    """Sixteen flat patches of random colours."""
    patches = np.random.default_rng(0).integers(20, 236, (4, 4, 3))
    return np.kron(patches, np.ones((32, 32, 1))).astype(np.uint8)


def centres(picture: np.ndarray) -> np.ndarray:
    """Mean colour of the inner half of each patch."""
    return picture.astype(float).reshape(4, 32, 4, 32, 3)[:, 8:24, :, 8:24].mean((1, 3))


def film(path: Path, frames: int = 30, sound: np.ndarray | None = None, fps: float = 25.0) -> Path:
    with video.VideoWriter(path, SIZE, SIZE, fps, audio=sound) as writer:
        for i in range(frames):
            writer.write(np.roll(chart(), 4 * i, axis=1) if i else chart())
    return path


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_colours_survive_writing_and_reading(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    with video.VideoWriter(path, SIZE, SIZE, 25) as writer:
        for _ in range(5):
            writer.write(chart())
    _, _, picture = list(video.decode(path))[3]
    assert np.abs(centres(picture) - centres(chart())).max() <= 3.0
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.colorspace == 1  # BT.709


def test_frames_come_with_their_index_and_time(tmp_path: Path) -> None:
    frames = list(video.decode(film(tmp_path / "a.mp4", 20, fps=30.0)))
    assert [f[0] for f in frames] == list(range(20))
    np.testing.assert_allclose([f[1] for f in frames], np.arange(20) / 30.0, atol=1e-3)
    info = video.probe(tmp_path / "a.mp4")
    assert (info.width, info.height, info.has_audio, info.rotation) == (SIZE, SIZE, False, 0)
    assert info.fps == pytest.approx(30.0) and info.duration_s == pytest.approx(20 / 30, abs=0.05)


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_every_picture_is_kept_in_its_place(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    given = [np.full((SIZE, SIZE, 3), 20 + 25 * (3 * i % 8), np.uint8) for i in range(8)]
    with video.VideoWriter(path, SIZE, SIZE, 25) as writer:
        for picture in given:
            writer.write(picture)
    seen = [float(picture.mean()) for _, _, picture in video.decode(path)]
    assert seen == pytest.approx([float(picture.mean()) for picture in given], abs=4.0)


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_sound_stands_where_it_was_given(tmp_path: Path, suffix: str) -> None:
    sound = np.zeros(16_000, np.float32)
    sound[8_000:10_000] = 0.4 * np.sin(2 * np.pi * 440 * np.arange(2_000) / 16_000)
    path = tmp_path / f"a{suffix}"
    with video.VideoWriter(path, SIZE, SIZE, 25, audio=sound) as writer:
        for _ in range(25):
            writer.write(chart())
    loud = np.flatnonzero(np.abs(audio.load(path)) > 0.15)
    assert loud[0] / 16_000 == pytest.approx(0.5, abs=0.02)
    assert loud[-1] / 16_000 == pytest.approx(0.625, abs=0.02)


@pytest.mark.parametrize("samples", [8_000, 16_000, 40_000])
def test_sound_is_exactly_as_long_as_the_picture(tmp_path: Path, samples: int) -> None:
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(samples) / 16_000).astype(np.float32)
    heard = audio.load(film(tmp_path / "a.mp4", 25, tone))
    assert abs(len(heard) / 16_000 - 1.0) <= 0.07  # AAC rounds up to whole packets
    middle = heard[3_000:7_000]
    assert np.sqrt((middle**2).mean()) == pytest.approx(0.3 / np.sqrt(2), rel=0.15)


def test_a_truncated_tail_is_used_up_to_the_damage(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        rng = np.random.default_rng(0)
        for _ in range(50):
            noise = rng.integers(0, 255, (SIZE, SIZE, 3)).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(noise, format="rgb24")))
        container.mux(stream.encode(None))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    with caplog.at_level(logging.WARNING):
        count = sum(1 for _ in video.decode(path))
    assert 10 < count < 50


@pytest.mark.parametrize("content", [b"", b"not a video at all" * 100])
def test_other_files_are_named_with_what_the_decoder_said(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.mp4"
    path.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read as video") as caught:
        video.probe(path)
    assert str(path) in str(caught.value)
    with pytest.raises(InputError, match="no such file"):
        list(video.decode(tmp_path / "none.mp4"))


def test_sound_without_picture_is_no_video(tmp_path: Path) -> None:
    import soundfile

    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(1600), 16_000)
    with pytest.raises(InputError, match="holds no picture"):
        video.probe(path)


def test_a_rotation_flag_is_obeyed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = np.zeros((64, 128, 3), np.uint8)
    picture[:, :64] = 255  # stored: white on the left
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
    monkeypatch.setattr(video, "_rotation", lambda _: 90)
    upright = video.to_rgb(frame)
    assert upright.shape == (128, 64, 3)
    assert upright[:40].min() > 200 and upright[-40:].max() < 60  # clockwise: left goes up


def test_an_interrupted_film_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError),
        video.VideoWriter(tmp_path / "a.mp4", SIZE, SIZE, 25) as writer,
    ):
        writer.write(chart())
        raise RuntimeError("stop")
    assert list(tmp_path.iterdir()) == []


def test_transparency_needs_a_container_that_has_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.mp4 has no transparency"):
        video.VideoWriter(tmp_path / "a.mp4", SIZE, SIZE, 25, alpha=True)
    with video.VideoWriter(tmp_path / "a.webm", SIZE, SIZE, 25, alpha=True) as writer:
        for _ in range(3):
            writer.write(np.full((SIZE, SIZE, 4), 128, np.uint8))
    with av.open(str(tmp_path / "a.webm")) as container:
        assert container.streams.video[0].metadata.get("alpha_mode") == "1"


def test_decoders_threads_never_wait_for_the_interpreter(tmp_path: Path) -> None:
    """Closing a film that is not read to its end waits for them, and with any log level they
    could wait for the interpreter in turn."""
    av.logging.set_level(av.logging.PANIC)
    next(video.decode(film(tmp_path / "a.mp4")))
    assert av.logging.get_level() is None
