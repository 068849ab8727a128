"""What ``gsavatar check`` says of a clip, against footage whose faults are known."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from gsavatar import audio, check, cli, video
from gsavatar.check import Footage, Look
from gsavatar.errors import InputError
from gsavatar.findings import Finding, State
from gsavatar.landmarks import FaceLandmarker
from gsavatar.morphable import canonical_face
from gsavatar.upright import Stance
from gsavatar.video_colour import turned

SAMPLE = Path(__file__).parents[1] / "datasets" / "sample"


@pytest.fixture(scope="module")
def footage() -> Footage:
    """The bundled sample, watched once, with time enough on a busy machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(check, "BUDGET_S", 600.0)
        try:
            return check._watch(SAMPLE / "speaker.mp4", None)
        except InputError as error:
            pytest.skip(f"no face detector is at hand: {error}")


def test_the_sample_is_good_to_fit(footage: Footage) -> None:
    findings = [
        judge(footage)
        for judge in (check._face, check._size, check._light, check._focus, check._mouth)
    ]
    assert [f.state for f in findings] == [State.GOOD] * 5, findings
    assert check._length(footage).state is State.NOTE  # eleven seconds are few
    assert check._sound(footage).state is State.GOOD


def test_a_slow_machine_looks_at_enough_to_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "BUDGET_S", 1e-9)
    monkeypatch.setattr(check, "BUDGET_SHARE", 0.0)
    try:
        hurried = check._watch(SAMPLE / "speaker.mp4", None)
    except InputError as error:
        pytest.skip(f"no face detector is at hand: {error}")
    assert (len(hurried.looks), len(hurried.stretch_s)) == (
        check.LEAST_LOOKS, check.LEAST_STRETCH
    )  # fmt: skip
    assert check._mouth(hurried).state is not State.BAD
    assert "sound" not in check._sync(hurried).text


def test_turns_are_those_of_the_truth(footage: Footage) -> None:
    truth = json.loads((SAMPLE / "speaker.truth.json").read_text())
    forward = np.array(truth["head_pose"])[:, :3, 2]  # the camera looks along the room's -z
    known = np.degrees(np.arctan2(forward[:, 0], forward[:, 2]))
    yaw, pitch = check.head_angles(footage.seen)
    frames = [round(look.time_s * truth["fps"]) for look in footage.seen]
    assert (
        np.abs(yaw - known[frames] - np.median(yaw - known[frames])).max() < 6.0
    )  # a rough camera, no lens
    assert np.corrcoef(yaw, known[frames])[0, 1] > 0.95
    lift = np.degrees(np.arctan2(forward[frames, 1], forward[frames, 2]))
    assert np.abs(pitch - lift - np.median(pitch - lift)).max() < 6.0


def every(footage: Footage, change: Callable[[Look], Look]) -> Footage:
    return replace(footage, looks=tuple(change(look) for look in footage.seen))


@pytest.mark.parametrize(
    ("judge", "change", "state", "cure"),
    [
        (check._light, lambda look: replace(look, luma=0.1), State.BAD, "lamp or window"),
        (check._light, lambda look: replace(look, clipped=0.2), State.BAD, "lower the exposure"),
        (check._light, lambda look: replace(look, uneven=0.7), State.NOTE, "from the front"),
        (check._focus, lambda look: replace(look, sharpness=0.01), State.BAD, "focus on the eyes"),
        (check._size, lambda look: replace(look, face_px=40.0), State.BAD, "film closer"),
        (check._size, lambda look: replace(look, face_px=90.0), State.NOTE, "film closer"),
        (check._face, lambda look: replace(look, faces=2), State.NOTE, "--face"),
    ],
)
def test_a_fault_is_named_with_its_cure(
    footage: Footage, judge: Callable[[Footage], Finding], change: Callable[[Look], Look],
    state: State, cure: str,
) -> None:  # fmt: skip
    finding = judge(every(footage, change))
    assert finding.state is state and cure in finding.cure


def test_noise_does_not_pass_for_focus(footage: Footage) -> None:
    """A camera out of focus in a dim room: its noise is finer than any detail of a face."""
    del footage  # it skips where no face detector is at hand
    ((at_s, sharp),) = video.pictures_at(SAMPLE / "speaker.mp4", [2.0])
    blurred = cv2.GaussianBlur(sharp, (0, 0), 4.0)
    noise = np.random.default_rng(0).normal(0.0, 4.0, (*sharp.shape[:2], 1))
    noisy = np.clip(blurred + noise, 0, 255).astype(np.uint8)
    with FaceLandmarker() as landmarker:
        looks = [
            check._look(at_s, picture, landmarker, Stance()) for picture in (sharp, blurred, noisy)
        ]
    good, soft, grainy = (look.sharpness for look in looks if look is not None)
    assert soft < grainy < check.SOFT < good


def test_a_lamp_that_flickers_and_a_face_that_leaves(footage: Footage) -> None:
    looks = [replace(look, luma=0.4 + 0.1 * (i % 2)) for i, look in enumerate(footage.seen)]
    assert "camera's exposure" in check._light(replace(footage, looks=tuple(looks))).cure
    gone = tuple(look if i % 3 == 0 else None for i, look in enumerate(footage.looks))
    assert check._face(replace(footage, looks=gone)).state is State.BAD


def test_a_head_that_stands_still_is_told_to_turn(footage: Footage) -> None:
    still = replace(footage, looks=(footage.seen[0],) * 20)
    assert "turn the head slowly" in check._turns(still).cure


def test_mouths(footage: Footage) -> None:
    open_mouth = replace(footage, opening=np.full(100, 0.05))
    assert "closed lips for two seconds" in check._mouth(open_mouth).cure
    hidden = replace(footage, opening=np.full(100, np.nan))
    assert check._mouth(hidden).state is State.BAD


def sound_of(samples: np.ndarray) -> audio.Sound:
    sound = audio.Sound()
    sound.append(samples.astype(np.float32))
    return sound


def test_sounds(footage: Footage) -> None:
    assert footage.sound is not None
    speech = footage.sound[:]
    noise = 0.05 * np.random.default_rng(0).normal(size=len(speech))
    loud = np.clip(20 * speech, -1, 1)
    for samples, said in (
        (np.zeros_like(speech), "check the microphone"),
        (0.01 * speech, "nearer to the microphone"),
        (0.2 * speech + noise, "quiet room"),
        (loud, "lower the recording level"),
    ):
        assert said in check._sound(replace(footage, sound=sound_of(samples))).cure
    assert "with sound" in check._sound(replace(footage, sound=None)).cure
    assert "cannot be told" in check._sync(replace(footage, sound=None)).text


def test_a_damaged_file_without_its_middle_is_judged_by_what_there_is(footage: Footage) -> None:
    found = check._sync(replace(footage, stretch_s=np.zeros(0), opening=np.zeros(0)))
    assert found.text == "cannot be told from 0 s"
    assert check._mouth(replace(footage, opening=np.zeros(0))).state is State.BAD


@pytest.mark.parametrize("late_s", [0.0, 0.2])
def test_late_sound_is_told(footage: Footage, late_s: float) -> None:
    assert footage.sound is not None
    late = np.pad(footage.sound[:], (round(late_s * 16_000), 0))
    finding = check._sync(replace(footage, sound=sound_of(late)))
    assert (finding.state is State.GOOD) == (late_s == 0.0), finding
    assert late_s == 0.0 or "late; a fit corrects that" in finding.text


def test_the_verdict_names_the_worst_first() -> None:
    good = Finding("light", State.GOOD, "")
    assert check.verdict([good]) == "Good to fit."
    assert "attention to size" in check.verdict([good, Finding("size", State.NOTE, "", "closer")])
    assert check.verdict([Finding("focus", State.BAD, "", "")]).startswith("Film it again: focus")


def test_a_video_that_lies_is_judged_as_it_will_be_turned(tmp_path: Path, footage: Footage) -> None:
    path = tmp_path / "aside.mp4"
    with video.VideoWriter(path, 512, 512, 25.0) as writer:
        for index, _, picture in video.decode(SAMPLE / "speaker.mp4"):
            if index >= 60:
                break
            writer.write(turned(picture, 3))
    aside = check._watch(path, None)
    found = check._face(aside)
    assert found.state is State.GOOD and "turns it by 90 degrees clockwise" in found.text
    upright, lying = (np.median([look.face_px for look in f.seen]) for f in (footage, aside))
    assert lying == pytest.approx(upright, rel=0.05)
    open_ = [np.nanmedian(opening) for opening in (aside.opening, footage.opening[:60])]
    assert open_[0] == pytest.approx(open_[1], abs=0.02)


def test_two_faces_are_said_to_need_a_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "_watch", lambda path, progress: made_footage(faces=2))
    findings = check.check_video(Path("two.mp4"))
    face = next(f for f in findings if f.name == "face")
    assert "two faces in 100 %" in face.text and "`fit` will ask whose" in face.cure
    verdict = check.verdict(findings)
    assert verdict.startswith("Good to fit once you say whose face with --face; ")
    assert verdict.endswith("attention to sound.")  # which this footage does not have
    sometimes = made_footage()
    looks = [replace(look, faces=2 if i % 3 == 0 else 1) for i, look in enumerate(sometimes.seen)]
    some = check._face(replace(sometimes, looks=tuple(looks)))
    assert "should `fit` ask" in some.cure and "--face" in some.cure
    assert "face" in check.verdict([some])


def made_footage(**faults: object) -> Footage:
    """Fifteen good seconds, made of numbers; ``faults`` replace what every look shows."""
    vertices, _ = canonical_face()
    points = np.zeros((478, 3))
    points[:468] = vertices * [1000.0, -1000.0, -1000.0] + 256.0
    looks = []
    for i, angle in enumerate(np.radians(np.linspace(-14, 14, 20))):
        turned = points.copy()
        x, z = points[:, 0] - 256.0, points[:, 2] - 256.0
        turned[:, 0] = x * np.cos(angle) + z * np.sin(angle) + 256.0
        looks.append(replace(Look(i * 1.5, 1, 300.0, turned, 0.5, 0.0, 0.1, 0.15), **faults))  # type: ignore[arg-type]
    time = np.arange(375) / 25.0
    opening = np.clip(0.04 + 0.05 * np.sin(9 * time) * np.sin(1.7 * time), 0.0, None)
    info = video.VideoInfo(512, 512, 25.0, 40.0, 1000, False, 0)
    return Footage(info, tuple(looks), time, opening, 0.6 + opening, None)


def test_every_judge_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "_watch", lambda path, progress: made_footage())
    states = {f.name: f.state for f in check.check_video(Path("good.mp4"))}
    judged = ("length", "face", "size", "light", "focus", "turns", "mouth")
    assert states == dict.fromkeys(judged, State.GOOD) | dict.fromkeys(
        ("sound", "sync"), State.NOTE
    )
    faults = {"luma": 0.1, "sharpness": 0.005, "face_px": 30.0}
    bad = replace(made_footage(**faults), opening=np.full(375, np.nan))
    bad = replace(bad, info=replace(bad.info, duration_s=1.0))
    monkeypatch.setattr(check, "_watch", lambda path, progress: bad)
    findings = check.check_video(Path("bad.mp4"))
    worst = [f.name for f in findings if f.state is State.BAD]
    assert worst == ["length", "size", "light", "focus", "mouth"]
    assert all(f.cure for f in findings if f.state is State.BAD)
    assert all(name in check.verdict(findings) for name in worst)


def test_the_command_says_what_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "me.mp4"
    with video.VideoWriter(path, 64, 64, 25.0) as writer:
        writer.write(np.full((64, 64, 3), 90, np.uint8))
    monkeypatch.setattr(check, "_watch", lambda path, progress: made_footage(luma=0.1))
    assert cli.main(["check", str(path)]) == 2  # so that a script can tell
    said = capsys.readouterr()
    assert "put a lamp or window before the face" in said.out
    assert "Film it again: light will spoil the avatar." in said.out
    assert said.err.endswith("me.mp4: film it again, minding the lines marked with x.\n")
    monkeypatch.setattr(check, "_watch", lambda path, progress: made_footage())
    assert cli.main(["check", str(path)]) == 0
    assert "Good to fit" in capsys.readouterr().out


def test_a_video_without_a_face_is_refused(tmp_path: Path, footage: Footage) -> None:
    del footage  # skips where there is no detector
    path = tmp_path / "wall.mp4"
    with video.VideoWriter(path, 128, 128, 25.0) as writer:
        for _ in range(10):
            writer.write(np.full((128, 128, 3), 90, np.uint8))
    with pytest.raises(InputError, match=r"wall\.mp4: no face was found in \d+ frames"):
        check.check_video(path)


def test_looks_at_a_film_leap_over_what_lies_between(tmp_path: Path) -> None:
    path = tmp_path / "clock.mp4"
    with video.VideoWriter(path, 64, 64, 10.0) as writer:
        for i in range(300):
            writer.write(np.full((64, 64, 3), min(255, i // 2 + 40), np.uint8))
    near = list(video.pictures_at(path, [0.0, 0.5, 1.0]))
    assert [time for time, _ in near] == pytest.approx([0.0, 0.5, 1.0])
    far = [time for time, _ in video.pictures_at(path, [1.0, 14.0, 28.0, 29.0])]
    assert far == sorted(set(far)) and all(0.0 <= time <= 29.9 for time in far)
    for time, picture in video.pictures_at(path, [0.2, 2.0, 3.5]):
        assert float(picture.mean()) == pytest.approx(round(time * 10) // 2 + 40, abs=4)
