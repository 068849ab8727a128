"""Face models from the user's own files: what is read, refused, found on the mesh and named."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from face_model_fakes import (
    SHIFT_M,
    FakeHead,
    fake_head,
    flame_arrays,
    warp,
    write_bfm,
    write_flame_pickle,
)

from gsavatar import assets, cli, doctor
from gsavatar.errors import InputError
from gsavatar.morphable import MorphableModel
from gsavatar.morphable_arrays import read_arrays
from gsavatar.morphable_bfm import load_bfm
from gsavatar.morphable_clip import measure
from gsavatar.morphable_embed import Anchors, place_landmarks
from gsavatar.morphable_flame import ARRAYS, load_flame
from gsavatar.tracking_priors import EYELIDS, FACE_OVAL, LIPS
from gsavatar.tracking_shape import load_own
from gsavatar.types import FacePart

MM = 1000.0


@pytest.fixture(scope="module")
def head() -> FakeHead:
    return fake_head(eyes=True, mouth=True)


@pytest.fixture(scope="module")
def arrays(head: FakeHead) -> dict[str, np.ndarray]:
    return flame_arrays(head)


@pytest.fixture(scope="module")
def flame_file(arrays: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("flame") / "generic_model.pkl"
    write_flame_pickle(path, arrays)
    return path


def refusal(load: Callable[[Path], Any], path: Path) -> str:
    """The one sentence with which a file is refused."""
    with pytest.raises(InputError) as caught:
        load(path)
    text = str(caught.value)
    assert str(path.parent) in text and text.endswith(".") and "\n" not in text
    return text


def test_a_python_2_pickle_and_an_npz_hold_the_same_arrays(
    arrays: dict[str, np.ndarray], flame_file: Path, tmp_path: Path
) -> None:
    np.savez(tmp_path / "flame.npz", **arrays)  # type: ignore[arg-type]
    assert b"chumpy.ch" in flame_file.read_bytes()
    for path in (flame_file, tmp_path / "flame.npz"):
        found = read_arrays(path, ARRAYS)
        assert set(found) == set(ARRAYS)
        for name in ARRAYS:
            np.testing.assert_array_equal(found[name], arrays[name], err_msg=name)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_every_protocol_is_read(protocol: int, tmp_path: Path) -> None:
    content = {
        "a": np.arange(12.0).reshape(3, 4).T, "b": np.array([1, 2], ">i4"),
        "c": np.array([True, False]), "d": np.zeros((0, 3), np.float32), "e": np.float64(2.5),
    }  # fmt: skip
    path = tmp_path / "plain.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    found = read_arrays(path, tuple(content))
    for name, value in content.items():
        np.testing.assert_array_equal(found[name], value)
        assert found[name].dtype == np.asarray(value).dtype.newbyteorder("=")


class _Calls:
    """An object whose pickle calls a function when it is read."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize(
    "function", [os.system, eval, exec, getattr, np.load, pickle.loads, os.mkdir]
)
def test_a_pickle_that_wants_to_act_is_refused_before_it_does(
    function: Any, protocol: int, tmp_path: Path
) -> None:
    victim = tmp_path / "made_by_the_pickle"
    path = tmp_path / "generic_model.pkl"
    argument = str(victim) if function is os.mkdir else f"open({str(victim)!r}, 'w')"
    if function is os.system:
        argument = f"touch {victim}"
    path.write_bytes(pickle.dumps({"v_template": 1, "x": _Calls(function, argument)}, protocol))
    text = refusal(load_flame, path)
    assert "refused" in text and ".npz" in text and function.__name__ in text
    assert not victim.exists()


def test_a_raw_pickle_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "generic_model.pkl"
    victim = tmp_path / "made"
    for program in (
        b"cos\nsystem\n(S'touch %s'\ntR." % str(victim).encode(),
        b"(S'touch %s'\nios\nsystem\n." % str(victim).encode(),
        b"Pname\n.",
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.",
    ):  # fmt: skip
        path.write_bytes(program)
        assert "refused" in refusal(load_flame, path)
    assert not victim.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\x80\x02", b"\x82\x01.", b"not a pickle", b"\x80\x02]q\x00.", b"\x80\x02}q\x00.", 
        b"\x80\x04K\x01.",
        b"cnumpy\nndarray\n(K\x01K\x02tb.", b"\x80\x02}(X\x01\x00\x00\x00aK\x01u",
        b"cnumpy\ndtype\n(S'O8'\nI0\nI1\ntR.",
    ],
)  # fmt: skip
def test_a_damaged_pickle_is_one_sentence(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "generic_model.pkl"
    path.write_bytes(content)
    refusal(load_flame, path)


def test_object_arrays_are_refused(tmp_path: Path) -> None:
    hostile = {"f": np.array([os.system, "true"], dtype=object)}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(hostile, 2))
    np.savez(tmp_path / "b.npz", **hostile)  # type: ignore[arg-type]
    assert "system" in refusal(load_flame, tmp_path / "a.pkl")
    assert "plain arrays" in refusal(load_flame, tmp_path / "b.npz")
    hostile["f"] = np.array(["a", None], dtype=object)
    (tmp_path / "c.pkl").write_bytes(pickle.dumps(hostile, 2))
    assert "type 'O" in refusal(load_flame, tmp_path / "c.pkl")


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("shapedirs", lambda a: a[:, :, :150], r"shapedirs has shape .* expected .*400"),
        ("weights", lambda a: a[:, :4], "weights has shape"),
        ("J_regressor", lambda a: a.T, "J_regressor has shape"),
        ("posedirs", lambda a: a[..., :27], "posedirs has shape"),
        ("f", lambda a: a + 10**6, "names vertices outside"),
        ("v_template", lambda a: a * np.nan, "no numbers"),
        ("kintree_table", lambda a: a * 0, "jaw and two eyes"),
        ("v_template", lambda a: a * 1000.0, "no face was found"),
        ("v_template", lambda a: a[:, [1, 2, 0]], "no face was found"),
    ],
)  # fmt: skip
def test_what_is_no_flame_is_refused(
    name: str, change: Callable[[np.ndarray], np.ndarray], words: str,
    arrays: dict[str, np.ndarray], tmp_path: Path,
) -> None:  # fmt: skip
    import re

    path = tmp_path / "flame.npz"
    np.savez(path, **{**arrays, name: change(arrays[name])})  # type: ignore[arg-type]
    assert re.search(words, refusal(load_flame, path))


def test_a_missing_array_or_file_is_named(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    kept = {name: value for name, value in arrays.items() if name != "posedirs"}
    np.savez(tmp_path / "flame.npz", **kept)  # type: ignore[arg-type]
    assert "has no array posedirs" in refusal(load_flame, tmp_path / "flame.npz")
    refusal(load_flame, tmp_path / "absent.pkl")
    (tmp_path / "flame.obj").write_text("v 0 0 0")
    assert "neither .pkl nor .npz" in refusal(load_flame, tmp_path / "flame.obj")


def placed_error_mm(model: MorphableModel, head: FakeHead) -> np.ndarray:
    """Distance [468] of embedded landmarks from the true ones, on the fake's own mesh."""
    corners = head.vertices[model.embed_ids[:468]]
    found = (corners * model.embed_weights[:468, :, None]).sum(1)
    return np.linalg.norm(found - head.landmarks, axis=1) * MM


def assert_well_placed(model: MorphableModel, head: FakeHead) -> None:
    error = placed_error_mm(model, head)
    inner = np.setdiff1d(np.arange(468), FACE_OVAL)
    assert np.median(error[inner]) < 1.0
    assert np.percentile(error[inner], 95) < 4.0
    assert error[list(LIPS)].mean() < 1.5
    assert error[list(EYELIDS)].mean() < 1.5


def test_landmarks_are_found_on_flame_and_its_head_stands_in_the_head_frame(
    flame_file: Path, head: FakeHead
) -> None:
    model = load_flame(flame_file)
    assert_well_placed(model, head)
    count = len(head.vertices)
    own = model.neutral[:count] - model.neutral[:count].mean(0)
    size = np.linalg.norm(own) / np.linalg.norm(head.vertices - head.vertices.mean(0))
    assert abs(size - 1) < 1e-6  # a model keeps its own size
    back = model.neutral[:count] - (head.vertices - SHIFT_M)
    assert np.linalg.norm(back, axis=1).max() < 0.02
    balls = model.part == int(FacePart.EYEBALL)
    assert balls.sum() == (head.ball != 0).sum()
    assert (model.part[model.embed_ids[468:]] == int(FacePart.EYEBALL)).all()


@pytest.mark.parametrize("expressions", [False, True])
def test_landmarks_are_found_on_bfm(expressions: bool, tmp_path: Path) -> None:
    scan = fake_head(eyes=False, mouth=expressions, back=False)
    model = load_bfm(write_bfm(tmp_path, scan, expressions))
    assert_well_placed(model, scan)
    lips_open(model)


def lips_open(model: MorphableModel) -> None:
    """jawOpen parts the lips, and blinks shut the eye of their side only."""
    rest = model.at_landmarks(model.neutral)
    shapes = dict(zip(model.names, model.at_landmarks(model.expression), strict=True))
    opened = rest + shapes["jawOpen"]
    gap = opened[13, 1] - opened[14, 1]
    assert gap > rest[13, 1] - rest[14, 1] + 0.02
    assert np.abs(shapes["jawOpen"][[10, 6, 33, 263]]).max() < 2e-3
    for side, (up, down), (other, _) in (
        ("Left", (386, 374), (159, 145)), ("Right", (159, 145), (386, 374)),
    ):  # fmt: skip
        shape = shapes[f"eyeBlink{side}"]
        height = rest[up, 1] - rest[down, 1]
        assert (rest + shape)[up, 1] - (rest + shape)[down, 1] < 0.4 * height
        assert abs(shape[other, 1]) < 0.1 * height


def test_names_do_what_they_say(flame_file: Path) -> None:
    model = load_flame(flame_file)
    lips_open(model)
    rest = model.at_landmarks(model.neutral)
    shapes = dict(zip(model.names, model.at_landmarks(model.expression), strict=True))
    from gsavatar.morphable_clip import CLIP_NAMES

    for name in ("mouthPucker", "mouthSmileLeft", "mouthSmileRight", "mouthLeft", "mouthClose",
                 "browInnerUp", "browDownLeft", "browOuterUpRight", "eyeLookUpLeft"):  # fmt: skip
        value = measure(rest, 0.5 * shapes[name][None])[0, CLIP_NAMES.index(name)]
        assert 0.25 < value < 0.75, (name, value)
    assert shapes["jawLeft"][152, 0] > 0.004 and shapes["jawRight"][152, 0] < -0.004
    assert shapes["jawForward"][152, 2] > 0.003
    assert shapes["mouthFunnel"][[13, 14], 2].min() > 0.003
    assert shapes["mouthFrownLeft"][291, 1] < -0.004 and abs(shapes["mouthFrownLeft"][61, 1]) < 2e-3
    both = shapes["mouthUpperUpLeft"] + shapes["mouthUpperUpRight"]
    assert both[13, 1] > 0.004 and shapes["mouthUpperUpLeft"][409, 1] > 0.003
    assert shapes["eyeWideLeft"][386, 1] > 0.001
    teeth = model.part == int(FacePart.LOWER_TEETH)
    left = model.expression[model.names.index("jawLeft")]
    assert left[teeth, 0].mean() > 0.003


def test_added_parts_follow_the_persons_identity(flame_file: Path) -> None:
    model = load_flame(flame_file)
    teeth = model.part == int(FacePart.UPPER_TEETH)
    seen = model.at_landmarks(model.identity)[:10, list(LIPS)].mean(1)
    moved = model.identity[:10][:, teeth].mean(1)
    assert np.corrcoef(seen.ravel(), moved.ravel())[0, 1] > 0.9
    assert len(model.identity) == 100 and np.abs(model.identity[20:]).max() == 0


def test_flames_own_table_of_landmarks_is_used(head: FakeHead, tmp_path: Path) -> None:
    np.savez(tmp_path / "flame.npz", **flame_arrays(head))  # type: ignore[arg-type]
    chosen = np.array([*LIPS, 33, 133, 362, 263])
    gap = np.linalg.norm(head.vertices[:, None] - head.landmarks[chosen], axis=-1)
    face = [int(np.flatnonzero((head.faces == v).any(1))[0]) for v in gap.argmin(0)]
    weights = (head.faces[face] == gap.argmin(0)[:, None]).astype(float)
    beside = tmp_path / "mediapipe_landmark_embedding.npz"
    np.savez(beside, lmk_face_idx=face, lmk_b_coords=weights, landmark_indices=chosen)
    error = placed_error_mm(load_flame(tmp_path / "flame.npz"), head)
    assert error[chosen].max() < 1.0
    load_flame.cache_clear()
    np.savez(beside, lmk_face_idx=face, lmk_b_coords=weights[:3], landmark_indices=chosen)
    assert "remove it" in refusal(load_flame, tmp_path / "flame.npz")


def test_the_canonical_face_is_found_on_ict_near_its_known_places() -> None:
    if not (assets.available("ict_facekit") and assets.available("mediapipe468_to_ict")):
        pytest.skip("ICT-FaceKit's file is not here: set GSAVATAR_ASSETS to a folder with it")
    from gsavatar.morphable_ict import load_ict

    model = load_ict()
    solid = np.isin(model.part, [int(FacePart.SKIN), int(FacePart.LIPS), int(FacePart.SCALP)])
    faces = model.faces[solid[model.faces].all(1)]
    rest = model.rest(np.random.default_rng(1).normal(0, 1, 20))
    placed = place_landmarks(Path("ict"), warp(rest), faces, Anchors.none())
    found = (rest[placed.ids] * placed.weights[..., None]).sum(1)
    error = np.linalg.norm(found - model.at_landmarks(rest)[:468], axis=1) * MM
    assert np.median(error) < 3.0  # the known places are themselves good to about 2.6 mm
    assert error[[*LIPS, *EYELIDS]].mean() < 3.0


def ict_as_flame() -> dict[str, np.ndarray]:
    """ICT-FaceKit as a FLAME file would hold it: its expressions mixed until none has a name."""
    from gsavatar.morphable_ict import load_ict

    model = load_ict()
    kept = (model.part[model.faces] <= int(FacePart.NECK)).all(1)  # no mouth, no lashes
    used = np.unique(model.faces[kept])
    place = np.full(len(model.part), -1)
    place[used] = np.arange(len(used))
    rest, ball = model.neutral[used], model.part[used] == int(FacePart.EYEBALL)
    moving = [k for k, n in enumerate(model.names) if not n.startswith(("eyeLook", "jaw"))]
    mix = np.linalg.qr(np.random.default_rng(0).normal(size=(len(moving), len(moving))))[0]
    shapedirs = np.zeros((len(used), 3, 400), np.float32)
    shapedirs[:, :, :100] = model.identity[:, used].transpose(1, 2, 0)
    shown = np.where(ball[:, None], 0.0, model.expression[moving][:, used])
    shapedirs[:, :, 300 : 300 + len(moving)] = np.einsum("es,svc->vce", 0.4 * mix, shown)
    jaw = np.clip(-model.expression[model.names.index("jawOpen"), used, 1] / 0.025, 0.0, 1.0)
    weights = np.zeros((len(used), 5))
    weights[:, 2] = np.where(ball, 0.0, jaw)
    weights[ball & (rest[:, 0] > 0), 3] = weights[ball & (rest[:, 0] < 0), 4] = 1.0
    weights[:, 0] = 1 - weights.sum(1)
    points = model.at_landmarks(model.neutral)
    regressor = np.zeros((5, len(used)))
    regressor[:2, 0] = 1.0
    for row, sign in ((234, -1), (454, 1)):
        regressor[2, np.argmin(np.linalg.norm(rest - points[row], axis=1))] = 0.5
        own = ball & (rest[:, 0] * sign > 0)
        regressor[3 if sign > 0 else 4, own] = 1 / own.sum()
    return {
        "v_template": rest + SHIFT_M, "shapedirs": shapedirs, "weights": weights,
        "posedirs": np.zeros((len(used), 3, 36), np.float32), "J_regressor": regressor,
        "kintree_table": np.array([[2**32 - 1, 0, 1, 1, 1], [0, 1, 2, 3, 4]], np.uint32),
        "f": place[model.faces[kept]],
    }  # fmt: skip


def test_a_model_whose_names_were_taken_away_gets_them_back(tmp_path: Path) -> None:
    if not (assets.available("ict_facekit") and assets.available("mediapipe468_to_ict")):
        pytest.skip("ICT-FaceKit's file is not here: set GSAVATAR_ASSETS to a folder with it")
    from gsavatar.morphable_ict import load_ict

    np.savez(tmp_path / "flame.npz", **ict_as_flame())  # type: ignore[arg-type]
    given, true = load_flame(tmp_path / "flame.npz"), load_ict()
    shapes = given.at_landmarks(given.expression)[:, :468]
    expected = true.at_landmarks(true.expression)[:, :468]
    agreement = {}
    for name, shape in zip(given.names, shapes, strict=True):
        if not name.startswith("eyeLook"):  # FLAME's lids do not follow the eyes
            other = expected[true.names.index(name)]
            norms = np.linalg.norm(shape) * np.linalg.norm(other)
            agreement[name] = float((shape * other).sum() / norms)
    assert min(agreement.values()) > 0.5, agreement
    assert np.median(list(agreement.values())) > 0.8, agreement


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "BFM_exp_idx.mat").unlink(), "BFM_exp_idx.mat: is missing"),
        (lambda folder: (folder / "std_exp.txt").unlink(), "std_exp.txt: is missing"),
        (lambda folder: (folder / "std_exp.txt").write_text("1 2"), "belong together"),
        (lambda folder: (folder / "Exp_Pca.bin").write_bytes(b"\x05\0\0\0abc"), "5 expressions"),
        (lambda folder: (folder / "01_MorphableModel.mat").write_bytes(b"x" * 200), "no Matlab"),
        (lambda folder: (folder / "01_MorphableModel.mat").unlink(), "no such file"),
    ],
)
def test_what_is_no_bfm_is_refused(
    spoil: Callable[[Path], object], words: str, tmp_path: Path
) -> None:
    path = write_bfm(tmp_path, fake_head(eyes=False, mouth=True, back=False), True)
    load_bfm.cache_clear()
    spoil(tmp_path)
    assert words in refusal(load_bfm, path)


def test_bfm_arrays_of_wrong_shape_are_refused(tmp_path: Path) -> None:
    from scipy.io import loadmat, savemat

    path = write_bfm(tmp_path, fake_head(eyes=False, mouth=True, back=False), False)
    good = {k: v for k, v in loadmat(path).items() if not k.startswith("_")}
    for name, value, words in (
        ("shapePC", good["shapePC"][:-3], "shapePC has shape"), ("tl", good["tl"] - 1, "tl should"),
        ("shapeMU", good["shapeMU"][:-1], "shapeMU has"), ("shapeEV", "ten", "no numbers"),
    ):  # fmt: skip
        savemat(path, {**good, name: value})
        load_bfm.cache_clear()
        assert words in refusal(load_bfm, path)


def test_the_users_file_is_found_or_its_source_named(
    flame_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GSAVATAR_ASSETS", str(tmp_path))
    with pytest.raises(InputError, match=r"flame\.is\.tue\.mpg\.de.*--face-model-file"):
        load_own("flame", None)
    with pytest.raises(InputError, match="no such file"):
        load_own("bfm", tmp_path / "absent.mat")
    with pytest.raises(InputError, match="clip reads no file"):
        load_own("clip", flame_file)
    assert load_own("clip", None) is None
    (tmp_path / "generic_model.pkl").write_bytes(flame_file.read_bytes())
    found = load_own("flame", None)
    assert found is not None and found.provider == "flame"
    assert str(tmp_path / "generic_model.pkl") in assets.status()
    face = {f.name: f for f in doctor._models()}["face model"]
    assert "generic_model.pkl" in face.text


def test_status_names_the_licences() -> None:
    shown = assets.status()
    assert "research only" in shown and "https://faces.dmi.unibas.ch/bfm" in shown


def test_the_command_line_refuses_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from importlib import resources

    sample = str(resources.files("gsavatar.datasets") / "sample" / "speaker.mp4")
    out = tmp_path / "run"
    for options in (
        ["--face-model", "flame", "--face-model-file", str(tmp_path / "no.pkl")],
        ["--face-model", "clip", "--face-model-file", sample],
    ):
        capsys.readouterr()
        assert cli.main(["track", sample, "--out", str(out), *options]) == 2
        said = capsys.readouterr().err
        assert said.splitlines()[-1].startswith("error: ") and "--face-model" in said
        assert "look through the video" not in said
        assert not (out / "clip").exists() and not (out / "config.toml").exists()
