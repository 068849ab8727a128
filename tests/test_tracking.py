"""The tracker against known truth: faces that were posed, moved and projected by the tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from gsavatar import assets, geometry, tracking
from gsavatar.errors import InputError
from gsavatar.morphable import FITTED_POINTS, MorphableModel
from gsavatar.morphable_clip import learn_clip_model
from gsavatar.tracking_flow import Flow, join_flow, measure_flow
from gsavatar.tracking_motion import meeting, rest_pose, rotvecs, runs
from gsavatar.tracking_observations import observed
from gsavatar.tracking_solve import Lens, Poses, first_poses, project, refine_poses, rotations
from gsavatar.types import Landmarks, Track

FRAMES = 100
LENS = Lens(1200.0, 256.0, 256.0)
MOVING = ("jawOpen", "eyeBlinkLeft", "eyeBlinkRight", "browInnerUp", "mouthPucker")

needs_ict = pytest.mark.skipif(
    not (assets.available("ict_facekit") and assets.available("mediapipe468_to_ict")),
    reason="ICT-FaceKit's file is not here: set GSAVATAR_ASSETS to a folder with it",
)


@dataclass(frozen=True)
class Truth:
    """A performance whose every number is known."""

    landmarks: Landmarks
    time_s: torch.Tensor
    poses: Poses
    points: np.ndarray  # [L, 3], rest
    values: np.ndarray  # [T, K]
    names: tuple[str, ...]

    def track(self, provider: str, **options: Any) -> Track:
        count = len(self.time_s)
        files = torch.zeros(count, dtype=torch.int64)
        seen = observed(self.landmarks, self.time_s, files, torch.arange(count))
        return tracking.fit_track(seen, provider=provider, **options)


def head_path(count: int = FRAMES) -> Poses:
    """A talking head's path: slow turns to 15 degrees, nods, a little travel, 0.9 m away."""
    s = np.arange(count) / 25.0
    turn = np.stack(
        (0.08 * np.sin(2.1 * s), 0.26 * np.sin(1.3 * s), 0.05 * np.sin(1.7 * s + 1)), axis=1
    )
    upright = np.diag([1.0, -1.0, -1.0])
    shift = np.stack(
        (0.02 * np.sin(0.9 * s), 0.01 * np.sin(1.9 * s), 0.9 + 0.015 * np.sin(0.7 * s)), axis=1
    )
    return Poses(rotations(turn) @ upright, shift)


def expressions(names: tuple[str, ...], count: int = FRAMES) -> np.ndarray:
    """Speech-like values: open and close at 2 Hz, blinks of five frames, slow brows."""
    s = np.arange(count) / 25.0
    values = np.zeros((count, len(names)))
    talk = np.clip(np.sin(11 * s), 0, 1) * (s > 0.8)
    blink = np.clip(1 - np.abs((s % 1.6) - 1.2) / 0.12, 0, 1)
    paths = {
        "jawOpen": 0.35 * talk, "mouthPucker": 0.5 * np.clip(np.sin(4 * s + 1), 0, 1) * (s > 0.8),
        "browInnerUp": 0.6 * np.clip(np.sin(1.5 * s - 1), 0, 1),
        "eyeBlinkLeft": 0.9 * blink, "eyeBlinkRight": 0.9 * blink,
    }  # fmt: skip
    for name, path in paths.items():
        values[:, names.index(name)] = path
    return values


def perform(model: MorphableModel, rest: np.ndarray, count: int = FRAMES) -> Truth:
    """Landmarks of a face as a detector would see them: every point off by 0.4 px in every frame,
    and all of a frame's points by another 0.5 px together."""
    rng = np.random.default_rng(3)
    poses, values = head_path(count), expressions(model.names, count)
    moved = np.tensordot(values, model.at_landmarks(model.expression), 1)
    pixels, _ = project(poses, rest + moved, LENS)
    pixels = pixels + rng.normal(0, 0.4, pixels.shape) + rng.normal(0, 0.5, (count, 1, 2))
    points = np.zeros((count, 478, 3))
    points[:, :, :2] = pixels[:, :1]
    points[:, FITTED_POINTS, :2] = pixels
    table = torch.from_numpy(points).float()
    found = torch.ones(count, dtype=torch.bool)
    time_s = torch.arange(count, dtype=torch.float64) / 25
    return Truth(Landmarks(table, found, None), time_s, poses, rest, values, model.names)


def person(model: MorphableModel) -> np.ndarray:
    """Landmarks of somebody who is neither the model's average nor quite inside the model."""
    rng = np.random.default_rng(5)
    weights = rng.normal(0, 0.7, min(10, len(model.identity)))
    rest = model.at_landmarks(model.rest(weights))
    waves = 0.0015 * np.sin(rest @ rng.normal(0, 40, (3, 3)) + rng.uniform(0, 6, 3))
    return rest + waves


@pytest.fixture(scope="module")
def ict_truth() -> Truth:
    from gsavatar.morphable_ict import load_ict

    model = load_ict()
    return perform(model, person(model))


@pytest.fixture(scope="module")
def clip_truth() -> Truth:
    """Truth of a face without any asset: the average face moved by the drawn shapes."""
    start = tracking_start()
    rest = start.at_landmarks(start.neutral)
    return perform(start, rest + 0.002 * np.sin(rest * 60))


@pytest.fixture(scope="module")
def clip_track(clip_truth: Truth) -> Track:
    return clip_truth.track("clip")


def tracking_start() -> MorphableModel:
    """The model learned from a face that never moves: average face, drawn shapes."""
    from gsavatar.morphable import canonical_face

    base, _ = canonical_face()
    eyes = [base[[133, 33]].mean(0), base[[362, 263]].mean(0)]
    pixels, _ = project(head_path(20), np.concatenate((base, eyes))[None], LENS)
    return learn_clip_model(pixels, LENS)


def camera_poses(track: Track) -> torch.Tensor:
    views = torch.stack([track.cameras[int(f)].world_to_cam for f in track.file_index])
    return (views @ track.head_pose).double()


def rotation_error_deg(track: Track, truth: Poses) -> np.ndarray:
    """Angle between fitted and true head after the one constant turn that fits best."""
    fitted = camera_poses(track)[:, :3, :3]
    true = torch.from_numpy(truth.R)
    u, _, vt = torch.linalg.svd((fitted.mT @ true).mean(0))
    return geometry.angle_deg((fitted @ (u @ vt)).mT @ true).numpy()


def assert_recovers(track: Track, truth: Truth) -> None:
    error = rotation_error_deg(track, truth.poses)
    assert np.median(error) < 0.4
    assert np.percentile(error, 95) < 1.0
    for name in MOVING:
        true = truth.values[:, truth.names.index(name)]
        fitted = track.coefficients[:, track.face.names.index(name)].numpy()
        assert np.corrcoef(true, fitted)[0, 1] > 0.85, name


@needs_ict
def test_ict_recovers_pose_and_expression(ict_truth: Truth) -> None:
    track = ict_truth.track("ict")
    assert_recovers(track, ict_truth)
    jaw = track.face.names.index("jawOpen")
    gap = track.coefficients[:, jaw].numpy() - ict_truth.values[:, jaw]
    assert np.sqrt((gap**2).mean()) < 0.5 * np.sqrt((ict_truth.values[:, jaw] ** 2).mean())


def test_clip_recovers_pose_and_expression(clip_truth: Truth, clip_track: Track) -> None:
    assert_recovers(clip_track, clip_truth)


def test_clip_mesh_lies_on_the_landmarks_and_opens_as_they_do(
    clip_truth: Truth, clip_track: Track
) -> None:
    meshes = torch.stack([tracking.project_mesh(clip_track, row) for row in range(FRAMES)])
    seen = clip_truth.landmarks.points[:, :468, :2]
    assert float((meshes[:, :468] - seen).norm(dim=-1).mean()) < 1.5

    def opening(points: torch.Tensor) -> np.ndarray:
        return (points[:, 13] - points[:, 14]).norm(dim=-1).numpy()

    assert np.corrcoef(opening(meshes), opening(seen))[0, 1] > 0.97
    assert np.abs(opening(meshes) - opening(seen)).mean() < 1.0


def test_the_head_is_where_it_was_and_shakes_less_than_its_landmarks(
    clip_truth: Truth, clip_track: Track
) -> None:
    """In the picture: all of a frame's landmarks are off together, which alone shakes by 1.7 px."""
    bone = np.array([[0.0, 0.05, 0.1], [0.04, 0.0, 0.08], [-0.04, 0.0, 0.08], [0.0, 0.0, 0.1]])
    found = camera_poses(clip_track).numpy()
    fitted, _ = project(Poses(found[:, :3, :3], found[:, :3, 3]), bone[None], LENS)
    off = fitted - project(clip_truth.poses, bone[None], LENS)[0]
    off -= off.mean(0)  # the rest face may sit a little elsewhere in its own frame

    def size(vectors: np.ndarray) -> float:
        return float(np.sqrt((vectors**2).sum(-1).mean()))

    assert size(off) < 0.9
    assert size(np.diff(off, 2, axis=0)) < 1.2


@pytest.fixture(scope="module")
def messy_track(clip_truth: Truth) -> Track:
    """Two files, three frames without a face and one with wild landmarks (frame 30)."""
    points = clip_truth.landmarks.points.clone()
    found = torch.ones(FRAMES, dtype=torch.bool)
    found[[3, 4, 50]] = False
    points[~found] = float("nan")
    points[30, :, :2] += 12 * torch.randn(478, 2, generator=torch.Generator().manual_seed(0))
    files = (torch.arange(FRAMES) >= 60).long()
    landmarks = Landmarks(points, found, None)
    seen = observed(landmarks, clip_truth.time_s, files, torch.arange(FRAMES) + 1000)
    return tracking.fit_track(seen, provider="clip")


def test_room_frame_is_the_rest_pose_of_each_file(messy_track: Track) -> None:
    assert len(messy_track.cameras) == 2
    for file in (0, 1):
        poses = messy_track.head_pose[messy_track.file_index == file]
        turn = geometry.so3_log(poses[:, :3, :3]).numpy()
        assert np.abs(np.median(poses[:, :3, 3].numpy(), axis=0)).max() < 1e-4
        assert np.abs(np.median(turn, axis=0)).max() < 1e-3
    view = messy_track.cameras[0].world_to_cam
    assert 0.6 < float(view[2, 3]) < 1.2
    assert float(view[1, 1]) < -0.9  # the head's +y is the picture's up


def test_frames_without_a_face_are_dropped_and_ids_kept(messy_track: Track) -> None:
    kept = [1000 + i for i in range(FRAMES) if i not in (3, 4, 50)]
    assert messy_track.frame_ids.tolist() == kept
    assert torch.isfinite(messy_track.coefficients).all()
    assert torch.isfinite(messy_track.head_pose).all()


def test_frames_with_wild_landmarks_weigh_less(messy_track: Track) -> None:
    row = messy_track.frame_ids.tolist().index(1030)
    assert float(messy_track.weight[row]) < 0.3
    assert float(messy_track.weight.median()) > 0.95


def test_skin_that_shows_nothing_is_told(clip_truth: Truth) -> None:
    flat = np.full((512, 512, 3), 120, np.uint8)
    told = clip_truth.track("clip", pictures=lambda row: flat).notes
    assert len(told) == 1
    assert "skin shows too little" in told[0] and "more light" in told[0]


def test_what_was_not_looked_at_is_not_complained_of(messy_track: Track) -> None:
    assert messy_track.notes == ()


def test_the_face_is_learned_from_frames_whose_picture_is_kept() -> None:
    count, pictured = 3000, np.zeros(3000, bool)
    for start in range(0, count, 250):
        pictured[start : start + 20] = True
    landmarks = Landmarks(torch.zeros(count, 478, 3), torch.ones(count, dtype=torch.bool), None)
    time_s, files = torch.arange(count).double() / 25, torch.zeros(count, dtype=torch.int64)
    seen = observed(landmarks, time_s, files, torch.arange(count), pictured=pictured)
    rows = tracking._sample(seen, 120)
    assert len(rows) == 120 and pictured[rows].all() and rows[0] == 0 and rows[-1] == 2769
    few = observed(landmarks, time_s, files, torch.arange(count), pictured=pictured & False)
    rows = tracking._sample(few, 120)  # landmarks are better than nothing
    assert len(rows) == 120 and rows[-1] == count - 1


def test_no_face_is_an_input_error() -> None:
    empty = Landmarks(torch.full((5, 478, 3), float("nan")), torch.zeros(5).bool(), None)
    with pytest.raises(InputError, match="0 of 5 frames show a face"):
        observed(empty, torch.arange(5).double(), torch.zeros(5).long(), torch.arange(5))


def test_the_fit_is_deterministic_and_reports_progress(
    clip_truth: Truth, clip_track: Track
) -> None:
    steps: list[tuple[int, int]] = []
    again = clip_truth.track("clip", progress=lambda done, total: steps.append((done, total)))
    assert torch.equal(clip_track.head_pose, again.head_pose)
    assert torch.equal(clip_track.coefficients, again.coefficients)
    assert steps[-1][0] == steps[-1][1]
    assert [s[0] for s in steps] == sorted(s[0] for s in steps)


def test_drive_curves_are_a_fit_of_their_own(clip_truth: Truth, clip_track: Track) -> None:
    curves = tracking.drive_curves(clip_truth.landmarks, clip_truth.time_s, "clip")
    assert curves.names == clip_track.face.names
    torch.testing.assert_close(curves.values, clip_track.coefficients)
    torch.testing.assert_close(curves.head_pose, clip_track.head_pose)


def test_poses_are_exact_without_noise() -> None:
    points = np.random.default_rng(0).normal(0, 0.05, (40, 3))
    truth = head_path(30)
    pixels, _ = project(truth, points[None], LENS)
    weight = np.ones(40)
    found = refine_poses(
        first_poses(points, pixels, weight, LENS), points[None], pixels, weight, LENS
    )
    np.testing.assert_allclose(found.R, truth.R, atol=1e-6)
    np.testing.assert_allclose(found.t, truth.t, atol=1e-6)


def test_flow_makes_the_path_steady() -> None:
    """Landmarks shake by half a pixel; with flow good to 0.05 px the path is ten times better."""
    rng = np.random.default_rng(1)
    points = rng.normal(0, 0.05, (40, 3))
    truth, weight = head_path(60), np.ones(40)
    jolt = np.zeros((60, 3))
    jolt[30:] = (0.004, 0.0, 0.0)  # a sudden move must survive
    truth = Poses(truth.R, truth.t + jolt)
    pixels, _ = project(truth, points[None], LENS)
    noisy = pixels + rng.normal(0, 0.4, pixels.shape) + rng.normal(0, 0.5, (60, 1, 2))
    raw = refine_poses(first_poses(points, noisy, weight, LENS), points[None], noisy, weight, LENS)
    shift = np.diff(pixels, axis=0) + rng.normal(0, 0.05, (59, 40, 2))
    times = np.arange(60) / 25

    def shake(poses: Poses) -> float:
        off = project(poses, points[None], LENS)[0] - pixels
        return float(np.sqrt((np.diff(off, 2, axis=0) ** 2).sum(-1).mean()))

    joined = join_flow(
        raw, points, weight, Flow(shift, np.ones((59, 40))), times, np.zeros(60, np.int64), LENS
    )
    assert shake(raw) > 1.0
    assert shake(joined) < 0.1 * shake(raw)


def test_flow_is_measured_and_missing_pictures_are_no_flow() -> None:
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.uniform(0, 255, (1, 3, 20, 20)))
    texture = torch.nn.functional.interpolate(coarse, (160, 160), mode="bicubic")[0]
    picture = texture.clamp(0, 255).permute(1, 2, 0).numpy().astype(np.uint8)
    pictures = [np.roll(picture, 2 * i, axis=1) for i in range(4)]
    start = np.tile(np.array([[60.0, 60.0], [80.0, 90.0]]), (4, 1, 1))
    flow = measure_flow(lambda row: None if row == 3 else pictures[row], np.arange(4), start)
    np.testing.assert_allclose(flow.shift[:2], np.tile([2.0, 0.0], (2, 2, 1)), atol=0.1)
    assert flow.trust[:2].all()
    assert not flow.trust[2].any()


def test_runs_end_at_pauses_and_files() -> None:
    times = np.array([0.0, 0.04, 0.08, 0.4, 0.44, 0.48])
    assert [r.tolist() for r in runs(times, np.array([0, 0, 0, 0, 0, 1]))] == [
        [0, 1, 2],
        [3, 4],
        [5],
    ]


def test_two_paths_meet_halfway_without_the_shake_of_one() -> None:
    time_s, file_index = np.arange(200) / 25, np.repeat([0, 1], 100)
    sway = 0.02 * np.sin(time_s)[:, None] * np.array([1.0, 0.3, 0.0])
    steady = Poses(rotations(sway), np.tile([0.0, 0.0, 0.8], (200, 1)))
    lean = np.where(file_index == 0, 0.02, -0.04)[:, None] * np.array([1.0, 0.0, 0.0])
    shake = np.random.default_rng(0).normal(0, 0.003, (200, 3))
    other = Poses(rotations(lean + shake) @ steady.R, steady.t + lean)
    met = meeting(steady, other, time_s, file_index)
    turn = rotvecs(met.R @ steady.R.transpose(0, 2, 1))
    assert np.abs(turn - 0.5 * lean).max() < 0.002
    assert np.abs(np.diff(turn, axis=0))[file_index[1:] == file_index[:-1]].max() < 0.0005
    np.testing.assert_allclose(met.t, steady.t + 0.5 * lean, atol=1e-12)  # files stay apart


def test_rest_pose_is_the_median() -> None:
    truth = head_path(99)
    rest = rest_pose(truth)
    turn = torch.from_numpy(rest.R[0].T @ truth.R)
    assert np.abs(np.median(geometry.so3_log(turn).numpy(), axis=0)).max() < 1e-6
