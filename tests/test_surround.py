"""Views from beside the camera: the mesh is where it should be, and nearer parts hide farther."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch

from gsavatar import seeding
from gsavatar.clip import Clip
from gsavatar.surround import Surround, continued, looked_at, turned, vertex_normals
from gsavatar.types import Drive


def test_turning_keeps_the_centre_in_place(tiny_clip: Clip) -> None:
    camera, centre = tiny_clip.camera(0), torch.tensor([0.01, 0.02, 0.03])
    for yaw, pitch in ((0.5, 0.0), (-0.7, 0.2)):
        moved = turned(camera, centre, yaw, pitch)
        before = camera.world_to_cam[:3, :3] @ centre + camera.world_to_cam[:3, 3]
        after = moved.world_to_cam[:3, :3] @ centre + moved.world_to_cam[:3, 3]
        torch.testing.assert_close(before, after)


def test_normals_point_outward(tiny_clip: Clip) -> None:
    face = tiny_clip.track.face
    normals = vertex_normals(face)[:289]
    assert ((normals * face.vertices[:289]).sum(-1) > 0).float().mean() > 0.95


def test_the_front_view_shows_the_frame_and_the_side_view_a_narrower_head(tiny_clip: Clip) -> None:
    surround = Surround(tiny_clip)
    row = int(tiny_clip.train_rows[0])
    drive = Drive(tiny_clip.track.coefficients[row], tiny_clip.track.head_pose[row])
    front = surround.view(drive, surround.camera)
    y, x = front.covered.nonzero().T
    assert len(y) > 50
    picture = torch.from_numpy(tiny_clip.frame(row)).float() / 255.0
    scale = 512 / surround.camera.width
    under = picture[((y + 0.5) * scale).long(), ((x + 0.5) * scale).long()]
    assert (front.color[y, x] - under).abs().median() < 0.08
    side = surround.view(drive, turned(surround.camera, surround.centre, math.radians(60), 0.0))

    def width(mask: torch.Tensor) -> int:
        columns = mask.any(0).nonzero()[:, 0]
        return int(columns[-1] - columns[0])

    assert width(side.covered) < 0.9 * width(front.covered)


def test_no_background_sticks_to_the_mesh(tiny_clip: Clip) -> None:
    face = tiny_clip.track.face
    everything = torch.arange(289)
    # A mesh a tenth too wide: its rim lies on the background, a pixel or more beyond the head.
    wide = replace(face, vertices=face.vertices * torch.tensor([1.1, 1.0, 1.0]))
    clip = replace(tiny_clip, track=replace(tiny_clip.track, face=wide))
    colors, known = continued(looked_at(clip, everything, vertex_normals(wide)[:289]))
    background = torch.tensor([60.0, 90.0, 120.0]) / 255.0
    assert known.sum() > 200
    assert (colors[known] - background).abs().amax(-1).min() > 0.2


def test_what_no_frame_faces_continues_its_neighbours(tiny_clip: Clip) -> None:
    face = tiny_clip.track.face
    normals = vertex_normals(face)[:289]
    side = face.vertices[:289, 0].abs() > 0.06
    away = torch.where(side[:, None], -normals, normals)
    colors, known = continued(looked_at(tiny_clip, torch.arange(289), away))
    whole, seen = continued(looked_at(tiny_clip, torch.arange(289), normals))
    both = side & known & seen
    assert both.sum() > 30
    assert (colors - whole)[both].abs().amax(-1).median() < 0.15


def test_draws_repeat(tiny_clip: Clip) -> None:
    surround = Surround(tiny_clip)
    drive = Drive(torch.zeros(2), torch.eye(4))
    a, b = (surround.draw(drive, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(a.color, b.color) and torch.equal(
        a.camera.world_to_cam, b.camera.world_to_cam
    )


def test_the_neck_passes_into_the_chest_without_a_step() -> None:
    neck, torso = np.zeros((256, 256)), np.zeros((256, 256))
    neck[120:170, 90:170] = 1.0
    torso[170:, 40:220] = 1.0
    torso[60:64, 20:24] = 1.0  # a speck of wrong labels
    share, around = seeding._blended(neck, torso)
    assert share[125, 130] > 0.95 and share[220, 130] < 0.05
    along = share[120:230, 130]  # downwards, over the collar
    assert (np.diff(along) < 1e-6).all() and np.abs(np.diff(along)).max() < 0.1
    assert share.max() <= 1.0 + 1e-6
    assert around[62, 22] < seeding.ISLAND_SHARE < around[170:, 40:220].min()  # corners stay
