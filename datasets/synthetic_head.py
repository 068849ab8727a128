"""The synthetic head's body: ICT-FaceKit geometry with procedural skin, eyes, hair and shoulders.

Head frame in metres: +x to the subject's left, +y up, +z out of the face. Vertex ranges are those
of ICT-FaceKit (MIT, (c) 2020 USC ICT).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gsavatar.datasets.synthetic_eyes import eye_colors, lid_closure, with_lashes
from gsavatar.morphable_ict import NECK_FRONT_M, NECK_SLOPE, NECK_TOP_M
from gsavatar.morphable_surface import vertex_normals
from gsavatar.types import Region

Float = NDArray[np.float64]
Int = NDArray[np.int64]

CM = 0.01
FACE_END, NECK_END, SOCKET_END, EYE_SOCKET_END = 9409, 11248, 13294, 14062
GUMS_END, UPPER_TEETH_END, TEETH_END, EYES_END = 17039, 19247, 21451, 24591
LASH_START = 25351
IDENTITY_MODES, IDENTITY_SIGMA = 30, 0.7
HAIRLINE_Y, HAIR_THICKNESS, HAIR_COLOR = 0.078, 0.012, (0.20, 0.13, 0.09)
NECK_TOP, NECK_BASE = -0.095, -0.165
CHEST_CUT_Y, SHOULDER_CUT_Y, SHOULDER_X = -0.138, -0.100, 0.050
"""Below the first height nothing of the model is drawn; below the second, beside the neck, its
shoulders are drawn in so that they stay in the collar."""
COLLAR_WIDE_M, COLLAR_DEEP_M, COLLAR_Z, COLLAR_FILLED = 0.068, 0.070, -0.012, 0.80
"""The collar's half axes and middle, and the share of it that the neck may fill."""
COLLAR_RISE_M = 0.024
"""By how much the collar is higher beside the neck, where the model is cut, than in front."""
MOUTH_FRONT_Z, MOUTH_DARK_M, MOUTH_DARK = 0.105, 0.055, 0.06
"""Front teeth, how far behind them no light comes, and what is left there."""
DEVIATION_LENGTH_M = 0.03
"""Over which distance a subject's departure from the model changes."""


@dataclass(frozen=True)
class Surface:
    """A mesh with a colour per vertex, and how its vertices follow the head."""

    name: str
    rows: Int | None  # vertices of the face model, None for a mesh of its own
    vertices: Float  # [V, 3] at rest
    faces: Int  # [F, 3]
    colors: Float  # [V, 3], 0-1
    offset: Float  # [V, 3] added along the model's own motion (hair stands off the skin)
    at_rest: Float  # [V, 3] where these vertices are on the model's average face


@dataclass(frozen=True)
class Head:
    """A person: rest vertices of the model, its named shapes and what is drawn."""

    vertices: Float  # [26719, 3]
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
        eyes = np.arange(TEETH_END, EYES_END)
        for centre, side in zip(self.eye_centres, (1.0, -1.0), strict=True):
            mine = eyes[self.vertices[eyes, 0] * side > 0]
            moved[mine] = (self.vertices[mine] - centre) @ turn.T + centre
        return moved


def rotation(yaw: float, pitch: float, roll: float) -> Float:
    """Rotation matrix: yaw about +y, then pitch about +x, then roll about +z, in radians."""
    cy, sy, cp, sp, cr, sr = (f(a) for a in (yaw, pitch, roll) for f in (np.cos, np.sin))
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_x = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    about_z = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    return about_y @ about_x @ about_z


def load_head(path: Path, seed: int, deviation_m: float = 0.0, glasses: bool = False) -> Head:
    """A random person of a seed, from the packed model file.

    ``deviation_m`` is the size of a smooth random departure from everything the model can express,
    so that a fit of the same model has something it cannot explain.
    """
    rng = np.random.default_rng(seed)
    with np.load(path) as data:
        neutral = data["neutral"].astype(np.float64) * CM
        identity = data["identity"].astype(np.float64) * CM
        expression = data["expression"].astype(np.float64) * CM
        raw_names = [str(n) for n in data["expression_names"]]
        quads = data["faces"].astype(np.int64)
    weights = identity_weights(rng)
    vertices = neutral + np.tensordot(weights, identity[:IDENTITY_MODES], 1)
    names, shapes = _merged(raw_names, expression)
    triangles = np.concatenate((quads[:, :3], quads[quads[:, 3] >= 0][:, [0, 2, 3]]))
    if deviation_m:
        vertices = vertices + _deviation(neutral, deviation_m, seed)
    eyes = np.arange(TEETH_END, EYES_END)
    centres = np.stack([vertices[eyes[neutral[eyes, 0] * s > 0]].mean(0) for s in (1.0, -1.0)])
    for side, blink in ((1.0, "eyeBlinkLeft"), (-1.0, "eyeBlinkRight")):
        closing = shapes[names.index(blink), :FACE_END]
        closing += lid_closure(
            vertices[:FACE_END] + closing, neutral[:FACE_END], neutral[LASH_START:], side
        )
    surfaces = _surfaces(vertices, neutral, triangles, shapes[names.index("jawOpen")], centres, rng)
    if glasses:
        surfaces = (*surfaces, _glasses(centres))
    return Head(vertices, names, shapes, surfaces, centres)


def identity_weights(rng: np.random.Generator) -> Float:
    """Weights [30] of the model's identity modes: what a seed's generator draws first."""
    return np.asarray(rng.normal(0.0, IDENTITY_SIGMA, IDENTITY_MODES))


def _deviation(neutral: Float, size_m: float, seed: int) -> Float:
    """A smooth displacement [V, 3] of the given deviation; eyeballs move as a whole."""
    rng = np.random.default_rng([seed, 3])
    moved = np.stack([noise(neutral, DEVIATION_LENGTH_M, rng, 200) for _ in range(3)], -1)
    moved *= size_m
    eyes = np.arange(TEETH_END, EYES_END)
    for side in (1.0, -1.0):
        mine = eyes[neutral[eyes, 0] * side > 0]
        moved[mine] = moved[mine].mean(0)
    return np.asarray(moved)


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


def _surfaces(  # noqa: PLR0917
    vertices: Float, neutral: Float, triangles: Int, jaw: Float, eyes: Float,
    rng: np.random.Generator,
) -> tuple[Surface, ...]:  # fmt: skip
    index = np.arange(len(vertices))
    normals = vertex_normals(vertices, triangles).astype(np.float64)
    outside = (index < NECK_END) & (neutral[:, 1] >= CHEST_CUT_Y)
    skin = outside | ((index >= NECK_END) & (index < EYE_SOCKET_END))
    groups = {
        "skin": skin,
        "gums": (index >= EYE_SOCKET_END) & (index < GUMS_END),
        "teeth": (index >= GUMS_END) & (index < TEETH_END),
        "eyes": (index >= TEETH_END) & (index < EYES_END),
    }
    colors = np.zeros_like(vertices)
    colors[:] = _skin_colors(vertices, neutral, normals, rng)
    colors[NECK_END:SOCKET_END] = (0.30, 0.10, 0.10)
    colors[SOCKET_END:EYE_SOCKET_END] = (0.75, 0.50, 0.45)
    colors[EYE_SOCKET_END:GUMS_END] = (0.62, 0.28, 0.28)
    colors[GUMS_END:TEETH_END] = (0.88, 0.84, 0.78)
    colors[NECK_END:SOCKET_END] *= _mouth_light(neutral[NECK_END:SOCKET_END])[:, None]
    colors[EYE_SOCKET_END:TEETH_END] *= _mouth_light(neutral[EYE_SOCKET_END:TEETH_END])[:, None]
    colors[TEETH_END:EYES_END] = eye_colors(vertices[TEETH_END:EYES_END], eyes)
    colors[:FACE_END] = with_lashes(colors[:FACE_END], neutral[:FACE_END], neutral[LASH_START:])
    drawn_in = _into_collar(vertices, neutral)
    parts = [_part(n, m, vertices, neutral, triangles, colors, drawn_in) for n, m in groups.items()]
    parts.append(_hair(vertices, neutral, normals, triangles, rng))
    parts.append(_shoulders(rng))
    return tuple(parts)


def _into_collar(vertices: Float, neutral: Float) -> Float:
    """Displacements [V, 3] that bring the model's shoulders into the collar, 0 elsewhere."""
    share = np.clip((SHOULDER_CUT_Y - neutral[:, 1]) / 0.006, 0, 1)
    share = share * np.clip((np.abs(neutral[:, 0]) - SHOULDER_X) / 0.006, 0, 1)
    x, z = vertices[:, 0], vertices[:, 2] - COLLAR_Z
    radius = np.hypot(x / COLLAR_WIDE_M, z / COLLAR_DEEP_M)
    shrink = share * (1 - COLLAR_FILLED / np.maximum(radius, COLLAR_FILLED))
    return np.stack((-x * shrink, np.zeros_like(x), -z * shrink), -1)


def _part(  # noqa: PLR0917
    name: str, mask: NDArray[np.bool_], vertices: Float, neutral: Float, triangles: Int,
    colors: Float, offset: Float,
) -> Surface:  # fmt: skip
    """The triangles of the model whose three corners are chosen."""
    rows = np.flatnonzero(mask)
    place = np.full(len(mask), -1)
    place[rows] = np.arange(len(rows))
    faces = place[triangles]
    faces = faces[(faces >= 0).all(1)]
    return Surface(name, rows, vertices[rows], faces, colors[rows], offset[rows], neutral[rows])


def noise(points: Float, scale: float, rng: np.random.Generator, waves: int = 24) -> Float:
    """Smooth random values [N] of unit deviation that vary over ``scale`` metres."""
    directions = rng.normal(size=(waves, 3)) / scale
    phases = rng.uniform(0, 2 * np.pi, waves)
    return np.sqrt(2.0 / waves) * np.cos(points @ directions.T + phases).sum(1)


def _bump(points: Float, centre: tuple[float, float], width: tuple[float, float]) -> Float:
    """A soft spot on the face around (|x|, y), 0-1."""
    dx = (np.abs(points[:, 0]) - centre[0]) / width[0]
    dy = (points[:, 1] - centre[1]) / width[1]
    return np.exp(-0.5 * (dx * dx + dy * dy))


def _skin_colors(
    vertices: Float, neutral: Float, normals: Float, rng: np.random.Generator
) -> Float:
    """Skin with blotches, pores, red cheeks and nose, dark brows and coloured lips."""
    tone = np.array([0.80, 0.60, 0.50]) + rng.normal(0, 0.02, 3)
    color = np.tile(tone, (len(vertices), 1))
    color += (
        0.018 * noise(neutral, 0.02, rng)[:, None] + 0.014 * noise(neutral, 0.004, rng)[:, None]
    )
    red = 0.7 * _bump(neutral, (0.045, -0.01), (0.02, 0.02)) + 0.6 * _bump(
        neutral, (0.0, 0.0), (0.012, 0.015)
    )
    front = neutral[:, 2] > 0.03
    color += (red * front)[:, None] * np.array([0.05, -0.05, -0.04])
    shade = 0.5 * _bump(neutral, (0.032, 0.022), (0.014, 0.005)) * front  # below the eyes
    color -= shade[:, None] * np.array([0.06, 0.07, 0.04])
    arch = 0.0565 + 0.006 * np.sin(
        np.clip((np.abs(neutral[:, 0]) - 0.012) / 0.045, 0, 1) * np.pi * 0.8
    )
    inside = (
        (np.abs(neutral[:, 0]) > 0.012) & (np.abs(neutral[:, 0]) < 0.055) & (neutral[:, 2] > 0.06)
    )
    thick = 0.0035 - 0.0018 * np.clip((np.abs(neutral[:, 0]) - 0.035) / 0.02, 0, 1)
    brow = np.exp(-0.5 * ((neutral[:, 1] - arch) / thick) ** 2) * inside
    color = color * (1 - 0.8 * brow[:, None]) + 0.8 * brow[:, None] * np.array([0.20, 0.13, 0.09])
    under, bare = _under_hair(neutral)
    scalp = (np.clip((under + 0.25) / 0.35, 0, 1) * ~bare)[:, None]  # hides the mesh's ragged edge
    color = color * (1 - scalp) + scalp * np.array(HAIR_COLOR)
    lips = _lip_mask(neutral)[:, None]
    return np.clip(color * (1 - lips) + lips * np.array([0.66, 0.32, 0.31]), 0.0, 1.0)


def _mouth_light(neutral: Float) -> Float:
    """Share of the light [N] that reaches points of the mouth's inside: little behind the lips.

    The renderer casts no shadows; without this the back teeth shine in the corners of the mouth.
    """
    deep = np.clip((MOUTH_FRONT_Z - neutral[:, 2]) / MOUTH_DARK_M, 0, 1)
    aside = np.clip((np.abs(neutral[:, 0]) - 0.012) / 0.012, 0, 1)
    return np.asarray(MOUTH_DARK + (1 - MOUTH_DARK) * (1 - deep) ** 1.5 * (1 - 0.6 * aside))


LIP_CENTRE_Y, LIP_HALF_WIDTH = -0.0341, 0.0262


def _lip_mask(neutral: Float) -> Float:
    """Where the red of the lips is, 0-1, from the model's average face."""
    across = np.abs(neutral[:, 0]) / LIP_HALF_WIDTH
    rise = np.clip(1 - across**2, 0, None)
    upper = LIP_CENTRE_Y + 0.0085 * np.sqrt(rise) * (
        1 - 0.18 * np.exp(-((neutral[:, 0] / 0.004) ** 2))
    )
    lower = LIP_CENTRE_Y - 0.0105 * np.sqrt(rise)
    edge = np.minimum(upper - neutral[:, 1], neutral[:, 1] - lower) / 0.0012
    return np.clip(edge + 0.5, 0, 1) * (across < 1) * (neutral[:, 2] > 0.07)


def _under_hair(neutral: Float) -> tuple[Float, NDArray[np.bool_]]:
    """How far behind the hairline points lie, in units of 20 mm, and where no hair ever grows."""
    x, y, z = neutral.T
    line = (
        HAIRLINE_Y
        - 0.10 * np.clip((0.075 - z) / 0.09, 0, 1)
        - 0.035 * np.clip((np.abs(x) - 0.055) / 0.02, 0, 1)
    )
    ear = (np.abs(x) > 0.068) & (y < 0.035) & (y > -0.05) & (z < 0.02) & (z > -0.035)
    return (y - line) / 0.02, ear | (y <= -0.06)


def _hair(  # noqa: PLR0917
    vertices: Float, neutral: Float, normals: Float, triangles: Int, rng: np.random.Generator
) -> Surface:
    """A cap of hair: the scalp lifted off the skull, thinner towards the hairline."""
    inside, bare = _under_hair(neutral)
    mask = (np.arange(len(vertices)) < NECK_END) & (inside > 0) & ~bare
    lift = HAIR_THICKNESS * np.clip(inside, 0.12, 1) * (1 + 0.15 * noise(neutral, 0.015, rng))
    strands = noise(neutral * np.array([3.0, 0.5, 1.0]), 0.004, rng)
    color = np.array(HAIR_COLOR) * (1 + 0.22 * strands + 0.15 * noise(neutral, 0.02, rng))[:, None]
    outward = normals if (normals[:FACE_END] * neutral[:FACE_END]).sum() > 0 else -normals
    lifted = outward * lift[:, None]
    return _part("hair", mask, vertices, neutral, triangles, np.clip(color, 0, 1), lifted)


def _shoulders(rng: np.random.Generator) -> Surface:
    """A loft from the collar to the chest: rings of ellipses, with folds in the cloth."""
    rings, around = 60, 128
    t = np.linspace(0, 1, rings)
    angle = np.linspace(0, 2 * np.pi, around, endpoint=False)
    wide = COLLAR_WIDE_M + 0.165 * np.clip((t - 0.12) / 0.45, 0, 1) ** 0.75
    deep = COLLAR_DEEP_M + 0.050 * np.clip((t - 0.10) / 0.6, 0, 1)
    height = (
        -0.121 - 0.022 * np.clip(t / 0.12, 0, 1) - 0.30 * np.clip((t - 0.12) / 0.88, 0, 1) ** 1.15
    )
    aside = np.clip((0.9 - np.sin(angle)) / 0.5, 0, 1)
    raised = COLLAR_RISE_M * aside * aside * (3 - 2 * aside)  # open in front, up behind
    x = wide[:, None] * np.cos(angle)
    z = COLLAR_Z + deep[:, None] * np.sin(angle)
    y = height[:, None] + raised * np.clip(1 - t[:, None] / 0.12, 0, 1)
    points = np.stack((x, y, z), -1).reshape(-1, 3)
    points[:, 1] -= 0.05 * np.clip((np.abs(points[:, 0]) - 0.06) / 0.17, 0, 1) ** 1.5
    points[:, 2] += 0.0025 * noise(points, 0.03, rng)
    grid = np.arange(rings * around).reshape(rings, around)
    a, b = grid[:-1], grid[1:]
    quads = np.stack((a, np.roll(a, -1, 1), np.roll(b, -1, 1), b), -1).reshape(-1, 4)
    faces = np.concatenate((quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]))
    cloth = np.array([0.16, 0.24, 0.40]) * (1 + 0.06 * noise(points, 0.02, rng))[:, None]
    cloth[np.repeat(t < 0.13, around)] = (0.86, 0.86, 0.88)
    return Surface(
        "cloth", None, points, faces, np.clip(cloth, 0, 1), np.zeros_like(points), points
    )


def _glasses(centres: Float) -> Surface:
    """Two round rims in front of the eyes, a bridge and two temples, as thin tubes."""
    around = np.linspace(0, 2 * np.pi, 49)
    curves = []
    for centre, side in zip(centres, (1.0, -1.0), strict=True):
        middle = centre + np.array([0.002 * side, -0.002, 0.024])
        curves.append(middle + np.stack(
            (0.025 * np.cos(around), 0.020 * np.sin(around), -0.004 * np.abs(np.cos(around))), -1
        ))  # fmt: skip
        hinge = middle + np.array([0.025 * side, 0.006, -0.005])
        behind = np.array([0.078 * side, hinge[1] - 0.004, -0.01])
        curves.append(np.linspace(hinge, behind, 24))
    sides = np.array([[-1.0], [1.0]])
    inner = centres + sides * [0.023, 0, 0] + [0, 0.004, 0.023]
    arch = np.linspace(inner[0], inner[1], 16)
    arch[:, 1] += 0.004 * np.sin(np.linspace(0, np.pi, 16))
    curves.append(arch)
    points, faces, start = [], [], 0
    for curve in curves:
        tube, cells = _tube(curve, 0.0013)
        points.append(tube)
        faces.append(cells + start)
        start += len(tube)
    every = np.concatenate(points)
    dark = np.tile((0.08, 0.07, 0.08), (len(every), 1))
    return Surface("glasses", None, every, np.concatenate(faces), dark, np.zeros_like(every), every)


def _tube(curve: Float, radius: float, sides: int = 8) -> tuple[Float, Int]:
    """Vertices and triangles of a tube around a curve [P, 3]."""
    along = np.gradient(curve, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    helper = np.where(np.abs(along[:, :1]) < 0.9, [[1.0, 0, 0]], [[0, 1.0, 0]])
    across = np.cross(along, helper)
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    up = np.cross(along, across)
    turn = np.linspace(0, 2 * np.pi, sides, endpoint=False)
    ring = np.cos(turn)[None, :, None] * across[:, None] + np.sin(turn)[None, :, None] * up[:, None]
    points = (curve[:, None] + radius * ring).reshape(-1, 3)
    grid = np.arange(len(points)).reshape(len(curve), sides)
    a, b = grid[:-1], grid[1:]
    quads = np.stack((a, np.roll(a, -1, 1), np.roll(b, -1, 1), b), -1).reshape(-1, 4)
    return points, np.concatenate((quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]))


REGION_OF = {
    "skin": Region.SKIN, "teeth": Region.INNER_MOUTH, "gums": Region.INNER_MOUTH,
    "eyes": Region.EYES, "hair": Region.HAIR, "cloth": Region.TORSO, "glasses": Region.SKIN,
}  # fmt: skip


def label_colors(surface: Surface) -> NDArray[np.uint8]:
    """Colours [V, 3] that spell a surface's regions: the region, then where lips and neck are.

    The last two are interpolated over a triangle and cut at a half, so that their edges are smooth.
    """
    colors = np.zeros((len(surface.vertices), 3), np.uint8)
    colors[:, 0] = int(REGION_OF[surface.name])
    if surface.name == "skin" and surface.rows is not None:
        rest = surface.at_rest
        inside = (surface.rows >= NECK_END) & (surface.rows < SOCKET_END)
        colors[inside, 0] = int(Region.INNER_MOUTH)
        face = surface.rows < FACE_END
        colors[:, 1] = np.where(face, 255 * _lip_mask(rest), 0)
        below = (NECK_TOP_M + NECK_SLOPE * (NECK_FRONT_M - rest[:, 2]) - rest[:, 1]) / 0.004
        colors[:, 2] = np.where(surface.rows < NECK_END, 255 * np.clip(below + 0.5, 0, 1), 0)
    return colors
