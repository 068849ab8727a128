"""The TalkingGaussian baseline: its field, what it hears, its draws, its fit, its file and film."""

from __future__ import annotations

import json
import shutil
import zipfile
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import RATE, babble, tiny_face
from safetensors.torch import load, save

from gsavatar import evaluate, film, speech
from gsavatar.apertures import ApertureDraws, lip_box
from gsavatar.avatar import Avatar
from gsavatar.clip import Clip
from gsavatar.config import Settings, TrainSettings, load_preset
from gsavatar.errors import InputError
from gsavatar.fields import CONTROLS, FieldMotion, control_matrix, layout, new_field
from gsavatar.film_sinks import write_wav
from gsavatar.hearing import TOKENS, Hearing, learn_hearing
from gsavatar.package import load_package, save_package
from gsavatar.performance import SpeechStream
from gsavatar.pipeline import build_package
from gsavatar.speech_features import FeatureStream
from gsavatar.train import train
from gsavatar.train_fields import ITERATIONS, STAGES, FieldRecipe, stage_at
from gsavatar.train_state import load_checkpoint
from gsavatar.types import Branch, Drive, Gaussians

CHANNELS = 5
STEPS = 130


class Killed(Exception):
    """Stands for a kill between two steps."""


def hearing() -> Hearing:
    return Hearing("log_mel", torch.zeros(1, 80), torch.zeros(80, CHANNELS), torch.zeros(CHANNELS))


def settings(**changes: object) -> TrainSettings:
    small = replace(
        load_preset("talkinggaussian").train, size=64, steps=STEPS, gaussians_max=700,
        face_init=300, mouth_init=80, torso_init=120, checkpoint_every=50, validate_every=65,
    )  # fmt: skip
    return replace(small, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> object:
    """Many small products: threads only wait for one another on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def trained(spoken: Clip, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """The folder and the tensors of a small fit that nothing interrupted."""
    folder = tmp_path_factory.mktemp("trained")
    train(spoken, settings(), folder)
    state = load_checkpoint(folder, asdict(settings()))
    assert state is not None
    return folder, state.adam.state()


@pytest.fixture(scope="module")
def saved(
    spoken: Clip, trained: tuple[Path, dict], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The file of that fit, with a speech model."""
    avatar = train(spoken, settings(), trained[0])
    assert spoken.features is not None
    motion = speech.fit_speech_motion(
        spoken.features, spoken.time_s.numpy(), spoken.track.coefficients[:, :1], ("jawOpen",)
    )
    path = tmp_path_factory.mktemp("file") / "tiny.gsavatar"
    save_package(path, build_package(spoken, avatar, motion, Settings()))
    return path


def noisy(field: FieldMotion, dtype: torch.dtype = torch.float32) -> FieldMotion:
    """The field with random tensors, so that everything moves."""
    generator = torch.Generator().manual_seed(1)
    tensors = {
        k: 0.5 * torch.randn(v.shape, generator=generator, dtype=dtype)
        for k, v in field.parameters.items()
    }
    return FieldMotion(
        field.kind, tensors, field.centre.to(dtype), field.radius.to(dtype),
        field.controls.to(dtype), field.silence.to(dtype),
    )  # fmt: skip


def fresh(kind: Branch) -> FieldMotion:
    return new_field(kind, tiny_face(), hearing(), torch.Generator().manual_seed(0))


# The field


@pytest.mark.parametrize("kind", [Branch.FACE, Branch.MOUTH])
def test_an_untrained_field_moves_nothing(kind: Branch) -> None:
    field = fresh(kind)
    assert {k: tuple(v.shape) for k, v in field.parameters.items()} == layout(kind, CHANNELS)
    offsets = field.offsets(
        0.05 * torch.randn(7, 3), Drive(torch.rand(2), torch.eye(4), torch.randn(TOKENS, CHANNELS))
    )
    for part in (offsets.means, offsets.rotvecs, offsets.log_scales):
        assert part.shape == (7, 3) and not part.any()


@pytest.mark.parametrize("kind", [Branch.FACE, Branch.MOUTH])
def test_batches_give_what_single_drives_give(kind: Branch) -> None:
    # In double precision: random networks decide sharply between windows of sound, and the order
    # of sums, which differs between a batch and its parts, then shows in single precision.
    field, means = noisy(fresh(kind), torch.float64), 0.05 * torch.randn(7, 3).double()
    coefficients, audio = torch.rand(4, 2).double(), torch.randn(4, TOKENS, CHANNELS).double()
    poses = torch.eye(4).double().expand(4, 4, 4)
    together = field.offsets(means, Drive(coefficients, poses, audio))
    assert together.means.shape == (4, 7, 3) and together.means.std() > 1e-4
    for i in range(4):
        alone = field.offsets(means, Drive(coefficients[i], poses[i], audio[i]))
        torch.testing.assert_close(together.means[i], alone.means)
        torch.testing.assert_close(together.log_scales[i], alone.log_scales)
    assert not torch.allclose(together.means[0], together.means[1])


def test_without_audio_it_is_silent_and_outside_the_box_the_face_is_still() -> None:
    field = noisy(fresh(Branch.FACE))
    means = torch.tensor([[0.0, 0.0, 0.05], [5.0, 5.0, 5.0]])
    none = field.offsets(means, Drive(torch.rand(2), torch.eye(4)))
    zeros = torch.zeros(TOKENS, CHANNELS)
    quiet = field.offsets(means, Drive(torch.zeros(2), torch.eye(4), zeros))
    assert not none.means[1].any() and not quiet.means[1].any() and quiet.means[0].any()
    with pytest.raises(ValueError, match="expected L, C"):
        field.offsets(means, Drive(torch.zeros(2), torch.eye(4), torch.zeros(3, CHANNELS)))


@pytest.mark.parametrize("kind", [Branch.FACE, Branch.MOUTH])
def test_gradients_are_right(kind: Branch) -> None:
    field = noisy(fresh(kind), torch.float64)
    generator = torch.Generator().manual_seed(2)
    means = 0.05 * torch.randn(2, 3, generator=generator, dtype=torch.float64)
    audio = torch.randn(TOKENS, CHANNELS, generator=generator, dtype=torch.float64)
    coefficients = torch.rand(2, generator=generator, dtype=torch.float64)
    last = "decode.2"

    def moved(*inputs: torch.Tensor) -> torch.Tensor:
        means, audio, coefficients, layer = inputs
        changed = replace(field, parameters={**field.parameters, last: layer})
        found = changed.offsets(means, Drive(coefficients, torch.eye(4), audio))
        return torch.cat((100.0 * found.means, found.rotvecs, found.log_scales))

    inputs = [t.requires_grad_() for t in (means, audio, coefficients, field.parameters[last])]
    assert moved(*inputs).std() > 1e-3
    assert torch.autograd.gradcheck(moved, inputs, eps=1e-7, atol=1e-4, fast_mode=True)
    trainable = [t.requires_grad_() for t in field.parameters.values()]
    grads = torch.autograd.grad(moved(*inputs).square().sum(), trainable, allow_unused=True)
    used = [name for name, g in zip(field.parameters, grads, strict=True) if g is not None]
    assert set(field.parameters) - set(used) <= {last}


def test_controls_are_means_of_coefficients_by_name() -> None:
    matrix = control_matrix(("jawOpen", "eyeBlinkLeft", "eyeBlinkRight", "browInnerUp"))
    assert matrix.shape == (len(CONTROLS), 4)
    assert matrix[5].tolist() == [0.0, 0.5, 0.5, 0.0] and matrix[0].tolist() == [0.0, 0.0, 0.0, 1.0]
    assert not matrix[1:5].any()


# What it hears


def test_a_stream_hears_what_the_whole_recording_says(spoken: Clip) -> None:
    samples = babble(4.0)
    whole = speech.extract(samples, encoder="log_mel")
    heard = learn_hearing(whole, spoken.time_s.numpy())
    stream = FeatureStream("log_mel")
    times = np.arange(100) / 25.0
    at_once = heard(whole, times)
    assert at_once.shape == (100, TOKENS, heard.channels) and at_once.std() > 0.1
    found, done = [], 0
    for start in range(0, len(samples), 4000):
        stream.push(samples[start : start + 4000])
        while done < len(times) and heard.reach(times[done])[1] <= stream.length:
            found.append(heard(stream, times[done : done + 1]))
            done += 1
            stream.forget(heard.reach(times[min(done, 99)])[0])
    stream.finish()
    found.append(heard(stream, times[done:]))
    assert 80 < done < 100
    torch.testing.assert_close(torch.cat(found), at_once, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="hears log_mel"):
        heard(replace(whole, encoder="whisper_tiny"), times)


# Draws


def test_draws_never_wait_for_a_frame_that_is_not_there(spoken: Clip) -> None:
    points = spoken.landmarks.points.clone()
    points[:] = points[:1]  # a mouth that never moves
    frozen = replace(spoken, landmarks=replace(spoken.landmarks, points=points))
    for clip in (spoken, frozen):
        draws = ApertureDraws(clip, clip.train_rows)
        generator = torch.Generator().manual_seed(0)
        for step in range(60):
            rows = (
                draws.face(step, step / 59, generator), draws.mouth(step, step / 59, generator),
                draws.wide_mouth(generator),
            )  # fmt: skip
            assert all(row in clip.train_rows for row in rows)


def test_the_window_moves_from_small_openings_to_wide_ones(spoken: Clip) -> None:
    draws = ApertureDraws(spoken, spoken.train_rows)
    generator = torch.Generator().manual_seed(0)
    level = dict(zip(draws.by_level.tolist(), draws.levels.tolist(), strict=True))
    early = [level[draws.face(0, 0.0, generator)] for _ in range(20)]
    late = [level[draws.face(0, 0.79, generator)] for _ in range(20)]
    assert max(early) <= 0.361 and min(late) >= 0.8
    wide = [level[draws.wide_mouth(generator)] for _ in range(20)]
    assert min(wide) >= 0.9
    top, left, bottom, right = lip_box(spoken, 3)
    assert 0 <= top < bottom <= 512 and bottom - top == right - left


# The fit


def test_the_schedule_is_the_papers_and_the_torsos() -> None:
    assert ITERATIONS == 50_000 + 50_000 + 20_000 + 10_000
    found = [stage_at(share / 1000)[0].name for share in range(1001)]
    assert list(dict.fromkeys(found)) == [stage.name for stage in STAGES]
    assert stage_at(0.0)[1] == 0.0 and stage_at(1.0)[1] == 1.0
    assert stage_at(25_000 / ITERATIONS)[1] == pytest.approx(0.5)


def test_a_fit_starts_at_the_canonical_cloud(spoken: Clip) -> None:
    recipe = FieldRecipe(spoken, settings())
    state = recipe.start()
    avatar = recipe.avatar(state)
    assert avatar.hearing is not None and spoken.features is not None
    audio = avatar.hearing(spoken.features, np.array([1.0]))[0]
    posed = avatar(Drive(torch.rand(2), torch.eye(4), audio))
    expected = torch.cat([b.raw.means for b in avatar.branches])
    torch.testing.assert_close(posed.means, expected)


def test_a_frame_that_counts_nothing_teaches_nothing(spoken: Clip) -> None:
    unsure = replace(spoken.track, weight=torch.zeros_like(spoken.track.weight))
    for clip, silent in ((spoken, False), (replace(spoken, track=unsure), True)):
        recipe = FieldRecipe(clip, settings())
        assert (recipe.step(recipe.start()) == 0.0) is silent


def test_a_silent_clip_is_refused(tiny_clip: Clip, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="learns motion from sound"):
        train(tiny_clip, settings(), tmp_path)


def test_a_killed_fit_ends_bit_equal(
    spoken: Clip, trained: tuple[Path, dict], tmp_path: Path
) -> None:
    def stop(step: int, _total: int) -> None:
        if step == 87:
            raise Killed

    with pytest.raises(Killed):
        train(spoken, settings(), tmp_path, progress=stop)
    train(spoken, settings(), tmp_path)
    state = load_checkpoint(tmp_path, asdict(settings()))
    assert state is not None
    resumed = state.adam.state()
    assert resumed.keys() == trained[1].keys()
    assert all(torch.equal(resumed[key], value) for key, value in trained[1].items())
    logs = [(folder / "train_log.jsonl").read_text() for folder in (trained[0], tmp_path)]
    assert logs[0] == logs[1] and len(logs[0].splitlines()) == 2


# The file


def test_an_avatar_survives_its_file(saved: Path, tmp_path: Path, spoken: Clip) -> None:
    first = load_package(saved)
    save_package(tmp_path / "again.gsavatar", first)
    second = load_package(tmp_path / "again.gsavatar")
    assert first.avatar.hearing is not None and spoken.features is not None
    audio = first.avatar.hearing(spoken.features, np.array([1.0]))[0]
    drive = Drive(torch.tensor([0.5, 0.2]), torch.eye(4), audio)
    a, b = first.avatar(drive), second.avatar(drive)
    for name in ("means", "quats", "scales", "opacities", "sh"):
        assert torch.equal(getattr(a, name), getattr(b, name))
    assert (tmp_path / "again.gsavatar").read_bytes() == saved.read_bytes()


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("FACE.field.decode.0", None, r"FACE\.field\.decode\.0"),
        ("FACE.field.decode.0", torch.zeros(64, 73), r"\(64, 73\)"),
        ("FACE.field.grid.3", torch.full((3, 1, 21, 21), float("nan")), "not finite"),
        ("MOUTH.field.grid.0", torch.full((3, 1, 16, 16), 1e6), "beyond"),
        ("FACE.field_radius", torch.tensor(0.0), "more than 0"),
        ("hearing.means", torch.zeros(0, 80), "0 rows"),
        ("hearing.components", torch.zeros(80, 0), r"\(80, 0\)"),
        ("hearing.silence", torch.zeros(3), r"\(3,\)"),
    ],
)
def test_bad_tensors_are_refused(
    saved: Path, tmp_path: Path, name: str, value: torch.Tensor | None, reason: str
) -> None:
    bad = tmp_path / "bad.gsavatar"
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(bad, "w") as new:
        for member in old.namelist():
            content = old.read(member)
            if member == "tensors.safetensors":
                tensors = load(content)
                tensors.pop(name)
                content = save(tensors if value is None else {**tensors, name: value})
            new.writestr(member, content)
    with pytest.raises(InputError, match=reason):
        load_package(bad)


def test_an_unknown_encoder_is_refused(saved: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.gsavatar"
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(bad, "w") as new:
        for member in old.namelist():
            content = old.read(member)
            if member == "avatar.json":
                content = json.dumps({**json.loads(content), "hearing": {"encoder": 7}}).encode()
            new.writestr(member, content)
    with pytest.raises(InputError, match="hearing"):
        load_package(bad)


# The film


def test_sound_moves_the_lips_of_a_film(saved: Path, tmp_path: Path) -> None:
    package = load_package(saved)
    sound = tmp_path / "babble.wav"
    write_wav(sound, babble(0.6), round(0.6 * RATE))
    made = film.render_film(saved, tmp_path / "talk", audio=sound, size=64)
    assert made.frames == 15 and made.has_sound
    stream = SpeechStream(film.performer(package, 25.0))
    pieces = [film.within_limits(stream.push(babble(0.6)), package), stream.finish()]
    audio = torch.cat([p.audio for p in pieces if p.audio is not None])
    assert audio.shape[:2] == (15, TOKENS)
    assert package.avatar.hearing is not None
    again = package.avatar.hearing(
        speech.extract(babble(0.6), encoder="log_mel"), np.arange(15) / 25.0
    )
    torch.testing.assert_close(audio, again, atol=1e-4, rtol=1e-4)
    rest, pose = package.rest, torch.eye(4)
    face = package.avatar.only(Branch.FACE)
    first, last = (face(Drive(rest, pose, audio[i])).means for i in (0, 8))
    assert float((first - last).abs().max()) > 1e-6


def test_curves_without_sound_are_refused(saved: Path, tmp_path: Path) -> None:
    for option in ({"curves": tmp_path / "c.json"}, {"drive": tmp_path / "v.mp4"}):
        with pytest.raises(InputError, match="follows sound alone"):
            film.render_film(saved, tmp_path / "talk", **option)  # type: ignore[arg-type]
    assert not (tmp_path / "talk").exists()


# The numbers


def test_expression_cannot_drive_it_and_sound_does(
    saved: Path, spoken: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "tiny"
    shutil.copytree(spoken.root, run / "clip")
    shutil.copy(saved, run / "tiny.gsavatar")
    with pytest.raises(InputError, match="follows sound alone"):
        evaluate.evaluate(run, drive="expression")
    package = load_package(saved)
    job = evaluate._Job(spoken, package, "audio", True)
    values = package.rest.repeat(len(spoken.test_rows), 1)
    heard = job._heard()
    assert all(a is not None and a.shape[0] == TOKENS for a in heard)
    drives: list[Drive] = []

    def posed(self: Avatar, drive: Drive) -> Gaussians:
        drives.append(drive)
        return original(self, drive)

    original = Avatar.__call__
    monkeypatch.setattr(Avatar, "__call__", posed)
    job._painter(values)(3)
    job._painter(values, speaks=False)(3)
    assert heard[3] is not None and drives[0].audio is not None and drives[1].audio is None
    assert torch.equal(drives[0].audio, heard[3])
