"""Video in and out, through PyAV: upright frames with their times, films with their sound."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gsavatar.errors import InputError
from gsavatar.video_colour import BT709, JPEG_RANGE, MPEG_RANGE, rotation, to_rgb

log = logging.getLogger("gsavatar")

UInt8 = NDArray[np.uint8]
SAMPLE_RATE = 16_000
CRF, DRAFT_CRF = 18, 23
"""Quality of what is kept and of what is looked at once (x264's usual one)."""
SEEK_S = 4.0
"""Gaps longer than this are jumped over instead of decoded."""


@dataclass(frozen=True)
class VideoInfo:
    """What a file says about its picture; sizes are those of the upright frames."""

    width: int
    height: int
    fps: float
    duration_s: float
    frames: int  # an estimate
    has_audio: bool
    rotation: int  # degrees clockwise that the stored pictures must be turned, 0, 90, 180 or 270


def probe(path: Path | str) -> VideoInfo:
    """Size, rate and length of a video. Raises ``InputError`` if it is none."""
    with _opened(path) as container:
        stream = container.streams.video[0]
        fps = float(stream.average_rate or stream.guessed_rate or 25)
        duration = _duration_s(container, stream)
        turn = 0
        try:
            turn = rotation(next(container.decode(video=0)))
        except StopIteration:
            raise InputError(f"{path}: holds no frame of video; give another file.") from None
        except _av_error() as error:
            raise _unreadable(path, error) from None
        width, height = stream.codec_context.width, stream.codec_context.height
        if turn in (90, 270):
            width, height = height, width
        frames = stream.frames or max(1, round(duration * fps))
        return VideoInfo(
            width, height, fps, duration or frames / fps, frames,
            bool(container.streams.audio), turn,
        )  # fmt: skip


def decode(path: Path | str) -> Iterator[tuple[int, float, UInt8]]:
    """Index, presentation time in seconds from the first frame, and upright RGB of every frame.

    Colours follow the stream's own matrix and range; HDR is mapped to SDR. A damaged tail ends the
    sequence with a logged warning. Raises ``InputError`` if not one frame can be decoded.
    """
    for index, time_s, picture in glimpses(path, 0.0):
        if picture is not None:
            yield index, time_s, picture


def glimpses(path: Path | str, every_s: float) -> Iterator[tuple[int, float, UInt8 | None]]:
    """As ``decode``, with None for pictures that follow one by less than ``every_s``.

    What nobody looks at costs no conversion, which for large and HDR pictures is the most of it.
    """
    count, due_s = 0, 0.0
    with _opened(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        fps = float(stream.average_rate or 25)
        first, last = None, -math.inf
        try:
            for frame in container.decode(video=0):
                time = frame.time if frame.time is not None else count / fps
                first = time if first is None else first
                at = time - first
                if at <= last:  # broken time stamps: keep the order, assume the nominal rate
                    at = last + 1.0 / fps
                last = at
                if at + 1e-6 < due_s:
                    yield count, at, None
                else:
                    due_s = at + every_s
                    yield count, at, to_rgb(frame)
                count += 1
        except _av_error() as error:
            if count == 0:
                raise _unreadable(path, error) from None
            log.warning(
                "%s: damaged after frame %d (%s); the part before is used", path, count, error
            )
    if count == 0:
        raise InputError(f"{path}: holds no frame of video; give another file.")


def pictures_at(path: Path | str, times_s: Sequence[float]) -> Iterator[tuple[float, UInt8]]:
    """Time and upright RGB of frames near increasing times, each frame once.

    Where the times are far apart they are the key frames before them: what lies between is not
    decoded, so a look at an hour of film takes seconds.
    """
    with _opened(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        start = float(stream.start_time * stream.time_base) if stream.start_time else 0.0
        frames, at = container.decode(video=0), -math.inf
        try:
            for wanted in times_s:
                if wanted - at > SEEK_S and wanted > 0.0:
                    container.seek(round((start + wanted) / stream.time_base), stream=stream)
                    frames = container.decode(video=0)
                    leap = True
                else:
                    leap = False
                for frame in frames:
                    time = float(frame.time or 0.0) - start
                    if time > at and (leap or time >= wanted - 1e-6):
                        at = time
                        yield at, to_rgb(frame)
                        break
        except _av_error() as error:
            if math.isinf(at):
                raise _unreadable(path, error) from None
            log.warning("%s: damaged (%s); the part before is used", path, error)


def _duration_s(container: Any, stream: Any) -> float:
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return float(container.duration or 0) / 1e6


@dataclass(frozen=True)
class AudioBlocks:
    """Sound of a file as it is decoded; iterate once."""

    rate: int
    blocks: Iterator[NDArray[np.float32]]  # each [S, C]


def audio_blocks(path: Path | str) -> AudioBlocks | None:
    """Sound of a file in blocks, on the picture's clock; None without sound.

    Sample 0 stands at the first frame's time: sound that starts later is padded, earlier is cut.
    """
    with _opened(path, need_video=False) as container:
        if not container.streams.audio:
            return None
        rate = int(container.streams.audio[0].rate or SAMPLE_RATE)
    return AudioBlocks(rate, _decoded_audio(path, rate))


def _decoded_audio(path: Path | str, rate: int) -> Iterator[NDArray[np.float32]]:
    import av

    with _opened(path, need_video=False) as container:
        stream = container.streams.audio[0]
        resampler = av.AudioResampler(format="fltp", layout=stream.layout, rate=rate)
        video_start = 0.0
        if container.streams.video and container.streams.video[0].start_time is not None:
            video = container.streams.video[0]
            video_start = float(video.start_time * video.time_base)
        surplus: int | None = None  # samples before the first picture, still to be left out
        try:
            for frame in container.decode(audio=0):
                if surplus is None:
                    surplus = round((video_start - float(frame.time or 0.0)) * rate)
                    if surplus < 0:
                        yield np.zeros((-surplus, len(stream.layout.channels)), np.float32)
                for piece in resampler.resample(frame):
                    samples = np.asarray(piece.to_ndarray(), np.float32).T
                    left_out = min(max(surplus, 0), len(samples))
                    surplus -= left_out
                    yield np.ascontiguousarray(samples[left_out:])
        except _av_error() as error:
            if surplus is None:
                raise _unreadable(path, error) from None
            log.warning("%s: damaged sound (%s); the part before is used", path, error)


def _opened(path: Path | str, *, need_video: bool = True) -> Any:
    """An open container. Raises ``InputError`` naming the file and what the decoder said."""
    import av

    # Any level would have FFmpeg's threads wait for the interpreter to say something, while it
    # waits for them to end: closing a film that is not read to its end hung once in many times.
    av.logging.set_level(None)
    if not Path(path).exists():
        raise InputError(f"{path}: no such file; check the path.")
    try:
        container = av.open(str(path))
    except (_av_error(), OSError) as error:
        raise _unreadable(path, error) from None
    if need_video and not container.streams.video:
        container.close()
        raise InputError(f"{path}: holds no picture; give a video file.")
    return container


def _av_error() -> type[Exception]:
    import av

    return av.error.FFmpegError


def _unreadable(path: Path | str, error: Exception) -> InputError:
    said = getattr(error, "strerror", None) or str(error)
    return InputError(
        f"{path}: cannot be read as video ({said}); give a file that plays elsewhere."
    )


class Samples(Protocol):
    """Sound that can be read piece by piece: an array [S], or a file that is read when asked."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> NDArray[np.float32]: ...


class VideoWriter:
    """A film with sound, written as it is made; nothing is at ``path`` before ``close``.

    ``.mp4`` is H.264 with AAC, tagged BT.709; ``.webm`` is VP9 with Opus, with ``alpha`` in
    straight alpha. The sound is cut or padded to exactly the picture's length. A ``draft`` is coded
    faster, to be looked at rather than kept.
    """

    def __init__(  # noqa: PLR0917
        self, path: Path, width: int, height: int, fps: float,
        audio: Samples | None = None, alpha: bool = False, draft: bool = False,
    ) -> None:  # fmt: skip
        import av

        suffix = path.suffix.lower()
        if suffix not in (".mp4", ".webm"):
            raise InputError(f"{path}: films are written as .mp4 or .webm; change the suffix.")
        if alpha and suffix == ".mp4":
            raise InputError(f"{path}: .mp4 has no transparency; use .webm or a folder.")
        if width % 2 or height % 2:
            raise InputError(f"{path}: the size {width}x{height} must be even.")
        self.path, self.audio, self.fps, self.frames = path, audio, fps, 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._partial = path.with_name(f"{path.stem}.partial{path.suffix}")
        self._container = av.open(str(self._partial), "w")
        rate = Fraction(fps).limit_denominator(1001)
        self._video = self._container.add_stream(
            "libx264" if suffix == ".mp4" else "libvpx-vp9", rate=rate
        )
        self._video.width, self._video.height = width, height
        self._video.pix_fmt = "yuva420p" if alpha else "yuv420p"
        own: dict[str, dict[str, str]] = {
            ".mp4": {"preset": "superfast" if draft else "veryfast"},
            ".webm": {"b:v": "0", "deadline": "realtime", "cpu-used": "6"},
        }
        crf = str(DRAFT_CRF if draft else CRF)
        options: Any = {"crf": crf, **own[suffix]}  # PyAV's stubs want values of any type
        self._video.options = options
        context = self._video.codec_context
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = MPEG_RANGE
        self._alpha = alpha
        self._sound: Any = None
        if audio is not None:
            codec = "aac" if suffix == ".mp4" else "libopus"
            self._sound_rate = 48_000  # short packets: the sound ends with the picture
            self._sound = self._container.add_stream(codec, rate=self._sound_rate, layout="mono")
            self._fifo_at = 0
            self._resampler = av.AudioResampler(
                format="fltp" if suffix == ".mp4" else "flt",
                layout="mono", rate=self._sound_rate, frame_size=1024 if suffix == ".mp4" else 960,
            )  # fmt: skip

    def write(self, picture: UInt8) -> None:
        """Adds one picture, uint8 [H, W, 3], or [H, W, 4] with alpha."""
        import av

        frame = av.VideoFrame.from_ndarray(picture, format="rgba" if self._alpha else "rgb24")
        frame = frame.reformat(
            format=self._video.pix_fmt, src_colorspace=BT709, dst_colorspace=BT709,
            src_color_range=JPEG_RANGE, dst_color_range=MPEG_RANGE,
        )  # fmt: skip
        frame.pts = self.frames
        frame.time_base = Fraction(1) / Fraction(self.fps).limit_denominator(1001)
        frame.colorspace = frame.color_trc = frame.color_primaries = BT709
        frame.color_range = MPEG_RANGE
        self._container.mux(self._video.encode(frame))
        self.frames += 1
        self._sound_until(round(self.frames / self.fps * SAMPLE_RATE))

    def _sound_until(self, end: int) -> None:
        """Encodes the sound up to a sample; silence stands where there is no more sound."""
        if self._sound is None or end <= self._fifo_at:
            return
        import av

        assert self.audio is not None
        part = np.zeros(end - self._fifo_at, np.float32)
        known = self.audio[self._fifo_at : end]
        part[: len(known)] = known
        frame = av.AudioFrame.from_ndarray(part[None], format="fltp", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        frame.pts, frame.time_base = self._fifo_at, Fraction(1, SAMPLE_RATE)
        self._fifo_at = end
        for piece in self._resampler.resample(frame):
            self._container.mux(self._sound.encode(piece))

    def close(self) -> None:
        """Ends the streams and moves the film into place."""
        if self._sound is not None:
            for piece in self._resampler.resample(None):
                self._container.mux(self._sound.encode(piece))
            self._container.mux(self._sound.encode(None))
        self._container.mux(self._video.encode(None))
        self._container.close()
        os.replace(self._partial, self.path)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        try:
            if kind is None:
                self.close()
            else:
                with suppress(_av_error(), OSError):  # what went wrong before is what is told
                    self._container.close()
        finally:
            self._partial.unlink(missing_ok=True)
