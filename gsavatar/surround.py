"""What the fitted mesh says about views that no frame shows: a coarse picture to stay near.

One camera sees one side. From elsewhere nothing stops Gaussians from floating off the skin or the
mouth's inside from shining through a cheek. The mesh, coloured from the training frames, is right
about where skin is and roughly about its colour; training compares small renderings with it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from gsavatar.clip import Clip
from gsavatar.seeding import REFERENCE_FRAMES, look_up, project, spread_rows
from gsavatar.types import Camera, Drive, FacePart, FittedFace, Region

SIZE = 72
"""Side of the coarse pictures in pixels: a few vertices of the mesh for each."""
YAW_DEG = 40.0
PITCH_DEG = 15.0
COLORED_PARTS = (FacePart.SKIN, FacePart.LIPS, FacePart.SCALP)
COLORED_REGIONS = (Region.SKIN, Region.LIPS, Region.HAIR)
MIN_FACING = 0.15
SEEN_FACING = 0.3
"""Cosine from which a frame shows a vertex rather than its silhouette."""
EDGE_PX = 4
"""Pixels of a protocol frame this near another region may show that."""
NEIGHBOURS = 8
REACH_M = 0.04
"""How far colours are continued over what no frame faces."""


@dataclass(frozen=True)
class CoarseView:
    """The coloured mesh from a camera: colour where a vertex is in front, and where that is."""

    camera: Camera
    color: Tensor  # [S, S, 3]
    covered: Tensor  # [S, S], 1 where the mesh shows a coloured vertex facing the camera


@dataclass(frozen=True)
class Look:
    """What the training frames show of some points on the mesh."""

    points: Tensor  # [N, 3], of the head at rest
    part: Tensor  # [N], as in ``FittedFace``
    colors: Tensor  # [N, 3]; meaningless where not known
    known: Tensor  # [N], some frame looks onto the point and shows the head around it
    faced: Tensor  # [N], some frame looks onto the point, whatever it shows


class Surround:
    """Coarse views of a clip's fitted mesh from around the head."""

    def __init__(self, clip: Clip) -> None:
        face = clip.track.face
        wanted = torch.isin(face.part, torch.tensor(COLORED_PARTS).to(face.part))
        chosen = wanted.nonzero()[:, 0]
        normals = vertex_normals(face)
        self.look = looked_at(clip, chosen, normals[chosen])
        colors, known = continued(self.look)
        kept = chosen[known]
        self.vertices, self.basis = face.vertices[kept], face.basis[:, kept]
        self.normals = normals[kept]
        self.colors = colors[known]
        self.centre = face.vertices[wanted].mean(0)
        self.camera = clip.track.cameras[0].resized(SIZE, SIZE)

    def draw(self, drive: Drive, generator: torch.Generator) -> CoarseView:
        """A random view up to 40 degrees to the side and 15 up or down, for a given drive."""
        u, v = (2.0 * torch.rand(2, generator=generator) - 1.0).tolist()
        camera = turned(
            self.camera, self.centre, math.radians(u * YAW_DEG), math.radians(v * PITCH_DEG)
        )
        return self.view(drive, camera)

    def view(self, drive: Drive, camera: Camera) -> CoarseView:
        """The coloured mesh, moved by ``drive``, from ``camera``; nearer vertices hide farther."""
        shape = torch.einsum("k,kvc->vc", drive.coefficients, self.basis)
        to_cam = camera.world_to_cam @ drive.head_pose
        points = (self.vertices + shape) @ to_cam[:3, :3].T + to_cam[:3, 3]
        facing = -(
            self.normals @ to_cam[:3, :3].T * torch.nn.functional.normalize(points, dim=-1)
        ).sum(-1)
        pixels = points @ camera.K.T
        x = (pixels[:, 0] / pixels[:, 2]).floor().long()
        y = (pixels[:, 1] / pixels[:, 2]).floor().long()
        inside = (x >= 0) & (y >= 0) & (x < camera.width) & (y < camera.height)
        order = points[:, 2].argsort(descending=True, stable=True)
        order = order[inside[order]]
        color = np.zeros((camera.height, camera.width, 3), np.float32)
        covered = np.zeros((camera.height, camera.width), np.float32)
        at = (y[order].numpy(), x[order].numpy())  # numpy writes in order: the nearest stays
        color[at] = self.colors[order].numpy()
        covered[at] = (facing[order] > MIN_FACING).float().numpy()
        return CoarseView(camera, torch.from_numpy(color), torch.from_numpy(covered))


def looked_at(clip: Clip, chosen: Tensor, normals: Tensor) -> Look:
    """Chosen vertices of the fitted mesh in the training frames; ``normals`` [N, 3] at rest.

    A vertex takes the median over frames that look onto it and show the head around it: at a
    silhouette the background is a pixel away.
    """
    face = clip.track.face
    points, shapes = face.vertices[chosen], face.basis[:, chosen]
    rows = spread_rows(clip.train_rows, REFERENCE_FRAMES)
    samples = torch.full((len(rows), len(points), 3), float("nan"))
    faced = torch.zeros(len(points), dtype=torch.bool)
    for i, row in enumerate(rows):
        moved = points + torch.einsum("k,knc->nc", clip.track.coefficients[row], shapes)
        to_cam = clip.camera(row).world_to_cam @ clip.track.head_pose[row]
        toward = torch.nn.functional.normalize(moved @ to_cam[:3, :3].T + to_cam[:3, 3], dim=-1)
        facing = -(normals @ to_cam[:3, :3].T * toward).sum(-1) > SEEN_FACING
        pixels = project(moved, clip.track.head_pose[row], clip.camera(row))
        regions = torch.from_numpy(clip.regions(row))
        inside = _eroded(torch.isin(regions, torch.tensor(COLORED_REGIONS).to(regions)))
        shown = look_up(inside.numpy(), pixels)
        colors = look_up(clip.frame(row), pixels).float() / 255.0
        samples[i, facing & shown] = colors[facing & shown]
        faced |= facing
    colors = samples.nanmedian(0).values
    return Look(points, face.part[chosen], colors, ~colors.isnan().any(-1), faced)


def _eroded(mask: Tensor) -> Tensor:
    """A mask [H, W] without what lies within ``EDGE_PX`` of its border."""
    outside = (~mask).float()[None, None]
    grown = torch.nn.functional.max_pool2d(outside, 2 * EDGE_PX + 1, 1, EDGE_PX)
    return grown[0, 0] == 0.0


def continued(look: Look) -> tuple[Tensor, Tensor]:
    """Colours [N, 3] of the points, and which of them [N] have one.

    One that no frame looks onto continues its neighbours, skin or hair, unless those turned out to
    be something else.
    """
    points, colors, known, faced = look.points, look.colors, look.known, look.faced
    if not known.any() or faced.all():
        return colors, known
    judged = known | faced
    hidden = (~judged).nonzero()[:, 0]
    distance, near = torch.cdist(points[hidden], points[judged]).topk(
        min(NEIGHBOURS, int(judged.sum())), largest=False
    )
    trusted = known[judged][near].float()
    share = trusted / (distance + 1e-3)
    palette = torch.where(known[:, None], colors, 0.0)[judged]
    mixed = (share[..., None] * palette[near]).sum(1) / share.sum(1, keepdim=True).clamp_min(1e-9)
    usable = (trusted.mean(1) > 0.5) & (distance[:, 0] < REACH_M)
    result, mask = colors.clone(), known.clone()
    result[hidden[usable]], mask[hidden[usable]] = mixed[usable], True
    return result, mask


def turned(camera: Camera, centre: Tensor, yaw: float, pitch: float) -> Camera:
    """The camera moved about ``centre`` [3] of the room by yaw and pitch in radians."""
    cos_y, sin_y, cos_p, sin_p = math.cos(yaw), math.sin(yaw), math.cos(pitch), math.sin(pitch)
    about_y = torch.tensor([[cos_y, 0.0, sin_y], [0.0, 1.0, 0.0], [-sin_y, 0.0, cos_y]])
    about_x = torch.tensor([[1.0, 0.0, 0.0], [0.0, cos_p, -sin_p], [0.0, sin_p, cos_p]])
    move = torch.eye(4)
    move[:3, :3] = about_x @ about_y
    move[:3, 3] = centre - move[:3, :3] @ centre
    return replace(camera, world_to_cam=camera.world_to_cam @ move)


def vertex_normals(face: FittedFace) -> Tensor:
    """Unit normals [V, 3] at rest, area-weighted over the triangles of each vertex, outward."""
    a, b, c = face.vertices[face.faces].unbind(1)
    flat = torch.linalg.cross(b - a, c - a)
    normals = torch.zeros_like(face.vertices)
    for corner in range(3):
        normals.index_add_(0, face.faces[:, corner], flat)
    skin = face.part == int(FacePart.SKIN)
    outward = face.vertices[skin] - face.vertices[skin].mean(0)
    if (normals[skin] * outward).sum() < 0:  # providers differ in their winding
        normals = -normals
    return torch.nn.functional.normalize(normals, dim=-1)
