"""FLAME (2020, 2023) from the user's own file, with ARKit's names put on its motions.

The jaw and the eyes are FLAME's own joints: a coefficient scales their first-order motion, pose
correctives included, since a chord of the whole turn would lift the chin of a talking face. Every
other name is a combination of FLAME's expression directions, or drawn where they do not reach
(``morphable_named``). FLAME has no teeth, tongue or inside of the mouth: simple ones are added. Its
frame is metres, +y up and +z out of the face.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gsavatar.errors import InputError
from gsavatar.morphable import Floats, Ints, MorphableModel
from gsavatar.morphable_arrays import read_arrays
from gsavatar.morphable_assembly import Raw, assemble
from gsavatar.morphable_clip import FULL_M, GAZE_RAD, SIDES
from gsavatar.morphable_embed import Anchors
from gsavatar.morphable_head import Missing, gaze_turn
from gsavatar.morphable_named import JAW_FORWARD_M, JAW_SIDE_M
from gsavatar.tracking_solve import rotations

ARRAYS = ("v_template", "shapedirs", "posedirs", "J_regressor", "weights", "kintree_table", "f")
SHAPES, EXPRESSIONS = 300, 100
"""Columns of ``shapedirs``: identity first, then expression."""
IDENTITY_USED = 100
"""The later ones change a face by less than landmarks can tell."""
JOINTS = 5  # root, neck, jaw and two eyes
POSE_TERMS = 9
SMALL = 1e-4
"""Share of a turn from which its first-order motion is taken."""
LANDMARKS_BESIDE = "mediapipe_landmark_embedding.npz"
"""FLAME's own table of 105 of MediaPipe's points, used when it lies in the model's folder."""
TABLE_SD_M, MOUTH_SD_M, EYE_SD_M = 0.0005, 0.001, 0.001
FREE_M = 0.05
"""Deviation along an axis about which an anchor says nothing."""
MOUTH_HALF_M = 0.004
BALL_SHARE = 0.5


@dataclass(frozen=True)
class _Flame:
    """FLAME's arrays, checked; the joints have been found by their places."""

    vertices: Floats  # [V, 3] metres
    faces: Ints  # [F, 3]
    identity: Floats  # [I, V, 3]
    expressions: Floats  # [E, V, 3]
    correctives: Floats  # [4, 3, 3, V, 3] by joint, then entry of its rotation matrix
    weights: Floats  # [V, 5]
    joints: Floats  # [5, 3] metres
    jaw: int
    eyes: tuple[int, int]  # right, left


@functools.lru_cache(maxsize=1)
def load_flame(path: Path) -> MorphableModel:
    """The model in a FLAME file (.pkl as published, or .npz with the same arrays).

    Raises ``InputError`` if the file is missing, no FLAME, or asks for more than data.
    """
    flame = _checked(path, read_arrays(path, ARRAYS))
    balls = tuple(np.flatnonzero(flame.weights[:, eye] > BALL_SHARE) for eye in flame.eyes)
    whole = all(len(ball) >= 4 for ball in balls)
    lower = flame.weights[:, flame.jaw].copy()
    anchors = _table(path, flame).and_also(_mouth_anchors(flame))
    if whole:
        anchors = anchors.and_also(_eye_anchors(flame, balls))
    missing: tuple[Missing, ...] = ("mouth",) if whole else ("eyeballs", "mouth")
    return assemble(
        "flame",
        Raw(
            path, flame.vertices, flame.faces, flame.identity, flame.expressions, _own(flame),
            (balls[0], balls[1]) if whole else None, lower, anchors, missing,
        ),
    )  # fmt: skip


def _checked(path: Path, a: dict[str, np.ndarray]) -> _Flame:
    """The arrays in the shapes they must have, or an ``InputError`` naming the one that is not."""
    count = len(a["v_template"])
    faces = np.asarray(a["f"])
    expected: dict[str, tuple[int, ...]] = {
        "v_template": (count, 3), "shapedirs": (count, 3, SHAPES + EXPRESSIONS),
        "posedirs": (count, 3, (JOINTS - 1) * POSE_TERMS), "J_regressor": (JOINTS, count),
        "weights": (count, JOINTS), "kintree_table": (2, JOINTS), "f": (len(faces), 3),
    }  # fmt: skip
    for name, shape in expected.items():
        if a[name].shape != shape:
            raise InputError(
                f"{path}: {name} has shape {a[name].shape}, expected {shape}; use FLAME 2020 or "
                "2023 with jaw and eyes, as published."
            )
        if not np.isfinite(np.asarray(a[name], np.float64)).all():
            raise InputError(f"{path}: {name} has values that are no numbers; get the file again.")
    if count < 100 or len(faces) == 0 or not 0 <= faces.min() <= faces.max() < count:
        raise InputError(
            f"{path}: f names vertices outside 0-{count - 1}; use the published model file."
        )
    vertices = np.asarray(a["v_template"], np.float64)
    basis = np.moveaxis(np.asarray(a["shapedirs"], np.float32), 2, 0)
    correctives = np.asarray(a["posedirs"], np.float64).reshape(count, 3, JOINTS - 1, 3, 3)
    joints = np.asarray(a["J_regressor"], np.float64) @ vertices
    jaw, eyes = _joints(path, np.asarray(a["kintree_table"])[0].astype(np.int64), joints)
    return _Flame(
        vertices, faces.astype(np.int64), np.ascontiguousarray(basis[:IDENTITY_USED]),
        np.ascontiguousarray(basis[SHAPES:]), correctives.transpose(2, 3, 4, 0, 1),
        np.asarray(a["weights"], np.float64), joints, jaw, eyes,
    )  # fmt: skip


def _joints(path: Path, parents: Ints, joints: Floats) -> tuple[int, tuple[int, int]]:
    """The jaw and the right and left eye: the neck's children, from the subject's right to left."""
    children = np.flatnonzero(parents == 1)
    order = children[np.argsort(joints[children, 0])]
    if len(order) != 3:
        raise InputError(
            f"{path}: kintree_table gives the neck {len(order)} children, expected jaw and two "
            "eyes; use FLAME 2020 or 2023 with jaw and eyes, as published."
        )
    return int(order[1]), (int(order[0]), int(order[2]))


def _turned(flame: _Flame, joint: int, turn: Floats) -> Floats:
    """Displacements [V, 3] of a joint's rotation vector to first order, correctives included."""
    change = (rotations(turn[None] * SMALL)[0] - np.eye(3)) / SMALL
    corrected = np.einsum("ab,abvc->vc", change, flame.correctives[joint - 1])
    arm = flame.vertices - flame.joints[joint]
    return np.asarray(corrected + flame.weights[:, joint, None] * (arm @ change.T))


def _own(flame: _Flame) -> dict[str, Floats]:
    """What FLAME's joints do, by ARKit's names."""
    lower = flame.weights[:, flame.jaw]
    chin = flame.vertices[lower > 0.5 * lower.max()]
    reach = float(np.percentile(chin[:, 2], 95) - flame.joints[flame.jaw, 2])
    opened = np.array([FULL_M["jawOpen"] / reach, 0.0, 0.0])
    aside = np.array([0.0, JAW_SIDE_M / reach, 0.0])
    own = {
        "jawOpen": _turned(flame, flame.jaw, opened),
        "jawLeft": _turned(flame, flame.jaw, aside),
        "jawRight": _turned(flame, flame.jaw, -aside),
        # FLAME's jaw only turns; forward is a slide of what hangs on it.
        "jawForward": lower[:, None] * np.array([0.0, 0.0, JAW_FORWARD_M]),
    }
    for side, joint in zip(("Right", "Left"), flame.eyes, strict=True):
        for way, angle in GAZE_RAD.items():
            own[f"eyeLook{way}{side}"] = _turned(flame, joint, gaze_turn(way, SIDES[side], angle))
    return own


def _eye_anchors(flame: _Flame, balls: tuple[Ints, ...]) -> Anchors:
    """The middles of the eyes' openings lie before the middles of the balls."""
    middles = np.array([flame.vertices[ball].mean(0) for ball in balls])
    return Anchors(np.array([468, 469]), middles, np.tile([EYE_SD_M, EYE_SD_M, FREE_M], (2, 1)))


def _mouth_anchors(flame: _Flame) -> Anchors:
    """The lips meet where, on the face's middle, what follows the jaw meets what does not."""
    x, y, z = flame.vertices.T
    middle = flame.joints[flame.jaw, 0]
    lower = flame.weights[:, flame.jaw] > 0.5 * flame.weights[:, flame.jaw].max()
    lips = (np.abs(x - middle) < MOUTH_HALF_M) & (z > flame.joints[list(flame.eyes), 2].mean())
    lips &= y < flame.joints[list(flame.eyes), 1].mean()
    if not (lips & lower).any() or not (lips & ~lower).any():
        return Anchors.none()
    front = z > np.percentile(z[lips & lower], 50) - 0.01
    if not (lips & ~lower & front).any():
        return Anchors.none()
    above = np.flatnonzero(lips & ~lower & front)
    below = np.flatnonzero(lips & lower & front)
    height = 0.5 * (y[above].min() + y[below].max())
    point = np.array([middle, height, z[below[np.argmax(y[below])]]])
    sd = np.array([MOUTH_SD_M * 3, MOUTH_SD_M, FREE_M])
    return Anchors(np.array([13, 14]), np.tile(point, (2, 1)), np.tile(sd, (2, 1)))


def _table(path: Path, flame: _Flame) -> Anchors:
    """The points of FLAME's own table of MediaPipe's landmarks, if that file lies beside."""
    beside = path.parent / LANDMARKS_BESIDE
    if not beside.is_file():
        return Anchors.none()
    names = ("lmk_face_idx", "lmk_b_coords", "landmark_indices")
    table: dict[str, Any] = read_arrays(beside, names)
    face, weights, rows = (np.asarray(table[name]) for name in names)
    face, rows = face.astype(np.int64).ravel(), rows.astype(np.int64).ravel()
    fits = weights.shape == (len(face), 3) and len(rows) == len(face) and len(face) > 0
    if (
        not fits
        or not (0 <= face.min() <= face.max() < len(flame.faces))
        or not (0 <= rows.min() <= rows.max() < 468)
    ):
        raise InputError(
            f"{beside}: does not fit {path.name}; use the file from FLAME's own page, or remove it."
        )
    points = (flame.vertices[flame.faces[face]] * weights[..., None]).sum(1)
    return Anchors(rows, points, np.full((len(rows), 3), TABLE_SD_M))
