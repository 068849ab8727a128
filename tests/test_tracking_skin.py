"""Patches of skin and the bundle adjustment over them, against poses and lenses that are known."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from gsavatar import tracking, tracking_bundle, tracking_locate
from gsavatar.morphable import MESH_POINTS, canonical_face
from gsavatar.morphable_surface import vertex_normals
from gsavatar.tracking_bundle import LEAST_TURN_RAD, Bundle, adjust
from gsavatar.tracking_least_squares import (
    FOCAL_SHARED_ERROR,
    SWING_SD,
    NormalEquations,
    Problem,
    Sightings,
    State,
    Step,
    at_focal,
    moved,
)
from gsavatar.tracking_locate import (
    LOOK_EVERY,
    STILL_LOOK_EVERY,
    _doubted,
    _resect,
    locate,
    locate_all,
)
from gsavatar.tracking_motion import mean_rotation, reach, rotvecs
from gsavatar.tracking_priors import BROW_MOTIONS, JAW_MOTIONS, shares
from gsavatar.tracking_skin import (
    Patches,
    SkinMap,
    _trust,
    evened,
    find,
    pick,
)
from gsavatar.tracking_solve import Lens, Poses, project, rotations
from gsavatar.tracking_surface import HAIR_SD_M, Surface, bent, facing

LENS = Lens(1100.0, 256.0, 256.0)
UPRIGHT = np.diag([1.0, -1.0, -1.0])
STILL = np.zeros(0)
"""The coefficients of a face without expressions."""


def poses_at(turns: np.ndarray, shifts: np.ndarray) -> Poses:
    return Poses(rotations(turns) @ UPRIGHT, shifts)


def front() -> Poses:
    return poses_at(np.zeros((1, 3)), np.array([[0.0, 0.0, 0.9]]))


def a_surface() -> Surface:
    points, triangles = canonical_face()
    count = len(points)
    assert count == MESH_POINTS
    return Surface(
        points, vertex_normals(points, triangles), np.ones(count, bool), np.zeros(count),
        np.full(count, 0.005), np.zeros((0, count, 3)), np.zeros((0, 0)), np.zeros((0, 0)),
    )  # fmt: skip


def a_picture(seed: int = 0) -> np.ndarray:
    """Texture of several scales, RGB."""
    rng = np.random.default_rng(seed)
    layers = [cv2.GaussianBlur(rng.normal(size=(512, 512)), (0, 0), s) * s for s in (2, 4, 9)]
    plane = np.sum(layers, axis=0)
    plane = 128 + 50 * plane / plane.std()
    return np.repeat(np.clip(plane, 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def turned_camera(picture: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """What a camera that turns on the spot sees: exact whatever is in front of it."""
    K = np.array([[LENS.focal, 0, LENS.cx - 0.5], [0, LENS.focal, LENS.cy - 0.5], [0, 0, 1]])
    R = rotations(turn[None])[0]
    return cv2.warpPerspective(picture, K @ R @ np.linalg.inv(K), (512, 512))


def a_map(picture: np.ndarray, *, shows_depth: bool = True) -> SkinMap:
    image, surface = evened(picture), a_surface()
    patches = pick(image, front(), STILL, surface, LENS, 0)
    assert patches is not None and len(patches.points) > 40
    return SkinMap((image,), front(), STILL[None], patches, surface, shows_depth)


@pytest.mark.parametrize("turn", [(0.0, 0.0, 0.08), (0.008, -0.01, 0.0), (0.005, 0.01, -0.05)])
def test_a_turned_camera_is_found(turn: tuple[float, float, float]) -> None:
    picture = a_picture()
    angle = np.array(turn)
    R = rotations(angle[None])[0]
    true = Poses((R @ front().R[0])[None], (R @ front().t[0])[None])
    found = locate(a_map(picture), turned_camera(picture, angle), front(), STILL, LENS, passes=2)
    assert found is not None
    points = a_surface().points[None]
    off = project(found, points, LENS)[0] - project(true, points, LENS)[0]
    assert np.linalg.norm(off, axis=-1).max() < 0.15


def test_patches_found_in_the_key_frame_itself_stay_in_place() -> None:
    picture = a_picture(1)
    skin = a_map(picture)
    point, pixels = find(skin, evened(picture), front(), STILL, LENS, 1, coarse=False)
    assert len(point) > 0.9 * len(skin.patches.points)
    np.testing.assert_allclose(pixels, skin.patches.key_px[point] + 0.5, atol=0.02)


def test_another_picture_is_not_recognised() -> None:
    skin = a_map(a_picture(1))
    assert locate(skin, np.full((512, 512, 3), 90, np.uint8), front(), STILL, LENS) is None


@pytest.mark.parametrize(("turns", "every"), [(True, LOOK_EVERY), (False, STILL_LOOK_EVERY)])
def test_a_path_starts_each_search_where_the_last_one_ended(turns: bool, every: int) -> None:
    picture = a_picture(2)
    count = 5 * every
    bundle = Bundle(LENS, 0.1, np.arange(1), front(), a_map(picture, shows_depth=turns))
    angles = np.array([[0.0, 0.003 / every * i, 0.0] for i in range(count)])
    start = poses_at(np.zeros((count, 3)), np.tile(front().t, (count, 1)))
    missing = 2 * every
    poses, good = locate_all(
        bundle,
        lambda row: turned_camera(picture, angles[row]) if row != missing else None,
        np.arange(count), start, np.zeros((count, 0)),
    )  # fmt: skip
    assert np.flatnonzero(good).tolist() == [0, every, 3 * every, 4 * every]
    turned = rotations(angles) @ start.R
    assert np.abs(poses.R - turned)[: 4 * every].max() < 2e-3


def test_edges_are_trusted_across_only() -> None:
    image = np.full((200, 200), 60, np.uint8)
    image[:, 100:] = 180
    image = cv2.GaussianBlur(image, (0, 0), 1.5)
    along = _trust(image, np.array([[100.0, 100.0]]), np.zeros(1))[0]
    information = along.T @ along
    assert information[0, 0] > 100 * max(information[1, 1], 1e-9)


def test_surface_looks_at_the_camera() -> None:
    surface = a_surface()
    towards = surface.facing(front())[0]
    assert towards[4] > 0.8  # the tip of the nose
    away = facing(poses_at(np.array([[0.0, np.pi, 0.0]]), front().t), surface.points,
                  surface.normals)[0]  # fmt: skip
    assert away[4] < -0.8


def test_the_best_patches_are_spread() -> None:
    patches = a_map(a_picture(3)).patches
    few = patches.best(10)
    gaps = np.linalg.norm(few.points[:, None] - few.points[None], axis=-1)
    assert len(few.points) == 10 and gaps[np.triu_indices(10, 1)].min() > 0.01


def test_hair_is_not_among_the_best_where_there_is_skin() -> None:
    patches = a_map(a_picture(3)).patches
    hair = np.arange(len(patches.points)) % 2 == 0
    mixed = replace(patches, place_sd=np.where(hair, HAIR_SD_M, patches.place_sd))
    chosen = mixed.best(10).place_sd
    assert len(chosen) == 10 and (chosen < HAIR_SD_M).all()
    bald = replace(patches, place_sd=np.full(len(hair), HAIR_SD_M))
    np.testing.assert_array_equal(bald.best(10).points, patches.best(10).points)


def test_patches_are_trusted_whichever_way_their_axes_turn() -> None:
    patches = a_map(a_picture(3)).patches
    mirrored = replace(patches, trust=patches.trust[:, ::-1])  # the determinants change sign
    np.testing.assert_array_equal(mirrored.best(10).points, patches.best(10).points)


def test_what_an_expression_moves_does_not_move_the_head() -> None:
    """The whole skin slides 4 mm to the side, in the key frame or in the one that is looked at."""
    picture, aside = a_picture(5), np.array([0.004, 0.0, 0.0])
    count = MESH_POINTS
    shapes = np.tile(aside, (1, count, 1))
    surface = replace(a_surface(), shapes=shapes, brows=np.zeros((0, 1)), jaw=np.zeros((0, 1)))
    points = a_surface().points[None]
    slide = project(front(), points + aside, LENS)[0] - project(front(), points, LENS)[0]
    shift = slide.mean((0, 1))
    whole = shift.round().astype(int)
    slid = np.roll(picture, (whole[1], whole[0]), axis=(0, 1))
    for key, frame, before, after in ((0.0, 1.0, picture, slid), (1.0, 0.0, slid, picture)):
        image = evened(before)
        patches = pick(image, front(), np.array([key]), surface, LENS, 0)
        assert patches is not None
        skin = SkinMap((image,), front(), np.array([[key]]), patches, surface, True)
        for told, off_px in ((frame, np.linalg.norm(whole - shift)), (key, np.abs(whole).max())):
            found = locate(skin, after, front(), np.array([told]), LENS, passes=2)
            assert found is not None
            off = project(found, points, LENS)[0] - project(front(), points, LENS)[0]
            assert np.linalg.norm(off.mean((0, 1))) == pytest.approx(off_px, abs=0.15)


def test_patches_an_expression_moves_are_doubted_by_as_much() -> None:
    sure, unsure = np.diag([4.0, 2.0]), np.diag([1.0, 0.5])
    found = _doubted(np.stack((sure, unsure, sure)), np.array([0.25, 1.0, 0.0]))
    np.testing.assert_allclose(found[2], sure)
    for before, after, extra in ((sure, found[0], 0.25), (unsure, found[1], 1.0)):
        assert 1 / after[0, 0] ** 2 == pytest.approx(1 / before[0, 0] ** 2 + extra**2)
        assert after[1, 1] / after[0, 0] == pytest.approx(before[1, 1] / before[0, 0])


def test_a_jaw_that_opened_less_than_was_said_hardly_moves_the_skull(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    picture, surface = a_picture(6), a_surface()
    low = surface.points[:, 1] < 0.0
    shapes = np.where(low[:, None], [0.0, -0.0015, 0.0], 0.0)[None]
    surface = replace(surface, shapes=shapes, brows=np.zeros((0, 1)), jaw=np.zeros((0, 1)))
    patches = pick(evened(picture), front(), np.zeros(1), surface, LENS, 0)
    assert patches is not None
    skin = SkinMap((evened(picture),), front(), np.zeros((1, 1)), patches, surface, True)

    def tilt(doubt: float) -> float:
        monkeypatch.setattr(tracking_locate, "MOTION_DOUBT", doubt)
        found = locate(skin, picture, front(), np.ones(1), LENS, passes=2)
        assert found is not None
        return float(np.abs(rotvecs(found.R @ front().R[0].T)[0, 0]))

    assert tilt(2.0) < 0.5 * tilt(0.0)


def test_a_lifted_forehead_is_no_nod() -> None:
    points = a_surface().points[::4]
    lift = np.where(points[:, 1:2] > 0.02, [0.0, 0.005, 0.0], 0.0)[:, None]  # [P, 1, 3]
    true = poses_at(np.array([[0.01, 0.02, 0.0]]), front().t)
    pixels = project(true, (points + 0.4 * lift[:, 0])[None], LENS)[0][0]
    trust = np.tile(4.0 * np.eye(2), (len(points), 1, 1))

    def nod_off(brows: np.ndarray) -> float:
        found = _resect(front(), front(), points, brows, pixels, trust, LENS, 1.0)
        return float(np.abs(rotvecs(found.R @ true.R.transpose(0, 2, 1))[0, 0]))

    assert nod_off(lift) < 0.1 * nod_off(lift[:, :0])


def test_motions_are_sought_that_the_model_can_express() -> None:
    names = ("jawOpen", "browDownLeft", "browDownRight", "browInnerUp")
    assert shares(BROW_MOTIONS, names).tolist() == [[0, 0, 0, 1], [0, 1, 1, 0]]
    assert shares(JAW_MOTIONS, names).tolist() == [[1, 0, 0, 0]]
    assert shares(BROW_MOTIONS, ("jawOpen",)).shape == (0, 1)
    assert shares(BROW_MOTIONS, ()).shape == (0, 0)


def test_a_surface_follows_the_places_on_it_and_is_left_alone_elsewhere() -> None:
    surface = a_surface()
    some = surface.points[surface.points[:, 1] > 0.0]
    bulge = 0.003 * np.exp(-0.5 * ((some - some[0]) ** 2).sum(1) / 0.03**2)
    places = some + bulge[:, None] * (0.0, 0.0, 1.0)
    followed = bent(surface, some, places)
    apart = np.linalg.norm(surface.points[:, None] - some[None], axis=-1).min(1)
    moved = followed.points - surface.points
    on = apart == 0
    np.testing.assert_allclose(moved[on], places - some, atol=4e-4)
    assert np.abs(moved[apart > 0.06]).max() < 2e-4


class Scene:
    """Poses, places and where the places are seen."""

    def __init__(
        self, yaw: float, noise_px: float, focal: float = 1000.0, lift: float = 0.0
    ) -> None:
        rng = np.random.default_rng(5)
        count = 40
        s = np.linspace(0, 1, count)
        turns = np.stack((0.1 * np.sin(9 * s), yaw * np.sin(6 * s), 0.05 * np.sin(4 * s)), -1)
        shifts = np.stack((0.01 * s, 0.01 * np.cos(5 * s), 0.75 + 0.02 * s), -1)
        self.poses = poses_at(turns, shifts)
        self.lens = Lens(focal, 256.0, 256.0)
        self.places = canonical_face()[0][rng.permutation(MESH_POINTS)[:150]]
        talk = np.sin(5 * s)[:, None, None] * rng.normal(0, 0.002, (150, 3))  # [T, 150, 3]
        # Brows lift the upper half of the places with every nod.
        upper = np.clip(self.places[:, 1], 0, None)[:, None, None]
        self.by_motion = upper * np.array([[0.0, 0.15, 0.0], [0.1, 0.0, 0.0]])
        self.lifts = lift * np.stack((turns[:, 0], np.zeros(count)), -1)
        lifted = np.einsum("tg,pgc->tpc", self.lifts, self.by_motion)
        pixels, _ = project(self.poses, self.places + talk + lifted, self.lens)
        frame, point = (a.ravel() for a in np.mgrid[:count, :150])
        by_expression = talk[frame, point]
        seen = pixels[frame, point] + rng.normal(0, noise_px, (len(frame), 2))
        trust = np.tile(np.eye(2) / 0.25, (len(frame), 1, 1))
        self.seen = Sightings(point, frame, seen, trust, by_expression)
        off = rng.normal(0, 1, (count, 6)) * (0.002, 0.002, 0.01, 0.02, 0.02, 0.02)
        self.start = moved(self.poses, off)
        self.guessed = self.places + rng.normal(0, 0.003, self.places.shape)

    def problem(self, focal_known: bool, lens: Lens) -> Problem:
        sd = np.full(len(self.places), 0.005)
        return Problem(
            self.start, self.guessed, sd, self.by_motion, self.seen, lens, focal_known, 1.0
        )

    def solved(self, problem: Problem) -> tuple[State, float]:
        found = problem.solve(problem.began(problem.start, self.guessed, problem.lens))
        assert found is not None
        return found

    def off_deg(self, poses: Poses) -> np.ndarray:
        """Errors of poses' turns, but for one that all have in common."""
        turn = self.poses.R.transpose(0, 2, 1) @ poses.R
        u, _, vt = np.linalg.svd(turn.mean(0))
        return np.degrees(np.arccos(np.clip((np.einsum("ab,tab->t", u @ vt, turn) - 1) / 2, -1, 1)))


def test_poses_are_found_where_landmarks_are_wrong() -> None:
    scene = Scene(yaw=0.5, noise_px=0.1)
    found, sigma = scene.solved(scene.problem(True, scene.lens))
    assert sigma == 0.0
    assert scene.off_deg(found.poses).max() < 0.1
    at, _ = project(found.poses, found.places[None], scene.lens)
    true, _ = project(scene.poses, scene.places[None], scene.lens)
    assert np.sqrt(((at - true) ** 2).sum(-1).mean()) < 0.05


def test_brows_that_lift_with_every_nod_are_no_nods() -> None:
    scene = Scene(yaw=0.5, noise_px=0.1, lift=3.0)
    problem = scene.problem(True, scene.lens)
    found, _ = scene.solved(problem)
    blind, _ = scene.solved(replace(problem, by_motion=problem.by_motion[:, :0]))
    assert scene.off_deg(found.poses).max() < 0.25 * scene.off_deg(blind.poses).max()
    assert np.corrcoef(found.amounts[:, 0], scene.lifts[:, 0])[0, 1] > 0.98


@pytest.mark.parametrize("believed", [600.0, 1000.0, 1650.0])
def test_the_focal_length_shows_when_the_head_turns(believed: float) -> None:
    """Also to one who is much mistaken about it, and put the head where his lens would have it."""
    scene = Scene(yaw=0.6, noise_px=0.1)
    scene.start = at_focal(scene.start, believed / scene.lens.focal)
    found, sigma = scene.solved(scene.problem(False, Lens(believed, 256.0, 256.0)))
    off = abs(np.log(found.lens.focal / scene.lens.focal))
    assert off < 0.02 and off < 2 * sigma and sigma < 0.05
    assert abs(np.log(np.median(found.poses.t[:, 2] / scene.poses.t[:, 2]))) < 0.03


def test_a_still_head_leaves_the_focal_length_open() -> None:
    scene = Scene(yaw=0.0, noise_px=0.3)
    turning = Scene(yaw=0.6, noise_px=0.3)
    _, sigma = scene.solved(scene.problem(False, scene.lens))
    _, better = turning.solved(turning.problem(False, turning.lens))
    assert sigma > 2 * better


def test_a_width_that_is_held_does_not_pass_for_a_focal_length_that_was_seen() -> None:
    scene = Scene(yaw=0.1, noise_px=0.3)
    loose = replace(scene.problem(False, scene.lens), shared_error=FOCAL_SHARED_ERROR)
    held = replace(loose, swing_held=True)
    at = held.began(scene.poses, scene.places, scene.lens)
    conditional = NormalEquations(held, at).step(0.0)
    assert conditional is not None
    assert held.doubt(at) == loose.doubt(at) > 1.15 * conditional.focal_sigma
    assert replace(held, focal_known=True).doubt(at) == 0.0


def test_the_step_goes_down_the_costs_gradient() -> None:
    """The normal equations' right-hand side is half the negative gradient of the cost."""
    scene = Scene(yaw=0.4, noise_px=0.5, lift=2.0)
    problem = scene.problem(False, scene.lens)
    longer = replace(scene.lens, focal=1.2 * scene.lens.focal)
    start = problem.began(at_focal(scene.start, 1.1), scene.guessed, longer)
    start = replace(start, amounts=0.5 * scene.lifts)
    system = NormalEquations(problem, start)
    rng, size = np.random.default_rng(0), 1e-6
    pose, lift, place = (rng.normal(size=shape) for shape in ((40, 6), (40, 2), (150, 3)))
    none = Step(0 * pose, 0 * lift, 0 * place, 0.0, 0.0)

    def slope(step: Step) -> float:
        costs = [
            problem.cost(start.after(Step(
                sign * size * step.poses, sign * size * step.amounts, sign * size * step.places,
                sign * size * step.focal, 0.0,
            )))
            for sign in (1, -1)
        ]  # fmt: skip
        return (costs[0] - costs[1]) / (2 * size)

    def expected(along: np.ndarray, step: np.ndarray) -> object:
        return pytest.approx(-2 * (along * step).sum(), rel=2e-3)

    assert slope(replace(none, poses=pose)) == expected(system.g[:, :6], pose)
    assert slope(replace(none, amounts=lift)) == expected(system.g[:, 6:], lift)
    assert slope(replace(none, places=place)) == expected(system.v, place)
    assert slope(replace(none, focal=1.0)) == expected(np.array(system.f), np.array(1.0))


def test_too_little_to_see_is_said() -> None:
    poses = poses_at(np.zeros((30, 3)), np.tile(front().t, (30, 1)))
    rows, still = np.arange(30), np.zeros((30, 0))
    assert adjust(None, rows, poses, still, a_surface(), LENS, believed=700.0) is None
    gray = np.full((512, 512, 3), 100, np.uint8)
    nothing = adjust(lambda row: gray, rows, poses, still, a_surface(), LENS, believed=700.0)
    assert nothing is None


def test_a_whole_adjustment_of_a_turning_camera(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking_bundle, "LEAST_TURN_RAD", 0.0)  # the picture is flat: no slide
    picture = a_picture(4)
    s = np.linspace(0, 2 * np.pi, 40)
    angles = np.stack((0.03 * np.sin(s), 0.05 * np.cos(s), 0.08 * np.sin(2 * s)), -1)
    R = rotations(angles)
    true = Poses(R @ front().R, R @ front().t[0])
    pictures = [turned_camera(picture, a) for a in angles]
    start = moved(
        true, np.random.default_rng(1).normal(0, 0.01, (40, 6)) * (0.1, 0.1, 0.3, 1, 1, 1)
    )
    bundle = adjust(
        lambda row: pictures[row], np.arange(40), start, np.zeros((40, 0)), a_surface(), LENS,
        believed=None,
    )  # fmt: skip
    assert isinstance(bundle, Bundle) and bundle.lens.focal == LENS.focal
    points = a_surface().points[None]
    before = project(start, points, LENS)[0] - project(true, points, LENS)[0]
    after = project(bundle.poses, points, LENS)[0] - project(true, points, LENS)[0]
    after -= after.mean((0, 1))  # the same shift of all frames is the gauge
    assert np.abs(after).mean() < 0.15 * np.abs(before).mean()

    assert bundle.shows_depth
    assert isinstance(bundle.skin.patches, Patches)


def test_a_face_fitted_through_another_lens_is_fitted_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tracking_bundle, "LEAST_TURN_RAD", 0.0)
    picture = a_picture(4)
    s = np.linspace(0, 2 * np.pi, 40)
    angles = np.stack((0.1 * np.sin(s), 0.15 * np.cos(s), 0.05 * np.sin(2 * s)), -1)
    true = Poses(rotations(angles) @ front().R, rotations(angles) @ front().t[0])
    pictures = [turned_camera(picture, a) for a in angles]
    wrong = replace(LENS, focal=1.4 * LENS.focal)

    def adjusted(last: bool) -> Bundle:
        bundle = adjust(
            lambda row: pictures[row], np.arange(40), at_focal(true, 1.4), np.zeros((40, 0)),
            a_surface(), wrong, believed=wrong.focal, last=last,
        )  # fmt: skip
        assert bundle is not None
        return bundle

    assert not adjusted(last=False).settled
    kept = adjusted(last=True)
    assert kept.settled and 0.0 < kept.focal_sigma < 0.02
    assert kept.lens.focal == pytest.approx(LENS.focal, rel=0.03)


def swum(picture: np.ndarray, rng: np.random.Generator, size_px: float) -> np.ndarray:
    """The picture with its texture displaced by a smooth field."""
    field = cv2.GaussianBlur(rng.normal(size=(512, 512, 2)), (0, 0), 12)
    y, x = np.mgrid[:512, :512]
    at = np.stack((x, y), -1) + size_px * field / field.std()
    return cv2.remap(picture, at.astype(np.float32), None, cv2.INTER_LINEAR)


@pytest.mark.parametrize(("size_px", "shows_depth"), [(0.0, True), (1.5, False)])
def test_a_head_whose_skin_swims_has_to_turn_more_to_show_its_depth(
    size_px: float, shows_depth: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture, rng = a_picture(4), np.random.default_rng(2)
    s = np.linspace(0, 2 * np.pi, 40)
    angles = np.stack((0.03 * np.sin(s), 0.05 * np.cos(s), 0.08 * np.sin(2 * s)), -1)
    true = Poses(rotations(angles) @ front().R, rotations(angles) @ front().t[0])
    monkeypatch.setattr(tracking_bundle, "LEAST_TURN_RAD", 0.8 * reach(true))
    pictures = [swum(turned_camera(picture, a), rng, size_px) for a in angles]

    def adjusted() -> Bundle:
        bundle = adjust(
            lambda row: pictures[row], np.arange(40), true, np.zeros((40, 0)), a_surface(), LENS,
            believed=None,
        )  # fmt: skip
        assert bundle is not None
        return bundle

    bundle = adjusted()
    assert bundle.shows_depth is shows_depth
    assert bundle.swims is not shows_depth
    assert ("swims" in " ".join(tracking._notes(bundle))) is not shows_depth
    # What is not believed leaves nothing behind.
    monkeypatch.setattr(tracking_bundle, "LEAST_TURN_RAD", 9.0)
    still = adjusted()
    assert not still.swims
    assert np.array_equal(bundle.poses.R, still.poses.R) is not shows_depth
    assert np.array_equal(bundle.skin.patches.points, still.skin.patches.points) is not shows_depth
    assert bundle.skin.light is None or shows_depth


def test_a_head_that_seems_to_turn_too_widely_is_held() -> None:
    scene = Scene(yaw=0.3, noise_px=0.1)
    problem = scene.problem(True, scene.lens)
    turns = rotvecs(problem.start.R @ mean_rotation(problem.start.R).T)
    off = np.zeros((40, 6))
    off[:, 4] = 0.2 * turns[:, 1]  # the yaw is a fifth too wide
    share = np.einsum("atc,tc->a", problem.swings, off) * SWING_SD
    assert share[1] == pytest.approx(0.2, rel=0.03)
    assert abs(share[[0, 2]]).max() < 1e-9
    still = Scene(yaw=0.0, noise_px=0.1).problem(True, scene.lens)
    loose = np.linalg.norm(still.swings[1]) / np.linalg.norm(problem.swings[1])
    assert loose < 10.0  # a turn that drowns in landmark noise says nothing about its width


def test_a_head_that_hardly_turns_keeps_the_landmarks_width() -> None:
    scene = Scene(yaw=0.1, noise_px=0.1)
    assert reach(scene.poses) < LEAST_TURN_RAD < reach(Scene(yaw=0.6, noise_px=0.1).poses)
    wide = 1.2 * rotvecs(scene.poses.R @ UPRIGHT.T)
    start = Poses(rotations(wide) @ UPRIGHT, scene.poses.t)
    loose = replace(scene.problem(True, scene.lens), start=start)
    widths = []
    for problem in (loose, replace(loose, swing_held=True)):
        state, _ = scene.solved(problem)
        found = rotvecs(state.poses.R @ mean_rotation(state.poses.R).T)[:, 1]
        given = rotvecs(start.R @ mean_rotation(start.R).T)[:, 1]
        widths.append(float((found * given).sum() / (given**2).sum()))
    assert widths[0] < 0.97 < widths[1] < 1.01


def test_a_key_frame_whose_skin_all_moves_gives_no_patches() -> None:
    surface = a_surface()
    mobile = replace(
        surface, mobility=np.full(len(surface.points), 0.01),
        shapes=np.zeros((7, len(surface.points), 3)),
    )  # fmt: skip
    found = pick(evened(a_picture()), front(), np.zeros(7), mobile, LENS, 0)
    assert found is not None and found.shapes.shape == (0, 7, 3)


def test_flow_that_is_all_talk_says_that_the_head_holds_still() -> None:
    rng = np.random.default_rng(8)
    points = a_surface().points[:30]
    shapes, amounts = rng.normal(0, 0.004, (30, 2, 3)), rng.uniform(0, 1, (5, 2))
    head = poses_at(np.zeros((5, 3)), np.tile(front().t, (5, 1)))
    seen = project(head, points + np.einsum("tk,pkc->tpc", amounts, shapes), LENS)[0]
    talk = tracking._talk(head, points, shapes, amounts, LENS)
    np.testing.assert_allclose(np.diff(seen, axis=0), talk, atol=1e-9)
    assert np.abs(talk).max() > 1.0
