"""The bundled sample and the timing of the synthetic head's mouth; no renderer is needed."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from gsavatar import audio, video
from gsavatar.datasets.phones import CLOSURES, SHAPES, Phone, mouth_track, parse_phones
from gsavatar.datasets.synthetic_eyes import eye_colors, lid_closure, with_lashes
from gsavatar.datasets.synthetic_head import NECK_BASE, NECK_TOP, rotation
from gsavatar.datasets.synthetic_motion import in_room

SAMPLE = Path(str(resources.files("gsavatar.datasets"))) / "sample"


def test_the_sample_is_small_and_whole() -> None:
    assert sum(f.stat().st_size for f in SAMPLE.iterdir()) < 1_500_000
    info = video.probe(SAMPLE / "speaker.mp4")
    assert (info.width, info.height, info.fps) == (512, 512, 25.0)
    count = sum(1 for _ in video.decode(SAMPLE / "speaker.mp4"))
    assert 8 * 25 <= count <= 12 * 25
    sound = audio.load(SAMPLE / "speaker.mp4")
    assert abs(len(sound) / 16_000 - count / 25) < 0.08 and not audio.is_silent(sound)
    assert 4.0 < len(audio.load(SAMPLE / "sentence.flac")) / 16_000 < 7.0


def test_the_truth_fits_the_film() -> None:
    known = json.loads((SAMPLE / "speaker.truth.json").read_text())
    frames = sum(1 for _ in video.decode(SAMPLE / "speaker.mp4"))
    assert len(known["head_pose"]) == frames
    assert all(len(curve) == frames for curve in known["weights"].values())
    jaw = np.array(known["weights"]["jawOpen"])
    lips_shut = [
        jaw[round(25 * (start + end) / 2)]
        for name, start, end in known["phones"]
        if name in CLOSURES
    ]
    assert len(lips_shut) >= 8 and max(lips_shut) < 0.06
    assert jaw.max() > 0.4
    rotations = np.array(known["head_pose"])[:, :3, :3]
    yaw = np.degrees(np.arctan2(rotations[:, 0, 2], rotations[:, 2, 2]))
    assert 8 < np.ptp(yaw) < 30


def test_flites_phones_are_read() -> None:
    phones = parse_phones("pau:0.224 m:0.260 ay:0.392 \n b:0.466")
    assert phones[1] == Phone("m", 0.224, 0.26) and phones[-1].name == "b"


def test_lips_close_on_m_b_and_p_and_curves_stay_in_range() -> None:
    phones = [
        Phone("aa", 0.0, 0.2),
        Phone("b", 0.2, 0.28),
        Phone("aa", 0.28, 0.5),
        Phone("pau", 0.5, 1.0),
    ]
    time_s, curves = mouth_track(phones, 1.0)
    jaw = curves["jawOpen"]
    assert jaw[np.abs(time_s - 0.24).argmin()] < 0.05
    assert jaw[np.abs(time_s - 0.1).argmin()] > 0.4
    assert jaw[time_s > 0.7].max() < 1e-3
    assert all(((c >= 0) & (c <= 1)).all() for c in curves.values())
    again = mouth_track(phones, 1.0)[1]
    assert all(np.array_equal(curves[n], again[n]) for n in curves)


def test_every_phone_has_a_shape_of_known_names() -> None:
    from gsavatar.types import ARKIT_NAMES

    _, curves = mouth_track(
        [Phone(name, i * 0.1, i * 0.1 + 0.1) for i, name in enumerate(SHAPES)], 5.0
    )
    assert set(curves) <= set(ARKIT_NAMES)


@pytest.mark.parametrize(("height", "share"), [(NECK_TOP, 1.0), (NECK_BASE, 0.0)])
def test_the_neck_fades_the_heads_motion(height: float, share: float) -> None:
    pose = np.eye(4)
    pose[:3, 3] = (0.01, 0.02, 0.03)
    rest = np.array([[0.0, height, 0.0]])
    np.testing.assert_allclose(in_room(rest, rest, pose) - rest, share * pose[None, :3, 3])


def test_rotations_are_rotations() -> None:
    turn = rotation(0.3, -0.2, 0.1)
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(rotation(np.pi / 2, 0, 0) @ [0, 0, 1], [1, 0, 0], atol=1e-12)


SEAM_Y, LASH_COUNT = 0.034, 19


def eye(side: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A face of two lid edges and some cheek, its lashes, and the rows of both edges."""
    x = side * np.linspace(0.020, 0.046, LASH_COUNT)
    arch = 1 - ((np.abs(x) - 0.033) / 0.013) ** 2
    upper = np.stack((x, SEAM_Y + 0.0002 + 0.006 * arch, np.full_like(x, 0.09)), -1)
    lower = np.stack((x, SEAM_Y - 0.0002 - 0.004 * arch, np.full_like(x, 0.09)), -1)
    cheek = np.stack((x, np.full_like(x, -0.01), np.full_like(x, 0.08)), -1)
    lashes = np.concatenate((upper, lower, upper + np.array([0, 0.004, 0.008])))
    rows = np.arange(LASH_COUNT)
    return np.concatenate((upper, lower, cheek)), lashes, rows, rows + LASH_COUNT


@pytest.mark.parametrize("side", [1.0, -1.0])
def test_closed_lids_meet_whatever_the_person_does_to_them(side: float) -> None:
    face, lashes, upper, lower = eye(side)
    closed = face.copy()
    closed[upper, 1] = closed[lower, 1] + 0.0025  # a slit that the model's blink leaves open
    closed[upper, 2] -= 0.001
    missing = lid_closure(closed, face, lashes, side)
    met = (closed + missing)[upper] - closed[lower]
    middle = slice(3, -3)  # the corners of the eye stay where they are
    assert met[middle, 1].max() < 0.0 < met[middle, 2].min()
    np.testing.assert_array_equal(missing[lower], 0.0)
    np.testing.assert_allclose(missing[2 * LASH_COUNT :], 0.0, atol=1e-9)
    assert np.abs(missing).max() < 0.004


def test_lashes_are_a_line_along_the_upper_lids() -> None:
    face, lashes, upper, _ = eye(1.0)
    other, more, _, _ = eye(-1.0)
    both, grown = np.concatenate((face, other)), np.concatenate((lashes, more))
    skin = np.full_like(both, 0.7)
    painted = with_lashes(skin, both, grown)
    assert painted[upper].max() < 0.3
    away = np.linalg.norm(both[:, None] - both[None, upper], axis=-1).min(1) > 0.004
    np.testing.assert_allclose(painted[away & (both[:, 0] > 0)], 0.7, atol=1e-4)
    np.testing.assert_array_equal(skin, 0.7)


def test_the_upper_lid_shades_the_eye() -> None:
    centre = np.array([[0.03, 0.034, 0.08], [-0.03, 0.034, 0.08]])
    rise = np.array([-0.5, 0.5])
    points = centre[:1] + 0.012 * np.stack((0 * rise, np.sin(rise), np.cos(rise)), -1)
    below, above = eye_colors(points, centre)
    assert above.mean() < 0.8 * below.mean()
