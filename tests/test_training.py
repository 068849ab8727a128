"""Training on the cartoon clip: it learns, grows within its budget and resumes bit-equal."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from gsavatar import densify, lpips_network, metrics, ops, train_state
from gsavatar.avatar import Avatar
from gsavatar.batches import Batches, eyes_of
from gsavatar.clip import Clip
from gsavatar.config import Settings, TrainSettings
from gsavatar.errors import InputError
from gsavatar.ingest import IngestOptions
from gsavatar.landmarks import LEFT_EYE, RIGHT_EYE
from gsavatar.losses import (
    EYES_WEIGHT,
    HEAD_WEIGHT,
    LossWeights,
    RegionMasks,
    feature_box,
    feature_terms,
    frame_terms,
    opacity_term,
    total,
)
from gsavatar.losses_perceptual import contrast_distance
from gsavatar.optimizer import RowAdam
from gsavatar.pipeline import fit
from gsavatar.progress import SilentReporter
from gsavatar.render import render
from gsavatar.seeding import SeedCounts, _widest_area
from gsavatar.surround import Surround
from gsavatar.tracking_sway import measure_sway
from gsavatar.train import (
    _start,
    _step,
    current_avatar,
    learning_rates,
    seed_counts,
    stage_at,
    train,
)
from gsavatar.train_history import History
from gsavatar.train_state import averaged, load_checkpoint, save_checkpoint
from gsavatar.types import Branch, Region, Rendering

STEPS = 220


class Killed(Exception):
    """Stands for a kill between two steps."""


def settings(**changes: object) -> TrainSettings:
    from gsavatar.config import load_preset

    base = load_preset("preview").train
    small = replace(base, size=64, steps=STEPS, gaussians_max=700, face_init=300, mouth_init=80,
                    torso_init=120, checkpoint_every=50, validate_every=55)  # fmt: skip
    return replace(small, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def trained(tiny_clip: Clip, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list]:
    folder = tmp_path_factory.mktemp("trained")
    avatar = train(tiny_clip, settings(), folder)
    return folder, [(b.raw.parameters(), b.motion.basis) for b in avatar.branches]


def test_the_curve_falls_and_the_cloud_grows_within_budget(trained: tuple[Path, list]) -> None:
    folder, _ = trained
    rows = [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [55, 110, 165, 220]
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert 500 < rows[-1]["gaussians"] <= 700


def test_a_curve_that_was_cut_short_is_continued(tmp_path: Path) -> None:
    """A full disk or a lost supply leaves half a line; that must not end the run for good."""
    path = tmp_path / "train_log.jsonl"
    path.write_text('{"step": 5, "loss": 1.0}\n{"step": 10, "lo')
    History(path, 10).add(step=15, loss=0.5)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [5, 15]


def test_no_more_gaussians_than_were_asked_for() -> None:
    settings = TrainSettings(gaussians_max=1000, face_init=6000, mouth_init=1500, torso_init=2500)
    assert seed_counts(settings) == SeedCounts(600, 150, 250)
    roomy = replace(settings, gaussians_max=14_000)
    assert seed_counts(roomy) == SeedCounts(6000, 1500, 2500)


def test_pictures_get_better_than_the_seeds(trained: tuple[Path, list], tiny_clip: Clip) -> None:
    state = load_checkpoint(trained[0], asdict(settings()))
    assert state is not None and state.step == STEPS
    names, batches = tiny_clip.track.face.names, Batches(tiny_clip, 64)
    states = averaged(state), _start(tiny_clip, settings())
    after, before = (current_avatar(s, names) for s in states)
    for branch, (raw, basis) in zip(after.branches, trained[1], strict=True):
        assert torch.equal(branch.motion.basis, basis)  # what training gave back is what it saved
        assert all(torch.equal(v, raw[k]) for k, v in branch.raw.parameters().items())
    frames = [batches._sample(int(row), 64, None) for row in tiny_clip.train_rows[::8]]
    gains = []
    with torch.no_grad():
        for sample in frames:
            errors = [
                (render(avatar(sample.frame.drive), sample.frame.camera, sample.background).rgb
                 - sample.frame.image).square().mean()
                for avatar in (before, after)
            ]  # fmt: skip
            gains.append(float(10 * torch.log10(errors[0] / errors[1])))
    assert min(gains) > 3.0  # dB


@pytest.mark.parametrize("last", [137, 210])
def test_a_killed_run_ends_bit_equal(
    trained: tuple[Path, list], tiny_clip: Clip, tmp_path: Path, last: int
) -> None:
    def stop(step: int, _total: int) -> None:
        if step == last:
            raise Killed

    with pytest.raises(Killed):
        train(tiny_clip, settings(), tmp_path, progress=stop)
    resumed = train(tiny_clip, settings(), tmp_path)
    for branch, (raw, basis) in zip(resumed.branches, trained[1], strict=True):
        assert torch.equal(branch.motion.basis, basis)
        for key, value in branch.raw.parameters().items():
            assert torch.equal(value, raw[key]), key
    logs = [(f / "train_log.jsonl").read_text() for f in (trained[0], tmp_path)]
    assert logs[0] == logs[1]


def test_a_killed_run_goes_on_from_its_checkpoint(tiny_clip: Clip, tmp_path: Path) -> None:
    done: list[int] = []

    def stop(step: int, _total: int) -> None:
        if step == 8:
            raise Killed

    few = settings(steps=12, checkpoint_every=5)
    with pytest.raises(Killed):
        train(tiny_clip, few, tmp_path, progress=stop)
    train(tiny_clip, few, tmp_path, progress=lambda step, total: done.append(step))
    assert done == [6, 7, 8, 9, 10, 11, 12]


def test_a_checkpoint_from_before_a_setting_was_known_is_continued(
    tiny_clip: Clip, tmp_path: Path
) -> None:
    few = settings(steps=2)
    train(tiny_clip, few, tmp_path)
    older = asdict(few)
    del older["weights"]["lpips"]
    state = load_checkpoint(tmp_path, asdict(few))
    assert state is not None
    save_checkpoint(tmp_path, state, older)
    assert load_checkpoint(tmp_path, asdict(few)) is not None
    with pytest.raises(InputError, match=r"train.weights.lpips = 0.0, not 0.1; "):
        load_checkpoint(tmp_path, asdict(replace(few, weights=LossWeights(lpips=0.1))))


def test_a_face_that_fills_the_picture_has_a_torso_of_one(
    tiny_clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = tiny_clip.regions

    def no_torso(row: int) -> np.ndarray:
        labels = seen(row).copy()
        labels[np.isin(labels, (int(Region.TORSO), int(Region.NECK)))] = int(Region.SKIN)
        return labels

    monkeypatch.setattr(type(tiny_clip), "regions", lambda self, row: no_torso(row))
    avatar = train(tiny_clip, settings(steps=102), tmp_path)  # past a round of growing
    torso = avatar.only(Branch.TORSO).branches[0]
    assert len(torso.raw) >= 1 and bool(torso.raw.means.isfinite().all())


def test_other_settings_do_not_continue_a_run(trained: tuple[Path, list], tiny_clip: Clip) -> None:
    with pytest.raises(InputError, match=r"other training settings, train.seed = 0, not 5; "):
        train(tiny_clip, settings(seed=5), trained[0])


@pytest.mark.parametrize("damage", ["cut short", "not finite"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    trained: tuple[Path, list], tmp_path: Path, damage: str
) -> None:
    (tmp_path / "checkpoints").mkdir()
    for path in (trained[0] / "checkpoints").iterdir():
        (tmp_path / "checkpoints" / path.name).write_bytes(path.read_bytes())
    newest = sorted((tmp_path / "checkpoints").iterdir())[-1]
    if damage == "cut short":
        newest.write_bytes(newest.read_bytes()[:1000])
    else:
        with safe_open(newest, framework="pt") as file:
            info, keys = file.metadata(), list(file.keys())
        tensors = load_file(newest)
        assert "param.FACE.means" in keys
        tensors["param.FACE.means"][3, 1] = float("nan")
        save_file(tensors, newest, metadata=info)
    state = load_checkpoint(tmp_path, asdict(settings()))
    assert state is not None and state.step == 200


def test_three_bad_steps_stop_with_a_sentence(
    tiny_clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(terms: dict[str, torch.Tensor], weights: LossWeights) -> torch.Tensor:
        return total(terms, weights) * float("nan")

    monkeypatch.setattr("gsavatar.train.total", broken)
    with pytest.raises(InputError, match="3 steps in a row without a finite loss"):
        train(tiny_clip, settings(), tmp_path)


def test_a_skipped_step_is_counted_in_the_curve(
    tiny_clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by the run that continues: it counts on from the checkpoint."""
    calls = iter(range(STEPS))

    def broken_at_times(terms: dict[str, torch.Tensor], weights: LossWeights) -> torch.Tensor:
        return total(terms, weights) * (float("nan") if next(calls) in (2, 3, 12) else 1.0)

    def stop(step: int, _total: int) -> None:
        if step == 10:
            raise KeyboardInterrupt

    short = replace(settings(), steps=15, checkpoint_every=5, validate_every=5)
    monkeypatch.setattr("gsavatar.train.total", broken_at_times)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_clip, short, tmp_path, progress=stop)
    train(tiny_clip, short, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "train_log.jsonl").read_text().splitlines()]
    assert [(row["step"], row["skipped"]) for row in rows] == [(5, 2), (10, 2), (15, 3)]


def taught(
    clip: Clip, monkeypatch: pytest.MonkeyPatch, step: int, terms: tuple[str, ...]
) -> dict[str, bool]:
    """Which parameters one step in the stage of motion changes, if only some terms count."""
    with monkeypatch.context() as patch:
        patch.setattr(
            "gsavatar.train.total",
            lambda found, _: torch.stack([v * (k in terms) for k, v in found.items()]).sum(),
        )
        state = _start(clip, settings())
        state.step = step
        before = {name: p.detach().clone() for name, p in state.adam.params.items()}
        avatar = current_avatar(state, clip.track.face.names)
        _step(
            state, avatar, Batches(clip, 64), Surround(clip), measure_sway(clip), settings(), None
        )
    return {name: not torch.equal(p, before[name]) for name, p in state.adam.params.items()}


@pytest.mark.parametrize(
    ("step", "terms", "branches"),
    [
        (102, ("color",), ("FACE", "MOUTH", "TORSO")),
        (102, ("structure",), ("FACE", "MOUTH", "TORSO")),
        (102, ("matte",), ("FACE", "MOUTH", "TORSO")),
        (102, ("mouth_color",), ("MOUTH",)),
        (102, ("mouth_fill",), ("MOUTH",)),
        (101, ("surround_color", "surround_fill"), ("FACE", "MOUTH")),
    ],
)
def test_every_term_teaches_its_branches(
    tiny_clip: Clip, monkeypatch: pytest.MonkeyPatch, step: int, terms: tuple[str, ...],
    branches: tuple[str, ...],
) -> None:  # fmt: skip
    changed = taught(tiny_clip, monkeypatch, step, terms)
    for name in ("means", "raw_opacities", "basis"):
        learnt = {branch for branch in Branch.__members__ if changed[f"{branch}.{name}"]}
        assert learnt >= set(branches), name
        if len(branches) == 1:
            assert learnt == set(branches), name


def test_the_structure_is_ssim() -> None:
    g = torch.Generator().manual_seed(0)
    image = torch.rand(32, 32, 3, generator=g)
    rgb = (0.5 * image + 0.3 * torch.rand(32, 32, 3, generator=g)).clamp(0, 1)
    seen = Rendering(rgb, torch.ones(32, 32, 1), torch.zeros(32, 32, 3), torch.zeros(32, 32, 1))
    masks = RegionMasks.of(torch.ones(32, 32, dtype=torch.uint8))
    terms = frame_terms(seen, image, masks)
    expected = 1.0 - float(ops.ssim_ref(rgb.double(), image.double(), None))
    assert float(terms["structure"]) == pytest.approx(expected, abs=1e-4)
    assert float(terms["color"]) == pytest.approx(float((rgb - image).abs().mean()), rel=1e-4)
    assert abs(expected - float(terms["color"])) > 0.05


def test_stages_and_rates_are_a_table() -> None:
    assert [stage_at(s).name for s in (0.0, 0.3, 0.99, 1.0)] == [
        "still",
        "motion",
        "detail",
        "detail",
    ]
    assert "basis" not in learning_rates(0.0, stage_at(0.0))
    first, last = (learning_rates(s, stage_at(s))["means"] for s in (0.0, 1.0))
    assert first > 20 * last


def test_terms_need_weights() -> None:
    with pytest.raises(KeyError, match="unheard"):
        total({"unheard": torch.zeros(())}, LossWeights())


def test_masks_cover_what_they_name() -> None:
    labels = torch.tensor([[int(r) for r in Region]], dtype=torch.uint8)
    masks = RegionMasks.of(labels)
    assert masks.inner_mouth[0].nonzero()[:, 0].tolist() == [Region.INNER_MOUTH]
    assert masks.lips_outline[0].nonzero()[:, 0].tolist() == [Region.LIPS, Region.INNER_MOUTH]
    assert masks.head[0].nonzero()[:, 0].tolist() == [1, 2, 3, 4, 5]
    empty = RegionMasks.of(torch.zeros(8, 8, dtype=torch.uint8))
    assert empty.head.sum() == 0 and torch.isfinite(empty.color_weight).all()


def test_growing_respects_the_budget_and_prunes_the_transparent() -> None:
    scores, opacities = torch.arange(100.0), torch.full((100,), 0.5)
    opacities[:10] = 0.001
    change = densify.plan_round((scores,), opacities, budget=92)
    assert change.kept.tolist() == list(range(10, 100))
    assert sorted(change.parents.tolist()) == [98, 99]
    assert len(densify.plan_round((scores,), opacities * 0, budget=100).kept) == 100


def test_two_scores_share_the_room_and_leave_what_they_do_not_use() -> None:
    first, second, opacities = torch.zeros(100), torch.arange(100.0), torch.full((100,), 0.5)
    first[[3, 99]] = torch.tensor([1.0, 2.0])
    change = densify.plan_round((first, second), opacities, budget=102)
    assert change.parents.tolist() == [99, 98]  # 99 is taken already
    change = densify.plan_round((first, second), opacities, budget=106)
    assert sorted(change.parents.tolist()) == [3, 95, 96, 97, 98, 99]


def test_errors_fall_to_those_who_paint_them(tiny_clip: Clip) -> None:
    state = _start(tiny_clip, settings())
    avatar = current_avatar(state, tiny_clip.track.face.names)
    sample = next(Batches(tiny_clip, 64).validation(), None) or Batches(tiny_clip, 64).draw(
        state.generator, full_size=False
    )
    gaussians = avatar(sample.frame.drive)
    some = torch.tensor([5, 40, 200])
    shares = torch.zeros(len(gaussians.means), len(some))
    shares[some, torch.arange(len(some))] = 1.0
    rendering = render(gaussians, sample.frame.camera, sample.background, extra_channels=shares)
    assert rendering.extras is not None
    error = torch.rand(64, 64, generator=state.generator)
    painted_here = train_state.painted_error(gaussians, rendering, error)
    train_state.measure_error(state, avatar, painted_here)
    found = state.errors[Branch.FACE.name].sum[some]
    painted = (rendering.extras * error[..., None]).sum((0, 1))
    assert painted.max() > 0.0
    assert torch.allclose(found / found.sum(), painted / painted.sum(), atol=1e-4)


def test_new_rows_start_without_momentum() -> None:
    adam = RowAdam({"a": torch.ones(3, 2, requires_grad=True)})
    adam.params["a"].grad = torch.ones(3, 2)
    adam.step({"a": 0.1})
    adam.replace("a", torch.zeros(4, 2), torch.tensor([2, 0]), 0)
    state = adam.state()
    assert state["exp_avg.a"][:2].abs().min() > 0 and state["exp_avg.a"][2:].abs().max() == 0
    again = RowAdam.load(state, ("a",)).state()
    assert all(torch.equal(state[k], again[k]) for k in state)


def test_a_step_goes_down_the_slope_by_the_rate() -> None:
    adam = RowAdam({name: torch.ones(3, 2, requires_grad=True) for name in ("a", "b", "c")})
    for name in ("a", "b"):
        adam.params[name].grad = torch.tensor([[5.0, -0.01]] * 3)
    adam.step({"a": 0.1, "c": 0.1})
    moved = torch.tensor([[0.9, 1.1]] * 3)  # Adam's first step is the rate, whatever the slope
    torch.testing.assert_close(adam.params["a"].detach(), moved)
    assert all(torch.equal(adam.params[name].detach(), torch.ones(3, 2)) for name in ("b", "c"))


def test_draws_repeat_with_the_generator_and_leave_validation_out(tiny_clip: Clip) -> None:
    batches = Batches(tiny_clip, 64)

    def indices() -> list[int]:
        generator = torch.Generator().manual_seed(3)
        return [batches.draw(generator, full_size=False).frame.index for _ in range(20)]

    assert indices() == indices()
    held = {s.frame.index for s in batches.validation()}
    assert not held & set(indices())


def test_shut_lids_are_drawn_more_often(tiny_clip: Clip) -> None:
    """A clip shows them for a fiftieth of its time, and an eye that is drawn over a lid is seen."""
    names = tiny_clip.track.face.names
    lids = [i for i, name in enumerate(names) if name.startswith("eyeBlink")]
    changed = tiny_clip.track.coefficients.clone()
    changed[:, lids] = 0.02
    shut = tiny_clip.train_rows[5:9]
    changed[shut[:, None], lids] = 0.9
    clip = replace(tiny_clip, track=replace(tiny_clip.track, coefficients=changed))
    batches = Batches(clip, 64)
    generator = torch.Generator().manual_seed(0)
    drawn = [batches._pick(generator) for _ in range(2000)]
    among = len(set(shut.tolist()) & set(batches.rows.tolist())) / len(batches.rows)
    share = np.isin(drawn, shut).mean()
    assert 0.08 < share - among < 0.13
    changed[:, lids] = 0.02  # who never blinks is drawn as ever
    still = Batches(replace(clip, track=replace(clip.track, coefficients=changed)), 64)
    assert len(still._shut) == 0


def test_test_frames_are_never_drawn(tiny_clip: Clip) -> None:
    clip = replace(tiny_clip, train_rows=tiny_clip.train_rows[:12])
    batches, generator = Batches(clip, 64), torch.Generator().manual_seed(0)
    drawn = {batches.draw(generator, full_size=False).frame.index for _ in range(120)}
    drawn |= {sample.frame.index for sample in batches.validation()}
    assert drawn == set(clip.frame_ids[torch.from_numpy(clip.train_rows)].tolist())


def test_crops_are_the_full_frame_seen_through_a_window(tiny_clip: Clip) -> None:
    sample = Batches(tiny_clip, 128).draw(torch.Generator().manual_seed(0), full_size=True)
    assert sample.frame.image.shape == (128, 128, 3)
    full = tiny_clip.frame(sample.frame.index)
    shift = tiny_clip.camera(0).K[:2, 2] - sample.frame.camera.K[:2, 2]
    left, top = (int(v) for v in shift)
    expected = torch.from_numpy(full[top : top + 128, left : left + 128].copy()).float() / 255
    assert torch.equal(sample.frame.image, expected)


def test_perceptual_distance_sees_what_an_eye_sees() -> None:
    g = torch.Generator().manual_seed(0)
    real = torch.rand(40, 52, 3, generator=g, dtype=torch.float64)
    everywhere = torch.ones(40, 52, dtype=torch.float64)
    assert contrast_distance(real, real, everywhere) == 0
    assert contrast_distance(real.flip(0), real, 0 * everywhere) == 0
    # A little less contrast is no lost detail, a blur is; and of faint detail in the dark it
    # weighs more than in proportion, which no colour distance says.
    blurred = torch.nn.functional.avg_pool2d(real.permute(2, 0, 1), 3, 1, 1).permute(1, 2, 0)
    lost = contrast_distance(blurred, real, everywhere)
    assert contrast_distance(0.8 * real + 0.1, real, everywhere) < 0.5 * lost
    faint = contrast_distance(0.2 * blurred, 0.2 * real, everywhere)
    assert faint > 1.3 * 0.2 * lost
    # What lies outside the weight does not count.
    left = everywhere.clone()
    left[:, 20:] = 0
    half = real.clone()
    half[:, 50:] = 0
    assert contrast_distance(half, real, left) == 0 < contrast_distance(half, real, everywhere)


def test_perceptual_distance_has_its_derivative() -> None:
    g = torch.Generator().manual_seed(1)
    real, weight = torch.rand(2, 12, 11, 3, generator=g, dtype=torch.float64)
    drawn = torch.rand(12, 11, 3, generator=g, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p: contrast_distance(p, real, weight[..., 0]), drawn)


def test_perceptual_terms_need_features() -> None:
    regions = torch.zeros(32, 32, dtype=torch.uint8)
    plane = torch.zeros(32, 32, 1)
    seen = Rendering(torch.zeros(32, 32, 3), 1.0 - plane, torch.zeros(32, 32, 3), plane)

    def terms(image: torch.Tensor, **weights: float) -> dict[str, torch.Tensor]:
        box = feature_box(regions.numpy())
        return feature_terms(seen, image, regions, box, LossWeights(**weights), None)

    assert terms(torch.ones(32, 32, 3)) == {}
    regions[12:16, 10:20] = Region.LIPS
    image = torch.zeros(32, 32, 3)
    image[13:15, 12:18] = 1.0
    assert terms(image)["contrast"] > 0.01
    assert terms(image, contrast=0.0) == {}
    image = torch.zeros(32, 32, 3)
    image[28:, :4] = 1.0  # far from the lips
    assert terms(image)["contrast"] == 0


class FakeLpips(torch.nn.Module):
    """Stands for LPIPS: its parts, with the picture and its half as features."""

    def __init__(self, net: str, verbose: bool) -> None:
        super().__init__()
        self.sizes: list[tuple[int, ...]] = []
        self.scaling_layer = torch.nn.Identity()
        self.lins = torch.nn.ModuleList(torch.nn.Conv2d(3, 1, 1, bias=False) for _ in range(2))
        for one in self.lins:
            torch.nn.init.ones_(one.weight)

    def net(self, pictures: torch.Tensor) -> list[torch.Tensor]:
        self.sizes.append(tuple(pictures.shape))
        seen = (pictures + 1.0).relu()  # black is a feature that is all zero
        return [seen, torch.nn.functional.avg_pool2d(seen, 2)]

    def forward(self, one: torch.Tensor, other: torch.Tensor, normalize: bool) -> torch.Tensor:
        assert normalize
        return (one - other).abs().mean().reshape(1, 1, 1, 1)


@pytest.fixture
def lpips_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / lpips_network.TRUNK).write_bytes(b"weights")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=FakeLpips))


def test_lpips_is_asked_for_or_left_alone(lpips_there: None) -> None:
    assert lpips_network.network_of(0.0) is None
    network = lpips_network.network_of(0.1)
    assert network is not None and not any(p.requires_grad for p in network.parameters())
    distance, why = metrics.open_lpips()
    assert distance is not None and not why
    black = np.zeros((8, 8, 3), np.uint8)
    assert distance(black, black + 51) == pytest.approx(0.2)


def test_what_lpips_lacks_is_said_with_its_cure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lpips_there: None
) -> None:
    def refused(match: str) -> None:
        with pytest.raises(InputError, match=f"lpips = 0.1: {match}, or fit without .* --out.$"):
            lpips_network.network_of(0.1)
        assert metrics.open_lpips()[0] is None

    def torn(**_: object) -> None:
        raise ValueError("bad magic\nand more")

    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=torn))
    refused(r".*pth cannot be read \(bad magic\); delete it and put https://.*pth there again")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "elsewhere"))
    refused("the AlexNet weights are not at .*elsewhere.*; put https://.*pth there")
    broken = tmp_path / "broken"
    broken.mkdir()
    monkeypatch.syspath_prepend(str(broken))
    for fault in ("raise RuntimeError('no operator nms')", "import torchvision_of_another_torch"):
        monkeypatch.delitem(sys.modules, "lpips", raising=False)
        (broken / "lpips.py").write_text(fault + "  #" + " " * len(fault))  # never the same size
        refused(r".* does not import \([nN]o .*\); install the torchvision that .*")
    monkeypatch.setitem(sys.modules, "lpips", None)
    refused("the optional package lpips is not installed; pip install lpips")


def test_lpips_sees_the_features_and_has_a_gradient(lpips_there: None) -> None:
    network = lpips_network.network_of(0.1)
    assert network is not None
    regions = torch.zeros(96, 96, dtype=torch.uint8)
    regions[40:50, 30:60] = Region.LIPS
    plane = torch.zeros(96, 96, 1)
    drawn = torch.full((96, 96, 3), 0.25)
    drawn[..., 0] = 0.5
    drawn[50:] = 0.0  # black: features that are all zero
    drawn.requires_grad_()
    seen = Rendering(drawn, 1.0 - plane, torch.zeros(96, 96, 3), plane)
    box = feature_box(regions.numpy())
    assert box is not None
    weights = LossWeights(contrast=0.0, lpips=0.5)
    terms = feature_terms(seen, torch.full((96, 96, 3), 0.5), regions, box, weights, network)
    assert list(terms) == ["lpips"] and terms["lpips"] > 0.1
    least = lpips_network.LEAST_SIDE_PX
    assert min(network.sizes[0][2:]) == least < max(network.sizes[0][2:])  # enlarged alike
    total(terms, weights).backward()
    assert drawn.grad is not None and bool(drawn.grad.isfinite().all())
    touched = drawn.grad.abs().sum(-1) > 0
    assert touched[box[0] : 48, box[1] : box[3]].all() and not touched[: box[0]].any()
    same = lpips_network.distance(network, drawn[:70, :80], drawn[:70, :80])
    assert same.item() == 0.0


def test_a_fit_without_its_lpips_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Settings(train=settings(weights=LossWeights(lpips=0.1)))
    run = tmp_path / "run"
    monkeypatch.setitem(sys.modules, "lpips", None)  # whether or not it is installed here
    with pytest.raises(InputError, match=r"train.weights.lpips = 0.1: "):
        fit([tmp_path / "none.mp4"], run, asked, IngestOptions(), SilentReporter())
    assert not (run / "clip").exists()


def test_training_hears_lpips(tiny_clip: Clip, tmp_path: Path, lpips_there: None) -> None:
    plain = train(tiny_clip, settings(steps=2), tmp_path / "plain")
    weights = LossWeights(lpips=1.0)
    other = train(tiny_clip, settings(steps=2, weights=weights), tmp_path / "other")
    assert not torch.equal(plain.branches[0].raw.sh, other.branches[0].raw.sh)


def test_the_avatar_is_the_mean_of_the_last_steps(tiny_clip: Clip, tmp_path: Path) -> None:
    seen: list[torch.Tensor] = []

    def watch(avatar: Avatar, step: int) -> None:
        if step - 1 >= 0.8 * 20 and (step - 1) % 3 == 0:  # ``live`` is told after the step
            seen.append(avatar.branches[0].raw.means.detach().clone())

    avatar = train(tiny_clip, settings(steps=20), tmp_path, live=watch)
    assert len(seen) == 1
    assert torch.equal(avatar.branches[0].raw.means, seen[0])
    again = tmp_path / "longer"
    avatar = train(tiny_clip, settings(steps=40), again)
    state = load_checkpoint(again, asdict(settings(steps=40)))
    assert state is not None and state.average.count == 3  # steps 33, 36 and 39
    mean = state.average.sums["FACE.means"] / 3
    assert torch.equal(avatar.branches[0].raw.means, mean)
    assert not torch.equal(mean, state.adam.params["FACE.means"])


def test_a_checkpoint_of_another_version_is_refused(
    trained: tuple[Path, list], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_state, "FORMAT", train_state.FORMAT + 1)
    with pytest.raises(InputError, match="another version of gsavatar"):
        load_checkpoint(trained[0], asdict(settings()))


def test_shut_lids_weigh_as_eyes_do() -> None:
    points = np.full((478, 2), 256.0)
    for outline, centre in zip((RIGHT_EYE, LEFT_EYE), ((200, 200), (310, 204)), strict=True):
        turn = np.linspace(0, 2 * np.pi, len(outline), endpoint=False)
        points[list(outline)] = np.stack((24 * np.cos(turn), 2 * np.sin(turn)), 1) + centre
    plane = eyes_of(points, 512)
    assert plane[200, 200] == plane[204, 310] == plane[194, 200] == 1
    assert plane[200, 256] == plane[185, 200] == 0 and 0.003 < plane.mean() < 0.01
    assert eyes_of(points / 2, 256).mean() == pytest.approx(plane.mean(), rel=0.3)
    skin = torch.full((512, 512), int(Region.SKIN), dtype=torch.uint8)
    weight = RegionMasks.of(skin, eyes=torch.from_numpy(plane)).color_weight[..., 0]
    assert weight[200, 200] == EYES_WEIGHT and weight[256, 256] == HEAD_WEIGHT


def test_steps_that_grow_measure_errors_of_all_branches(tiny_clip: Clip) -> None:
    state = _start(tiny_clip, settings())
    state.step = 100  # in the stage of motion, where errors are looked at every fifth step
    batches, surround = Batches(tiny_clip, 64), Surround(tiny_clip)
    avatar = current_avatar(state, tiny_clip.track.face.names)
    _step(state, avatar, batches, surround, measure_sway(tiny_clip), settings(), None)
    assert all(meter.sum.sum() > 0.0 for meter in state.errors.values())
    seen = [float(meter.seen.max()) for meter in state.errors.values()]
    state.step = 101
    _step(state, avatar, batches, surround, measure_sway(tiny_clip), settings(), None)
    assert [float(meter.seen.max()) for meter in state.errors.values()] == seen == [1.0] * 3


def test_eyes_weigh_most_in_every_sample(tiny_clip: Clip) -> None:
    batches = Batches(tiny_clip, 64)
    sample = batches.draw(torch.Generator().manual_seed(0), full_size=False)
    assert sample.masks.color_weight.max() == EYES_WEIGHT
    around = eyes_of(tiny_clip.landmarks.points[sample.row, :, :2].numpy() / 8, 64)
    assert torch.equal(
        sample.masks.color_weight[..., 0] == EYES_WEIGHT, torch.from_numpy(around) > 0
    )


def test_lids_are_seeded_by_their_area_when_shut(tiny_clip: Clip) -> None:
    face = tiny_clip.track.face
    square = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 0.1, 0], [5, 0, 0], [6, 0, 0], [5, 1, 0]])
    basis = torch.zeros(len(face.names), 6, 3)
    blink = next(i for i, name in enumerate(face.names) if name.startswith("eyeBlink"))
    basis[blink, 2, 1] = 0.9  # draws the folded triangle out to the other's size
    lids = replace(face, vertices=square, basis=basis)
    areas = _widest_area(lids, torch.tensor([[0, 1, 2], [3, 4, 5]]))
    torch.testing.assert_close(areas, torch.ones(2))
    nameless = replace(lids, names=tuple(f"own{i}" for i in range(len(face.names))))
    areas = _widest_area(nameless, torch.tensor([[0, 1, 2], [3, 4, 5]]))
    torch.testing.assert_close(areas, torch.tensor([0.1, 1.0]))


def test_opacities_are_asked_to_be_nothing_or_all(tiny_clip: Clip) -> None:
    state = _start(tiny_clip, settings())
    for kind in Branch:
        state.adam.params[f"{kind.name}.raw_opacities"].data.fill_(0.0)
    avatar = current_avatar(state, tiny_clip.track.face.names)
    assert opacity_term(avatar.branches).item() == pytest.approx(0.25)
    state.adam.params["FACE.raw_opacities"].data.fill_(9.0)
    state.adam.params["MOUTH.raw_opacities"].data.fill_(-9.0)
    assert opacity_term(avatar.branches).item() < 0.15
