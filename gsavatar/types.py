"""The data every stage exchanges: frozen dataclasses of tensors with stated shapes and frames.

Units are metres, seconds, radians and sRGB 0-1. ``*B`` is any number of batch axes, N Gaussians,
K motion coefficients, T frames. Head frame: +x to the subject's left, +y up, +z out of the face.
Room frame: the head frame of the clip's rest pose, fixed to the camera. Cameras are OpenCV
(x right, y down, z forward) with pixel centres at +0.5.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace
from enum import IntEnum
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

PROTOCOL_SIZE = 512
"""Side of the square pictures that every stored frame and every metric uses, in pixels."""


class Region(IntEnum):
    """What a pixel of a frame shows; the value stored in the label plane."""

    BACKGROUND = 0
    SKIN = 1
    HAIR = 2
    LIPS = 3
    INNER_MOUTH = 4
    EYES = 5
    NECK = 6
    TORSO = 7


HEAD_REGIONS = (Region.SKIN, Region.HAIR, Region.LIPS, Region.INNER_MOUTH, Region.EYES)


class Branch(IntEnum):
    """Which part of the avatar a Gaussian belongs to."""

    FACE = 0
    MOUTH = 1
    TORSO = 2


T_ = TypeVar("T_")


def to_device(value: T_, device: torch.device | str) -> T_:
    """The same value with every tensor in it moved to ``device``: those of dataclasses, tuples and
    dicts too, at any depth."""
    moved: Any = value
    if isinstance(value, Tensor):
        moved = value.to(device)
    elif isinstance(value, dict):
        moved = {key: to_device(item, device) for key, item in value.items()}
    elif isinstance(value, tuple):
        moved = tuple(to_device(item, device) for item in value)
    elif is_dataclass(value) and not isinstance(value, type):
        items = {f.name: to_device(getattr(value, f.name), device) for f in fields(value)}
        moved = replace(value, **items)
    return cast("T_", moved)


@dataclass(frozen=True)
class Camera:
    """A pinhole camera without distortion."""

    world_to_cam: Tensor  # [*B, 4, 4]
    K: Tensor  # [*B, 3, 3], pixels
    width: int
    height: int

    def resized(self, width: int, height: int) -> Camera:
        """The same view with another number of pixels."""
        scale = torch.tensor([width / self.width, height / self.height, 1.0]).to(self.K)
        return Camera(self.world_to_cam, self.K * scale[:, None], width, height)


@dataclass(frozen=True)
class Curves:
    """A performance: named coefficients and the head's path over time. What ``render`` plays."""

    names: tuple[str, ...]
    time_s: Tensor  # [T] float64
    values: Tensor  # [T, K]
    head_pose: Tensor  # [T, 4, 4], head -> room
    audio: Tensor | None = None  # [T, L, A], what a field hears; not part of a curve file


@dataclass(frozen=True)
class Drive:
    """What moves the avatar at one instant (or at a batch of instants)."""

    coefficients: Tensor  # [*B, K], 0 is rest and 1 the rig's full shape
    head_pose: Tensor  # [*B, 4, 4], head -> room
    audio: Tensor | None = None  # [*B, L, A], read by the talkinggaussian fields only


@dataclass(frozen=True)
class Gaussians:
    """Renderable Gaussians in the room frame."""

    means: Tensor  # [*B, N, 3]
    quats: Tensor  # [*B, N, 4], wxyz, unit
    scales: Tensor  # [*B, N, 3] > 0
    opacities: Tensor  # [*B, N] in 0..1
    sh: Tensor  # [*B, N, S, 3], S = 1, 4, 9 or 16
    branch: Tensor  # [N] int32, values of Branch


@dataclass(frozen=True)
class Offsets:
    """Motion added to the canonical Gaussians; zeros are the canonical cloud."""

    means: Tensor  # [*B, N, 3]
    rotvecs: Tensor  # [*B, N, 3]
    log_scales: Tensor  # [*B, N, 3]


@dataclass(frozen=True)
class Rendering:
    """What a camera sees of the Gaussians over a background."""

    rgb: Tensor  # [*B, H, W, 3], background included
    alpha: Tensor  # [*B, H, W, 1]
    branch_alpha: Tensor  # [*B, H, W, 3], share of the composited weight per Branch
    depth: Tensor  # [*B, H, W, 1], weighted z / alpha is the mean depth
    extras: Tensor | None = None  # [*B, H, W, C], other values composited over zero


@dataclass(frozen=True)
class Frame:
    """One frame of a clip with everything known about it."""

    index: int
    time_s: float
    image: Tensor  # [*B, H, W, 3], 0-1
    regions: Tensor  # [*B, H, W] uint8, values of Region
    lips: Tensor  # [*B, 4], box (top, left, bottom, right) in pixels of `image`
    weight: Tensor  # [*B], 1 for a clean frame, less where blurred or occluded
    camera: Camera
    drive: Drive


@dataclass(frozen=True)
class Landmarks:
    """Face landmarks of a sequence, in protocol pixels."""

    points: Tensor  # [T, 478, 3] float32; x, y in pixels, z in the same unit (smaller is nearer)
    found: Tensor  # [T] bool; points are NaN where False
    scores: Tensor | None  # [T, 52] float32 blendshape scores in ARKIT_NAMES order, None if unknown


@dataclass(frozen=True)
class FittedFace:
    """The person's rest mesh with its named shapes, in the head frame (metres)."""

    provider: str
    names: tuple[str, ...]  # K coefficient names
    vertices: Tensor  # [V, 3]
    basis: Tensor  # [K, V, 3], displacement at coefficient 1
    faces: Tensor  # [F, 3] int64
    part: Tensor  # [V] uint8, values of FacePart
    landmark_corners: Tensor | None = None  # [L, 3] int64, vertices under each of FITTED_POINTS
    landmark_shares: Tensor | None = None  # [L, 3], barycentric; None in clips of older versions


class FacePart(IntEnum):
    """Anatomy of a mesh vertex: decides branch, region and seeding density."""

    SKIN = 0
    LIPS = 1
    EYEBALL = 2
    SCALP = 3
    NECK = 4
    UPPER_TEETH = 5
    LOWER_TEETH = 6
    TONGUE = 7  # gums and tongue
    SOCKET = 8  # inside of the mouth
    LASH = 9


@dataclass(frozen=True)
class Track:
    """The 3DMM fit over a whole clip. Rows are the usable frames, in time order."""

    frame_ids: Tensor  # [T] int64, position in the decoded source (never re-indexed)
    time_s: Tensor  # [T] float64, presentation time
    file_index: Tensor  # [T] int64, which input file
    cameras: tuple[Camera, ...]  # one per file, protocol pixels
    head_pose: Tensor  # [T, 4, 4] float32, head -> room; its median per file is the identity
    coefficients: Tensor  # [T, K] float32, in the order of face.names
    weight: Tensor  # [T] float32
    face: FittedFace
    focal_sigma: float | None = None  # of the focal length over itself; None where it was assumed
    notes: tuple[str, ...] = ()  # what its user should know of the fit; not kept in its file


@dataclass(frozen=True)
class KnownPoses:
    """Where a head was in some frames, known before any fit; OpenCV cameras, of any head frame.

    With ``room_to_cam`` the head frame is this project's own and the unit the metre; without it the
    head frame may be any other, turned, shifted and scaled.
    """

    frame_ids: Tensor  # [P] int64, ascending
    head_to_cam: Tensor  # [P, 4, 4] float64
    room_to_cam: Tensor | None = None  # [4, 4] float64


ARKIT_NAMES: tuple[str, ...] = (
    "_neutral", "browDownLeft", "browDownRight", "browInnerUp", "browOuterUpLeft",
    "browOuterUpRight", "cheekPuff", "cheekSquintLeft", "cheekSquintRight", "eyeBlinkLeft",
    "eyeBlinkRight", "eyeLookDownLeft", "eyeLookDownRight", "eyeLookInLeft", "eyeLookInRight",
    "eyeLookOutLeft", "eyeLookOutRight", "eyeLookUpLeft", "eyeLookUpRight", "eyeSquintLeft",
    "eyeSquintRight", "eyeWideLeft", "eyeWideRight", "jawForward", "jawLeft", "jawOpen",
    "jawRight", "mouthClose", "mouthDimpleLeft", "mouthDimpleRight", "mouthFrownLeft",
    "mouthFrownRight", "mouthFunnel", "mouthLeft", "mouthLowerDownLeft", "mouthLowerDownRight",
    "mouthPressLeft", "mouthPressRight", "mouthPucker", "mouthRight", "mouthRollLower",
    "mouthRollUpper", "mouthShrugLower", "mouthShrugUpper", "mouthSmileLeft", "mouthSmileRight",
    "mouthStretchLeft", "mouthStretchRight", "mouthUpperUpLeft", "mouthUpperUpRight",
    "noseSneerLeft", "noseSneerRight",
)  # fmt: skip
"""MediaPipe's 52 scores in its order: ARKit's names with `_neutral` first and no tongueOut."""

UPPER_FACE_PREFIXES = (
    "browDown", "browInnerUp", "browOuterUp", "eyeBlink", "eyeLook", "eyeSquint", "eyeWide",
    "cheekSquint",
)  # fmt: skip


def is_upper_face(name: str) -> bool:
    """Whether a coefficient is replayed from the fit rather than predicted from speech."""
    return name.startswith(UPPER_FACE_PREFIXES)
