"""Video in and out: colours, times, turns, damage, sound of exactly the picture's length."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from gsavatar import audio, video, video_colour
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


def primaries(*xy: tuple[float, float]) -> np.ndarray:
    """Linear light of red, green, blue and D65 white at these chromaticities to CIE XYZ."""
    red, green, blue, white = (np.array([x / y, 1.0, (1 - x - y) / y]) for x, y in xy)
    columns = np.stack((red, green, blue), axis=1)
    return columns * np.linalg.solve(columns, white)


WHITE = (0.3127, 0.3290)
BT709 = primaries((0.64, 0.33), (0.30, 0.60), (0.15, 0.06), WHITE)
BT2020 = primaries((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), WHITE)


def hlg(light: np.ndarray) -> np.ndarray:
    """Signal of light (diffuse white 1) by ITU-R BT.2100, white at a signal of 75 %."""
    scene = light * 0.265
    log = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), log)


def pq(light: np.ndarray) -> np.ndarray:
    """Signal of light (diffuse white 1, 203 nits) by SMPTE ST 2084."""
    power = (light * 203 / 10_000) ** 0.1593017578
    return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375


def ten_bits(signal: np.ndarray) -> av.VideoFrame:
    """A frame of BT.2020's constant matrix and narrow range that shows R'G'B' [H, W, 3]."""
    red, green, blue = np.moveaxis(signal, -1, 0)
    luma = 0.2627 * red + 0.6780 * green + 0.0593 * blue
    parts = 64 + 876 * luma, 512 + 896 * (blue - luma) / 1.8814, 512 + 896 * (red - luma) / 1.4746
    frame = av.VideoFrame(signal.shape[1], signal.shape[0], "yuv444p10le")
    for plane, part in zip(frame.planes, parts, strict=True):
        rows = np.zeros((signal.shape[0], plane.line_size // 2), np.uint16)
        rows[:, : signal.shape[1]] = part.round()
        plane.update(rows.tobytes())
    frame.colorspace, frame.color_range = 9, 1
    return frame


@pytest.mark.parametrize(("transfer", "signal"), [(18, hlg), (16, pq)])
@pytest.mark.parametrize("said", [True, False])
def test_hdr_is_shown_as_the_standards_say(transfer: int, signal: Any, said: bool) -> None:
    """Colours that BT.709 can show too, against the standards in double precision."""
    rng = np.random.default_rng(3)
    shown = rng.uniform(0.0, 0.75, (4, 4, 3)) ** 2  # below the shoulder
    light = np.kron(shown, np.ones((8, 8, 1))) @ (np.linalg.inv(BT2020) @ BT709).T
    frame = ten_bits(signal(light))
    frame.color_trc = transfer
    if not said:
        frame.colorspace = 2
    srgb = np.where(shown <= 0.0031308, 12.92 * shown, 1.055 * shown ** (1 / 2.4) - 0.055)
    found = video_colour.to_rgb(frame)[4::8, 4::8]
    off = np.abs(found - 255 * srgb)  # a step of ten-bit PQ is up to two of 255
    assert off.max() <= 3.0 and np.median(off) <= 1.0


def test_a_file_says_that_it_is_hdr(tmp_path: Path) -> None:
    light = np.random.default_rng(4).uniform(0.0, 1.2, (64, 64, 1)).repeat(3, axis=2)
    path = tmp_path / "hlg.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25, width=64, height=64, pix_fmt="yuv444p10le")
        context = stream.codec_context
        context.colorspace = context.color_primaries = 9
        context.color_trc, context.color_range = 18, 1
        frame = ten_bits(hlg(light))
        frame.color_trc = frame.color_primaries = 18
        container.mux([*stream.encode(frame), *stream.encode(None)])
    _, _, picture = next(iter(video.decode(path)))
    np.testing.assert_array_equal(picture, video_colour.to_rgb(frame))


def test_lights_above_white_are_compressed_in_their_order() -> None:
    light = np.repeat(np.array([0.5, 0.8, 1.0, 1.5, 2.0])[:, None, None], 3, axis=2)
    frame = ten_bits(hlg(light))
    frame.color_trc = 18
    grey = video_colour.to_rgb(frame)[:, 0].astype(int)
    assert (np.ptp(grey, axis=1) <= 1).all()
    assert (np.diff(grey[:, 1]) > 0).all()


def test_glimpses_are_frames_some_time_apart(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mp4", 20)
    every, some = list(video.decode(path)), list(video.glimpses(path, 0.2))
    assert [g[:2] for g in some] == [d[:2] for d in every]
    assert [g[0] for g in some if g[2] is not None] == [0, 5, 10, 15]
    for given, seen in zip(every, some, strict=True):
        assert seen[2] is None or (seen[2] == given[2]).all()


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
    monkeypatch.setattr(video_colour, "rotation", lambda _: 90)
    upright = video_colour.to_rgb(frame)
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
