"""Settings of a run: presets are TOML files, every knob a field of a frozen dataclass."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from gsavatar.errors import InputError
from gsavatar.frames import write_text_atomic
from gsavatar.losses import LossWeights

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PRESETS = ("preview", "standard", "quality", "fewshot")

T = TypeVar("T")


@dataclass(frozen=True)
class TrainSettings:
    """What training does; the stages' shares and learning rates are tables in ``train``."""

    size: int = 256
    """Side of the training pictures in pixels."""
    steps: int = 4000
    gaussians_max: int = 14_000
    """Largest number of Gaussians, all branches together."""
    face_init: int = 6000
    mouth_init: int = 1500
    torso_init: int = 2500
    sh_degree: int = 0
    """Degree of the view-dependent colour, 0 or 1."""
    checkpoint_every: int = 500
    validate_every: int = 500
    seed: int = 0
    weights: LossWeights = field(default_factory=LossWeights)


@dataclass(frozen=True)
class Settings:
    """A whole run."""

    preset: str = "preview"
    train: TrainSettings = field(default_factory=TrainSettings)


def load_preset(name: str) -> Settings:
    """The settings of a preset. Raises ``InputError`` for a name that does not exist."""
    if name not in PRESETS:
        raise InputError(f"--preset {name}: no such preset; choose one of {', '.join(PRESETS)}.")
    text = resources.files("gsavatar.configs").joinpath(f"{name}.toml").read_text()
    return from_toml(text, f"preset {name}")


def load_settings(path: Path) -> Settings:
    """The settings saved in a run. Raises ``InputError`` if they cannot be read."""
    try:
        return from_toml(path.read_text(), str(path))
    except OSError as error:
        raise InputError(f"{path}: the run's settings cannot be read ({error.strerror}).") from None


def save_settings(path: Path, settings: Settings) -> None:
    """Writes settings as TOML, one table per component."""
    write_text_atomic(path, to_toml(asdict(settings)))


def from_toml(text: str, source: str) -> Settings:
    """Settings from TOML text; absent keys keep their defaults, unknown ones are refused."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{source}: not valid TOML ({error}); mend or delete it.") from None
    return _filled(Settings(), table, source)


def _filled(default: T, table: dict[str, Any], source: str) -> T:
    """``default`` with the table's values; recursion follows nested dataclasses."""
    known = {f.name: f for f in fields(default)}  # type: ignore[arg-type]
    changes: dict[str, Any] = {}
    for key, value in table.items():
        if key not in known:
            raise InputError(f"{source}: unknown setting {key!r}; known are {', '.join(known)}.")
        current = getattr(default, key)
        if is_dataclass(current):
            if not isinstance(value, dict):
                raise InputError(f"{source}: {key} must be a table, got {value!r}.")
            changes[key] = _filled(current, value, f"{source} [{key}]")
            continue
        accepted = (int, float) if isinstance(current, float) else type(current)
        if not isinstance(value, accepted) or isinstance(value, bool) != isinstance(current, bool):
            raise InputError(
                f"{source}: {key} must be of type {type(current).__name__}, got {value!r}."
            )
        changes[key] = type(current)(value)
    return replace(default, **changes)  # type: ignore[type-var]


def to_toml(values: dict[str, Any], prefix: str = "") -> str:
    """TOML text of nested plain values."""
    lines = [f"{k} = {_toml_value(v)}" for k, v in values.items() if not isinstance(v, dict)]
    parts = ["\n".join(lines) + "\n"] if lines else []
    for key, value in values.items():
        if isinstance(value, dict):
            name = f"{prefix}{key}"
            parts.append(f"[{name}]\n" + to_toml(value, f"{name}."))
    return "\n".join(parts)


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f'"{value}"' if isinstance(value, str) else repr(value)
