"""Settings of a run: presets are TOML files, every knob a field of a frozen dataclass.

A preset holds its differences from the defaults below. Every value is checked when it is read, so
that a typing error in a file or an override ends in a sentence and not in a strange avatar.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
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

PRESETS = ("preview", "standard", "quality", "fewshot", "talkinggaussian")

T = TypeVar("T")


@dataclass(frozen=True)
class ClipSettings:
    """How footage becomes a clip."""

    provider: str = "auto"
    """Face model: ict, clip, flame, bfm, or auto for ict where its file is there, else clip."""
    model_file: str = ""
    """The user's own file of the face model flame or bfm; empty looks in GSAVATAR_ASSETS."""
    focal_px: float = 0.0
    """Focal length in pixels of the 512 px crop if it is known; 0 estimates it."""
    correct_offset: bool = True
    """Whether a sound that is surely early or late is moved to the picture."""
    poses: str = "track"
    """Where the head's path comes from: track it, or that of a prepared folder as it is."""


@dataclass(frozen=True)
class TrainSettings:
    """What training does; the stages' shares and learning rates are tables in ``train``."""

    model: str = "linear"
    """What moves the head: linear for our own model, field for TalkingGaussian's."""
    size: int = 256
    """Side of the training pictures in pixels."""
    steps: int = 4000
    gaussians_max: int = 14_000
    """Largest number of Gaussians, all branches together."""
    face_init: int = 6000
    mouth_init: int = 1500
    torso_init: int = 2500
    sh_degree: int = 0
    """Degree of the view-dependent colour, 0 to 3."""
    basis_pull: float = 0.001
    """Share by which the motion returns to the fitted shapes at every step."""
    basis_blend: float = 0.002
    """Share by which a Gaussian's motion approaches its neighbours' at every step."""
    refine_poses: bool = False
    """Whether small corrections of the head's poses are learnt from the pictures."""
    checkpoint_every: int = 500
    validate_every: int = 500
    seed: int = 0
    weights: LossWeights = field(default_factory=LossWeights)
    """Weights of the linear model's terms; the field's are TalkingGaussian's (``train_fields``)."""


@dataclass(frozen=True)
class Settings:
    """A whole run."""

    preset: str = "preview"
    clip: ClipSettings = field(default_factory=ClipSettings)
    train: TrainSettings = field(default_factory=TrainSettings)


RANGES: dict[str, tuple[float, float]] = {
    "clip.focal_px": (0, 100_000),
    "train.size": (32, 512),
    "train.steps": (1, 10_000_000),
    "train.gaussians_max": (96, 4_000_000),
    "train.face_init": (64, 1_000_000),
    "train.mouth_init": (16, 1_000_000),
    "train.torso_init": (16, 1_000_000),
    "train.sh_degree": (0, 3),
    "train.basis_pull": (0, 0.05),
    "train.basis_blend": (0, 0.05),
    "train.checkpoint_every": (1, 10_000_000),
    "train.validate_every": (1, 10_000_000),
    "train.seed": (0, 2**63 - 1),
}
"""Least and greatest allowed value; loss weights only need to be 0 or more."""

CHOICES = {
    "clip.provider": ("auto", "ict", "clip", "flame", "bfm"),
    "clip.poses": ("track", "folder"),
    "train.model": ("linear", "field"),
}


def load_preset(
    name: str, overrides: Mapping[str, Any] | None = None, typed: Mapping[str, str] | None = None
) -> Settings:
    """The settings of a preset with some values replaced, e.g. ``{"train.steps": 500}``.

    ``typed`` names the option by which an override was given, e.g. ``{"train.steps": "--steps"}``,
    where that was not --set. Raises ``InputError`` for a preset or a key that does not exist and
    for a value out of range.
    """
    if name not in PRESETS:
        raise InputError(f"--preset {name}: no such preset; choose one of {', '.join(PRESETS)}.")
    text = resources.files("gsavatar.configs").joinpath(f"{name}.toml").read_text("utf-8")
    settings = from_toml(text, f"preset {name}")
    for dotted, value in (overrides or {}).items():
        option = (typed or {}).get(dotted)
        source = "--set" if option is None else f"{option} {value}"
        settings = _filled(settings, _nested(dotted, value), source, "")
    if settings.train.refine_poses and settings.train.model == "field":
        raise InputError(
            "train.refine_poses = true: the field of talkinggaussian has no such corrections; "
            "leave it away or choose another preset."
        )
    unheard = [key for key in flat(overrides or {}) if key.startswith("train.weights.")]
    if unheard and settings.train.model == "field":
        raise InputError(
            f"--set {unheard[0]}: talkinggaussian weighs its losses as its paper does; leave it "
            "away or choose another preset."
        )
    return settings


def load_settings(path: Path) -> Settings:
    """The settings saved in a run. Raises ``InputError`` if they cannot be read."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: the run's settings cannot be read ({error}); fit again into another --out."
        ) from None
    return from_toml(text, str(path))


def save_settings(path: Path, settings: Settings) -> None:
    """Writes settings as TOML, one table per component."""
    write_text_atomic(path, to_toml(asdict(settings)))


def from_toml(text: str, source: str) -> Settings:
    """Settings from TOML text; absent keys keep their defaults, unknown ones are refused."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{source}: not valid TOML ({error}); mend or delete it.") from None
    return _filled(Settings(), table, source, "")


def flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values of nested tables by dotted key."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        inner = isinstance(value, Mapping)
        found |= flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return found


def differences(there: Mapping[str, Any], here: Mapping[str, Any], keys: Iterable[str]) -> str:
    """In words, what settings already ``there`` hold under dotted keys and those of ``here`` do
    not; empty if they agree."""
    told, asked = flat(there), flat(here)
    return ", ".join(
        f"{key} = {told.get(key)}, not {asked.get(key)}"
        for key in keys if told.get(key) != asked.get(key)
    )  # fmt: skip


def _nested(dotted: str, value: Any) -> dict[str, Any]:
    """``{"a": {"b": value}}`` of ``a.b``."""
    for part in reversed(dotted.split(".")):
        value = {part: value}
    return value


def _filled(default: T, table: Mapping[str, Any], source: str, prefix: str) -> T:
    """``default`` with the table's values; recursion follows nested dataclasses."""
    known = {f.name: f for f in fields(default)}  # type: ignore[arg-type]
    changes: dict[str, Any] = {}
    for key, value in table.items():
        name = f"{prefix}{key}"
        if key not in known:
            raise InputError(
                f"{source}: unknown setting {name!r}; known here are {', '.join(known)}."
            )
        current = getattr(default, key)
        if is_dataclass(current):
            if not isinstance(value, Mapping):
                raise InputError(f"{source}: {name} must be a table of settings, got {value!r}.")
            changes[key] = _filled(current, value, source, f"{name}.")
        else:
            changes[key] = _checked(current, value, source, name)
    return replace(default, **changes)  # type: ignore[type-var]


def _checked(current: Any, value: Any, source: str, name: str) -> Any:
    """A plain value of the same type as the current one, within its range."""
    accepted = (int, float) if isinstance(current, float) else type(current)
    if not isinstance(value, accepted) or isinstance(value, bool) != isinstance(current, bool):
        raise InputError(
            f"{source}: {name} must be of type {type(current).__name__}, got {value!r}."
        )
    value = type(current)(value)
    if name in CHOICES and value not in CHOICES[name]:
        raise InputError(
            f"{source}: {name} must be one of {', '.join(CHOICES[name])}, got {value!r}."
        )
    weight = (0.0, 1e6) if name.startswith("train.weights.") else None
    allowed = RANGES.get(name, weight)
    if allowed is not None and not allowed[0] <= value <= allowed[1]:
        raise InputError(
            f"{source}: {name} must be from {allowed[0]:g} to {allowed[1]:g}, got {value}."
        )
    return value


def to_toml(values: Mapping[str, Any], prefix: str = "") -> str:
    """TOML text of nested plain values."""
    lines = [f"{k} = {_toml_value(v)}" for k, v in values.items() if not isinstance(v, Mapping)]
    parts = ["\n".join(lines) + "\n"] if lines else []
    for key, value in values.items():
        if isinstance(value, Mapping):
            name = f"{prefix}{key}"
            parts.append(f"[{name}]\n" + to_toml(value, f"{name}."))
    return "\n".join(parts)


def toml_value(text: str) -> Any:
    """The value of a piece of TOML such as ``3``, ``0.5``, ``true`` or ``"x"``; else the text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    return repr(value)
