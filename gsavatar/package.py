"""One file per avatar: a zip of JSON, safetensors and PNG. Nothing in it can run code.

Everything is checked before use: member names and sizes, tensor names, shapes, types and ranges.
"""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gsavatar.avatar import Avatar, AvatarBranch
from gsavatar.errors import InputError
from gsavatar.fields import FieldMotion, field_of, layout
from gsavatar.frames import decode_png, encode_png, write_bytes_atomic
from gsavatar.gaussians import RawGaussians
from gsavatar.hearing import Hearing
from gsavatar.motion import TORSO_NAMES, LinearMotion, Motion
from gsavatar.ops.evaluate_sh import TERMS
from gsavatar.ops.rasterize_ref import SCREEN_BLUR
from gsavatar.speech import SpeechMotion
from gsavatar.speech_features import ENCODERS
from gsavatar.types import PROTOCOL_SIZE, Branch, Camera, Curves

FORMAT = "gsavatar"
VERSION = 1
MEMBERS = {
    "avatar.json": 4 << 20, "tensors.safetensors": 1 << 30, "plate.png": 8 << 20,
    "thumbnail.png": 4 << 20,
}  # fmt: skip
"""Every member a file may have and the largest size it may unpack to, in bytes."""
MAX_GAUSSIANS = 1_000_000
MAX_COEFFICIENTS = 64
MAX_COORDINATE_M = 100.0
MAX_WEIGHT = 1e4
MAX_CHANNELS = 4096
DRAWN_WITH = {"blur_px2": SCREEN_BLUR, "antialiased": True}
"""What an avatar was trained with and any renderer must do: it learned its sharpness under it."""


@dataclass(frozen=True)
class Package:
    """An avatar with all it needs to speak: what ``NAME.gsavatar`` holds."""

    avatar: Avatar
    camera: Camera  # the clip's own, protocol pixels
    plate: Tensor  # [512, 512, 3], 0-1
    idle: Curves  # the training clip's own performance
    speech: SpeechMotion | None  # None when the clip had no sound to learn from
    limits: Tensor  # [K, 2], the clip's 1 % and 99 % of each coefficient
    rest: Tensor  # [K], the clip's mean coefficients
    card: dict[str, Any]  # provenance, settings, metrics

    @property
    def names(self) -> tuple[str, ...]:
        return self.avatar.names


def save_package(path: Path, package: Package, thumbnail: np.ndarray | None = None) -> None:
    """Writes the file atomically. ``thumbnail`` is uint8 RGB, by default the plate."""
    from safetensors.torch import save

    tensors, info = _flatten(package)
    plate = (package.plate * 255.0).round().to(torch.uint8).numpy()
    data = save({k: v.detach().contiguous().clone() for k, v in tensors.items()})
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in (
            ("avatar.json", json.dumps(info, indent=1).encode()),
            ("tensors.safetensors", data),
            ("plate.png", encode_png(plate)),
            ("thumbnail.png", encode_png(plate if thumbnail is None else thumbnail)),
        ):
            stamp = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))  # same avatar, same bytes
            archive.writestr(stamp, content)
    write_bytes_atomic(path, buffer.getvalue())


def load_package(path: Path) -> Package:
    """The avatar in a file. Raises ``InputError`` for anything missing, damaged or out of range."""
    try:
        info, tensors, plate = _read_members(path)
        return _build(info, tensors, plate)
    except FileNotFoundError:
        raise InputError(f"{path}: no such avatar; give a NAME.gsavatar file or a run.") from None
    except (zipfile.BadZipFile, OSError, KeyError, ValueError, TypeError, IndexError) as error:
        reason = str(error).strip("'\"") or type(error).__name__
        raise InputError(
            f"{path}: not a valid avatar file ({reason}); fit it again or fetch a fresh copy."
        ) from None


def _flatten(package: Package) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors: dict[str, Tensor] = {
        "camera.world_to_cam": package.camera.world_to_cam,
        "camera.K": package.camera.K,
        "idle.time_s": package.idle.time_s,
        "idle.values": package.idle.values,
        "idle.head_pose": package.idle.head_pose,
        "limits": package.limits,
        "rest": package.rest,
    }
    for branch in package.avatar.branches:
        prefix = branch.kind.name
        for key, value in branch.raw.parameters().items():
            tensors[f"{prefix}.{key}"] = value
        tensors |= {f"{prefix}.{key}": value for key, value in _of_motion(branch.motion).items()}
        tensors[f"{prefix}.head_weight"] = branch.head_weight
    hearing = package.avatar.hearing
    if hearing is not None:
        tensors |= {
            "hearing.means": hearing.means, "hearing.components": hearing.components,
            "hearing.silence": hearing.silence,
        }  # fmt: skip
    speech: dict[str, Any] | None = None
    if package.speech is not None:
        speech_tensors, speech = package.speech.state()
        tensors |= {f"speech.{key}": value for key, value in speech_tensors.items()}
    info = {
        "format": FORMAT, "version": VERSION, "names": list(package.names),
        "branches": [b.kind.name for b in package.avatar.branches],
        "hearing": None if hearing is None else {"encoder": hearing.encoder},
        **DRAWN_WITH, "speech": speech, "card": package.card,
    }  # fmt: skip
    return tensors, info


def _of_motion(motion: Motion) -> dict[str, Tensor]:
    """The tensors of a branch's motion by name."""
    if isinstance(motion, LinearMotion):
        return {"basis": motion.basis, "seed": motion.seed}
    if isinstance(motion, FieldMotion):
        box = {"field_centre": motion.centre, "field_radius": motion.radius}
        return box | {f"field.{key}": value for key, value in motion.parameters.items()}
    raise TypeError(f"a motion of type {type(motion).__name__} has no place in a file")


def _read_members(path: Path) -> tuple[dict[str, Any], dict[str, Tensor], np.ndarray]:
    """Raw contents, read only after every member's name and size was accepted."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.filename not in MEMBERS:
                raise ValueError(f"unexpected member {member.filename[:80]!r}")
            if member.file_size > MEMBERS[member.filename]:
                raise ValueError(f"{member.filename} unpacks to {member.file_size} bytes")
        missing = set(MEMBERS) - set(archive.namelist())
        if missing:
            raise ValueError(f"{sorted(missing)[0]} is missing")
        info = json.loads(archive.read("avatar.json"))
        if not isinstance(info, dict) or info.get("format") != FORMAT:
            raise ValueError("avatar.json does not describe an avatar")
        if info.get("version") != VERSION:
            raise ValueError(f"format version {info.get('version')}, this program reads {VERSION}")
        try:
            tensors = load(archive.read("tensors.safetensors"))
        except SafetensorError as error:
            raise ValueError(f"tensors.safetensors: {error}") from None
        plate = decode_png(archive.read("plate.png"))
    return info, tensors, plate


class _Checked:
    """Hands out tensors only after checking shape, type and range."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors

    def take(
        self,
        name: str,
        shape: tuple[int, ...],
        limit: float = MAX_COORDINATE_M,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """The tensor of a name; -1 in ``shape`` accepts any length."""
        value = self.tensors[name]
        fits = value.dim() == len(shape) and all(
            want in (-1, have) for want, have in zip(shape, value.shape, strict=True)
        )
        if not fits or value.dtype != dtype:
            raise ValueError(f"{name} is {value.dtype} {tuple(value.shape)}, expected {shape}")
        if not bool(torch.isfinite(value).all()) or bool((value.abs() > limit).any()):
            raise ValueError(f"{name} has values that are not finite or beyond {limit:g}")
        return value


def _build(info: dict[str, Any], tensors: dict[str, Tensor], plate: np.ndarray) -> Package:
    names = info["names"]
    if not isinstance(names, list) or not all(isinstance(n, str) and len(n) < 64 for n in names):
        raise ValueError("names must be a list of strings")
    if not 0 < len(names) <= MAX_COEFFICIENTS or len(set(names)) != len(names):
        raise ValueError(f"{len(names)} coefficient names, expected 1 to {MAX_COEFFICIENTS}")
    if info["branches"] != [kind.name for kind in Branch]:
        raise ValueError(f"branches {info['branches']!r}"[:120])
    drawn = {key: info[key] for key in DRAWN_WITH}
    if drawn != DRAWN_WITH:
        raise ValueError(f"it was made to be drawn with {drawn!r}"[:120])
    if plate.shape != (PROTOCOL_SIZE, PROTOCOL_SIZE, 3):
        raise ValueError(f"plate of shape {plate.shape}")
    checked = _Checked(tensors)
    k = len(names)
    hearing = _hearing(checked, info.get("hearing"))
    branches = tuple(_branch(checked, kind, tuple(names), hearing) for kind in Branch)
    idle = _idle(checked, tuple(names))
    camera = Camera(
        _rigid(checked.take("camera.world_to_cam", (4, 4)), "camera.world_to_cam"),
        checked.take("camera.K", (3, 3), 1e6),
        PROTOCOL_SIZE,
        PROTOCOL_SIZE,
    )
    if not bool((camera.K.diagonal() > 0).all()):
        raise ValueError("camera.K has a focal length that is not positive")
    speech = None
    if info["speech"] is not None:
        own = {n.removeprefix("speech."): t for n, t in tensors.items() if n.startswith("speech.")}
        for name, tensor in own.items():
            if not bool(torch.isfinite(tensor.double()).all()):
                raise ValueError(f"speech.{name} is not finite")
        speech = SpeechMotion.from_state(own, info["speech"])
    limits, rest = checked.take("limits", (k, 2)), checked.take("rest", (k,))
    if not bool((limits[:, 0] <= limits[:, 1]).all()):
        raise ValueError("limits has a lower end above its upper one")
    card = info["card"]
    if not isinstance(card, dict):
        raise ValueError("card must be an object")
    return Package(
        Avatar(tuple(names), branches, hearing), camera, torch.from_numpy(plate).float() / 255.0,
        idle, speech, limits, rest, card,
    )  # fmt: skip


def _idle(checked: _Checked, names: tuple[str, ...]) -> Curves:
    """The clip's own performance."""
    idle = Curves(
        names,
        checked.take("idle.time_s", (-1,), 1e7, torch.float64),
        checked.take("idle.values", (-1, len(names))),
        _rigid(checked.take("idle.head_pose", (-1, 4, 4)), "idle.head_pose"),
    )
    if not len(idle.time_s) == len(idle.values) == len(idle.head_pose) or len(idle.time_s) < 2:
        raise ValueError("the idle path's lengths differ or are under two frames")
    if not bool((idle.time_s.diff() > 0).all()):
        raise ValueError("the idle path's times do not rise")
    return idle


def _hearing(checked: _Checked, info: Any) -> Hearing | None:
    """How a field hears; None for an avatar that coefficients alone move."""
    if info is None:
        return None
    if not isinstance(info, dict) or info.get("encoder") not in ENCODERS:
        raise ValueError(f"hearing {info!r}"[:120])
    components = checked.take("hearing.components", (ENCODERS[info["encoder"]], -1))
    a, c = components.shape
    if not 0 < a <= MAX_CHANNELS or not 0 < c <= MAX_CHANNELS:
        raise ValueError(f"hearing.components of shape {(a, c)}")
    means = checked.take("hearing.means", (-1, a), MAX_WEIGHT)
    if not 0 < len(means) <= MAX_CHANNELS:
        raise ValueError(f"hearing.means of {len(means)} rows")
    return Hearing(info["encoder"], means, components, checked.take("hearing.silence", (c,)))


def _motion(
    checked: _Checked, kind: Branch, count: int, names: tuple[str, ...], hearing: Hearing | None
) -> Motion:
    """A branch's motion: a field for face and mouth of an avatar that hears, else linear."""
    prefix = kind.name
    if hearing is not None and kind != Branch.TORSO:
        parameters = {
            key: checked.take(f"{prefix}.field.{key}", shape, MAX_WEIGHT)
            for key, shape in layout(kind, hearing.channels).items()
        }
        radius = checked.take(f"{prefix}.field_radius", ())
        if not float(radius) > 0.0:
            raise ValueError(f"{prefix}.field_radius is {float(radius):g}, expected more than 0")
        centre = checked.take(f"{prefix}.field_centre", (3,))
        return field_of(kind, parameters, centre, radius, names, hearing)
    columns = len(TORSO_NAMES) if kind == Branch.TORSO else len(names)
    return LinearMotion(
        checked.take(f"{prefix}.basis", (columns, count, 9)),
        checked.take(f"{prefix}.seed", (columns, count, 3)),
    )


def _branch(
    checked: _Checked, kind: Branch, names: tuple[str, ...], hearing: Hearing | None
) -> AvatarBranch:
    prefix = kind.name
    count = checked.tensors[f"{prefix}.means"].shape[0]
    if not 0 < count <= MAX_GAUSSIANS:
        raise ValueError(f"{prefix}: {count} Gaussians")
    terms = checked.tensors[f"{prefix}.sh"].shape[1]
    if terms not in TERMS:
        raise ValueError(f"{prefix}.sh has {terms} terms")
    raw = RawGaussians(
        checked.take(f"{prefix}.means", (count, 3)),
        checked.take(f"{prefix}.raw_quats", (count, 4), 1e6),
        checked.take(f"{prefix}.log_scales", (count, 3), 20.0),
        checked.take(f"{prefix}.raw_opacities", (count,)),
        checked.take(f"{prefix}.sh", (count, terms, 3)),
    )
    motion = _motion(checked, kind, count, names, hearing)
    return AvatarBranch(kind, raw, motion, checked.take(f"{prefix}.head_weight", (count,), 1.0))


def _rigid(poses: Tensor, name: str) -> Tensor:
    """The poses, if they are rotations with translations."""
    rotation = poses[..., :3, :3]
    error = (rotation @ rotation.mT - torch.eye(3)).abs().amax()
    bottom = (poses[..., 3, :] - torch.tensor([0.0, 0.0, 0.0, 1.0])).abs().amax()
    if float(error) > 1e-3 or float(bottom) > 1e-6:
        raise ValueError(f"{name} is not a rigid motion")
    return poses
