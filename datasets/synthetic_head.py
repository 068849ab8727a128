"""The synthetic head's body: ICT-FaceKit geometry dressed with painted skin, hair, eyes and shirt.

Head frame in metres: +x to the subject's left, +y up, +z out of the face. Vertex ranges are those
of ICT-FaceKit (MIT, (c) 2020 USC ICT).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gsavatar.datasets import synthetic_paint as paint

Float = NDArray[np.float64]
Map = NDArray[np.float32]
Int = NDArray[np.int64]

CM = 0.01
FACE_END, NECK_END, SOCKET_END, EYE_SOCKET_END = 9409, 11248, 13294, 14062
GUMS_END, TEETH_END, EYES_END, LASH_START = 17039, 21451, 24591, 25351
EYEBALLS = ((21451, 22221), (23021, 23791))
"""Outer eyeballs of the subject's left and right; the inner ones are never seen."""
LASH_TILE = 6
IDENTITY_MODES, IDENTITY_SIGMA = 30, 0.6
HAIR_LAYERS_M = ((0.35, 0.0), (1.0, 1.0))
"""Shells of hair: share of the full thickness and how sparse the shell is painted."""
HAIR_THICKNESS_M, SHIRT_OFFSET_M, BAND_M = 0.013, 0.0045, 0.0012
NECK_TOP_M, NECK_BASE_M = -0.080, -0.140
"""The head's motion fades to none between these heights of the average neck."""
TEXTURE, EYE_TEXTURE = 1536, 384
BODY_COLUMNS, BODY_ROWS, RIM_BELOW_M = 240, 60, -0.08


@dataclass(frozen=True)
class Surface:
    """A mesh with its paint, and how its vertices follow the head."""

    name: str
    rows: Int | None  # vertices of the face model, None for a mesh that stays in the room
    vertices: Float  # [V, 3] at rest, without the offset
    faces: Int  # [F, 3]
    offset: Float  # [V, 3] added to the model's own motion: hair and cloth stand off the skin
    colors: Float | None = None  # [V, 3] sRGB, where there is no texture
    uv: Float | None = None  # [V, 2] in 0-1 of the texture, v up
    texture: Map | None = None  # [H, W, 3 or 4] sRGB 0-1 and opacity, first row on top
    relief: Map | None = None  # [H, W] height of the fine structure


@dataclass(frozen=True)
class Head:
    """A person: rest vertices of the model, its named shapes and what is drawn."""

    vertices: Float  # [26719, 3]
    fade: Float  # [26719] how much of the head's motion a vertex makes, 0-1
    names: tuple[str, ...]
    shapes: Float  # [K, 26719, 3]
    surfaces: tuple[Surface, ...]
    eye_centres: Float  # [2, 3], subject's left and right

    def posed(self, weights: dict[str, float], gaze: tuple[float, float]) -> Float:
        """Model vertices for expression weights and a gaze (yaw, pitch) in radians."""
        values = np.array([weights.get(name, 0.0) for name in self.names])
        active = np.flatnonzero(values)
        moved = self.vertices + np.tensordot(values[active], self.shapes[active], 1)
        turn = rotation(gaze[0], gaze[1], 0.0)
        for centre, (first, last) in zip(self.eye_centres, EYEBALLS, strict=True):
            moved[first:last] = (self.vertices[first:last] - centre) @ turn.T + centre
        return moved

    def placed(self, surface: Surface, model: Float, pose: Float, torso: Float) -> Float:
        """The surface's vertices in the room; the neck fades from the head's pose to the torso's.

        ``model`` is what ``posed`` gives, ``torso`` [3] how far the shoulders have moved.
        """
        if surface.rows is None:
            return np.asarray(surface.vertices + torso)
        points = model[surface.rows] + surface.offset
        moved = points @ pose[:3, :3].T + pose[:3, 3]
        share = self.fade[surface.rows, None]
        return np.asarray(share * moved + (1 - share) * (points + torso))


def rotation(yaw: float, pitch: float, roll: float) -> Float:
    """Rotation matrix: roll about +z, then pitch about +x, then yaw about +y, in radians."""
    cy, sy, cp, sp, cr, sr = (f(a) for a in (yaw, pitch, roll) for f in (np.cos, np.sin))
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_x = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    about_z = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    return np.asarray(about_y @ about_x @ about_z)


@dataclass(frozen=True)
class Model:
    """The packed model as it lies in the file, in metres."""

    neutral: Float  # [26719, 3]
    triangles: Int  # [F, 3] vertices
    corners: Int  # [F, 3] rows of uv
    uv: Float  # [U, 2]; the whole part of u is the tile


def load_head(path: Path, seed: int) -> Head:
    """A random person of a seed, from the packed model file."""
    rng = np.random.default_rng(seed)
    with np.load(path) as data:
        neutral = data["neutral"].astype(np.float64) * CM
        identity = data["identity"].astype(np.float64) * CM
        expression = data["expression"].astype(np.float64) * CM
        raw_names = [str(n) for n in data["expression_names"]]
        quads, quads_uv = data["faces"].astype(np.int64), data["faces_uv"].astype(np.int64)
        uv = data["uv"].astype(np.float64)
    weights = rng.normal(0.0, IDENTITY_SIGMA, IDENTITY_MODES)
    vertices = neutral + np.tensordot(weights, identity[:IDENTITY_MODES], 1)
    names, shapes = _merged(raw_names, expression)
    whole = quads[:, 3] >= 0
    triangles, corners = (
        np.concatenate((q[:, :3], q[whole][:, [0, 2, 3]])) for q in (quads, quads_uv)
    )
    centres = np.stack([_sphere_centre(vertices[a:b]) for a, b in EYEBALLS])
    height = np.clip((neutral[:, 1] - NECK_BASE_M) / (NECK_TOP_M - NECK_BASE_M), 0, 1)
    fade = height * height * (3 - 2 * height)
    surfaces = _surfaces(Model(neutral, triangles, corners, uv), vertices, centres, rng)
    return Head(vertices, fade, names, shapes, surfaces, centres)


def _sphere_centre(points: Float) -> Float:
    """Centre of the sphere that fits the points best."""
    system = np.concatenate((2 * points, np.ones((len(points), 1))), 1)
    solution, *_ = np.linalg.lstsq(system, (points**2).sum(1), rcond=None)
    return np.asarray(solution[:3])


def _merged(raw_names: list[str], expression: Float) -> tuple[tuple[str, ...], Float]:
    """ARKit's names: sides spelt out, shapes that ARKit does not split merged."""
    table: dict[str, Float] = {}
    for raw, shape in zip(raw_names, expression, strict=True):
        if raw.startswith("PupilDilate"):
            continue
        whole = raw.startswith(("browInnerUp", "cheekPuff"))
        name = raw[:-2] if whole else raw.replace("_L", "Left").replace("_R", "Right")
        table[name] = table[name] + shape if name in table else shape
    return tuple(table), np.stack(list(table.values()))


def vertex_normals(vertices: Float, triangles: Int) -> Float:
    """Area-weighted unit normals [V, 3]."""
    a, b, c = (vertices[triangles[:, i]] for i in range(3))
    flat = np.cross(b - a, c - a)
    count = len(vertices)
    normals = np.stack(
        [np.bincount(triangles.T.ravel(), np.tile(flat[:, k], 3), count) for k in range(3)], 1
    )
    return np.asarray(normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12))


def _cut(
    name: str, model: Model, vertices: Float, chosen: NDArray[np.bool_], tiles: int = 1,
    first_tile: int = 0,
) -> Surface:  # fmt: skip
    """The chosen triangles of the model with texture coordinates over ``tiles`` tiles in a row."""
    pairs, back = np.unique(
        np.stack((model.triangles[chosen].ravel(), model.corners[chosen].ravel()), 1),
        axis=0, return_inverse=True,
    )  # fmt: skip
    uv = (model.uv[pairs[:, 1]] - [first_tile, 0]) / [tiles, 1]
    rows = pairs[:, 0]
    return Surface(
        name, rows, vertices[rows], back.reshape(-1, 3), np.zeros((len(rows), 3)), uv=uv
    )


def _surfaces(
    model: Model, vertices: Float, eyes: Float, rng: np.random.Generator
) -> tuple[Surface, ...]:
    """Everything that is drawn."""
    first = model.triangles[:, 0]
    parts = _outside(model, vertices, rng)
    for name, low, high, color, dark in (
        ("throat", NECK_END, SOCKET_END, (0.45, 0.17, 0.16), 0.75),
        ("sockets", SOCKET_END, EYE_SOCKET_END, (0.72, 0.46, 0.42), 0.0),
        ("gums", EYE_SOCKET_END, GUMS_END, (0.66, 0.33, 0.33), 0.65),
        ("teeth", GUMS_END, TEETH_END, (0.86, 0.83, 0.76), 0.55),
    ):
        part = _cut(name, model, vertices, (first >= low) & (first < high))
        assert part.rows is not None
        back = np.clip((0.098 - model.neutral[part.rows, 2]) / 0.035, 0, 1)[:, None]
        parts.append(_with(part, colors=np.array(color) * (1 - dark * back), uv=None))
    parts += _eyes(model, vertices, eyes, rng)
    parts.append(_body(model, vertices, rng))
    return tuple(parts)


def _with(surface: Surface, **changes: object) -> Surface:
    """The surface with some fields changed."""
    return replace(surface, **changes)  # type: ignore[arg-type]


def _outside(model: Model, vertices: Float, rng: np.random.Generator) -> list[Surface]:
    """Skin, and the shells of hair and shirt over it, on one texture of two tiles."""
    outside = model.triangles[:, 0] < NECK_END
    full = _cut("skin", model, vertices, outside, tiles=2)
    assert full.rows is not None and full.uv is not None
    centimetres = model.neutral[full.rows] / CM
    size = (TEXTURE, 2 * TEXTURE)
    points, covered = paint.bake(full.uv[full.faces], full.faces, size, centimetres)
    there = covered > 0

    def painted(channels: int, values: Map) -> Map:
        picture = np.zeros((*size, channels), np.float32)
        picture[there] = values.reshape(-1, channels)
        return picture

    color, relief = paint.skin(points[there], rng)
    skin = _with(full, texture=painted(3, color), relief=painted(1, relief)[..., 0])
    normals = vertex_normals(vertices, model.triangles[outside])[full.rows]
    parts = [skin]
    depth = paint.hair_depth(centimetres.astype(np.float32))
    near = (depth > -0.6)[full.faces].any(1)
    for share, layer in HAIR_LAYERS_M:
        rise = np.clip((depth + 0.15) / 4.0, 0.03, 1) ** 0.7
        offset = normals * (share * HAIR_THICKNESS_M * rise)[:, None]
        texture = painted(4, paint.hair(points[there], layer, rng))
        parts.append(_sub(full, f"hair{layer:.0f}", near, offset, texture))
    depth = paint.shirt_depth(centimetres.astype(np.float32))
    near = (depth > -0.6)[full.faces].any(1)
    band = BAND_M * np.exp(-((np.clip(depth, 0, 9) / paint.SHIRT_BAND_CM) ** 4))
    offset = normals * (SHIRT_OFFSET_M + band)[:, None]
    texture = painted(4, paint.shirt(points[there], rng))
    parts.append(_sub(full, "shirt", near, offset, texture))
    return parts


def _sub(full: Surface, name: str, faces: NDArray[np.bool_], offset: Float, texture: Map) -> Surface:
    """A shell over some faces of a surface."""
    used, back = np.unique(full.faces[faces], return_inverse=True)
    assert full.rows is not None and full.uv is not None
    return Surface(
        name, full.rows[used], full.vertices[used], back.reshape(-1, 3), offset[used],
        uv=full.uv[used], texture=texture,
    )  # fmt: skip


def _eyes(model: Model, vertices: Float, centres: Float, rng: np.random.Generator) -> list[Surface]:
    """Eyeballs and upper lashes."""
    first = model.triangles[:, 0]
    balls = [(first >= low) & (first < high) for low, high in EYEBALLS]
    parts, texture = [], None
    for name, chosen, centre in zip(("eyeLeft", "eyeRight"), balls, centres, strict=True):
        part = _cut(name, model, vertices, chosen)
        assert part.uv is not None
        if texture is None:
            size = (EYE_TEXTURE, EYE_TEXTURE)
            away, _ = paint.bake(part.uv[part.faces], part.faces, size, part.vertices - centre)
            texture = paint.eye(away, rng)
        parts.append(_with(part, texture=texture))
    middle = model.neutral[[a for a, _ in EYEBALLS], 1].mean()
    upper = (first >= LASH_START) & (model.neutral[model.triangles, 1].min(1) > middle - 0.010)
    part = _cut("lashes", model, vertices, upper, first_tile=LASH_TILE)
    grid = np.stack(np.meshgrid(np.linspace(0, 1, 512), np.linspace(1, 0, 64)), -1)
    return [*parts, _with(part, texture=paint.lash(grid.astype(np.float32), rng))]


def _body(model: Model, vertices: Float, rng: np.random.Generator) -> Surface:
    """Shoulders and chest in the shirt: a loft that goes on where the model's own shoulders end."""
    edge, inner = _lower_edge(model)
    outside = model.triangles[model.triangles[:, 0] < NECK_END]
    lift = SHIRT_OFFSET_M * vertex_normals(vertices, outside)[edge]
    start, tangent = vertices[edge] + lift, vertices[edge] - vertices[inner]
    angle = np.arctan2(start[:, 2] + 0.02, start[:, 0])
    order = np.argsort(angle)
    turn = np.linspace(-np.pi, np.pi, BODY_COLUMNS, endpoint=False)

    def around(values: Float) -> Float:
        return np.stack([
            np.interp(turn, angle[order], values[order, k], period=2 * np.pi) for k in range(3)
        ], -1)  # fmt: skip

    start, tangent = around(start), around(tangent)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    c, s = np.cos(turn), np.sin(turn)
    end = np.stack((
        0.205 * np.sign(c) * np.abs(c) ** 0.75, -0.205 - 0.085 * np.abs(s) ** 1.5,
        -0.02 + np.where(s > 0, 0.125, 0.085) * np.sign(s) * np.abs(s) ** 0.8,
    ), -1)  # fmt: skip
    before = end + np.stack((-0.012 * c, np.full_like(c, 0.05), -0.01 * s), -1)
    t = np.linspace(0, 1, BODY_ROWS)[:, None, None]
    bezier = (
        (1 - t) ** 3 * start + 3 * (1 - t) ** 2 * t * (start + 0.035 * tangent)
        + 3 * (1 - t) * t**2 * before + t**3 * end
    )  # fmt: skip
    down = np.linspace(0.01, 0.25, 12)[:, None, None] * np.array([0.0, -1.0, 0.0])
    points = np.concatenate((bezier, end + down)).reshape(-1, 3)
    rows = len(points) // BODY_COLUMNS
    free = np.clip(np.repeat(np.arange(rows), BODY_COLUMNS) / 10, 0, 1)[:, None]
    centimetres = (points / CM).astype(np.float32)
    stretched = centimetres * np.array([1.0, 0.35, 1.0], np.float32)
    folds = paint.lattice(stretched, 2.2, rng) + 0.5 * paint.lattice(stretched, 1.0, rng)
    points[:, 2] += (0.0022 * free[:, 0] * folds).astype(np.float64)
    grid = np.arange(len(points)).reshape(rows, BODY_COLUMNS)
    a, b = grid[:-1], grid[1:]
    quads = np.stack((a, b, np.roll(b, -1, 1), np.roll(a, -1, 1)), -1).reshape(-1, 4)
    faces = np.concatenate((quads[:, [0, 2, 1]], quads[:, [0, 3, 2]]))
    shade = 1 + 0.03 * paint.lattice(centimetres, 1.5, rng)[:, None]
    colors = np.clip(np.array(paint.SHIRT_COLOR) * shade, 0, 1)
    return Surface("body", None, points, faces, np.zeros_like(points), colors=colors)


def _lower_edge(model: Model) -> tuple[Int, Int]:
    """Vertices on the open lower edge of the model's shoulders, and a neighbour inside of each."""
    outside = model.triangles[model.triangles[:, 0] < NECK_END]
    sides = np.sort(np.concatenate([outside[:, [i, (i + 1) % 3]] for i in range(3)]), 1)
    pairs, count = np.unique(sides, axis=0, return_counts=True)
    rim = pairs[count == 1]
    low = model.neutral[rim, 1].max(1) < RIM_BELOW_M
    edge = np.unique(rim[low])
    onto = np.isin(pairs, edge)
    spokes = pairs[onto.sum(1) == 1]
    first = np.where(np.isin(spokes[:, 0], edge), 0, 1)
    rows = np.arange(len(spokes))
    ends, inner = spokes[rows, first], spokes[rows, 1 - first]
    length = np.linalg.norm(model.neutral[ends] - model.neutral[inner], axis=1)
    order = np.lexsort((length, ends))
    kept, at = np.unique(ends[order], return_index=True)
    return kept, inner[order][at]
