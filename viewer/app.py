"""The web server: lets pages in, gives each its session and widgets, and closes cleanly."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import viser
from numpy.typing import NDArray

from gsavatar.errors import InputError
from gsavatar.types import Camera
from gsavatar.viewer import gate, scene
from gsavatar.viewer.panels import AvatarTab, CameraTab, RenderTab, SpeechTab, place
from gsavatar.viewer.session import OpenDraw, Session, SplatHandle, drawer
from gsavatar.viewer.sound import Sound, chosen_sounds
from gsavatar.viewer.source import AvatarSource

log = logging.getLogger("gsavatar")

NOT_FILMED = (
    "Not filmed from here",
    "The clip never showed the head from this side: what you see is a guess. "
    "Front, in the tab Camera, leads back.",
)
BACKENDS = ("auto", "native", "gsplat", "torch")


def open_viewer(
    path: Path, *, host: str, port: int, backend: str, sounds: Sequence[Path] = ()
) -> Viewer:
    """A running viewer of an avatar file or run folder; see ``gsavatar.viewer.serve``."""
    if backend not in BACKENDS:
        raise InputError(f"backend {backend!r} is unknown; use {' or '.join(BACKENDS)}.")
    gate.check_address(host, port)
    source = AvatarSource(path)
    return Viewer(source, host, port, drawer(backend), chosen_sounds(sounds, path))


class ViserPage:
    """One browser page behind its own scene and widgets."""

    def __init__(self, client: viser.ClientHandle, loop: asyncio.AbstractEventLoop) -> None:
        self.client, self.loop = client, loop
        self.speech: SpeechTab | None = None
        self.title = client.gui.add_markdown("")
        self.status = client.gui.add_markdown("")
        self.notice: Any = None

    def add_splats(self, splats: scene.Splats) -> SplatHandle:
        """Puts the cloud into the page's scene, in metres."""
        return self.client.scene.add_gaussian_splats(
            "/avatar", splats.centers, splats.covariances, splats.rgbs, splats.opacities,
            scale=scene.SPLAT_UNIT_M,
        )  # fmt: skip

    def set_background(self, picture: NDArray[np.uint8]) -> None:
        """Fills the page behind the scene."""
        self.client.scene.set_background_image(picture, format="jpeg", jpeg_quality=88)

    def move(self, camera: Camera, farther: float = 1.0) -> None:
        """Brings the page's camera to where ``camera`` stands, or back from there, soon.

        It is moved on the loop that takes in the page's own reports of its camera. Viser sends
        nothing where its copy of the camera already has the value, so a report that came between
        two of the values would leave the page with one of them unsent, looking past the head.
        """
        with suppress(RuntimeError):  # the server has stopped, and no page is left to move
            self.loop.call_soon_threadsafe(place, self.client, camera, farther)

    def say(self, text: str) -> None:
        """Shows who draws, how large and how fast."""
        self.status.content = text

    def warn(self, guessed: bool) -> None:
        """Shows, or takes away, the note that the clip never showed the head from here."""
        if self.notice is not None:
            self.notice.remove()
        self.notice = None
        if guessed:
            self.notice = self.client.add_notification(
                *NOT_FILMED, auto_close_seconds=None, color="orange"
            )

    def cue(self, position_s: float) -> None:
        """Brings the sound to a position."""
        if self.speech is not None:
            self.speech.cue(position_s)

    def ended(self) -> None:
        """Silences what is left of the sound."""
        if self.speech is not None:
            self.speech.hush()


class Viewer:
    """A running server; ``close`` it, or use it in a ``with`` statement."""

    def __init__(
        self,
        source: AvatarSource,
        host: str,
        port: int,
        open_draw: OpenDraw,
        offers: Mapping[str, Callable[[], Sound]],
    ) -> None:
        self.source, self.host, self.open_draw, self.offers = source, host, open_draw, offers
        self.token = gate.new_token()
        self._computing, self._hearing = threading.Lock(), threading.Lock()
        self._open: dict[int, _OpenPage] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        with _quiet():
            self._server = _LocalServer(host=host, port=port, label="gsavatar", verbose=False)
        self._asked = port
        self._server.gui.configure_theme(
            dark_mode=True, show_logo=False, show_share_button=False, control_width="large"
        )
        self._server.gui.main_panel.dock_right()  # beside the picture, not over the face
        self._server.scene.set_up_direction("+y")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server.on_client_connect(self._met)
        self._server.on_client_connect(self._connected)
        self._server.on_client_disconnect(self._disconnected)
        source.on_change(self._reloaded)
        source.watch()

    @property
    def url(self) -> str:
        """Where a browser on this machine finds the viewer."""
        return f"http://{_in_url(self.host)}:{self._server.get_port()}"

    def invitation(self) -> list[str]:
        """The lines that tell a person where to look."""
        lines = [f"viewer  {self.url} (ctrl-c ends it)"]
        if self._asked not in {0, self._server.get_port()}:
            lines.append(f"        port {self._asked} is taken, so it is another one")
        if not gate.is_local(self.host):
            lines.append(f"token   {self.token} (asked of every page; nothing is encrypted)")
        return lines

    def wait(self) -> None:
        """Serves until ctrl-c or ``close``, then closes."""
        try:
            while not self._closed.wait(1.0):
                pass
        except KeyboardInterrupt:
            log.info("interrupted")
        finally:
            self.close()

    def close(self) -> None:
        """Stops every page's thread and the server. Safe to call twice."""
        if self._closed.is_set():
            return
        self._closed.set()
        self.source.close()
        with self._lock:
            pages = list(self._open.values())
            self._open.clear()
        for page in pages:
            page.session.close()
        with _quiet():
            self._server.stop()

    def __enter__(self) -> Viewer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def sessions(self) -> list[Session]:
        """The sessions of all pages that were let in."""
        with self._lock:
            return [page.session for page in self._open.values()]

    async def _met(self, _: viser.ClientHandle) -> None:
        """Notes viser's event loop, on which coroutines are awaited before others are called."""
        self._loop = asyncio.get_running_loop()

    def _connected(self, client: viser.ClientHandle) -> None:
        headers = _headers(self._server, client.client_id)
        if gate.opened_here(headers, self.host):
            self._let_in(client)
        else:
            self._ask(client)

    def _ask(self, client: viser.ClientHandle) -> None:
        """Shows the page a field for the token, and nothing else."""
        text = client.gui.add_markdown("Enter the **token** that `gsavatar view` printed.")
        field = client.gui.add_text("Token", "")
        button = client.gui.add_button("Open")

        @button.on_click
        def _(_: Any) -> None:
            if not gate.same_token(field.value, self.token):
                text.content = "That is not the token that `gsavatar view` printed."
                return
            for widget in (text, field, button):
                widget.remove()
            self._let_in(client)

    def _let_in(self, client: viser.ClientHandle) -> None:
        page = _OpenPage(self, client)
        with self._lock:
            if self._closed.is_set():
                return
            self._open[client.client_id] = page
        page.rebuild()
        page.session.start()

    def _disconnected(self, client: viser.ClientHandle) -> None:
        with self._lock:
            page = self._open.pop(client.client_id, None)
        if page is not None:
            page.session.close()

    def _reloaded(self) -> None:
        with self._lock:
            pages = list(self._open.values())
        for page in pages:
            page.rebuild()
            page.session.refresh()

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """Viser's event loop; there is one from the first page on."""
        assert self._loop is not None
        return self._loop

    @property
    def locks(self) -> tuple[threading.Lock, threading.Lock]:
        """The locks that all pages share: for drawing, and for hearing speech."""
        return self._computing, self._hearing


class _OpenPage:
    """A page that was let in: its session, and the widgets of the avatar it shows."""

    def __init__(self, viewer: Viewer, client: viser.ClientHandle) -> None:
        self.viewer, self.client = viewer, client
        self.page = ViserPage(client, viewer.loop)
        shown = viewer.source.shown
        view = _viewpoint(client.camera) if shown is None else scene.viewpoint(shown.package.camera)
        self.session = Session(self.page, viewer.source, viewer.locks[0], view, viewer.open_draw)
        self.names: tuple[str, ...] | None = None
        self.tabs: Any = None
        self.building = threading.Lock()
        client.camera.on_update(self._looked)

    async def _looked(self, camera: viser.CameraHandle) -> None:
        self.session.look(_viewpoint(camera))

    def rebuild(self) -> None:
        """Makes the widgets anew if the avatar's names changed; else only renews the title."""
        shown = self.viewer.source.shown
        with self.building:
            if shown is None:
                self.page.title.content = "Waiting for the fit's first avatar …"
                return
            self.page.title.content = f"**{shown.status}**"
            if self.names == shown.package.names:
                return
            if self.names is None:
                self.page.move(shown.package.camera)
            else:
                self.tabs.remove()
            self.names = shown.package.names
            self._build()

    def _build(self) -> None:
        gui, session, source = self.client.gui, self.session, self.viewer.source
        shown = source.shown
        assert shown is not None
        self.tabs = gui.add_tab_group()
        with self.tabs.add_tab("Avatar"):
            AvatarTab(gui, session, shown)
        with self.tabs.add_tab("Speech"):
            offers, hearing = self.viewer.offers, self.viewer.locks[1]
            self.page.speech = SpeechTab(gui, session, source, offers, hearing)
        with self.tabs.add_tab("Camera"):
            CameraTab(self.client, session, source, self.page.move)
        with self.tabs.add_tab("Render"):
            RenderTab(gui, session)


class _LocalServer(viser.ViserServer):
    """Viser's server without its public share link, which would pass by the gate."""

    def request_share_url(self, verbose: bool = True) -> str | None:
        """No link, whoever asks."""
        return None


def _viewpoint(camera: viser.CameraHandle) -> scene.Viewpoint:
    w, x, y, z = (float(v) for v in camera.wxyz)
    px, py, pz = (float(v) for v in camera.position)
    aspect = camera.image_width / max(camera.image_height, 1)
    return scene.Viewpoint((w, x, y, z), (px, py, pz), float(camera.fov), aspect)


def _headers(server: viser.ViserServer, client_id: int) -> Mapping[str, str] | None:
    """The headers a page connected with; None where this release of viser keeps them elsewhere."""
    connections = getattr(getattr(server, "_websock_server", None), "_live_connections", {})
    request = getattr(connections.get(client_id), "request", None)
    return getattr(request, "headers", None)


def _in_url(host: str) -> str:
    if host in ("", "0.0.0.0", "::"):
        return "localhost"
    return f"[{host}]" if ":" in host else host


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps viser's own banner off the terminal."""
    import rich

    console = rich.get_console()
    before, console.quiet = console.quiet, True
    try:
        yield
    finally:
        console.quiet = before
