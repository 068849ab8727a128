"""What face landmarks do not cover: eyeballs, teeth, the mouth's inside, skull and neck.

Simple surfaces fitted to a person's landmarks (metres, head frame), so that Gaussians can be
seeded everywhere a head shows; training then finds the true colour and form.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from gsavatar.morphable import (
    FITTED_POINTS,
    MESH_POINTS,
    ROW_IRIS_LEFT,
    ROW_IRIS_RIGHT,
    Floats,
    Ints,
    MorphableModel,
)
from gsavatar.tracking_priors import CORNERS, FACE_OVAL, LOWER_LIP, UPPER_LIP
from gsavatar.types import FacePart

EYE_RADIUS_M = 0.012
EYE_RINGS, EYE_SPOKES, EYE_COVER_RAD = 6, 16, 1.2
EYE_BEHIND_LIDS_M = 0.001
EARS = (234, 454)
HINGE_FROM_EARS_M = np.array([0.0, 0.0, 0.012])
CHIN_MIDDLE = (152, 175, 199, 200)
JAW_SHIFTS = ("jawLeft", "jawRight", "jawForward")
USUAL_WIDTH_M = 0.145
SKULL_AXES_M = np.array([0.078, 0.104, 0.092])
SKULL_UP_M, SKULL_BACK_M = 0.030, 0.030
SKULL_RINGS = 12
NECK_RADIUS_M, NECK_LENGTH_M, NECK_BACK_M, NECK_SPOKES, NECK_ROWS = 0.055, 0.09, 0.022, 24, 6
ARCH_COLUMNS, TOOTH_ROWS = 15, 4
UPPER_TEETH_M, LOWER_TEETH_M = (0.008, -0.0015), (-0.002, -0.0095)
"""Heights of the ends of the tooth rows over the line of the closed lips."""
TEETH_BEHIND_LIPS_M, ARCH_DEPTH_M = 0.006, 0.03
SOCKET_BEHIND_LIPS_M = 0.035
INNER_RING = (
    78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 415, 310, 311, 312, 13, 82, 81, 80, 191,
)  # fmt: skip
EYE_RINGS_OF = (
    (33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246),
    (263, 249, 390, 373, 374, 380, 381, 382, 362, 398, 384, 385, 386, 387, 388, 466),
)  # fmt: skip
FOLLOW_M = 0.015
"""How far around a landmark what is added follows the person's identity."""

Missing = Literal["eyeballs", "mouth", "skull", "neck"]

SIDE_ROWS = ((-1.0, "Right", ROW_IRIS_RIGHT), (1.0, "Left", ROW_IRIS_LEFT))


@dataclass
class _Mesh:
    """Pieces of a mesh as they are added; the only state is what has been added so far."""

    names: tuple[str, ...]
    vertices: list[Floats] = field(default_factory=list)
    shapes: list[Floats] = field(default_factory=list)
    faces: list[Ints] = field(default_factory=list)
    part: list[np.ndarray] = field(default_factory=list)
    count: int = 0

    def add(
        self, vertices: Floats, faces: Ints, part: np.ndarray | FacePart, shapes: Floats
    ) -> int:
        """Appends a piece; returns the number of its first vertex."""
        start = self.count
        self.vertices.append(vertices)
        self.shapes.append(shapes)
        self.faces.append(faces + start)
        self.part.append(np.broadcast_to(np.asarray(part, np.uint8), (len(vertices),)))
        self.count += len(vertices)
        return start


def complete(
    rest: Floats, triangles: Ints, names: tuple[str, ...], shapes: Floats
) -> MorphableModel:
    """The whole head around landmarks [L, 3] that move by ``shapes`` [K, L, 3]."""
    mesh = _Mesh(names)
    holes = (INNER_RING, *EYE_RINGS_OF)
    filled = np.any([np.isin(triangles, ring).all(1) for ring in holes], axis=0)
    part = np.full(MESH_POINTS, int(FacePart.SKIN), np.uint8)
    part[[*UPPER_LIP, *LOWER_LIP, *CORNERS]] = int(FacePart.LIPS)
    mesh.add(rest[:MESH_POINTS], triangles[~filled], part, shapes[:, :MESH_POINTS])
    poles = _add_eyeballs(mesh, rest)
    _add_mouth(mesh, rest, shapes)
    _add_skull(mesh, rest, shapes)
    _add_neck(mesh, rest)
    ids = np.concatenate((np.arange(MESH_POINTS), poles))
    weights = np.zeros((len(FITTED_POINTS), 3))
    weights[:, 0] = 1.0
    vertices = np.concatenate(mesh.vertices)
    return MorphableModel(
        "clip",
        names,
        vertices,
        np.zeros((0, len(vertices), 3), np.float32),
        np.concatenate(mesh.shapes, axis=1).astype(np.float32),
        np.concatenate(mesh.faces),
        np.concatenate(mesh.part),
        np.repeat(ids[:, None], 3, axis=1),
        weights,
    )


def furnish(model: MorphableModel, rest: Floats, missing: tuple[Missing, ...]) -> MorphableModel:
    """The model with what its mesh lacks, around its landmarks at ``rest`` [470, 3].

    What is added moves with the jaw and the eyes by the model's names, and with identity as the
    landmarks near it do.
    """
    mesh = _Mesh(model.names)
    mesh.add(model.neutral, model.faces, model.part, model.expression)
    shapes = model.at_landmarks(model.expression)
    ids = model.embed_ids.copy()
    if "eyeballs" in missing:
        ids[MESH_POINTS:] = np.array(_add_eyeballs(mesh, rest))[:, None]
    if "mouth" in missing:
        _add_mouth(mesh, rest, shapes)
    if "skull" in missing:
        _add_skull(mesh, rest, shapes)
    if "neck" in missing:
        _add_neck(mesh, rest)
    vertices = np.concatenate(mesh.vertices)
    return replace(
        model,
        neutral=vertices,
        identity=_extended(model, rest, vertices[len(model.neutral) :]),
        expression=np.concatenate(mesh.shapes, axis=1).astype(np.float32),
        faces=np.concatenate(mesh.faces),
        part=np.concatenate(mesh.part),
        embed_ids=ids,
    )


def _extended(model: MorphableModel, rest: Floats, added: Floats) -> Floats:
    """Identity [I, V + A, 3] with the added vertices [A, 3] following the landmarks near them."""
    square = ((added[:, None] - rest[:MESH_POINTS]) ** 2).sum(-1)
    near = np.exp(-0.5 * (square - square.min(1, keepdims=True)) / FOLLOW_M**2)
    near = (near / near.sum(1, keepdims=True)).astype(np.float32)
    seen = model.at_landmarks(model.identity)[:, :MESH_POINTS].astype(np.float32)
    return np.concatenate((model.identity, near @ seen), axis=1)


def jaw_hinge(rest: Floats) -> Floats:
    """The middle [3] of the jaw's axis, just before the ears."""
    return np.asarray(rest[list(EARS)].mean(0) + HINGE_FROM_EARS_M)


def jaw_turn(points: Floats, drop_m: float, rest: Floats | None = None) -> Floats:
    """Displacements [N, 3] of points that turn with the jaw until the chin has dropped."""
    face = points if rest is None else rest
    hinge = jaw_hinge(face)
    reach = face[list(CHIN_MIDDLE), 2].mean() - hinge[2]
    return np.cross([drop_m / reach, 0.0, 0.0], points - hinge)


def gaze_turn(way: str, side: float, angle_rad: float) -> Floats:
    """Rotation vector [3] of an eyeball that looks in, out, up or down; ``side`` +1 is the left."""
    sideways = {"In": -side, "Out": side}.get(way, 0.0)
    upwards = {"Up": 1.0, "Down": -1.0}.get(way, 0.0)
    return angle_rad * np.array([-upwards, sideways, 0.0])


def _grid(rows: int, columns: int, closed: bool) -> Ints:
    """Triangles of a grid of vertices in rows; ``closed`` joins the last column and the first."""
    ids = np.arange(rows * columns).reshape(rows, columns)
    right = np.roll(ids, -1, axis=1) if closed else ids[:, 1:]
    left = ids if closed else ids[:, :-1]
    a, b, c, d = (v.ravel() for v in (left[:-1], right[:-1], right[1:], left[1:]))
    return np.concatenate((np.stack((a, b, c), 1), np.stack((a, c, d), 1)))


def _still(mesh: _Mesh, count: int) -> Floats:
    return np.zeros((len(mesh.names), count, 3))


def _add_eyeballs(mesh: _Mesh, rest: Floats) -> list[int]:
    """Adds the front of both balls; returns the vertices where the irises' middles are."""
    poles = []
    tilt = np.linspace(0.0, EYE_COVER_RAD, EYE_RINGS + 1)[1:, None]
    spin = np.linspace(0.0, 2 * np.pi, EYE_SPOKES, endpoint=False)
    ring = np.stack(
        (np.sin(tilt) * np.cos(spin), np.sin(tilt) * np.sin(spin), np.cos(tilt) + 0 * spin), -1
    ).reshape(-1, 3)
    ball = np.concatenate(([[0.0, 0.0, 1.0]], ring)) * EYE_RADIUS_M
    cap = np.stack(
        (np.zeros(EYE_SPOKES, int), 1 + np.arange(EYE_SPOKES),
         1 + (np.arange(EYE_SPOKES) + 1) % EYE_SPOKES), 1,
    )  # fmt: skip
    # Rings run outwards, so the grid's own winding would face inwards.
    faces = np.concatenate((cap, _grid(EYE_RINGS, EYE_SPOKES, closed=True)[:, ::-1] + 1))
    for (side, name, row), lids in zip(SIDE_ROWS, EYE_RINGS_OF, strict=True):
        front = rest[row].copy()
        front[2] = rest[list(lids), 2].max() - EYE_BEHIND_LIDS_M
        shapes = _still(mesh, len(ball))
        for k, shape in enumerate(mesh.names):
            if shape.startswith("eyeLook") and shape.endswith(name):
                way = shape[len("eyeLook") : -len(name)]
                angle = 0.5 if way in ("In", "Out") else 0.4
                shapes[k] = np.cross(gaze_turn(way, side, angle), ball)
        middle = front - (0.0, 0.0, EYE_RADIUS_M)
        poles.append(mesh.add(ball + middle, faces, FacePart.EYEBALL, shapes))
    return poles


def _add_mouth(mesh: _Mesh, rest: Floats, shapes: Floats) -> None:
    """Adds two rows of teeth, the tongue and a dark sheet behind them."""
    left, right = rest[308], rest[78]
    width = abs(left[0] - right[0])
    middle = np.array([(left[0] + right[0]) / 2, (rest[13, 1] + rest[14, 1]) / 2,
                       rest[[13, 14], 2].mean()])  # fmt: skip
    across = np.linspace(-1.0, 1.0, ARCH_COLUMNS)
    jaw = _follow_jaw(mesh, rest, shapes)
    for part, (top, bottom) in (
        (FacePart.UPPER_TEETH, UPPER_TEETH_M), (FacePart.LOWER_TEETH, LOWER_TEETH_M),
    ):  # fmt: skip
        heights = np.linspace(top, bottom, TOOTH_ROWS)
        y, x = np.meshgrid(heights, across, indexing="ij")
        depth = -TEETH_BEHIND_LIPS_M - ARCH_DEPTH_M * x**2 * (width / 0.05) ** 2
        points = np.stack((x * width * 0.45, y, depth), -1).reshape(-1, 3) + middle
        upper = part == FacePart.UPPER_TEETH
        moved = _still(mesh, len(points)) if upper else jaw(points, 1.0)
        mesh.add(points, _grid(TOOTH_ROWS, ARCH_COLUMNS, False)[:, ::-1], part, moved)
    for part, low, high, depth_m, follow in (
        (FacePart.TONGUE, -0.016, -0.006, -0.018, 0.9),
        (FacePart.SOCKET, -0.022, 0.014, -SOCKET_BEHIND_LIPS_M, None),
    ):
        y, x = np.meshgrid(np.linspace(high, low, 8), across, indexing="ij")
        sag = 0.008 * (1 - x**2) if part == FacePart.TONGUE else -0.006 * (1 - x**2)
        share = 0.35 if part == FacePart.TONGUE else 0.65
        points = np.stack((x * width * share, y, depth_m + sag), -1).reshape(-1, 3) + middle
        # The sheet's upper edge belongs to the skull, its lower one to the jaw.
        weight = np.linspace(0.0, 1.0, 8).repeat(ARCH_COLUMNS) if follow is None else follow
        mesh.add(points, _grid(8, ARCH_COLUMNS, False)[:, ::-1], part, jaw(points, weight))


def _follow_jaw(mesh: _Mesh, rest: Floats, shapes: Floats):  # type: ignore[no-untyped-def]
    """A function that gives points the jaw's turn and shifts, as far as this chin goes."""
    k = mesh.names.index("jawOpen")
    drop = max(float(-shapes[k, list(CHIN_MIDDLE), 1].mean()), 0.0)
    shifts = [i for i, name in enumerate(mesh.names) if name in JAW_SHIFTS]

    def follow(points: Floats, weight: Floats | float) -> Floats:
        moved = _still(mesh, len(points))
        share = np.reshape(weight, (-1, 1))
        moved[k] = jaw_turn(points, drop, rest) * share
        for i in shifts:
            moved[i] = shapes[i, list(CHIN_MIDDLE)].mean(0) * share
        return moved

    return follow


def _add_skull(mesh: _Mesh, rest: Floats, shapes: Floats) -> None:
    """Adds a shell from the face's outline around the back of the head."""
    size = np.linalg.norm(rest[EARS[0]] - rest[EARS[1]]) / USUAL_WIDTH_M
    oval = rest[list(FACE_OVAL)]
    centre = rest[list(EARS)].mean(0) + np.array([0.0, SKULL_UP_M, -SKULL_BACK_M]) * size
    outward = oval - centre
    reach = np.linalg.norm(outward, axis=1, keepdims=True)
    outward = outward / reach
    back = np.array([0.0, 0.1, -1.0]) / np.hypot(1.0, 0.1)
    angle = np.arccos(np.clip(outward @ back, -1.0, 1.0))[:, None]
    rings, weights = [], []
    for s in np.linspace(0.0, 0.999, SKULL_RINGS):
        turned = (np.sin((1 - s) * angle) * outward + np.sin(s * angle) * back) / np.sin(angle)
        ellipsoid = 1.0 / np.sqrt(((turned / (SKULL_AXES_M * size)) ** 2).sum(1, keepdims=True))
        blend = np.clip(s / 0.25, 0.0, 1.0)
        blend = blend * blend * (3 - 2 * blend)
        rings.append(centre + turned * ((1 - blend) * reach + blend * ellipsoid))
        weights.append(np.full(len(oval), max(1 - s / 0.3, 0.0) ** 2))
    points = np.concatenate(rings)
    moved = (
        np.tile(shapes[:, list(FACE_OVAL)], (1, SKULL_RINGS, 1)) * np.concatenate(weights)[:, None]
    )
    jaw_back = rest[list(CHIN_MIDDLE), 1].mean() * 0.5 + centre[1] * 0.5
    below = points[:, 1] < jaw_back - 0.1 * (points[:, 2] - oval[:, 2].mean())
    part = np.where(below, int(FacePart.NECK), int(FacePart.SCALP))
    mesh.add(points, _grid(SKULL_RINGS, len(oval), closed=True), part, moved)


def _add_neck(mesh: _Mesh, rest: Floats) -> None:
    """Adds a tube below the jaw."""
    size = np.linalg.norm(rest[EARS[0]] - rest[EARS[1]]) / USUAL_WIDTH_M
    top = rest[list(CHIN_MIDDLE), 1].mean() + 0.02 * size
    depth = rest[list(EARS), 2].mean() - NECK_BACK_M * size
    spin = np.linspace(0.0, 2 * np.pi, NECK_SPOKES, endpoint=False)
    heights = top - np.linspace(0.0, NECK_LENGTH_M * size, NECK_ROWS)
    y, turn = np.meshgrid(heights, spin, indexing="ij")
    radius = NECK_RADIUS_M * size
    middle_x = rest[list(EARS), 0].mean()
    points = np.stack((middle_x + radius * np.sin(turn), y, depth + radius * np.cos(turn)), -1)
    faces = _grid(NECK_ROWS, NECK_SPOKES, closed=True)[:, ::-1]
    mesh.add(points.reshape(-1, 3), faces, FacePart.NECK, _still(mesh, NECK_ROWS * NECK_SPOKES))
