"""Colours of the synthetic head: procedural textures painted by position on the average face.

A texture is baked over the model's own texture coordinates: every texel learns which point of the
average face it shows, and the painters are functions of that point alone. So paint sticks to the
same anatomy on every identity. Positions in this module are centimetres of the average face.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
Map = NDArray[np.float32]
Int = NDArray[np.int64]

IRIS_RAD, PUPIL_RAD = 0.43, 0.17
LIP_UPPER = ((0.0, 0.7, 1.71, 2.11, 2.4, 2.68), (-2.50, -2.40, -2.75, -3.05, -3.29, -3.54))
LIP_LOWER = ((0.0, 1.04, 1.5, 1.79, 2.18, 2.68), (-4.52, -4.42, -4.27, -4.12, -3.86, -3.56))
"""The borders of the lips: |x| and y along them."""
HAIRLINE = (
    (-12.0, -5.0, -3.2, -2.0, 1.2, 2.2, 2.9, 4.4, 6.0, 7.6, 9.3, 12.0),
    (-7.6, -7.0, -4.5, -2.0, -1.2, 0.2, 1.8, 5.2, 7.3, 8.3, 8.7, 8.9),
)
"""The edge of the hair: z (back to front) and y along it."""
HAIR_POLE = (0.0, 0.45, -0.9)
"""Direction from the middle of the skull to where the combed-back hair meets."""
HAIR_COLOR, SKIN_COLOR, LIP_COLOR = (0.17, 0.105, 0.07), (0.83, 0.64, 0.545), (0.70, 0.40, 0.385)
SHIRT_COLOR = (0.15, 0.25, 0.34)
SHIRT_EDGE_CM, SHIRT_BAND_CM = 0.25, 1.6


def bake(uv: Float, corners: Float, size: tuple[int, int], values: Float) -> tuple[Map, Map]:
    """``values`` [V, C] of a mesh painted into its texture.

    ``uv`` [F, 3, 2] in 0-1 of the whole texture, ``corners`` [F, 3] rows of ``values``, ``size``
    (height, width). Gives the picture [H, W, C], first row on top (v = 1), and its coverage [H, W].
    """
    high, wide = size
    place = uv * [wide, high] - 0.5
    picture = np.zeros((high, wide, values.shape[1]), np.float32)
    covered = np.zeros((high, wide), np.float32)
    low = np.floor(place.min(1)).astype(np.int64)
    extent = (np.ceil(place.max(1)).astype(np.int64) - low + 1).max(1)
    for reach in (4, 8, 16, 32, 64, 128, 256):
        rows = np.flatnonzero((extent <= reach) & (extent > (0 if reach == 4 else reach // 2)))
        step = np.stack(np.meshgrid(np.arange(reach), np.arange(reach)), -1).reshape(-1, 2)
        for part in np.array_split(rows, max(1, len(rows) * reach * reach // 2_000_000)):
            if len(part) == 0:
                continue
            texel = low[part, None] + step
            weights = _barycentric(place[part], texel)
            inside = (weights > -1e-4).all(-1)
            weights = np.clip(weights, 0, None)
            weights /= np.maximum(weights.sum(-1, keepdims=True), 1e-9)
            mixed = np.einsum("fpk,fkc->fpc", weights, values[corners[part]])
            x, y = texel[inside].T
            x, y = np.clip(x, 0, wide - 1), high - 1 - np.clip(y, 0, high - 1)
            picture[y, x] = mixed[inside]
            covered[y, x] = 1.0
    return _grown(picture, covered)


def _barycentric(triangle: Float, points: Int) -> Float:
    """Weights [F, P, 3] of ``points`` [F, P, 2] in ``triangle`` [F, 3, 2]."""
    a, b, c = triangle[:, 0], triangle[:, 1], triangle[:, 2]
    ab, ac = b - a, c - a
    area = ab[:, 0] * ac[:, 1] - ab[:, 1] * ac[:, 0]
    area = np.where(np.abs(area) < 1e-12, 1e-12, area)[:, None]
    d = points - a[:, None]
    second = (d[..., 0] * ac[:, None, 1] - d[..., 1] * ac[:, None, 0]) / area
    third = (d[..., 1] * ab[:, None, 0] - d[..., 0] * ab[:, None, 1]) / area
    return np.stack((1 - second - third, second, third), -1)


def _grown(picture: Map, covered: Map) -> tuple[Map, Map]:
    """The same with a few texels added around every patch, so that filtering finds no holes."""
    for _ in range(4):
        for shift, axis in ((1, 0), (-1, 0), (1, 1), (-1, 1)):
            other, there = np.roll(picture, shift, axis), np.roll(covered, shift, axis)
            new = (covered == 0) & (there > 0)
            picture[new] = other[new]
            covered = np.maximum(covered, there)
    return picture, covered


def lattice(points: Map, size: float, rng: np.random.Generator) -> Map:
    """Smooth random values [...] of about unit deviation that vary over ``size`` centimetres."""
    table = rng.normal(size=(32, 32, 32)).astype(np.float32)
    scaled = points / size
    cell = np.floor(scaled).astype(np.int64)
    t = scaled - cell
    t = t * t * (3 - 2 * t)
    total = np.zeros(points.shape[:-1], np.float32)
    for corner in range(8):
        bits = [(corner >> k) & 1 for k in range(3)]
        weight = np.ones_like(total)
        for k, bit in enumerate(bits):
            weight *= t[..., k] if bit else 1 - t[..., k]
        i, j, k = ((cell[..., n] + bits[n]) % 32 for n in range(3))
        total += weight * table[i, j, k]
    return 1.7 * total


def step(values: Map, soft: float) -> Map:
    """0 below zero and 1 above, blended over ``soft`` on both sides."""
    t = np.clip(0.5 + 0.5 * values / soft, 0, 1)
    return np.asarray(t * t * (3 - 2 * t))


def spot(points: Map, centre: tuple[float, float], width: tuple[float, float]) -> Map:
    """A soft spot on both sides of the front of the face around (|x|, y), 0-1."""
    dx = (np.abs(points[..., 0]) - centre[0]) / width[0]
    dy = (points[..., 1] - centre[1]) / width[1]
    return np.asarray(np.exp(-0.5 * (dx * dx + dy * dy)) * step(points[..., 2] - 4.0, 2.0))


def mix(color: Map, other: Map | tuple[float, ...], share: Map) -> Map:
    """``color`` with ``share`` [...] of another colour."""
    amount = share[..., None]
    return np.asarray(color * (1 - amount) + amount * np.asarray(other, np.float32))


def skin(points: Map, rng: np.random.Generator) -> tuple[Map, Map]:
    """Colour [..., 3] (sRGB) and relief [...] of the skin: pores, flush, brows, lips, stubble-free."""
    tone = np.asarray(SKIN_COLOR, np.float32) + rng.normal(0, 0.015, 3).astype(np.float32)
    color = np.broadcast_to(tone, points.shape).copy()
    blotch = 0.6 * lattice(points, 1.6, rng) + 0.4 * lattice(points, 0.6, rng)
    pores = lattice(points, 0.09, rng)
    color += 0.014 * blotch[..., None] * np.array([0.6, 1.0, 1.0], np.float32)
    color += 0.009 * pores[..., None]
    flush = (
        0.9 * spot(points, (4.3, -0.6), (1.7, 1.5)) + 0.7 * spot(points, (0.0, -0.2), (1.2, 1.0))
        + 0.4 * spot(points, (0.0, -6.6), (1.5, 0.8)) + 0.35 * step(np.abs(points[..., 0]) - 7.6, 0.4)
    )  # fmt: skip
    color += flush[..., None] * np.array([0.015, -0.055, -0.05], np.float32)
    hollow = spot(points, (2.7, 2.3), (1.2, 0.45)) + 0.8 * spot(points, (1.6, 3.4), (0.5, 0.7))
    color -= 0.5 * hollow[..., None] * np.array([0.07, 0.10, 0.07], np.float32)
    lid = spot(points, (3.2, 4.4), (1.3, 0.35))
    color -= 0.6 * lid[..., None] * np.array([0.07, 0.09, 0.08], np.float32)
    freckles = step(lattice(points, 0.28, rng) - 1.75, 0.35) * spot(points, (2.8, 0.3), (2.6, 1.2))
    color -= 0.5 * freckles[..., None] * np.array([0.10, 0.13, 0.12], np.float32)
    color, relief = _lips(points, color, 0.25 * pores, rng)
    color = _brows(points, color, rng)
    scalp = step(hair_depth(points) - 0.1, 0.5)
    color = mix(color, tuple(1.25 * c for c in HAIR_COLOR), 0.8 * scalp)
    return np.clip(color, 0, 1), relief


def _lips(points: Map, color: Map, relief: Map, rng: np.random.Generator) -> tuple[Map, Map]:
    """Lips over the skin, darker inside, with fine furrows."""
    x, y, z = np.abs(points[..., 0]), points[..., 1], points[..., 2]
    edge = np.minimum(np.interp(x, *LIP_UPPER) - y, y - np.interp(x, *LIP_LOWER))
    edge = edge + 0.02 * lattice(points, 0.15, rng)
    share = step(edge, 0.11) * step(z - 9.3, 0.3) * step(2.72 - x, 0.1)
    furrow = lattice(points * np.array([1.0, 0.12, 0.12], np.float32), 0.07, rng)
    inner = step(11.15 - z - 0.17 * x * x, 0.25)
    lips = np.asarray(LIP_COLOR, np.float32) * (1 + 0.035 * furrow[..., None])
    lips = mix(lips, (0.56, 0.27, 0.26), 0.8 * inner)
    return mix(color, lips.astype(np.float32), 0.9 * share), relief * (1 - share) + 0.7 * furrow * share


def _brows(points: Map, color: Map, rng: np.random.Generator) -> Map:
    """Brows of single hairs that lean outwards."""
    x, y = np.abs(points[..., 0]), points[..., 1]
    along = np.clip((x - 1.15) / (5.6 - 1.15), 0, 1)
    middle = 5.38 + 0.62 * np.sin(np.pi * np.clip(along, 0, 1) ** 0.95 * 0.86) - 0.50 * along**3
    half = 0.36 * (1 - 0.72 * along**1.5)
    inside = step(half - np.abs(y - middle), 0.14) * step(x - 1.35, 0.35) * step(5.55 - x, 0.4)
    lean = np.stack((x * 0.9 + (y - middle) * -0.8, (x + y) * 0.10, points[..., 2] * 0.1), -1)
    hairs = step(lattice(lean.astype(np.float32), 0.085, rng) + 0.55, 0.8)
    return mix(color, (0.20, 0.135, 0.10), 0.82 * inside * hairs * step(points[..., 2] - 6, 0.5))


def hair_depth(points: Map) -> Map:
    """How far a point of the scalp lies inside the hair, centimetres; negative on bare skin."""
    x, y, z = np.abs(points[..., 0]), points[..., 1], points[..., 2]
    knots = np.linspace(HAIRLINE[0][0], HAIRLINE[0][-1], 200)
    line = np.convolve(np.pad(np.interp(knots, *HAIRLINE), 6, "edge"), np.ones(13) / 13, "valid")
    slope = np.gradient(line, knots)
    depth = (y - np.interp(z, knots, line)) / np.sqrt(1 + np.interp(z, knots, slope) ** 2)
    ear = np.hypot((y - 0.3) / 4.3, (z + 0.9) / 2.6) - 1
    ear = np.where(x > 6.4, 2.6 * ear, 5.0)
    return np.asarray(np.minimum(depth, ear))


def hair(points: Map, layer: float, rng: np.random.Generator) -> Map:
    """Colour and opacity [..., 4] of a shell of combed-back hair; ``layer`` 0 is the innermost."""
    pole = np.asarray(HAIR_POLE) / np.linalg.norm(HAIR_POLE)
    side = np.array([1.0, 0.0, 0.0])
    up = np.cross(pole, side)
    away = points - np.array([0.0, 4.0, 0.5], np.float32)
    away = away / np.linalg.norm(away, axis=-1, keepdims=True)
    around = np.arctan2(away @ up, away @ side).astype(np.float32)
    far = np.arccos(np.clip(away @ pole, -1, 1)).astype(np.float32)
    ring = np.maximum(np.sin(far), 0.15)
    flow = np.stack((np.cos(around), np.sin(around), 0.10 * far / ring), -1) * 7.5
    flow = flow.astype(np.float32) + 0.10 * lattice(points, 2.5, rng)[..., None]
    locks, strands = lattice(flow, 0.55, rng), lattice(flow, 0.10, rng)
    single = lattice(flow, 0.045, rng)
    shade = 1 + 0.20 * locks + 0.22 * strands + 0.12 * single
    color = np.asarray(HAIR_COLOR, np.float32) * np.clip(shade, 0.35, 2.0)[..., None]
    depth = hair_depth(points)
    alpha = step(depth + 0.22 * strands + 0.16 * single - 0.15 - 0.3 * layer, 0.22)
    if layer > 0:
        alpha = alpha * step(0.7 * strands + 0.7 * single - 0.5, 0.5)
    return np.concatenate((np.clip(color, 0, 1), alpha[..., None]), -1).astype(np.float32)


def shirt_depth(points: Map) -> Map:
    """How far below the neckline a point lies, centimetres."""
    x, y, z = points[..., 0], points[..., 1], points[..., 2]
    line = -12.9 - 2.7 * step(z - 0.5, 4.5) - 0.6 * np.exp(-0.5 * (x / 3.0) ** 2) * step(z, 2.0)
    return np.asarray(line - y)


def shirt(points: Map, rng: np.random.Generator) -> Map:
    """Colour and opacity [..., 4] of the jersey, with a ribbed band at the neck."""
    depth = shirt_depth(points)
    around = np.arctan2(points[..., 0], points[..., 2] + 2.0)
    ribs = np.cos(150 * around) * step(SHIRT_BAND_CM - depth, 0.06)
    seam = np.exp(-0.5 * ((depth - SHIRT_BAND_CM) / 0.07) ** 2)
    shade = 1 + 0.10 * ribs - 0.35 * seam + 0.05 * lattice(points, 0.12, rng)
    color = np.asarray(SHIRT_COLOR, np.float32) * shade[..., None]
    alpha = step(depth, 0.04)
    return np.concatenate((np.clip(color, 0, 1), alpha[..., None]), -1).astype(np.float32)


def eye(directions: Map, rng: np.random.Generator) -> Map:
    """Colour [..., 3] of the eyeball by direction from its middle (z is straight ahead)."""
    flat = directions / np.maximum(np.linalg.norm(directions, axis=-1, keepdims=True), 1e-6)
    angle = np.arccos(np.clip(flat[..., 2], -1, 1))
    around = np.arctan2(flat[..., 1], flat[..., 0])
    circle = np.stack((np.cos(around), np.sin(around), 0.25 * angle), -1).astype(np.float32)
    fibres = lattice(circle * 3.0, 0.16, rng) + 0.6 * lattice(circle * 3.0, 0.35, rng)
    share = np.clip(angle / IRIS_RAD, 0, 1.2)
    iris = np.array([0.30, 0.36, 0.33], np.float32) * (1 + 0.16 * fibres)[..., None]
    iris = mix(iris, (0.42, 0.33, 0.20), 0.6 * step(0.60 - share, 0.2))
    iris = mix(iris, (0.10, 0.12, 0.12), 0.8 * step(share - 0.90, 0.12))
    veins = step(lattice(circle * 4.0, 0.22, rng) - 1.4, 0.5) * step(angle - 0.75, 0.3)
    white = mix(np.broadcast_to(np.float32([0.86, 0.84, 0.82]), flat.shape), (0.80, 0.55, 0.52),
                0.25 * step(angle - 0.95, 0.4) + 0.2 * veins)  # fmt: skip
    color = mix(white, iris, step(IRIS_RAD - angle, 0.025))
    return np.clip(mix(color, (0.015, 0.015, 0.015), step(PUPIL_RAD - angle, 0.02)), 0, 1)


def lash(uv: Map, rng: np.random.Generator) -> Map:
    """Colour and opacity [..., 4] of a strip of lashes over its own texture coordinates."""
    hairs = lattice(np.stack((uv[..., 0] * 10, 0.12 * uv[..., 1], 0 * uv[..., 0]), -1), 0.1, rng)
    rgb = np.broadcast_to(np.float32([0.06, 0.04, 0.035]), (*uv.shape[:-1], 3))
    return np.concatenate((rgb, step(hairs - 0.3, 0.5)[..., None]), -1).astype(np.float32)
