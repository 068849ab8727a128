"""ICT-FaceKit (MIT, USC ICT) as a morphable model with ARKit's names, in metres."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from gsavatar import assets
from gsavatar.morphable import (
    FITTED_POINTS,
    MESH_POINTS,
    Floats,
    Ints,
    MorphableModel,
    inside_polygon,
)
from gsavatar.types import FacePart

CM = 0.01
NARROW_FACE = slice(0, 6706)
FACE = slice(0, 9409)
HEAD_AND_NECK = slice(9409, 11248)
MOUTH_SOCKET = slice(11248, 13294)
EYE_SOCKETS = slice(13294, 14062)
GUMS_AND_TONGUE = slice(14062, 17039)
UPPER_TEETH = slice(17039, 19247)
LOWER_TEETH = slice(19247, 21451)
EYEBALLS = {"Left": slice(21451, 23021), "Right": slice(23021, 24591)}
IRIS_SHELLS = {"Left": slice(21451, 22221), "Right": slice(23021, 23791)}
TEAR_FILM = slice(24591, 25351)
LASHES = slice(25351, 26719)
"""Vertex ranges of the published mesh. An eyeball is a cornea shell over an iris shell."""

DROPPED = (EYE_SOCKETS, TEAR_FILM)
"""Never seen: the sockets lie behind the eyeballs, the tear film is a transparent strip."""

PARTS = (
    (FACE, FacePart.SKIN), (HEAD_AND_NECK, FacePart.SCALP), (MOUTH_SOCKET, FacePart.SOCKET),
    (GUMS_AND_TONGUE, FacePart.TONGUE), (UPPER_TEETH, FacePart.UPPER_TEETH),
    (LOWER_TEETH, FacePart.LOWER_TEETH), (EYEBALLS["Left"], FacePart.EYEBALL),
    (EYEBALLS["Right"], FacePart.EYEBALL), (LASHES, FacePart.LASH),
)  # fmt: skip

OUTER_LIPS = (
    61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185,
)  # fmt: skip
"""MediaPipe's outer lip contour, in order."""

UNUSED = ("PupilDilate", "cheekRaiser")
"""Shapes without an ARKit counterpart: pupils are below a pixel, cheekSquint covers the cheeks."""
MERGED = ("browInnerUp", "cheekPuff")
"""Split in two by ICT-FaceKit, one shape in ARKit."""

EYE_TURN_RAD = {"In": 0.5, "Out": 0.5, "Up": 0.4, "Down": 0.4}
"""How far an eyeball turns at coefficient 1; ICT's eyeLook shapes move the lids only."""

NECK_TOP_M, NECK_SLOPE, NECK_FRONT_M = -0.085, 0.23, 0.10
"""The plane under the jaw below which skin is neck: y at the chin, its rise towards the nape."""


def load_ict() -> MorphableModel:
    """The model; raises ``InputError`` when its files are not there."""
    return _load(assets.resolve("ict_facekit"), assets.resolve("mediapipe468_to_ict"))


@functools.lru_cache(maxsize=1)
def _load(model: Path, embedding: Path) -> MorphableModel:
    with np.load(model) as data, np.load(embedding) as rows:
        neutral = data["neutral"].astype(np.float64) * CM
        keep = np.ones(len(neutral), dtype=bool)
        for hidden in DROPPED:
            keep[hidden] = False
        names, expression = _expressions(data["expression_names"], data["expression"], neutral)
        identity = data["identity"][:, keep].astype(np.float32) * np.float32(CM)
        faces = _triangles(data["faces"].astype(np.int64))
        ids, weights = rows["rbf_tri"].astype(np.int64), rows["rbf_bary"].astype(np.float64)
    ids, weights = _with_irises(ids, weights, neutral)
    part = _parts(neutral, ids, weights)
    new_id = np.cumsum(keep) - 1
    return MorphableModel(
        "ict",
        names,
        neutral[keep],
        identity,
        expression[:, keep].astype(np.float32),
        new_id[faces[keep[faces].all(1)]],
        part[keep],
        new_id[ids],
        weights,
    )


def _triangles(quads: Ints) -> Ints:
    """Triangles [F, 3] of faces [Q, 4] whose last entry is -1 where they are triangles already."""
    second = quads[quads[:, 3] >= 0][:, [0, 2, 3]]
    return np.concatenate((quads[:, :3], second))


def _expressions(
    published: Floats, offsets: Floats, neutral: Floats
) -> tuple[tuple[str, ...], Floats]:
    """ARKit's names and the displacements [K, V, 3] in metres, with the eyeballs turning."""
    shapes: dict[str, Floats] = {}
    for old, offset in zip(published, offsets, strict=True):
        base, _, side = str(old).partition("_")
        if base in UNUSED:
            continue
        merged = base in MERGED or not side
        name = base if merged else base + {"L": "Left", "R": "Right"}[side]
        moved = offset.astype(np.float64) * CM
        shapes[name] = shapes[name] + moved if name in shapes else moved
    for side, ball in EYEBALLS.items():
        middle = _ball_middle(neutral[ball])
        towards_nose = -1.0 if side == "Left" else 1.0
        for way, angle in EYE_TURN_RAD.items():
            sideways = {"In": towards_nose, "Out": -towards_nose}.get(way, 0.0)
            upwards = {"Up": 1.0, "Down": -1.0}.get(way, 0.0)
            turn = angle * np.array([-upwards, sideways, 0.0])
            shapes[f"eyeLook{way}{side}"][ball] = np.cross(turn, neutral[ball] - middle)
    return tuple(shapes), np.stack(list(shapes.values()))


def _ball_middle(vertices: Floats) -> Floats:
    """Centre of the sphere that fits vertices best."""
    design = np.column_stack((2 * vertices, np.ones(len(vertices))))
    return np.asarray(np.linalg.lstsq(design, (vertices**2).sum(1), rcond=None)[0][:3])


def _with_irises(ids: Ints, weights: Floats, neutral: Floats) -> tuple[Ints, Floats]:
    """The embedding extended by the foremost iris vertex of the right and the left eye."""
    for side in ("Right", "Left"):
        shell = IRIS_SHELLS[side]
        middle = _ball_middle(neutral[EYEBALLS[side]])
        ahead = neutral[shell] - middle
        front = np.argmin(np.hypot(ahead[:, 0], ahead[:, 1]) + (ahead[:, 2] < 0))
        ids = np.concatenate((ids, np.full((1, 3), shell.start + front)))
        weights = np.concatenate((weights, [[1.0, 0.0, 0.0]]))
    if len(ids) != len(FITTED_POINTS):
        raise ValueError(f"the embedding has {len(ids)} points, {len(FITTED_POINTS)} expected")
    return ids, weights


def _parts(neutral: Floats, ids: Ints, weights: Floats) -> np.ndarray:
    """Labels [V] by vertex range, with lips and neck told from skin by their place."""
    part = np.full(len(neutral), int(FacePart.SKIN), dtype=np.uint8)
    for vertices, label in PARTS:
        part[vertices] = int(label)
    points = (neutral[ids[:MESH_POINTS]] * weights[:MESH_POINTS, :, None]).sum(1)
    lips = inside_polygon(neutral[NARROW_FACE, :2], points[list(OUTER_LIPS), :2])
    part[NARROW_FACE][lips] = int(FacePart.LIPS)
    below = neutral[:, 1] < NECK_TOP_M + NECK_SLOPE * (NECK_FRONT_M - neutral[:, 2])
    outer = np.zeros(len(neutral), dtype=bool)
    outer[NARROW_FACE.stop : HEAD_AND_NECK.stop] = True
    part[below & outer] = int(FacePart.NECK)
    return part
