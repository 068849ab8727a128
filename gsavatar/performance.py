"""Performances: speech over an idle path played to and fro, and curves as files.

A curve file is JSON that people can edit: ``names`` and one ``frames`` entry per row with
``time`` (seconds), ``weights`` and ``head_pose`` (rows of the 4x4 matrix). ARKit captures have the
same shape without ``head_pose``; they and Live Link Face tables are read by name as well.
"""

from __future__ import annotations

import csv
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gsavatar.errors import InputError
from gsavatar.hearing import Hearing
from gsavatar.idle import Idle, IdlePath
from gsavatar.speech_encoders import SAMPLE_RATE
from gsavatar.speech_features import FeatureSource, FeatureStream, SpeechFeatures
from gsavatar.speech_motion import VOICE_ON, SpeechMotion
from gsavatar.types import Curves, is_upper_face

logger = logging.getLogger("gsavatar")

FORMAT = "gsavatar-curves"
MAX_CURVE_BYTES = 1 << 30
MAX_NAMES = 256
FLOAT32_MAX = float(np.finfo(np.float32).max)
LIVE_LINK_RATE = 60.0
LIVE_LINK_EXTRAS = ("Timecode", "BlendShapeCount")
LIVE_LINK_ANGLES = ("Head", "LeftEye", "RightEye")


def to_and_fro(idle: Curves, time_s: Any) -> Curves:
    """The idle performance at any instants [N], played forwards and backwards without a jump."""
    return IdlePath(idle)(time_s)


@dataclass(frozen=True)
class Performer:
    """What speech moves and what it leaves: mouth from the sound, the rest from the idle clip.

    Upper face and head are the idle performance, the lower face is what ``motion`` makes of
    the features. Names that neither knows stay at ``rest`` [K] (the idle path's median if None).
    """

    motion: SpeechMotion
    idle: Idle
    names: tuple[str, ...]
    fps: float
    rest: Tensor | None = None
    hearing: Hearing | None = None
    """Of an avatar whose motion is a field: the curves then hold the sound as well."""

    def at_frames(self, source: FeatureSource, first: int, last: int) -> Curves:
        """Frames first ... last - 1 of the performance, frame i at i / fps seconds."""
        time = torch.arange(first, last, dtype=torch.float64) / self.fps
        played = self.idle(time)
        known = self.idle.curves.names
        values = _rest_values(self.idle.curves, self.names, self.rest).repeat(len(time), 1)
        mouth = self.motion(source, time)
        for column, name in enumerate(self.names):
            if is_upper_face(name):
                if name in known:
                    values[:, column] = played.values[:, known.index(name)]
            elif name in self.motion.names:
                values[:, column] = mouth[:, self.motion.names.index(name)]
        audio = None if self.hearing is None else self.hearing(source, time)
        return Curves(self.names, time, values, played.head_pose, audio)

    def reach(self, time_s: float) -> tuple[int, int, int]:
        """What an instant is made of: the first token read, and the numbers of tokens and of
        voice rows that must be known."""
        first, tokens, voice = self.motion.reach(time_s)
        if self.hearing is None:
            return first, tokens, voice
        other_first, other_tokens = self.hearing.reach(time_s)
        return min(first, other_first), max(tokens, other_tokens), voice

    def of(self, features: SpeechFeatures, duration_s: float) -> Curves:
        """The whole performance of a recording whose features are at hand."""
        return self.at_frames(features, 0, frame_count(duration_s, self.fps))


def frame_count(duration_s: float, fps: float) -> int:
    """Frames of a film that is as long as a sound."""
    return max(1, round(duration_s * fps))


class SpeechStream:
    """A performance of speech that arrives in pieces; frames leave as soon as they are certain.

    The frames are those ``Performer.of`` makes of the whole recording. A frame is certain at the
    latest 0.3 s after its instant has been heard (0.2 s with log-mel features, whose fields need
    0.3 s). Memory does not
    grow with the length of the speech.
    """

    def __init__(self, performer: Performer) -> None:
        self._performer = performer
        self._features = FeatureStream(performer.motion.encoder)
        self._next = 0

    def push(self, samples: NDArray[np.float32]) -> Curves:
        """Takes the next sound, 16 kHz mono; the frames that have become certain."""
        self._features.push(samples)
        last = self._next
        while self._certain(last):
            last += 1
        return self._leave(last)

    def finish(self) -> Curves:
        """The remaining frames, once the sound has ended."""
        self._features.finish()
        duration_s = self._features.samples / SAMPLE_RATE
        return self._leave(max(self._next, frame_count(duration_s, self._performer.fps)))

    @property
    def heard_speech(self) -> bool:
        """Whether anything so far was taken for speech; before, the mouth rests."""
        return self._features.surest_voice >= VOICE_ON

    def _certain(self, frame: int) -> bool:
        _, tokens, voice = self._performer.reach(frame / self._performer.fps)
        return tokens <= self._features.length and voice <= self._features.voice_length

    def _leave(self, last: int) -> Curves:
        curves = self._performer.at_frames(self._features, self._next, last)
        self._next = last
        self._features.forget(self._performer.reach(last / self._performer.fps)[0])
        return curves


def _rest_values(idle: Curves, names: tuple[str, ...], rest: Tensor | None) -> Tensor:
    """The value [K] of each name where nothing moves it."""
    if rest is not None:
        return rest.detach().float().clone()
    middle = idle.values.float().median(dim=0).values
    known = {name: float(middle[i]) for i, name in enumerate(idle.names)}
    return torch.tensor([known.get(name, 0.0) for name in names])


# Files


class CurveWriter:
    """A performance as JSON that ``load_curves`` gives back bit by bit (float32), in pieces.

    Nothing is at ``path`` before the context has ended without an error. Raises ``InputError``
    where it cannot be written.
    """

    def __init__(self, path: str | Path, names: tuple[str, ...]) -> None:
        self.path = Path(path)
        self._partial = self.path.with_name(f".{self.path.name}.partial")
        self._empty = True
        head = {"format": FORMAT, "version": 1, "names": list(names)}
        with self._writable():
            # Ended by __exit__: this object is the context.
            self._file = self._partial.open("w", encoding="utf-8")
            self._file.write(json.dumps(head)[:-1] + ', "frames": [')

    @contextmanager
    def _writable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._partial.unlink(missing_ok=True)
            raise InputError(
                f"{self.path} cannot be written ({error.strerror}); "
                "give a path in a writable folder."
            ) from None

    def append(self, curves: Curves) -> None:
        """Adds frames at the end."""
        values = curves.values.detach().float().numpy()
        poses = curves.head_pose.detach().float().reshape(-1, 16).numpy()
        with self._writable():
            for i, time in enumerate(curves.time_s.double().tolist()):
                self._file.write(
                    f'{"" if self._empty else ","}\n{{"time": {time!r}, '
                    f'"weights": {_numbers(values[i])}, "head_pose": {_numbers(poses[i])}}}'
                )
                self._empty = False

    def __enter__(self) -> CurveWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        with self._writable():
            if kind is None:
                self._file.write("\n]}\n")
            self._file.close()
            if kind is None:
                os.replace(self._partial, self.path)
            else:
                self._partial.unlink(missing_ok=True)


def save_curves(path: str | Path, curves: Curves) -> None:
    """Writes a performance as JSON that ``load_curves`` gives back bit by bit (float32)."""
    with CurveWriter(path, curves.names) as writer:
        writer.append(curves)


def _numbers(row: NDArray[np.float32]) -> str:
    """A JSON list whose numbers are the shortest that read back as the same float32."""
    return "[" + ", ".join(str(x) for x in row) + "]"


def load_curves(path: str | Path) -> Curves:
    """A performance from our JSON, an ARKit JSON, or a Live Link Face CSV.

    Raises ``InputError`` if the file is missing, malformed, or holds no frames.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_CURVE_BYTES:
            raise InputError(f"{path} is larger than 1 GB; cut the performance into parts.")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give a curve file.") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not text; give a curve file (.json or .csv).") from None
    try:
        return _from_csv(text) if path.suffix.lower() == ".csv" else _from_json(text)
    except _Malformed as problem:
        raise InputError(f"{path}: {problem}.") from None


class _Malformed(Exception):
    """What is wrong with a curve file and its cure, without the file's name and the full stop."""


def _from_json(text: str) -> Curves:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _Malformed(
            f"not valid JSON ({error}); write it with --curves-out or export it again"
        ) from None
    if not isinstance(data, dict) or not isinstance(data.get("frames"), list):
        raise _Malformed('there is no list "frames"; a curve file has "names" and "frames"')
    names = _checked_names(data.get("names"))
    frames = data["frames"]
    if not frames:
        raise _Malformed('"frames" is empty; give at least one frame')
    times, values, poses = [], [], []
    for i, frame in enumerate(frames):
        if not isinstance(frame, dict):
            raise _Malformed(f"frame {i} is not an object with time and weights")
        times.append(_row(frame.get("time", frame.get("timeCode")), 1, i, "time")[0])
        values.append(_row(frame.get("weights"), len(names), i, "weights"))
        flat = frame.get("head_pose", _IDENTITY)
        if isinstance(flat, list) and len(flat) == 4 and all(isinstance(r, list) for r in flat):
            flat = [x for row in flat for x in row]
        poses.append(_row(flat, 16, i, "head_pose"))
    return _curves(names, times, values, poses)


_IDENTITY = [1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0]


def _checked_names(names: Any) -> tuple[str, ...]:
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names) or not names:
        raise _Malformed('there is no list of strings "names"; it says what the weights are')
    if len(set(names)) < len(names):
        twice = next(n for n in names if names.count(n) > 1)
        raise _Malformed(f"the name {twice!r} stands twice in names; keep one")
    if len(names) > MAX_NAMES:
        raise _Malformed(f"{len(names)} names; at most {MAX_NAMES} are read")
    return tuple(names)


def _row(value: Any, width: int, frame: int, what: str) -> list[float]:
    """``width`` finite numbers of a frame."""
    row = [value] if width == 1 and not isinstance(value, list) else value
    plain = isinstance(row, list) and all(type(x) in (int, float) for x in row)
    if not plain or len(row) != width:
        got = len(row) if isinstance(row, list) else type(value).__name__
        raise _Malformed(f"{what} of frame {frame} must be {width} numbers, got {got}")
    if not all(abs(x) <= FLOAT32_MAX for x in row):  # NaN compares false
        raise _Malformed(f"{what} of frame {frame} holds a number that is not finite")
    return row


def _curves(
    names: tuple[str, ...], times: list[float], values: list[list[float]], poses: list[list[float]]
) -> Curves:
    time = torch.tensor(times, dtype=torch.float64)
    if not bool((time.diff() > 0).all()):
        bad = int(torch.nonzero(time.diff() <= 0)[0, 0]) + 1
        raise _Malformed(
            f"time of frame {bad} ({times[bad]}) is not after the one before ({times[bad - 1]}); "
            "sort the frames"
        )
    pose = torch.from_numpy(np.array(poses, np.float64).astype(np.float32)).reshape(-1, 4, 4)
    rotation = pose[:, :3, :3].double()
    off = (rotation @ rotation.transpose(1, 2) - torch.eye(3)).abs().amax(dim=(1, 2))
    bottom = (pose[:, 3] - torch.tensor(_IDENTITY[12:])).abs().amax(dim=1)
    wrong = torch.nonzero((off > 1e-3) | (torch.linalg.det(rotation) < 0) | (bottom > 1e-6))[:, 0]
    if len(wrong):
        raise _Malformed(f"head_pose of frame {int(wrong[0])} is not a rotation and a translation")
    return Curves(
        names, time, torch.from_numpy(np.array(values, np.float64).astype(np.float32)), pose
    )


def _from_csv(text: str) -> Curves:
    rows = [row for row in csv.reader(text.splitlines()) if any(cell.strip() for cell in row)]
    if len(rows) < 2:
        raise _Malformed("a Live Link Face table has a header and at least one frame")
    header = [cell.strip() for cell in rows[0]]
    if "Timecode" not in header:
        raise _Malformed('the header has no "Timecode"; give a table of Live Link Face')
    angles = [i for i, name in enumerate(header) if _is_angle(name)]
    cells = (row[i] for row in rows[1:] for i in angles if i < len(row))
    if any(abs(_number(cell)) > 0.0 for cell in cells):
        logger.warning("the table's angles of head and eyes are not used: the head keeps still")
    columns = [
        i for i, name in enumerate(header)
        if name and name not in LIVE_LINK_EXTRAS and not _is_angle(name)
    ]  # fmt: skip
    names = _checked_names([header[i][:1].lower() + header[i][1:] for i in columns])
    stamps, values = [], []
    for number, row in enumerate(rows[1:]):
        if len(row) != len(header):
            raise _Malformed(f"frame {number} has {len(row)} cells, the header {len(header)}")
        stamps.append(_timecode(row[header.index("Timecode")], number))
        values.append(_row([_number(row[i]) for i in columns], len(names), number, "the row"))
    # The file does not say its rate; the frame numbers within a second do.
    rate = max([LIVE_LINK_RATE if len(stamps) < 2 else 0.0, *(np.floor(f) + 1 for _, f in stamps)])
    rate = min((r for r in (24.0, 25.0, 30.0, 50.0, 60.0) if r >= rate), default=rate)
    times = [second + frame / rate for second, frame in stamps]
    return _curves(names, [t - times[0] for t in times], values, [_IDENTITY] * len(times))


def _is_angle(name: str) -> bool:
    """Whether a column is an angle of head or eyes rather than a blendshape."""
    return name.startswith(LIVE_LINK_ANGLES) and name.endswith(("Yaw", "Pitch", "Roll"))


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return float("nan")


def _timecode(cell: str, frame: int) -> tuple[float, float]:
    """Seconds and frame number of HH:MM:SS:FF.fff."""
    parts = [_number(part) for part in cell.replace(";", ":").split(":")]
    if len(parts) != 4 or not np.isfinite(parts).all():
        raise _Malformed(f"Timecode {cell!r} of frame {frame} is not HH:MM:SS:FF")
    hours, minutes, seconds, frames = parts
    return 3600.0 * hours + 60.0 * minutes + seconds, frames
