"""Where a head may show what, from its landmarks alone: the beliefs that colours then sharpen.

Everything is worked out on a grid of half the picture's size, in units of the head: the landmarks'
depth gives its turn, so that the line from chin to nape lies right in a profile too.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from gsavatar.landmarks import CHIN, FACE_OVAL, FACE_TOP

Float = NDArray[np.float32]
UInt8 = NDArray[np.uint8]
Mask = NDArray[np.bool_]

RIGHT_EAR, LEFT_EAR, NOSE_BASE = 234, 454, 2
EARS_M, MIDLINE_M, MIDLINE_TILT_RAD = 0.1454, 0.1062, 0.171
"""On an average head: between the ears, from the hairline's middle to the nose's base, and how far
that line leans forward."""

NECK_LINE = (
    (152, (0.0, 0.005, -0.034)), (150, (-0.0143, 0.014, -0.025)), (172, (-0.0185, 0.021, -0.013)),
    (58, (-0.0125, 0.029, -0.018)), (58, (-0.0055, 0.0245, -0.038)),
    (58, (-0.0055, 0.0195, -0.058)), (58, (-0.0145, 0.0155, -0.078)),
)  # fmt: skip
"""From under the chin around the neck's right half: a landmark, and from it outwards, down and to
the front to the line, in metres.

The line is the cut between face and neck of the face models (a plane that rises to the nape).
"""
MIRRORED = {152: 152, 150: 379, 172: 397, 58: 288}

SURE_SKIN = (
    156, 70, 63, 105, 66, 107, 9, 336, 296, 334, 293, 300, 383, 345, 352, 376, 397, 365, 379, 378,
    400, 377, 152, 148, 176, 149, 150, 136, 172, 147, 123, 116,
)  # fmt: skip
"""What is never taken for hair: from the brows down, between cheekbones and jaw."""

NECK_MIDDLE_M = (0.0, 0.03, -0.075)
"""From the chin to the neck's middle: left, down and to the front."""
NECK_HALF_WIDTH_M, UNDER_CHIN_M, SHOULDER_M = 0.085, 0.05, 0.13
"""How far from the neck's middle skin may be neck, no hair hangs, and all below is clothed."""
NECK_DEPTH = 0.75
"""How far below the line skin still counts as neck, over the face's height."""
FACE_IS_SKIN = 1.0
"""How much more likely skin is than hair inside the face's oval, in log units."""
TOP_OF_EARS = -0.3
"""Above this, skin far from the face's oval is unlikely; over the face's height."""
NEVER = np.float32(-10.0)
"""Log belief that no colour outweighs."""
LINE_WIDTH = 0.002
"""Over which distance a belief falls by one at the neck's line, over the face's height."""


class Part(IntEnum):
    """What the body below and around the face's features is told apart into."""

    SKIN = 0
    HAIR = 1
    NECK = 2
    TORSO = 3


@dataclass(frozen=True)
class HeadPlan:
    """Beliefs about one picture on the half-size grid [h, w]."""

    face: Mask  # inside the face's oval
    sure_skin: Mask
    below: Float  # how far below the line of the neck, over the face's height; negative above
    beside_m: Float  # sideways from the neck's middle; 0 or more
    above: Float  # how far above the face's oval, over the face's height; mostly negative
    off_face: Float  # distance to the face's oval, over the face's height; 0 inside

    def log_prior(self) -> Float:
        """Log beliefs [4, h, w] by ``Part``, before any colour is looked at and up to a sum."""
        below, beside, zero = self.below, self.beside_m, np.float32(0.0)
        under, face = np.maximum(below, zero), self.face
        far = np.minimum(np.maximum(self.off_face - 0.06, zero), 0.12)
        skin = np.maximum(-20.0 * far * (self.above > TOP_OF_EARS) - under / LINE_WIDTH, NEVER)
        no_hair = np.maximum(UNDER_CHIN_M - beside, zero) / 0.01
        near_line = np.minimum(np.maximum(below + 0.08, zero) / 0.02, 4.0)
        hair = -0.5 - near_line * no_hair - 30.0 * under
        outside = np.maximum(beside - NECK_HALF_WIDTH_M, zero) / 0.007
        deep = np.maximum(below - NECK_DEPTH, zero) / 0.03
        neck = np.maximum(-outside - deep - np.maximum(-below, zero) / LINE_WIDTH, NEVER)
        shoulder = 0.05 * np.minimum(outside, 5.0)  # shoulders reach higher than a collar
        torso = 0.5 - np.maximum(0.1 - shoulder - below, zero) / 0.03
        skin[face] = FACE_IS_SKIN
        hair[face] = -20.0 * np.maximum(below[face] + 0.45, zero)  # none beside mouth and jaw
        neck[face] = torso[face] = NEVER
        skin[self.sure_skin] = -NEVER
        return np.stack((skin, hair, neck, torso)).astype(np.float32)

    def zones(self) -> Float:
        """Where colours are first looked for, [4, h, w] of 0 and 1: mostly, not only, that part."""
        below, beside = self.below, self.beside_m
        under_chin = (below > 0.01) & (below < 0.08) & (beside < UNDER_CHIN_M) & ~self.face
        clothed = (below > 0.4) | ((below > 0) & (beside > SHOULDER_M))
        above = (below < 0) & ~self.face
        return np.stack((self.sure_skin, above, under_chin, clothed)).astype(np.float32)


def head_plan(points: Float, size: tuple[int, int]) -> HeadPlan:
    """The plan of a picture of ``size`` (height, width) with landmarks [478, 2 or 3] in pixels."""
    import cv2

    grid = (max(1, size[0] // 2), max(1, size[1] // 2))
    scale = np.array([grid[1] / size[1], grid[0] / size[0]], np.float32)
    flat = points[:, :2] * scale
    axes = _axes(points)
    across = axes[0, :2] / max(float(np.linalg.norm(axes[0, :2])), 1e-6)
    down = np.array([-across[1], across[0]], np.float32)
    x, y = np.arange(grid[1]) + 0.5, np.arange(grid[0]) + 0.5
    u = (across[0] * x[None] + across[1] * y[:, None]).astype(np.float32)
    v = (down[0] * x[None] + down[1] * y[:, None]).astype(np.float32)
    oval = flat[list(FACE_OVAL)]
    tall = max(float((flat[CHIN] - flat[FACE_TOP]) @ down), 1.0)
    metre = max(float(np.linalg.norm(axes[1])) * float(scale[0]), 1.0)
    neck = flat[CHIN] + (np.array(NECK_MIDDLE_M, np.float32) @ axes)[:2] * scale
    line = _neck_line(points, axes) * scale @ np.stack((across, down)).T
    top = float((oval @ down).min())
    face = filled(oval, grid, 1) > 0.5
    return HeadPlan(
        face,
        filled(_hull(flat[list(SURE_SKIN)]), grid, 1) > 0.5,
        (v - np.interp(u, line[:, 0], line[:, 1]).astype(np.float32)) / tall,
        np.abs(u - float(neck @ across)) / metre,
        (top - v) / tall,
        cv2.distanceTransform((~face).astype(np.uint8), cv2.DIST_L2, 3) / np.float32(tall),
    )


def _axes(points: Float) -> Float:
    """The head's left, down and front in the picture, [3, 3] in pixels a metre (x, y, depth)."""
    whole = np.zeros((3, len(points)), np.float32)
    whole[: points.shape[1]] = points[:, :3].T
    left = whole[:, LEFT_EAR] - whole[:, RIGHT_EAR]
    middle = whole[:, NOSE_BASE] - whole[:, FACE_TOP]
    size = 0.5 * (np.linalg.norm(left) / EARS_M + np.linalg.norm(middle) / MIDLINE_M)
    left = left / max(float(np.linalg.norm(left)), 1e-6)
    middle = middle - (middle @ left) * left
    middle = middle / max(float(np.linalg.norm(middle)), 1e-6)
    front = np.cross(middle, left)  # depth grows away from the camera
    tilt = MIDLINE_TILT_RAD if points.shape[1] > 2 else 0.0
    down = np.cos(tilt) * middle - np.sin(tilt) * front
    front = np.cos(tilt) * front + np.sin(tilt) * middle
    return (size * np.stack((left, down, front))).astype(np.float32)


def _neck_line(points: Float, axes: Float) -> Float:
    """The visible part of the line between face and neck, [P, 2] pixels from right to left.

    On either side it ends where it turns behind the neck.
    """
    right: list[Float] = []
    left: list[Float] = []
    for half, sign in ((right, -1.0), (left, 1.0)):
        for index, (out, lower, ahead) in NECK_LINE:
            at = points[index if sign < 0 else MIRRORED[index], :2]
            place = at + (np.array([sign * out, lower, ahead], np.float32) @ axes)[:2]
            if half and sign * ((place - half[-1]) @ axes[0, :2]) <= 0:
                break
            half.append(place)
    return np.stack((*right[:0:-1], *left))


def _hull(points: Float) -> Float:
    """The convex hull of points [N, 2]."""
    import cv2

    return np.asarray(cv2.convexHull(points.astype(np.float32)), np.float32)[:, 0]


def filled(contour: Float, size: tuple[int, int], fine: int = 4) -> Float:
    """Share of every pixel [H, W] inside a closed contour [N, 2] (pixel centres at + 0.5)."""
    import cv2

    share = np.zeros(size, np.float32)
    low = np.clip(np.floor(contour.min(0)).astype(int) - 1, 0, (size[1], size[0]))
    high = np.clip(np.ceil(contour.max(0)).astype(int) + 1, 0, (size[1], size[0]))
    wide, tall = (high - low).tolist()
    if wide <= 0 or tall <= 0:
        return share
    mask = np.zeros((tall * fine, wide * fine), np.uint8)
    corners = ((contour - low) * fine - 0.5) * 16
    polygon = [np.round(corners).astype(np.int32)]
    cv2.fillPoly(mask, polygon, 254, shift=4)
    cv2.polylines(mask, polygon, True, 127, shift=4)  # filled too, though half of it lies outside
    part = cv2.resize(mask, (wide, tall), interpolation=cv2.INTER_AREA)
    share[low[1] : high[1], low[0] : high[0]] = part.astype(np.float32) / 254.0
    return share
