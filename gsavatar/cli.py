"""The command line: one dataclass per command, one function that runs it.

The composition root: the only module that may import the viewer and the datasets, and only inside
a command. Exit codes: 0 done, 2 the input cannot be used (one sentence says why), 130 interrupted,
1 a fault of the program.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO, Union

import tyro

from gsavatar import cli_env
from gsavatar.errors import InputError
from gsavatar.progress import clock, make_reporter

if TYPE_CHECKING:
    from gsavatar.config import Settings

log = logging.getLogger("gsavatar")


def _shown(metavar: str, name: str | None = None) -> Any:
    """An option shown as ``metavar`` and without its default, which its help text tells."""
    return tyro.conf.arg(name=name, metavar=metavar, help_behavior_hint="")


Files = Annotated[tyro.conf.Positional[tuple[Path, ...]], _shown("VIDEO ...")]
Settings_ = Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], _shown("KEY=VALUE", "set")]
OptionalPath = Annotated[Path | None, _shown("PATH")]
OptionalInt = Annotated[int | None, _shown("INT")]
Face = Annotated[str | None, _shown("left|right|N")]


@dataclass(frozen=True)
class Fit:
    """Turn videos of one person into an avatar.

    Makes runs/me/me.gsavatar, metrics.json and report.html. Examples:

      gsavatar fit me.mp4
      gsavatar fit monday.mp4 tuesday.mp4 --out runs/me --preset standard
      gsavatar fit me.mp4 --resume
    """

    videos: Files = ()
    """Video files of one person, in any codec, size or rate."""
    out: OptionalPath = None
    """Run folder; by default runs/ and the name of the first file."""
    preset: Annotated[str | None, _shown("preview|standard|quality|fewshot")] = None
    """How much work to spend; preview by default."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train."""
    resume: bool = False
    """Continue the run in the folder."""
    face: Face = None
    """Which person, when the video shows several."""
    seed: OptionalInt = None
    """Seed of every random choice."""
    steps: OptionalInt = None
    """Training steps instead of the preset's."""
    size: OptionalInt = None
    """Side of the training pictures in pixels instead of the preset's."""
    set_: Settings_ = ()
    """Any other value of config.toml, e.g. --set train.gaussians_max=20000; may be repeated."""


@dataclass(frozen=True)
class Track:
    """Fit the face model to videos and write the performance as curves, without an avatar.

    Example: gsavatar track me.mp4 writes runs/me/curves.json.
    """

    videos: Files = ()
    """Video files of one person."""
    out: OptionalPath = None
    """Run folder; by default runs/ and the name of the first file."""
    resume: bool = False
    """Continue the run in the folder."""
    face: Face = None
    """Which person, when the video shows several."""
    set_: Settings_ = ()
    """Any value of config.toml, e.g. --set clip.provider=clip; may be repeated."""


@dataclass(frozen=True)
class Render:
    """Make a film of an avatar that speaks a sound file, plays curves, or copies a video.

    Exactly one of --audio, --curves and --drive moves the mouth; --audio beside another is only
    the sound track. Examples:

      gsavatar render me.gsavatar --audio speech.wav --out talk.mp4 --camera orbit
      gsavatar render me.gsavatar --audio speech.wav --out talk.webm --background none
      gsavatar render me.gsavatar --curves edited.json --audio speech.wav --out talk.mp4
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
    camera: Annotated[str, tyro.conf.arg(metavar="front|orbit|PATH.json")] = "front"
    """Point of view."""
    size: int = 512
    """Side of the picture in pixels."""
    fps: Annotated[float | None, _shown("FLOAT")] = None
    """Pictures per second; by default 25, or the rate of the curves."""
    background: Annotated[str, tyro.conf.arg(metavar="plate|#rrggbb|IMAGE|none")] = "plate"
    """What stands behind: the clip's own background, a colour, a picture, or transparency."""
    curves_out: OptionalPath = None
    """Also write the performance as curves, to be edited and rendered again."""


@dataclass(frozen=True)
class View:
    """Open an avatar in the browser, also while its fit is still running.

    Example: gsavatar view runs/me.
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

    Example: gsavatar evaluate runs/me --frames frames also writes the compared pictures.
    """

    run: tyro.conf.Positional[Path]
    """Run folder."""
    frames: OptionalPath = None
    """Folder for render/ and real/ pictures of the test frames."""
    drive: Literal["audio", "expression"] = "audio"
    """What moves the lower face: the test sound, or the tracked expression."""
    composite: Literal["raw", "pasted"] = "raw"
    """Written pictures as rendered, or with the real pixels outside the head."""


@dataclass(frozen=True)
class Doctor:
    """Tell what works on this machine, what does not, and what would cure it."""


@dataclass(frozen=True)
class Assets:
    """List the model files: what is here, what is missing, where each comes from, its licence.

    Example: gsavatar assets --fetch downloads what is missing now instead of when needed.
    """

    fetch: bool = False
    """Fetch what is missing."""


Command = Union[  # noqa: UP007
    Annotated[Fit, tyro.conf.subcommand("fit")],
    Annotated[Track, tyro.conf.subcommand("track")],
    Annotated[Render, tyro.conf.subcommand("render")],
    Annotated[View, tyro.conf.subcommand("view")],
    Annotated[Evaluate, tyro.conf.subcommand("evaluate")],
    Annotated[Doctor, tyro.conf.subcommand("doctor")],
    Annotated[Assets, tyro.conf.subcommand("assets")],
]


def _fit(options: Fit) -> None:
    from gsavatar import cli_run, pipeline

    _check_device(options.device)
    cli_run.check_videos(options.videos)
    run = cli_run.run_folder(options.videos, options.out)
    named = {"train.seed": options.seed, "train.steps": options.steps, "train.size": options.size}
    overrides = {k: v for k, v in named.items() if v is not None} | _parsed(options.set_)
    settings = cli_run.enter_run(
        run, options.videos, preset=options.preset, overrides=overrides, face=options.face,
        resume=options.resume,
    )  # fmt: skip
    with cli_env.logging_to(run / "log.txt"), _explained(run), cli_run.undone_if_refused(run):
        result = pipeline.fit(
            list(options.videos), run, settings, _ingest(settings, options.face), make_reporter()
        )
    _say(f"avatar  {result.avatar_path}")
    _say(f"report  {result.report_path}")
    seconds = result.metrics.get("speed", {}).get("fit_seconds")
    if seconds is not None:
        _say(f"took    {clock(seconds)}")
    _say(f"next    gsavatar view {result.avatar_path}")
    _say(f"        gsavatar render {result.avatar_path} --audio SPEECH.wav --out talk.mp4")


def _track(options: Track) -> None:
    from gsavatar import cli_run, pipeline

    cli_run.check_videos(options.videos)
    run = cli_run.run_folder(options.videos, options.out)
    settings = cli_run.enter_run(
        run, options.videos, preset=None, overrides=_parsed(options.set_), face=options.face,
        resume=options.resume,
    )  # fmt: skip
    with cli_env.logging_to(run / "log.txt"), _explained(run), cli_run.undone_if_refused(run):
        curves = pipeline.track(
            list(options.videos), run, _ingest(settings, options.face), make_reporter()
        )
    _say(f"curves  {curves}")


def _render(options: Render) -> None:
    from gsavatar import film

    with cli_env.logging_to(None):
        result = film.render_film(
            options.avatar, options.out, audio=options.audio, curves=options.curves,
            drive=options.drive, camera=options.camera, size=options.size, fps=options.fps,
            background=options.background, curves_out=options.curves_out, reporter=make_reporter(),
        )  # fmt: skip
    sound = "with sound" if result.has_sound else "without sound"
    _say(f"film    {result.path} ({result.frames} frames, {result.duration_s:.2f} s, {sound})")
    if options.curves_out is not None:
        _say(f"curves  {options.curves_out}")


def _view(options: View) -> None:
    from gsavatar.viewer import serve

    with cli_env.logging_to(None):
        serve(options.avatar, port=options.port, host=options.host)


def _evaluate(options: Evaluate) -> None:
    from gsavatar.evaluate import evaluate
    from gsavatar.report import write_report

    run = options.run
    if not (run / "clip" / "clip.json").exists():
        raise InputError(f"{run}: not a finished run; fit first, then evaluate its folder.")
    with cli_env.logging_to(run / "log.txt"), _explained(run):
        with make_reporter().stage("measure on the test frames") as progress:
            metrics = evaluate(
                run, frames_dir=options.frames, drive=options.drive,
                composite=options.composite, progress=progress,
            )  # fmt: skip
        report = write_report(run)
    part = "test" if options.drive == "audio" else "test_expression"
    for name, value in metrics.get(part, {}).items():
        _say(f"{name:<24}{'-' if value is None else format(value, '.4g')}")
    _say(f"report  {report}")


def _doctor(options: Doctor) -> None:
    from gsavatar import doctor

    findings = doctor.examine()
    _say(doctor.table(findings))
    if not doctor.usable(findings):
        raise InputError("gsavatar cannot work here yet; follow the lines marked with x above.")


def _assets(options: Assets) -> None:
    from gsavatar import assets

    if options.fetch:
        for name in assets.table():
            if not assets.available(name):
                with make_reporter().stage(f"fetch {name}"):
                    assets.resolve(name)
    _say(str(assets.status()))


def _ingest(settings: Settings, face: str | None) -> Any:
    """What the settings and the user say about the footage."""
    from gsavatar.ingest import IngestOptions

    clip = settings.clip
    return IngestOptions(
        face=face, provider=clip.provider, focal_px=clip.focal_px or None,
        correct_offset=clip.correct_offset,
    )  # fmt: skip


def _check_device(device: str) -> None:
    if device != "cuda":
        return
    import torch

    if not torch.cuda.is_available():
        raise InputError("--device cuda: no CUDA device is visible here; use --device cpu.")
    raise InputError("--device cuda: training on CUDA is planned, not there yet; use --device cpu.")


def _parsed(pairs: tuple[str, ...]) -> dict[str, Any]:
    """KEY=VALUE as dotted keys and values; values are read as TOML, else as text."""
    from gsavatar.config import toml_value

    parsed = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise InputError(f"--set {pair}: should be KEY=VALUE, e.g. --set train.steps=2000.")
        parsed[key.strip()] = toml_value(value.strip())
    return parsed


@contextmanager
def _explained(run: Path) -> Iterator[None]:
    """Turns what goes wrong in a run into one sentence; the traceback goes to its log."""
    try:
        yield
    except KeyboardInterrupt:
        log.info("interrupted")
        _say(f"stopped; continue with --resume ({run})", sys.stderr)
        raise
    except InputError:
        log.info(traceback.format_exc())
        raise
    except OSError as error:
        log.info(traceback.format_exc())
        raise InputError(
            f"{error.filename or run}: {error.strerror or error}; free space or permit writing "
            "there, then continue with --resume."
        ) from error
    except Exception as error:
        log.info(traceback.format_exc())
        raise _Fault(
            f"{type(error).__name__}: {error} (a fault of the program; the traceback is in "
            f"{run / 'log.txt'})"
        ) from error


class _Fault(Exception):
    """An error of the program whose traceback is already in a log file."""


def _say(text: str, stream: TextIO | None = None) -> None:
    out = stream if stream is not None else sys.stdout
    out.write(text + "\n")
    out.flush()


RUN: dict[type, Callable[[Any], None]] = {
    Fit: _fit, Track: _track, Render: _render, View: _view, Evaluate: _evaluate, Doctor: _doctor,
    Assets: _assets,
}  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Runs one command; the exit code."""
    cli_env.prepare_process()
    command: Any = tyro.cli(
        Command,  # type: ignore[arg-type]
        prog="gsavatar",
        description="A talking avatar of one person, from a video.",
        args=argv,
        config=(tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff),
    )
    try:
        RUN[type(command)](command)
    except InputError as error:
        _say(f"error: {' '.join(str(error).split())}", sys.stderr)
        return 2
    except _Fault as error:
        _say(f"error: {error}", sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
