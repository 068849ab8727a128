"""The state of a training run and its checkpoints: complete, atomic, without pickle."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gsavatar.avatar import Avatar
from gsavatar.config import TrainSettings, differences, flat
from gsavatar.densify import Meter
from gsavatar.errors import InputError
from gsavatar.frames import write_tensors_atomic
from gsavatar.gaussians import neighbours
from gsavatar.optimizer import RowAdam
from gsavatar.pose_refinement import PoseCorrections
from gsavatar.types import Branch, Gaussians, Rendering

log = logging.getLogger("gsavatar")

FORMAT = 5
"""Of checkpoints; raised when what training does to the same settings changes."""
NAN_LIMIT = 3
NEIGHBOURS = 4


@dataclass
class Average:
    """Parameters summed over steps: their mean lies where single steps only circle (Polyak and
    Juditsky 1992)."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    count: int = 0

    @torch.no_grad()
    def add(self, params: dict[str, Tensor]) -> None:
        """Takes the parameters of one step; their rows may not have changed since the first."""
        self.count += 1
        for name, value in params.items():
            if name in self.sums:
                self.sums[name] += value
            else:
                self.sums[name] = value.detach().clone()


@dataclass
class TrainState:
    """The only mutable object of training."""

    adam: RowAdam
    seeds: dict[str, Tensor]  # per branch with a linear motion, [K, N, 3]
    head_weights: dict[str, Tensor]  # per branch, [N]
    generator: torch.Generator
    step: int = 0
    skipped: int = 0
    skipped_in_row: int = 0
    meters: dict[str, Meter] = field(default_factory=dict)  # gradients by the screen position
    errors: dict[str, Meter] = field(default_factory=dict)  # painted; zeros in a field's recipe
    around: dict[str, Tensor] = field(default_factory=dict)
    poses: PoseCorrections | None = None
    average: Average = field(default_factory=Average)


def averaged(state: TrainState) -> TrainState:
    """The state with the mean of its parameters, if any were taken; without Adam's moments."""
    if state.average.count == 0:
        return state
    means = {name: total / state.average.count for name, total in state.average.sums.items()}
    return replace(state, adam=RowAdam({n: v.requires_grad_() for n, v in means.items()}))


def on_device(state: TrainState, device: torch.device | str) -> TrainState:
    """The state with everything on ``device`` but the generator and the poses' corrections, which
    stay on the CPU; the same state if it is there already."""
    if all(p.device.type == torch.device(device).type for p in state.adam.params.values()):
        return state
    tensors = {key: value.to(device) for key, value in state.adam.state().items()}
    for table in (state.seeds, state.head_weights, state.around, state.average.sums):
        table.update({name: value.to(device) for name, value in table.items()})
    for meter in (*state.meters.values(), *state.errors.values()):
        meter.sum, meter.seen = meter.sum.to(device), meter.seen.to(device)
    return replace(state, adam=RowAdam.load(tensors, tuple(state.adam.params)))


def reset_growth(state: TrainState) -> None:
    """New meters and neighbourhoods after the rows changed."""
    for kind in Branch:
        means = state.adam.params[f"{kind.name}.means"].detach()
        state.meters[kind.name] = Meter(len(means), means.device)
        state.errors[kind.name] = Meter(len(means), means.device)
        state.around[kind.name] = neighbours(means, NEIGHBOURS)[1]


def descend(state: TrainState, loss: Tensor) -> bool:
    """Fills the gradients of a loss; False, and the step is counted as skipped, if the loss or a
    gradient is not finite. Raises ``InputError`` at the third such step in a row."""
    state.adam.zero_grad()
    if torch.isfinite(loss):
        loss.backward()  # type: ignore[no-untyped-call]
    if _finite_gradients(state.adam):
        state.skipped_in_row = 0
        return True
    state.skipped += 1
    state.skipped_in_row += 1
    log.warning("step %d skipped: the loss or a gradient is not finite", state.step)
    if state.skipped_in_row >= NAN_LIMIT:
        raise InputError(
            f"training stopped at step {state.step}: {NAN_LIMIT} steps in a row without a finite "
            "loss; the last checkpoint is kept, continue with --resume or another --seed."
        )
    return False


def _finite_gradients(adam: RowAdam) -> bool:
    """Whether there are gradients and all are finite.

    Those of a basis are products of the coefficients and one gradient of the offsets, so the first
    coefficient's tell for all; a look at the others would take a twentieth of a step.
    """
    grads = [
        p.grad[0] if name.endswith(".basis") else p.grad
        for name, p in adam.params.items() if p.grad is not None
    ]  # fmt: skip
    return bool(grads) and bool(torch.stack([g.sum() for g in grads]).isfinite().all())


def measure(state: TrainState, avatar: Avatar, probe: Tensor) -> None:
    """Adds the screen gradients of this step to the meter of every branch of ``avatar``."""
    assert probe.grad is not None
    _add(state.meters, avatar, probe.grad.norm(dim=-1))


def painted_error(gaussians: Gaussians, rendering: Rendering, error: Tensor) -> Tensor:
    """The ``error`` [H, W] that every one of ``gaussians`` [N] painted in a picture of them, by its
    share in each pixel: the gradient of the picture by its colour. (Of black, whose colour is cut
    off, nothing comes.)"""
    by_channel = error.detach()[..., None].expand_as(rendering.rgb)
    (share,) = torch.autograd.grad(rendering.rgb, gaussians.sh, by_channel, retain_graph=True)
    return share[:, 0].sum(-1).clamp_min(0.0)


def measure_error(state: TrainState, avatar: Avatar, painted: Tensor) -> None:
    """Adds what the Gaussians of ``avatar`` painted wrong [N] to the meter of every branch."""
    _add(state.errors, avatar, painted)


def _add(meters: dict[str, Meter], avatar: Avatar, values: Tensor) -> None:
    """Values [N] of all Gaussians of ``avatar`` to the meters of its branches."""
    start = 0
    for branch in avatar.branches:
        end = start + len(branch.raw)
        meters[branch.kind.name].add(values[start:end])
        start = end


def save_checkpoint(folder: Path, state: TrainState, settings: dict[str, Any]) -> None:
    """Writes the whole state atomically and keeps the two newest checkpoints."""
    tensors = state.adam.state()
    for kind in Branch:
        if kind.name in state.seeds:
            tensors[f"seed.{kind.name}"] = state.seeds[kind.name]
        tensors[f"head_weight.{kind.name}"] = state.head_weights[kind.name]
        for label, meters in (("meter", state.meters), ("error", state.errors)):
            tensors[f"{label}_sum.{kind.name}"] = meters[kind.name].sum
            tensors[f"{label}_seen.{kind.name}"] = meters[kind.name].seen
        tensors[f"around.{kind.name}"] = state.around[kind.name]
    if state.poses is not None:
        tensors |= {f"poses.{key}": value for key, value in state.poses.state().items()}
    tensors |= {f"average.{name}": value for name, value in state.average.sums.items()}
    tensors["generator"] = state.generator.get_state()
    info = {
        "format": FORMAT,
        "step": state.step, "skipped": state.skipped, "skipped_in_row": state.skipped_in_row,
        "names": list(state.adam.params), "averaged": state.average.count, "settings": settings,
    }  # fmt: skip
    path = folder / "checkpoints" / f"step_{state.step:07d}.safetensors"
    here = {key: value.cpu() for key, value in tensors.items()}
    write_tensors_atomic(path, here, json.dumps(info))
    for old in sorted(path.parent.glob("step_*.safetensors"))[:-2]:
        old.unlink()


def newest_step(folder: Path) -> int:
    """The step of a run's newest checkpoint, by its name; 0 if none was kept."""
    names = [path.stem for path in (folder / "checkpoints").glob("step_*.safetensors")]
    return max((int(name.split("_")[1]) for name in names), default=0)


def load_checkpoint(folder: Path, settings: dict[str, Any]) -> TrainState | None:
    """The newest readable checkpoint's state, None if there is none.

    Raises ``InputError`` if it was made with other settings.
    """
    from safetensors import SafetensorError, safe_open

    for path in sorted((folder / "checkpoints").glob("step_*.safetensors"), reverse=True):
        try:
            with safe_open(path, framework="pt") as file:
                info = json.loads(file.metadata()["info"])
                t = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError, KeyError):
            log.warning("%s is damaged; trying the one before", path)
            continue
        if not all(bool(v.isfinite().all()) for v in t.values() if v.is_floating_point()):
            log.warning("%s holds numbers that are not finite; trying the one before", path)
            continue
        if info.get("format") != FORMAT:
            raise InputError(
                f"{path}: made by another version of gsavatar, which trained differently; fit "
                "again into another --out."
            )
        # What a version did not know yet it did as the default does.
        before = flat({"train": asdict(TrainSettings())}) | flat({"train": info["settings"]})
        wanted = {"train": json.loads(json.dumps(settings))}
        said = differences(before, wanted, sorted(before | flat(wanted)))
        if said:
            raise InputError(
                f"{path}: made with other training settings, {said}; put those into config.toml or "
                "choose another --out."
            )
        generator = torch.Generator()
        generator.set_state(t["generator"])
        state = TrainState(
            RowAdam.load(t, tuple(info["names"])),
            {k.name: t[f"seed.{k.name}"] for k in Branch if f"seed.{k.name}" in t},
            {k.name: t[f"head_weight.{k.name}"] for k in Branch},
            generator, info["step"], info["skipped"], info["skipped_in_row"],
        )  # fmt: skip
        sums = {n: t[f"average.{n}"] for n in info["names"] if f"average.{n}" in t}
        state.average = Average(sums, info.get("averaged", 0))
        if "poses.twists" in t:
            state.poses = PoseCorrections.restored(
                {key: t[f"poses.{key}"] for key in PoseCorrections.NAMES}
            )
        for kind in Branch:
            for label, meters in (("meter", state.meters), ("error", state.errors)):
                meters[kind.name] = meter = Meter(0)
                meter.sum, meter.seen = (t[f"{label}_{k}.{kind.name}"] for k in ("sum", "seen"))
            state.around[kind.name] = t[f"around.{kind.name}"]
        return state
    return None
