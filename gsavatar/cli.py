"""The command line: one function per command of ``cli_options``.

The composition root: the only module that may import the viewer and the datasets, and only inside
a command. Exit codes: 0 done, 2 the input cannot be used or, by ``check`` and ``doctor``, is found
wanting (one sentence says why), 130 interrupted, 1 a fault of the program.
"""

from __future__ import annotations

import logging
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from gsavatar import __version__, cli_env
from gsavatar.cli_options import (
    Assets,
    Check,
    Doctor,
    Evaluate,
    Fit,
    Render,
    Track,
    View,
)
from gsavatar.cli_words import command_of
from gsavatar.errors import InputError
from gsavatar.progress import clock, make_reporter

if TYPE_CHECKING:
    from gsavatar.config import Settings
    from gsavatar.footage import PictureFolder
    from gsavatar.pipeline import TrackResult

log = logging.getLogger("gsavatar")


def _fit(options: Fit) -> None:
    started = time.monotonic()  # loading what is imported here takes seconds
    cli_env.load_torch()
    from gsavatar import cli_run, pipeline
    from gsavatar.devices import training_device
    from gsavatar.fields_planes import reader

    device = training_device(options.device)
    reader()  # a mistaken choice is told before minutes are spent on footage
    footage = _footage(options.videos)
    run = cli_run.run_folder(options.videos, options.out)
    overrides, typed = _overrides(options)
    settings = cli_run.enter_run(
        run, options.videos, preset=options.preset, overrides=overrides, face=options.face,
        resume=options.resume, typed=typed,
    )  # fmt: skip
    with _working_on(run):
        result = pipeline.fit(
            footage, run, settings, _ingest(settings, options.face), make_reporter(), device,
            started_s=started,
        )  # fmt: skip
    _say(f"avatar  {result.avatar_path}")
    _say(f"report  {result.report_path}")
    _say(f"took    {clock(time.monotonic() - started)}")
    _say(f"next    gsavatar view {result.avatar_path}")
    source = "--audio SPEECH.wav" if result.speaks else "--drive VIDEO"
    _say(f"        gsavatar render {result.avatar_path} {source} --out talk.mp4")


def _track(options: Track) -> None:
    cli_env.load_torch()
    from gsavatar import cli_run

    if options.export_adnerf is not None:
        from gsavatar.datasets import export_adnerf

        export_adnerf.check_destination(options.export_adnerf)
    run = cli_run.tracked_run(options.videos)
    if run is None:
        run = _track_footage(options)
    elif options.export_adnerf is None:
        _describe_track(run)
    if options.export_adnerf is not None:
        _export_adnerf(run, options.export_adnerf)


def _track_footage(options: Track) -> Path:
    """The run folder of newly tracked footage."""
    from gsavatar import cli_run, pipeline

    footage = _footage(options.videos)
    run = cli_run.run_folder(options.videos, options.out)
    overrides, typed = _overrides(options)
    settings = cli_run.enter_run(
        run, options.videos, preset=None, overrides=overrides, face=options.face,
        resume=options.resume, typed=typed,
    )  # fmt: skip
    with _working_on(run):
        result = pipeline.track(footage, run, _ingest(settings, options.face), make_reporter())
    _say_tracked(result)
    return run


def _describe_track(run: Path) -> None:
    """Curves, report and film of a run that was tracked or fitted before."""
    from gsavatar import pipeline

    with cli_env.logging_to(run / "log.txt"), _explained(run):
        result = pipeline.describe_track(run, make_reporter())
    _say_tracked(result)


def _say_tracked(result: TrackResult) -> None:
    _say(f"curves  {result.curves_path}")
    _say(f"report  {result.report_path}")
    _say(f"film    {result.film_path}")


def _export_adnerf(run: Path, out: Path) -> None:
    """Writes the clip of a run in the layout of AD-NeRF's family."""
    from gsavatar.clip import open_clip
    from gsavatar.datasets import export_adnerf

    clip = open_clip(run / "clip")
    with (
        cli_env.logging_to(run / "log.txt"), _explained(run),
        make_reporter().stage("export the clip") as progress,
    ):  # fmt: skip
        exported = export_adnerf.export(clip, out, progress)
    _say(f"folder  {exported.path} ({exported.frames} frames)")
    for note in exported.notes:
        _say(f"note    {note}")


def _check(options: Check) -> None:
    cli_env.load_torch()
    from gsavatar import check, cli_run
    from gsavatar.findings import table

    cli_run.check_videos(options.videos)
    spoilt = []
    with cli_env.logging_to(None):
        for path in options.videos:
            with make_reporter().stage(f"look at {path.name}") as progress:
                findings = check.check_video(path, progress)
            _say(f"{path}\n{table(findings)}\n{check.verdict(findings)}")
            if check.is_spoilt(findings):
                spoilt.append(str(path))
    if spoilt:
        raise InputError(f"{', '.join(spoilt)}: film it again, minding the lines marked with x.")


def _render(options: Render) -> None:
    cli_env.load_torch()
    from gsavatar import cli_run, film

    reporter = make_reporter()
    with cli_env.logging_to(None), _storable(options.out):
        cli_run.tell_unfinished(options.avatar, reporter)
        result = film.render_film(
            options.avatar, options.out, audio=options.audio, curves=options.curves,
            drive=options.drive, face=options.face, idle=options.idle, seed=options.seed,
            camera=options.camera, size=options.size, fps=options.fps,
            background=options.background, curves_out=options.curves_out, reporter=reporter,
        )  # fmt: skip
    sound = "with sound" if result.has_sound else "without sound"
    _say(f"film    {result.path} ({result.frames} frames, {result.duration_s:.2f} s, {sound})")
    if options.curves_out is not None:
        _say(f"curves  {options.curves_out}")


def _view(options: View) -> None:
    cli_env.load_torch()
    from gsavatar import cli_run
    from gsavatar.ops import native
    from gsavatar.viewer import serve

    native.cpu()  # a cause why no picture can be drawn is told here, not to the browser
    with cli_env.logging_to(None):
        cli_run.check_shown(options.avatar)
        sounds = [cli_run.sample_sentence()]
        serve(options.avatar, port=options.port, host=options.host, sounds=sounds)


def _evaluate(options: Evaluate) -> None:
    cli_env.load_torch()
    from gsavatar import cli_run
    from gsavatar.evaluate import evaluate
    from gsavatar.report import write_report

    run = options.run
    if not (run / "clip" / "clip.json").exists():
        raise InputError(
            f"{run}: not the folder of a finished run; fit first, then give that folder."
        )
    reporter = make_reporter()
    with cli_env.logging_to(run / "log.txt"), cli_run.alone_in(run), _explained(run):
        cli_run.tell_unfinished(run, reporter)
        with reporter.stage("measure on the test frames") as progress:
            metrics = evaluate(
                run, frames_dir=options.frames, drive=options.drive,
                composite=options.composite, progress=progress,
            )  # fmt: skip
        report = write_report(run)
    # Of a silent clip the expression drives the test part itself.
    beside = options.drive == "expression" and metrics["protocol"]["drive"] == "audio"
    part = "test_expression" if beside else "test"
    shown = dict(metrics[part])
    if options.composite == "pasted":
        shown |= {f"pasted {key}": value for key, value in metrics[f"{part}_pasted"].items()}
    for name, value in shown.items():
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

    missing = []
    for name, asset in assets.table().items():
        if options.fetch and not assets.available(name) and (asset.url or asset.wheel):
            try:
                with make_reporter().stage(f"fetch {name}"):
                    assets.resolve(name)
            except InputError as error:
                missing.append(str(error))
    _say(assets.status())
    if missing:
        raise InputError(" ".join(missing))


def _footage(paths: tuple[Path, ...]) -> list[Path | PictureFolder]:
    """Video files as they are, or the one prepared folder as its content.

    Raises ``InputError`` before anything is written if one of them cannot be used.
    """
    from gsavatar import cli_run

    folders = [path for path in paths if path.is_dir()]
    if not folders:
        cli_run.check_videos(paths)
        return list(paths)
    if len(paths) > 1:
        raise InputError(f"{folders[0]}: is a folder; a folder must be the only input.")
    from gsavatar.datasets.folders import read_folder

    return [read_folder(folders[0])]


def _ingest(settings: Settings, face: str | None) -> Any:
    """What the settings and the user say about the footage."""
    from gsavatar.ingest import IngestOptions

    clip = settings.clip
    return IngestOptions(
        face=face, provider=clip.provider,
        model_file=Path(clip.model_file) if clip.model_file else None,
        focal_px=clip.focal_px or None, correct_offset=clip.correct_offset, poses=clip.poses,
    )  # fmt: skip


OPTION_OF = {
    "train.seed": "seed", "train.steps": "steps", "train.size": "size", "clip.poses": "poses",
    "clip.provider": "face_model", "clip.model_file": "face_model_file",
}  # fmt: skip
"""Settings that have an option of their own; ``track`` has not all of them."""


def _overrides(options: Fit | Track) -> tuple[dict[str, Any], dict[str, str]]:
    """The settings that options replace, and by which option each was given if not by --set."""
    chosen: dict[str, Any] = {}
    typed: dict[str, str] = {}
    for key, option in OPTION_OF.items():
        value = getattr(options, option, None)
        if value is not None:
            # A file absolute, so that --resume finds it from another folder.
            chosen[key] = str(value.resolve()) if isinstance(value, Path) else value
            typed[key] = "--" + option.replace("_", "-")
    named = _parsed(options.set_)
    return chosen | named, {key: option for key, option in typed.items() if key not in named}


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
def _working_on(run: Path) -> Iterator[None]:
    """A new or continued run at work: logged, its failures explained, undone if it is refused."""
    from gsavatar import cli_run

    with (
        cli_run.unlogged_if_undone(run), cli_env.logging_to(run / "log.txt"),
        cli_run.alone_in(run), _explained(run), cli_run.undone_if_refused(run),
    ):  # fmt: skip
        yield


@contextmanager
def _storable(out: Path) -> Iterator[None]:
    """Turns a full disk or a forbidden place into one sentence."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise InputError(
            f"{out}: {error.strerror or error}; free space or permit writing there, or choose "
            "another --out."
        ) from error


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
    Assets: _assets, Check: _check,
}  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Runs one command; the exit code."""
    cli_env.prepare_process()
    words = sys.argv[1:] if argv is None else argv
    if words == ["--version"]:
        _say(f"gsavatar {__version__}")
        return 0
    try:
        command = command_of(words)
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
