"""The outline of a face as a term of its shape, on an egg whose truth is known."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest

from gsavatar.morphable import MorphableModel
from gsavatar.tracking_outline import (
    EDGE_SD_PX,
    OUTLINE_FRAMES,
    REACH_PX,
    Outlines,
    Rim,
    read_outlines,
)
from gsavatar.tracking_shape_step import ShapePrior, fit_shape
from gsavatar.tracking_solve import Lens, Poses, project, rotations
from gsavatar.types import FacePart, Region

SIZE, FINE = 256, 8
LENS = Lens(600.0, SIZE / 2, SIZE / 2)
RADII_M = np.array([0.07, 0.1, 0.085])
TURNS_RAD = (-0.5, -0.2, 0.0, 0.3, 0.5)


def egg() -> MorphableModel:
    """An egg of skin whose one identity makes it wider and whose one expression lengthens it."""
    around, down = 48, 33
    theta = np.linspace(0.0, np.pi, down)[:, None]
    phi = np.linspace(0.0, 2 * np.pi, around, endpoint=False)[None]
    x, y, z = np.sin(theta) * np.sin(phi), np.cos(theta) + 0 * phi, np.sin(theta) * np.cos(phi)
    unit = np.stack((x, y, z), -1).reshape(-1, 3)
    i, j = np.mgrid[: down - 1, :around]
    a, b = i * around + j, i * around + (j + 1) % around
    c, d = a + around, b + around
    faces = np.concatenate((np.stack((a, c, b), -1), np.stack((b, c, d), -1))).reshape(-1, 3)
    neutral = unit * RADII_M
    wider, longer = neutral * (0.1, 0.0, 0.0), np.minimum(neutral, 0.0) * (0.0, 0.2, 0.0)
    front = np.flatnonzero(neutral[:, 2] > -0.02)[::3]
    return MorphableModel(
        "egg", ("jawOpen",), neutral, wider[None], longer[None], faces,
        np.full(len(neutral), int(FacePart.SKIN), np.uint8),
        np.stack((front,) * 3, -1), np.tile((1.0, 0.0, 0.0), (len(front), 1)),
    )  # fmt: skip


def turned() -> Poses:
    about_y = np.array([(0.0, turn, 0.0) for turn in TURNS_RAD])
    facing = np.diag([1.0, -1.0, -1.0])  # the head's z looks at the camera
    return Poses(facing @ rotations(about_y), np.tile((0.01, -0.005, 0.6), (len(TURNS_RAD), 1)))


def labels_of(model: MorphableModel, vertices: np.ndarray, poses: Poses) -> list[np.ndarray]:
    """Label planes of the mesh against a background."""
    planes = []
    for t in range(len(poses.t)):
        pixels, _ = project(poses[np.array([t])], vertices[None], LENS)
        # OpenCV fills every pixel that it touches: drawn finely, that is little.
        plane = np.zeros((SIZE * FINE, SIZE * FINE), np.uint8)
        corners = np.round((pixels[0] * FINE - 0.5) * 16).astype(np.int32)
        for face in model.faces:
            cv2.fillConvexPoly(plane, corners[face], int(Region.SKIN), shift=4)
        planes.append(plane[FINE // 2 :: FINE, FINE // 2 :: FINE].copy())
    return planes


def outlines_of(planes: list[np.ndarray]) -> Outlines:
    found = read_outlines(lambda row: planes[row], np.arange(len(planes)))
    assert found is not None
    return found


def pixels_of(poses: Poses, frame: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Pixels [M, 2] of head points [M, 3], each in its own frame."""
    at = (poses.R[frame] @ points[..., None])[..., 0] + poses.t[frame]
    return np.asarray(at[:, :2] / at[:, 2:] * LENS.focal + (LENS.cx, LENS.cy))


def spread_of(model: MorphableModel) -> tuple[np.ndarray, Rim]:
    """Landmarks [L, 3] and the rim of a model whose skin takes the nearest landmark's offset."""
    landmarks = model.at_landmarks(model.neutral)

    def spread(places: np.ndarray) -> np.ndarray:
        apart = np.linalg.norm(places[:, None] - landmarks[None], axis=-1)
        return np.asarray(np.eye(len(landmarks))[apart.argmin(1)])

    return landmarks, Rim(model, landmarks, spread)


@pytest.mark.parametrize("width", [0.0, 0.6, -0.6])
def test_the_edge_is_seen_as_far_out_as_the_face_is_wider(width: float) -> None:
    model, poses = egg(), turned()
    landmarks, rim = spread_of(model)
    truth = model.rest(np.array([width]))
    outlines = outlines_of(labels_of(model, truth, poses))
    rest = rim.rest(np.zeros(1), np.zeros_like(landmarks), np.zeros(1))
    seen = rim.sightings(outlines, poses, rest, np.zeros((len(poses.t), 1)), LENS, 5.0)
    assert seen is not None
    assert set(seen.frame) == set(range(len(poses.t)))
    here, there = (
        pixels_of(poses, seen.frame, seen.points + far * seen.by_identity[:, 0])
        for far in (0.0, width)
    )
    expected = ((there - here) * seen.normals).sum(1)
    assert np.abs(expected).max() >= abs(width) * 6
    assert np.median(np.abs(seen.off_px - expected)) < 0.25
    assert np.percentile(np.abs(seen.off_px - expected), 95) < 1.0
    # The rim lies on the surface: its points turn their side to the camera.
    at = (poses.R[seen.frame] @ seen.points[..., None])[..., 0] + poses.t[seen.frame]
    normal = seen.points / RADII_M**2
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    looked = (poses.R[seen.frame] @ normal[..., None])[..., 0]
    view = at / np.linalg.norm(at, axis=1, keepdims=True)
    assert np.abs((looked * view).sum(1)).max() < 0.1


def test_the_equations_are_the_derivatives_of_where_the_rim_is() -> None:
    model, poses = egg(), turned()
    landmarks, rim = spread_of(model)
    outlines = outlines_of(labels_of(model, model.neutral, poses))
    rest = rim.rest(np.zeros(1), np.zeros_like(landmarks), np.zeros(1))
    seen = rim.sightings(outlines, poses, rest, np.zeros((len(poses.t), 1)), LENS, 5.0)
    assert seen is not None
    rng = np.random.default_rng(1)
    beta, offset = rng.normal(size=1), rng.normal(size=landmarks.shape) * 0.01
    change = rng.normal(size=(len(poses.t), 6)) * (0.01, 0.01, 0.01, 0.1, 0.1, 0.1)
    middle = landmarks.mean(0)

    def out(step: float) -> np.ndarray:
        """How far out every point lies after so much of the change."""
        moved = seen.points + step * (
            np.einsum("i,mic->mc", beta, seen.by_identity) + seen.by_offset @ offset
        )
        turn = rotations(step * change[:, 3:])
        R = turn @ poses.R
        # A pose turns about the middle of the landmarks.
        t = poses.t + poses.R @ middle - R @ middle + step * change[:, :3]
        return np.asarray((pixels_of(Poses(R, t), seen.frame, moved) * seen.normals).sum(1))

    by_shape, by_pose = seen.equations(poses, middle, LENS)
    told = by_shape @ np.concatenate((beta, offset.T.ravel()))
    told += np.einsum("mi,mi->m", by_pose, change[seen.frame])
    h = 1e-5
    np.testing.assert_allclose(told, (out(h) - out(-h)) / (2 * h), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("outlined", [True, False])
def test_a_face_is_as_wide_as_its_outline(held: bool, outlined: bool) -> None:
    """Landmarks in front of a face say little of how wide it is; where it ends does."""
    model, poses = egg(), turned()
    landmarks, rim = spread_of(model)
    true = model.rest(np.array([0.8]))
    outlines = outlines_of(labels_of(model, true, poses))
    # Landmarks are told as those of the average face: without an outline nothing says otherwise.
    pixels, _ = project(poses, landmarks[None], LENS)
    identity, still = model.at_landmarks(model.identity), np.zeros((len(poses.t), 1))
    faint = np.full(len(landmarks), 1e-3)
    prior = ShapePrior(1e-3, np.eye(len(landmarks)) * 1e12)
    beta, offset = np.zeros(1), np.zeros_like(landmarks)
    for _ in range(5):
        seen = None
        if outlined:
            rest = rim.rest(beta, offset, np.zeros(1))
            seen = rim.sightings(outlines, poses, rest, still, LENS, 5.0)
        beta, offset = fit_shape(
            poses, landmarks, np.zeros((len(poses.t), *landmarks.shape)), identity, pixels, faint,
            LENS, prior, 5.0, (beta, offset), poses_known=held, rim=seen,
        )  # fmt: skip
    assert beta[0] == pytest.approx(0.8 if outlined else 0.0, abs=0.12)


def test_a_head_that_is_nearer_is_not_wider() -> None:
    """What a pose explains of an edge is not the shape's, where poses give way."""
    model, poses = egg(), turned()
    landmarks, rim = spread_of(model)
    outlines = outlines_of(labels_of(model, model.neutral, poses))
    rest = rim.rest(np.zeros(1), np.zeros_like(landmarks), np.zeros(1))
    still = np.zeros((len(poses.t), 1))
    seen = rim.sightings(outlines, poses, rest, still, LENS, 5.0)
    assert seen is not None
    here = pixels_of(poses, seen.frame, seen.points)
    near = Poses(poses.R, poses.t - (0.0, 0.0, 0.02))
    out = ((pixels_of(near, seen.frame, seen.points) - here) * seen.normals).sum(1)
    pixels, _ = project(poses, landmarks[None], LENS)
    prior = ShapePrior(1e-3, np.eye(len(landmarks)) * 1e12)
    beta = [
        fit_shape(
            poses, landmarks, np.zeros((len(poses.t), *landmarks.shape)),
            model.at_landmarks(model.identity), pixels, np.full(len(landmarks), 1e-6), LENS, prior,
            5.0, (np.zeros(1), np.zeros_like(landmarks)), poses_known=known,
            rim=dataclasses.replace(seen, off_px=out),
        )[0][0]
        for known in (True, False)
    ]  # fmt: skip
    assert beta[0] > 0.2
    assert abs(beta[1]) < 0.1 * beta[0]


def test_only_the_edge_of_skin_against_the_background_counts() -> None:
    model, poses = egg(), turned()
    landmarks, rim = spread_of(model)
    still = np.zeros((len(poses.t), 1))
    rest = rim.rest(np.zeros(1), np.zeros_like(landmarks), np.zeros(1))
    planes = labels_of(model, model.neutral, poses)
    for plane in planes:
        plane[: SIZE // 2][plane[: SIZE // 2] > 0] = int(Region.HAIR)
    half = rim.sightings(outlines_of(planes), poses, rest, still, LENS, 5.0)
    assert half is not None
    assert (pixels_of(poses, half.frame, half.points)[:, 1] > SIZE / 2 - 4).all()
    for plane in planes:
        plane[plane == 0] = int(Region.TORSO)  # no background anywhere
    assert rim.sightings(outlines_of(planes), poses, rest, still, LENS, 5.0) is None


@pytest.mark.parametrize("seen", [True, False])
def test_the_edge_of_an_ear_is_not_the_cheeks(seen: bool) -> None:
    """Ears stand beside the rim, but where hair hides them it is the rim that ends the face."""
    model, poses = egg(), turned()[np.array([2])]
    landmarks = model.at_landmarks(model.neutral)
    ears = np.array([(side * (RADII_M[0] + 0.006), 0.0, -0.03) for side in (-1, 1)])
    eared = dataclasses.replace(
        model, neutral=np.concatenate((model.neutral, ears)),
        identity=np.concatenate((model.identity, np.zeros((1, 2, 3))), axis=1),
        expression=np.concatenate((model.expression, np.zeros((1, 2, 3))), axis=1),
        part=np.full(len(model.neutral) + 2, int(FacePart.SKIN), np.uint8),
    )  # fmt: skip
    rim = Rim(eared, landmarks, lambda places: np.zeros((len(places), len(landmarks))))
    plane = labels_of(model, model.neutral, poses)[0]
    middles = pixels_of(poses, np.zeros(2, np.int64), ears)
    if seen:
        for x, y in middles.round().astype(int):
            cv2.circle(plane, (int(x), int(y)), 5, int(Region.SKIN), -1)
    rest = rim.rest(np.zeros(1), np.zeros_like(landmarks), np.zeros(1))
    found = rim.sightings(outlines_of([plane]), poses, rest, np.zeros((1, 1)), LENS, 1.0)
    assert found is not None
    at = pixels_of(poses, found.frame, found.points)
    nearest = np.linalg.norm(at[:, None] - middles, axis=-1).min()
    assert (nearest > 14) == seen
    assert np.abs(found.off_px).max() < 1.0


def test_an_edge_far_away_is_another_ones() -> None:
    model, poses = egg(), turned()
    landmarks, rim = spread_of(model)
    grown = model.neutral * (1 + 2 * REACH_PX / (RADII_M.min() * LENS.focal / 0.6))
    outlines = outlines_of(labels_of(model, grown, poses))
    rest = rim.rest(np.zeros(1), np.zeros_like(landmarks), np.zeros(1))
    assert rim.sightings(outlines, poses, rest, np.zeros((5, 1)), LENS, 5.0) is None


def test_an_open_jaw_moves_the_rim_with_it() -> None:
    model, poses = egg(), turned()
    landmarks, rim = spread_of(model)
    opened = model.neutral + model.expression[0]
    outlines = outlines_of(labels_of(model, opened, poses))
    rest = rim.rest(np.zeros(1), np.zeros_like(landmarks), np.zeros(1))
    seen = rim.sightings(outlines, poses, rest, np.ones((len(poses.t), 1)), LENS, 5.0)
    assert seen is not None
    chin = seen.points[:, 1] < -0.8 * RADII_M[1]  # which the jaw has moved by over 16 px
    assert chin.sum() >= len(poses.t)
    assert np.percentile(np.abs(seen.off_px[chin]), 95) < 1.0
    assert np.percentile(np.abs(seen.off_px), 95) < 1.0


def test_a_mask_that_hides_no_skin_has_no_rim() -> None:
    """The face model learned from a clip ends where its landmarks end."""
    model = egg()
    faces = model.faces[(model.neutral[model.faces][..., 2] > 0.06).all(1)]
    mask = dataclasses.replace(model, faces=faces)
    landmarks, rim = spread_of(mask)
    poses = turned()[np.array([2])]
    outlines = outlines_of(labels_of(model, model.neutral, poses))
    rest = rim.rest(np.zeros(1), np.zeros_like(landmarks), np.zeros(1))
    assert rim.sightings(outlines, poses, rest, np.zeros((1, 1)), LENS, 1.0) is None


def test_frames_without_labels_have_no_outline() -> None:
    plane = np.zeros((8, 8), np.uint8)
    assert read_outlines(None, np.arange(3)) is None
    assert read_outlines(lambda row: None, np.arange(3)) is None
    some = read_outlines(lambda row: plane if row == 7 else None, np.array([5, 7, 9]))
    assert some is not None
    assert some.frames.tolist() == [1]


def test_each_frame_has_its_own_outline() -> None:
    """Two of five frames have labels: in one a face that ends in hair at its left, in the other one
    that ends in hair at its right."""
    model, poses = egg(), turned()
    landmarks, rim = spread_of(model)
    planes = labels_of(model, model.neutral, poses)
    middle = int(pixels_of(poses, np.array([1]), np.zeros((1, 3)))[0, 0])
    for plane, hair in ((planes[1], np.s_[:, :middle]), (planes[3], np.s_[:, middle:])):
        plane[hair][plane[hair] > 0] = int(Region.HAIR)
    found = read_outlines(lambda row: planes[row] if row in (1, 3) else None, np.arange(5))
    assert found is not None
    rest = rim.rest(np.zeros(1), np.zeros_like(landmarks), np.zeros(1))
    seen = rim.sightings(found, poses, rest, np.zeros((5, 1)), LENS, 5.0)
    assert seen is not None
    x = pixels_of(poses, seen.frame, seen.points)[:, 0]
    assert set(seen.frame) == {1, 3}
    assert x[seen.frame == 1].min() > middle
    assert x[seen.frame == 3].max() < middle
    assert np.abs(seen.off_px).max() < 1.0
    np.testing.assert_allclose(seen.weight, 5.0 / 2 / EDGE_SD_PX**2)


def test_of_many_frames_outlines_from_all_over_the_clip_are_looked_at() -> None:
    plane = np.zeros((8, 8), np.uint8)
    rows = 7 * np.arange(1000)
    some = read_outlines(lambda row: plane if row % 2 else None, rows)
    assert some is not None
    assert (rows[some.frames] % 2 == 1).all()
    assert OUTLINE_FRAMES / 4 <= len(some.frames) <= OUTLINE_FRAMES
    assert np.ptp(some.frames) > 800
