"""The state of a training run and its checkpoints: complete, atomic, without pickle."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gsavatar.densify import GradientMeter
from gsavatar.errors import InputError
from gsavatar.frames import write_bytes_atomic
from gsavatar.optimizer import RowAdam
from gsavatar.types import Branch

log = logging.getLogger("gsavatar")


@dataclass
class TrainState:
    """The only mutable object of training."""

    adam: RowAdam
    seeds: dict[str, Tensor]  # per branch, [K, N, 3]
    head_weights: dict[str, Tensor]  # per branch, [N]
    generator: torch.Generator
    step: int = 0
    skipped: int = 0
    skipped_in_row: int = 0
    meters: dict[str, GradientMeter] = field(default_factory=dict)
    around: dict[str, Tensor] = field(default_factory=dict)


def save_checkpoint(folder: Path, state: TrainState, settings: dict[str, Any]) -> None:
    """Writes the whole state atomically and keeps the two newest checkpoints."""
    from safetensors.torch import save

    tensors = state.adam.state()
    for kind in Branch:
        tensors[f"seed.{kind.name}"] = state.seeds[kind.name]
        tensors[f"head_weight.{kind.name}"] = state.head_weights[kind.name]
        tensors[f"meter_sum.{kind.name}"] = state.meters[kind.name].sum
        tensors[f"meter_seen.{kind.name}"] = state.meters[kind.name].seen
        tensors[f"around.{kind.name}"] = state.around[kind.name]
    tensors["generator"] = state.generator.get_state()
    info = {
        "step": state.step, "skipped": state.skipped, "skipped_in_row": state.skipped_in_row,
        "names": list(state.adam.params), "settings": settings,
    }  # fmt: skip
    path = folder / "checkpoints" / f"step_{state.step:07d}.safetensors"
    data = save({k: v.contiguous() for k, v in tensors.items()}, {"info": json.dumps(info)})
    write_bytes_atomic(path, data)
    for old in sorted(path.parent.glob("step_*.safetensors"))[:-2]:
        old.unlink()


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
        if info["settings"] != json.loads(json.dumps(settings)):
            raise InputError(
                f"{path}: made with other training settings than this run's; use the settings in "
                "config.toml or another --out."
            )
        generator = torch.Generator()
        generator.set_state(t["generator"])
        state = TrainState(
            RowAdam.load(t, tuple(info["names"])),
            {k.name: t[f"seed.{k.name}"] for k in Branch},
            {k.name: t[f"head_weight.{k.name}"] for k in Branch},
            generator, info["step"], info["skipped"], info["skipped_in_row"],
        )  # fmt: skip
        for kind in Branch:
            meter = GradientMeter(0)
            meter.sum, meter.seen = t[f"meter_sum.{kind.name}"], t[f"meter_seen.{kind.name}"]
            state.meters[kind.name] = meter
            state.around[kind.name] = t[f"around.{kind.name}"]
        return state
    return None
