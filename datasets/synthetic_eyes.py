"""The synthetic head's eyes: irises, lids that meet when they close, and a line of lashes.

Points are in the head frame in metres, those called ``neutral`` on the model's average face.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
Int = NDArray[np.int64]

IRIS_RAD, PUPIL_RAD = 0.46, 0.19
LIDS_FRONT_Z, LID_SEAM_Y, LIDS_REACH_M = 0.08, 0.034, 0.012
"""Lids lie in front of the first; upper and lower meet at the second and reach this far from it."""
LASH_LINE_M, LASH_COLOR, LASH_STRENGTH = 0.0012, (0.12, 0.08, 0.07), 0.85
LID_OVERLAP_M, LID_SPREAD_M = 0.0004, 0.003
"""How far closed lids go past each other, and over which distance skin follows their edge."""
SHADE_FROM_RAD, SHADE_RANGE_RAD, SHADE = 0.05, 0.45, 0.45
"""The upper lid's shadow on the eyeball: the height where it begins, its fade, its depth."""


def eye_colors(points: Float, centres: Float) -> Float:
    """Sclera, iris and pupil by the angle from the straight gaze, darker below the upper lid."""
    colors = np.zeros_like(points)
    for centre, side in zip(centres, (1.0, -1.0), strict=True):
        mine = (points[:, 0] * side) > 0
        away = points[mine] - centre
        away /= np.linalg.norm(away, axis=1, keepdims=True)
        angle = np.arccos(np.clip(away[:, 2], -1, 1))
        around = np.arctan2(away[:, 1], away[:, 0])
        iris = np.array([0.30, 0.38, 0.36]) * (0.85 + 0.25 * np.cos(23 * around))[:, None]
        ring = np.clip((angle - 0.38) / 0.08, 0, 1)[:, None]
        color = np.where(
            (angle < IRIS_RAD)[:, None], iris * (1 - 0.6 * ring), np.array([0.90, 0.87, 0.84])
        )
        color[angle < PUPIL_RAD] = 0.02
        high = np.clip((np.arcsin(away[:, 1]) - SHADE_FROM_RAD) / SHADE_RANGE_RAD, 0, 1)
        colors[mine] = color * (1 - SHADE * high)[:, None]
    return colors


def _lid_edges(face: Float, lashes: Float, side: float) -> tuple[Int, Int]:
    """Vertices of one eye's upper and lower lid where lashes grow, from the nose outwards."""
    near = np.flatnonzero(
        (face[:, 2] > LIDS_FRONT_Z) & (np.abs(face[:, 1] - LID_SEAM_Y) < LIDS_REACH_M)
        & (face[:, 0] * side > 0)
    )  # fmt: skip
    away = np.linalg.norm(face[near, None] - lashes[None], axis=-1).min(1)
    edge = near[away < 1e-4]
    edge = edge[np.argsort(face[edge, 0] * side)]
    upper = face[edge, 1] > LID_SEAM_Y
    return edge[upper], edge[~upper]


def lid_closure(closed: Float, face: Float, lashes: Float, side: float) -> Float:
    """What is missing for closed lids to meet: displacements [F, 3] of ``closed``.

    A person's shape moves the lids and the model's blink does not know it: slits of 1 to 3 mm stay
    open. The upper lid's edge is brought over the lower one's, and the skin above it follows.
    """
    upper, lower = _lid_edges(face, lashes, side)
    x, y, z = closed[lower].T
    order = np.argsort(x)
    place = closed[upper, 0]
    line = np.stack([np.interp(place, x[order], axis[order]) for axis in (y, z)], -1)
    gap = closed[upper, 1] - line[:, 0] + LID_OVERLAP_M
    behind = line[:, 1] + LID_OVERLAP_M - closed[upper, 2]
    inside = np.clip(np.minimum(place - x.min(), x.max() - place) / 0.003, 0, 1)
    missing = np.stack(
        (np.zeros_like(gap), -np.maximum(gap, 0) * inside, np.maximum(behind, 0) * inside), -1
    )
    apart = np.linalg.norm(face[:, None] - face[None, upper], axis=-1)
    below = np.linalg.norm(face[:, None] - face[None, lower], axis=-1).min(1)
    share = np.exp(-0.5 * (apart / LID_SPREAD_M) ** 2)
    reach = np.exp(-0.5 * (apart.min(1) / LID_SPREAD_M) ** 2) * (apart.min(1) < below)
    return np.asarray(share @ missing / np.maximum(share.sum(1), 1e-12)[:, None] * reach[:, None])


def with_lashes(colors: Float, face: Float, lashes: Float) -> Float:
    """Colours of the face [F, 3] with the edges of the upper lids painted as a line of lashes.

    The model's own lashes are opaque cards of 9 mm, which hang over the cheek when the lids close.
    """
    edge = face[np.concatenate([_lid_edges(face, lashes, side)[0] for side in (1.0, -1.0)])]
    near = np.flatnonzero(
        (face[:, 2] > LIDS_FRONT_Z) & (np.abs(face[:, 1] - LID_SEAM_Y) < LIDS_REACH_M)
    )
    apart = np.linalg.norm(face[near, None] - edge[None], axis=-1).min(1)
    painted = colors.copy()
    share = LASH_STRENGTH * np.exp(-((apart / LASH_LINE_M) ** 2))[:, None]
    painted[near] = colors[near] * (1 - share) + share * np.array(LASH_COLOR)
    return painted
