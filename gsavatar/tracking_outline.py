"""Where a face ends against the background, as a term of the shape's fit.

At the edge of a turned face landmarks slide over the skin, and a frontal face's landmarks say
little of how deep its cheeks are. The label plane shows where skin ends. Points of the mesh's
occluding contour look along their normals for that edge; what they miss it by is one equation each
for the shape (Bas et al., "Fitting a 3D morphable model to edges: a comparison between hard and
soft correspondences", 2016).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gsavatar.ahead import together
from gsavatar.morphable import Floats, Ints, MorphableModel
from gsavatar.morphable_surface import outward, vertex_normals
from gsavatar.tracking_flow import Pictures
from gsavatar.tracking_solve import Lens, Poses, pixel_jacobian, pose_jacobian, project
from gsavatar.types import FacePart, Region

UInt8 = NDArray[np.uint8]
OUTER_PARTS = (int(FacePart.SKIN), int(FacePart.SCALP), int(FacePart.NECK))
Spread = Callable[[Floats], Floats]
"""What offsets of the landmarks do to places [N, 3], [N, L]."""

OUTLINE_FRAMES, RIM_POINTS = 40, 24
"""Frames whose outline is looked at, and points of it in each."""
NEAR_LANDMARK_M = 0.015
"""Vertices further from every landmark hang on nothing that is fitted: ears, the back."""
BESIDE_POINTS, BESIDE_PX, BEYOND_PX = 1500, 40.0, 2.0
"""Where skin is seen at one of those, this near to the rim and further out, the edge is theirs:
cheeks had been drawn out to the edge of the ears. So many are looked at."""
BLUR_PX, REACH_PX, MARGIN_PX = 1.5, 10, 3.0
"""How the matte is smoothed, how far its edge is looked for, and how far to either side of it there
has to be skin and background: where hair or clothes are near, the outline is not the face's."""
EDGE_SD_PX = 1.0
"""How far a matte's edge is off."""
DOUBTFUL = 2.0
"""Deviations beyond which an edge is doubted (Huber)."""


@dataclass(frozen=True)
class Outlines:
    """The person in some frames of a sample."""

    frames: Ints  # [F], among the sample's
    person: UInt8  # [F, H, W], 255 times the smoothed share of the person
    labels: UInt8  # [F, H, W], ``Region``


def read_outlines(regions: Pictures | None, rows: Ints) -> Outlines | None:
    """The outlines in some of the frames with these landmark rows; None without any.

    ``regions`` gives the label plane of a row, or None for a row without one.
    """
    import cv2

    some = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), OUTLINE_FRAMES)).astype(int))
    found = [] if regions is None else [(i, regions(int(rows[i]))) for i in some]
    there = [(i, labels) for i, labels in found if labels is not None]
    if not there:
        return None
    person = [
        cv2.GaussianBlur((labels != Region.BACKGROUND).astype(np.uint8) * 255, (0, 0), BLUR_PX)
        for _, labels in there
    ]
    frames = np.array([i for i, _ in there], np.int64)
    return Outlines(frames, np.stack(person), np.stack([labels for _, labels in there]))


@dataclass(frozen=True)
class RimSightings:
    """Points of the face's rim and how far the person's edge is from them."""

    frame: Ints  # [M]
    points: Floats  # [M, 3], in the head frame
    normals: Floats  # [M, 2], outward in the picture
    off_px: Floats  # [M], how far out the edge is seen
    weight: Floats  # [M], 1/px^2
    by_identity: Floats  # [M, I, 3], how identity moves the points
    by_offset: Floats  # [M, L], how offsets of the landmarks do, along any axis

    def equations(self, poses: Poses, middle: Floats, lens: Lens) -> tuple[Floats, Floats]:
        """Derivatives of ``off_px``'s target by shape [M, I + 3 L] and by its frame's pose [M, 6].

        Offsets are by coordinate, then by landmark; a pose turns about ``middle`` [3].
        """
        R, t = poses.R[self.frame], poses.t[self.frame]
        seen = (R @ self.points[..., None])[..., 0] + t
        across = (self.normals[:, None] @ pixel_jacobian(seen[None], lens)[0] @ R)[:, 0]  # [M, 3]
        by_identity = (self.by_identity @ across[..., None])[..., 0]
        by_offset = across[:, :, None] * self.by_offset[:, None]
        by_shape = np.concatenate((by_identity, by_offset.reshape(len(seen), -1)), axis=1)
        by_pose = pose_jacobian(seen[None], (seen - (t + R @ middle))[None], lens)[0]
        return by_shape, (self.normals[:, None] @ by_pose)[:, 0]


class Rim:
    """The part of a model's skin on which the rim of a face may lie, and what may hide behind it.

    The vertices are those of that part, then some of the rest of the head's.
    """

    def __init__(self, model: MorphableModel, landmarks: Floats, spread: Spread) -> None:
        from scipy.spatial import cKDTree

        near, _ = cKDTree(landmarks).query(model.neutral)
        kept = (model.part == int(FacePart.SKIN)) & (near < NEAR_LANDMARK_M)
        beside = np.flatnonzero(np.isin(model.part, OUTER_PARTS) & ~kept)
        beside = beside[:: max(len(beside) // BESIDE_POINTS, 1)]
        rows = np.concatenate((np.flatnonzero(kept), beside))
        self._own = int(kept.sum())
        number = np.cumsum(kept) - 1
        triangles = outward(model.neutral, model.faces)
        self._triangles = number[triangles[kept[triangles].all(1)]]
        sides = np.concatenate([self._triangles[:, [a, b]] for a, b in ((0, 1), (1, 2), (2, 0))])
        self._edges = np.unique(np.sort(sides, axis=1), axis=0)
        self._neutral = model.neutral[rows]
        self._identity = model.identity[:, rows]
        # Flat and in a row: it is multiplied once a frame and round.
        self._expression = model.expression[:, rows].reshape(len(model.names), -1)
        self._spread = spread(self._neutral)

    def rest(self, beta: Floats, offset: Floats, posture: Floats) -> Floats:
        """Rest vertices [C, 3] of identity [I], offsets of landmarks [L, 3] and a posture [K]."""
        shaped = self._neutral + np.tensordot(beta, self._identity, 1)
        return shaped + self._moved(posture) + self._spread @ offset

    def _moved(self, coefficients: Floats) -> Floats:
        """What coefficients [K] add to the vertices [C, 3]."""
        return np.asarray((coefficients @ self._expression).reshape(-1, 3))

    def sightings(  # noqa: PLR0917
        self, outlines: Outlines, poses: Poses, rest: Floats, coefficients: Floats, lens: Lens,
        effective_frames: float,
    ) -> RimSightings | None:  # fmt: skip
        """Where the rim of rest vertices [C, 3] moved by ``coefficients`` [T, K] is in outlines.

        ``poses`` are those of the sample's T frames, which together count as ``effective_frames``.
        None where no outline is that of skin against the background.
        """
        normals = vertex_normals(rest, self._triangles)

        def look(i: int) -> _Crossings:
            frame = outlines.frames[i]
            return self._rim(
                rest + self._moved(coefficients[frame]), normals, poses[np.array([frame])],
                lens, outlines.person[i], outlines.labels[i],
            )  # fmt: skip

        found = together(look, range(len(outlines.frames)))
        count = [len(one.off_px) for one in found]
        if sum(count) == 0:
            return None
        near, far = (np.concatenate([getattr(one, side) for one in found]) for side in ("u", "v"))
        share = np.concatenate([one.share for one in found])[:, None]
        off = np.concatenate([one.off_px for one in found])
        by_identity = self._identity.transpose(1, 0, 2)
        trust = 1.0 / np.maximum(np.abs(off) / (DOUBTFUL * EDGE_SD_PX), 1.0)
        return RimSightings(
            np.repeat(outlines.frames, count),
            np.concatenate([one.points for one in found]),
            np.concatenate([one.normals for one in found]),
            off,
            trust * effective_frames / len(found) / EDGE_SD_PX**2,
            by_identity[near] * (1 - share[..., None]) + by_identity[far] * share[..., None],
            self._spread[near] * (1 - share) + self._spread[far] * share,
        )

    def _rim(  # noqa: PLR0917
        self, shown: Floats, normals: Floats, pose: Poses, lens: Lens, person: UInt8, labels: UInt8
    ) -> _Crossings:
        """Where the surface turns away from the view, if the person ends nearby."""
        pixels, seen = project(pose, shown[None], lens)
        turned = normals @ pose.R[0].T
        facing = (turned * seen[0]).sum(1)
        u, v = self._edges[(facing[self._edges] > 0).sum(1) == 1].T
        share = facing[u] / (facing[u] - facing[v])
        points = shown[u] + share[:, None] * (shown[v] - shown[u])
        at, _ = project(pose, points[None], lens)
        away = (turned[u] + share[:, None] * (turned[v] - turned[u]))[:, :2]
        away /= np.maximum(np.linalg.norm(away, axis=1, keepdims=True), 1e-9)
        off, good = _edge_of(person, labels, at[0], away)
        kept = np.flatnonzero(good)
        beside = pixels[0, self._own :]
        beside = beside[_shown(labels, beside) == int(Region.SKIN)]  # ears that no hair hides
        kept = kept[~_passed(at[0, kept], away[kept], beside)]
        kept = kept[np.argsort(at[0, kept, 1])]  # some from top to chin
        some = np.linspace(0, len(kept) - 1, min(len(kept), RIM_POINTS)).round().astype(int)
        kept = kept[some]
        return _Crossings(u[kept], v[kept], share[kept], points[kept], away[kept], off[kept])


@dataclass(frozen=True)
class _Crossings:
    """Points of one frame's rim, on edges of the mesh."""

    u: Ints  # [M], one end of the edge
    v: Ints  # [M], the other
    share: Floats  # [M], how far along it
    points: Floats  # [M, 3]
    normals: Floats  # [M, 2]
    off_px: Floats  # [M]


def _passed(at: Floats, away: Floats, others: Floats) -> NDArray[np.bool_]:
    """Which pixels [M, 2] of the rim have any of the ``others`` [B, 2] near and further out."""
    further = away @ others.T - (away * at).sum(1)[:, None] > BEYOND_PX  # [M, B]
    rows, columns = np.nonzero(further)
    near = ((others[columns] - at[rows]) ** 2).sum(1) < BESIDE_PX**2
    found = np.zeros(len(at), np.bool_)
    found[rows[near]] = True
    return found


def _shown(labels: UInt8, at: Floats) -> Ints:
    """The regions [M] at pixels [M, 2]; -1 outside the picture."""
    height, width = labels.shape
    column, row = np.floor(at).astype(int).T
    framed = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    region = labels[row.clip(0, height - 1), column.clip(0, width - 1)].astype(np.int64)
    return np.where(framed, region, -1)


def _edge_of(
    person: UInt8, labels: UInt8, at: Floats, away: Floats
) -> tuple[Floats, NDArray[np.bool_]]:
    """How far the person's edge is from pixels [M, 2] along ``away`` [M, 2], and whether it is
    there and divides skin from background."""
    import cv2

    if len(at) == 0:  # OpenCV refuses to look at nothing
        return np.zeros(0), np.zeros(0, np.bool_)
    steps = np.arange(-REACH_PX, REACH_PX + 1.0)
    where = at[:, None] + steps[:, None] * away[:, None]  # [M, S, 2]
    x, y = ((where[..., i] - 0.5).astype(np.float32) for i in (0, 1))
    value = cv2.remap(person, x, y, cv2.INTER_LINEAR).astype(np.float64) / 255.0
    leaves = (value[:, :-1] >= 0.5) & (value[:, 1:] < 0.5)
    nearest = np.where(leaves, np.abs(steps[:-1] + 0.5), np.inf).argmin(1)
    each = np.arange(len(at))
    inside, outside = value[each, nearest], value[each, nearest + 1]
    off = steps[nearest] + (inside - 0.5) / np.maximum(inside - outside, 1e-6)
    good = np.asarray(leaves.any(1))
    for side, region in ((-MARGIN_PX, Region.SKIN), (MARGIN_PX, Region.BACKGROUND)):
        good &= _shown(labels, at + (off + side)[:, None] * away) == int(region)
    return np.asarray(off), np.asarray(good)
