"""The first cloud: Gaussians placed on the fitted mesh and on what the mesh does not cover."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gsavatar.avatar import Avatar, AvatarBranch
from gsavatar.clip import Clip
from gsavatar.gaussians import from_points, neighbours
from gsavatar.motion import TORSO_NAMES, seeded
from gsavatar.tracking_sway import Sway
from gsavatar.types import Branch, Camera, FacePart, FittedFace, Region

FACE_PARTS = {FacePart.SKIN: 1.0, FacePart.LIPS: 5.0, FacePart.EYEBALL: 3.0, FacePart.SCALP: 0.4}
MOUTH_PARTS = {
    FacePart.UPPER_TEETH: 2.0, FacePart.LOWER_TEETH: 2.0, FacePart.TONGUE: 1.0,
    FacePart.SOCKET: 0.5,
}  # fmt: skip
"""Which parts seed which branch, with the density of seeds relative to skin."""

PART_REGIONS = {
    FacePart.SKIN: (Region.SKIN, Region.LIPS),
    FacePart.LIPS: (Region.LIPS,),
    FacePart.EYEBALL: (Region.EYES,),
    FacePart.SCALP: (Region.HAIR, Region.SKIN),
}
DEFAULT_COLORS = {
    FacePart.UPPER_TEETH: (0.75, 0.70, 0.65), FacePart.LOWER_TEETH: (0.65, 0.60, 0.55),
    FacePart.TONGUE: (0.45, 0.22, 0.20), FacePart.SOCKET: (0.15, 0.06, 0.06),
}  # fmt: skip

REFERENCE_FRAMES = 24
HAIR_VIEWS = 8
HAIR_SHARE = 0.3
HAIR_VOXEL_M = 0.003
NECK_RADIUS_M = 0.06
NECK_FADE_M = 0.08
TORSO_HALF_WIDTH_M = 0.25
TORSO_BULGE_M = 0.05
TORSO_BACK_M = -0.02
LABELLED_SHARE = 0.3
BLEND_SHARE = 0.02
"""Share of the picture over which the neck's depth passes into the chest's, each way."""
ISLAND_SHARE = 0.15
"""A pixel with less neck and clothing around it is a speck or a thread of wrong labels."""


@dataclass(frozen=True)
class SeedCounts:
    """How many Gaussians each branch starts with."""

    face: int = 6000
    mouth: int = 1500
    torso: int = 2500


@dataclass(frozen=True)
class Points:
    """Seeds before they become Gaussians."""

    means: Tensor  # [N, 3]
    shapes: Tensor  # [K, N, 3]
    part: Tensor  # [N]


def seed_avatar(
    clip: Clip, counts: SeedCounts, sh_degree: int, generator: torch.Generator,
    sway: Sway | None = None,
) -> Avatar:  # fmt: skip
    """The untrained avatar of a clip: mesh seeds, hair and torso seeds, colours from its frames.

    The torso moves by ``sway``, or not at all.
    """
    rows = spread_rows(clip.train_rows, REFERENCE_FRAMES)
    face = clip.track.face
    on_face = sample_mesh(face, FACE_PARTS, counts.face - int(HAIR_SHARE * counts.face), generator)
    hair = _hair_points(clip, rows, int(HAIR_SHARE * counts.face), generator)
    face_points = Points(
        torch.cat((on_face.means, hair)),
        torch.cat((on_face.shapes, hair.new_zeros(len(face.names), len(hair), 3)), dim=1),
        torch.cat((on_face.part, torch.full((len(hair),), int(FacePart.SCALP), dtype=torch.uint8))),
    )
    mouth_points = sample_mesh(face, MOUTH_PARTS, counts.mouth, generator)
    face_colors = _colors(clip, rows, face_points)
    mouth_colors = torch.tensor(
        [DEFAULT_COLORS[FacePart(int(p))] for p in mouth_points.part], dtype=torch.float32
    ).reshape(-1, 3)
    torso_means, torso_colors, torso_weight = _torso_points(clip, rows, counts.torso)

    def branch(
        kind: Branch, means: Tensor, colors: Tensor, shapes: Tensor, weight: Tensor
    ) -> AvatarBranch:
        spacing = neighbours(means, 4)[0].mean(-1)
        raw = from_points(means, colors, spacing, sh_degree=sh_degree)
        return AvatarBranch(kind, raw, seeded(shapes), weight)

    torso_shapes = torch.zeros(len(TORSO_NAMES), len(torso_means), 3)
    if sway is not None:
        torso_shapes = sway.shapes(torso_means, torso_weight, clip.track.cameras[0])
    ones = torch.ones
    return Avatar(
        face.names,
        (
            branch(Branch.FACE, face_points.means, face_colors, face_points.shapes,
                   ones(len(face_points.means))),
            branch(Branch.MOUTH, mouth_points.means, mouth_colors, mouth_points.shapes,
                   ones(len(mouth_points.means))),
            branch(Branch.TORSO, torso_means, torso_colors, torso_shapes, torso_weight),
        ),
    )  # fmt: skip


def spread_rows(rows: np.ndarray, count: int) -> list[int]:
    """At most ``count`` rows, evenly spaced."""
    picks = np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)
    return [int(rows[i]) for i in np.unique(picks)]


def sample_mesh(
    face: FittedFace, density: dict[FacePart, float], count: int, generator: torch.Generator
) -> Points:
    """``count`` random points on the triangles of some parts, with the shapes interpolated.

    ``density`` is the relative number by area of each part.
    """
    weight = torch.zeros(len(FacePart))
    for part, value in density.items():
        weight[int(part)] = value
    corners = face.faces[(weight[face.part.long()] > 0)[face.faces].all(-1)]
    chance = _widest_area(face, corners) * weight[face.part.long()][corners].amax(-1)
    chosen = torch.multinomial(chance, count, replacement=True, generator=generator)
    u, v = torch.rand(2, count, generator=generator)
    flip = u + v > 1
    u, v = torch.where(flip, 1 - u, u), torch.where(flip, 1 - v, v)
    mix = torch.stack((1 - u - v, u, v), dim=-1)[..., None]
    triangle = corners[chosen]
    means = (face.vertices[triangle] * mix).sum(1)
    shapes = (face.basis[:, triangle] * mix).sum(2)
    return Points(means, shapes, face.part[triangle[:, 0]])


def _widest_area(face: FittedFace, corners: Tensor) -> Tensor:
    """Twice the area of triangles [F, 3], at rest or with shut lids, whichever is more: the skin of
    open lids is folded away."""
    lids = [i for i, name in enumerate(face.names) if name.startswith("eyeBlink")]
    areas = []
    for vertices in (face.vertices, face.vertices + face.basis[lids].sum(0)):
        a, b, c = vertices[corners].unbind(1)
        areas.append(torch.linalg.cross(b - a, c - a).norm(dim=-1))
    return torch.maximum(*areas)


def project(points: Tensor, head_pose: Tensor, camera: Camera) -> Tensor:
    """Pixels and depth [N, 3] of points of the head frame."""
    to_cam = camera.world_to_cam @ head_pose
    seen = points @ to_cam[:3, :3].T + to_cam[:3, 3]
    pixels = seen @ camera.K.T
    return torch.cat((pixels[:, :2] / pixels[:, 2:], seen[:, 2:]), dim=-1)


def look_up(picture: np.ndarray, pixels: Tensor) -> Tensor:
    """Values of a picture under pixel positions [N, 2]; clamped at the border."""
    height, width = picture.shape[:2]
    x = pixels[:, 0].floor().long().clamp(0, width - 1)
    y = pixels[:, 1].floor().long().clamp(0, height - 1)
    return torch.from_numpy(picture)[y, x]


def seen_colors(
    clip: Clip, rows: list[int], points: Tensor, shapes: Tensor, part: Tensor
) -> tuple[Tensor, Tensor]:
    """Median colours [N, 3] of mesh points over frames that show their part, and a mask [N].

    ``points`` [N, 3] and ``shapes`` [K, N, 3] are in the head frame. Where the mask is False no
    frame showed the point and the colour is meaningless.
    """
    samples = torch.full((len(rows), len(points), 3), float("nan"))
    allowed_regions = {part: list(map(int, regions)) for part, regions in PART_REGIONS.items()}
    for i, row in enumerate(rows):
        moved = points + torch.einsum("k,knc->nc", clip.track.coefficients[row], shapes)
        seen = project(moved, clip.track.head_pose[row], clip.camera(row))
        labels = look_up(clip.regions(row), seen)
        colors = look_up(clip.frame(row), seen).float() / 255.0
        allowed = torch.zeros(len(labels), dtype=torch.bool)
        for kind, regions in allowed_regions.items():
            allowed |= (part == int(kind)) & torch.isin(labels, torch.tensor(regions).to(labels))
        samples[i, allowed] = colors[allowed]
    colors = samples.nanmedian(0).values
    return colors, ~colors.isnan().any(-1)


def _colors(clip: Clip, rows: list[int], points: Points) -> Tensor:
    """Colours [N, 3] of the seeds; what no frame shows gets the median of the others."""
    colors, seen = seen_colors(clip, rows, points.means, points.shapes, points.part)
    if not seen.any():
        return torch.full_like(colors, 0.5)
    return torch.where(seen[:, None], colors, colors[seen].median(0).values)


def _rays(camera: Camera, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Centre [3] and directions [N, 3] in the room of pixel positions [N, 2]."""
    rotation, shift = camera.world_to_cam[:3, :3], camera.world_to_cam[:3, 3]
    ones = torch.ones(len(pixels), 1)
    directions = torch.cat((pixels, ones), dim=-1) @ torch.linalg.inv(camera.K).T @ rotation
    return -rotation.T @ shift, torch.nn.functional.normalize(directions, dim=-1)


def _hair_points(clip: Clip, rows: list[int], count: int, generator: torch.Generator) -> Tensor:
    """Points [M, 3] (M <= count) of the head frame behind pixels labelled as hair.

    A pixel's ray meets an ellipsoid around the fitted head; past its silhouette the point of
    closest approach stands in.
    """
    face = clip.track.face
    solid = face.vertices[(face.part == int(FacePart.SKIN)) | (face.part == int(FacePart.SCALP))]
    low, high = solid.amin(0), solid.amax(0)
    centre, radii = 0.5 * (low + high), 0.53 * (high - low)
    found = []
    for row in rows[:: max(1, len(rows) // HAIR_VIEWS)]:
        y, x = np.nonzero(clip.regions(row) == int(Region.HAIR))
        if len(y) == 0:
            continue
        picks = torch.randint(0, len(y), (4 * count,), generator=generator).numpy()
        pixels = torch.from_numpy(np.stack((x[picks], y[picks]), -1)).float() + 0.5
        origin, directions = _rays(clip.camera(row), pixels)
        pose = clip.track.head_pose[row]
        origin = (origin - pose[:3, 3]) @ pose[:3, :3]
        directions = directions @ pose[:3, :3]
        o, d = (origin - centre) / radii, directions / radii
        a, b, c = (d * d).sum(-1), (o * d).sum(-1), (o * o).sum(-1) - 1.0
        distance = (-b - (b * b - a * c).clamp_min(0.0).sqrt()) / a
        found.append(origin + distance[:, None] * directions)
    if not found:
        return torch.zeros(0, 3)
    points = torch.cat(found)
    order = torch.randperm(len(points), generator=generator)
    points = points[order]
    cells = (points / HAIR_VOXEL_M).round().long().numpy()
    first = np.unique(cells, axis=0, return_index=True)[1]
    kept = points[torch.from_numpy(np.sort(first))]
    return kept[:count]


def _torso_points(clip: Clip, rows: list[int], count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Seeds of neck and torso: means [M, 3] in the room, colours and shares of the head's pose.

    Pixels that are mostly neck or clothing lie on a shallow sheet: a cylinder for the neck and a
    gently bulging plane for the chest, the one passing into the other.
    """
    labels = np.stack([clip.regions(row) for row in rows])
    neck = (labels == int(Region.NECK)).mean(0)
    torso = (labels == int(Region.TORSO)).mean(0)
    share, around = _blended(neck, torso)
    y, x = np.nonzero((neck + torso > LABELLED_SHARE) & (around > ISLAND_SHARE))
    if len(y) == 0:  # a face that fills the picture: one faint seed keeps the branch's shapes valid
        y, x = np.array([labels.shape[1] - 1]), np.array([labels.shape[2] // 2])
    step = max(1.0, len(y) / max(count, 1))
    picks = np.unique((np.arange(min(count, len(y))) * step).astype(int))
    rng = np.random.default_rng(0)
    order = rng.permutation(len(y))[picks]
    y, x = y[order], x[order]
    is_neck = torch.from_numpy(neck[y, x] >= torso[y, x])
    roundness = torch.from_numpy(share[y, x])
    pixels = torch.from_numpy(np.stack((x, y), -1)).float() + 0.5
    origin, directions = _rays(clip.track.cameras[0], pixels)
    depth = torch.zeros(len(y))
    for _ in range(3):
        points = origin + ((depth - origin[2]) / directions[:, 2])[:, None] * directions
        round_neck = (NECK_RADIUS_M**2 - points[:, 0] ** 2).clamp_min(0.0).sqrt()
        bulge = (1.0 - (points[:, 0] / TORSO_HALF_WIDTH_M) ** 2).clamp_min(0.0).sqrt()
        chest = TORSO_BACK_M + TORSO_BULGE_M * bulge
        depth = roundness * round_neck + (1.0 - roundness) * chest
    colors = torch.stack(
        [look_up(clip.frame(row), pixels).float() / 255.0 for row in rows[::3]]
    ).median(0).values  # fmt: skip
    chin = clip.track.face.vertices[clip.track.face.part == int(FacePart.SKIN)][:, 1].amin()
    height = ((points[:, 1] - chin + NECK_FADE_M) / NECK_FADE_M).clamp(0.0, 1.0)
    weight = torch.where(is_neck, height * height * (3 - 2 * height), 0.0)
    return points, colors, weight


def _blended(neck: np.ndarray, torso: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How much of the neck's depth a pixel takes, and how much of its surroundings is either.

    Both are [H, W], 0-1, and smooth over some centimetres: a step of depth along the collar opens
    as a gap in other views, and specks of wrong labels would float beside the head.
    """
    maps = torch.from_numpy(np.stack((neck, neck + torso))).float()[None]
    side = 2 * round(BLEND_SHARE * neck.shape[0]) + 1
    for _ in range(3):  # three boxes are nearly a Gaussian
        maps = torch.nn.functional.avg_pool2d(maps, side, 1, side // 2)
    around = maps[0, 1]
    return (maps[0, 0] / around.clamp_min(1e-6)).numpy(), around.numpy()
