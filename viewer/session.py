"""One open page: its state, and the thread that draws whatever the page should show now.

Nothing queues. A change only marks the page as stale; the thread draws the newest state when it
gets its turn, so a slow machine shows fewer frames, never older ones. All pages share one lock for
computing, and no page holds it for longer than one frame.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from gsavatar.avatar import Avatar
from gsavatar.avatar_packed import pack, why_not_packed
from gsavatar.render import render, to_uint8
from gsavatar.types import Branch, Camera, Drive, Gaussians
from gsavatar.viewer import scene
from gsavatar.viewer.coverage import is_guess
from gsavatar.viewer.sound import cue_after_s
from gsavatar.viewer.source import AvatarLike, AvatarSource, Shown
from gsavatar.viewer.state import (
    STILL_HEIGHT,
    Mode,
    Playback,
    Resolution,
    ViewState,
    drive_at,
    head_pose_at,
)

log = logging.getLogger("gsavatar")

SHORTEST_FRAME_S = 1 / 30
STILL_AFTER_S = 0.4
"""A page at rest for this long gets one picture at full size."""
BACKDROP_HEIGHT = 512


class SplatHandle(Protocol):
    """The part of viser's handle of a splat cloud that a session moves."""

    visible: bool

    def set_gaussians(self, centers: Any, covariances: Any, rgbs: Any, opacities: Any) -> None: ...


class Page(Protocol):
    """What a session needs of a browser page; ``app.ViserPage`` is one."""

    def add_splats(self, splats: scene.Splats) -> SplatHandle:
        """Puts the cloud into the page's scene."""
        ...

    def set_background(self, picture: NDArray[np.uint8]) -> None:
        """Fills the page behind the scene with a picture [H, W, 3]."""
        ...

    def say(self, text: str) -> None:
        """Shows one line about the drawing."""
        ...

    def warn(self, guessed: bool) -> None:
        """Shows, or takes away, the note that the clip never showed the head from here."""
        ...

    def cue(self, position_s: float) -> None:
        """Brings the page's sound to this position of the performance."""
        ...

    def ended(self) -> None:
        """Is told that a performance has come to its end."""
        ...


Draw = Callable[[Drive, Camera, torch.Tensor], NDArray[np.uint8]]
"""Drive, camera and background to a picture uint8 [H, W, 3]."""
OpenDraw = Callable[[AvatarLike, frozenset[Branch]], Draw]
"""How to draw some branches of an avatar from now on."""


def drawer(backend: str) -> OpenDraw:
    """The server's renderer: the native kernels pose and draw at once, where they can and no other
    backend is asked for."""

    def open_draw(avatar: AvatarLike, branches: frozenset[Branch]) -> Draw:
        packed = None
        if backend in {"auto", "native"} and isinstance(avatar, Avatar):
            reason = why_not_packed(avatar)
            if reason is None:
                packed = pack(avatar).only(branches)
            else:
                log.info("the avatar is posed in torch, which draws slower: %s", reason)

        def draw(drive: Drive, camera: Camera, background: torch.Tensor) -> NDArray[np.uint8]:
            if packed is not None:
                seen = packed.draw(drive, camera, background)
            else:
                cloud = scene.keep_branches(avatar(drive), branches)
                seen = render(cloud, camera, background, backend=backend)
            picture: NDArray[np.uint8] = to_uint8(seen.rgb).cpu().numpy()
            return picture

        return draw

    return open_draw


@dataclass
class Counts:
    """What a session has drawn: for the page's status line and for tests."""

    drawn: int = 0
    rows_dropped: int = 0
    last_row: int | None = None


class Session:
    """Draws one page until ``close``. Widgets call ``update``; the camera calls ``look``."""

    def __init__(
        self,
        page: Page,
        source: AvatarSource,
        computing: threading.Lock,
        view: scene.Viewpoint,
        open_draw: OpenDraw,
    ) -> None:
        self.page, self.source, self.computing, self.open_draw = page, source, computing, open_draw
        self.counts = Counts()
        self._state, self._view = ViewState(), view
        self._resolution = Resolution()
        self._wake = threading.Condition()
        self._stale, self._closed, self._still = True, False, False
        self._changed_at = time.monotonic()
        self._splats: SplatHandle | None = None
        self._cued: tuple[Playback, float] | None = None  # what, and until when
        self._backdrop: tuple[object, ...] = ()
        self._guessed = False
        self._plate: tuple[tuple[object, ...], torch.Tensor] | None = None
        self._draw: tuple[tuple[object, ...], Draw] | None = None
        self._thread = threading.Thread(target=self._run, name="viewer-page", daemon=True)

    def start(self) -> None:
        """Begins to draw."""
        self._thread.start()

    def close(self) -> None:
        """Stops drawing; returns once the frame in hand is done."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout=10.0)

    @property
    def closed(self) -> bool:
        """Whether the page is gone."""
        return self._closed

    @property
    def running(self) -> bool:
        """Whether the drawing thread lives."""
        return self._thread.is_alive()

    @property
    def state(self) -> ViewState:
        """What the page's widgets have set."""
        return self._state

    @property
    def view(self) -> scene.Viewpoint:
        """Where the page looks from."""
        return self._view

    def update(self, change: Callable[[ViewState], ViewState]) -> None:
        """Replaces the state by ``change`` of it and draws soon."""
        with self._wake:
            self._state = change(self._state)
            self._mark()

    def look(self, view: scene.Viewpoint) -> None:
        """Moves the camera; only server frames, the backdrop's shape and a note depend on it."""
        with self._wake:
            if view == self._view:
                return
            reshaped = view.aspect != self._view.aspect
            self._view = view
            if reshaped or self._state.mode == Mode.FRAMES:
                self._mark()
            state = self._state
        self._judge(view, state, time.monotonic())

    def refresh(self) -> None:
        """Draws again, e.g. after a newer avatar was loaded."""
        with self._wake:
            self._mark()

    def _mark(self) -> None:
        self._stale, self._still = True, False
        self._changed_at = time.monotonic()
        self._wake.notify_all()

    def _run(self) -> None:
        drawn_at = 0.0
        while True:
            if not self._await_turn(drawn_at):
                return
            drawn_at = time.monotonic()
            try:
                self._draw_once()
            except (RuntimeError, ValueError, OSError) as error:
                log.warning("the viewer could not draw a frame: %s", error)
                self.page.say(f"This frame could not be drawn: {error}"[:300])
                with self._wake:
                    self._state = replace(self._state, playback=None, mode=Mode.SPLATS)

    def _await_turn(self, drawn_at: float) -> bool:
        """Waits until a frame is due; False when the session is closed."""
        with self._wake:
            while not self._closed:
                now = time.monotonic()
                due = self._due(now)
                if due is not None:
                    due = max(due, drawn_at + SHORTEST_FRAME_S)
                    if due <= now:
                        return True
                self._wake.wait(None if due is None else due - now)
        return False

    def _due(self, now: float) -> float | None:
        """When the next frame should be drawn; None if only a change calls for one."""
        if self._stale:
            return now
        playback = self._state.playback
        if playback is not None:
            # Asked of the row, not of the time: a wake-up after the boundary must not wait for
            # the next one.
            shown = playback.row(now) == self.counts.last_row
            return now + playback.until_next(now) if shown else now
        if self._state.mode == Mode.FRAMES and not self._still:
            return self._changed_at + STILL_AFTER_S
        return None

    def _draw_once(self) -> None:
        with self._wake:
            state, view, now = self._state, self._view, time.monotonic()
            self._still = not self._stale and state.playback is None
            still, self._stale = self._still, False
        if state.playback is not None and state.playback.row(now) is None:
            self._end_playback(state)
            return
        shown = self.source.shown
        if shown is None:
            self.page.say("Waiting for the fit's first avatar …")
            return
        self._cue(state)
        self._count(state, now)
        self._judge(view, state, now)
        with self.computing, torch.inference_mode():
            started = time.monotonic()
            drive = drive_at(state, shown.package.names, shown.calm, now)
            if state.mode == Mode.FRAMES:
                self._server_frame(drive, shown, state, view, still)
            else:
                gaussians = scene.keep_branches(shown.package.avatar(drive), state.branches)
                self._browser_frame(gaussians, shown, state, view, started)

    def _judge(self, view: scene.Viewpoint, state: ViewState, now: float) -> None:
        """Notes when the page looks from where the clip never did."""
        shown = self.source.shown
        if shown is None:
            return
        away = shown.coverage.distance_deg(torch.tensor(view.position), head_pose_at(state, now))
        guessed = is_guess(away, self._guessed)
        if guessed != self._guessed:
            self._guessed = guessed
            self.page.warn(guessed)

    def _cue(self, state: ViewState) -> None:
        """Starts the sound of a new performance and keeps it in step with the clock."""
        playback, now = state.playback, time.monotonic()
        if playback is None or playback.loop:
            return
        position = playback.position(now)
        if position is None:
            return
        if self._cued is not None and self._cued[0] is playback and now < self._cued[1]:
            return
        self._cued = (playback, now + cue_after_s(position))
        self.page.cue(position)

    def _end_playback(self, state: ViewState) -> None:
        with self._wake:
            if self._state.playback is state.playback:
                self._state = replace(self._state, playback=None)
            self._mark()
        self.counts.last_row = None
        self.page.ended()

    def _count(self, state: ViewState, now: float) -> None:
        row = state.playback.row(now) if state.playback is not None else None
        last = self.counts.last_row
        self.counts.drawn += 1
        if row is not None and last is not None and row > last + 1:
            self.counts.rows_dropped += row - last - 1
        self.counts.last_row = row

    def _browser_frame(
        self,
        gaussians: Gaussians,
        shown: Shown,
        state: ViewState,
        view: scene.Viewpoint,
        started: float,
    ) -> None:
        """Sends splats; the picture behind them only when it is another one."""
        wanted = (state.background, view.aspect, shown.version)
        if wanted != self._backdrop:
            camera = scene.camera_of(view, BACKDROP_HEIGHT)
            self.page.set_background(to_uint8(self._behind(shown, state, camera)).numpy())
            self._backdrop = wanted
        splats = scene.splats_of(gaussians)
        if self._splats is None:
            self._splats = self.page.add_splats(splats)
        else:
            self._splats.set_gaussians(
                splats.centers, splats.covariances, splats.rgbs, splats.opacities
            )
        self._splats.visible = True
        ms = (time.monotonic() - started) * 1000
        self.page.say(f"Preview drawn by your browser · {len(splats.centers)} splats · {ms:.0f} ms")

    def _server_frame(
        self,
        drive: Drive,
        shown: Shown,
        state: ViewState,
        view: scene.Viewpoint,
        still: bool,
    ) -> None:
        """Renders and sends a picture: small while things move, at full size once they rest."""
        camera = scene.camera_of(view, STILL_HEIGHT if still else self._resolution.height)
        behind, draw = self._behind(shown, state, camera), self._drawing(shown, state)
        started = time.monotonic()
        picture = draw(drive, camera, behind)
        ms = (time.monotonic() - started) * 1000
        if not still:
            self._resolution = self._resolution.after(ms)
        self.page.set_background(picture)
        self._backdrop = ()
        if self._splats is not None:
            self._splats.visible = False
        size = f"{camera.width}×{camera.height}"
        self.page.say(f"Frame rendered by the server · {size} · {ms:.0f} ms")

    def _drawing(self, shown: Shown, state: ViewState) -> Draw:
        """How the avatar is drawn; made again only for other branches or another avatar."""
        wanted = (state.branches, shown.version)
        if self._draw is None or self._draw[0] != wanted:
            self._draw = (wanted, self.open_draw(shown.package.avatar, state.branches))
        return self._draw[1]

    def _behind(self, shown: Shown, state: ViewState, camera: Camera) -> torch.Tensor:
        """What stands behind, [H, W, 3]; made again only for another size, wish or avatar."""
        wanted = (state.background, camera.width, camera.height, shown.version)
        if self._plate is None or self._plate[0] != wanted:
            plate = shown.package.plate
            made = scene.backdrop(state.background, plate, camera.width, camera.height)
            self._plate = (wanted, made)
        return self._plate[1]
