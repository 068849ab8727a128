"""Training: stages as rows of a table, every random choice in a saved generator."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from gsavatar import densify
from gsavatar.avatar import Avatar, AvatarBranch
from gsavatar.batches import Batches, Sample
from gsavatar.clip import Clip
from gsavatar.config import TrainSettings
from gsavatar.densify import BRANCH_AXES
from gsavatar.gaussians import RawGaussians
from gsavatar.losses import (
    feature_terms,
    frame_terms,
    mouth_terms,
    opacity_term,
    size_term,
    surround_terms,
    total,
)
from gsavatar.lpips_network import network_of
from gsavatar.motion import LinearMotion, regularise
from gsavatar.ops import native
from gsavatar.optimizer import RowAdam
from gsavatar.pose_refinement import PoseCorrections
from gsavatar.render import crop_camera, render
from gsavatar.seeding import SeedCounts, seed_avatar
from gsavatar.surround import Surround
from gsavatar.tether import PULL_EVERY, Tether, level
from gsavatar.tracking_sway import Sway, measure_sway
from gsavatar.train_history import History
from gsavatar.train_state import (
    TrainState,
    averaged,
    descend,
    load_checkpoint,
    measure,
    measure_error,
    on_device,
    painted_error,
    reset_growth,
    save_checkpoint,
)
from gsavatar.types import Branch, Gaussians, to_device
from gsavatar.unseen import PAINT_EVERY, Unseen

log = logging.getLogger("gsavatar")

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Stage:
    """A span of training: what learns in it and whether the cloud may grow."""

    name: str
    until: float  # share of all steps
    learns: tuple[str, ...]
    grows: bool
    full_size: bool = False
    """Crops of the full 512 px frame instead of whole frames at the preset's size."""
    paints: bool = False
    """The colours of what no frame shows are set instead of learned."""


SPLATS = ("means", "raw_quats", "log_scales", "raw_opacities", "sh")
STAGES = (
    Stage("still", 0.10, SPLATS, grows=False),
    Stage("motion", 0.70, (*SPLATS, "basis"), grows=True, paints=True),
    Stage("detail", 1.00, (*SPLATS, "basis"), grows=False, full_size=True, paints=True),
)

RATES = {
    "means": (3e-4, 4e-6), "raw_quats": (2e-3, 2e-4), "log_scales": (5e-3, 5e-4),
    "raw_opacities": (3e-2, 3e-3), "sh": (5e-3, 5e-4), "basis": (2e-3, 1e-4),
}  # fmt: skip
"""Learning rate of every parameter at the first and the last step; log-linear between."""

AVERAGE_FROM, AVERAGE_EVERY = 0.8, 3
"""The avatar is the mean of what the last fifth of the steps made, at every third of them."""
GROW_EVERY, ERROR_EVERY = 100, 5
MOUTH_EVERY = 2
CONTRAST_EVERY = 2
SURROUND_EVERY = 4
SIZE_EVERY = 4
REGULARISE_EVERY = 20


class Recipe(Protocol):
    """How one model trains; the loop, the checkpoints and the curve are the same for all."""

    batches: Batches

    def start(self) -> TrainState:
        """The state before the first step, on the CPU."""
        ...

    def avatar(self, state: TrainState) -> Avatar:
        """The avatar made of the state's parameters (shared, not copied)."""
        ...

    def step(self, state: TrainState) -> float:
        """One optimisation step; the loss as a number, NaN if the step was skipped."""
        ...

    def grow(self, state: TrainState) -> None:
        """Densifies if it is time, after ``state.step`` has advanced."""
        ...


@native.torch_on_one_thread()
def train(
    clip: Clip,
    settings: TrainSettings,
    folder: Path,
    *,
    progress: Progress | None = None,
    live: Callable[[Avatar, int], None] | None = None,
    recipe: Recipe | None = None,
    device: torch.device | str = "cpu",
) -> Avatar:
    """The trained avatar of a clip, on the CPU; continues from the newest checkpoint in ``folder``.

    Writes ``folder/checkpoints/*.safetensors`` and ``folder/train_log.jsonl``. With the same
    settings, seed and threads an interrupted run ends bit-equal on a CPU. Raises ``InputError``
    after three steps in a row with a loss that is not finite; the last checkpoint stays. ``recipe``
    trains another model than those that the settings can name; it must be of the same ``device``.
    """
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    recipe = recipe or _recipe(clip, settings, device)
    state = load_checkpoint(folder, asdict(settings)) or recipe.start()
    state = on_device(state, device)
    history = History(folder / "train_log.jsonl", state.step)
    while state.step < settings.steps:
        loss = recipe.step(state)
        state.step += 1
        recipe.grow(state)
        if state.step % settings.validate_every == 0 or state.step == settings.steps:
            psnr = validate(recipe.avatar(state), recipe.batches)
            history.add(
                step=state.step, loss=loss, psnr_val=psnr, gaussians=_count(state),
                skipped=state.skipped,
            )  # fmt: skip
        if state.step % settings.checkpoint_every == 0 or state.step == settings.steps:
            save_checkpoint(folder, state, asdict(settings))
        if live is not None:
            live(recipe.avatar(state), state.step)
        if progress is not None:
            progress(state.step, settings.steps)
    with torch.no_grad():
        return to_device(recipe.avatar(averaged(state)), "cpu")


def _recipe(clip: Clip, settings: TrainSettings, device: torch.device | str) -> Recipe:
    """The recipe of the model that the settings name."""
    if settings.model == "field":
        from gsavatar.train_fields import FieldRecipe

        return FieldRecipe(clip, settings, device)
    return LinearRecipe(clip, settings, device)


class LinearRecipe:
    """Our own model: motion linear in coefficients, three branches in one pass."""

    axes: ClassVar[dict[str, int]] = BRANCH_AXES

    def __init__(
        self, clip: Clip, settings: TrainSettings, device: torch.device | str = "cpu"
    ) -> None:
        self.clip, self.settings = clip, settings
        self.batches = Batches(clip, settings.size, device=device)
        self.surround, self.sway = Surround(clip), measure_sway(clip)
        self.tether = Tether(clip.track.face)
        self.unseen = Unseen(clip, self.surround.look)
        self.lpips = network_of(settings.weights.lpips, device)

    def start(self) -> TrainState:
        """``Recipe``."""
        return _start(self.clip, self.settings, self.sway)

    def avatar(self, state: TrainState) -> Avatar:
        """``Recipe``."""
        return current_avatar(state, self.clip.track.face.names)

    def step(self, state: TrainState) -> float:
        """``Recipe``."""
        loss = _step(
            state, self.avatar(state), self.batches, self.surround, self.sway, self.settings,
            self.lpips,
        )  # fmt: skip
        if state.step % PULL_EVERY == 0:
            means = state.adam.params[f"{Branch.FACE.name}.means"].detach()
            self.tether.pull(means, state.seeds[Branch.FACE.name])
            torso = state.adam.params[f"{Branch.TORSO.name}.means"].detach()
            view = self.clip.camera(0).world_to_cam[2, :3].to(torso)
            level(torso, state.around[Branch.TORSO.name], view)
        if stage_at(state.step / self.settings.steps).paints and state.step % PAINT_EVERY == 0:
            self.unseen.paint(self.avatar(state))
        if state.step >= AVERAGE_FROM * self.settings.steps and state.step % AVERAGE_EVERY == 0:
            state.average.add(state.adam.params)
        return loss

    def grow(self, state: TrainState) -> None:
        """``Recipe``."""
        if stage_at(state.step / self.settings.steps).grows and state.step % GROW_EVERY == 0:
            grow(state, self.settings, tuple(Branch), self.axes)


def stage_at(share: float) -> Stage:
    """The row of ``STAGES`` in force at a share of all steps."""
    return next((s for s in STAGES if share < s.until), STAGES[-1])


def learning_rates(share: float, stage: Stage) -> dict[str, float]:
    """Rate of every parameter kind that learns, at a share of all steps."""
    return {
        kind: math.exp((1 - share) * math.log(RATES[kind][0]) + share * math.log(RATES[kind][1]))
        for kind in stage.learns
    }


def _start(clip: Clip, settings: TrainSettings, sway: Sway | None = None) -> TrainState:
    generator = torch.Generator().manual_seed(settings.seed)
    avatar = seed_avatar(clip, seed_counts(settings), settings.sh_degree, generator, sway)
    params: dict[str, Tensor] = {}
    for branch in avatar.branches:
        tensors = {**branch.raw.parameters(), "basis": branch.linear.basis}
        for key in BRANCH_AXES:
            params[f"{branch.kind.name}.{key}"] = tensors[key].detach().clone().requires_grad_()
    state = TrainState(
        RowAdam(params),
        {b.kind.name: b.linear.seed for b in avatar.branches},
        {b.kind.name: b.head_weight for b in avatar.branches},
        generator,
    )
    if settings.refine_poses:
        state.poses = PoseCorrections(PoseCorrections.count(clip.time_s))
    reset_growth(state)
    return state


def seed_counts(settings: TrainSettings) -> SeedCounts:
    """How many Gaussians training starts with: the settings' own, within their largest number."""
    counts = settings.face_init, settings.mouth_init, settings.torso_init
    share = min(1.0, settings.gaussians_max / sum(counts))
    return SeedCounts(*(int(share * count) for count in counts))


def current_avatar(state: TrainState, names: tuple[str, ...]) -> Avatar:
    """The avatar made of the state's parameters (shared, not copied)."""
    branches = []
    for kind in Branch:
        p = {key: state.adam.params[f"{kind.name}.{key}"] for key in BRANCH_AXES}
        basis = p.pop("basis")
        motion = LinearMotion(basis, state.seeds[kind.name])
        branches.append(
            AvatarBranch(kind, RawGaussians(**p), motion, state.head_weights[kind.name])
        )
    return Avatar(names, tuple(branches))


def _step(
    state: TrainState, avatar: Avatar, batches: Batches, surround: Surround, sway: Sway,
    settings: TrainSettings, lpips: Any | None,
) -> float:  # fmt: skip
    """One optimisation step of the state's ``avatar``; the loss, NaN if the step was skipped."""
    share = state.step / settings.steps
    stage = stage_at(share)
    sample = batches.draw(state.generator, full_size=stage.full_size)
    since_start = sample.frame.time_s - float(batches.clip.time_s[0])
    correction = None if state.poses is None else state.poses.at(since_start)
    drive = sample.frame.drive if correction is None else correction.applied(sample.frame.drive)
    gaussians = avatar(drive)
    probe = _probe(gaussians, avatar, sample, sway)
    rendering = render(gaussians, sample.frame.camera, sample.background, screen_probe=probe)
    terms = frame_terms(rendering, sample.frame.image, sample.masks)
    if state.step % MOUTH_EVERY == 0 and sample.lip_box is not None:
        terms |= _mouth_terms(gaussians, avatar, sample, sample.lip_box)
    if state.step % CONTRAST_EVERY == 1:
        terms |= feature_terms(
            rendering, sample.frame.image, sample.frame.regions, sample.feature_box,
            settings.weights, lpips,
        )  # fmt: skip
    if state.step % SURROUND_EVERY == 1:
        view = surround.draw(to_device(sample.frame.drive, "cpu"), state.generator)
        view = to_device(view, batches.device)
        terms |= surround_terms(render(gaussians, view.camera, view.color.new_zeros(3)), view)
    if state.step % SIZE_EVERY == 2:
        terms["size"] = SIZE_EVERY * size_term(avatar.branches)
        if settings.weights.opacity > 0:
            terms["opacity"] = SIZE_EVERY * opacity_term(avatar.branches)
    painted = None
    if stage.grows and state.step % ERROR_EVERY == 0:
        wrong = (rendering.rgb - sample.frame.image).abs() * sample.masks.color_weight
        painted = painted_error(gaussians, rendering, wrong.mean(-1))
    loss = total(terms, settings.weights) * sample.frame.weight
    if not descend(state, loss):
        return float("nan")
    measure(state, avatar, probe)
    if painted is not None:
        measure_error(state, avatar, painted)
    if state.poses is not None and correction is not None:
        state.poses.learn(correction, share)
    by_kind = learning_rates(share, stage)
    kinds = {name: name.split(".")[1] for name in state.adam.params}
    state.adam.step({name: by_kind[kind] for name, kind in kinds.items() if kind in by_kind})
    if "basis" in by_kind and state.step % REGULARISE_EVERY == 0:
        for branch in avatar.branches:
            if not isinstance(branch.motion, LinearMotion):
                continue  # a recipe with another motion knows what holds it back
            around = state.around[branch.kind.name]
            pull, blend = settings.basis_pull, settings.basis_blend
            regularise(branch.motion, around, REGULARISE_EVERY * pull, REGULARISE_EVERY * blend)
    return float(loss.detach())


def _probe(gaussians: Gaussians, avatar: Avatar, sample: Sample, sway: Sway) -> Tensor:
    """Where to see the Gaussians, in pixels [N, 2] beside where they are: the torso, where it was
    in this frame. Its gradient is that by the screen position."""
    probe = torch.zeros(len(avatar), 2, device=gaussians.means.device)
    start = 0
    for branch in avatar.branches:
        end = start + len(branch.raw)
        if branch.kind == Branch.TORSO:
            means, weight = gaussians.means[start:end].detach(), branch.head_weight
            probe[start:end] = sway.pixels(sample.row, means, weight, sample.frame.camera)
        start = end
    return probe.requires_grad_()


def _mouth_terms(
    gaussians: Gaussians, avatar: Avatar, sample: Sample, box: tuple[int, int, int, int]
) -> dict[str, Tensor]:
    """Terms of the mouth branch of a posed ``avatar`` rendered alone on the lip crop."""
    before = sum(len(b.raw) for b in avatar.branches if b.kind < Branch.MOUTH)
    rows = slice(before, before + len(avatar.only(Branch.MOUTH)))
    alone = Gaussians(
        gaussians.means[rows], gaussians.quats[rows], gaussians.scales[rows],
        gaussians.opacities[rows], gaussians.sh[rows], gaussians.branch[rows],
    )  # fmt: skip
    top, left, bottom, right = box
    black = gaussians.means.new_zeros(3)
    rendering = render(alone, crop_camera(sample.frame.camera, box), black)
    image, regions = (p[top:bottom, left:right] for p in (sample.frame.image, sample.frame.regions))
    return mouth_terms(rendering, image, regions)


def grow(
    state: TrainState,
    settings: TrainSettings,
    kinds: tuple[Branch, ...],
    axes: dict[str, int] = BRANCH_AXES,
) -> None:
    """One round of pruning and growing in some branches, within the budget of each."""
    counts = seed_counts(settings)
    starts = {Branch.FACE: counts.face, Branch.MOUTH: counts.mouth, Branch.TORSO: counts.torso}
    scale = settings.gaussians_max / sum(starts.values())
    for kind in kinds:
        name, start = kind.name, starts[kind]
        opacities = state.adam.params[f"{name}.raw_opacities"].detach().sigmoid()
        scores = state.errors[name].mean(), state.meters[name].mean()
        change = densify.plan_round(scores, opacities, budget=int(scale * start))
        rows = torch.cat((change.kept, change.parents))
        densify.apply_round(state.adam, name, change, state.generator, axes)
        if name in state.seeds:
            state.seeds[name] = state.seeds[name][:, rows]
        state.head_weights[name] = state.head_weights[name][rows]
    reset_growth(state)


def _count(state: TrainState) -> int:
    return sum(len(weights) for weights in state.head_weights.values())


@torch.no_grad()
def validate(avatar: Avatar, batches: Batches) -> float:
    """Mean PSNR in dB on the head over the held-out validation frames of the training part."""
    values = []
    for sample in batches.validation():
        frame = sample.frame
        rendering = render(avatar(frame.drive), frame.camera, sample.background)
        squared = (rendering.rgb.clamp(0, 1) - frame.image).square().mean(-1)
        mse = (squared * sample.masks.head).sum() / sample.masks.head.sum().clamp_min(1.0)
        values.append(-10.0 * torch.log10(mse.clamp_min(1e-6)))
    return float(torch.stack(values).mean()) if values else float("nan")
