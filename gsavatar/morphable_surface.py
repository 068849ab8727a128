"""A triangle mesh to put things on: normals, winding, and the nearest suitable point."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gsavatar.morphable import MESH_POINTS, Floats, Ints
from gsavatar.tracking_priors import LOWER_LIP, UPPER_LIP

NEIGHBOURS = 12
"""Nearest vertices whose triangles are looked at; a triangle's corners are never far from it."""
TURN_M = 0.01
"""Detour for a place whose normal points the opposite way, in metres."""

Detour = Callable[[Ints, Ints], Floats]


def face_normals(vertices: Floats, faces: Ints) -> Floats:
    """Normals [F, 3] of triangles, as long as twice their areas."""
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    return np.cross(b - a, c - a)


def vertex_normals(vertices: Floats, faces: Ints) -> Floats:
    """Unit normals [V, 3], area-weighted over the triangles of each vertex."""
    each, corner = face_normals(vertices, faces).repeat(3, axis=0), faces.ravel()
    sums = [np.bincount(corner, column, len(vertices)) for column in each.T]
    normals = np.stack(sums, axis=1)
    return np.asarray(normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12))


def nearest_of(points: Floats) -> Callable[[Floats], Ints]:
    """A function from places [N, 3] to the index [N] of the nearest of ``points`` [P, 3]."""
    from scipy.spatial import cKDTree

    tree = cKDTree(points)
    return lambda places: np.asarray(tree.query(places)[1])


def lip_sides() -> Floats:
    """1 at the lower lip's landmarks, -1 at the upper lip's, 0 at the others, [468]."""
    side = np.zeros(MESH_POINTS)
    side[list(LOWER_LIP)], side[list(UPPER_LIP)] = 1.0, -1.0
    return side


def outward(vertices: Floats, faces: Ints) -> Ints:
    """The triangles, turned over if they face into the head; published models differ in that."""
    away = vertices[faces].mean(1) - vertices.mean(0)
    if (face_normals(vertices, faces) * away).sum() >= 0:
        return faces
    return np.ascontiguousarray(faces[:, ::-1])


class Surface:
    """A mesh prepared for searches; nothing in it changes."""

    def __init__(self, vertices: Floats, faces: Ints) -> None:
        from scipy.spatial import cKDTree

        self.vertices, self.faces = vertices, faces
        flat = face_normals(vertices, faces)
        self.normals = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-15)
        self.used = np.unique(faces)  # vertices without a triangle are no surface
        self._tree: Any = cKDTree(vertices[self.used])
        corner = faces.ravel()
        order = np.argsort(corner, kind="stable")
        self._first = np.searchsorted(corner[order], np.arange(len(vertices) + 1))
        self._owner = order // 3

    def closest(
        self, points: Floats, normals: Floats | None = None, detour: Detour | None = None
    ) -> tuple[Ints, Floats]:
        """Triangle [N] and barycentric weights [N, 3] nearest to points [N, 3].

        With ``normals`` [N, 3] of the points, places that face another way count as further off;
        ``detour`` gives further metres for point rows [M] on triangles [M].
        """
        near = min(NEIGHBOURS, len(self.used))
        corners = self.used[self._tree.query(points, near)[1].reshape(len(points), near)]
        rows, faces = self._around(corners)
        weights = closest_weights(points[rows], self.vertices[self.faces[faces]])
        places = (self.vertices[self.faces[faces]] * weights[..., None]).sum(1)
        cost = np.linalg.norm(places - points[rows], axis=1)
        if normals is not None:
            cost = cost + TURN_M * 0.5 * (1.0 - (normals[rows] * self.normals[faces]).sum(1))
        if detour is not None:
            cost = cost + detour(rows, faces)
        order = np.lexsort((cost, rows))
        best = order[np.unique(rows[order], return_index=True)[1]]
        return faces[best], weights[best]

    def _around(self, corners: Ints) -> tuple[Ints, Ints]:
        """Row of each candidate and its triangle, for vertices [N, M] of each row."""
        counts = (self._first[corners + 1] - self._first[corners]).ravel()
        starts = np.repeat(self._first[corners].ravel() - np.cumsum(counts) + counts, counts)
        faces = self._owner[starts + np.arange(counts.sum())]
        rows = np.repeat(np.repeat(np.arange(len(corners)), corners.shape[1]), counts)
        return rows, faces


def closest_weights(points: Floats, triangles: Floats) -> Floats:
    """Barycentric weights [N, 3] of the points of triangles [N, 3, 3] nearest to points [N, 3]."""
    a, b, c = triangles[:, 0], triangles[:, 1], triangles[:, 2]
    u, v, w = b - a, c - a, points - a
    uu, uv, vv = (u * u).sum(1), (u * v).sum(1), (v * v).sum(1)
    wu, wv = (w * u).sum(1), (w * v).sum(1)
    area = np.maximum(uu * vv - uv * uv, 1e-24)
    s, t = (vv * wu - uv * wv) / area, (uu * wv - uv * wu) / area
    inside = (s >= 0) & (t >= 0) & (s + t <= 1)
    best = np.stack((1 - s - t, s, t), axis=1)
    least = np.where(inside, 0.0, np.inf)
    for i, j in ((0, 1), (1, 2), (2, 0)):
        start, edge = triangles[:, i], triangles[:, j] - triangles[:, i]
        along = ((points - start) * edge).sum(1) / np.maximum((edge * edge).sum(1), 1e-24)
        along = np.clip(along, 0.0, 1.0)
        gap = ((start + along[:, None] * edge - points) ** 2).sum(1)
        nearer = ~inside & (gap < least)
        on_edge = np.zeros_like(best)
        on_edge[:, i], on_edge[:, j] = 1 - along, along
        best[nearer] = on_edge[nearer]
        least = np.where(nearer, gap, least)
    return best
