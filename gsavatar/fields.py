"""TalkingGaussian's motion (Li et al. 2024, section 3): a tri-plane field that sound moves.

A Gaussian's canonical place is looked up in three planes of dense grids at twelve resolutions. A
small network turns that code, the sound around the instant and, for the face, six controls of the
upper face into the Gaussian's offsets. The last layer starts at zero: an untrained field is the
canonical cloud. The face's networks have no bias, so outside the box around the head it is still.

``fields_planes`` reads the planes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from gsavatar.fields_planes import AXES, Levels, read_planes
from gsavatar.hearing import STRIDE_TOKENS, TOKENS, WINDOW_TOKENS, WINDOWS, Hearing
from gsavatar.types import Branch, Drive, FacePart, FittedFace, Offsets

PLANE_LEVELS = {Branch.FACE: Levels(38.4), Branch.MOUTH: Levels(63.5)}
"""The paper's for the face. Its mouth's grow coarser from level to level; these grow finer."""
AUDIO_CODE = 32
CONTROLS = (
    ("browInnerUp",), ("browDown",), ("eyeWide",), ("cheekSquint",), ("eyeSquint",), ("eyeBlink",),
)  # fmt: skip
"""Coefficients, by the beginnings of their names, that stand for action units 1, 4, 5, 6, 7, 45."""
WIDTHS = {Branch.FACE: (64, 64, 9), Branch.MOUTH: (32, 32, 3)}
"""Layers of the decoder; nine outputs move, turn and scale, three only move."""
MOVE_UNIT_M = 0.01
MOUTH_UNITS = (0.2, 1.0, 0.2)
"""The inside of the mouth moves mainly up and down."""
BOX_GROWTH = 1.35
"""Side of the box the planes cover over the head's; only ``INSIDE`` of it is read."""
GRID_INIT = 1e-4
LEAK = 0.02


def layout(kind: Branch, channels: int) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a branch's field that hears ``channels`` numbers a token.

    ``grid.*`` are the planes, ``hear.*`` the sound's network, ``weigh.*`` its attention over time,
    ``listen.*`` and ``look.*`` how much a place heeds sound and controls, ``mix.*`` the controls'
    network and ``decode.*`` the offsets'.
    """
    sides = PLANE_LEVELS[kind].sides
    code = len(AXES) * len(sides)
    shapes: dict[str, tuple[int, ...]] = {
        f"grid.{i}": (len(AXES), 1, side, side) for i, side in enumerate(sides)
    }
    for i, (a, b) in enumerate(pairwise((channels, 32, 32, 64, 64))):
        shapes |= {f"hear.{i}": (b, a, 3), f"hear.{i}.bias": (b,)}
    for i, (a, b) in enumerate(pairwise((64, 64, AUDIO_CODE)), start=4):
        shapes |= {f"hear.{i}": (b, a), f"hear.{i}.bias": (b,)}
    for i, (a, b) in enumerate(pairwise((AUDIO_CODE, 16, 8, 4, 2, 1))):
        shapes |= {f"weigh.{i}": (b, a, 3), f"weigh.{i}.bias": (b,)}
    shapes |= {"weigh.5": (WINDOWS, WINDOWS), "weigh.5.bias": (WINDOWS,)}
    inputs = code + AUDIO_CODE
    if kind == Branch.FACE:
        controls = len(CONTROLS)
        shapes |= {"listen.0": (32, code), "listen.1": (AUDIO_CODE, 32)}
        shapes |= {"look.0": (16, code), "look.1": (controls, 16)}
        shapes |= {"mix.0": (16, controls - 1), "mix.1": (controls - 1, 16)}
        inputs += controls
    for i, (a, b) in enumerate(pairwise((inputs, *WIDTHS[kind]))):
        shapes[f"decode.{i}"] = (b, a)
    return shapes


@dataclass(frozen=True)
class FieldMotion:
    """The motion of one branch as a field over canonical places."""

    kind: Branch
    parameters: dict[str, Tensor]  # as ``layout`` says
    centre: Tensor  # [3], metres
    radius: Tensor  # [], half the side of the box the planes cover, metres
    controls: Tensor  # [6, K], means of coefficients
    silence: Tensor  # [C]

    def offsets(self, means: Tensor, drive: Drive) -> Offsets:
        """Offsets of the Gaussians at ``means`` [N, 3], each [*B, N, 3]; silence without audio.

        Raises ``ValueError`` for audio of another shape than [*B, L, C].
        """
        code = self.position_code(means)
        audio = drive.audio
        if audio is None:
            audio = self.silence.expand(*drive.coefficients.shape[:-1], TOKENS, -1)
        heard = self.audio_code(audio)[..., None, :]  # [*B, 1, 32]
        batch = (*heard.shape[:-2], len(means))
        parts = [code.expand(*batch, -1)]
        if self.kind == Branch.FACE:
            listen, look = self.attention(code)
            parts += [heard * listen, self._mixed(drive.coefficients)[..., None, :] * look]
        else:
            parts.append(heard.expand(*batch, -1))
        x = torch.cat(parts, dim=-1)
        for i in range(len(WIDTHS[self.kind])):
            x = functional.linear(x.relu() if i else x, self.parameters[f"decode.{i}"])
        return self._as_offsets(x)

    def position_code(self, means: Tensor) -> Tensor:
        """What the planes hold at places [N, 3], [N, 36]; zeros outside the box."""
        levels = PLANE_LEVELS[self.kind]
        grids = [self.parameters[f"grid.{i}"] for i in range(len(levels.sides))]
        return read_planes(grids, (means - self.centre) / self.radius, levels)

    def audio_code(self, audio: Tensor) -> Tensor:
        """The sound [*B, 32] of tokens [*B, L, C]: each window's code, weighed over the windows."""
        if audio.shape[-2:] != (TOKENS, len(self.silence)):
            raise ValueError(f"audio {tuple(audio.shape)}, expected L, C = {TOKENS}, "
                             f"{len(self.silence)}")  # fmt: skip
        p, batch = self.parameters, audio.shape[:-2]
        x = audio.unfold(-2, WINDOW_TOKENS, STRIDE_TOKENS).flatten(0, -3)  # [*B * 8, C, 16]
        for i in range(4):
            x = functional.conv1d(x, p[f"hear.{i}"], p[f"hear.{i}.bias"], stride=2, padding=1)
            x = functional.leaky_relu(x, LEAK)
        x = functional.leaky_relu(functional.linear(x[..., 0], p["hear.4"], p["hear.4.bias"]), LEAK)
        codes = functional.linear(x, p["hear.5"], p["hear.5.bias"]).reshape(-1, WINDOWS, AUDIO_CODE)
        y = codes.mT
        for i in range(5):
            y = functional.conv1d(y, p[f"weigh.{i}"], p[f"weigh.{i}.bias"], padding=1)
            y = functional.leaky_relu(y, LEAK)
        shares = functional.linear(y[:, 0], p["weigh.5"], p["weigh.5.bias"]).softmax(-1)
        return (shares[..., None] * codes).sum(1).reshape(*batch, AUDIO_CODE)

    def attention(self, code: Tensor) -> tuple[Tensor, Tensor]:
        """How much places [N, 36] of the face heed each number of the sound [N, 32] and each
        control [N, 6]."""
        p = self.parameters
        listen = functional.linear(functional.linear(code, p["listen.0"]).relu(), p["listen.1"])
        look = functional.linear(functional.linear(code, p["look.0"]).relu(), p["look.1"]).relu()
        return listen, look

    def _mixed(self, coefficients: Tensor) -> Tensor:
        """The controls [*B, 6]: brows, lids and cheeks through a network, the blink as it is."""
        values = coefficients @ self.controls.T
        p = self.parameters
        hidden = functional.linear(values[..., :-1], p["mix.0"]).relu()
        mixed = functional.linear(hidden, p["mix.1"])
        return torch.cat((mixed, values[..., -1:]), dim=-1)

    def _as_offsets(self, x: Tensor) -> Offsets:
        if self.kind == Branch.FACE:
            means, rotvecs, log_scales = x.split(3, dim=-1)
            return Offsets(MOVE_UNIT_M * means, rotvecs, log_scales)
        still = torch.zeros_like(x)
        return Offsets(MOVE_UNIT_M * x * x.new_tensor(MOUTH_UNITS), still, still)


def new_field(
    kind: Branch, face: FittedFace, hearing: Hearing, generator: torch.Generator
) -> FieldMotion:
    """An untrained field of a person's face or mouth: every offset is zero."""
    parameters = {}
    shapes = layout(kind, hearing.channels)
    last = f"decode.{len(WIDTHS[kind]) - 1}"
    for name, shape in shapes.items():
        fan_in = math.prod(shape[1:])
        bound = GRID_INIT if name.startswith("grid") else 1.0 / math.sqrt(max(fan_in, 1))
        if name == last or name.endswith("bias"):
            bound = 0.0
        parameters[name] = bound * (2.0 * torch.rand(shape, generator=generator) - 1.0)
    return field_of(kind, parameters, *field_box(face), face.names, hearing)


def field_of(
    kind: Branch, parameters: dict[str, Tensor], centre: Tensor, radius: Tensor,
    names: tuple[str, ...], hearing: Hearing,
) -> FieldMotion:  # fmt: skip
    """The field with given tensors for an avatar with these coefficient ``names``."""
    return FieldMotion(kind, parameters, centre, radius, control_matrix(names), hearing.silence)


def field_box(face: FittedFace) -> tuple[Tensor, Tensor]:
    """Centre [3] and half side [] in metres of the box around a person's head."""
    wanted = (face.part == int(FacePart.SKIN)) | (face.part == int(FacePart.SCALP))
    low, high = face.vertices[wanted].amin(0), face.vertices[wanted].amax(0)
    return 0.5 * (low + high), 0.5 * BOX_GROWTH * (high - low).amax()


def control_matrix(names: tuple[str, ...]) -> Tensor:
    """Weights [6, K] that average the coefficients of each control; zeros where there are none."""
    matrix = torch.zeros(len(CONTROLS), len(names))
    for row, prefixes in enumerate(CONTROLS):
        members = [k for k, name in enumerate(names) if name.startswith(prefixes)]
        for k in members:
            matrix[row, k] = 1.0 / len(members)
    return matrix
