"""The commands and their options, as dataclasses; the text under each is its help."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import tyro


def _shown(metavar: str, name: str | None = None, text: str | None = None) -> Any:
    """An option shown as ``metavar`` and without its default, which its help text tells.

    ``text`` is its help where that takes several lines: those of a docstring stay apart.
    """
    return tyro.conf.arg(name=name, metavar=metavar, help=text, help_behavior_hint="")


FOOTAGE = (
    "Video files of one person, in any codec, size or rate; or one folder of pictures prepared for "
    "AD-NeRF, ER-NeRF, TalkingGaussian and their like, or by VHAP (transforms.json). Of a folder "
    "the sound, lens, background and split are taken too."
)
EXPORT = (
    "New folder for pictures, landmarks, parsing, background, sound and poses as AD-NeRF, ER-NeRF "
    "and TalkingGaussian read them; features of the sound and au.csv are left to their own tools."
)
VideoFiles = tyro.conf.Positional[tuple[Path, ...]]
Files = Annotated[VideoFiles, _shown("VIDEO ...")]
Settings_ = Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], _shown("KEY=VALUE", "set")]
OptionalPath = Annotated[Path | None, _shown("PATH")]
OptionalInt = Annotated[int | None, _shown("INT")]
FaceModel = Annotated[
    Literal["auto", "ict", "clip", "flame", "bfm"] | None, _shown("auto|ict|clip|flame|bfm")
]
Poses = Annotated[Literal["track", "folder"] | None, _shown("track|folder")]
Face = Annotated[str | None, _shown("left|right|N")]


@dataclass(frozen=True)
class Fit:
    """Turn videos of one person into an avatar.

    Makes runs/me/me.gsavatar, metrics.json and report.html. A folder prepared for AD-NeRF's family
    or with a transforms.json may stand in place of the videos. A fit that was stopped or killed
    continues with --resume. Examples:

      gsavatar fit me.mp4
      gsavatar fit monday.mp4 tuesday.mp4 --out runs/me --preset standard
      gsavatar fit me.mp4 --resume
      gsavatar fit data/obama
    """

    videos: Annotated[VideoFiles, _shown("VIDEO ...", text=FOOTAGE)] = ()
    out: OptionalPath = None
    """Run folder; by default runs/ and the name of the first file."""
    preset: Annotated[str | None, _shown("preview|standard|quality|fewshot|talkinggaussian")] = None
    """How much work: preview (minutes, the default), standard (half an hour), quality (an hour),
    fewshot (for less than 10 s of video); talkinggaussian is the baseline."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto is the cpu. cuda is new and has not met a real GPU yet."""
    resume: bool = False
    """Continue the run in the folder."""
    face: Face = None
    """Which person, when the video shows several."""
    face_model: FaceModel = None
    """Face model to fit; flame and bfm read your own licensed file. By default auto."""
    face_model_file: OptionalPath = None
    """File of flame (.pkl, .npz) or bfm (.mat), if it is not in GSAVATAR_ASSETS."""
    poses: Poses = None
    """The head's path: track it (default, and steadier), or that of a prepared folder as it is."""
    seed: OptionalInt = None
    """Seed of every random choice."""
    steps: OptionalInt = None
    """Training steps instead of the preset's."""
    size: OptionalInt = None
    """Side of the training pictures in pixels, 32 to 512, instead of the preset's."""
    set_: Settings_ = ()
    """Any other value of config.toml, e.g. train.gaussians_max=20000; may be repeated."""


@dataclass(frozen=True)
class Track:
    """Fit the face model to videos: the performance as curves and a report, without an avatar.

    Makes runs/me/curves.json, tracking.html and tracking.mp4. A finished run, also that of a fit,
    may stand in place of the video: what it has tracked is then described. With --export-adnerf the
    tracked clip is also written as a folder for AD-NeRF's family, a finished run's alone. Examples:

      gsavatar track me.mp4
      gsavatar track runs/me
      gsavatar track runs/me --export-adnerf data/me
    """

    videos: Files = ()
    """Video files of one person, a prepared folder as for fit, or a finished run."""
    out: OptionalPath = None
    """Run folder; by default runs/ and the name of the first file."""
    resume: bool = False
    """Continue the run in the folder."""
    face: Face = None
    """Which person, when the video shows several."""
    face_model: FaceModel = None
    """Face model to fit; flame and bfm read your own licensed file. By default auto."""
    face_model_file: OptionalPath = None
    """File of flame (.pkl, .npz) or bfm (.mat), if it is not in GSAVATAR_ASSETS."""
    poses: Poses = None
    """The head's path: track it (default, and steadier), or that of a prepared folder as it is."""
    export_adnerf: Annotated[Path | None, _shown("PATH", text=EXPORT)] = None
    set_: Settings_ = ()
    """Any value of config.toml, e.g. clip.provider=clip; may be repeated."""


@dataclass(frozen=True)
class Check:
    """Say in seconds what a video is good for, and what to film again.

    Looks at light, focus, size and turns of the face, the mouth, the sound, and whether sound and
    picture agree. The exit code is 0 if every video is good to fit, 2 if one should be filmed
    again. Example:

      gsavatar check me.mp4
    """

    videos: Files = ()
    """Video files."""


@dataclass(frozen=True)
class Render:
    """Make a film of an avatar that speaks a sound file, plays curves, or copies a video.

    Exactly one of --audio, --curves and --drive moves the mouth; --audio beside another is only
    the sound track. Examples:

      gsavatar render runs/me --audio speech.wav --out talk.mp4 --camera orbit
      gsavatar render runs/me --audio speech.wav --out talk.webm --background none
      gsavatar render runs/me --curves talk.json --audio speech.wav --out talk.mp4
    """

    avatar: tyro.conf.Positional[Path]
    """A NAME.gsavatar file or the folder of a fit."""
    out: Path
    """Film to write: .mp4, .webm, or a folder for pictures and a wav file."""
    audio: OptionalPath = None
    """Speech: wav, flac, mp3, ogg, or the sound of a video."""
    curves: OptionalPath = None
    """Curves to play, from --curves-out, ARKit JSON or a Live Link Face CSV."""
    drive: OptionalPath = None
    """Video whose expressions and head motion to copy."""
    face: Annotated[str | None, _shown("left|right|N")] = None
    """Whose face in --drive, if it shows several, counted from the left."""
    idle: Annotated[str, tyro.conf.arg(metavar="replayed|generated")] = "replayed"
    """Head, gaze and blinks under speech: the clip's own, or new ones with its statistics."""
    seed: int = 0
    """Which of the generated ones: the same number gives the same again."""
    camera: Annotated[str, tyro.conf.arg(metavar="front|orbit|PATH.json")] = "front"
    """Point of view."""
    size: int = 512
    """Side of the picture in pixels, an even number from 64 to 4096."""
    fps: Annotated[float | None, _shown("FLOAT")] = None
    """Pictures per second; by default 25, or the rate of the curves."""
    background: Annotated[str, tyro.conf.arg(metavar="plate|#rrggbb|IMAGE|none")] = "plate"
    """What stands behind: the clip's own background, a colour, a picture, or transparency."""
    curves_out: OptionalPath = None
    """Also write the performance as curves, to be edited and rendered again."""


@dataclass(frozen=True)
class View:
    """Open an avatar in the browser, also while its fit is still running.

    Example:

      gsavatar view runs/me
    """

    avatar: tyro.conf.Positional[Path]
    """A NAME.gsavatar file or a run folder."""
    port: int = 8080
    """Port of the local web server."""
    host: str = "127.0.0.1"
    """Address to listen on; other than this machine's own it needs the printed token."""


@dataclass(frozen=True)
class Evaluate:
    """Measure a finished run on its test frames and write metrics.json again.

    With --frames the compared pictures are written too. Example:

      gsavatar evaluate runs/me --frames frames
    """

    run: tyro.conf.Positional[Path]
    """Run folder."""
    frames: OptionalPath = None
    """Folder for render/ and real/ pictures of the test frames."""
    drive: Literal["audio", "expression"] = "audio"
    """What moves the lower face: the test sound, or the tracked expression."""
    composite: Literal["full", "pasted"] = "full"
    """Written pictures as rendered, or with the real pixels outside the head."""


@dataclass(frozen=True)
class Doctor:
    """Tell what works on this machine, what does not, and what would cure it."""


@dataclass(frozen=True)
class Assets:
    """List the model files: what is here, what is missing, where each comes from, its licence.

    With --fetch what is missing is downloaded now instead of when it is needed. Example:

      gsavatar assets --fetch
    """

    fetch: bool = False
    """Fetch what is missing."""


Command = Union[Fit, Track, Check, Render, View, Evaluate, Doctor, Assets]  # noqa: UP007
WIDEST = 100


def command_line(columns: int, words: Sequence[str]) -> Any:
    """The commands as tyro takes them, described for a terminal of that width.

    A command that is named first in ``words`` is described in full, else each in one sentence.
    """
    width = min(max(columns, 40), WIDEST)
    kinds: tuple[type, ...] = Command.__args__  # type: ignore[attr-defined]
    named = []
    for kind in kinds:
        name, text = kind.__name__.lower(), inspect.getdoc(kind) or ""
        described = folded(text, width) if words[:1] == [name] else text.split("\n\n")[0]
        named.append(Annotated[kind, tyro.conf.subcommand(name, description=described)])
    return Union[tuple(named)]  # noqa: UP007


def folded(text: str, width: int) -> str:
    """Paragraphs filled to a width; indented lines, which are to be copied, stay as they are.

    Lines after a paragraph's first hang by two columns: tyro joins those that begin with a letter.
    """
    return "\n\n".join(
        part if part.startswith(" ")
        else textwrap.fill(" ".join(part.split()), width, subsequent_indent="  ")
        for part in text.split("\n\n")
    )  # fmt: skip
