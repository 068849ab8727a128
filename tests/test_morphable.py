"""Face models: names, places and motions that everything downstream relies on."""

from __future__ import annotations

import numpy as np
import pytest
from face_model_fakes import fake_head, flame_arrays, still_clip_model, write_bfm

from gsavatar import assets
from gsavatar.morphable import (
    FITTED_POINTS,
    MorphableModel,
    choose_provider,
    inside_polygon,
)
from gsavatar.morphable_bfm import load_bfm
from gsavatar.morphable_clip import CLIP_NAMES, measure
from gsavatar.morphable_flame import load_flame
from gsavatar.types import ARKIT_NAMES, FacePart

LEFT_EYE, RIGHT_EYE, CHIN, FOREHEAD, NOSE = 263, 33, 152, 10, 1


@pytest.fixture(scope="module", params=["clip", "ict", "flame", "bfm"])
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> MorphableModel:
    if request.param == "clip":
        return still_clip_model()
    if request.param == "flame":
        path = tmp_path_factory.mktemp("flame") / "flame.npz"
        np.savez(path, **flame_arrays(fake_head(eyes=True, mouth=True)))  # type: ignore[arg-type]
        return load_flame(path)
    if request.param == "bfm":
        head = fake_head(eyes=False, mouth=False, back=False)
        return load_bfm(write_bfm(tmp_path_factory.mktemp("bfm"), head, expressions=False))
    if not (assets.available("ict_facekit") and assets.available("mediapipe468_to_ict")):
        pytest.skip("ICT-FaceKit's file is not here: set GSAVATAR_ASSETS to a folder with it")
    from gsavatar.morphable_ict import load_ict

    return load_ict()


def test_shapes_agree_and_are_finite(model: MorphableModel) -> None:
    count = len(model.neutral)
    assert model.expression.shape == (len(model.names), count, 3)
    assert model.identity.shape[1:] == (count, 3)
    assert model.part.shape == (count,)
    assert model.faces.min() >= 0
    assert model.faces.max() < count
    assert model.embed_ids.shape == (len(FITTED_POINTS), 3)
    np.testing.assert_allclose(model.embed_weights.sum(1), 1.0, atol=1e-5)
    for values in (model.neutral, model.expression):
        assert np.isfinite(values).all()


def test_names_are_arkits_and_few(model: MorphableModel) -> None:
    assert len(set(model.names)) == len(model.names) <= 64
    split = {"mouthUpperUp", "mouthLowerDown"}  # the clip's model does not tell their sides apart
    assert set(model.names) <= set(ARKIT_NAMES) | split


def test_the_head_stands_in_the_head_frame_in_metres(model: MorphableModel) -> None:
    points = model.at_landmarks(model.neutral)
    assert points[LEFT_EYE, 0] > 0.02 > -0.02 > points[RIGHT_EYE, 0]
    assert points[FOREHEAD, 1] > points[CHIN, 1] + 0.1
    assert points[NOSE, 2] > points[LEFT_EYE, 2] + 0.02
    assert 0.11 < np.linalg.norm(points[454] - points[234]) < 0.18
    head = model.neutral[model.part != int(FacePart.NECK)]
    assert 0.15 < np.ptp(head[:, 2]) < 0.28


def test_every_part_is_there_and_in_its_place(model: MorphableModel) -> None:
    def middle(part: FacePart) -> np.ndarray:
        return np.asarray(model.neutral[model.part == int(part)].mean(0))

    present = {FacePart(int(p)) for p in np.unique(model.part)}
    assert present >= set(FacePart) - {FacePart.LASH}
    assert middle(FacePart.UPPER_TEETH)[1] > middle(FacePart.LOWER_TEETH)[1]
    assert middle(FacePart.UPPER_TEETH)[2] < middle(FacePart.LIPS)[2]
    assert middle(FacePart.SOCKET)[2] < middle(FacePart.LIPS)[2]
    assert middle(FacePart.NECK)[1] < middle(FacePart.LIPS)[1] < middle(FacePart.SCALP)[1]
    assert abs(middle(FacePart.EYEBALL)[0]) < 0.002


def test_skin_triangles_face_outwards(model: MorphableModel) -> None:
    skin = model.faces[(model.part[model.faces] == int(FacePart.SKIN)).all(1)]
    a, b, c = (model.neutral[skin[:, i]] for i in range(3))
    normal = np.cross(b - a, c - a)
    front = (a[:, 2] > 0.08) & (np.abs(normal[:, 2]) > 0.7 * np.linalg.norm(normal, axis=1))
    assert (normal[front, 2] > 0).mean() > 0.95


def test_opening_the_jaw_moves_what_hangs_on_it(model: MorphableModel) -> None:
    moved = model.expression[model.names.index("jawOpen")]

    def drop(part: FacePart) -> float:
        return float(-moved[model.part == int(part), 1].mean())

    assert drop(FacePart.LOWER_TEETH) > 0.01
    assert abs(drop(FacePart.UPPER_TEETH)) < 1e-4
    points = model.at_landmarks(model.expression)[model.names.index("jawOpen")]
    assert -points[14, 1] > 0.015
    assert abs(points[13, 1]) < 0.005
    assert np.abs(points[FOREHEAD]).max() < 1e-3


@pytest.mark.parametrize(
    ("name", "side", "axis", "sign"),
    [
        ("eyeLookOutLeft", 1, 0, 1), ("eyeLookInLeft", 1, 0, -1), ("eyeLookInRight", -1, 0, 1),
        ("eyeLookOutRight", -1, 0, -1), ("eyeLookUpLeft", 1, 1, 1), ("eyeLookDownRight", -1, 1, -1),
    ],
)  # fmt: skip
def test_eyeballs_turn_towards_where_they_look(
    model: MorphableModel, name: str, side: int, axis: int, sign: int
) -> None:
    row = 469 if side > 0 else 468
    moved = model.at_landmarks(model.expression)[model.names.index(name)]
    assert sign * moved[row, axis] > 0.003
    assert np.abs(moved[937 - row]).max() < 1e-3  # the other iris


def test_blinks_close_the_eye_of_their_side(model: MorphableModel) -> None:
    rest = model.at_landmarks(model.neutral)
    for side, (up, down) in {"Left": (386, 374), "Right": (159, 145)}.items():
        moved = rest + model.at_landmarks(model.expression)[model.names.index(f"eyeBlink{side}")]
        gap = rest[up, 1] - rest[down, 1]
        assert moved[up, 1] - moved[down, 1] < 0.5 * gap


def test_the_clips_measures_read_back_what_was_done() -> None:
    model = still_clip_model()
    rest = model.at_landmarks(model.neutral)
    shapes = model.at_landmarks(model.expression)
    for name in ("jawOpen", "mouthPucker", "mouthSmileLeft", "eyeBlinkRight", "browInnerUp",
                 "mouthLeft", "eyeLookUpLeft"):  # fmt: skip
        k = CLIP_NAMES.index(name)
        value = measure(rest, 0.5 * shapes[k][None])[0, k]
        assert 0.25 < value < 0.75, (name, value)


def test_a_face_that_never_moved_keeps_the_drawn_shapes() -> None:
    model = still_clip_model()
    jaw = model.at_landmarks(model.expression)[CLIP_NAMES.index("jawOpen")]
    assert -jaw[CHIN, 1] > 0.02
    assert jaw[CHIN, 2] < -0.005  # a hinge behind the face: the chin goes back as it drops


def test_auto_takes_ict_only_when_its_file_is_there(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(assets, "available", lambda name: False)
    assert choose_provider("auto") == "clip" and "learned from the clip" in caplog.text
    monkeypatch.setattr(assets, "available", lambda name: True)
    assert choose_provider("auto") == "ict"
    with pytest.raises(ValueError, match="unknown"):
        choose_provider("plaster")


def test_inside_polygon() -> None:
    square = np.array([[0.0, 0.0], [2.0, 0.0], [2.0, 2.0], [0.0, 2.0]])
    points = np.array([[1.0, 1.0], [3.0, 1.0], [0.1, 1.9], [-0.1, 0.5]])
    assert inside_polygon(points, square).tolist() == [True, False, True, False]
