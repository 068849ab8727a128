"""Bad input: one sentence, exit code 2, nothing half-written; what can be used is used."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gsavatar import cli, crop, ingest, video
from gsavatar.clip import Clip
from gsavatar.film_sinks import write_wav
from gsavatar.footage import VideoFile, sounds_of
from gsavatar.frames import FrameWriter, decode_png
from gsavatar.ingest import IngestOptions
from gsavatar.progress import Progress, SilentReporter
from gsavatar.video import VideoWriter

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "datasets" / "sample" / "speaker.mp4"
FRAMES = 60  # 2.4 s
FPS = 25.0

Pictures = list[NDArray[np.uint8]]


@pytest.fixture(scope="module")
def head() -> Pictures:
    """The first pictures of the bundled sample at half their size."""
    found = [rgb[::2, ::2].copy() for _, _, rgb in islice(video.decode(SAMPLE), FRAMES)]
    assert len(found) == FRAMES
    return found


def tone(seconds: float) -> NDArray[np.float32]:
    return 0.3 * np.sin(np.arange(round(seconds * 16_000)) * 0.1).astype(np.float32)


def shuffled(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The picture's blocks of 32 px in another order: no face, but the same colours."""
    rows, columns = picture.shape[0] // 32, picture.shape[1] // 32
    blocks = picture.reshape(rows, 32, columns, 32, 3).swapaxes(1, 2).reshape(-1, 32, 32, 3)
    blocks = blocks[np.random.default_rng(0).permutation(len(blocks))]
    return blocks.reshape(rows, columns, 32, 32, 3).swapaxes(1, 2).reshape(picture.shape)


def movie(
    path: Path, pictures: Pictures, *, fps: float = FPS, sound: NDArray[np.float32] | None = None
) -> Path:
    """A video file of some pictures."""
    height, width = pictures[0].shape[:2]
    with VideoWriter(path, width, height, fps, audio=sound) as writer:
        for picture in pictures:
            writer.write(np.ascontiguousarray(picture))
    return path


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence a refused command says."""
    assert cli.main(words) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    return said[0]


def left_over(folder: Path) -> set[str]:
    """Every file below a folder, relative to it."""
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("letter.mp4", b"Dear reader, this is no video."),
        ("empty.mp4", b""),
        ("noise.mp4", bytes(range(256)) * 40),
        ("beginning.mp4", None),
    ],
)
def test_what_is_no_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    name: str, content: bytes | None,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(SAMPLE.read_bytes()[:2000] if content is None else content)
    assert name in refused(["fit", name], capsys)
    assert left_over(tmp_path) == {name}


def test_a_sound_file_and_a_folder_are_no_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_wav(Path("voice.wav"), tone(1.0), 16_000)
    Path("folder.mp4").mkdir()
    for name in ("voice.wav", "folder.mp4", "gone.mp4"):
        assert name in refused(["fit", name], capsys)
    assert left_over(tmp_path) == {"voice.wav"}


def test_a_damaged_tail_is_cut_off(
    tmp_path: Path, head: Pictures, caplog: pytest.LogCaptureFixture
) -> None:
    """Everything up to the damage is used, and a warning says so."""
    whole = movie(tmp_path / "whole.webm", head)
    data = whole.read_bytes()
    broken = tmp_path / "broken.webm"
    broken.write_bytes(data[: len(data) * 3 // 4])
    count = sum(1 for _ in video.decode(broken))
    assert FRAMES // 3 < count < FRAMES


def test_a_video_without_a_face(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 255, (128, 128, 3), np.uint8) for _ in range(60)]
    movie(Path("trees.mp4"), noise)
    said = refused(["fit", "trees.mp4"], capsys)
    assert "trees.mp4" in said and "face" in said
    assert left_over(tmp_path) == {"trees.mp4"}


def test_a_video_that_is_too_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    head: Pictures,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    movie(Path("blink.mp4"), head[:25])
    said = refused(["fit", "blink.mp4"], capsys)
    assert "blink.mp4" in said and "2 s" in said
    assert left_over(tmp_path) == {"blink.mp4"}


def test_two_faces_have_to_be_chosen_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    head: Pictures,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    pairs = [np.concatenate((p, p[:, ::-1]), axis=1) for p in head]
    path = movie(Path("pair.mp4"), pairs)
    said = refused(["fit", "pair.mp4"], capsys)
    assert "--face left" in said and "faces.png" in said
    assert left_over(tmp_path) == {"pair.mp4", "runs/pair/faces.png"}
    shown = decode_png(Path("runs/pair/faces.png").read_bytes())
    assert shown.shape[1] > shown.shape[0]  # two thumbnails side by side
    assert "--face 7" in refused(["fit", "pair.mp4", "--face", "7"], capsys)
    boxes = [crop.plan([path], face=face)[0].box for face in ("left", "right", "1", "2")]
    middles = [(box[1] + box[3]) / 2 for box in boxes]
    assert middles[0] < pairs[0].shape[1] / 2 < middles[1]
    assert (middles[2], middles[3]) == (middles[0], middles[1])


def test_of_several_scenes_the_longest_is_kept(tmp_path: Path, head: Pictures) -> None:
    elsewhere = [np.roll(255 - p[:, ::-1], 40, axis=1) for p in head[:20]]
    path = movie(tmp_path / "cut.mp4", [*elsewhere, *head])
    plan = crop.plan([path])[0]
    assert 15 <= plan.first_index <= 35 and plan.last_index >= 75
    assert any("scene" in note for note in plan.notes)


def read_in(folder: Path, video_file: Path, reporter: Any = None) -> Clip:
    return ingest.ingest([video_file], folder, IngestOptions(), reporter or SilentReporter())


@pytest.fixture(scope="module")
def spoken(head: Pictures, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The head, hidden in some frames, with a sound that says nothing of its lips."""
    pictures = [p.copy() for p in head]
    for picture in pictures[31:37]:
        picture[:] = shuffled(picture)
    path = tmp_path_factory.mktemp("spoken") / "spoken.mp4"
    return movie(path, pictures, sound=tone(FRAMES / FPS))


@pytest.fixture(scope="module")
def uninterrupted(spoken: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "clip"
    read_in(folder, spoken)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a clip; the description without the path of the source."""
    files = {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix != ".json"}
    meta = json.loads((folder / "clip.json").read_text())
    return {**files, "clip.json": json.dumps(meta, sort_keys=True).encode()}


def test_frames_without_a_face_are_skipped_and_told(uninterrupted: Path) -> None:
    clip = ingest.open_clip(uninterrupted)
    ids = clip.frame_ids.tolist()
    lost = set(range(FRAMES)) - set(ids)
    assert lost and lost <= set(range(31, 37))
    assert any("no face" in note for note in clip.meta["notes"])
    times = clip.time_s.tolist()
    assert times == pytest.approx([i / FPS for i in ids], abs=1e-3)  # never renumbered


def test_without_sound_only_expression_is_trained(tmp_path: Path, head: Pictures) -> None:
    path = movie(tmp_path / "mute.mp4", head)
    clip = read_in(tmp_path / "clip", path)
    assert clip.audio is None and clip.features is None
    told = clip.meta["notes"] + clip.meta.get("speech_notes", [])
    assert any("expression drive" in note for note in told)


def test_a_silent_track_is_no_sound(tmp_path: Path, head: Pictures) -> None:
    sounds = {"silent.mp4": np.zeros(48_000, np.float32), "loud.mp4": tone(3.0)}
    heard = {}
    for name, sound in sounds.items():
        path = movie(tmp_path / name, head, sound=sound)
        heard[name] = sounds_of([VideoFile(path)], [FRAMES / FPS])
    assert heard["silent.mp4"] is None and heard["loud.mp4"] is not None


def test_odd_rates_and_portrait_are_handled(tmp_path: Path, head: Pictures) -> None:
    tall = [np.pad(p, ((90, 50), (0, 0), (0, 0)), mode="edge") for p in head[:45]]
    path = movie(tmp_path / "phone.mp4", tall, fps=17.5)
    clip = read_in(tmp_path / "clip", path)
    assert len(clip) >= 40 and clip.frame(0).shape == (512, 512, 3)
    steps = np.diff(clip.time_s.numpy())
    assert float(np.median(steps)) == pytest.approx(1 / 17.5, abs=1e-3)


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


class Killing(SilentReporter):
    """Dies when a stage has made some progress."""

    def __init__(self, stage: str) -> None:
        self.doomed = stage
        self.died = False

    @contextmanager
    def stage(self, name: str) -> Iterator[Progress]:
        def progress(done: int, total: int) -> None:
            if name == self.doomed and (done >= total // 2 or total == 0):
                self.died = True
                raise Killed

        yield progress


def test_a_clip_killed_three_times_ends_as_if_nothing_had_happened(
    spoken: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    for stage in ("decode and find landmarks", "label the regions", "fit the face"):
        reporter = Killing(stage)
        with pytest.raises(Killed):
            read_in(tmp_path / "clip", spoken, reporter)
        assert reporter.died and not (tmp_path / "clip" / "clip.json").exists()
    read_in(tmp_path / "clip", spoken)
    assert contents(tmp_path / "clip") == contents(uninterrupted)


def test_a_full_disk_is_a_sentence_and_the_run_goes_on_later(
    spoken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    append: Callable[..., None] = FrameWriter.append

    def full(self: FrameWriter, picture: NDArray[np.uint8]) -> None:
        if len(self._offsets) > 10:
            raise OSError(28, "No space left on device", str(self.path))
        append(self, picture)

    monkeypatch.setattr(FrameWriter, "append", full)
    said = refused(["fit", str(spoken)], capsys)
    assert "No space left" in said and "--resume" in said
    run = tmp_path / "runs" / "spoken"
    assert (run / "config.toml").exists() and not (run / "clip" / "decode.json").exists()
    assert not list(run.glob("*.gsavatar")) and not (run / "metrics.json").exists()


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x05\x06" + bytes(18)])
def test_a_damaged_avatar_is_refused_by_every_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    bad = tmp_path / "bad.gsavatar"
    bad.write_bytes(content)
    write_wav(tmp_path / "a.wav", tone(0.5), 8_000)
    render = ["render", str(bad), "--audio", str(tmp_path / "a.wav"), "--out", f"{tmp_path}/o.mp4"]
    for words in (render, ["view", str(bad), "--port", "0"]):
        assert "bad.gsavatar" in refused(words, capsys)
    assert left_over(tmp_path) == {"bad.gsavatar", "a.wav"}


PACKAGES = ("gsavatar", "viewer", "datasets")
CURES = (";", " must be ", " should be ", " is no ", " is not ", " needs ", " needed", ": film it ")


def refusals() -> list[tuple[str, str]]:
    """Where each ``InputError`` of the project is raised, and its text with {} for values."""
    found = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "InputError":
                    text = text_of(node.args[0])
                    if text is not None:
                        found.append((f"{path.name}:{node.lineno}", text))
    return found


def text_of(node: ast.expr) -> str | None:
    """A literal's text; None for a message that is made elsewhere."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(str(v.value) if isinstance(v, ast.Constant) else "{}" for v in node.values)
    return None


@pytest.mark.parametrize(("where", "text"), refusals())
def test_every_refusal_ends_with_a_full_stop_and_says_what_would_do(where: str, text: str) -> None:
    if text == "{}: {}.":  # its second half is one of several
        return
    assert text.endswith((".", "?")), where
    assert "\n" not in text, where
    assert any(cure in text for cure in CURES) or "knows" in text or "get it from" in text, where
