"""A head's surface as points: where they are, which way they look, what moves them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gsavatar.morphable import MESH_POINTS, Floats, Ints, canonical_face
from gsavatar.morphable_surface import vertex_normals
from gsavatar.tracking_priors import (
    BROW_MOTIONS,
    CHEEKBONES,
    FOREHEAD,
    JAW_MOTIONS,
    NOSE_BRIDGE,
    NOSE_TIP,
    TEMPLES,
    shares,
)
from gsavatar.tracking_shape import Fit
from gsavatar.tracking_solve import Poses
from gsavatar.types import FacePart

REACH_M = 0.008
"""Half the width of a patch on the skin: what moves within it moves the patch."""
SKIN_SD_M, HAIR_SD_M = 0.008, 0.015
"""How far the true surface may be from the fitted one, on the face and where hair grows."""
SCALP_POINTS, SCALP_LOW_M = 320, 0.0
"""Points of the scalp that are used, and the height in the head frame from which on."""
RIGID = (*FOREHEAD, *TEMPLES, *NOSE_BRIDGE, *NOSE_TIP, *CHEEKBONES)
BENT_M, BENT_LENGTH_M, BENT_NOISE_M = 0.006, 0.02, 0.004
"""What places say of the surface between them: size and length of the field, error of a place."""


@dataclass(frozen=True)
class Surface:
    """A head's surface as points: the fitted face's landmarks at rest, then points of the scalp."""

    points: Floats  # [S, 3], in the head frame; the first 468 are MediaPipe's
    normals: Floats  # [S, 3], outward
    rigid: NDArray[np.bool_]  # [S], whether it moves with the skull alone
    mobility: Floats  # [S], metres that speech moves it
    place_sd: Floats  # [S], metres
    shapes: Floats  # [K, S, 3], how expressions move it
    brows: Floats  # [G, K], what brows do beside what is known of them
    jaw: Floats  # [1, K], what the jaw does so, or [0, K]

    def at(self, expression: Floats) -> Floats:
        """Its points [S, 3] with coefficients [K]."""
        return self.points + np.tensordot(expression, self.shapes, 1)

    def facing(self, poses: Poses) -> Floats:
        """Cosine [T, S] between the surface and the view."""
        return facing(poses, self.points, self.normals)


def facing(poses: Poses, points: Floats, normals: Floats) -> Floats:
    """Cosine [T, P] between skin at head points [P, 3] with normals [P, 3] and the view."""
    seen = points @ poses.R.transpose(0, 2, 1) + poses.t[:, None]
    turned = normals @ poses.R.transpose(0, 2, 1)
    return np.asarray(-(turned * seen).sum(-1) / np.linalg.norm(seen, axis=-1))


def surface_of(fit: Fit) -> Surface:
    """The surface of a fitted person."""
    face = fit.rest[:MESH_POINTS]
    _, triangles = canonical_face()
    scalp = np.flatnonzero(
        (fit.model.part == int(FacePart.SCALP)) & (fit.vertices[:, 1] > SCALP_LOW_M)
    )
    scalp = scalp[:: max(len(scalp) // SCALP_POINTS, 1)]
    normals = np.concatenate(
        (_forward(face, triangles), _forward(fit.vertices, fit.model.faces)[scalp])
    )
    rigid = np.ones(len(normals), dtype=bool)
    rigid[:MESH_POINTS] = np.isin(np.arange(MESH_POINTS), RIGID)
    mobility = np.concatenate((_widest(face, fit.mobility[:MESH_POINTS]), np.zeros(len(scalp))))
    place_sd = np.full(len(normals), SKIN_SD_M)
    place_sd[MESH_POINTS:] = HAIR_SD_M
    shapes = np.concatenate((fit.shapes[:, :MESH_POINTS], fit.model.expression[:, scalp]), axis=1)
    points = np.concatenate((face, fit.vertices[scalp]))
    names = fit.model.names
    brows, jaw = shares(BROW_MOTIONS, names), shares(JAW_MOTIONS, names)
    return Surface(points, normals, rigid, mobility, place_sd, shapes, brows, jaw)


def _widest(points: Floats, values: Floats) -> Floats:
    """The largest of ``values`` [P] within a patch's reach of each of ``points`` [P, 3]."""
    apart = np.linalg.norm(points[:, None] - points[None], axis=-1)
    return np.asarray(np.where(apart < REACH_M, values, 0.0).max(1))


def _forward(vertices: Floats, triangles: Ints) -> Floats:
    """Normals [V, 3] of a face's mesh that point out of the head."""
    normals = vertex_normals(vertices, triangles)
    return normals if normals[:, 2].sum() > 0 else -normals


def bent(surface: Surface, start: Floats, places: Floats) -> Surface:
    """The surface moved as patches moved that started on it, from ``start`` [P, 3] to ``places``:
    their mean under a smooth Gaussian field. Its normals stay."""
    from scipy.interpolate import RBFInterpolator

    moved = RBFInterpolator(
        start, places - start, kernel="gaussian", epsilon=1 / (np.sqrt(2) * BENT_LENGTH_M),
        smoothing=(BENT_NOISE_M / BENT_M) ** 2, degree=-1,
    )(surface.points)  # fmt: skip
    return replace(surface, points=surface.points + moved)
