"""The browser viewer: ``serve(path)`` shows an avatar, or a run while it is still training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gsavatar.viewer.app import Viewer

__all__ = ["serve"]


def serve(
    path: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    backend: str = "auto",
    block: bool = True,
    sounds: Sequence[Path] = (),
    announce: Callable[[str], None] | None = None,
) -> Viewer:
    """Serves an avatar file or a run folder to browsers; returns the handle with its ``url``.

    A page that was not opened on this machine must first enter the handle's ``token``. ``sounds``
    are files offered for playing beside those that lie next to the avatar. With ``block`` it
    returns only after ctrl-c, closed; ``announce`` gets the lines that say where to look, by
    default standard output if ``block``. Raises ``InputError`` for a path without an avatar and for
    an address that cannot be listened on.
    """
    from gsavatar.viewer.app import open_viewer

    viewer = open_viewer(Path(path), host=host, port=port, backend=backend, sounds=sounds)
    if announce is None and block:
        announce = _to_terminal
    if announce is not None:
        for line in viewer.invitation():
            announce(line)
    if block:
        viewer.wait()
    return viewer


def _to_terminal(line: str) -> None:
    import sys

    sys.stdout.write(line + "\n")
    sys.stdout.flush()
