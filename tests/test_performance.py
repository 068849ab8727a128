"""The idle path to and fro, speech over it, and curves as files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from gsavatar import performance, speech_motion
from gsavatar.errors import InputError
from gsavatar.geometry import rigid, so3_exp, so3_log
from gsavatar.idle import IdlePath, jump_cuts
from gsavatar.speech import SpeechFeatures
from gsavatar.types import Curves

FPS = 25.0
NAMES = ("jawOpen", "eyeBlinkLeft", "browInnerUp", "poseRx")


def wandering(seconds: float, seed: int = 0) -> Curves:
    """A head that looks about, blinks every three seconds and talks, with a tracker's jitter."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * FPS)) / FPS
    phase = rng.uniform(0, 2 * np.pi, 6)
    speed = np.array([0.31, 0.23, 0.17, 0.13, 0.29, 0.37])
    path = np.sin(2 * np.pi * speed * time[:, None] + phase)
    path = path * [0.1, 0.15, 0.05, 0.01, 0.005, 0.01] + rng.normal(0, 1e-4, path.shape)
    blink = np.exp(-0.5 * (((time + 1.0) % 3.0 - 1.5) / 0.06) ** 2)
    jaw = 0.3 + 0.3 * np.sin(2 * np.pi * 3.1 * time)
    values = np.stack([jaw, blink, 0.1 + 0 * time, 0 * time], 1)
    twist = torch.from_numpy(path)
    pose = rigid(so3_exp(twist[:, :3]), twist[:, 3:]).float()
    return Curves(NAMES, torch.from_numpy(time), torch.from_numpy(values).float(), pose)


def jerk(curves: Curves) -> tuple[np.ndarray, np.ndarray]:
    """Second differences of the head's translation and rotation, [T - 2] each."""
    pose = curves.head_pose.double()
    turn = so3_log(pose[:1, :3, :3].mT @ pose[:, :3, :3]).numpy()
    shift = pose[:, :3, 3].numpy()
    return tuple(np.linalg.norm(np.diff(x, 2, axis=0), axis=1) for x in (shift, turn))  # type: ignore[return-value]


@pytest.mark.parametrize("seconds", [5.0, 20.0, 60.0])
def test_turns_are_no_jerkier_than_the_clip(seconds: float) -> None:
    idle = wandering(seconds)
    path = IdlePath(idle)
    long = performance.to_and_fro(idle, np.arange(round(5 * seconds * FPS)) / FPS)
    at = path.clip_time(long.time_s.numpy())
    speed = np.diff(at) * FPS
    turning = np.flatnonzero((np.abs(speed[1:]) < 0.98) | (np.abs(speed[:-1]) < 0.98))
    assert (np.diff(np.sign(speed)) != 0).sum() >= 4 and len(turning) < 0.5 * len(at)
    for played, real in zip(jerk(long), jerk(idle), strict=True):
        assert played[turning].max() <= 1.02 * np.percentile(real, 99)
        assert played.max() <= 1.05 * real.max()


def test_time_runs_at_the_clips_speed_between_turns() -> None:
    path = IdlePath(wandering(20.0))
    at = path.clip_time(np.arange(2000) / FPS)
    assert at.min() >= 0.0 and at.max() <= 19.96
    assert np.abs(np.diff(at)).max() * FPS == pytest.approx(1.0, abs=1e-6)
    assert (np.abs(np.diff(at)) * FPS > 0.999).mean() > 0.9
    assert at.max() - at.min() > 12.0
    assert path.clip_time(np.array([0.0]))[0] == pytest.approx(path.first.at_s)


def test_any_part_can_be_played_alone() -> None:
    path = IdlePath(wandering(10.0))
    whole = path(np.arange(3000) / FPS)
    part = path(np.arange(2000, 2040) / FPS)
    assert torch.equal(part.head_pose, whole.head_pose[2000:2040])
    assert torch.equal(part.values, whole.values[2000:2040])
    assert torch.allclose(
        torch.linalg.det(whole.head_pose[:, :3, :3].double()), torch.ones(3000).double(), atol=1e-5
    )


def test_eyes_are_open_where_time_stands() -> None:
    idle = wandering(30.0)
    path = IdlePath(idle)
    for turn in (path.first, path.last):
        near = (idle.time_s - turn.at_s).abs() < 0.1
        assert float(idle.values[near, 1].max()) < 0.5


@pytest.mark.parametrize("frames", [1, 2, 9])
def test_a_path_of_a_few_frames_still_plays(frames: int) -> None:
    short = wandering(10.0)
    idle = Curves(
        NAMES, short.time_s[:frames] + 3.0, short.values[:frames], short.head_pose[:frames]
    )
    played = performance.to_and_fro(idle, np.arange(100) / FPS)
    assert bool(torch.isfinite(played.values).all() and torch.isfinite(played.head_pose).all())
    low, high = idle.values.amin(0), idle.values.amax(0)
    assert bool((played.values >= low - 1e-6).all() and (played.values <= high + 1e-6).all())


def test_a_cut_is_told_from_a_quick_head() -> None:
    idle = wandering(20.0)
    assert len(jump_cuts(idle.head_pose)) == 0
    cut = idle.head_pose.clone()
    cut[200:, 0, 3] += 0.02
    cut[350:, :3, :3] = so3_exp(torch.tensor([[0.0, 0.2, 0.0]]))[0].float() @ cut[350:, :3, :3]
    assert jump_cuts(cut).tolist() == [200, 350]
    quick = idle.head_pose.clone()
    quick[300:310, 0, 3] += 0.03 * torch.sin(torch.linspace(0, torch.pi, 10))
    assert len(jump_cuts(quick)) == 0
    assert len(jump_cuts(idle.head_pose[:2])) == len(jump_cuts(idle.head_pose[:1])) == 0


# Speech over it


class Echo:
    """Stands for a motion model: jawOpen is the instant itself."""

    names = ("mouthPucker", "jawOpen")

    def __call__(self, features: SpeechFeatures, time_s: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.zeros(len(time_s)), time_s.float()], 1)


FEATURES = SpeechFeatures(torch.zeros(10, 4), torch.zeros(10), torch.zeros(4), 50.0, "log_mel")


def test_speech_moves_the_mouth_and_the_clip_the_rest() -> None:
    idle = wandering(10.0)
    motion: speech_motion.SpeechMotion = Echo()  # type: ignore[assignment]
    names = ("browInnerUp", "jawOpen", "poseRx", "eyeBlinkLeft", "selfOne")
    rest = torch.tensor([9.0, 9.0, 0.25, 9.0, 0.5])
    performer = performance.Performer(motion, IdlePath(idle), names, 30.0, rest)
    curves = performer.of(FEATURES, 7.31)
    assert curves.names == names and curves.values.shape == (219, 5)
    assert curves.time_s.tolist() == [i / 30 for i in range(219)]
    played = performance.to_and_fro(idle, curves.time_s)
    assert torch.equal(curves.head_pose, played.head_pose)
    assert torch.equal(curves.values[:, 3], played.values[:, 1])
    assert torch.equal(curves.values[:, 1], curves.time_s.float())
    assert bool((curves.values[:, [2, 4]] == torch.tensor([0.25, 0.5])).all())
    parts = [performer.at_frames(FEATURES, i, min(i + 50, 219)) for i in range(0, 219, 50)]
    assert torch.equal(torch.cat([p.values for p in parts]), curves.values)
    assert torch.equal(torch.cat([p.head_pose for p in parts]), curves.head_pose)
    assert performer.at_frames(FEATURES, 50, 50).values.shape == (0, 5)


def test_what_nothing_moves_is_where_the_clip_has_it_mostly() -> None:
    idle = wandering(10.0)
    motion: speech_motion.SpeechMotion = Echo()  # type: ignore[assignment]
    performer = performance.Performer(motion, IdlePath(idle), NAMES, 25.0)
    curves = performer.of(FEATURES, 0.001)
    assert curves.values.shape == (1, 4)
    assert float(curves.values[0, 3]) == float(idle.values[:, 3].median())


# Files


def test_curves_come_back_bit_by_bit(tmp_path: Path) -> None:
    idle = wandering(2.0)
    odd = idle.values.clone()
    odd[0] = torch.tensor([1e-38, -0.0, 1 / 3, 16777217.0])
    curves = Curves(NAMES, torch.arange(50, dtype=torch.float64) / 30, odd, idle.head_pose)
    path = tmp_path / "c.json"
    performance.save_curves(path, curves)
    back = performance.load_curves(path)
    assert back.names == NAMES and torch.equal(back.time_s, curves.time_s)
    assert back.values.numpy().tobytes() == odd.numpy().tobytes()
    assert torch.equal(back.head_pose, idle.head_pose)
    assert [p.name for p in tmp_path.iterdir()] == ["c.json"]
    assert set(json.loads(path.read_text())["frames"][3]) == {"time", "weights", "head_pose"}


def test_an_arkit_capture_is_read_by_name(tmp_path: Path) -> None:
    path = tmp_path / "arkit.json"
    frames = [{"time": i / 30, "weights": [0.1 * i, 0.5], "rotation": []} for i in range(4)]
    data = {"names": ["jawOpen", "mouthPucker"], "metadata": {"fps": 30}, "frames": frames}
    path.write_text(json.dumps(data))
    curves = performance.load_curves(path)
    assert curves.names == ("jawOpen", "mouthPucker")
    assert curves.values[:, 0].tolist() == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert torch.equal(curves.head_pose, torch.eye(4).repeat(4, 1, 1))


def test_a_live_link_face_table_is_read_by_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "take.csv"
    rows = ["Timecode,BlendShapeCount,EyeBlinkRight,JawOpen,TongueOut,HeadYaw,LeftEyePitch"]
    stamps = ("10:00:59:58.100", "10:00:59:59.100", "10:01:00:00.100", "10:01:00:01.100")
    rows += [f"{stamp},61,0.{i},0.5,0,0.2,0.1" for i, stamp in enumerate(stamps)]
    path.write_text("\n".join(rows) + "\n")
    curves = performance.load_curves(path)
    assert curves.names == ("eyeBlinkRight", "jawOpen", "tongueOut")
    assert "angles of head and eyes are not used" in caplog.text
    assert curves.time_s.tolist() == pytest.approx([i / 60 for i in range(4)], abs=1e-9)
    assert curves.values[:, 0].tolist() == pytest.approx([0.0, 0.1, 0.2, 0.3])


FRAMES: list[dict[str, object]] = [{"time": 0, "weights": [0.5]}, {"time": 1, "weights": [1]}]
GOOD = {"names": ["jawOpen"], "frames": FRAMES}
TURN = [0.0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1]


def with_frame(**change: object) -> str:
    return json.dumps({**GOOD, "frames": [FRAMES[0], FRAMES[1] | change]})


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", 'no list "frames"'),
        (json.dumps({"frames": [{}]}), '"names"'),
        (json.dumps({**GOOD, "names": ["a", "a"]}), "stands twice"),
        (json.dumps({**GOOD, "frames": []}), "is empty"),
        (json.dumps({**GOOD, "frames": [3]}), "frame 0 is not an object"),
        (with_frame(weights=[1, 2]), "weights of frame 1 must be 1 numbers, got 2"),
        (with_frame(weights=["1"]), "weights of frame 1"),
        (with_frame(weights=[True]), "weights of frame 1"),
        (with_frame(weights=[float("nan")]), "not finite"),
        (with_frame(weights=[1e300]), "not finite"),
        (with_frame(weights=[10**400]), "weights of frame 1"),
        (with_frame(time=None), "time of frame 1"),
        (with_frame(time=0), "is not after the one before"),
        (with_frame(head_pose=[1, 2]), "head_pose of frame 1 must be 16"),
        (with_frame(head_pose=TURN), "not a rotation"),
    ],
)
def test_a_malformed_file_is_named_with_its_fault(tmp_path: Path, text: str, what: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(InputError, match=what) as caught:
        performance.load_curves(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("Timecode,JawOpen\n", "a header and at least one frame"),
        ("Time,JawOpen\n1,2\n", 'no "Timecode"'),
        ("Timecode,JawOpen\n00:00:00:01,x\n", "not finite"),
        ("Timecode,JawOpen\n1.5,0.1\n", "not HH:MM:SS:FF"),
        ("Timecode,JawOpen\n00:00:00:01,0.1,3\n", "3 cells"),
    ],
)
def test_a_malformed_table_too(tmp_path: Path, text: str, what: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=what):
        performance.load_curves(path)


def test_unreadable_and_unwritable_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        performance.load_curves(tmp_path / "none.json")
    binary = tmp_path / "binary.json"
    binary.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(InputError, match="is not text"):
        performance.load_curves(binary)
    with pytest.raises(InputError, match="cannot be written"):
        performance.save_curves(tmp_path / "no" / "c.json", wandering(1.0))
