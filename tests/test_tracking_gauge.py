"""Poses and patches come onto the face, and what the pictures showed stays the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gsavatar.landmarks import RIGID_20
from gsavatar.morphable import canonical_face
from gsavatar.tracking_bundle import Bundle
from gsavatar.tracking_gauge import on_the_face
from gsavatar.tracking_skin import Patches, SkinMap
from gsavatar.tracking_solve import Lens, Poses, project, rotations
from gsavatar.tracking_surface import Surface

LENS = Lens(1200.0, 256.0, 256.0)
SIZE, SHIFT = 1.08, np.array([0.003, -0.004, -0.06])


def swaying(count: int = 30) -> Poses:
    """A head a metre away that nods and turns by a few degrees."""
    s = np.linspace(0, 6, count)
    turns = np.stack((0.1 * np.sin(s), 0.08 * np.cos(2 * s), 0.03 * np.sin(3 * s)), -1)
    shifts = np.stack((0.01 * np.sin(s), 0.01 * np.cos(s), 1.0 + 0.01 * np.sin(2 * s)), -1)
    return Poses(rotations(turns) @ np.diag([1.0, -1.0, -1.0]), shifts)


@pytest.mark.parametrize("wild", [False, True])
def test_a_head_of_another_size_and_frame_comes_onto_the_face(wild: bool) -> None:
    poses, points = swaying(), canonical_face()[0]
    seen, _ = project(poses, points[None], LENS)
    if wild:  # some landmarks slide far
        seen[:, 67] += 15.0
    weight = np.zeros(len(points))
    weight[list(RIGID_20)] = 1.0
    turn = rotations(np.array([[0.05, -0.03, 0.02]]))[0]
    # The same head, SIZE times as large and as much farther away, with another frame in it.
    drifted = Poses(poses.R @ turn.T, SIZE * poses.t - poses.R @ turn.T @ SHIFT)
    places = SIZE * points @ turn.T + SHIFT
    patches = Patches(
        np.zeros(len(points), np.int64), seen[0], places, np.tile([0.0, 0, 1], (len(points), 1)),
        np.full(len(points), 0.004), np.tile(np.eye(2), (len(points), 1, 1)),
        0.003 * np.random.default_rng(2).normal(size=(len(points), 2, 3)),
    )  # fmt: skip
    surface = Surface(
        places,
        patches.normals,
        weight > 0,
        weight,
        weight,
        patches.shapes.transpose(1, 0, 2),
        np.zeros((0, 2)),
        np.zeros((0, 2)),
    )
    shown = np.array([0.7, -0.4])
    skin = SkinMap((), drifted[np.array([3])], shown[None], patches, surface, True)
    bundle = Bundle(LENS, 0.05, np.arange(30), drifted, skin)
    found = on_the_face(bundle, points, weight, seen)
    tolerance = 5e-3 if wild else 1e-6
    np.testing.assert_allclose(found.poses.t, poses.t, atol=tolerance)
    np.testing.assert_allclose(found.poses.R, poses.R, atol=tolerance)
    np.testing.assert_allclose(found.skin.patches.points, points, atol=tolerance)
    np.testing.assert_allclose(found.skin.key_poses.t, poses.t[3:4], atol=tolerance)
    for expression in (0 * shown, shown):
        before, _ = project(drifted, patches.shown(expression)[None], LENS)
        after, _ = project(found.poses, found.skin.patches.shown(expression)[None], LENS)
        np.testing.assert_allclose(after, before, atol=1e-6)
        drawn, _ = project(found.poses, found.skin.surface.at(expression)[None], LENS)
        np.testing.assert_allclose(drawn, before, atol=1e-6)
    flat = replace(bundle, skin=replace(skin, shows_depth=False))
    still = on_the_face(flat, points, weight, seen)
    assert still.skin.surface is surface  # it has not followed the patches: it is the face's
    again = on_the_face(found, points, weight, seen)
    np.testing.assert_allclose(again.poses.t, found.poses.t, atol=1e-5)
    assert replace(found, poses=bundle.poses).focal_sigma == 0.05
