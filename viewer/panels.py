"""The widgets of one page: four tabs that turn clicks into changes of the page's state."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np
import torch
import viser

from gsavatar.errors import InputError
from gsavatar.types import Branch, Camera
from gsavatar.viewer import scene
from gsavatar.viewer.names import Group, grouped, plain, twin
from gsavatar.viewer.session import Session
from gsavatar.viewer.sound import Sound, cue, heard, hush, player
from gsavatar.viewer.source import AvatarSource, Shown
from gsavatar.viewer.state import Mode, Playback, ViewState, slider_range
from gsavatar.viewer.uploads import TYPES, decode_upload

BRANCH_LABELS = {Branch.FACE: "Face", Branch.MOUTH: "Inside of mouth", Branch.TORSO: "Torso"}
TURNS = (
    ("Turn", 40.0, "degrees to the person's left"),
    ("Nod", 25.0, "degrees downwards"),
    ("Tilt", 25.0, "degrees towards the person's right shoulder"),
)
"""Sliders that turn the head, and how far each goes either way."""
MODE_LABELS = {"Preview (browser)": Mode.SPLATS, "Frames (server)": Mode.FRAMES}
VIEWS = {"Front": (0.0, 1.0), "Left": (-30.0, 1.0), "Right": (30.0, 1.0), "Far": (60.0, 3.0)}
"""Degrees to walk around the head from the clip's camera, and how many times as far away; from
afar the clip's cameras come into sight."""
NO_SOUND = "choose a sound"
FRUSTUM_M = 0.06


def by_user(event: Any) -> bool:
    """Whether a person moved the widget, rather than the program."""
    return event.client_id is not None


class AvatarTab:
    """Sliders of the head and of the named coefficients."""

    def __init__(self, gui: viser.GuiApi, session: Session, shown: Shown) -> None:
        self.session = session
        self.names = shown.package.names
        self.calm = {n: float(v) for n, v in zip(self.names, shown.calm, strict=True)}
        self.sliders: dict[str, Any] = {}
        self.turns: list[Any] = []
        gui.add_button("Reset", hint="Every slider back to the calm face").on_click(self._reset)
        self.pairs = gui.add_checkbox(
            "Both sides", True, hint="A slider also moves its twin of the other side"
        )
        with gui.add_folder("Head"):
            self._head(gui)
        for group, names in grouped(self.names).items():
            with gui.add_folder(group.value, expand_by_default=group == Group.JAW):
                for name in names:
                    self._slider(gui, name, shown.package.limits)

    def _head(self, gui: viser.GuiApi) -> None:
        hint = "Follow the head's own motion while something plays"
        follow = gui.add_checkbox("Follow motion", True, hint=hint)

        @follow.on_update
        def _(_: Any) -> None:
            self.session.update(lambda state: replace(state, follow_head=follow.value))

        for label, reach, meaning in TURNS:
            slider = gui.add_slider(label, -reach, reach, 1.0, 0.0, hint=f"{label}: {meaning}")
            self.turns.append(slider)
            slider.on_update(self._turn)

    def _turn(self, event: Any) -> None:
        if by_user(event):
            yaw, pitch, roll = (slider.value for slider in self.turns)
            self.session.update(lambda state: replace(state, turn_deg=(yaw, pitch, roll)))

    def _slider(self, gui: viser.GuiApi, name: str, limits: torch.Tensor) -> None:
        least, most = limits[self.names.index(name)].tolist()
        low, high = slider_range(least, most, self.calm[name])
        hint = f"{name}: the clip showed {least:.2f} to {most:.2f}; sides are the person's own"
        slider = gui.add_slider(plain(name), low, high, 0.01, round(self.calm[name], 2), hint=hint)
        self.sliders[name] = slider
        other = twin(name, self.names)

        @slider.on_update
        def _(event: Any) -> None:
            if not by_user(event):
                return
            self.session.update(lambda state: state.with_slider(name, slider.value))
            if other is not None and self.pairs.value:
                self._follow(other, slider.value)

    def _follow(self, name: str, value: float) -> None:
        """Moves a slider, as far as it goes, after its twin."""
        slider = self.sliders[name]
        value = min(max(value, slider.min), slider.max)
        self.session.update(lambda state: state.with_slider(name, value))
        slider.value = value

    def _reset(self, _: Any) -> None:
        self.session.update(ViewState.without_sliders)
        for name, slider in self.sliders.items():
            slider.value = round(self.calm[name], 2)
        for slider in self.turns:
            slider.value = 0.0


class SpeechTab:
    """Choose or upload speech, let the avatar hear it, play both in step."""

    def __init__(
        self,
        gui: viser.GuiApi,
        session: Session,
        source: AvatarSource,
        offers: Mapping[str, Callable[[], Sound]],
        hearing: threading.Lock,
    ) -> None:
        self.session, self.source, self.offers, self.hearing = session, source, offers, hearing
        self.sound: Sound | None = None
        self.request, self.run, self.serial = 0, 0, count(1)
        self.choice = gui.add_dropdown("Sound", (NO_SOUND, *offers), initial_value=NO_SOUND)
        self.choice.on_update(self._chosen)
        kinds = ", ".join(t[1:] for t in TYPES)
        upload = gui.add_upload_button(
            "Upload speech", mime_type=",".join(TYPES), hint=f"{kinds}; at most 30 MB and 3 minutes"
        )
        upload.on_upload(lambda event: self._prepare(lambda: _uploaded(event.target.value)))
        self.play = gui.add_button("Play", disabled=True)
        self.play.on_click(self._play)
        self.stop = gui.add_button("Stop")
        self.stop.on_click(lambda _: self._stop())
        self.idle = gui.add_button("Play the clip's own motion", hint="Silent, round and round")
        self.idle.on_click(self._play_idle)
        self.progress: Any = gui.add_progress_bar(0.0, visible=False)
        self.text = gui.add_markdown("")
        self.player, self.orders = gui.add_html(""), gui.add_html("")

    def cue(self, position_s: float) -> None:
        """Brings the page's sound to a position of the performance."""
        self.orders.content = cue(position_s, self.run)

    def hush(self) -> None:
        """Stops the page's sound."""
        self.orders.content = hush(next(self.serial))

    def _chosen(self, event: Any) -> None:
        name = self.choice.value
        if by_user(event) and name in self.offers:
            self._prepare(self.offers[name])

    def _prepare(self, take: Callable[[], Sound]) -> None:
        """Loads and hears a sound; a newer request gives up this one at its next step."""
        self.request += 1
        mine = self.request
        self._stop()
        self.play.disabled, self.progress.visible = True, True
        self.progress.value = 0.0
        self.text.content = "Loading the sound …"

        def progress(done: int, total: int) -> None:
            if self.request != mine or self.session.closed:
                raise _Superseded
            self.progress.value = 100.0 * done / max(total, 1)
            self.text.content = f"Listening … {done} of {total}"

        try:
            sound = take()
            with self.hearing:
                self.sound = self._hear(sound, progress)
        except _Superseded:
            return
        except (InputError, RuntimeError, ValueError, OSError) as error:
            self.sound = None
            self.text.content = str(error)
        else:
            seconds = len(sound.samples) / 16_000
            self.text.content = f"**{sound.name}** is ready, {seconds:.1f} s."
            self.play.disabled = False
            self.player.content = player(sound.samples)
        self.progress.visible = False

    def _hear(self, sound: Sound, progress: Callable[[int, int], None] | None) -> Sound:
        shown = self.source.shown
        if shown is None:
            raise InputError("There is no avatar yet; wait for the fit's first one.")
        return heard(sound, shown.package, shown.version, progress)

    def _play(self, _: Any) -> None:
        if self.sound is None:
            return
        try:
            self.sound = self._hear(self.sound, None)  # again only after a newer avatar came
        except InputError as error:
            self.text.content = str(error)
            return
        curves = self.sound.curves
        assert curves is not None
        self.run = next(self.serial)
        started = Playback(curves, time.monotonic())
        self.session.update(lambda state: replace(state, playback=started))

    def _play_idle(self, _: Any) -> None:
        shown = self.source.shown
        if shown is None:
            return
        self.hush()
        started = Playback(shown.package.idle, time.monotonic(), loop=True)
        self.session.update(lambda state: replace(state, playback=started))

    def _stop(self) -> None:
        self.session.update(lambda state: replace(state, playback=None))
        self.hush()


class _Superseded(Exception):
    """Another sound was chosen meanwhile."""


def _uploaded(file: Any) -> Sound:
    return Sound(file.name, decode_upload(file.name, file.content))


class CameraTab:
    """Points of view, the clip's cameras, and a path to render along."""

    def __init__(
        self,
        client: viser.ClientHandle,
        session: Session,
        source: AvatarSource,
        move: Callable[[Camera, float], None],
    ) -> None:
        self.client, self.session, self.source, self.move = client, session, source, move
        self.keyframes: list[scene.Viewpoint] = []
        self.frusta: list[Any] = []
        gui = client.gui
        views = gui.add_button_group("View", tuple(VIEWS))
        views.on_click(lambda event: self.go(*VIEWS[event.target.value]))
        hint = "Where the clip saw the head from"
        self.box = gui.add_checkbox("Clip's cameras", False, hint=hint)
        self.box.on_update(lambda _: self._show_frusta())
        with gui.add_folder("Camera path"):
            self.text = gui.add_markdown("No keyframes yet.")
            gui.add_button("Add keyframe").on_click(lambda _: self._add())
            gui.add_button("Clear").on_click(lambda _: self._clear())
            gui.add_button("Download path.json").on_click(lambda _: self._download())

    def go(self, yaw_deg: float, farther: float) -> None:
        """Moves the page's camera to the clip's own, walked around the head and away from it."""
        shown = self.source.shown
        if shown is None:
            return
        self.move(scene.orbited(shown.package.camera, torch.zeros(3), yaw_deg), farther)

    def _add(self) -> None:
        self.keyframes.append(self.session.view)
        self._tell()

    def _clear(self) -> None:
        self.keyframes.clear()
        self._tell()

    def _tell(self) -> None:
        count = len(self.keyframes)
        length = max(count - 1, 0) * scene.PATH_STEP_S
        plural = "" if count == 1 else "s"
        text = f"{count} keyframe{plural}, {length:g} s."
        self.text.content = text if count else "No keyframes yet."

    def _download(self) -> None:
        if not self.keyframes:
            self.text.content = "No keyframes yet; look around and add some."
            return
        path = scene.path_json(self.keyframes).encode()
        self.client.send_file_download("path.json", path, save_immediately=True)

    def _show_frusta(self) -> None:
        shown = self.source.shown
        if not self.frusta and self.box.value and shown is not None:
            package = shown.package
            small = (package.plate[::4, ::4] * 255).round().to(torch.uint8).numpy()
            self._frustum("clip", package.camera, (230, 120, 30), small)
            for number, camera in enumerate(scene.seen_from(package.camera, package.idle)):
                self._frustum(f"view{number}", camera, (120, 150, 190), None)
        for frustum in self.frusta:
            frustum.visible = self.box.value

    def _frustum(
        self, name: str, camera: Camera, color: tuple[int, int, int], image: np.ndarray | None
    ) -> None:
        view = scene.viewpoint(camera)
        self.frusta.append(
            self.client.scene.add_camera_frustum(
                f"/cameras/{name}", view.fov, camera.width / camera.height, scale=FRUSTUM_M,
                thickness=1.5, thickness_units="screen", color=color, image=image,
                wxyz=view.wxyz, position=view.position,
            )
        )  # fmt: skip


def place(client: viser.ClientHandle, camera: Camera, farther: float = 1.0) -> None:
    """Puts a page's camera where ``camera`` stands, or back from there; it turns round the head."""
    view = scene.viewpoint(camera)
    position = np.array(view.position)
    forward = camera.world_to_cam[2, :3].double().numpy()
    distance = max(float(-position @ forward), 0.1)  # to the plane through the head's origin
    with client.atomic():
        client.camera.position = position - (farther - 1.0) * distance * forward
        client.camera.look_at = position + distance * forward
        client.camera.up_direction = -camera.world_to_cam[1, :3].double().numpy()
        client.camera.fov = view.fov


class RenderTab:
    """Who draws, which parts, and what stands behind."""

    def __init__(self, gui: viser.GuiApi, session: Session) -> None:
        mode = gui.add_dropdown("Drawn as", tuple(MODE_LABELS))
        backdrop = gui.add_dropdown("Background", ("plate", *scene.COLORS))
        gui.add_markdown(
            "The preview has no view-dependent colour and blurs a little differently; the server's "
            "frames are what `gsavatar render` writes. They grow to full size when nothing moves."
        )

        with gui.add_folder("Parts"):
            for branch, label in BRANCH_LABELS.items():
                self._branch(gui, session, branch, label)

        @mode.on_update
        def _(_: Any) -> None:
            session.update(lambda state: replace(state, mode=MODE_LABELS[mode.value]))

        @backdrop.on_update
        def _(_: Any) -> None:
            session.update(lambda state: replace(state, background=backdrop.value))

    def _branch(self, gui: viser.GuiApi, session: Session, branch: Branch, label: str) -> None:
        box = gui.add_checkbox(label, True)

        @box.on_update
        def _(_: Any) -> None:
            session.update(lambda state: state.with_branch(branch, box.value))
