"""A whole head out of a model's own mesh: landmarks on it, names, parts, and what it lacks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gsavatar import morphable_head
from gsavatar.morphable import MESH_POINTS, Floats, Ints, MorphableModel, inside_polygon
from gsavatar.morphable_embed import EYE_ENDS, Anchors, Placement, place_landmarks
from gsavatar.morphable_head import EYE_RINGS_OF, SIDE_ROWS, Missing
from gsavatar.morphable_ict import NECK_FRONT_M, NECK_SLOPE, NECK_TOP_M, OUTER_LIPS
from gsavatar.morphable_named import LandmarkSkin, drawn_targets, hang_on_landmarks, named_shapes
from gsavatar.morphable_surface import outward
from gsavatar.types import FacePart

FACE_M, LIP_M = 0.006, 0.008
"""Up to where a vertex belongs to the landmarks' surface, and to the lips."""
EYE_DEPTH_M = 0.02
TORN_BY_M, TORN_TIMES = 0.006, 4.0
"""A triangle whose side grows by this much when the jaw opens was a bridge between the lips."""


@dataclass(frozen=True)
class Raw:
    """A published model in its own frame: metres, +y up, +z out of the face."""

    path: Path
    neutral: Floats  # [V, 3]
    faces: Ints  # [F, 3]
    identity: Floats  # [I, V, 3], one standard deviation each
    directions: Floats  # [E, V, 3], expressions without names, one standard deviation each
    own: dict[str, Floats]  # displacements [V, 3] whose names are known
    balls: tuple[Ints, Ints] | None  # vertices of the right and left eyeball
    lower: Floats | None  # [V], how far each vertex follows the jaw
    anchors: Anchors
    missing: tuple[Missing, ...]


def assemble(provider: str, raw: Raw) -> MorphableModel:
    """The model in the head frame with everything downstream relies on.

    Raises ``InputError`` if no face is found on the mesh.
    """
    faces = outward(raw.neutral, raw.faces)
    is_ball = np.zeros(len(raw.neutral), bool)
    for ball in raw.balls or ():
        is_ball[ball] = True
    skin_faces = faces[~is_ball[faces].any(1)]
    placed = place_landmarks(raw.path, raw.neutral, skin_faces, raw.anchors, raw.lower)
    neutral = placed.to_head(raw.neutral)
    directions, identity = placed.turned(raw.directions), placed.turned(raw.identity)
    own = {name: placed.turned(shape) for name, shape in raw.own.items()}
    ids, weights = _with_irises(raw, placed, neutral)
    rest = _at(ids, weights, neutral)
    if raw.balls is None:
        rest[MESH_POINTS:] = [rest[list(EYE_ENDS[side])].mean(0) for _, side, _ in SIDE_ROWS]
    skin = hang_on_landmarks(rest, neutral, skin_faces, raw.lower)
    hold = np.where(is_ball, 0.0, 1.0)
    names, expression = named_shapes(
        drawn_targets(rest), own, directions, _at(ids, weights, directions), skin, hold
    )
    if raw.balls is None:
        faces = faces[~_inside_eyes(rest, neutral, faces)]
    if "jawOpen" not in own:
        faces = faces[~_torn(neutral, expression[names.index("jawOpen")], faces)]
    model = MorphableModel(
        provider, names, neutral, identity.astype(np.float32), expression, faces,
        _parts(rest, neutral, is_ball, skin), ids, weights,
    )  # fmt: skip
    return morphable_head.furnish(model, rest, raw.missing)


def _at(ids: Ints, weights: Floats, values: Floats) -> Floats:
    """Values [..., L, C] of per-vertex values [..., V, C] at embedded landmarks."""
    return np.asarray((values[..., ids, :] * weights[..., None]).sum(-2))


def _with_irises(raw: Raw, placed: Placement, neutral: Floats) -> tuple[Ints, Floats]:
    """The embedding with rows for the irises: the foremost vertex of each ball.

    Without balls any vertex holds the place until balls have been added.
    """
    ids = np.concatenate((placed.ids, np.zeros((2, 3), np.int64)))
    weights = np.concatenate((placed.weights, np.tile([1.0, 0.0, 0.0], (2, 1))))
    for (_, _, row), ball in zip(SIDE_ROWS, raw.balls or (), strict=False):
        ahead = neutral[ball] - neutral[ball].mean(0)
        front = np.argmin(np.hypot(ahead[:, 0], ahead[:, 1]) + (ahead[:, 2] < 0))
        ids[row] = ball[front]
    return ids, weights


def _parts(rest: Floats, neutral: Floats, is_ball: np.ndarray, skin: LandmarkSkin) -> np.ndarray:
    """Labels [V]: the face where the landmarks are, its lips, scalp and neck around it."""
    part = np.full(len(neutral), int(FacePart.SCALP), np.uint8)
    below = neutral[:, 1] < NECK_TOP_M + NECK_SLOPE * (NECK_FRONT_M - neutral[:, 2])
    part[below] = int(FacePart.NECK)
    part[skin.distance < FACE_M] = int(FacePart.SKIN)
    lips = inside_polygon(neutral[:, :2], rest[list(OUTER_LIPS), :2])
    part[lips & (skin.distance < LIP_M)] = int(FacePart.LIPS)
    part[is_ball] = int(FacePart.EYEBALL)
    return part


def _inside_eyes(rest: Floats, neutral: Floats, faces: Ints) -> np.ndarray:
    """Which triangles [F] fill the openings of the eyes: scans close them, balls come instead."""
    inside = np.zeros(len(neutral), bool)
    for ring in EYE_RINGS_OF:
        lids = rest[list(ring)]
        near = np.abs(neutral[:, 2] - lids[:, 2].mean()) < EYE_DEPTH_M
        inside |= near & inside_polygon(neutral[:, :2], lids[:, :2])
    return np.asarray(inside[faces].all(1))


def _torn(neutral: Floats, jaw_open: Floats, faces: Ints) -> np.ndarray:
    """Which triangles [F] span the mouth: an opening jaw stretches them beyond any skin."""
    moved = neutral + jaw_open

    def longest(points: Floats) -> Floats:
        corners = points[faces]
        sides = np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=-1)
        return np.asarray(sides.max(1))

    before, after = longest(neutral), longest(moved)
    return np.asarray((after > TORN_TIMES * before) & (after > before + TORN_BY_M))
