"""How long work tells what it is doing: the protocol, bars for a terminal, lines for a log file."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Protocol, TextIO

log = logging.getLogger("gsavatar")

Progress = Callable[[int, int], None]
"""Called with (done, total); total 0 means unknown."""

PLAIN_EVERY_S = 15.0
TELLING_S, TELLING_SHARE = 5.0, 0.05
"""Time, or share of the work, after which the rest can be estimated: the first step is slow."""


class Reporter(Protocol):
    """What the pipeline tells the person who waits."""

    def stage(self, name: str) -> AbstractContextManager[Progress]:
        """A named piece of work; yields the callback for its progress."""
        ...

    def note(self, text: str) -> None:
        """One sentence worth reading now and in the report."""
        ...


class SilentReporter:
    """Says nothing; for tests and for use as a library."""

    @contextmanager
    def stage(self, name: str) -> Iterator[Progress]:
        """A stage whose progress is only logged."""
        log.info("stage: %s", name)
        yield lambda done, total: None

    def note(self, text: str) -> None:
        """Logs the note."""
        log.info("note: %s", text)


class PlainReporter:
    """One line when a stage begins, every 15 s while it runs and when it ends."""

    def __init__(self, stream: TextIO | None = None, every_s: float = PLAIN_EVERY_S) -> None:
        self.stream = stream if stream is not None else sys.stderr
        self.every_s = every_s

    @contextmanager
    def stage(self, name: str) -> Iterator[Progress]:
        """A stage as lines of text."""
        log.info("stage: %s", name)
        self._write(f"{name} ...")
        started = last = time.monotonic()

        def progress(done: int, total: int) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last < self.every_s:
                return
            last = now
            self._write(f"{name}: {progress_words(done, total, now - started)}")

        yield progress
        seconds = time.monotonic() - started
        log.info("stage: %s took %.1f s", name, seconds)
        self._write(f"{name}: done in {clock(seconds)}")

    def note(self, text: str) -> None:
        """Writes the note as a line."""
        log.info("note: %s", text)
        self._write(f"note: {text}")

    def _write(self, line: str) -> None:
        with suppress(BrokenPipeError):  # nobody reads any more: no reason to stop the work
            self.stream.write(line + "\n")
            self.stream.flush()


class RichReporter:
    """Bars with elapsed and remaining time, for a terminal."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True)

    @contextmanager
    def stage(self, name: str) -> Iterator[Progress]:
        """A stage as a bar."""
        from rich.progress import (
            BarColumn,
            TaskProgressColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bars

        log.info("stage: %s", name)
        started = time.monotonic()
        columns = (
            TextColumn("{task.description:<34}"), BarColumn(), TaskProgressColumn(),
            TextColumn("elapsed"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
        )  # fmt: skip
        with Bars(*columns, console=self.console, speed_estimate_period=60.0) as bars:
            task = bars.add_task(name, total=None)

            def progress(done: int, total: int) -> None:
                bars.update(task, completed=done, total=total or None)

            yield progress
            known = bars.tasks[0].total or 1
            bars.update(task, completed=known, total=known)
        log.info("stage: %s took %.1f s", name, time.monotonic() - started)

    def note(self, text: str) -> None:
        """Prints the note between the bars."""
        log.info("note: %s", text)
        self.console.print(f"[yellow]note[/yellow] {text}", highlight=False)


def make_reporter(stream: TextIO | None = None) -> Reporter:
    """Bars on a terminal, lines anywhere else."""
    stream = stream if stream is not None else sys.stderr
    return RichReporter() if stream.isatty() else PlainReporter(stream)


def progress_words(done: int, total: int, elapsed_s: float) -> str:
    """E.g. ``1200 of 4000 (30 %), 0:41 elapsed, about 1:36 left``."""
    if total <= 0:
        return f"{done}, {clock(elapsed_s)} elapsed"
    words = f"{done} of {total} ({100 * done // total} %), {clock(elapsed_s)} elapsed"
    told = elapsed_s >= TELLING_S or TELLING_SHARE * total <= done
    if 0 < done < total and told and done > 1:
        words += f", about {clock(elapsed_s * (total - done) / done)} left"
    return words


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    minutes, secs = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"
