"""Brings poses that were found from skin alone onto the fitted face: place, turn and size.

Pictures of skin say nothing of where a head's own frame lies in it, nor of the head's size: a head
twice as large looks the same from twice as far away. The landmarks on the face model do.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import numpy as np

from gsavatar.morphable import Floats
from gsavatar.tracking_bundle import Bundle
from gsavatar.tracking_skin import Patches
from gsavatar.tracking_solve import Poses, project, rotations
from gsavatar.tracking_surface import Surface

Skin_ = TypeVar("Skin_", Patches, Surface)

OUTLIER_PX = 3.0
"""Landmarks slide over turned cheeks by more than they err otherwise."""
USUAL_CHANGE = np.array([0.05, 0.05, 0.05, 0.01, 0.01, 0.01, 0.05])
"""Radians, metres and share of the size: scales of the search, no belief."""


def on_the_face(bundle: Bundle, points: Floats, weight: Floats, seen_px: Floats) -> Bundle:
    """The same answer in the frame and of the size of a face.

    ``points`` [L, 3] of the face with ``weight`` [L] are those seen at ``seen_px`` [T, L, 2] in the
    bundle's frames. What the pictures show of the patches stays the same.
    """
    from scipy.optimize import least_squares

    used = weight > 0
    points, seen_px = points[used], seen_px[:, used]
    root = np.sqrt(weight[used] / weight[used].max())[:, None]
    middle = points.mean(0)

    def similarity(x: Floats) -> tuple[float, Floats, Floats]:
        size, turn = float(np.exp(x[6])), rotations(x[None, :3])[0]
        return size, turn, middle + x[3:6] - size * turn @ middle

    def miss(x: Floats) -> Floats:
        size, turn, shift = similarity(x)
        pixels, _ = project(bundle.poses, (size * points @ turn.T + shift)[None], bundle.lens)
        return np.asarray((root * (pixels - seen_px)).ravel())

    found = least_squares(miss, np.zeros(7), x_scale=USUAL_CHANGE, loss="huber", f_scale=OUTLIER_PX)
    size, turn, shift = similarity(found.x)

    def moved(poses: Poses) -> Poses:
        return Poses(poses.R @ turn, (poses.t + poses.R @ shift) / size)

    def brought(skin: Skin_) -> Skin_:
        return replace(
            skin, points=(skin.points - shift) @ turn / size, normals=skin.normals @ turn,
            place_sd=skin.place_sd / size, shapes=skin.shapes @ turn / size,
        )  # fmt: skip

    patches, surface = brought(bundle.skin.patches), bundle.skin.surface
    if bundle.shows_depth:  # it followed the patches; of other heads it is the face's as it was
        surface = replace(brought(surface), mobility=surface.mobility / size)
    skin = replace(
        bundle.skin, key_poses=moved(bundle.skin.key_poses), patches=patches, surface=surface
    )
    return replace(bundle, poses=moved(bundle.poses), skin=skin)
