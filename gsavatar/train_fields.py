"""Training of the TalkingGaussian baseline: mouth, face and torso alone, then all together.

The schedule is counted in the paper's iterations, and ``TrainSettings.steps`` scales all of it.
Each branch is drawn over a random colour, never a fixed one: what must be transparent then has no
colour that could be mistaken for the subject's. ``docs/model.md`` lists what else was changed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gsavatar import ops
from gsavatar.apertures import ApertureDraws, lip_box
from gsavatar.avatar import Avatar, AvatarBranch
from gsavatar.batches import Batches, Sample
from gsavatar.clip import Clip
from gsavatar.config import TrainSettings
from gsavatar.densify import BRANCH_AXES
from gsavatar.errors import InputError
from gsavatar.fields import FieldMotion, field_box, field_of, new_field
from gsavatar.gaussians import RawGaussians
from gsavatar.hearing import learn_hearing
from gsavatar.losses import mean_over, size_term
from gsavatar.motion import LinearMotion, regularise
from gsavatar.optimizer import RowAdam
from gsavatar.render import render
from gsavatar.seeding import seed_avatar
from gsavatar.train import GROW_EVERY, RATES, REGULARISE_EVERY, SPLATS, grow, seed_counts
from gsavatar.train_state import TrainState, descend, measure, reset_growth
from gsavatar.types import Branch, Region, Rendering, to_device


@dataclass(frozen=True)
class FieldStage:
    """A span of training: whose it is, how long, and what learns."""

    name: str
    kind: Branch | None  # drawn alone; None for all together
    iterations: int  # of the paper
    learns: tuple[str, ...]
    wide_open: bool = False
    """Whether only the frames with the widest mouths are drawn."""
    grows: bool = False
    polish: float = 0.0
    """Weight of the gradient term, which stands where the paper has LPIPS."""


STAGES = (
    FieldStage("mouth still", Branch.MOUTH, 3_000, SPLATS, wide_open=True),
    FieldStage("mouth motion", Branch.MOUTH, 46_000, (*SPLATS, "field"), grows=True),
    FieldStage("mouth polish", Branch.MOUTH, 1_000, ("sh",), polish=0.5),
    FieldStage("face still", Branch.FACE, 3_000, SPLATS),
    FieldStage("face motion", Branch.FACE, 44_000, (*SPLATS, "field"), grows=True),
    FieldStage("face polish", Branch.FACE, 3_000, (*SPLATS, "field"), polish=0.2),
    FieldStage("torso", Branch.TORSO, 20_000, (*SPLATS, "basis"), grows=True),
    FieldStage("fuse", None, 10_000, ("sh", "raw_opacities"), polish=0.5),
)
ITERATIONS = sum(stage.iterations for stage in STAGES)
"""The paper's 110,000 and the torso's; ``TrainSettings.steps`` over this is the factor."""

FIELD_RATES = {"grid": 5e-3, "weigh": 2.5e-3}
FIELD_RATE = 5e-4
"""The paper's learning rates; divided by the root of the factor, and falling to a tenth."""
MAX_HASTE = 5.0
"""Most that a short schedule multiplies them by."""
STRUCTURE, ALPHA, OFFSETS, ATTENTION, SHARE = 0.2, 1e-3, 1e-5, 1e-4, 0.05
"""Weights of 1 - SSIM, of opacity inside and outside the mask, of the offsets' size, of attention
where there is nothing to heed, and, in fusion, of a branch where another belongs."""
HEED_EVERY = 4
"""Steps between those on which the two small terms about offsets and attention are taken."""
FULL_SIZE_FROM = 0.6
"""Share of a branch's motion after which crops of the full frame take the place of small frames."""


class FieldRecipe:
    """``train.Recipe`` of the baseline. Raises ``InputError`` for a silent clip."""

    def __init__(
        self, clip: Clip, settings: TrainSettings, device: torch.device | str = "cpu"
    ) -> None:
        if clip.features is None:
            raise InputError(
                "the preset talkinggaussian learns motion from sound and this video has none that "
                "can be used; fit it with --preset preview."
            )
        self.clip, self.settings = clip, settings
        self.names = clip.track.face.names
        self.hearing = learn_hearing(clip.features, clip.time_s[clip.train_rows].numpy())
        self.box = field_box(clip.track.face)
        self.batches = Batches(clip, settings.size, self.hearing, device)
        self.draws = ApertureDraws(clip, self.batches.rows)
        self.factor = settings.steps / ITERATIONS

    def start(self) -> TrainState:
        """``Recipe``: seeds on the fitted mesh, fields that do not move anything yet."""
        settings = self.settings
        generator = torch.Generator().manual_seed(settings.seed)
        avatar = seed_avatar(self.clip, seed_counts(settings), settings.sh_degree, generator)
        params: dict[str, Tensor] = {}
        for branch in avatar.branches:
            tensors = branch.raw.parameters()
            if branch.kind == Branch.TORSO:
                tensors["basis"] = branch.linear.basis
            else:
                field = new_field(branch.kind, self.clip.track.face, self.hearing, generator)
                tensors |= {f"field.{key}": value for key, value in field.parameters.items()}
            for key, value in tensors.items():
                params[f"{branch.kind.name}.{key}"] = value.detach().clone().requires_grad_()
        torso = avatar.branches[int(Branch.TORSO)]
        state = TrainState(
            RowAdam(params), {torso.kind.name: torso.linear.seed},
            {b.kind.name: b.head_weight for b in avatar.branches}, generator,
        )  # fmt: skip
        reset_growth(state)
        return state

    def avatar(self, state: TrainState) -> Avatar:
        """``Recipe``."""
        return Avatar(self.names, tuple(self._branch(state, k) for k in Branch), self.hearing)

    def _branch(self, state: TrainState, kind: Branch) -> AvatarBranch:
        prefix, params = f"{kind.name}.", state.adam.params
        raw = RawGaussians(**{k: params[prefix + k] for k in BRANCH_AXES if k != "basis"})
        weights = state.head_weights[kind.name]
        if kind == Branch.TORSO:
            motion = LinearMotion(params[f"{prefix}basis"], state.seeds[kind.name])
            return AvatarBranch(kind, raw, motion, weights)
        start = f"{prefix}field."
        own = {k.removeprefix(start): v for k, v in params.items() if k.startswith(start)}
        field = field_of(kind, own, *self.box, self.names, self.hearing)
        return AvatarBranch(kind, raw, to_device(field, weights.device), weights)

    def step(self, state: TrainState) -> float:
        """``Recipe``."""
        stage, share = stage_at(state.step / self.settings.steps)
        avatar = self.avatar(state)
        if stage.kind is not None:
            avatar = avatar.only(stage.kind)
        probe = torch.zeros(len(avatar), 2, device=self.batches.device, requires_grad=True)
        if stage.kind == Branch.MOUTH:
            terms, weight = self._mouth(state, stage, share, avatar, probe)
        elif stage.kind == Branch.FACE:
            terms, weight = self._face(state, stage, share, avatar, probe)
        else:
            terms, weight = self._whole(state, stage, avatar, probe)
        terms.append(size_term(avatar.branches))
        loss = torch.stack(terms).sum() * weight
        if not descend(state, loss):
            return float("nan")
        measure(state, avatar, probe)
        state.adam.step(self._rates(state, stage, share))
        if stage.kind == Branch.TORSO and state.step % REGULARISE_EVERY == 0:
            pull, blend = self.settings.basis_pull, self.settings.basis_blend
            around = state.around[Branch.TORSO.name]
            regularise(avatar.branches[0].linear, around, REGULARISE_EVERY * pull,
                       REGULARISE_EVERY * blend)  # fmt: skip
        return float(loss.detach())

    def grow(self, state: TrainState) -> None:
        """``Recipe``: only the branch in training grows."""
        stage, share = stage_at((state.step - 1) / self.settings.steps)
        if stage.grows and stage.kind is not None and share < 0.9 and state.step % GROW_EVERY == 0:
            grow(state, self.settings, (stage.kind,))

    def _rates(self, state: TrainState, stage: FieldStage, share: float) -> dict[str, float]:
        """Rates of what learns: each branch runs through the tables from start to end."""
        rates = {}
        for name in state.adam.params:
            kind, key = name.split(".")[:2]
            if stage.kind is None:
                learns = kind == Branch.TORSO.name or key in stage.learns
            else:
                learns = kind == stage.kind.name and key in stage.learns
            if not learns:
                continue
            if key == "field":
                rate = FIELD_RATES.get(name.split(".")[2], FIELD_RATE)
                rates[name] = rate * min(self.factor**-0.5, MAX_HASTE) * 0.1**share
            else:
                first, last = RATES[key]
                rates[name] = first ** (1.0 - share) * last**share
        return rates

    def _color(self, state: TrainState) -> Tensor:
        """A random colour [3] to draw over."""
        return torch.rand(3, generator=state.generator).to(self.batches.device)

    # The stages' pictures. Each gives its terms, weighted, and what the frame counts.

    def _mouth(
        self, state: TrainState, stage: FieldStage, share: float, avatar: Avatar, probe: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        """The inside of the mouth on the lip crop; the lips themselves say nothing."""
        if stage.wide_open:
            row = self.draws.wide_mouth(state.generator)
        else:
            row = self.draws.mouth(state.step, share, state.generator)
        sample = self.batches.box_at(row, lip_box(self.clip, row))
        inside = (sample.frame.regions == int(Region.INNER_MOUTH)).float()[..., None]
        lips = (sample.frame.regions == int(Region.LIPS)).float()[..., None]
        color = self._color(state)
        rendering = render(
            avatar(sample.frame.drive), sample.frame.camera, color, screen_probe=probe
        )
        target = torch.lerp(color.expand_as(sample.frame.image), sample.frame.image, inside)
        drawn = torch.lerp(rendering.rgb, color.expand_as(target), lips)
        terms = [
            *_color_terms(drawn, target, stage.polish),
            ALPHA * _alpha_term(rendering, sample.masks.lips_outline),
        ]
        return terms, sample.frame.weight

    def _face(
        self, state: TrainState, stage: FieldStage, share: float, avatar: Avatar, probe: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        """Head without the inside of the mouth."""
        row = self.draws.face(state.step, share, state.generator)
        full = share > FULL_SIZE_FROM
        sample = self.batches.at(row, state.generator, full_size=full)
        mask = sample.masks.head - sample.masks.inner_mouth
        color = self._color(state)
        heeds = None
        field = avatar.branches[0].motion
        if isinstance(field, FieldMotion) and state.step % HEED_EVERY == 0:
            code = field.position_code(avatar.branches[0].raw.means)
            heeds = torch.stack([a.norm(dim=-1) for a in field.attention(code)], dim=-1)
        gaussians = avatar(sample.frame.drive)
        rendering = render(
            gaussians, sample.frame.camera, color, screen_probe=probe, extra_channels=heeds
        )
        target = torch.lerp(
            color.expand_as(sample.frame.image), sample.frame.image, mask[..., None]
        )
        terms = [
            *_color_terms(rendering.rgb, target, stage.polish), ALPHA * _alpha_term(rendering, mask)
        ]  # fmt: skip
        if rendering.extras is not None:
            terms.append(OFFSETS * HEED_EVERY * _offset_term(avatar, sample))
            hair = (sample.frame.regions == int(Region.HAIR)).float()
            to_sound, to_controls = rendering.extras.unbind(-1)
            idle = mean_over(to_sound + to_controls, hair)
            idle = idle + mean_over(to_controls, sample.masks.lips_outline)
            terms.append(ATTENTION * HEED_EVERY * idle)
        return terms, sample.frame.weight

    def _whole(
        self, state: TrainState, stage: FieldStage, avatar: Avatar, probe: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        """Everything over the plate, or the torso alone where the head does not cover it."""
        sample = self.batches.draw(state.generator, full_size=stage.kind is None)
        frame, masks = sample.frame, sample.masks
        rendering = render(avatar(frame.drive), frame.camera, sample.background, screen_probe=probe)
        if stage.kind == Branch.TORSO:
            shown = torch.lerp(rendering.rgb, frame.image, masks.head[..., None])
            worn = (frame.regions == int(Region.TORSO)) | (frame.regions == int(Region.NECK))
            covered = SHARE * _alpha_term(rendering, worn.float())
            return [*_color_terms(shown, frame.image, stage.polish), covered], frame.weight
        part = rendering.branch_alpha
        misplaced = (
            mean_over(part[..., Branch.FACE], masks.inner_mouth)
            + mean_over(part[..., Branch.MOUTH], 1.0 - masks.lips_outline)
            + mean_over(part[..., Branch.TORSO], masks.head)
        )
        terms = [*_color_terms(rendering.rgb, frame.image, stage.polish), SHARE * misplaced]
        return terms, frame.weight


def stage_at(share: float) -> tuple[FieldStage, float]:
    """The stage in force at a share of all steps, and how far its branch is on its way, 0-1."""
    at = share * ITERATIONS
    start = 0
    for stage in STAGES:
        if at < start + stage.iterations or stage is STAGES[-1]:
            break
        start += stage.iterations
    own = [s for s in STAGES if s.kind == stage.kind]
    before = sum(s.iterations for s in own[: own.index(stage)])
    done = before + at - start
    return stage, min(done / sum(s.iterations for s in own), 1.0)


def _color_terms(drawn: Tensor, target: Tensor, polish: float) -> list[Tensor]:
    """L1 and 1 - SSIM of pictures [H, W, 3], and the gradient term where it is asked for."""
    terms = [(drawn - target).abs().mean(), STRUCTURE * (1.0 - ops.ssim(drawn, target, None))]
    if polish > 0.0:
        error = drawn - target
        slopes = error.diff(dim=0).abs().mean() + error.diff(dim=1).abs().mean()
        terms.append(polish * slopes)
    return terms


def _alpha_term(rendering: Rendering, mask: Tensor) -> Tensor:
    """Transparency inside a mask [H, W] and opacity outside it, means over the picture."""
    alpha = rendering.alpha[..., 0]
    return ((1.0 - alpha) * mask + alpha * (1.0 - mask)).mean()


def _offset_term(avatar: Avatar, sample: Sample) -> Tensor:
    """Mean size of the offsets, metres, radians and log units alike, as the paper adds them."""
    branch = avatar.branches[0]
    moved = branch.motion.offsets(branch.raw.means, sample.frame.drive)
    parts = (moved.means, moved.rotvecs, moved.log_scales)
    return torch.stack([part.abs().mean() for part in parts]).sum()
