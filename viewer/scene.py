"""What is sent to a page: splats, pictures, cameras and camera paths, as plain arrays.

The room frame is the viewer's world (+y up, metres). Viser reports cameras as a rotation and a
position in that world, OpenCV axes, with the vertical field of view in radians.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gsavatar import geometry
from gsavatar.ops.evaluate_sh import SH_0
from gsavatar.types import Branch, Camera, Curves, Gaussians

SPLAT_UNIT_M = 0.01
"""Splats travel in centimetres: viser packs covariances as half floats, whose smallest normal
number is a Gaussian of 8 mm in metres but of 0.08 mm in centimetres."""
COLORS = {"dark": (0.09, 0.10, 0.12), "light": (0.93, 0.93, 0.93), "green": (0.0, 0.69, 0.25)}
"""Backgrounds beside the clip's own plate, sRGB 0-1."""
PATH_SIZE = 512
PATH_STEP_S = 2.0
VIEW_FRUSTA = 24


@dataclass(frozen=True)
class Splats:
    """Gaussians as viser's browser renderer takes them, in centimetres; no view dependence."""

    centers: NDArray[np.float32]  # [N, 3]
    covariances: NDArray[np.float32]  # [N, 3, 3]
    rgbs: NDArray[np.uint8]  # [N, 3]
    opacities: NDArray[np.uint8]  # [N, 1]


def keep_branches(gaussians: Gaussians, branches: frozenset[Branch]) -> Gaussians:
    """The Gaussians of some branches only."""
    if len(branches) == len(Branch):
        return gaussians
    kept = torch.isin(gaussians.branch, torch.tensor(sorted(branches), dtype=torch.int32))
    return Gaussians(
        gaussians.means[kept], gaussians.quats[kept], gaussians.scales[kept],
        gaussians.opacities[kept], gaussians.sh[kept], gaussians.branch[kept],
    )  # fmt: skip


def splats_of(gaussians: Gaussians) -> Splats:
    """Splats of one cloud [N], coloured by the constant term of its spherical harmonics."""
    axes = geometry.quat_to_matrix(gaussians.quats) * gaussians.scales[:, None, :] / SPLAT_UNIT_M
    colors = gaussians.sh[:, 0] * SH_0 + 0.5
    return Splats(
        (gaussians.means / SPLAT_UNIT_M).float().numpy(),
        (axes @ axes.mT).float().numpy(),
        _bytes(colors),
        _bytes(gaussians.opacities[:, None]),
    )


def _bytes(values: Tensor) -> NDArray[np.uint8]:
    return (values.clamp(0.0, 1.0) * 255.0).round().to(torch.uint8).numpy()


@dataclass(frozen=True)
class Viewpoint:
    """A page's camera as viser reports it."""

    wxyz: tuple[float, float, float, float]
    position: tuple[float, float, float]
    fov: float  # vertical, radians
    aspect: float  # width over height


def viewpoint(camera: Camera, aspect: float = 1.0) -> Viewpoint:
    """Where a page's camera must stand to see what ``camera`` sees from top to bottom."""
    cam_to_world = torch.linalg.inv(camera.world_to_cam.double())
    wxyz = geometry.matrix_to_quat(cam_to_world[:3, :3]).tolist()
    fov = 2 * math.atan(camera.height / 2 / float(camera.K[1, 1]))
    w, x, y, z = wxyz
    px, py, pz = cam_to_world[:3, 3].tolist()
    return Viewpoint((w, x, y, z), (px, py, pz), fov, aspect)


def camera_of(view: Viewpoint, height: int) -> Camera:
    """The pinhole camera of a page, ``height`` pixels high and as wide as the page asks."""
    width = max(16, round(height * min(max(view.aspect, 0.2), 5.0)))
    cam_to_world = torch.eye(4, dtype=torch.float64)
    cam_to_world[:3, :3] = geometry.quat_to_matrix(torch.tensor(view.wxyz, dtype=torch.float64))
    cam_to_world[:3, 3] = torch.tensor(view.position, dtype=torch.float64)
    focal = height / 2 / math.tan(min(max(view.fov, 0.01), 3.0) / 2)
    K = torch.tensor([[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]])
    return Camera(torch.linalg.inv(cam_to_world).float(), K, width, height)


def backdrop(name: str, plate: Tensor, width: int, height: int) -> Tensor:
    """What stands behind, [H, W, 3]: a colour, or the plate filling the page from its middle."""
    if name in COLORS:
        return torch.tensor(COLORS[name]).expand(height, width, 3).contiguous()
    rows, columns = plate.shape[:2]
    scale = min(columns / width, rows / height)
    tall, wide = max(1, round(height * scale)), max(1, round(width * scale))
    top, left = (rows - tall) // 2, (columns - wide) // 2
    cut = plate[top : top + tall, left : left + wide].permute(2, 0, 1)[None]
    filled = torch.nn.functional.interpolate(
        cut, (height, width), mode="bilinear", align_corners=False, antialias=True
    )
    return filled[0].permute(1, 2, 0).contiguous()


def path_json(frames: Sequence[Viewpoint]) -> str:
    """A camera path that ``gsavatar render --camera path.json`` plays: one keyframe every 2 s."""
    keyframes = []
    for number, view in enumerate(frames):
        camera = camera_of(replace(view, aspect=1.0), PATH_SIZE)
        keyframes.append(
            {
                "time_s": number * PATH_STEP_S,
                "world_to_cam": camera.world_to_cam.tolist(),
                "K": camera.K.tolist(),
            }
        )
    path = {"version": 1, "width": PATH_SIZE, "height": PATH_SIZE, "frames": keyframes}
    return json.dumps(path, indent=1)


def seen_from(camera: Camera, idle: Curves, count: int = VIEW_FRUSTA) -> list[Camera]:
    """Directions from which the clip showed the head: its camera, as the resting head saw it.

    ``count`` rows spread evenly over the clip's performance.
    """
    rows = np.unique(np.linspace(0, len(idle.time_s) - 1, count).round().astype(int))
    return [replace(camera, world_to_cam=camera.world_to_cam @ idle.head_pose[r]) for r in rows]


def orbited(view: Camera, centre: Tensor, yaw_deg: float) -> Camera:
    """The camera after walking around a vertical axis through ``centre`` [3], still facing it."""
    camera: Camera = geometry.orbit(view, centre, math.radians(yaw_deg))
    return camera
