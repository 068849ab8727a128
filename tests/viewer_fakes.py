"""A stand-in for an avatar package: an ellipsoid of 500 Gaussians and three coefficients."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gsavatar.types import Branch, Camera, Curves, Drive, Gaussians
from gsavatar.viewer.scene import keep_branches
from gsavatar.viewer.session import Draw

NAMES = ("jawOpen", "eyeBlinkLeft", "eyeLookInLeft")
COUNT = 500
ORANGE = (1.0, 0.5, 0.0)
SH_0 = 0.28209479177387814


def camera(size: int = 512) -> Camera:
    """A frontal camera 1 m before the head that shows 40 cm of the room."""
    world_to_cam = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0]))
    world_to_cam[2, 3] = 1.0
    focal = size / 0.4
    K = torch.tensor([[focal, 0.0, size / 2], [0.0, focal, size / 2], [0.0, 0.0, 1.0]])
    return Camera(world_to_cam, K, size, size)


def curves(seconds: float, fps: float = 25.0) -> Curves:
    """A performance whose jawOpen is its row number and whose head slides to one side."""
    rows = round(seconds * fps)
    values = torch.zeros(rows, len(NAMES))
    values[:, 0] = torch.arange(rows)
    poses = torch.eye(4).repeat(rows, 1, 1)
    poses[:, 0, 3] = torch.arange(rows) * 1e-4
    return Curves(NAMES, torch.arange(rows, dtype=torch.float64) / fps, values, poses)


class EllipsoidAvatar:
    """Orange Gaussians on an ellipsoid; jawOpen doubles its height, the head pose moves it."""

    def __init__(self) -> None:
        i = torch.arange(COUNT) + 0.5
        polar, turn = torch.acos(1 - 2 * i / COUNT), math.pi * (1 + 5**0.5) * i
        unit = torch.stack(
            (polar.sin() * turn.cos(), polar.cos(), polar.sin() * turn.sin()), dim=-1
        )
        self.means = unit * torch.tensor([0.06, 0.08, 0.06])
        self.branch = torch.zeros(COUNT, dtype=torch.int32)
        self.branch[self.means[:, 1] < -0.05] = int(Branch.TORSO)
        self.branch[(self.means[:, 1].abs() < 0.01) & (self.means[:, 2] > 0)] = int(Branch.MOUTH)

    def __call__(self, drive: Drive) -> Gaussians:
        stretch = torch.tensor([1.0, 1.0 + float(drive.coefficients[0]), 1.0])
        pose = drive.head_pose
        means = (self.means * stretch) @ pose[:3, :3].T + pose[:3, 3]
        quats = torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(COUNT, 1)
        sh = (torch.tensor(ORANGE) - 0.5) / SH_0
        return Gaussians(
            means, quats, torch.full((COUNT, 3), 0.006), torch.full((COUNT,), 0.95),
            sh.expand(COUNT, 1, 3), self.branch,
        )  # fmt: skip


@dataclass(frozen=True)
class FakePackage:
    """What the viewer reads of a package."""

    avatar: EllipsoidAvatar = field(default_factory=EllipsoidAvatar)
    camera: Camera = field(default_factory=camera)
    plate: Tensor = field(default_factory=lambda: torch.tensor([0.0, 0.0, 1.0]).expand(512, 512, 3))
    idle: Curves = field(default_factory=lambda: curves(2.0))
    speech: Any = None
    limits: Tensor = field(default_factory=lambda: torch.tensor([[0.0, 0.9]] * len(NAMES)))
    rest: Tensor = field(default_factory=lambda: torch.zeros(len(NAMES)))
    card: dict[str, Any] = field(default_factory=dict)
    names: tuple[str, ...] = NAMES


def draw_dots(avatar: EllipsoidAvatar, branches: frozenset[Branch]) -> Draw:
    """A renderer for tests: each Gaussian is an orange square over the background."""

    def draw(drive: Drive, view: Camera, background: Tensor) -> NDArray[np.uint8]:
        gaussians = keep_branches(avatar(drive), branches)
        picture = (background.numpy() * 255).astype(np.uint8).copy()
        points = gaussians.means @ view.world_to_cam[:3, :3].T + view.world_to_cam[:3, 3]
        pixels = points @ view.K.T
        side = max(2, view.height // 40)
        for x, y in (pixels[:, :2] / pixels[:, 2:]).round().long().tolist():
            picture[max(y - side, 0) : max(y + side, 0), max(x - side, 0) : max(x + side, 0)] = (
                255, 128, 0,
            )  # fmt: skip
        return picture

    return draw
