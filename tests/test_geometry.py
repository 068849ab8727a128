"""Geometry against scipy, against its own inverses and against pictures one can imagine."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.spatial.transform import Rotation

from gsavatar import geometry as g
from gsavatar.types import Camera


def random_rotvecs(count: int = 200) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    axis = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    axis = torch.nn.functional.normalize(axis, dim=-1)
    angle = torch.rand(count, 1, generator=generator, dtype=torch.float64) * (math.pi - 1e-3)
    angle[:4] = torch.tensor([[0.0], [1e-9], [1e-4], [math.pi - 1e-7]])
    return axis * angle


def random_poses(count: int = 20) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    shift = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    return g.rigid(g.so3_exp(random_rotvecs(count)), shift)


def front_camera() -> Camera:
    """One metre in front of the head, upright, OpenCV."""
    view = g.look_at(torch.tensor([0.0, 0.0, 1.0]), torch.zeros(3))
    return Camera(view, g.pinhole(1200.0, 512), 512, 512)


def test_so3_exp_and_log_match_scipy():
    rotvecs = random_rotvecs()
    expected = torch.from_numpy(Rotation.from_rotvec(rotvecs.numpy()).as_matrix())
    torch.testing.assert_close(g.so3_exp(rotvecs), expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(g.so3_log(expected), rotvecs, atol=1e-8, rtol=0)


def test_so3_exp_has_finite_gradients_at_zero():
    rotvec = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(g.so3_exp, rotvec)
    assert torch.autograd.gradcheck(g.rotvec_to_quat, rotvec)


def test_quaternions_match_scipy():
    rotvecs = random_rotvecs()
    scipy = Rotation.from_rotvec(rotvecs.numpy())
    quats = g.rotvec_to_quat(rotvecs)
    torch.testing.assert_close(g.quat_to_matrix(quats), torch.from_numpy(scipy.as_matrix()))
    back = g.matrix_to_quat(torch.from_numpy(scipy.as_matrix()))
    torch.testing.assert_close((back * quats).sum(-1).abs(), torch.ones(len(quats)).double())
    product = g.quat_multiply(quats, quats.flip(0))
    expected = torch.from_numpy((scipy * Rotation.from_rotvec(rotvecs.flip(0).numpy())).as_matrix())
    torch.testing.assert_close(g.quat_to_matrix(product), expected)
    torch.testing.assert_close(g.quat_to_rotvec(-quats), rotvecs, atol=1e-8, rtol=0)
    torch.testing.assert_close(g.quat_normalize(3 * quats), quats)


def test_rigid_transforms_invert_compose_and_interpolate():
    poses = random_poses()
    eye = torch.eye(4, dtype=torch.float64).expand_as(poses)
    torch.testing.assert_close(g.se3_compose(poses, g.se3_invert(poses)), eye)
    torch.testing.assert_close(g.se3_exp(g.se3_log(poses)), poses)
    half = g.se3_interp(poses[:-1], poses[1:], 0.5)
    step = g.se3_invert(poses[:-1]) @ half
    turn = g.so3_log(step[:, :3, :3])
    whole = g.so3_log((g.se3_invert(poses[:-1]) @ poses[1:])[:, :3, :3])
    torch.testing.assert_close(2 * turn, whole)
    torch.testing.assert_close(g.se3_interp(poses[:-1], poses[1:], 1.0), poses[1:])


def test_opengl_and_opencv_see_the_same_point():
    cam_to_world = random_poses()
    inside = torch.tensor([[0.2, 0.3, -2.0]], dtype=torch.float64)  # OpenGL: right, up, in front
    world = g.transform_points(cam_to_world, inside.expand(len(cam_to_world), 1, 3))
    seen = g.transform_points(g.opengl_to_opencv(cam_to_world), world)
    expected = torch.tensor([0.2, -0.3, 2.0], dtype=torch.float64).expand_as(seen)
    torch.testing.assert_close(seen, expected)
    torch.testing.assert_close(g.opencv_to_opengl(g.opengl_to_opencv(cam_to_world)), cam_to_world)


def test_look_at_puts_the_subjects_left_on_the_right_and_up_on_top():
    camera = front_camera()
    points = torch.tensor([[0.0, 0.0, 0.0], [0.1, 0.0, 0.0], [0.0, 0.1, 0.0]])
    x, y, depth = g.project(points, camera.world_to_cam, camera.K).unbind(-1)
    torch.testing.assert_close(x, torch.tensor([256.0, 376.0, 256.0]))
    torch.testing.assert_close(y, torch.tensor([256.0, 256.0, 136.0]))
    torch.testing.assert_close(depth, torch.ones(3))


@pytest.mark.parametrize(("yaw", "pitch"), [(0.0, 0.0), (0.5, 0.0), (0.0, 0.4), (-0.6, -0.3)])
def test_orbit_keeps_the_target_and_moves_the_eye(yaw: float, pitch: float):
    camera, target = front_camera(), torch.tensor([0.02, -0.05, 0.03])
    turned = g.orbit(camera, target, yaw, pitch)
    before = g.project(target[None], camera.world_to_cam, camera.K)
    after = g.project(target[None], turned.world_to_cam, turned.K)
    torch.testing.assert_close(after, before)
    eye = g.se3_invert(turned.world_to_cam)[:3, 3] - target
    start = g.se3_invert(camera.world_to_cam)[:3, 3] - target
    assert math.isclose(float(eye.norm()), float(start.norm()), rel_tol=1e-5)
    assert math.copysign(1.0, yaw) * float(eye[0] - start[0]) >= -1e-6
    assert math.copysign(1.0, pitch) * float(eye[1] - start[1]) >= -1e-6
    if yaw == 0.5:
        ends = [math.atan2(float(v[0]), float(v[2])) for v in (eye, start)]
        assert math.isclose(ends[0] - ends[1], 0.5, abs_tol=1e-5)


def test_mediapipe_axes_become_head_axes():
    corner = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, -0.1]])  # top right; nearer than the middle
    expected = torch.tensor([[320.0, 120.0, 0.0], [0.0, 0.0, 64.0]])
    torch.testing.assert_close(g.mediapipe_to_head(corner, 640, 240), expected)


def test_angle_in_degrees():
    turn = g.so3_exp(torch.tensor([0.0, math.pi / 6, 0.0]))
    assert math.isclose(float(g.angle_deg(turn)), 30.0, rel_tol=1e-5)
