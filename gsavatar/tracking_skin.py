"""Patches of rigid skin: picked in key frames, found again in any other frame.

A detector's landmarks slide over the skin as a head turns; what the skin and the hair show does
not. A key frame is drawn as it would look from a frame's pose, over the fitted face's surface, and
the small shift that is left is measured by Lucas and Kanade's iteration. What little texture or an
edge leaves unknown is kept as the patch's trust.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gsavatar.morphable import Floats, Ints
from gsavatar.tracking_light import Light
from gsavatar.tracking_motion import rotvecs
from gsavatar.tracking_priors import BROWS, EYELIDS
from gsavatar.tracking_solve import Lens, Poses, project
from gsavatar.tracking_surface import HAIR_SD_M, SKIN_SD_M, Surface, facing

UInt8 = NDArray[np.uint8]
Box = tuple[int, int, int, int]

POINTS_A_KEY = 160
NEAR_RAD = 0.8
"""Views that differ by more are not compared: a patch looks different from there."""
MAP_STEP_PX = 8
"""Key frames are redrawn by a map that is exact on a grid of this step."""
WINDOW_PX, COARSE_LEVELS, FINE_LEVELS = 15, 2, 1
REACH_PX, RETURN_PX = 21, 0.5
"""How far from its expected place a patch may be found, and how far the way back may miss."""
STOP = (3, 15, 0.02)
TRACK_SD_PX = 0.25
WEAK_TEXTURE = 60.0
"""Mean squared gradient (evened grey levels a pixel) below which a patch is hard to place."""
SOBEL_UNIT = 255.0**2 / 4
"""OpenCV scales Sobel's gradients to pictures of 0-1 and twice the step."""
COARSE_PX, FINE_PX, EVEN_OUT_GAIN, EVEN_OUT_FLOOR = 21, 9, 40.0, 12.0
"""Pictures are compared by local contrast, so that a turning head's shading matters less: over the
wider square a patch is found from farther away, over the narrower one more exactly."""
FACING, DRAWN_FACING = 0.35, 0.15
"""Least cosine between skin and view of a patch, and of surface that is drawn."""
MOST_RELIT = 2.0
"""Most that another light may brighten or darken skin by."""
MIN_POINTS = 12
STILL_M = 0.002
"""Skin that jaw, lips and cheeks move further than this in the clip is not rigid."""
MOVED_SHARE = 0.4
"""Usual motion of speech over its widest: what a patch may be off for it."""
LID_MARGIN, BROW_MARGIN = 0.03, 0.035
"""Nothing is picked this close to lids and brows, over the face's height."""


@dataclass(frozen=True)
class Patches:
    """Patches of key frames."""

    key_of: Ints  # [P], which key frame
    key_px: Floats  # [P, 2], where in it, integer pixel centres
    points: Floats  # [P, 3], where on the head
    normals: Floats  # [P, 3]
    place_sd: Floats  # [P], metres
    trust: Floats  # [P, 2, 2], root of the information in 1/px
    shapes: Floats  # [P, K, 3], how expressions move them

    def at(self, rows: Any) -> Patches:
        """Some of them."""
        return Patches(*(getattr(self, field.name)[rows] for field in fields(self)))

    def shown(self, expression: Floats) -> Floats:
        """Where they are on the head [P, 3] with coefficients [K]."""
        return self.points + np.einsum("k,pkc->pc", expression, self.shapes)

    @staticmethod
    def join(parts: list[Patches]) -> Patches:
        """All of several."""
        columns = [field.name for field in fields(Patches)]
        return Patches(*(np.concatenate([getattr(p, c) for p in parts]) for c in columns))

    def best(self, most: int) -> Patches:
        """Those that are surest, spread over the face (farthest point sampling); hair, which waves
        and whose outline slides, only where there is little else."""
        sure = np.abs(np.linalg.det(self.trust))
        usable = self.place_sd < (SKIN_SD_M + HAIR_SD_M) / 2
        if usable.sum() < most:
            usable[:] = True
        worth = np.flatnonzero(usable & (sure >= np.median(sure[usable])))
        chosen = [int(worth[sure[worth].argmax()])]
        nearest = np.full(len(worth), np.inf)
        while len(chosen) < min(most, len(worth)):
            away = np.linalg.norm(self.points[worth] - self.points[chosen[-1]], axis=1)
            nearest = np.minimum(nearest, away)
            chosen.append(int(worth[nearest.argmax()]))
        return self.at(np.array(chosen))


@dataclass(frozen=True)
class Evened:
    """A picture's local contrast, whatever the light."""

    gray: NDArray[np.float32]  # [H, W]

    @cached_property
    def coarse(self) -> UInt8:
        """Over wide squares [H, W]."""
        return _evened(self.gray, COARSE_PX)

    @cached_property
    def fine(self) -> UInt8:
        """Over narrow squares [H, W]."""
        return _evened(self.gray, FINE_PX)


@dataclass(frozen=True)
class SkinMap:
    """Key frames with their patches: what is needed to place a head in another picture."""

    keys: tuple[Evened, ...]
    key_poses: Poses  # [N]
    key_expressions: Floats  # [N, K]
    patches: Patches
    surface: Surface
    shows_depth: bool  # whether its skin, as the head turns, tells the face's shape
    light: Light | None = None

    @property
    def sought(self) -> Floats:
        """Motions [G, K] of the face that are found with a pose, the jaw's only of a head that
        turns."""
        moves = self.surface.brows, self.surface.jaw
        return np.concatenate(moves) if self.shows_depth else moves[0]

    @cached_property
    def key_points(self) -> Floats:
        """The surface [N, S, 3] in each key frame's expression."""
        shown = np.tensordot(self.key_expressions, self.surface.shapes, 1)
        return np.asarray(self.surface.points + shown)


def evened(picture: UInt8) -> Evened:
    """An RGB picture to be compared by its local contrast."""
    import cv2

    gray = cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2GRAY)
    return Evened(gray.astype(np.float32))


def _evened(gray: Any, side: int) -> UInt8:
    import cv2

    off = gray - cv2.blur(gray, (side, side))
    # OpenCV's running sums leave tiny negative values where a picture is even.
    spread = np.sqrt(np.maximum(cv2.blur(off * off, (side, side)), 0.0))
    even = 128 + EVEN_OUT_GAIN * off / (spread + EVEN_OUT_FLOOR)
    return np.asarray(np.clip(even, 0, 255).astype(np.uint8))


def pick(  # noqa: PLR0917
    picture: Evened, pose: Poses, expression: Floats, surface: Surface, lens: Lens, number: int
) -> Patches | None:
    """Patches of one key frame (a picture with its pose [1] and coefficients [K]); None where it
    shows none."""
    import cv2
    from scipy.interpolate import LinearNDInterpolator

    image = picture.fine
    flat, _ = project(pose, surface.at(expression)[None], lens)
    flat = flat[0]
    shown = surface.facing(pose)[0] > FACING
    rigid = shown & surface.rigid
    if rigid.sum() < MIN_POINTS:
        return None
    face = float(np.linalg.norm(flat[10] - flat[152]))
    corners = cv2.goodFeaturesToTrack(
        image, POINTS_A_KEY, 0.02, max(face / 28, 4.0), blockSize=7,
        mask=_rigid_mask(image.shape, flat, rigid, surface, face),
    )  # fmt: skip
    if corners is None:
        return None
    chosen = corners[:, 0].astype(np.float64)
    by_point = surface.shapes.transpose(1, 0, 2).reshape(len(flat), -1)
    table = np.column_stack(
        (surface.points, surface.normals, surface.mobility, surface.place_sd, by_point)
    )
    found = LinearNDInterpolator(flat[shown], table[shown])(chosen + 0.5)
    good = np.isfinite(found).all(1) & (found[:, 6] < STILL_M)
    found, chosen = found[good], chosen[good]
    depth = float((pose.R[0] @ surface.points.mean(0) + pose.t[0])[2])
    moved_px = MOVED_SHARE * found[:, 6] * lens.focal / depth
    return Patches(
        np.full(len(found), number, np.int64), chosen, found[:, :3], found[:, 3:6], found[:, 7],
        _trust(image, chosen, moved_px), found[:, 8:].reshape(len(found), len(surface.shapes), 3),
    )  # fmt: skip


def _rigid_mask(
    shape: tuple[int, ...], flat: Floats, rigid: NDArray[np.bool_], surface: Surface, face: float
) -> UInt8:
    """Where patches may be picked: around rigid surface, away from lids and brows."""
    import cv2

    mask = np.zeros(shape, np.uint8)
    hull = cv2.convexHull(flat[rigid].astype(np.float32)).astype(np.int32)
    cv2.fillConvexPoly(mask, hull, 255)
    for side in (-1, 1):
        for group, margin in ((EYELIDS, LID_MARGIN), (BROWS, BROW_MARGIN)):
            own = [i for i in group if surface.points[i, 0] * side > 0]
            hull = cv2.convexHull(flat[own].astype(np.float32)).astype(np.int32)
            cv2.fillConvexPoly(mask, hull, 0)
            cv2.polylines(mask, [hull], True, 0, max(int(2 * margin * face), 1))
    return mask


def _trust(image: UInt8, pixels: Floats, moved_px: Floats) -> Floats:
    """Roots [P, 2, 2] of the information of patches: what little texture or an edge leaves
    and what of it speech may have moved."""
    import cv2

    field = cv2.cornerEigenValsAndVecs(image, WINDOW_PX, 3)
    column, row = pixels.round().astype(int).T
    values = field[row, column].astype(np.float64)
    strength = np.maximum(values[:, :2] * SOBEL_UNIT, 1e-6)
    deviation = TRACK_SD_PX * np.sqrt(1 + (WEAK_TEXTURE / strength) ** 2)
    deviation = np.hypot(deviation, moved_px[:, None])
    axes = values[:, 2:].reshape(-1, 2, 2)  # rows are the eigenvectors
    return np.asarray(axes / deviation[:, :, None])


def find(  # noqa: PLR0917
    skin: SkinMap, picture: Evened, pose: Poses, expression: Floats, lens: Lens, nearest: int, *,
    coarse: bool,
) -> tuple[Ints, Floats]:  # fmt: skip
    """Patches [F] that a picture shows and where [F, 2], from its key frames of nearest view.

    A key frame is first drawn as it would look from here and with this expression (over the
    landmarks' surface), so that what is left to find is a small shift; ``coarse`` finds a larger
    one, less exactly.
    """
    side = COARSE_PX if coarse else FINE_PX
    image = picture.coarse if coarse else picture.fine
    turn = rotvecs(skin.key_poses.R @ pose.R[0].T)
    apart = np.linalg.norm(turn[:, :2], axis=1) + 0.5 * np.abs(turn[:, 2])
    keys = [k for k in np.argsort(apart)[:nearest] if apart[k] < NEAR_RAD]
    patches = skin.patches
    guess, _ = project(pose, patches.shown(expression)[None], lens)
    shown = facing(pose, patches.points, patches.normals)[0] > FACING
    points, pixels = [np.zeros(0, np.int64)], [np.zeros((0, 2))]
    if not keys or not shown.any():
        return points[0], pixels[0]
    box = _box(guess[0, shown], image.shape)
    if box is None:
        return points[0], pixels[0]
    maps = _maps(skin, pose, expression, keys, box, lens)
    top, left, bottom, right = box
    crop = np.ascontiguousarray(image[top:bottom, left:right])
    for key, warp in zip(keys, maps, strict=True):
        mine = np.flatnonzero((patches.key_of == key) & shown)
        if len(mine) == 0:
            continue
        drawn = _drawn(skin.keys[key].gray, warp, side)
        found, at = _matched(drawn, warp, crop, patches.key_px[mine],
                             guess[0, mine] - 0.5 - (left, top),
                             COARSE_LEVELS if coarse else FINE_LEVELS)  # fmt: skip
        points.append(mine[found])
        pixels.append(np.asarray(at[found] + 0.5 + (left, top), np.float64))
    return np.concatenate(points), np.concatenate(pixels)


def _box(pixels: Floats, shape: tuple[int, ...]) -> Box | None:
    """Rows and columns of a picture around pixels, with room for the search."""
    low, high = pixels.min(0) - 2 * REACH_PX, pixels.max(0) + 2 * REACH_PX
    left, top = np.maximum(low, 0).astype(int)
    right, bottom = np.minimum(high, (shape[1], shape[0])).astype(int)
    if right - left < 4 * REACH_PX or bottom - top < 2 * REACH_PX:
        return None
    return int(top), int(left), int(bottom), int(right)


def _maps(  # noqa: PLR0917
    skin: SkinMap, pose: Poses, expression: Floats, keys: list[int], box: Box, lens: Lens
) -> list[NDArray[np.float32]]:
    """Per key frame, where in it each pixel of the box comes from (integer centres) and how much
    brighter it is here: [h, w, 3]."""
    import cv2
    from scipy.interpolate import LinearNDInterpolator
    from scipy.spatial import Delaunay, cKDTree

    surface = skin.surface
    shown = surface.facing(pose)[0] > DRAWN_FACING
    here, _ = project(pose, surface.at(expression)[None], lens)
    own = np.array(keys)
    there, _ = project(skin.key_poses[own], skin.key_points[keys], lens)
    flat = here[0, shown] - 0.5
    values = np.concatenate((there[:, shown] - 0.5, _relit(skin, pose, own, shown)), axis=2)
    values = values.transpose(1, 0, 2).reshape(len(flat), -1)
    top, left, bottom, right = box
    rows, columns = -(-(bottom - top) // MAP_STEP_PX) + 1, -(-(right - left) // MAP_STEP_PX) + 1
    y, x = np.mgrid[:rows, :columns] * MAP_STEP_PX
    grid = np.stack((x + left, y + top), -1).reshape(-1, 2).astype(np.float64)
    coarse = LinearNDInterpolator(Delaunay(flat), values)(grid)
    outside = ~np.isfinite(coarse).all(1)
    design = np.column_stack((flat, np.ones(len(flat))))
    affine = np.linalg.lstsq(design, values, rcond=None)[0]
    coarse[outside] = np.column_stack((grid, np.ones(len(grid))))[outside] @ affine
    # The light goes on as at the surface's edge: a step there would be taken for skin.
    coarse[outside, 2::3] = values[cKDTree(flat).query(grid[outside])[1], 2::3]
    maps = []
    step = np.mgrid[: bottom - top, : right - left].astype(np.float32) / MAP_STEP_PX
    for i in range(len(keys)):
        small = coarse[:, 3 * i : 3 * i + 3].reshape(rows, columns, 3).astype(np.float32)
        maps.append(cv2.remap(small, step[1], step[0], cv2.INTER_LINEAR))
    return maps


def _relit(skin: SkinMap, pose: Poses, keys: Ints, shown: NDArray[np.bool_]) -> Floats:
    """How much brighter shown points of the surface are at ``pose`` [1] than in key frames,
    [N, S, 1]."""
    if skin.light is None:
        return np.ones((len(keys), int(shown.sum()), 1))
    normals = skin.surface.normals[shown]
    here = skin.light.on(normals @ pose.R[0].T)
    there = skin.light.on(normals @ skin.key_poses.R[keys].transpose(0, 2, 1))
    return np.asarray(np.clip(here / there, 1 / MOST_RELIT, MOST_RELIT)[..., None])


def _drawn(key: NDArray[np.float32], warp: NDArray[np.float32], side: int) -> UInt8:
    """A key frame's local contrast as it would look from elsewhere and in the light there."""
    import cv2

    drawn = cv2.remap(key, warp[..., 0], warp[..., 1], cv2.INTER_LINEAR)
    return _evened(drawn * warp[..., 2], side)


def _matched(  # noqa: PLR0917
    drawn: UInt8, warp: NDArray[np.float32], crop: UInt8, key_px: Floats,
    guess: Floats, levels: int,
) -> tuple[NDArray[np.bool_], Floats]:  # fmt: skip
    """Which patches of a drawn key frame are found in a cropped picture, and where (integer
    centres).

    ``levels`` of halved pictures are searched first.
    """
    import cv2

    start = guess.copy()
    right, down = np.array([2.0, 0.0]), np.array([0.0, 2.0])
    for _ in range(2):  # where the drawing shows what the key frame has at key_px
        at = _sampled(warp, start)
        dx = (_sampled(warp, start + right) - _sampled(warp, start - right)) / 4
        dy = (_sampled(warp, start + down) - _sampled(warp, start - down)) / 4
        J = np.stack((dx, dy), -1)
        J[np.abs(np.linalg.det(J)) < 0.1] = np.eye(2)
        start += np.linalg.solve(J, (key_px - at)[..., None])[..., 0]
    first = start.astype(np.float32)[:, None]
    options: Any = {
        "winSize": (WINDOW_PX, WINDOW_PX), "maxLevel": levels, "criteria": STOP,
        "flags": cv2.OPTFLOW_USE_INITIAL_FLOW,
    }  # fmt: skip
    end, there, _ = cv2.calcOpticalFlowPyrLK(drawn, crop, first, first.copy(), **options)
    back, home, _ = cv2.calcOpticalFlowPyrLK(crop, drawn, end, first.copy(), **options)
    miss = np.linalg.norm((back - first)[:, 0], axis=-1)
    far = np.linalg.norm((end - first)[:, 0], axis=-1)
    good = (there[:, 0] > 0) & (home[:, 0] > 0) & (miss < RETURN_PX) & (far < REACH_PX)
    return good, end[:, 0].astype(np.float64)


def _sampled(warp: NDArray[np.float32], at: Floats) -> Floats:
    """Where a map [h, w, 3] leads from pixels [P, 2], [P, 2]."""
    import cv2

    x, y = (at[:, i].astype(np.float32)[:, None] for i in (0, 1))
    mode = cv2.BORDER_REPLICATE
    return np.asarray(
        cv2.remap(warp, x, y, cv2.INTER_LINEAR, borderMode=mode)[:, 0, :2].astype(np.float64)
    )
