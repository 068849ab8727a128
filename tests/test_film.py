"""Films: the same film from its own curves, sound as long as the picture, views, backgrounds."""

from __future__ import annotations

import json
import math
import wave
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from gsavatar import (
    audio,
    cli,
    film,
    geometry,
    performance,
    reenact,
    speech,
    speech_features,
    video,
)
from gsavatar.audio import Sound
from gsavatar.clip import Clip
from gsavatar.config import Settings
from gsavatar.errors import InputError
from gsavatar.film import performer, render_film, resampled
from gsavatar.film_sinks import write_wav
from gsavatar.film_views import head_centre, open_background, open_view
from gsavatar.frames import decode_png, encode_png
from gsavatar.package import Package, load_package, save_package
from gsavatar.pipeline import build_package
from gsavatar.progress import SilentReporter
from gsavatar.render import render, to_uint8
from gsavatar.seeding import SeedCounts, seed_avatar
from gsavatar.types import Curves, Drive
from gsavatar.voice import Loudness

RATE = 16_000
SIZE = 64


def babble(seconds: float) -> NDArray[np.float32]:
    """A tone whose loudness follows the cartoon's mouth."""
    time = np.arange(round(seconds * RATE)) / RATE
    loudness = 0.5 - 0.5 * np.cos(2 * np.pi * time * 1.5)
    return (0.4 * loudness * np.sin(2 * np.pi * 220 * time)).astype(np.float32)


def heard(seconds: float) -> speech.SpeechFeatures:
    """Features of babble, taken for a voice whether or not the voice detector is there."""
    features = speech.extract(babble(seconds), encoder="log_mel")
    return replace(features, voice=torch.ones_like(features.voice))


@pytest.fixture(scope="module")
def avatar(tiny_clip: Clip, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An avatar file of the cartoon that has learnt to open its mouth with the sound."""
    motion = speech.fit_speech_motion(
        heard(4.0), tiny_clip.time_s.numpy(), tiny_clip.track.coefficients[:, :1], ("jawOpen",)
    )
    seeds = seed_avatar(tiny_clip, SeedCounts(300, 60, 80), 0, torch.Generator().manual_seed(0))
    path = tmp_path_factory.mktemp("film") / "tiny.gsavatar"
    save_package(path, build_package(tiny_clip, seeds, motion, Settings()))
    return path


@pytest.fixture(scope="module")
def package(avatar: Path) -> Package:
    return load_package(avatar)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """0.73 s of babble: no whole number of frames."""
    path = tmp_path_factory.mktemp("sound") / "babble.wav"
    write_wav(path, babble(0.73), round(0.73 * 16_000))
    return path


def pictures(folder: Path) -> list[NDArray[np.uint8]]:
    return [decode_png(p.read_bytes()) for p in sorted(folder.glob("*.png"))]


def test_a_film_from_its_own_curves_is_the_same_film(
    avatar: Path, sound: Path, tmp_path: Path
) -> None:
    curves = tmp_path / "talk.json"
    options = {"camera": "orbit", "size": SIZE, "fps": 30000 / 1001}
    first = render_film(avatar, tmp_path / "a", audio=sound, curves_out=curves, **options)
    del options["fps"]  # the curves know it
    second = render_film(avatar, tmp_path / "b", curves=curves, audio=sound, **options)
    assert (first.frames, first.duration_s) == (second.frames, second.duration_s)
    a, b = pictures(tmp_path / "a"), pictures(tmp_path / "b")
    assert len(a) == first.frames == round(0.73 * 30000 / 1001)
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    assert np.std([x.astype(float).mean() for x in a]) > 0  # something moves
    assert a[0].std() > 10  # and something is seen
    sounds = [(tmp_path / name / "sound.wav").read_bytes() for name in ("a", "b")]
    assert sounds[0] == sounds[1]


def test_the_mouth_follows_the_sound(package: Package) -> None:
    curves = performer(package, 25.0).of(heard(2.0), 2.0)
    opening = curves.values[:, package.names.index("jawOpen")].numpy()
    loudness = 0.5 - 0.5 * np.cos(2 * np.pi * curves.time_s.numpy() * 1.5)
    assert np.corrcoef(opening[5:-5], loudness[5:-5])[0, 1] > 0.8


def test_every_picture_is_its_own_row_from_its_own_camera(
    avatar: Path, package: Package, tmp_path: Path
) -> None:
    curves, out = tmp_path / "c.json", tmp_path / "film"
    played = replace(ramp([i / 25 for i in range(6)]), values=torch.linspace(0, 1, 6)[:, None])
    performance.save_curves(curves, played)
    render_film(avatar, out, curves=curves, camera="orbit", size=SIZE)
    view, plate = open_view("orbit", package, SIZE, 6 / 25), open_background("plate", package, SIZE)
    assert plate is not None
    given = film.retarget(played, package, curves)
    shown = pictures(out)
    for i, picture in enumerate(shown):
        posed = package.avatar(Drive(given.values[i], given.head_pose[i]))
        expected = to_uint8(render(posed, view(i / 25), plate).rgb).numpy()
        # drawn by the kernels alone, where rounding may go the other way
        assert np.abs(picture.astype(int) - expected).max() <= 1, i
    assert len(shown) == 6
    assert all((a != b).any() for a, b in zip(shown[1:], shown[:-1], strict=True))


def rising(seconds: float) -> NDArray[np.float32]:
    """Babble that grows faster and faster: it is not itself backwards, nor a little later."""
    time = np.arange(round(seconds * RATE)) / RATE
    loudness = 0.5 - 0.5 * np.cos(2 * np.pi * (0.7 * time + 0.2 * time**2))
    return (0.4 * loudness * np.sin(2 * np.pi * 220 * time)).astype(np.float32)


def test_the_film_moves_with_the_very_sound_it_carries(
    avatar: Path, package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speech_features, "open_voice", Loudness)  # a tone is no voice
    path, curves, out = tmp_path / "rising.wav", tmp_path / "c.json", tmp_path / "film"
    samples = rising(3.0)  # more than the piece that is heard at a time
    write_wav(path, samples, len(samples))
    made = render_film(avatar, out, audio=path, curves_out=curves, size=SIZE)
    with wave.open(str(out / "sound.wav")) as file, wave.open(str(path)) as given:
        assert file.readframes(len(samples)) == given.readframes(len(samples))
    written = performance.load_curves(curves)
    features = speech.extract(audio.load(path), encoder="log_mel")
    whole = performer(package, 25.0).of(features, 3.0)
    assert made.frames == len(written.time_s) == 75
    torch.testing.assert_close(written.values, film.within_limits(whole, package).values)
    assert torch.equal(written.head_pose, whole.head_pose)
    time = written.time_s.numpy()
    opening = written.values[:, package.names.index("jawOpen")].numpy()

    def agreement(shift_s: float) -> float:
        at = time + shift_s
        loudness = 0.5 - 0.5 * np.cos(2 * np.pi * (0.7 * at + 0.2 * at**2))
        return float(np.corrcoef(opening[10:-10], loudness[10:-10])[0, 1])

    assert agreement(0.0) > 0.8
    assert agreement(0.0) > max(agreement(-0.12), agreement(0.12))


def test_sound_without_speech_is_told(
    avatar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = tmp_path / "rising.wav", tmp_path / "film"
    write_wav(path, rising(1.0), RATE)
    notes = Notes()
    render_film(avatar, out, audio=path, size=SIZE, reporter=notes)
    assert notes.said == ["No speech was heard in the sound, so the mouth stays at rest."]
    monkeypatch.setattr(speech_features, "open_voice", Loudness)
    notes.said.clear()
    render_film(avatar, tmp_path / "again", audio=path, size=SIZE, reporter=notes)
    assert notes.said == []


def onset_s(samples: NDArray[np.floating], rate: int) -> float:
    """When a sound begins."""
    mono = np.abs(np.asarray(samples, np.float64).reshape(len(samples), -1)).max(1)
    return int(np.argmax(mono > 0.3 * mono.max())) / rate


@pytest.mark.parametrize("kind", ["", ".mp4", ".webm"])
def test_the_sound_of_a_film_begins_when_it_should(avatar: Path, tmp_path: Path, kind: str) -> None:
    burst = np.zeros(12_000, np.float32)
    burst[6_400:] = 0.4 * np.sin(2 * np.pi * 440 * np.arange(5_600) / RATE)
    path, curves, out = tmp_path / "burst.wav", tmp_path / "c.json", tmp_path / f"film{kind}"
    write_wav(path, burst, len(burst))
    performance.save_curves(curves, ramp([i / 25 for i in range(19)]))
    render_film(avatar, out, curves=curves, audio=path, size=SIZE)
    if kind:
        track = video.audio_blocks(out)
        assert track is not None
        heard_s = onset_s(np.concatenate(list(track.blocks)), track.rate)
    else:
        with wave.open(str(out / "sound.wav")) as file:
            heard_s = onset_s(np.frombuffer(file.readframes(12_000), "<i2"), RATE)
    assert heard_s == pytest.approx(0.4, abs=0.03)


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_a_movie_has_sound_as_long_as_its_picture(
    avatar: Path, sound: Path, tmp_path: Path, suffix: str
) -> None:
    out = tmp_path / f"talk{suffix}"
    made = render_film(avatar, out, audio=sound, size=SIZE)
    times = [time for _, time, _ in video.decode(out)]
    assert len(times) == made.frames == 18 and made.has_sound
    assert made.duration_s == pytest.approx(18 / 25)
    track = video.audio_blocks(out)
    assert track is not None
    samples = np.concatenate(list(track.blocks))
    assert len(samples) / track.rate == pytest.approx(made.duration_s, abs=0.04)
    assert float(np.abs(samples).max()) > 0.1
    assert [p.name for p in tmp_path.iterdir()] == [out.name]


def test_a_folder_holds_transparent_pictures_and_the_sound(
    avatar: Path, sound: Path, tmp_path: Path
) -> None:
    out = tmp_path / "talk"
    made = render_film(avatar, out, audio=sound, size=SIZE, background="none")
    frames = pictures(out)
    assert len(frames) == made.frames and frames[0].shape == (SIZE, SIZE, 4)
    assert frames[0][..., 3].max() > 200 and frames[0][0, 0, 3] == 0
    with wave.open(str(out / "sound.wav")) as file:
        assert file.getframerate() == RATE
        assert file.getnframes() == round(made.frames * RATE / 25)
    assert [p.name for p in tmp_path.iterdir()] == ["talk"]


def test_alpha_over_a_colour_is_the_film_over_that_colour(package: Package) -> None:
    drive = film.Drive(package.rest, torch.eye(4))
    camera = package.camera.resized(SIZE, SIZE)
    draw = film.open_draw(package.avatar)
    clear = film.picture(draw, drive, camera, None).astype(float) / 255
    green = torch.tensor([0.1, 0.8, 0.2])
    solid = film.picture(draw, drive, camera, green).astype(float) / 255
    alpha = clear[..., 3:]
    over = clear[..., :3] * alpha + green.numpy() * (1 - alpha)
    assert np.abs(over - solid).max() < 2.5 / 255
    assert 0.02 < float((alpha > 0.5).mean()) < 0.9


def test_the_orbit_keeps_the_head_in_its_place(package: Package) -> None:
    view = open_view("orbit", package, SIZE, 8.0)
    centre = head_centre(package)
    places, sides = [], []
    for time_s in np.linspace(0, 8, 33):
        camera = view(float(time_s))
        places.append(geometry.project(centre[None], camera.world_to_cam, camera.K)[0])
        eye = -camera.world_to_cam[:3, :3].T @ camera.world_to_cam[:3, 3] - centre
        sides.append(math.degrees(math.atan2(float(eye[0]), float(eye[2]))))
    spread = torch.stack(places)
    assert float((spread - spread[0]).abs().max()) < 0.01
    assert max(sides) == pytest.approx(25, abs=0.3) and min(sides) == pytest.approx(-25, abs=0.3)
    assert sides[0] == pytest.approx(0, abs=0.1)
    front = open_view("front", package, SIZE, 8.0)(3.0)
    assert torch.allclose(view(0.0).world_to_cam, front.world_to_cam, atol=1e-6)


def test_a_camera_path_is_blended_between_its_keyframes(package: Package, tmp_path: Path) -> None:
    front = package.camera
    turned = geometry.orbit(front, head_centre(package), math.radians(20.0))
    path = tmp_path / "path.json"
    frames = [
        {"time_s": 1.0, "world_to_cam": front.world_to_cam.tolist()},
        {"time_s": 3.0, "world_to_cam": turned.world_to_cam.tolist(), "K": turned.K.tolist()},
    ]
    size = {"width": front.width, "height": front.height}
    path.write_text(json.dumps({**size, "frames": frames}))
    view = open_view(str(path), package, SIZE, 4.0)
    first, last = front.resized(SIZE, SIZE), turned.resized(SIZE, SIZE)
    for time_s, expected in ((0.0, first), (1.0, first), (3.0, last), (9.0, last)):
        assert torch.allclose(view(time_s).world_to_cam, expected.world_to_cam, atol=1e-6)
        assert torch.allclose(view(time_s).K, expected.K, atol=1e-4)
    halfway = view(2.0).world_to_cam
    turn = geometry.so3_log(halfway[:3, :3] @ front.world_to_cam[:3, :3].T)
    assert math.degrees(float(turn.norm())) == pytest.approx(10.0, abs=0.01)


def test_backgrounds(package: Package, tmp_path: Path) -> None:
    red = np.zeros((40, 80, 3), np.uint8)
    red[:, 20:60, 0] = 255
    picture = tmp_path / "red.png"
    picture.write_bytes(encode_png(red))
    seen = open_background(str(picture), package, 32)
    assert seen is not None and seen.shape == (32, 32, 3)
    assert float((seen - torch.tensor([1.0, 0.0, 0.0])).abs().max()) < 0.02  # the middle square
    plate = open_background("plate", package, 512)
    assert plate is not None and torch.equal(plate, package.plate)
    colour = open_background("#20c040", package, 32)
    assert colour is not None and colour.tolist() == pytest.approx([32 / 255, 192 / 255, 64 / 255])
    assert open_background("none", package, 32) is None


def ramp(times: list[float]) -> Curves:
    """One coefficient that equals the time, and a head that turns with it."""
    turn = torch.tensor([[0.0, 0.1 * t, 0.0] for t in times])
    pose = geometry.rigid(geometry.so3_exp(turn), torch.tensor([[t, 0.0, 0.0] for t in times]))
    values = torch.tensor([[t] for t in times])
    return Curves(("jawOpen",), torch.tensor(times, dtype=torch.float64), values, pose)


def test_curves_are_resampled_linearly_and_given_rows_stay_exact() -> None:
    given = ramp([5.0, 5.1, 5.3, 5.4])
    dense = resampled(given, 20.0, 5.0)
    assert dense.time_s.tolist() == pytest.approx([0.05 * i for i in range(9)])
    assert dense.values[:, 0].tolist() == pytest.approx([5 + 0.05 * i for i in range(9)])
    assert torch.equal(dense.values[[0, 2, 6, 8]], given.values)
    assert torch.equal(dense.head_pose[[0, 2, 6, 8]], given.head_pose)
    assert dense.head_pose[4, 0, 3].item() == pytest.approx(5.2)


def test_given_curves_keep_the_clock_of_the_sound_beside_them() -> None:
    given = ramp([1.0, 1.1, 1.2])
    beside = film._playing(given, 10.0, Sound())
    (played,) = beside.pieces
    assert beside.frames == 13 and played.time_s[-1].item() == pytest.approx(1.2)
    assert played.values[:, 0].tolist() == pytest.approx([1.0] * 11 + [1.1, 1.2])
    alone = film._playing(given, 10.0, None)  # nothing to keep in step with
    assert alone.frames == 3 and torch.equal(next(alone.pieces).values, given.values)


def test_names_that_the_avatar_lacks_are_left_out(package: Package, tmp_path: Path) -> None:
    given = replace(ramp([0.0, 0.04]), names=("tongueOut",))
    with pytest.raises(InputError, match="none of its 1 names"):
        film.retarget(given, package, tmp_path / "c.json")
    given = replace(ramp([0.0, 0.04]), names=("jawOpen",))
    got = film.retarget(given, package, tmp_path / "c.json")
    jaw, blink = package.names.index("jawOpen"), package.names.index("eyeBlinkLeft")
    assert torch.equal(got.values[:, jaw], given.values[:, 0])
    assert torch.equal(got.values[:, blink], package.rest[blink].expand(2))


class Notes(SilentReporter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def test_sides_stand_for_their_mean_and_what_is_dropped_is_told(
    package: Package, tmp_path: Path
) -> None:
    given = Curves(
        ("jawOpenLeft", "jawOpenRight", "eyeBlink", "tongueOut", "cheekPuff"),
        torch.tensor([0.0, 0.04], dtype=torch.float64),
        torch.tensor([[0.2, 0.6, 0.5, 1.0, 0.0], [0.0, 1.0, 0.1, 1.0, 0.0]]),
        torch.eye(4).repeat(2, 1, 1),
    )
    notes = Notes()
    got = film.retarget(given, package, tmp_path / "c.json", notes)
    assert package.names == ("jawOpen", "eyeBlinkLeft")
    torch.testing.assert_close(got.values, torch.tensor([[0.4, 0.5], [0.5, 0.1]]))
    assert notes.said == ["c.json: this avatar has no tongueOut; ignored."]


def test_a_video_drives_by_the_avatars_face_model_or_not_at_all(
    package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made_by(provider: str) -> Package:
        return replace(package, card={**package.card, "provider": provider})

    there = {"ict_facekit": True, "mediapipe468_to_ict": True}
    monkeypatch.setattr(reenact.assets, "available", lambda name: there[name])
    monkeypatch.setattr(reenact.assets, "own_path", lambda name: None)
    assert [reenact._provider(made_by(p)) for p in ("clip", "ict", "flame")] == [
        "clip",
        "ict",
        "ict",
    ]
    there["ict_facekit"] = False
    with pytest.raises(InputError, match=r"face model ict, and neither.*--audio or --curves\."):
        reenact.video_curves(Path("unread.mp4"), made_by("ict"), Notes())
    with pytest.raises(InputError, match="face model bfm"):
        reenact._provider(made_by("bfm"))
    monkeypatch.setattr(reenact.assets, "own_path", lambda name: Path(f"{name}.npz"))
    assert reenact._provider(made_by("bfm")) == "bfm"


def test_a_film_of_a_video_tells_how_to_hear_it(
    avatar: Path, sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoken = tmp_path / "spoken.mp4"
    render_film(avatar, spoken, audio=sound, size=SIZE)
    monkeypatch.setattr(reenact, "video_curves", lambda *_, **__: ramped(load_package(avatar)))
    notes = Notes()
    render_film(avatar, tmp_path / "a.mp4", drive=spoken, size=SIZE, reporter=notes)
    assert any(f"--audio {spoken}" in text for text in notes.said)
    notes.said.clear()
    render_film(avatar, tmp_path / "b.mp4", drive=spoken, audio=sound, size=SIZE, reporter=notes)
    assert notes.said == []


def test_a_drivers_own_names_are_translated(
    avatar: Path, sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver fitted with another face model must not lose what the avatar has no word for."""
    spoken, written = tmp_path / "spoken.mp4", tmp_path / "written.json"
    render_film(avatar, spoken, audio=sound, size=SIZE)
    time = torch.arange(3, dtype=torch.float64) / 25.0
    values = torch.tensor([[0.2, 0.4, 1.0]]).repeat(3, 1)
    theirs = Curves(
        ("jawOpenLeft", "jawOpenRight", "tongueOut"), time, values, torch.eye(4).repeat(3, 1, 1)
    )
    asked: list[str | None] = []

    def curves_of(path: Path, package: Package, reporter: Any, face: str | None) -> Curves:
        asked.append(face)
        return theirs

    monkeypatch.setattr(reenact, "video_curves", curves_of)
    notes = Notes()
    render_film(
        avatar, tmp_path / "a.mp4", drive=spoken, face="left", size=SIZE, curves_out=written,
        reporter=notes,
    )  # fmt: skip
    got = performance.load_curves(written)
    assert asked == ["left"]
    assert got.values[:, got.names.index("jawOpen")].tolist() == pytest.approx([0.3] * 3)
    assert any("no tongueOut; ignored" in text for text in notes.said)
    with pytest.raises(InputError, match="--face chooses among the faces of --drive"):
        render_film(avatar, tmp_path / "b.mp4", audio=sound, face="left", size=SIZE)


def test_head_and_eyes_may_be_generated(avatar: Path, sound: Path, tmp_path: Path) -> None:
    played = []
    for number, idle, seed in ((0, "replayed", 0), (1, "generated", 1), (2, "generated", 1),
                               (3, "generated", 2)):  # fmt: skip
        written = tmp_path / f"{number}.json"
        film_path = tmp_path / f"{number}.mp4"
        render_film(
            avatar, film_path, audio=sound, size=SIZE, idle=idle, seed=seed, curves_out=written
        )
        played.append(performance.load_curves(written))
    own, one, again, other = played
    mouth = own.names.index("jawOpen")
    assert torch.equal(one.values[:, mouth], own.values[:, mouth])  # the speech is the same
    assert torch.equal(one.head_pose, again.head_pose)
    assert not torch.equal(one.head_pose, own.head_pose)
    assert not torch.equal(one.head_pose, other.head_pose)
    for options, words in (
        ({"idle": "none"}, "should be replayed or generated"), ({"seed": -1}, "0 or more"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=words):
            render_film(avatar, tmp_path / "x.mp4", audio=sound, size=SIZE, **options)
    with pytest.raises(InputError, match="curves and videos bring their own"):
        render_film(
            avatar, tmp_path / "x.mp4", curves=tmp_path / "0.json", idle="generated", size=SIZE
        )


def ramped(package: Package) -> Curves:
    """Three frames at rest."""
    time = torch.arange(3, dtype=torch.float64) / 25.0
    return Curves(package.names, time, package.rest.repeat(3, 1), torch.eye(4).repeat(3, 1, 1))


def test_no_result_replaces_what_it_is_made_from(
    avatar: Path, sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoken = tmp_path / "spoken.mp4"
    render_film(avatar, spoken, audio=sound, size=SIZE)
    before = spoken.read_bytes()
    with pytest.raises(InputError, match="is read for this film"):
        render_film(avatar, spoken, audio=spoken, size=SIZE)
    with pytest.raises(InputError, match="is read for this film"):
        render_film(avatar, tmp_path / "a.mp4", audio=sound, size=SIZE, curves_out=avatar)
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.gsavatar").write_bytes(avatar.read_bytes())
    with pytest.raises(InputError, match="is read for this film"):
        render_film(run, tmp_path / "a.mp4", audio=sound, curves_out=run / "run.gsavatar")
    one = tmp_path / "b.mp4"
    with pytest.raises(InputError, match="both --out and --curves-out"):
        render_film(avatar, one, audio=sound, size=SIZE, curves_out=one)
    with pytest.raises(InputError, match="is a folder; give --curves-out a file's name"):
        render_film(avatar, one, audio=sound, size=SIZE, curves_out=tmp_path)
    assert spoken.read_bytes() == before and not one.exists()
    # A folder that is named as a background or a camera is no source.
    monkeypatch.chdir(tmp_path)
    assert render_film(avatar, Path("plate"), audio=sound, size=SIZE).path.is_dir()


@pytest.mark.parametrize("name", ["talk", "talk.mp4"])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    avatar: Path, sound: Path, tmp_path: Path, name: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(film, "picture", full)
    words = ["render", str(avatar), "--audio", str(sound), "--size", str(SIZE)]
    assert cli.main([*words, "--out", str(tmp_path / name)]) == 2
    said = capsys.readouterr().err
    assert "No space left on device; free space" in said and "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


def test_memory_does_not_grow_with_the_film(
    avatar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every picture is written before the next one is made: at most one is alive."""
    import weakref

    alive: list[weakref.ref[NDArray[np.uint8]]] = []
    most = 0
    make = film.picture

    def watched(*args: object) -> NDArray[np.uint8]:
        nonlocal most
        most = max(most, sum(r() is not None for r in alive))
        made = make(*args)  # type: ignore[arg-type]
        alive.append(weakref.ref(made))
        return made

    monkeypatch.setattr(film, "picture", watched)
    curves = tmp_path / "long.json"
    performance.save_curves(curves, ramp([i / 25 for i in range(15)]))
    render_film(avatar, tmp_path / "long", curves=curves, size=SIZE)
    assert len(alive) == 15 and most <= 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"audio": None}, "nothing moves the avatar"),
        ({"curves": Path("a.json"), "drive": Path("b.mp4")}, "give one of them"),
        ({"size": 33}, "even number"),
        ({"size": 100_000}, "even number"),
        ({"fps": 0.0}, "--fps"),
        ({"fps": math.nan}, "--fps"),
        ({"camera": "sideways"}, "should be front, orbit"),
        ({"camera": "nothere.json"}, "no such camera file"),
        ({"background": "#12345"}, "six digits"),
        ({"background": "nothere.png"}, "should be plate, none, a colour"),
        ({"background": "none"}, "MP4 has no transparency"),
        ({"out": "talk.avi"}, ".avi cannot be written"),
        ({"audio": Path("nothere.wav")}, "nothere.wav"),
    ],
)
def test_what_cannot_be_done_is_said_and_leaves_nothing(
    avatar: Path, sound: Path, tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    options: dict[str, object] = {"audio": sound, "size": SIZE, **changes}
    out = tmp_path / str(options.pop("out", "talk.mp4"))
    with pytest.raises(InputError, match=words) as caught:
        render_film(avatar, out, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    [
        "{", "[]", '{"frames": []}', '{"frames": [{}]}', '{"frames": [{"world_to_cam": [1, 2]}]}',
        '{"frames": [{"world_to_cam": [[2,0,0,0],[0,1,0,0],[0,0,1,0],[0,0,0,1]]}]}',
        '{"frames": [{"world_to_cam": [[NaN,0,0,0],[0,1,0,0],[0,0,1,0],[0,0,0,1]]}]}',
        '{"width": 0, "frames": [{"world_to_cam": [[1,0,0,0],[0,1,0,0],[0,0,1,0],[0,0,0,1]]}]}',
    ],
)  # fmt: skip
def test_a_damaged_camera_path_is_refused(package: Package, tmp_path: Path, text: str) -> None:
    path = tmp_path / "path.json"
    path.write_text(text)
    with pytest.raises(InputError, match="not a camera path"):
        open_view(str(path), package, SIZE, 1.0)


def test_an_interrupted_folder_leaves_nothing(
    avatar: Path, sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = 0
    make = film.picture

    def failing(*args: object) -> NDArray[np.uint8]:
        nonlocal made
        made += 1
        if made == 5:
            raise KeyboardInterrupt
        return make(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(film, "picture", failing)
    for name in ("talk", "talk.mp4"):
        made = 0
        with pytest.raises(KeyboardInterrupt):
            render_film(avatar, tmp_path / name, audio=sound, size=SIZE)
        assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_in_it_is_not_replaced(
    avatar: Path, sound: Path, tmp_path: Path
) -> None:
    (tmp_path / "talk").mkdir()
    (tmp_path / "talk" / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="already there"):
        render_film(avatar, tmp_path / "talk", audio=sound, size=SIZE)
    assert (tmp_path / "talk" / "mine.txt").read_text() == "keep"


def test_a_silent_avatar_says_that_it_cannot_hear(
    package: Package, sound: Path, tmp_path: Path
) -> None:
    mute = tmp_path / "mute.gsavatar"
    save_package(mute, replace(package, speech=None))
    with pytest.raises(InputError, match="speech drive is not trained"):
        render_film(mute, tmp_path / "talk.mp4", audio=sound, size=SIZE)
