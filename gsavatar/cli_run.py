"""Run folders: what makes one, when a fit may enter it, and what a failed start takes away again.

``config.toml`` marks a folder as a run. ``run.json`` says which files it was made from.
"""

from __future__ import annotations

import filecmp
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gsavatar.config import Settings, differences, flat, load_preset, load_settings, save_settings
from gsavatar.errors import InputError
from gsavatar.progress import Reporter

log = logging.getLogger("gsavatar")

RUNS = Path("runs")
DEFAULT_PRESET = "preview"
LOCK = ".lock"
KEPT_AFTER_REFUSAL = ("log.txt", "faces.png", LOCK)
"""What a folder may hold and still be used: thumbnails to choose from, and what an earlier version
left behind."""


def run_folder(videos: tuple[Path, ...], out: Path | None) -> Path:
    """Where the results go: ``out``, or ``runs/`` and the first file's stem or folder's name."""
    if out is not None:
        return out
    first = videos[0]
    return RUNS / (first.resolve().name if first.is_dir() else first.stem)


def tracked_run(paths: tuple[Path, ...]) -> Path | None:
    """The run folder that was given in place of footage; None if footage was given."""
    alone = paths[0] if len(paths) == 1 else None
    return alone if alone is not None and (alone / "clip" / "clip.json").is_file() else None


def check_videos(videos: tuple[Path, ...]) -> None:
    """Refuses files that are missing or cannot be read as video before anything is written."""
    from gsavatar.video import probe

    if not videos:
        raise InputError("no video given; name one or more files of one person.")
    for path in videos:
        if path.parts[0] in ("http:", "https:"):
            raise InputError(f"{path.parts[-1]}: is an address; download the video, then name it.")
        if not path.exists():
            raise InputError(f"{path}: no such file; check the path.")
        if path.is_dir():
            raise InputError(f"{path}: is a folder; name the video files themselves.")
        probe(path)
    for i, path in enumerate(videos):
        for other in videos[:i]:
            if path.stat().st_size == other.stat().st_size and filecmp.cmp(path, other, False):
                raise InputError(
                    f"{path}: is the same film as {other}, and would be tested on what it was "
                    "trained on; name it once."
                )


def enter_run(
    run: Path,
    videos: tuple[Path, ...],
    *,
    preset: str | None,
    overrides: Mapping[str, Any],
    face: str | None,
    resume: bool,
    typed: Mapping[str, str] | None = None,
) -> Settings:
    """The settings of a new run, or of the one to continue; writes config.toml and run.json.

    ``typed`` tells by which option each override was given, for the sentence that refuses it.
    Raises ``InputError`` if the folder is another run, or holds other things than a run.
    """
    inputs = {"videos": [_fingerprint(v) for v in videos], "face": face}
    config = run / "config.toml"
    if config.exists():
        if not resume:
            raise InputError(
                f"{run}: a run is already here; continue it with --resume or choose another --out."
            )
        return _continued(run, inputs, preset, overrides, typed)
    if run.exists() and not run.is_dir():
        raise InputError(f"{run}: is a file; choose another --out.")
    strangers = sorted(p.name for p in run.iterdir()) if run.exists() else []
    strangers = [name for name in strangers if name not in KEPT_AFTER_REFUSAL]
    if strangers:
        raise InputError(
            f"{run}: holds {strangers[0]} but no run; choose an empty or new folder with --out."
        )
    settings = load_preset(preset or DEFAULT_PRESET, overrides, typed)
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{run}: cannot be made ({error.strerror}); choose another --out."
        ) from None
    _write(run / "run.json", json.dumps(inputs, indent=1) + "\n")
    save_settings(config, settings)
    return settings


def _continued(
    run: Path, inputs: dict[str, Any], preset: str | None, overrides: Mapping[str, Any],
    typed: Mapping[str, str] | None,
) -> Settings:  # fmt: skip
    settings = load_settings(run / "config.toml")
    try:
        before = json.loads((run / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise InputError(
            f"{run}: run.json is missing or damaged; fit again into another --out."
        ) from None
    if before.get("videos") != inputs["videos"] or before.get("face") != inputs["face"]:
        names = ", ".join(v["name"] for v in before.get("videos", []))
        face = before.get("face")
        raise InputError(
            f"{run}: this run was made from {names or 'other files'} "
            f"{'without --face' if face is None else f'with --face {face}'}; say the same, or "
            "choose another --out."
        )
    wanted = load_preset(preset or settings.preset, overrides, typed)
    if preset is not None and preset != settings.preset:
        raise InputError(
            f"{run}: this run uses the preset {settings.preset}; leave --preset {preset} away or "
            "choose another --out."
        )
    if overrides:
        said = differences(asdict(settings), asdict(wanted), flat(overrides))
        if said:
            raise InputError(
                f"{run}: this run has {said}; continue it without that or choose another --out."
            )
    return settings


def _fingerprint(path: Path) -> dict[str, Any]:
    """Name and size: enough to notice another file, and no path of the user's machine.

    Of a prepared folder it is the size of the files that state its frames.
    """
    if path.is_dir():
        sizes = [file.stat().st_size for file in path.glob("*.json")]
        return {"name": path.resolve().name, "bytes": sum(sizes)}
    return {"name": path.name, "bytes": path.stat().st_size}


def _write(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def tell_unfinished(run: Path, reporter: Reporter) -> None:
    """Says of a run whose fit has not ended that the avatar is the one it has so far."""
    from gsavatar.package import load_package
    from gsavatar.pipeline import avatar_name

    live = run / "live.gsavatar"
    if (run / f"{avatar_name(run)}.gsavatar").exists() or not live.exists():
        return
    steps = load_package(live).card.get("step", "some")
    reporter.note(
        f"The fit of {run} is not finished: this is its avatar after {steps} steps. Continue with "
        "gsavatar fit --resume."
    )


def sample_sentence() -> Path:
    """The bundled sentence: something to play in the viewer at once."""
    from importlib import resources

    return Path(str(resources.files("gsavatar.datasets"))) / "sample" / "sentence.flac"


def check_shown(path: Path) -> None:
    """Raises ``InputError`` for a run without an avatar in which no fit is at work on one."""
    from gsavatar.pipeline import avatar_name

    names = f"{avatar_name(path)}.gsavatar", "live.gsavatar"
    if not (path / "clip").is_dir() or any((path / name).exists() for name in names):
        return
    try:
        with alone_in(path):
            pass
    except InputError:
        return  # somebody is at work there
    raise InputError(
        f"{path}: no avatar here, and no fit at work on one; give gsavatar fit the video first."
    )


@contextmanager
def alone_in(run: Path) -> Iterator[None]:
    """Keeps other processes out of a run; the system lets go when this one ends, however it ends.

    Raises ``InputError`` if one is at work there. Where the file system knows no locks, the log
    says so and nobody is kept out.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(run / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(
            f"{run}: another gsavatar is at work there; wait until it ends, or stop it (a fit goes "
            "on with --resume)."
        ) from None
    except (OSError, NotImplementedError) as error:
        log.info("no lock on %s: %s", run / LOCK, error)
    try:
        yield
    finally:
        if os.name == "posix":  # while it is held: whoever comes next makes a new one
            (run / LOCK).unlink(missing_ok=True)
        lock.release()


@contextmanager
def undone_if_refused(run: Path) -> Iterator[None]:
    """Takes a new run away again if its footage is refused; thumbnails stay.

    A run whose footage was accepted (landmarks, ``clip/decode.json`` or later results) is left for
    ``--resume``, whatever happens.
    """
    try:
        yield
    except InputError:
        accepted = ("clip/decode.json", "clip/landmarks.safetensors", "checkpoints")
        if not any((run / name).exists() for name in accepted):
            forget(run)
        raise


@contextmanager
def unlogged_if_undone(run: Path) -> Iterator[None]:
    """Takes the log of an undone run away as well, and its folder if nothing else is in it.

    To be entered before the log is opened: on some systems an open file cannot be removed.
    """
    try:
        yield
    except InputError:
        if not (run / "config.toml").exists():
            (run / "log.txt").unlink(missing_ok=True)
            for folder in (run, RUNS):
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()
        raise


def forget(run: Path) -> None:
    """Removes what a fit wrote into a run that never got a clip."""
    for name in ("config.toml", "run.json", "timing.json"):
        (run / name).unlink(missing_ok=True)
    shutil.rmtree(run / "clip", ignore_errors=True)
