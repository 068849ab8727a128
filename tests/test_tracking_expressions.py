"""Expressions against known truth: slides, shared errors and what scores say."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import lsq_linear

from gsavatar import tracking_solve
from gsavatar.morphable import MESH_POINTS, canonical_face
from gsavatar.morphable_clip import learn_clip_model
from gsavatar.tracking_fields import both_ways, smooth_modes
from gsavatar.tracking_priors import (
    EXPRESSION_WEIGHT,
    FULL_BLINK,
    amounts,
    blink_peaks,
    expression_prior,
    usual_scores,
)
from gsavatar.tracking_shape import fit_person
from gsavatar.tracking_slide import learn_slide, no_slide
from gsavatar.tracking_solve import (
    ExpressionPrior,
    Lens,
    Poses,
    fit_expressions,
    project,
    rotations,
)
from gsavatar.types import ARKIT_NAMES

LENS = Lens(1200.0, 256.0, 256.0)
FRAMES = 60


def face() -> np.ndarray:
    """A rest face [470, 3] with irises."""
    base, _ = canonical_face()
    eyes = [base[[133, 33]].mean(0), base[[362, 263]].mean(0)]
    return np.concatenate((base, eyes))


def around(rest: np.ndarray, point: int, reach_m: float = 0.025) -> np.ndarray:
    """A bump [L] of one at a landmark."""
    return np.exp(-0.5 * ((rest - rest[point]) ** 2).sum(1) / reach_m**2)


def drawn_shapes(rest: np.ndarray) -> np.ndarray:
    """Mouth aside by 15 mm, and lower lip and chin down by 20 mm: [2, L, 3]."""
    aside, down = np.zeros((2, *rest.shape))
    aside[:, 0] = 0.015 * around(rest, 13)
    below = 1 / (1 + np.exp((rest[:, 1] - rest[[13, 14], 1].mean()) / 0.0005))
    down[:, 1] = -0.020 * around(rest, 17, 0.03) * below
    return np.stack((aside, down))


def turning(reach: float) -> tuple[Poses, np.ndarray]:
    """Poses of a head that turns to and fro, and its yaw [T]."""
    yaw = reach * np.sin(np.arange(FRAMES) / 7.0)
    turn = np.stack((0.05 * np.sin(np.arange(FRAMES) / 5.0), yaw, np.zeros(FRAMES)), axis=1)
    return Poses(
        rotations(turn) @ np.diag([1.0, -1.0, -1.0]), np.tile([0.0, 0.0, 0.9], (FRAMES, 1))
    ), yaw


def belief(mean: np.ndarray, *, told: bool = True) -> ExpressionPrior:
    """Coefficients known to 0.1 beforehand."""
    many = np.full(mean.shape[1], 100.0)
    return ExpressionPrior(mean, many, np.zeros_like(many), -0.2, 1.3, told)


def seen_as(poses: Poses, rest: np.ndarray, shapes: np.ndarray, c: np.ndarray) -> np.ndarray:
    pixels, _ = project(poses, rest + np.tensordot(c, shapes, 1), LENS)
    return pixels + np.random.default_rng(2).normal(0, 0.3, pixels.shape)


@pytest.mark.parametrize("slide_px", [0.0, 8.0])
def test_a_slide_with_the_view_is_told_from_expression(slide_px: float) -> None:
    """Lips that slide by 8 px at 40 degrees are found to, though the mouth talks meanwhile."""
    rest = face()
    shapes, rng = drawn_shapes(rest), np.random.default_rng(1)
    poses, yaw = turning(0.7)
    c = np.stack((np.zeros(FRAMES), np.clip(np.sin(np.arange(FRAMES) * 0.9), 0, 1)), axis=1)
    true = np.zeros((FRAMES, len(rest), 2))
    true[..., 0] = slide_px * (yaw / 0.7)[:, None] * around(rest, 13)
    seen = seen_as(poses, rest, shapes, c) + true
    prior = belief(c + rng.normal(0, 0.05, c.shape))
    slide = learn_slide(poses, rest, shapes, seen, EXPRESSION_WEIGHT, LENS, prior, 12.0)
    found = slide.pixels(poses, LENS)
    lips = around(rest, 13) > 0.5
    off = (found - true)[:, lips] - (found - true)[:, lips].mean(0)  # its mean is the face's shape
    assert np.sqrt((off**2).sum(-1).mean()) < 0.6 + 0.2 * slide_px
    before, after = (
        fit_expressions(poses, rest, shapes, px.__getitem__, EXPRESSION_WEIGHT, LENS, prior)[:, 0]
        for px in (seen, seen - found)
    )
    assert np.abs(after).mean() < 0.05
    assert slide_px == 0 or np.abs(after).mean() < 0.5 * np.abs(before).mean()


def test_no_slide_moves_nothing() -> None:
    poses, _ = turning(0.7)
    assert not no_slide(470).pixels(poses, LENS).any()


def test_errors_that_neighbours_share_are_not_expression() -> None:
    """A mouth 4 px aside is an error if no score sees it; lips still part."""
    rest = face()
    shapes = drawn_shapes(rest)
    poses, _ = turning(0.1)
    c = np.zeros((FRAMES, 2))
    c[:, 1] = np.linspace(0, 0.5, FRAMES)
    seen = seen_as(poses, rest, shapes, c)
    seen[..., 0] += 4.0 * around(rest, 13)
    sides, parted = {}, {}
    for told in (True, False):
        prior = belief(np.zeros((FRAMES, 2)), told=told)
        got = fit_expressions(poses, rest, shapes, seen.__getitem__, EXPRESSION_WEIGHT, LENS, prior)
        sides[told], parted[told] = np.abs(got[:, 0]).mean(), got[-1, 1]
    assert sides[True] < 0.75 * sides[False]
    assert sides[False] > 0.1
    assert abs(parted[True] - 0.5) < 0.15


@pytest.mark.parametrize("count", [1, 2, 9])
def test_coefficients_are_those_of_bounded_least_squares(count: int) -> None:
    """Against a dense solver that knows nothing of frames or of their order."""
    rng, names = np.random.default_rng(count), 8
    half = rng.normal(size=(count, names, 9)).astype(np.float32)
    H, g = half @ half.transpose(0, 2, 1), rng.normal(0, 3, (count, names)).astype(np.float32)
    mean, change = rng.uniform(0, 1, (count, names)), np.tile([0.0, 0.5, 2.0, 0.0], 2)
    prior = ExpressionPrior(mean, np.tile([0.5, 1.0, 0.2, 2.0], 2), change, 0.0, 1.0, told=True)

    whole = np.zeros((count, names, count, names))
    for t in range(count):
        whole[t, :, t] += H[t] + np.diag(prior.precision)
    for t in range(count - 1):
        for k, stiff in enumerate(change):
            pair = np.ix_([t, t + 1], [t, t + 1])
            whole[:, k, :, k][pair] += stiff * np.array([[1, -1], [-1, 1]])
    root = np.linalg.cholesky(whole.reshape(count * names, -1)).T
    right = np.linalg.solve(root.T, (g + prior.precision * mean).ravel())
    known = lsq_linear(root, right, (0.0, 1.0), tol=1e-12).x.reshape(count, names)

    found = tracking_solve._bounded_solve(H, g, prior, mean)
    assert ((known > 0.01) & (known < 0.99)).any() and (known < 0.01).any()
    np.testing.assert_allclose(found, known, atol=2e-3)


def blinking(height: float, count: int = 120) -> np.ndarray:
    """Scores [T] of an eye that rests at 0.04 and shuts at frames 20, 60 and 100."""
    shut = np.zeros(count)
    for middle in (20, 60, 100):
        shut = np.maximum(shut, 1 - np.abs(np.arange(count) - middle) / 3.0)
    return 0.04 + (height - 0.04) * np.clip(shut, 0, 1)


@pytest.mark.parametrize("height", [0.40, 0.75])
def test_whoever_blinks_shuts_the_lids(height: float) -> None:
    scores = np.zeros((120, len(ARKIT_NAMES)))
    column = ARKIT_NAMES.index("eyeBlinkLeft")
    scores[:, column] = blinking(height)
    scores[:, ARKIT_NAMES.index("eyeLookDownLeft")] = 0.5 * scores[:, column]
    usual = usual_scores(scores)
    assert usual is not None
    np.testing.assert_allclose(usual.blinks["eyeBlinkLeft"], height)
    assert len(usual.blinks["eyeBlinkRight"]) == 0
    names = ("eyeBlinkLeft", "eyeLookDownLeft")
    mean = expression_prior(names, scores, usual, np.arange(120) / 25).mean
    assert abs(mean[60, 0] - 1.0) < 0.12
    assert mean[40, 0] < 0.01
    assert mean[60, 1] < 0.1  # a shut eye looks nowhere


def test_no_blink_is_made_up() -> None:
    slow = 0.2 + 0.2 * np.sin(np.arange(200) / 30)  # lids that droop and rise
    assert len(blink_peaks(slow)) == 0
    own = amounts("eyeBlinkLeft", slow, 0.0, blink_peaks(slow))
    np.testing.assert_allclose(own, np.clip(slow / FULL_BLINK, 0, 1))


def test_scores_are_read_from_rest_through_the_dead_zone() -> None:
    none = np.zeros(0)
    scores = np.linspace(0, 1, 50)
    for name in ("jawOpen", "mouthSmileLeft", "mouthPucker", "browInnerUp"):
        for rest in (0.0, 0.3):
            own = amounts(name, scores, rest, none)
            assert (np.diff(own) >= 0).all()
            assert own[scores <= rest].max() == 0.0
            assert own[-1] > 0.95
    small = amounts("mouthSmileLeft", np.array([0.06]), 0.001, none)[0]
    assert 0.15 < small < 0.35  # the first score that shows is a smile of a quarter
    assert amounts("mouthSmileLeft", np.array([0.36]), 0.30, none)[0] < 0.1


def test_modes_give_their_fields_covariance_back() -> None:
    points = np.random.default_rng(0).normal(0, 0.03, (60, 3))
    modes = smooth_modes(points, ((0.002, 0.03), (0.001, 0.1)), 60)
    square = ((points[:, None] - points[None]) ** 2).sum(-1)
    expected = 4e-6 * np.exp(-0.5 * square / 0.03**2) + 1e-6 * np.exp(-0.5 * square / 0.1**2)
    np.testing.assert_allclose(modes @ modes.T, expected, atol=1e-12)
    plane = both_ways(modes)
    np.testing.assert_allclose((plane @ plane.T)[0::2, 0::2], expected, atol=1e-12)
    assert not (plane @ plane.T)[0::2, 1::2].any()


@pytest.mark.parametrize("size", [0.92, 1.12])
def test_a_face_on_known_poses_gets_its_own_size(size: float) -> None:
    """The fitted face must cover the pictured one, not an average one at the same place."""
    rest = face() * size
    poses, _ = turning(0.3)
    pixels, _ = project(poses, rest[None], LENS)
    model = learn_clip_model(pixels / size, LENS)
    fit = fit_person(model, pixels, None, None, np.arange(FRAMES) / 25, LENS, held=poses)
    fitted, _ = project(poses, fit.rest[None], LENS)
    assert np.linalg.norm(fitted - pixels, axis=-1).mean() < 0.7
    grown = np.linalg.norm(fit.vertices[MESH_POINTS - 1 :: -67] - fit.vertices[10], axis=1)
    true = np.linalg.norm(rest[MESH_POINTS - 1 :: -67] - rest[10], axis=1)
    np.testing.assert_allclose(grown, true, rtol=0.05)
