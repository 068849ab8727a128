"""Where MediaPipe's landmarks lie on the surface of a face model that comes without them.

The canonical face is laid onto the model's neutral face: by the nose's tip, then by a similarity,
then by a smooth field of displacements (a Gaussian process at the landmarks) that follows the
surface along its normals and known places, such as the middles of the eyes, in every direction.
Units are metres; the model faces +z with +y up, as FLAME and BFM-2009 do.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gsavatar.errors import InputError
from gsavatar.morphable import MESH_POINTS, Floats, Ints, canonical_face
from gsavatar.morphable_head import INNER_RING, SIDE_ROWS
from gsavatar.morphable_surface import Surface, lip_sides, outward, vertex_normals
from gsavatar.tracking_priors import EYELIDS, FACE_OVAL, LIPS
from gsavatar.tracking_solve import rotations

EYE_ENDS = {"Right": (133, 33), "Left": (362, 263)}
RIGID_ROUNDS, SMOOTH_ROUNDS = 20, 10
FIELDS_M = ((0.006, 0.05), (0.003, 0.015))
"""Departure of a model's neutral face from the canonical one: sizes and correlation lengths."""
NORMAL_SD_M, SLIDE_SD_M = 0.0005, 0.005
"""How surely a landmark lies on the surface, and how surely the place found there is its own."""
REACH_M = (0.012, 0.004)
"""Distance from the surface past which a landmark loses its say, in the first and last round."""
SURE_SD_M = 0.0005
"""An anchor known this well in every direction is the landmark's place itself."""
AGREEING = 0.3
"""Cosine between normals below which two pieces of surface are not the same place."""
LIP_SIDE_M = 0.006
"""Detour for putting a landmark of one lip onto the other one."""
EAR_ROOM_M = 0.02

MAX_RMS_M, MAX_SCALE, MIN_AGREEING, MAX_BEND_M = 0.002, 1.25, 0.9, 0.012
"""What a good placement keeps to: distance from the surface, size, normals, mean displacement."""


@dataclass(frozen=True)
class Anchors:
    """Places of landmark rows that are known beforehand."""

    rows: Ints  # [A], 0-467 landmarks, 468 and 469 the middles of the right and left eye
    points: Floats  # [A, 3] metres, in the model's frame
    sd_m: Floats  # [A, 3], by axis

    @staticmethod
    def none() -> Anchors:
        """No place is known."""
        return Anchors(np.zeros(0, np.int64), np.zeros((0, 3)), np.ones((0, 3)))

    def and_also(self, other: Anchors) -> Anchors:
        """Both together; where they speak of the same row, the first one holds."""
        new = ~np.isin(other.rows, self.rows)
        return Anchors(
            np.concatenate((self.rows, other.rows[new])),
            np.concatenate((self.points, other.points[new])),
            np.concatenate((self.sd_m, other.sd_m[new])),
        )


@dataclass(frozen=True)
class Placement:
    """The landmarks on the model, and the rigid motion that brings the model into the head frame.

    A model keeps its own size: only rotation and shift are taken from the similarity.
    """

    ids: Ints  # [468, 3] vertices
    weights: Floats  # [468, 3] barycentric
    rotation: Floats  # [3, 3], model -> head
    shift: Floats  # [3]

    def to_head(self, points: Floats) -> Floats:
        """Points [..., 3] of the model's frame in the head frame."""
        return np.asarray(points @ self.rotation.T + self.shift)

    def turned(self, offsets: Floats) -> Floats:
        """Offsets [..., 3] of the model's frame in the head frame."""
        return np.asarray(offsets @ self.rotation.T)


def place_landmarks(
    path: Path, vertices: Floats, faces: Ints, anchors: Anchors, lower: Floats | None = None
) -> Placement:
    """Finds the face on a neutral mesh [V, 3] with triangles [F, 3].

    ``lower`` [V] in 0-1 tells the lower jaw from the skull where the model knows. Raises
    ``InputError`` naming ``path`` if the surface found there does not look like a face.
    """
    base, triangles = _canonical()
    surface = Surface(vertices, outward(vertices, faces))
    rotation, scale, shift = _similarity(base, triangles, surface, anchors)
    start = scale * base @ rotation.T + shift
    bent = _bend(start, triangles, surface, anchors, lower)
    found = _closest(bent, triangles, surface, lower)
    _check(path, scale, start, bent, found.distance, found.agreement)
    ids, weights = found.ids.copy(), found.weights.copy()
    sure = (anchors.rows < MESH_POINTS) & (anchors.sd_m.max(1) <= SURE_SD_M)
    if sure.any():
        face, weights[anchors.rows[sure]] = surface.closest(anchors.points[sure])
        ids[anchors.rows[sure]] = surface.faces[face]
    inverse = rotation.T
    # The canonical face's middle decides where the head frame's origin lies; the size stays.
    middle = base[:MESH_POINTS].mean(0)
    placed = start[:MESH_POINTS].mean(0)
    return Placement(ids, weights, inverse, middle - inverse @ placed)


def _canonical() -> tuple[Floats, Ints]:
    """The canonical landmarks with the middles of the eyes [470, 3], and its triangles."""
    base, triangles = canonical_face()
    eyes = [base[list(EYE_ENDS[side])].mean(0) for _, side, _ in SIDE_ROWS]
    return np.concatenate((base, eyes)), triangles


def _landmark_normals(points: Floats, triangles: Ints) -> Floats:
    return vertex_normals(points[:MESH_POINTS], triangles)


@dataclass(frozen=True)
class _Found:
    """The nearest suitable place of each landmark."""

    ids: Ints  # [468, 3]
    weights: Floats  # [468, 3]
    points: Floats  # [468, 3]
    normals: Floats  # [468, 3], of the surface
    distance: Floats  # [468]
    agreement: Floats  # [468], cosine between the normals


def _closest(
    points: Floats, triangles: Ints, surface: Surface, lower: Floats | None = None
) -> _Found:
    """Places on the surface near landmarks [470, 3] that face the same way."""
    normals = _landmark_normals(points, triangles)
    detour = None
    if lower is not None:
        side = lip_sides()
        jaw = lower[surface.faces].mean(1)

        def detour(rows: Ints, faces: Ints) -> Floats:
            return LIP_SIDE_M * np.maximum(side[rows] * (0.5 - jaw[faces]) * 2, 0.0)

    face, weights = surface.closest(points[:MESH_POINTS], normals, detour)
    ids = surface.faces[face]
    places = (surface.vertices[ids] * weights[..., None]).sum(1)
    facing = surface.normals[face]
    return _Found(
        ids, weights, places, facing, np.linalg.norm(places - points[:MESH_POINTS], axis=1),
        (facing * normals).sum(1),
    )  # fmt: skip


def _trust(found: _Found, reach_m: float) -> Floats:
    """Say [468] of each landmark in 0-1: less far from the surface, none on what faces away."""
    near = 1.0 / (1.0 + (found.distance / reach_m) ** 2) ** 2
    return np.asarray(near * np.clip((found.agreement - AGREEING) / (1 - AGREEING), 0.0, 1.0))


def _similarity(
    base: Floats, triangles: Ints, surface: Surface, anchors: Anchors
) -> tuple[Floats, float, Floats]:
    """Rotation, scale and shift that lay landmarks [470, 3] onto the surface.

    Starts with the tips of the noses together; then small steps of linear least squares on the
    distances along the surface's normals.
    """
    rotation, scale = np.eye(3), 1.0
    shift = surface.vertices[_nose_tip(surface)] - base[np.argmax(base[:, 2])]
    for step in range(RIGID_ROUNDS):
        points = scale * base @ rotation.T + shift
        found = _closest(points, triangles, surface)
        trust = _trust(found, REACH_M[0] * (2 - step / RIGID_ROUNDS))
        middle = points.mean(0)
        known = points[anchors.rows]
        normals = np.concatenate((found.normals, np.tile(np.eye(3), (len(known), 1))))
        at = np.concatenate((points[:MESH_POINTS], np.repeat(known, 3, axis=0))) - middle
        gap = np.concatenate((
            ((found.points - points[:MESH_POINTS]) * found.normals).sum(1),
            (anchors.points - known).ravel(),
        ))  # fmt: skip
        slack = np.concatenate((trust, 4.0 * (0.002 / anchors.sd_m.ravel()).clip(0.0, 1.0)))
        J = np.column_stack((normals, np.cross(at, normals), (at * normals).sum(1)))
        H = J.T @ (J * slack[:, None])
        # Turns and size are believed to be small: the models stand upright and are metric.
        H += np.diag([0.0, 0.0, 0.0, *[0.002] * 3, 0.02])
        g = J.T @ (slack * gap)
        g[6] -= 0.02 * np.log(scale)
        change = np.linalg.solve(H, g)
        turn = rotations(change[None, 3:6])[0]
        grow = float(np.exp(np.clip(change[6], -0.1, 0.1)))
        rotation, scale = turn @ rotation, scale * grow
        shift = middle + change[:3] + grow * turn @ (shift - middle)
    return rotation, scale, shift


def _nose_tip(surface: Surface) -> int:
    """The vertex that stands out furthest of those near the plane of symmetry."""
    x = surface.vertices[:, 0]
    middle = 0.5 * (x.min() + x.max())
    central = np.abs(x - middle) < EAR_ROOM_M
    return int(np.argmax(np.where(central, surface.vertices[:, 2], -np.inf)))


def _bend(
    start: Floats, triangles: Ints, surface: Surface, anchors: Anchors, lower: Floats | None
) -> Floats:
    """Landmarks [470, 3] moved from ``start`` by a smooth field onto the surface."""
    from scipy.linalg import cho_factor, cho_solve

    count = len(start)
    square = ((start[:, None] - start) ** 2).sum(-1)
    field = sum(sd**2 * np.exp(-0.5 * square / length**2) for sd, length in FIELDS_M)
    prior = np.linalg.inv(field + 1e-8 * np.eye(count))
    stiff = np.zeros((count, 3, count, 3))
    for axis in range(3):
        stiff[:, axis, :, axis] = prior
    points = start
    each = np.arange(MESH_POINTS)
    for step in range(SMOOTH_ROUNDS):
        done = step / (SMOOTH_ROUNDS - 1)
        found = _closest(points, triangles, surface, lower)
        trust = _trust(found, REACH_M[0] ** (1 - done) * REACH_M[1] ** done)
        trust[list(FACE_OVAL)] *= 0.25
        trust[list(INNER_RING)] *= 0.25  # rolled inwards: their normals say little
        along = found.normals[:, :, None] * found.normals[:, None]
        grip = trust[:, None, None] * (
            along / NORMAL_SD_M**2 + (np.eye(3) - along) / SLIDE_SD_M**2
        )  # fmt: skip
        H, g = stiff.copy(), np.zeros((count, 3))
        H[each, :, each, :] += grip
        g[:MESH_POINTS] = (grip @ (found.points - start[:MESH_POINTS])[..., None])[..., 0]
        known = anchors.rows
        for axis in range(3):
            H[known, axis, known, axis] += 1.0 / anchors.sd_m[:, axis] ** 2
        g[known] += (anchors.points - start[known]) / anchors.sd_m**2
        factor = cho_factor(H.reshape(3 * count, -1), check_finite=False)
        points = start + cho_solve(factor, g.ravel(), check_finite=False).reshape(count, 3)
    return points


def _check(
    path: Path, scale: float, start: Floats, bent: Floats, distance: Floats, agreement: Floats
) -> None:
    """Raises unless the canonical face lies on the surface without having been torn about."""
    inner = np.ones(MESH_POINTS, bool)
    inner[[*FACE_OVAL, *LIPS, *EYELIDS]] = False
    rms = float(np.sqrt((distance[inner] ** 2).mean()))
    same = float((agreement[inner] > AGREEING).mean())
    bend = float(np.linalg.norm(bent - start, axis=1)[:MESH_POINTS][inner].mean())
    good = (
        rms <= MAX_RMS_M and 1 / MAX_SCALE <= scale <= MAX_SCALE and same >= MIN_AGREEING
        and bend <= MAX_BEND_M
    )  # fmt: skip
    if not good:
        raise InputError(
            f"{path}: no face was found on its surface (landmarks lie {rms * 1000:.1f} mm off it, "
            f"{same:.0%} face its way, at {scale:.2f} times the usual size); use the published "
            "model file, a neutral head that faces +z with +y up."
        )
