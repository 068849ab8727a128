"""Morphable face models: a rest mesh from identity, moved linearly by named expressions.

Everything is in metres in the head frame (+x to the subject's left, +y up, +z out of the face,
origin as in ICT-FaceKit). Providers: ``ict`` (ICT-FaceKit, a whole head with teeth and eyeballs),
``clip`` (no asset of a person at all: learned from the clip's own landmarks), and ``flame`` and
``bfm``, which read a file that the user has a licence for.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from gsavatar import assets
from gsavatar.types import FittedFace

log = logging.getLogger("gsavatar")

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]

PROVIDERS = ("ict", "clip", "flame", "bfm")

MESH_POINTS = 468
IRIS_RIGHT, IRIS_LEFT = 468, 473
"""Centres of the irises among MediaPipe's 478 points; right and left are the subject's."""

FITTED_POINTS = np.array([*range(MESH_POINTS), IRIS_RIGHT, IRIS_LEFT], dtype=np.int64)
"""Which of MediaPipe's points a model explains, in the order of its landmark rows."""

ROW_IRIS_RIGHT, ROW_IRIS_LEFT = 468, 469


@dataclass(frozen=True)
class MorphableModel:
    """Rest vertices ``neutral + identity @ b`` moved by ``expression``; landmarks lie on it."""

    provider: str
    names: tuple[str, ...]  # K expressions
    neutral: Floats  # [V, 3] metres
    identity: Floats  # [I, V, 3], one standard deviation each
    expression: Floats  # [K, V, 3] at coefficient 1
    faces: Ints  # [F, 3]
    part: NDArray[np.uint8]  # [V], FacePart
    embed_ids: Ints  # [L, 3], vertices under each of FITTED_POINTS
    embed_weights: Floats  # [L, 3], barycentric

    def at_landmarks(self, vertices: Floats) -> Floats:
        """Values [..., L, C] of per-vertex values [..., V, C] at the landmarks."""
        picked = vertices[..., self.embed_ids, :].astype(np.float64)
        return np.asarray((picked * self.embed_weights[..., None]).sum(-2))

    def rest(self, weights: Floats, offsets: Floats | float = 0.0) -> Floats:
        """Rest vertices [V, 3] of an identity [I], with per-vertex ``offsets`` added."""
        changed = np.einsum("i,ivc->vc", weights, self.identity[: len(weights)], dtype=np.float64)
        return self.neutral + changed + offsets

    def face(self, rest: Floats) -> FittedFace:
        """The fitted face with these rest vertices."""
        return FittedFace(
            self.provider,
            self.names,
            torch.from_numpy(np.ascontiguousarray(rest, dtype=np.float32)),
            torch.from_numpy(np.ascontiguousarray(self.expression, dtype=np.float32)),
            torch.from_numpy(np.ascontiguousarray(self.faces)),
            torch.from_numpy(np.ascontiguousarray(self.part)),
            torch.from_numpy(np.ascontiguousarray(self.embed_ids, dtype=np.int64)),
            torch.from_numpy(np.ascontiguousarray(self.embed_weights, dtype=np.float32)),
        )


def choose_provider(provider: str = "auto") -> str:
    """The provider to use: ``ict`` when its files are there, else ``clip``, which is said.

    Raises ``ValueError`` for an unknown name.
    """
    if provider == "auto":
        if assets.available("ict_facekit") and assets.available("mediapipe468_to_ict"):
            return "ict"
        log.warning(
            "ict_facekit_f16.npz is not here: the face model is learned from the clip, with fewer "
            "expressions (gsavatar assets says where it comes from)"
        )
        return "clip"
    if provider not in PROVIDERS:
        raise ValueError(f"face model {provider!r} is unknown; use auto, {', '.join(PROVIDERS)}")
    return provider


def canonical_face() -> tuple[Floats, Ints]:
    """MediaPipe's average face: vertices [468, 3] in metres, head axes, and triangles [898, 3]."""
    with np.load(assets.resolve("canonical_face")) as data:
        vertices = data["vertices"].astype(np.float64) * 0.01
        return vertices + CANONICAL_ORIGIN_M, data["triangles"].astype(np.int64)


CANONICAL_ORIGIN_M = np.array([0.0, 0.0095, 0.0560])
"""Brings MediaPipe's average face onto ICT-FaceKit's, whose origin is the project's."""


def inside_polygon(points: Floats, polygon: Floats) -> NDArray[np.bool_]:
    """Which points [N, 2] lie inside a closed polygon [M, 2] (even-odd rule)."""
    x, y = points[:, None, 0], points[:, None, 1]
    (x0, y0), (x1, y1) = polygon.T, np.roll(polygon, -1, axis=0).T
    spans = (y0 > y) != (y1 > y)
    rise = np.where(y1 == y0, 1.0, y1 - y0)
    crossing = x0 + (y - y0) / rise * (x1 - x0)
    return np.asarray((spans & (x < crossing)).sum(1) % 2 == 1)
