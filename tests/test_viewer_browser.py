"""The viewer in a real browser: the avatar is seen and moves, sound plays, the gate holds."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from viewer_fakes import NAMES, FakePackage, curves, draw_dots

playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed (pip install gsavatar[dev])"
)

from gsavatar.viewer import scene, sound  # noqa: E402
from gsavatar.viewer.app import Viewer  # noqa: E402
from gsavatar.viewer.sound import Sound  # noqa: E402
from gsavatar.viewer.source import AvatarSource  # noqa: E402

CHROMIUM = (
    os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
)
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--enable-unsafe-swiftshader", "--disable-quic",
    "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--autoplay-policy=document-user-activation-required",
)  # fmt: skip
DEADLINE_MS = 30_000
SIZE = {"width": 1000, "height": 640}

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield opened
        opened.close()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Viewer]]:
    opened: list[Viewer] = []

    def start(
        host: str = "127.0.0.1", offers: Any = None, names: tuple[str, ...] = NAMES
    ) -> Viewer:
        path = tmp_path / "fake.gsavatar"
        path.write_bytes(b"")
        source = AvatarSource(path, load=lambda _: FakePackage(names=names))
        opened.append(Viewer(source, host, 0, draw_dots, offers or {}))
        return opened[-1]

    yield start
    for viewer in opened:
        viewer.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    tab = browser.new_page(viewport=SIZE)
    tab.set_default_timeout(DEADLINE_MS)
    for event in ("console", "pageerror", "crash"):  # shown by pytest beside a test that fails
        tab.on(event, lambda said, event=event: print(f"{event}: {said}"))
    yield tab
    tab.close()


def picture(page: Any) -> np.ndarray:
    """What the page shows, uint8 RGB [H, W, 3]."""
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))


def orange_rows(image: np.ndarray) -> int:
    """Height of the avatar: rows of the left part of the page that show its colour."""
    part = image[:, : SIZE["width"] * 6 // 10].astype(int)
    orange = (part[..., 0] > 200) & (abs(part[..., 1] - 128) < 40) & (part[..., 2] < 60)
    return int((orange.sum(1) > 20).sum())


def until(page: Any, condition: Callable[[], bool], what: str) -> None:
    """Waits for a condition that is checked after each of the page's own pictures."""
    deadline = time.monotonic() + DEADLINE_MS / 1000
    while not condition():
        assert time.monotonic() < deadline, (
            f"{what}; orange rows {orange_rows(picture(page))}, and the page says: "
            + " | ".join(page.inner_text("body").split("\n"))
        )
        page.evaluate("new Promise(done => requestAnimationFrame(() => done()))")


def test_the_avatar_is_seen_and_a_slider_moves_it(page: Any, serve: Any, tmp_path: Path) -> None:
    viewer = serve()
    page.goto(viewer.url)
    page.get_by_text("Preview drawn by your browser").wait_for()
    until(page, lambda: 250 < orange_rows(picture(page)) < 330, "the avatar at rest")
    blue = picture(page)[-20, 40].astype(int)
    assert blue[2] > 200 and blue[0] < 60  # the plate stands behind

    number = slider(page, "Jaw open")
    number.fill("0.6")
    until(page, lambda: orange_rows(picture(page)) > 380, "the avatar stretched by the slider")
    assert viewer.sessions()[0].state.overrides == {"jawOpen": 0.6}
    page.get_by_role("button", name="Reset").click()
    until(page, lambda: orange_rows(picture(page)) < 330, "the avatar at rest again")
    playwright.expect(number).to_have_value("0")
    page.screenshot(path=tmp_path / "viewer.png")

    page.get_by_role("tab", name="Render").click()
    page.get_by_label("Face").uncheck()
    until(page, lambda: orange_rows(picture(page)) < 200, "the face branch hidden")


def test_both_sides_move_together_unless_told_otherwise(page: Any, serve: Any) -> None:
    names = ("jawOpen", "eyeBlinkLeft", "eyeBlinkRight")
    viewer = serve(names=names)
    page.goto(viewer.url)
    page.get_by_text("Preview drawn by your browser").wait_for()
    page.get_by_text("Eyelids", exact=True).click()
    slider(page, "Blink left").fill("0.5")
    playwright.expect(slider(page, "Blink right")).to_have_value("0.5")
    session = viewer.sessions()[0]
    assert session.state.overrides == {"eyeBlinkLeft": 0.5, "eyeBlinkRight": 0.5}
    page.get_by_label("Both sides").uncheck()
    slider(page, "Blink right").fill("0.1")
    until(page, lambda: session.state.overrides["eyeBlinkRight"] == 0.1, "one side alone")
    assert session.state.overrides["eyeBlinkLeft"] == 0.5


def slider(page: Any, name: str) -> Any:
    """The number field of a slider."""
    return (
        page.locator("div", has=page.get_by_text(name, exact=True))
        .last.locator("xpath=..")
        .locator("input")
        .last
    )


def test_server_frames_grow_to_full_size_and_cameras_go_around(page: Any, serve: Any) -> None:
    viewer = serve()
    page.goto(viewer.url)
    page.get_by_role("tab", name="Render").click()
    choose(page, "Drawn as", "Frames (server)")
    # The panel stands beside the picture, which is that much narrower than the window.
    page.get_by_text(re.compile(r"Frame rendered by the server · [78]\d\d×768")).wait_for()
    until(page, lambda: 230 < orange_rows(picture(page)) < 350, "the server's picture")
    page.get_by_role("tab", name="Camera").click()
    front = viewer.sessions()[0].view
    page.get_by_role("button", name="Left", exact=True).click()
    until(page, lambda: viewer.sessions()[0].view.position[0] < -0.4, "the camera to the left")
    turned = np.array(viewer.sessions()[0].view.position)
    assert np.linalg.norm(turned) == pytest.approx(np.linalg.norm(front.position), rel=0.02)

    page.get_by_text("Not filmed from here").wait_for()
    page.get_by_role("button", name="Front", exact=True).click()
    page.get_by_text("Not filmed from here").wait_for(state="detached")
    page.get_by_role("button", name="Left", exact=True).click()
    page.get_by_text("Not filmed from here").wait_for()

    page.get_by_label("Clip's cameras").check()
    page.get_by_role("button", name="Add keyframe").click()
    page.get_by_text("1 keyframe, 0 s.").wait_for()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download path.json").click()
    path = json.loads(Path(download.value.path()).read_text())
    expected = scene.camera_of(replace(viewer.sessions()[0].view, aspect=1.0), 512)
    np.testing.assert_allclose(
        path["frames"][0]["world_to_cam"], expected.world_to_cam.numpy(), atol=1e-4
    )


def choose(page: Any, label: str, option: str) -> None:
    """Picks an entry of a dropdown."""
    page.locator("div", has=page.get_by_text(label, exact=True)).last.locator("xpath=..").locator(
        "input"
    ).first.click()
    page.get_by_role("option", name=option).click()


def test_sound_and_picture_play_together(page: Any, serve: Any) -> None:
    spoken = Sound("tone", np.zeros(16_000 * 30, np.float32), curves=curves(30.0), version=1)
    viewer = serve(offers={"tone": lambda: spoken})
    page.goto(viewer.url)
    page.get_by_role("tab", name="Speech").click()
    playwright.expect(page.get_by_role("button", name="Play", exact=True)).to_be_disabled()
    choose(page, "Sound", "tone")
    page.get_by_text("is ready, 30.0 s").wait_for()
    page.get_by_role("button", name="Play", exact=True).click()
    page.wait_for_function("(document.querySelector('audio') || {}).currentTime > 0.5")
    session = viewer.sessions()[0]
    playback = session.state.playback
    assert playback is not None and session.counts.drawn > 3
    seen = playback.position(time.monotonic())
    heard = float(page.evaluate("document.querySelector('audio').currentTime"))
    assert seen is not None and abs(seen - heard) < 1.0  # the same clock; cues do the rest
    page.get_by_role("button", name="Stop").click()
    page.wait_for_function("document.querySelector('audio').paused")
    assert session.state.playback is None


def test_uploads_are_answered_in_the_page(page: Any, serve: Any) -> None:
    viewer = serve()
    page.goto(viewer.url)
    page.get_by_role("tab", name="Speech").click()
    field = page.locator("input[type=file]")
    field.set_input_files({"name": "a.exe", "mimeType": "audio/wav", "buffer": b"x"})
    page.get_by_text("a.exe is not a kind of sound file known here").wait_for()
    wav = sound.wav(np.full(1600, 0.1, np.float32))
    field.set_input_files({"name": "a.wav", "mimeType": "audio/wav", "buffer": wav})
    page.get_by_text("This avatar's video had no sound").wait_for()


def test_nothing_of_the_avatar_is_sent_before_the_token(page: Any, serve: Any) -> None:
    viewer = serve(host="0.0.0.0")
    received: list[int] = []
    page.on(
        "websocket",
        lambda socket: socket.on("framereceived", lambda data: received.append(len(data))),
    )
    page.goto(viewer.url.replace("localhost", "127.0.0.1"))
    page.get_by_role("button", name="Open").wait_for()
    slider(page, "Token").fill("not the token")
    page.get_by_role("button", name="Open").click()
    page.get_by_text("That is not the token").wait_for()
    assert viewer.sessions() == [] and orange_rows(picture(page)) == 0
    assert page.get_by_text("Jaw open").count() == 0
    assert sum(received) < 16_000  # 500 splats alone are 16 kB
    slider(page, "Token").fill(viewer.token)
    page.get_by_role("button", name="Open").click()
    until(page, lambda: orange_rows(picture(page)) > 250, "the avatar after the token")


def test_closing_ends_every_thread(page: Any, serve: Any) -> None:
    viewer = serve()
    page.goto(viewer.url)
    page.get_by_text("Preview drawn by your browser").wait_for()
    session = viewer.sessions()[0]
    page.goto("about:blank")
    until(page, lambda: not session.running, "the page's thread ended with its page")
    assert viewer.sessions() == []
    viewer.close()
    viewer.close()


def test_a_newer_avatar_of_a_running_fit_appears_by_itself(page: Any, tmp_path: Path) -> None:
    run = tmp_path / "me"
    (run / "clip").mkdir(parents=True)

    def load(path: Path) -> FakePackage:
        return FakePackage(card={"step": int(path.read_text())})

    with Viewer(AvatarSource(run, load), "127.0.0.1", 0, draw_dots, {}) as viewer:
        page.goto(viewer.url)
        page.get_by_text("Waiting for the fit's first avatar").first.wait_for()
        for step in ("200", "400"):
            (run / "fresh").write_text(step)
            os.replace(run / "fresh", run / "live.gsavatar")
            page.get_by_text(f"in training, step {step}").wait_for()
        until(page, lambda: orange_rows(picture(page)) > 250, "the avatar in training")
