"""The light on a head, against faces drawn under a light that is known."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from scipy.interpolate import LinearNDInterpolator

from gsavatar.morphable import canonical_face
from gsavatar.morphable_surface import vertex_normals
from gsavatar.tracking_light import Light, fit_light, harmonics
from gsavatar.tracking_skin import COARSE_PX, Evened, SkinMap, _drawn, _maps, _relit, pick
from gsavatar.tracking_solve import Lens, Poses, project, rotations
from gsavatar.tracking_surface import Surface, facing

LENS = Lens(400.0, 96.0, 96.0)
SIZE, FRAMES = 192, 9
LIGHT = np.array([70.0, 40.0, -25.0, -50.0, 10.0, -8.0, 6.0, 12.0, -9.0])


def a_head() -> tuple[Surface, Poses]:
    points, triangles = canonical_face()
    normals = vertex_normals(points, triangles)
    normals = normals if normals[:, 2].sum() > 0 else -normals
    count = len(points)
    surface = Surface(
        points, normals, np.ones(count, bool), np.zeros(count), np.full(count, 0.008),
        np.zeros((0, count, 3)), np.zeros((0, 0)), np.zeros((0, 0)),
    )  # fmt: skip
    s = np.linspace(-1, 1, FRAMES)
    turns = np.stack((0.15 * np.sin(5 * s), 0.5 * s, 0 * s), -1)
    upright = np.diag([1.0, -1.0, -1.0])
    return surface, Poses(rotations(turns) @ upright, np.tile([0.0, 0.0, 0.5], (FRAMES, 1)))


def drawn(surface: Surface, poses: Poses, brightness: np.ndarray) -> list[np.ndarray]:
    """Grey pictures [H, W] of points that are as bright [T, S] as told."""
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    flat, _ = project(poses, surface.points[None], LENS)
    shown = facing(poses, surface.points, surface.normals) > 0.1
    return [
        np.nan_to_num(LinearNDInterpolator(at[seen], value[seen])(x, y)).astype(np.float32)
        for at, seen, value in zip(flat, shown, brightness, strict=True)
    ]


def in_the_light(surface: Surface, poses: Poses) -> np.ndarray:
    normals = surface.normals @ poses.R.transpose(0, 2, 1)
    return np.asarray(harmonics(normals) @ LIGHT)


def test_a_light_is_found_under_skin_of_any_colour() -> None:
    surface, poses = a_head()
    skin = np.random.default_rng(0).uniform(0.9, 1.1, len(surface.points))
    true = in_the_light(surface, poses)
    still = np.zeros((FRAMES, 0))
    light = fit_light(drawn(surface, poses, true * skin), poses, still, surface, LENS)
    assert light is not None
    seen = surface.facing(poses) > 0.5
    told = light.on(surface.normals @ poses.R.transpose(0, 2, 1))
    # How bright it all is cannot be told from how bright the skin is.
    ratio = (told / true)[seen]
    assert np.std(ratio) / np.mean(ratio) < 0.04
    change = np.log(true[-1] / true[0])[seen[-1] & seen[0]]
    known = np.log(told[-1] / told[0])[seen[-1] & seen[0]]
    assert np.abs(change).mean() > 0.2 and np.abs(known - change).mean() < 0.04


def test_what_no_light_explains_is_left_as_it_is() -> None:
    surface, poses = a_head()
    flicker = np.random.default_rng(1).uniform(40, 200, (FRAMES, len(surface.points)))
    still = np.zeros((FRAMES, 0))
    assert fit_light(drawn(surface, poses, flicker), poses, still, surface, LENS) is None
    one = Poses(poses.R[:1], poses.t[:1])
    few = drawn(surface, one, in_the_light(surface, one))
    assert fit_light(few, one, still[:1], surface, LENS) is None


def test_pictures_that_tell_nothing_are_left_out() -> None:
    surface, poses = a_head()
    pictures = drawn(surface, poses, in_the_light(surface, poses))
    still = np.zeros((FRAMES, 0))
    away = Poses(poses.R.copy(), poses.t.copy())
    away.t[3] = (5.0, 0.0, 0.5)  # outside its picture
    assert fit_light(pictures, away, still, surface, LENS) is not None
    for grey in (0.0, 255.0):  # black or burnt out
        flat = [np.full((SIZE, SIZE), grey, np.float32)] * FRAMES
        assert fit_light(flat, poses, still, surface, LENS) is None


def test_a_light_never_goes_out() -> None:
    dark = Light(np.array([1.0, -5.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0, 0.0]), 0.2)
    normals = np.array([[0.0, 0.0, -1.0], [1.0, 0.0, 0.0]])
    assert dark.on(normals) == pytest.approx([2.0, 0.2])


def a_map(surface: Surface, pose: Poses, picture: np.ndarray, light: Light | None) -> SkinMap:
    patches = pick(Evened(picture), pose, np.zeros(0), surface, LENS, 0)
    assert patches is not None
    return SkinMap((Evened(picture),), pose, np.zeros((1, 0)), patches, surface, True, light)


def test_a_key_frame_is_drawn_in_the_light_of_where_it_is_compared() -> None:
    surface, poses = a_head()
    rng = np.random.default_rng(4)
    skin = 1.0 + 0.03 * rng.standard_normal(len(surface.points))
    true = in_the_light(surface, poses)
    pictures = drawn(surface, poses, true * skin)
    light = Light(LIGHT, 5.0)
    key, here = Poses(poses.R[2:3], poses.t[2:3]), Poses(poses.R[6:7], poses.t[6:7])
    lit = a_map(surface, key, pictures[2], light)
    shown = surface.facing(here)[0] > 0.5
    keys = np.array([0])
    np.testing.assert_allclose(
        _relit(lit, here, keys, shown)[0, :, 0], np.clip(true[6] / true[2], 0.5, 2.0)[shown]
    )
    assert (_relit(lit, key, keys, shown) == 1).all()
    assert (_relit(replace(lit, light=None), here, keys, shown) == 1).all()

    flat = project(here, surface.points[None], LENS)[0][0, shown].astype(np.float32)
    inside = cv2.fillConvexPoly(
        np.zeros((SIZE, SIZE), np.uint8), cv2.convexHull(flat).astype(np.int32), 1
    )
    inside = cv2.erode(inside, np.ones((COARSE_PX, COARSE_PX), np.uint8)) > 0
    target = Evened(pictures[6]).coarse.astype(float)

    def unlike(skin_map: SkinMap) -> float:
        (warp,) = _maps(skin_map, here, np.zeros(0), [0], (0, 0, SIZE, SIZE), LENS)
        again = _drawn(skin_map.keys[0].gray, warp, COARSE_PX)
        return float(np.abs(again - target)[inside].mean())

    assert unlike(lit) < 0.9 * unlike(replace(lit, light=None))


def test_nothing_is_drawn_where_the_surface_ends() -> None:
    """An even face under a lamp is even in its own light, up to the rim of what is known of it."""
    surface, poses = a_head()
    pictures = drawn(surface, poses, in_the_light(surface, poses))
    key, here = Poses(poses.R[2:3], poses.t[2:3]), Poses(poses.R[6:7], poses.t[6:7])
    lit = a_map(surface, key, pictures[2], Light(LIGHT, 5.0))
    (warp,) = _maps(lit, here, np.zeros(0), [0], (0, 0, SIZE, SIZE), LENS)
    steps = np.abs(np.diff(np.log(warp[..., 2]), axis=1))
    assert steps.max() < 0.15
