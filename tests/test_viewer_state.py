"""The viewer without a browser: state, clock, drawing thread, gate, uploads, reload, exports."""

from __future__ import annotations

import asyncio
import json
import math
import os
import threading
import time
import wave
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from viewer_fakes import COUNT, NAMES, FakePackage, camera, curves, draw_dots

from gsavatar.errors import InputError
from gsavatar.render import render, to_uint8
from gsavatar.types import ARKIT_NAMES, Branch, Drive
from gsavatar.viewer import coverage, gate, names, scene, sound, state, uploads
from gsavatar.viewer.app import ViserPage
from gsavatar.viewer.session import Session, drawer
from gsavatar.viewer.source import AvatarSource, PackageLike, Shown
from tests.test_avatar_packed import back, seen_avatar, seen_camera, turned

REST = torch.tensor([0.1, 0.2, 0.3])
DEADLINE_S = 20.0


# --- state ---------------------------------------------------------------------------------------


def test_sliders_win_over_the_performance_and_the_performance_over_rest() -> None:
    view = state.ViewState()
    assert torch.equal(state.coefficients_at(view, NAMES, REST, 0.0), REST)
    playing = replace(view, playback=state.Playback(curves(2.0), started_at=10.0))
    assert state.coefficients_at(playing, NAMES, REST, 10.5)[0] == 12  # row 12 starts at 0.48 s
    moved = playing.with_slider("jawOpen", 0.7)
    assert state.coefficients_at(moved, NAMES, REST, 10.5).tolist() == pytest.approx([0.7, 0, 0])
    assert moved.without_sliders() == playing


def test_performance_is_matched_by_name() -> None:
    played = curves(1.0)
    swapped = replace(played, names=("eyeLookInLeft", "notHere", "jawOpen"))
    view = state.ViewState(playback=state.Playback(swapped, 0.0))
    assert state.coefficients_at(view, NAMES, REST, 0.5).tolist() == pytest.approx([0, 0.2, 12])


def test_rows_follow_the_clock_for_a_minute_however_unevenly_it_is_asked() -> None:
    playback = state.Playback(curves(60.0), started_at=1000.0)
    rng = np.random.default_rng(0)
    now = 1000.0
    while now < 1059.9:
        row = playback.row(now)
        assert row is not None
        shown_s = float(playback.curves.time_s[row])
        assert -1e-6 <= (now - 1000.0) - shown_s < 0.04 + 1e-6  # within the frame's own time
        assert 0 < playback.until_next(now) <= 0.04 + 1e-6
        now += rng.exponential(0.1)
    assert playback.row(1060.001) is None and playback.position(1060.001) is None
    assert replace(playback, loop=True).row(1060.0 + 0.5) == 12


def test_irregular_times_choose_the_row_that_has_begun() -> None:
    times = torch.tensor([5.0, 5.1, 5.5, 5.6], dtype=torch.float64)
    played = replace(curves(0.16), time_s=times)
    playback = state.Playback(played, started_at=0.0)
    assert [playback.row(t) for t in (0.0, 0.09, 0.1, 0.49, 0.5, 0.61)] == [0, 0, 1, 1, 2, 3]


def test_head_pose_is_followed_turned_or_left() -> None:
    view = state.ViewState(playback=state.Playback(curves(1.0), 0.0))
    assert state.head_pose_at(view, 0.5)[0, 3] == pytest.approx(12e-4)
    assert torch.equal(state.head_pose_at(replace(view, follow_head=False), 0.5), torch.eye(4))
    yawed = state.head_pose_at(state.ViewState(turn_deg=(90.0, 0.0, 0.0)), 0.0)
    torch.testing.assert_close(yawed[:3, 2], torch.tensor([1.0, 0.0, 0.0]), atol=1e-6, rtol=0)
    nod = state.head_pose_at(state.ViewState(turn_deg=(0.0, 30.0, 0.0)), 0.0)
    assert nod[1, 2] == pytest.approx(-math.sin(math.radians(30)))  # the face's axis points down


def test_groups_and_ranges() -> None:
    groups = names.grouped(("jawLeft", "jawOpen", "eyeBlinkLeft", "eyeLookInLeft", "selfA"))
    assert groups[names.Group.JAW] == ("jawOpen", "jawLeft")
    assert groups[names.Group.LIDS] == ("eyeBlinkLeft",)
    assert groups[names.Group.GAZE] == ("eyeLookInLeft",)
    assert groups[names.Group.OTHER] == ("selfA",)
    assert names.Group.GAZE not in names.grouped(("jawOpen",))
    assert state.slider_range(-0.13, 0.4, 0.1) == pytest.approx((-0.15, 1.0))
    assert state.slider_range(0.0, 1.22, 0.1) == pytest.approx((0.0, 1.25))


def test_sliders_have_plain_and_unmistakable_names() -> None:
    said = {"jawOpen": "Jaw open", "mouthSmileLeft": "Smile left", "eyeBlinkRight": "Blink right",
            "eyeLookInLeft": "Left eye in", "browInnerUp": "Inner up", "selfA": "Self a",
            "mouthRight": "Shift right", "tongueOut": "Tongue out"}  # fmt: skip
    assert {name: names.plain(name) for name in said} == said
    every = (*ARKIT_NAMES[1:], "tongueOut")
    for members in names.grouped(every).values():
        labels = [names.plain(name) for name in members]
        assert len(set(labels)) == len(labels)
        assert max(len(label) for label in labels) <= 18  # one line in the panel
    assert names.Group.OTHER not in names.grouped(every)


def test_sides_pair_up_where_both_move_together() -> None:
    assert names.twin("eyeBlinkLeft", ARKIT_NAMES) == "eyeBlinkRight"
    assert names.twin("mouthSmileRight", ARKIT_NAMES) == "mouthSmileLeft"
    assert names.twin("eyeBlinkLeft", ("eyeBlinkLeft",)) is None
    for alone in ("jawOpen", "jawLeft", "mouthRight", "eyeLookInLeft"):
        assert names.twin(alone, ARKIT_NAMES) is None


def test_coverage_is_the_angle_to_the_nearest_filmed_view() -> None:
    poses = torch.eye(4).repeat(2, 1, 1)
    poses[1, :3, :3] = state.turned(20.0, 0.0, 0.0)
    performance = replace(curves(1.0), head_pose=poses)
    seen = coverage.Coverage.of(camera(), performance)
    place = torch.tensor([0.0, 0.0, 1.0])
    for turn, expected in ((0.0, 0.0), (20.0, 0.0), (8.0, 8.0), (35.0, 15.0), (-12.0, 12.0)):
        pose = torch.eye(4)
        pose[:3, :3] = state.turned(turn, 0.0, 0.0)
        assert seen.distance_deg(place, pose) == pytest.approx(expected, abs=1e-3)
    walked = scene.orbited(camera(), torch.zeros(3), 30.0)  # the camera turns instead of the head
    there = torch.linalg.inv(walked.world_to_cam)[:3, 3]
    assert seen.distance_deg(there, torch.eye(4)) in (
        pytest.approx(30.0, abs=0.01), pytest.approx(10.0, abs=0.01)
    )  # fmt: skip
    assert coverage.is_guess(8.0, before=True) and not coverage.is_guess(8.0, before=False)


@pytest.mark.parametrize("cost_us", [0.02, 0.2, 1.0, 10.0, 1000.0])  # microseconds per pixel row²
def test_resolution_settles_and_stays(cost_us: float) -> None:
    size, heights = state.Resolution(), []
    for _ in range(80):
        size = size.after(cost_us * size.height**2 / 1000)
        heights.append(size.height)
    assert len(set(heights[-40:])) == 1  # no flapping
    ms = cost_us * heights[-1] ** 2 / 1000
    assert ms <= state.TOO_SLOW * state.TARGET_MS or heights[-1] == state.LEVELS[0]
    if heights[-1] != state.LEVELS[-1]:
        larger = state.LEVELS[state.LEVELS.index(heights[-1]) + 1]
        assert cost_us * larger**2 / 1000 >= state.FAST_ENOUGH * state.TARGET_MS


def test_one_slow_frame_does_not_change_the_resolution() -> None:
    size = state.Resolution(256)
    for _ in range(10):
        size = size.after(50.0)
    assert size.after(110.0).height == 256


# --- what is sent --------------------------------------------------------------------------------


def test_splats_are_the_gaussians_in_centimetres() -> None:
    gaussians = FakePackage().avatar(Drive(torch.zeros(3), torch.eye(4)))
    splats = scene.splats_of(gaussians)
    np.testing.assert_allclose(splats.centers * 0.01, gaussians.means.numpy(), atol=1e-6)
    np.testing.assert_allclose(splats.covariances[0], np.eye(3) * 0.36, atol=1e-5)
    assert splats.rgbs[0].tolist() == [255, 128, 0] and splats.opacities[0].tolist() == [242]
    smallest = np.float16((1e-4 / scene.SPLAT_UNIT_M) ** 2)  # 0.1 mm survives half precision
    assert float(smallest) == pytest.approx(1e-4, rel=1e-3)


def test_hidden_branches_are_not_sent() -> None:
    gaussians = FakePackage().avatar(Drive(torch.zeros(3), torch.eye(4)))
    shown = state.ViewState().with_branch(Branch.TORSO, False)
    kept = scene.keep_branches(gaussians, shown.branches)
    torso = int((gaussians.branch == int(Branch.TORSO)).sum())
    assert 0 < torso < COUNT and len(kept.means) == COUNT - torso
    assert shown.with_branch(Branch.TORSO, True) == state.ViewState()
    assert len(scene.keep_branches(gaussians, frozenset()).means) == 0


def test_camera_survives_the_page_and_back() -> None:
    turned = scene.orbited(camera(), torch.zeros(3), 20.0)
    back = scene.camera_of(scene.viewpoint(turned), 512)
    torch.testing.assert_close(back.world_to_cam, turned.world_to_cam, atol=1e-5, rtol=0)
    torch.testing.assert_close(back.K, turned.K, atol=1e-2, rtol=0)
    wide = scene.camera_of(scene.viewpoint(turned, aspect=2.0), 256)
    assert (wide.width, wide.height) == (512, 256)
    assert float(wide.K[1, 1]) == pytest.approx(float(turned.K[1, 1]) / 2, rel=1e-5)


def test_backdrop_fills_the_page_from_the_middle_of_the_plate() -> None:
    plate = torch.zeros(512, 512, 3)
    plate[192:320, :, 0] = 1.0  # a band that a page four times as wide as high shows alone
    assert scene.backdrop("plate", plate, 400, 100)[..., 0].min() > 0.99
    assert scene.backdrop("light", plate, 30, 20).shape == (20, 30, 3)


def test_camera_path_is_what_render_reads(tmp_path: Path) -> None:
    film_views = pytest.importorskip("gsavatar.film_views")
    front, side = camera(), scene.orbited(camera(), torch.zeros(3), 20.0)
    path = tmp_path / "path.json"
    path.write_text(scene.path_json([scene.viewpoint(front, 1.7), scene.viewpoint(side, 1.7)]))
    view = film_views.camera_path(path, camera(256))
    torch.testing.assert_close(view(0.0).world_to_cam, front.world_to_cam, atol=1e-5, rtol=0)
    last = view(scene.PATH_STEP_S)
    torch.testing.assert_close(last.world_to_cam, side.world_to_cam, atol=1e-5, rtol=0)
    torch.testing.assert_close(last.K, camera(256).K, atol=1e-2, rtol=0)
    assert json.loads(path.read_text())["version"] == 1


def test_clip_views_are_relative_to_the_resting_head() -> None:
    idle = curves(2.0)
    seen = scene.seen_from(camera(), idle, count=5)
    assert len(seen) == 5
    moved = camera().world_to_cam @ idle.head_pose[-1]
    torch.testing.assert_close(seen[-1].world_to_cam, moved)


# --- the page's camera ---------------------------------------------------------------------------


class ReportedCamera:
    """Viser's handle of a page's camera: it sends only what differs from its copy, and each of the
    page's reports replaces that copy as soon as the loop comes to it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.copy = {"position": (3.0, 3.0, 3.0), "look_at": (0.0, 0.0, 0.0)}
        self.page = dict(self.copy)

    def send(self, name: str, value: Any) -> None:
        if not np.allclose(value, self.copy[name]):
            self.copy[name] = self.page[name] = tuple(value)

    def set_position(self, value: Any) -> None:
        before = dict(self.copy)
        self.send("look_at", np.add(before["look_at"], value) - before["position"])
        self.send("position", value)
        self.hear(before)  # a report that was on its way

    def hear(self, report: dict[str, Any]) -> None:
        heard = threading.Event()
        self.loop.call_soon_threadsafe(lambda: (setattr(self, "copy", report), heard.set()))
        if threading.current_thread().name != "loop":
            assert heard.wait(DEADLINE_S)

    position = property(fset=set_position)
    look_at = property(fset=lambda self, value: self.send("look_at", value))
    up_direction = fov = property(fset=lambda self, value: None)


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    thread = threading.Thread(target=made.run_forever, name="loop")
    thread.start()
    yield made
    made.call_soon_threadsafe(made.stop)
    thread.join()
    made.close()


def test_an_old_report_of_the_page_does_not_turn_its_camera_away(
    loop: asyncio.AbstractEventLoop,
) -> None:
    client: Any = MagicMock(camera=ReportedCamera(loop))
    ViserPage(client, loop).move(camera())
    asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result(DEADLINE_S)
    assert client.camera.page["position"] == pytest.approx((0.0, 0.0, 1.0))
    assert client.camera.page["look_at"] == pytest.approx((0.0, 0.0, 0.0))


# --- the drawing thread --------------------------------------------------------------------------


class FakePage:
    """Records what a session sends; ``until`` waits for a condition on it."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.clouds: list[np.ndarray] = []
        self.pictures: list[np.ndarray] = []
        self.said = ""
        self.over = 0
        self.cues: list[float] = []
        self.visible = True
        self.guesses: list[bool] = []

    def _note(self) -> None:
        with self.changed:
            self.changed.notify_all()

    def add_splats(self, splats: scene.Splats) -> FakePage:
        self.clouds.append(splats.centers)
        self._note()
        return self

    def set_gaussians(self, centers: Any, covariances: Any, rgbs: Any, opacities: Any) -> None:
        self.clouds.append(centers)
        self._note()

    def set_background(self, picture: np.ndarray) -> None:
        self.pictures.append(picture)
        self._note()

    def say(self, text: str) -> None:
        self.said = text
        self._note()

    def warn(self, guessed: bool) -> None:
        self.guesses.append(guessed)
        self._note()

    def cue(self, position_s: float) -> None:
        self.cues.append(position_s)
        self._note()

    def ended(self) -> None:
        self.over += 1
        self._note()

    def until(self, condition: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, DEADLINE_S), self.said


class FakeSource:
    """A source that shows one package."""

    def __init__(self, package: PackageLike | None) -> None:
        self.shown = None if package is None else Shown(package, 1, "fake")


@pytest.fixture
def open_session() -> Any:
    opened: list[Session] = []

    def start(
        package: PackageLike | None = None, draw: Any = draw_dots
    ) -> tuple[Session, FakePage]:
        page = FakePage()
        view = scene.viewpoint(camera(), aspect=1.5)
        source: Any = FakeSource(package)
        session = Session(page, source, threading.Lock(), view, draw)
        opened.append(session)
        session.start()
        return session, page

    yield start
    for session in opened:
        session.close()
        assert not session.running


def test_session_sends_splats_again_only_after_a_change(open_session: Any) -> None:
    session, page = open_session(FakePackage())
    page.until(lambda: "browser" in page.said)
    session.update(lambda s: s.with_slider("jawOpen", 1.0))
    page.until(lambda: len(page.clouds) >= 2 and page.clouds[-1][:, 1].max() > 15)
    assert page.clouds[0][:, 1].max() == pytest.approx(8.0, abs=0.1)
    drawn, pictures = session.counts.drawn, len(page.pictures)
    session.look(replace(session.view, position=(0.1, 0.0, 1.0)))  # the browser's own affair
    session.update(lambda s: s.without_sliders())
    page.until(lambda: session.counts.drawn > drawn and page.clouds[-1][:, 1].max() < 9)
    assert len(page.pictures) == pictures == 1  # the plate is sent once


def test_a_page_begins_with_the_lips_of_silence(open_session: Any) -> None:
    rest = torch.tensor([float(name == "jawOpen") for name in NAMES])
    speech = SimpleNamespace(names=("jawOpen", "unknown"), closed=torch.tensor([0.0, 1.0]))
    _, page = open_session(FakePackage(rest=rest, speech=speech))
    page.until(lambda: len(page.clouds) == 1)
    assert page.clouds[0][:, 1].max() == pytest.approx(8.0, abs=0.1)  # open it would be over 15


def test_a_view_that_was_not_filmed_is_said_to_be_a_guess(open_session: Any) -> None:
    session, page = open_session(FakePackage())
    page.until(lambda: len(page.clouds) == 1)
    front = session.view
    session.look(replace(front, position=(0.1, 0.0, 1.0)))
    assert page.guesses == []
    session.look(replace(front, position=(0.6, 0.0, 0.8)))  # splats are the browser's own affair
    session.look(replace(front, position=(0.61, 0.0, 0.8)))
    assert page.guesses == [True]
    session.look(front)
    assert page.guesses == [True, False]
    session.update(lambda s: replace(s, turn_deg=(30.0, 0.0, 0.0)))  # the head turns instead
    page.until(lambda: page.guesses == [True, False, True])


def middle(picture: np.ndarray) -> list[int]:
    colour: list[int] = picture[picture.shape[0] // 2, picture.shape[1] // 2].tolist()
    return colour


def test_session_renders_frames_for_the_camera_and_refines_at_rest(open_session: Any) -> None:
    session, page = open_session(FakePackage())
    page.until(lambda: len(page.clouds) == 1)
    session.update(lambda s: replace(s, mode=state.Mode.FRAMES))
    page.until(lambda: page.pictures[-1].shape == (state.STILL_HEIGHT, 1152, 3))
    assert page.pictures[1].shape == (256, 384, 3) and not page.visible
    assert middle(page.pictures[-1]) == [255, 128, 0]
    session.look(replace(session.view, position=(0.3, 0.0, 1.0)))  # the head leaves to the left
    page.until(lambda: middle(page.pictures[-1]) == [0, 0, 255])
    page.until(lambda: "server · 1152×768" in page.said)


def test_server_frames_show_what_the_sliders_say(open_session: Any) -> None:
    session, page = open_session(FakePackage())
    session.update(lambda s: replace(s, mode=state.Mode.FRAMES))
    full = (state.STILL_HEIGHT, 1152, 3)
    page.until(lambda: bool(page.pictures) and page.pictures[-1].shape == full)

    def tall(picture: np.ndarray) -> int:
        return int(((picture == (255, 128, 0)).all(-1).any(1)).sum())

    rest = page.pictures[-1]
    session.update(lambda s: s.with_slider("jawOpen", 1.0))
    page.until(lambda: page.pictures[-1].shape == full and tall(page.pictures[-1]) > tall(rest))
    assert tall(page.pictures[-1]) > 1.5 * tall(rest)
    session.update(lambda s: s.without_sliders())
    page.until(lambda: np.array_equal(page.pictures[-1], rest))


def test_the_server_draws_the_avatar_it_is_given() -> None:
    package = FakePackage()
    draw = drawer("auto")(package.avatar, frozenset(Branch))
    behind = torch.tensor([0.0, 0.0, 1.0]).expand(96, 96, 3)
    shown = []
    for jaw, angle in ((0.0, 0.0), (1.0, 0.0), (0.0, 60.0)):
        pose = torch.eye(4)
        pose[0, 3] = 0.05 * angle / 60.0
        drive = Drive(torch.tensor([jaw, 0.0, 0.0]), pose)
        cloud = package.avatar(drive)
        view = scene.orbited(camera(96), torch.zeros(3), angle)
        shown.append(draw(drive, view, behind))
        expected = to_uint8(render(cloud, view, behind).rgb).numpy()
        assert shown[-1].shape == (96, 96, 3) and np.array_equal(shown[-1], expected)
        assert middle(shown[-1])[0] > 200 and shown[-1][0, 0].tolist() == [0, 0, 255]
    assert all((a != b).any(-1).sum() > 50 for a, b in ((shown[0], shown[1]), (shown[0], shown[2])))


@pytest.mark.parametrize("branches", [frozenset(Branch), frozenset({Branch.FACE, Branch.TORSO})])
def test_the_server_draws_a_packed_avatar_as_the_torch_way_does(
    branches: frozenset[Branch],
) -> None:
    avatar, drive, behind = seen_avatar(1), Drive(torch.tensor([0.8, 0.0]), turned()), back()
    ways = [drawer(backend)(avatar, branches) for backend in ("native", "torch")]
    packed, longer = (way(drive, seen_camera(), behind).astype(int) for way in ways)
    assert np.abs(packed - longer).max() <= 2
    assert len(np.unique(packed.reshape(-1, 3), axis=0)) > 50  # there is something to see
    everything = drawer("native")(avatar, frozenset(Branch))(drive, seen_camera(), behind)
    assert np.array_equal(packed, everything) == (branches == frozenset(Branch))


def test_session_plays_to_the_end_and_says_so(open_session: Any) -> None:
    session, page = open_session(FakePackage())
    began = state.Playback(curves(0.4), time.monotonic())
    session.update(lambda s: replace(s, playback=began))
    page.until(lambda: page.over == 1)
    assert session.state.playback is None
    page.until(lambda: page.clouds[-1][:, 1].max() < 9)  # back at rest


def test_session_keeps_drawing_while_it_plays(open_session: Any) -> None:
    session, page = open_session(FakePackage())
    session.update(lambda s: replace(s, playback=state.Playback(curves(600.0), time.monotonic())))
    page.until(lambda: len(page.clouds) >= 8)
    heights = [cloud[:, 1].max() for cloud in page.clouds[1:]]  # jawOpen is the row's number
    assert heights == sorted(heights) and heights[-1] > heights[0] + 5 * 8
    assert len(page.cues) >= 1 and page.cues[0] >= 0


def test_cues_start_the_sound_once_and_come_again(open_session: Any) -> None:
    session, page = open_session(FakePackage())
    page.until(lambda: len(page.clouds) == 1)
    playing = replace(session.state, playback=state.Playback(curves(9.0), time.monotonic()))
    session._cue(playing)
    session._cue(playing)
    assert len(page.cues) == 1
    session._cued = (playing.playback, time.monotonic())
    session._cue(playing)
    session._cue(replace(session.state, playback=replace(playing.playback, loop=True)))
    assert len(page.cues) == 2  # the clip's own motion is silent


def test_rows_missed_by_a_slow_renderer_are_dropped(open_session: Any) -> None:
    session, page = open_session(FakePackage())
    page.until(lambda: len(page.clouds) == 1)
    clock = {"now": 0.0}
    began = state.Playback(curves(100.0), -10.0)
    session._count(replace(session.state, playback=began), clock["now"])
    session._count(replace(session.state, playback=began), clock["now"] + 0.2)
    assert session.counts.last_row == 255 and session.counts.rows_dropped == 4


def test_session_survives_a_renderer_that_fails(open_session: Any) -> None:
    def broken(*_: Any) -> np.ndarray:
        raise RuntimeError("no kernels were built")

    session, page = open_session(FakePackage(), draw=broken)
    page.until(lambda: len(page.clouds) == 1)
    session.update(lambda s: replace(s, mode=state.Mode.FRAMES))
    page.until(lambda: "no kernels were built" in page.said)
    assert session.state.mode == state.Mode.SPLATS


def test_session_waits_for_a_first_avatar(open_session: Any) -> None:
    session, page = open_session(None)
    page.until(lambda: "Waiting" in page.said)
    session.source.shown = FakeSource(FakePackage()).shown
    session.refresh()
    page.until(lambda: len(page.clouds) == 1)


# --- the file or the run -------------------------------------------------------------------------


def test_source_takes_the_newest_avatar_of_a_run(tmp_path: Path) -> None:
    run = tmp_path / "me"
    run.mkdir()
    with pytest.raises(InputError, match="no avatar here"):
        AvatarSource(run, load=lambda _: FakePackage())
    (run / "config.toml").write_text("")

    def load(path: Path) -> PackageLike:
        if path.read_text() == "damaged":
            raise InputError("damaged")
        return FakePackage(card={"step": int(path.read_text())} if path.stem == "live" else {})

    source = AvatarSource(run, load)

    def status() -> str:
        return source.shown.status if source.shown is not None else ""

    news: list[int] = []
    source.on_change(lambda: news.append(source.shown.version if source.shown else 0))
    assert status() == "" and not source.refresh()
    for step in ("200", "4000"):
        _replace(run / "live.gsavatar", step)
        assert source.refresh() and not source.refresh()
        assert f"step {step}" in status()
    _replace(run / "live.gsavatar", "damaged")
    assert not source.refresh() and not source.refresh() and "step 4000" in status()
    _replace(run / "me.gsavatar", "1")
    assert source.refresh() and status() == "me · 3 coefficients"
    assert news == [1, 2, 3]


def _replace(path: Path, text: str) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    os.replace(fresh, path)


# --- the gate ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bound", "host", "origin", "opens"),
    [
        ("127.0.0.1", "127.0.0.1:8080", "http://127.0.0.1:8080", True),
        ("127.0.0.1", "localhost:8080", "http://localhost:8080", True),
        ("::1", "[::1]:8080", "http://[::1]:8080", True),
        ("127.0.0.1", "127.0.0.1:8080", None, True),
        ("127.0.0.1", "127.0.0.1:8080", "https://evil.example", False),
        ("127.0.0.1", "evil.example:8080", "http://evil.example:8080", False),
        ("127.0.0.1", "127.0.0.1:8080", "null", False),
        ("127.0.0.1", "127.0.0.1:8080", "http://127.0.0.1:9090", False),
        ("0.0.0.0", "localhost:8080", "http://localhost:8080", False),
        ("192.168.1.5", "192.168.1.5:8080", "http://192.168.1.5:8080", False),
    ],
)
def test_only_pages_opened_here_enter_without_a_token(
    bound: str, host: str, origin: str | None, opens: bool
) -> None:
    headers = {"Host": host} | ({"Origin": origin} if origin is not None else {})
    assert gate.opened_here(headers, bound) is opens
    assert not gate.opened_here(None, bound)


def test_tokens_differ_and_are_compared_whole() -> None:
    token = gate.new_token()
    assert len(token) >= 22 and token != gate.new_token()
    assert gate.same_token(f" {token}\n", token)
    assert not gate.same_token(token[:-1], token) and not gate.same_token("", token)


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 70000), ("203.0.113.7", 8080)])
def test_addresses_of_others_are_refused(host: str, port: int) -> None:
    with pytest.raises(InputError, match=str(port) if port > 65535 else host):
        gate.check_address(host, port)


# --- sound ---------------------------------------------------------------------------------------


def tone(seconds: float) -> np.ndarray:
    return (0.3 * np.sin(np.arange(round(16_000 * seconds)) * 0.2)).astype(np.float32)


def test_player_carries_the_very_samples() -> None:
    import base64
    import io

    samples = tone(0.5)
    html = sound.player(samples)
    assert "autoplay" not in html and "controls" not in html
    data = base64.b64decode(html.split("base64,")[1].split('"')[0])
    with wave.open(io.BytesIO(data)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getnframes()) == (16_000, 1, 8000)
        back = np.frombuffer(file.readframes(8000), "<i2") / 32767
    np.testing.assert_allclose(back, samples, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "size", "words"),
    [
        ("speech.exe", 10, "kind of sound"),
        ("speech.wav", 0, "empty"),
        ("speech.mp3", 31 << 20, "31.0 MB; upload at most 30 MB"),
    ],
)
def test_uploads_are_refused_in_a_sentence(name: str, size: int, words: str) -> None:
    with pytest.raises(InputError, match=words) as refused:
        uploads.check_upload(name, size)
    assert name in str(refused.value)


def test_upload_names_are_shown_plainly() -> None:
    assert uploads.shown_name("..\\..\\a/b/evil\x1b[31m.wav") == "evil[31m.wav"


def test_uploads_are_decoded_apart_and_measured() -> None:
    samples = uploads.decode_upload("a.wav", sound.wav(tone(1.0)))
    np.testing.assert_allclose(samples, tone(1.0), atol=1e-4)
    short = uploads.UploadLimits(duration_s=0.5)
    with pytest.raises(InputError, match=r"a\.wav lasts longer than 0.5 s"):
        uploads.decode_upload("a.wav", sound.wav(tone(1.0)), short)
    with pytest.raises(InputError, match=r"^broken\.flac "):
        uploads.decode_upload("broken.flac", b"not a sound at all" * 10)


def test_an_upload_that_takes_too_long_is_given_up() -> None:
    with pytest.raises(InputError, match=r"took over 0\.001 s"):
        uploads.decode_upload("a.wav", sound.wav(tone(1.0)), uploads.UploadLimits(decode_s=0.001))


def test_a_mute_avatar_says_that_it_cannot_be_driven() -> None:
    with pytest.raises(InputError, match="no sound"):
        sound.heard(sound.Sound("a", tone(1.0)), FakePackage(), 1)


def test_a_performance_that_was_heard_brings_its_sound() -> None:
    spoken = replace(curves(1.0), audio=torch.arange(25.0)[:, None, None].expand(25, 30, 2))
    view = state.ViewState(playback=state.Playback(spoken, started_at=100.0))
    drive = state.drive_at(view, NAMES, torch.zeros(3), 100.5)
    assert drive.audio is not None and drive.audio.shape == (30, 2)
    assert float(drive.audio[0, 0]) == 12.0
    assert state.drive_at(view, NAMES, torch.zeros(3), 102.0).audio is None
    silent = state.ViewState(playback=state.Playback(curves(1.0), started_at=100.0))
    assert state.drive_at(silent, NAMES, torch.zeros(3), 100.5).audio is None


def test_a_waiting_face_has_its_lips_as_in_silence() -> None:
    rest = torch.linspace(0.1, 0.5, len(NAMES))
    speech = SimpleNamespace(names=(NAMES[1],), closed=torch.tensor([-0.2]))
    calm = Shown(FakePackage(rest=rest, speech=speech), 1, "fake").calm
    assert calm[1] == pytest.approx(-0.2) and torch.equal(calm[2:], rest[2:])
    assert torch.equal(Shown(FakePackage(rest=rest), 1, "fake").calm, rest)
