"""Which avatar the viewer shows: a file, or whatever a run folder holds while its fit goes on."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from gsavatar.errors import InputError
from gsavatar.types import Camera, Curves, Drive, Gaussians
from gsavatar.viewer.coverage import Coverage

log = logging.getLogger("gsavatar")

WATCH_EVERY_S = 1.0


class AvatarLike(Protocol):
    """Anything that a drive poses."""

    def __call__(self, drive: Drive) -> Gaussians:
        """Posed Gaussians in the room frame."""
        ...


class PackageLike(Protocol):
    """The part of a package that is shown; ``gsavatar.package.Package`` is one."""

    @property
    def avatar(self) -> AvatarLike: ...
    @property
    def camera(self) -> Camera: ...
    @property
    def plate(self) -> Tensor: ...
    @property
    def idle(self) -> Curves: ...
    @property
    def speech(self) -> Any: ...
    @property
    def limits(self) -> Tensor: ...
    @property
    def rest(self) -> Tensor: ...
    @property
    def card(self) -> dict[str, Any]: ...
    @property
    def names(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class Shown:
    """The avatar on show: a package, its number in the order of loading, and where it is from."""

    package: PackageLike
    version: int
    name: str

    @cached_property
    def coverage(self) -> Coverage:
        """From where the clip showed the head."""
        return Coverage.of(self.package.camera, self.package.idle)

    @cached_property
    def calm(self) -> Tensor:
        """The face that waits: the clip's mean coefficients [K], lips as in silence."""
        values = self.package.rest.detach().clone().float()
        speech = self.package.speech
        if speech is not None:
            for name, value in zip(speech.names, speech.closed, strict=True):
                if name in self.package.names:
                    values[self.package.names.index(name)] = value
        return values

    @property
    def status(self) -> str:
        """One line for the page: the name, the size, and how far a training has come."""
        step = self.package.card.get("step")
        training = f" · in training, step {step}" if isinstance(step, int) else ""
        return f"{self.name} · {len(self.package.names)} coefficients{training}"


Load = Callable[[Path], PackageLike]


def load(path: Path) -> PackageLike:
    """The package in a file; raises ``InputError`` if it is not a valid one."""
    from gsavatar.package import load_package

    return load_package(path)


class AvatarSource:
    """Keeps the newest avatar of a path; ``watch`` looks for a newer one every second.

    The path is a ``.gsavatar`` file or a run folder. In a run folder the finished avatar wins over
    ``live.gsavatar``; a run that has neither yet is waited for. Raises ``InputError`` if the path
    is neither or its file is damaged.
    """

    def __init__(self, path: Path, load: Load = load) -> None:
        self.path = path
        self._load = load
        self._changed = threading.Condition()
        self._stamp: tuple[object, ...] = ()
        self._shown: Shown | None = None
        self._listeners: list[Callable[[], None]] = []
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        found = self._find()
        if found is None and not is_run(path):
            raise InputError(
                f"{path}: no avatar here; give a NAME.gsavatar file or the folder of a fit."
            )
        if found is not None:
            self._take(found)

    @property
    def shown(self) -> Shown | None:
        """The newest avatar; None while a run has not written one."""
        return self._shown

    def on_change(self, listener: Callable[[], None]) -> None:
        """Has ``listener`` called, in the watching thread, after each new avatar."""
        self._listeners.append(listener)

    def refresh(self) -> bool:
        """Loads the avatar again if its file changed; whether it did. A damaged file is skipped."""
        found = self._find()
        try:
            if found is None or _stamp(found) == self._stamp:
                return False
            self._take(found)
        except (InputError, OSError) as error:
            log.warning("%s", error)
            return False
        for listener in list(self._listeners):
            listener()
        return True

    def watch(self) -> None:
        """Starts looking for newer avatars until ``close``."""
        self._thread = threading.Thread(target=self._watch, name="avatar-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops looking."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join(timeout=10.0)

    def _watch(self) -> None:
        while not self._closed.wait(WATCH_EVERY_S):
            self.refresh()

    def _take(self, path: Path) -> None:
        stamp = _stamp(path)
        started = time.monotonic()
        try:
            package = self._load(path)
        finally:
            self._stamp = stamp  # a damaged file is not read again until it changes
        version = 1 if self._shown is None else self._shown.version + 1
        name = path.stem if path.name != "live.gsavatar" else self.path.resolve().name
        self._shown = Shown(package, version, name)
        log.info("%s loaded in %.2f s", path, time.monotonic() - started)

    def _find(self) -> Path | None:
        if self.path.is_file():
            return self.path
        candidates = (f"{self.path.resolve().name}.gsavatar", "live.gsavatar")
        return next((self.path / c for c in candidates if (self.path / c).is_file()), None)


def is_run(path: Path) -> bool:
    """Whether a folder is that of a fit, finished or not."""
    return any((path / part).exists() for part in ("config.toml", "clip", "checkpoints"))


def _stamp(path: Path) -> tuple[object, ...]:
    state = path.stat()
    return path, state.st_mtime_ns, state.st_size, state.st_ino
