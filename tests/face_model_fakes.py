"""Face model files as FLAME and BFM-2009 are published, of a head that the tests made up.

The head is the canonical face with eyeballs, skull and neck, finer than the landmarks, warped,
shifted and with its vertices shuffled, so that nothing can be found by counting.
"""

from __future__ import annotations

import pickle
import struct
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gsavatar.morphable import MorphableModel, canonical_face
from gsavatar.morphable_clip import jaw_weight, learn_clip_model
from gsavatar.morphable_head import EYE_RINGS_OF, INNER_RING
from gsavatar.tracking_solve import Lens, Poses, project
from gsavatar.types import FacePart

SHIFT_M = np.array([0.012, -0.14, 0.035])
SHOWN = ("jawOpen", "mouthPucker", "mouthSmileLeft", "mouthSmileRight", "mouthLeft", "mouthClose",
         "mouthUpperUp", "mouthLowerDown", "browInnerUp", "browDownLeft", "browDownRight",
         "browOuterUpLeft", "browOuterUpRight")  # fmt: skip
"""What the made-up head's expressions are mixed of; blinks are not among them, as in FLAME."""


@dataclass(frozen=True)
class FakeHead:
    """A mesh whose landmarks are known."""

    vertices: np.ndarray  # [V, 3] metres
    faces: np.ndarray  # [F, 3]
    landmarks: np.ndarray  # [468, 3], on the mesh
    identity: np.ndarray  # [I, V, 3]
    shown: np.ndarray  # [S, V, 3], the shapes SHOWN
    jaw: np.ndarray  # [V], 0-1
    ball: np.ndarray  # [V], -1 right eye, 1 left eye, 0 elsewhere
    neck: np.ndarray  # [V] bool
    ears: np.ndarray  # [2], vertices


def still_clip_model() -> MorphableModel:
    """The clip's model of an average face that does not move."""
    base, _ = canonical_face()
    eyes = [base[[133, 33]].mean(0), base[[362, 263]].mean(0)]
    upright = np.diag([1.0, -1.0, -1.0])
    pose = Poses(np.tile(upright, (6, 1, 1)), np.tile([0.0, 0.0, 0.9], (6, 1)))
    lens = Lens(1200.0, 256.0, 256.0)
    return learn_clip_model(project(pose, np.concatenate((base, eyes))[None], lens)[0], lens)


def warp(points: np.ndarray) -> np.ndarray:
    """A smooth change of shape of about 4 mm that keeps the sides alike, and the fake's place."""
    x, y, z = points.T
    moved = np.stack(
        (0.06 * x + 0.002 * np.sin(40 * x), 0.003 * np.sin(25 * y + 1) + 0.03 * z,
         0.003 * np.cos(30 * y) - 0.003 * np.cos(45 * x)), 1,
    )  # fmt: skip
    return np.asarray(points + moved + SHIFT_M)


def fake_head(eyes: bool, mouth: bool, back: bool = True) -> FakeHead:
    """The made-up head, with or without eyeballs, a slit for a mouth, and the back of the head."""
    model = still_clip_model()
    part = model.part
    keep = np.isin(part, [int(FacePart.SKIN), int(FacePart.LIPS)])
    outer = np.isin(part, [int(FacePart.SCALP), int(FacePart.NECK)])
    keep |= outer if back else outer & (model.neutral[:, 2] > 0.0)
    faces = model.faces[keep[model.faces].all(1)]
    everything = canonical_face()[1]
    holes = [np.isin(everything, ring).all(1) for ring in EYE_RINGS_OF]
    extra = everything[np.any(holes, axis=0)] if not eyes else np.zeros((0, 3), np.int64)
    if not mouth:
        extra = np.concatenate((extra, everything[np.isin(everything, INNER_RING).all(1)]))
    faces = np.concatenate((faces, extra))
    jaw = np.zeros(len(part))
    jaw[:468] = jaw_weight(model.at_landmarks(model.neutral))[:468]
    rows = [model.names.index(name) for name in SHOWN]
    values = np.concatenate(
        (model.neutral, jaw[:, None], (part == int(FacePart.NECK))[:, None],
         model.expression[rows].transpose(1, 0, 2).reshape(len(part), -1)), axis=1,
    )  # fmt: skip
    values, faces = _finer(values, faces)
    ball = np.zeros(len(values))
    if eyes:
        for side, row in ((-1.0, 468), (1.0, 469)):
            pole = model.neutral[model.embed_ids[row, 0]]
            sphere, triangles = _sphere(pole - [0.0, 0.0, 0.012], 0.012)
            faces = np.concatenate((faces, triangles + len(values)))
            padded = np.zeros((len(sphere), values.shape[1]))
            padded[:, :3] = sphere
            values = np.concatenate((values, padded))
            ball = np.concatenate((ball, np.full(len(sphere), side)))
    used = np.unique(faces)
    order = np.random.default_rng(4).permutation(used)
    place = np.full(len(values), -1)
    place[order] = np.arange(len(order))
    values, ball, faces = values[order], ball[order], place[faces]
    vertices = warp(values[:, :3])
    return FakeHead(
        vertices, faces, warp(model.at_landmarks(model.neutral)[:468]), _people(vertices),
        values[:, 5:].reshape(len(values), len(SHOWN), 3).transpose(1, 0, 2), values[:, 3], ball,
        values[:, 4] > 0.5, place[[234, 454]],
    )  # fmt: skip


def _finer(values: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every triangle cut in four at the middles of its sides; values [V, C] interpolated."""
    sides = np.sort(faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1)
    unique, which = np.unique(sides, axis=0, return_inverse=True)
    middle = which.reshape(-1, 3) + len(values)
    a, b, c = faces.T
    ab, bc, ca = middle.T
    cut = np.concatenate(
        [np.stack(t, 1) for t in ((a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca))]
    )
    return np.concatenate((values, values[unique].mean(1))), cut


def _sphere(middle: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    from scipy.spatial import ConvexHull

    spin = np.arange(200) * 2.399963
    z = np.linspace(1, -1, 200)
    ring = np.sqrt(1 - z**2)
    points = np.stack((ring * np.cos(spin), ring * np.sin(spin), z), 1)
    faces = ConvexHull(points).simplices.astype(np.int64)
    a, b, c = (points[faces[:, i]] for i in range(3))
    inward = (np.cross(b - a, c - a) * a).sum(1) < 0
    faces[inward] = faces[inward][:, ::-1]
    return middle + points * radius, faces


def _people(vertices: np.ndarray) -> np.ndarray:
    """Ten smooth ways in which people differ, about 2 mm each."""
    rng = np.random.default_rng(7)
    at = (vertices - vertices.mean(0))[None] @ rng.normal(0, 25, (10, 3, 3))
    return np.asarray(0.002 * np.sin(at + rng.uniform(0, 6, (10, 1, 3))))


def flame_arrays(head: FakeHead) -> dict[str, np.ndarray]:
    """The arrays of a FLAME file of this head."""
    count = len(head.vertices)
    shapedirs = np.zeros((count, 3, 400), np.float32)
    shapedirs[:, :, :10] = head.identity.transpose(1, 2, 0)
    mix = np.random.default_rng(1).normal(0, 0.4, (40, len(SHOWN)))
    shapedirs[:, :, 300:340] = np.einsum("es,svc->vce", mix, head.shown)
    weights = np.zeros((count, 5))
    weights[:, 2] = head.jaw
    weights[head.ball > 0, 3], weights[head.ball < 0, 4] = 1.0, 1.0
    weights[:, 0] = 1 - weights.sum(1)
    regressor = np.zeros((5, count))
    regressor[0, head.neck] = regressor[1, head.neck] = 1.0
    regressor[2, head.ears] = 1.0
    regressor[3, head.ball > 0] = regressor[4, head.ball < 0] = 1.0
    return {
        "v_template": head.vertices, "shapedirs": shapedirs, "posedirs": np.zeros((count, 3, 36)),
        "J_regressor": regressor / regressor.sum(1, keepdims=True), "weights": weights,
        "kintree_table": np.array([[2**32 - 1, 0, 1, 1, 1], [0, 1, 2, 3, 4]], np.uint32),
        "f": head.faces.astype(np.uint32),
    }  # fmt: skip


class _Python2Pickler(pickle._Pickler):  # type: ignore[name-defined]
    """Writes bytes as Python 2 wrote its strings."""

    def save(self, obj: Any, save_persistent_id: bool = True) -> Any:
        if isinstance(obj, bytes):
            return self.write(b"T" + struct.pack("<i", len(obj)) + obj)
        return super().save(obj, save_persistent_id)


def write_flame_pickle(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """A file as FLAME's: chumpy and scipy objects, written by Python 2."""
    import io

    from scipy.sparse import csc_matrix

    chumpy, ch = types.ModuleType("chumpy"), types.ModuleType("chumpy.ch")

    class Ch:
        def __init__(self, x: Any) -> None:
            self.x = x
            self._dirty_vars = {1}

    Ch.__module__, Ch.__qualname__ = "chumpy.ch", "Ch"
    ch.Ch = Ch  # type: ignore[attr-defined]
    content: dict[str, Any] = dict(arrays)
    for name in ("v_template", "shapedirs"):
        content[name] = Ch(content[name])
    content["J_regressor"] = csc_matrix(content["J_regressor"])
    content["weights"] = np.asfortranarray(content["weights"])
    content["bs_style"] = "lbs"
    buffer = io.BytesIO()
    sys.modules |= {"chumpy": chumpy, "chumpy.ch": ch}
    try:
        _Python2Pickler(buffer, protocol=2).dump(content)
    finally:
        del sys.modules["chumpy"], sys.modules["chumpy.ch"]
    data = buffer.getvalue()
    for new, old in ((b"numpy._core.", b"numpy.core."), (b"sparse._csc", b"sparse.csc")):
        data = data.replace(new, old)
    path.write_bytes(data)


def write_bfm(folder: Path, head: FakeHead, expressions: bool) -> Path:
    """``01_MorphableModel.mat`` of this head, and its expressions beside it."""
    from scipy.io import savemat

    count = len(head.vertices)
    flat = head.identity.reshape(len(head.identity), -1).T * 1e6
    size = np.linalg.norm(flat, axis=0)
    path = folder / "01_MorphableModel.mat"
    savemat(path, {
        "shapeMU": head.vertices.reshape(-1, 1) * 1e6, "shapePC": flat / size,
        "shapeEV": size[:, None], "tl": head.faces[:, ::-1].astype(np.float64) + 1,
    })  # fmt: skip
    if expressions:
        moved = np.arange(count - 40)  # the file's expressions are of a part of the mesh
        mix = np.random.default_rng(1).normal(0, 0.4, (30, len(SHOWN)))
        basis = np.einsum("es,svc->evc", mix, head.shown)[:, moved] * 1e6 / 50.0
        with (folder / "Exp_Pca.bin").open("wb") as file:
            np.array([30], "<i4").tofile(file)
            np.zeros(3 * len(moved), "<f4").tofile(file)
            basis.astype("<f4").tofile(file)
        savemat(folder / "BFM_exp_idx.mat", {"trimIndex": moved[:, None] + 1.0})
        np.savetxt(folder / "std_exp.txt", np.full((1, 30), 50.0))
    return path
