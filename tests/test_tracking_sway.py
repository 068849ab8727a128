"""A torso's own path: found in pictures with known truth, explained by the pose, and undone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from conftest import tiny_camera
from torch import Tensor

from gsavatar.clip import Clip
from gsavatar.geometry import quat_to_matrix, rotvec_to_quat
from gsavatar.motion import torso_coefficients
from gsavatar.render import crop_camera
from gsavatar.tracking_sway import Sway, measure_sway
from gsavatar.types import PROTOCOL_SIZE, Camera, Region

FRAMES = 80
CENTRE = np.array([256.0, 400.0])
FOLLOWS = np.array([18.0, 4.0, 0.02])
"""Pixels, pixels and radians for a head that moves 2 cm to the right."""


def rigid(motion: np.ndarray) -> np.ndarray:
    """The map [2, 3] of shift and roll about ``CENTRE``."""
    c, s = np.cos(motion[2]), np.sin(motion[2])
    turn = np.array([[c, -s], [s, c]])
    return np.column_stack((turn, CENTRE + motion[:2] - turn @ CENTRE))


def swaying(
    truth: np.ndarray, poses: Tensor, lost: tuple[int, ...] = (),
    cameras: tuple[Camera, ...] = (tiny_camera(),),
) -> Any:  # fmt: skip
    """What a clip tells of a textured torso that moves by ``truth`` [T, 3] in front of grey."""
    rng = np.random.default_rng(0)
    texture = cv2.GaussianBlur(rng.uniform(0, 255, (512, 512, 3)).astype(np.float32), (0, 0), 6)
    texture = (255 * (texture - texture.min()) / np.ptp(texture)).astype(np.uint8)
    shape = np.zeros((512, 512), np.uint8)
    cv2.ellipse(shape, ((256.0, 430.0), (320.0, 200.0), 0.0), 1, -1)
    size = (PROTOCOL_SIZE, PROTOCOL_SIZE)
    drawn = {}

    def draw(row: int) -> tuple[np.ndarray, np.ndarray]:
        if row not in drawn:
            warp = rigid(truth[row])
            there = cv2.warpAffine(shape, warp, size, flags=cv2.INTER_NEAREST)
            moved = cv2.warpAffine(texture, warp, size)
            if row in lost:
                moved = np.random.default_rng(row).integers(0, 255, moved.shape, np.uint8)
            frame = np.where(there[..., None] > 0, moved, np.uint8(128))
            drawn[row] = frame, np.where(there > 0, np.uint8(Region.TORSO), np.uint8(0))
        return drawn[row]

    track = SimpleNamespace(
        head_pose=poses, cameras=cameras, file_index=torch.arange(FRAMES) * len(cameras) // FRAMES
    )
    return SimpleNamespace(
        track=track, time_s=torch.arange(FRAMES) / 25.0, train_rows=np.arange(FRAMES),
        frame=lambda row: draw(row)[0], regions=lambda row: draw(row)[1],
        camera=lambda row: cameras[int(track.file_index[row])],
    )  # fmt: skip


def heads() -> Tensor:
    """Poses [T, 4, 4] that shift to and fro and nod a little."""
    time = torch.arange(FRAMES) / 25.0
    poses = torch.eye(4).repeat(FRAMES, 1, 1)
    nod = 0.05 * torch.stack((torch.sin(5 * time),) * 3, -1)
    poses[:, :3, :3] = quat_to_matrix(rotvec_to_quat(nod))
    poses[:, 0, 3] = 0.02 * torch.sin(2 * time)
    return poses


def own_path() -> np.ndarray:
    """Shift and roll [T, 3] that have nothing to do with the head."""
    time = np.arange(FRAMES) / 25.0
    return np.column_stack((3 * np.sin(9 * time), 2 * np.cos(11 * time), 0.01 * np.sin(13 * time)))


@pytest.fixture(scope="module")
def measured() -> tuple[Sway, np.ndarray]:
    poses, own = heads(), own_path()
    with_head = torso_coefficients(poses)[:, 3:4].numpy() * FOLLOWS
    return measure_sway(swaying(with_head + own, poses, lost=(20, 22, 24, 26, 28, 30))), own


def seen_of(sway: Sway, motion: Tensor) -> np.ndarray:
    """Pixels, pixels and radians about ``CENTRE`` of a motion in tangents about another centre."""
    camera = tiny_camera()
    seen = camera.world_to_cam[:3, :3] @ sway.centre + camera.world_to_cam[:3, 3]
    arm = (torch.from_numpy(CENTRE).float() - camera.K[:2, 2]) / camera.K[0, 0]
    arm = arm - seen[:2] / seen[2]
    moved = motion[..., :2] + motion[..., 2:] * torch.stack((-arm[1], arm[0]))
    return torch.cat((moved * camera.K[0, 0], motion[..., 2:]), -1).numpy()


def test_what_the_head_explains_is_found(measured: tuple[Sway, np.ndarray]) -> None:
    found = seen_of(measured[0], measured[0].per_pose)
    assert abs(found[3, 0] - FOLLOWS[0]) < 1.0 and abs(found[3, 2] - FOLLOWS[2]) < 0.004
    assert np.abs(np.delete(found[:, :2], 3, 0)).max() < 3.0


def test_what_it_does_not_is_left_and_what_was_not_seen_is_nothing(
    measured: tuple[Sway, np.ndarray],
) -> None:
    left = seen_of(measured[0], measured[0].left)
    seen = np.r_[0:16, 36 : FRAMES - 2]
    error = left[seen] - measured[1][seen]
    error -= error.mean(0)  # the reference is one of the frames
    assert np.abs(error[:, :2]).mean() < 0.6 and np.abs(error[:, 2]).mean() < 0.002
    assert np.abs(measured[1][seen, :2]).mean() > 1.5
    assert (left[24:27] == 0.0).all()  # hidden by noise for half a second


def test_shapes_move_places_as_the_pose_tells(measured: tuple[Sway, np.ndarray]) -> None:
    sway, camera = measured[0], tiny_camera()
    means = torch.tensor([[0.05, -0.12, -0.02], [-0.08, -0.15, 0.03], [0.0, -0.1, 0.0]])
    shapes = sway.shapes(means, torch.tensor([0.0, 0.0, 1.0]), camera)

    def project(points: Tensor) -> Tensor:
        seen = points @ camera.world_to_cam[:3, :3].T + camera.world_to_cam[:3, 3]
        pixels = seen @ camera.K.T
        return pixels[:, :2] / pixels[:, 2:]

    apart = project(means + shapes[3]) - project(means)
    for moved, place in zip(apart[:2], project(means)[:2], strict=True):
        c = torch.from_numpy(CENTRE).float()
        motion = torch.from_numpy(seen_of(sway, sway.per_pose[3])).float()
        arm = place - c
        expected = motion[:2] + motion[2] * torch.stack((-arm[1], arm[0]))
        assert torch.allclose(moved, expected, atol=0.02)
    assert (apart[2] == 0.0).all()  # the neck takes the head's pose as a whole


def test_a_smaller_picture_and_a_crop_are_moved_alike(measured: tuple[Sway, np.ndarray]) -> None:
    sway, camera = measured[0], tiny_camera()
    means, none = torch.tensor([[0.05, -0.12, -0.02]]), torch.zeros(1)
    whole = sway.pixels(3, means, none, camera)
    assert whole.abs().max() > 1.0
    assert torch.allclose(sway.pixels(3, means, none, camera.resized(128, 128)), whole / 4)
    assert torch.allclose(
        sway.pixels(3, means, none, crop_camera(camera, (100, 50, 356, 306))), whole
    )
    assert (sway.pixels(3, means, torch.ones(1), camera) == 0.0).all()


def test_another_crop_of_a_second_file_is_no_motion() -> None:
    poses, own = heads(), own_path()
    first, second = tiny_camera(), tiny_camera()
    second.K[:2, 2] += torch.tensor([40.0, -12.0])
    framed = own + np.where(np.arange(FRAMES)[:, None] < FRAMES // 2, 0.0, [40.0, -12.0, 0.0])
    left = seen_of(sway := measure_sway(swaying(framed, poses, cameras=(first, second))), sway.left)
    halves = left[: FRAMES // 2, :2].mean(0) - left[FRAMES // 2 :, :2].mean(0)
    wanted = own[: FRAMES // 2, :2].mean(0) - own[FRAMES // 2 :, :2].mean(0)
    assert np.abs(halves - wanted).max() < 1.0 and np.abs(left).max() > 2.0
    error = left[: FRAMES - 2] - own[: FRAMES - 2]
    assert np.abs((error - error.mean(0))[:, :2]).mean() < 0.8


def test_too_little_of_a_torso_is_left_alone(tiny_clip: Clip) -> None:
    clip = swaying(own_path(), heads())
    clip.train_rows = np.arange(40)  # every second is looked at: too few
    regions = clip.regions
    few = measure_sway(clip)
    clip.train_rows = np.arange(FRAMES)
    clip.regions = lambda row: np.where(np.arange(512)[:, None] > 508, regions(row), 0)
    narrow = measure_sway(clip)
    for sway in (few, narrow):
        assert (sway.per_pose == 0).all() and (sway.left == 0).all()
