"""Rotations, rigid transforms and cameras: the one place where frames and conventions convert.

Rotation vectors are axis times angle in radians; quaternions are wxyz; rigid transforms are 4x4
matrices named ``target_from_source`` or ``source_to_target``. All functions take any batch axes,
keep the dtype and device of their input and are differentiable, unless said otherwise.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gsavatar.types import Camera

SMALL_ANGLE_2 = 1e-6
"""Squared angle below which series replace divisions: their error is then under 1e-13."""


def skew(vectors: Tensor) -> Tensor:
    """Matrices [*B, 3, 3] that take the cross product with ``vectors`` [*B, 3]."""
    x, y, z = vectors.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack((zero, -z, y, z, zero, -x, -y, x, zero), dim=-1).unflatten(-1, (3, 3))


def so3_exp(rotvec: Tensor) -> Tensor:
    """Rotation matrices [*B, 3, 3] of rotation vectors [*B, 3]."""
    square = (rotvec * rotvec).sum(-1)[..., None, None]
    small = square < SMALL_ANGLE_2
    safe = torch.where(small, torch.ones_like(square), square)
    angle = safe.sqrt()
    first = torch.where(small, 1 - square / 6, angle.sin() / angle)
    second = torch.where(small, 0.5 - square / 24, (1 - angle.cos()) / safe)
    cross = skew(rotvec)
    eye = torch.eye(3, dtype=rotvec.dtype, device=rotvec.device)
    return eye + first * cross + second * (cross @ cross)


def so3_log(rotation: Tensor) -> Tensor:
    """Rotation vectors [*B, 3], at most pi long, of rotation matrices [*B, 3, 3]."""
    return quat_to_rotvec(matrix_to_quat(rotation))


def rotvec_to_quat(rotvec: Tensor) -> Tensor:
    """Unit quaternions [*B, 4] of rotation vectors [*B, 3]."""
    square = (rotvec * rotvec).sum(-1, keepdim=True)
    small = square < SMALL_ANGLE_2
    angle = torch.where(small, torch.ones_like(square), square).sqrt()
    real = torch.where(small, 1 - square / 8, (angle / 2).cos())
    share = torch.where(small, 0.5 - square / 48, (angle / 2).sin() / angle)
    return torch.cat((real, share * rotvec), dim=-1)


def quat_to_rotvec(quats: Tensor) -> Tensor:
    """Rotation vectors [*B, 3] of unit quaternions [*B, 4], whose sign does not matter."""
    quats = torch.where(quats[..., :1] < 0, -quats, quats)
    real, axis = quats[..., :1], quats[..., 1:]
    square = (axis * axis).sum(-1, keepdim=True)
    small = square < SMALL_ANGLE_2
    sine = torch.where(small, torch.ones_like(square), square).sqrt()
    scale = torch.where(small, 2 + square / 3, 2 * torch.atan2(sine, real) / sine)
    return scale * axis


def quat_normalize(quats: Tensor) -> Tensor:
    """Quaternions of length one."""
    return torch.nn.functional.normalize(quats, dim=-1)


def quat_multiply(left: Tensor, right: Tensor) -> Tensor:
    """The rotation ``right`` followed by ``left``, [*B, 4]; batch axes broadcast."""
    a, b, c, d = left.unbind(-1)
    w, x, y, z = right.unbind(-1)
    return torch.stack(
        (
            a * w - b * x - c * y - d * z,
            a * x + b * w + c * z - d * y,
            a * y - b * z + c * w + d * x,
            a * z + b * y - c * x + d * w,
        ),
        dim=-1,
    )


def quat_to_matrix(quats: Tensor) -> Tensor:
    """Rotation matrices [*B, 3, 3] of unit quaternions [*B, 4]."""
    w, x, y, z = quats.unbind(-1)
    entries = (
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    )  # fmt: skip
    return torch.stack(entries, dim=-1).unflatten(-1, (3, 3))


def matrix_to_quat(rotation: Tensor) -> Tensor:
    """Unit quaternions [*B, 4] of rotation matrices [*B, 3, 3].

    The largest of the four components is found first and the others divided by it, which is
    accurate at every angle.
    """
    m = rotation.flatten(-2).unbind(-1)
    xx, xy, xz, yx, yy, yz, zx, zy, zz = m
    rows = (
        (1 + xx + yy + zz, zy - yz, xz - zx, yx - xy),
        (zy - yz, 1 + xx - yy - zz, yx + xy, xz + zx),
        (xz - zx, yx + xy, 1 - xx + yy - zz, zy + yz),
        (yx - xy, xz + zx, zy + yz, 1 - xx - yy + zz),
    )
    table = torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)  # 4 q q^T
    largest = table.diagonal(dim1=-2, dim2=-1).argmax(-1)
    index = largest[..., None, None].expand(*largest.shape, 1, 4)
    return quat_normalize(table.gather(-2, index).squeeze(-2))


def rigid(rotation: Tensor, shift: Tensor) -> Tensor:
    """Transforms [*B, 4, 4] that turn by ``rotation`` [*B, 3, 3] and then move by ``shift``."""
    top = torch.cat((rotation, shift[..., None]), dim=-1)
    last = top.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(*top.shape[:-2], 1, 4)
    return torch.cat((top, last), dim=-2)


def se3_exp(twist: Tensor) -> Tensor:
    """Transforms [*B, 4, 4] of (shift, rotation vector) pairs [*B, 6]; the two stay separate."""
    return rigid(so3_exp(twist[..., 3:]), twist[..., :3])


def se3_log(transform: Tensor) -> Tensor:
    """The (shift, rotation vector) pairs [*B, 6] that ``se3_exp`` takes."""
    return torch.cat((transform[..., :3, 3], so3_log(transform[..., :3, :3])), dim=-1)


def se3_compose(left: Tensor, right: Tensor) -> Tensor:
    """The transform ``right`` followed by ``left``, [*B, 4, 4]."""
    return left @ right


def se3_invert(transform: Tensor) -> Tensor:
    """Inverses [*B, 4, 4] of rigid transforms."""
    back = transform[..., :3, :3].mT
    return rigid(back, -(back @ transform[..., :3, 3:])[..., 0])


def se3_interp(first: Tensor, second: Tensor, share: Tensor | float) -> Tensor:
    """Transforms on the way from ``first`` to ``second``: the shift linear, the turn spherical.

    ``share`` is a number or [*B]; 0 gives the first, 1 the second, others extrapolate.
    """
    part = torch.as_tensor(share, dtype=first.dtype, device=first.device)[..., None]
    turn = so3_log(first[..., :3, :3].mT @ second[..., :3, :3]) * part
    shift = first[..., :3, 3] + part * (second[..., :3, 3] - first[..., :3, 3])
    return rigid(first[..., :3, :3] @ so3_exp(turn), shift)


def transform_points(transform: Tensor, points: Tensor) -> Tensor:
    """Points [*B, N, 3] moved by transforms [*B, 4, 4]."""
    return points @ transform[..., :3, :3].mT + transform[..., None, :3, 3]


def project(points: Tensor, world_to_cam: Tensor, K: Tensor) -> Tensor:
    """Pixels and depth [*B, N, 3] of world points [*B, N, 3] in OpenCV cameras."""
    seen = transform_points(world_to_cam, points)
    depth = seen[..., 2:]
    pixels = (seen / depth) @ K.mT
    return torch.cat((pixels[..., :2], depth), dim=-1)


def flip_camera_axes(world_to_cam: Tensor) -> Tensor:
    """Converts world-to-camera transforms between OpenGL (y up, looking along -z) and OpenCV.

    The conversion is its own inverse: it negates the camera's y and z axes.
    """
    signs = world_to_cam.new_tensor([1.0, -1.0, -1.0, 1.0])
    return signs[:, None] * world_to_cam


def opengl_to_opencv(cam_to_world: Tensor) -> Tensor:
    """OpenCV world-to-camera transforms [*B, 4, 4] of OpenGL camera-to-world ones."""
    return flip_camera_axes(se3_invert(cam_to_world))


def opencv_to_opengl(world_to_cam: Tensor) -> Tensor:
    """OpenGL camera-to-world transforms [*B, 4, 4] of OpenCV world-to-camera ones."""
    return se3_invert(flip_camera_axes(world_to_cam))


def mediapipe_to_head(points: Tensor, width: float, height: float) -> Tensor:
    """MediaPipe's normalised landmarks [*B, N, 3] with the head frame's axes, in pixels.

    MediaPipe's x and z are in picture widths, y in heights, y grows downwards and z away from the
    camera; the head frame has y up and z towards the camera. The origin is the picture's middle.
    """
    scale = points.new_tensor([width, -height, -width])
    return (points - points.new_tensor([0.5, 0.5, 0.0])) * scale


def look_at(eye: Tensor, target: Tensor, up: Tensor | None = None) -> Tensor:
    """OpenCV world-to-camera transforms [*B, 4, 4] that see ``target`` in the middle from ``eye``.

    ``up`` [3] defaults to +y and must not be parallel to the line of sight.
    """
    up = eye.new_tensor([0.0, 1.0, 0.0]) if up is None else up
    forward = torch.nn.functional.normalize(target - eye, dim=-1)
    up = up.expand_as(forward)
    right = torch.nn.functional.normalize(torch.linalg.cross(forward, up, dim=-1), dim=-1)
    down = torch.linalg.cross(forward, right, dim=-1)
    rotation = torch.stack((right, down, forward), dim=-2)
    return rigid(rotation, -(rotation @ eye[..., None])[..., 0])


def orbit(camera: Camera, target: Tensor, yaw_rad: float, pitch_rad: float = 0.0) -> Camera:
    """The camera carried around a point ``target`` [3] of the room, which keeps its pixel.

    Positive yaw carries it towards +x (the subject's left), positive pitch upwards; the turn is
    about the room's vertical axis, then about the camera's own horizontal one.
    """
    view = camera.world_to_cam
    axes = view.new_tensor([[0.0, -yaw_rad, 0.0], [pitch_rad, 0.0, 0.0]])
    about_up, about_right = so3_exp(axes)
    # In the camera frame x is to the right, so pitching the room up around it lifts the camera.
    rotation = about_right @ view[..., :3, :3] @ about_up
    middle = transform_points(view, target.to(view)[None])[..., 0, :]
    shift = middle - (rotation @ target.to(view)[:, None])[..., 0]
    return Camera(rigid(rotation, shift), camera.K, camera.width, camera.height)


def pinhole(
    focal_px: float, size: int, principal_point: tuple[float, float] | None = None
) -> Tensor:
    """The intrinsic matrix [3, 3] of a square picture, by default seen through its middle."""
    cx, cy = principal_point if principal_point is not None else (size / 2, size / 2)
    return torch.tensor([[focal_px, 0.0, cx], [0.0, focal_px, cy], [0.0, 0.0, 1.0]])


def angle_deg(rotation: Tensor) -> Tensor:
    """Angles [*B] in degrees of rotation matrices [*B, 3, 3]."""
    return so3_log(rotation).norm(dim=-1) * (180.0 / math.pi)
