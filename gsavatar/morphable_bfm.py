"""The Basel Face Model 2009 from the user's own file: who a face is; how it moves is added.

``01_MorphableModel.mat`` holds identity only, in micrometres, +y up and +z out of the face. If
``Exp_Pca.bin`` and its index ``BFM_exp_idx.mat`` lie beside it (as Deep3DFaceReconstruction's users
have them), names are combinations of those expressions, else they are drawn (``morphable_named``).
Eyeballs, the inside of the mouth, the back of the head and a neck are added.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np

from gsavatar.errors import InputError
from gsavatar.morphable import Floats, Ints, MorphableModel
from gsavatar.morphable_assembly import Raw, assemble
from gsavatar.morphable_embed import Anchors

MICROMETRES = 1e-6
ARRAYS = ("shapeMU", "shapePC", "shapeEV", "tl")
IDENTITY_USED = 80
"""As many as its users fit; the later ones are below what landmarks can tell."""
EXPRESSIONS, EXPRESSION_INDEX, EXPRESSION_SCALE = "Exp_Pca.bin", "BFM_exp_idx.mat", "std_exp.txt"


@functools.lru_cache(maxsize=1)
def load_bfm(path: Path) -> MorphableModel:
    """The model in a BFM-2009 file; raises ``InputError`` if it is missing or something else."""
    mat = _read_mat(path, ARRAYS)
    mean = np.asarray(mat["shapeMU"], np.float64).ravel()
    spread = np.asarray(mat["shapeEV"], np.float64).ravel()
    shapes, faces = np.asarray(mat["shapePC"]), np.asarray(mat["tl"])
    count = len(mean) // 3
    if len(mean) != 3 * count or count < 100:
        raise InputError(f"{path}: shapeMU has {len(mean)} values; use the published BFM-2009.")
    if shapes.shape != (3 * count, len(spread)):
        raise InputError(
            f"{path}: shapePC has shape {shapes.shape}, expected {(3 * count, len(spread))}; use "
            "the published BFM-2009."
        )
    if faces.ndim != 2 or faces.shape[1] != 3 or not 1 <= faces.min() <= faces.max() <= count:
        raise InputError(
            f"{path}: tl should name vertices 1-{count} in threes, got shape {faces.shape}; use "
            "the published BFM-2009."
        )
    if not (np.isfinite(mean).all() and np.isfinite(shapes).all() and np.isfinite(spread).all()):
        raise InputError(f"{path}: holds values that are no numbers; get the file again.")
    used = min(IDENTITY_USED, len(spread))
    identity = (shapes[:, :used] * (spread[:used] * MICROMETRES)).T.reshape(used, count, 3)
    return assemble(
        "bfm",
        Raw(
            path, mean.reshape(count, 3) * MICROMETRES, faces.astype(np.int64) - 1,
            identity.astype(np.float32), _expressions(path.parent, count), {}, None, None,
            Anchors.none(), ("eyeballs", "mouth", "skull", "neck"),
        ),
    )  # fmt: skip


def _read_mat(path: Path, names: tuple[str, ...]) -> dict[str, Any]:
    """Arrays of a Matlab file up to version 7."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        found: dict[str, Any] = loadmat(str(path), variable_names=list(names), appendmat=False)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; check the path.") from None
    except (MatReadError, ValueError, TypeError, OSError, NotImplementedError, EOFError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{path}: is no Matlab file that can be read ({reason}); use the published file."
        ) from None
    for name in names:
        if name not in found:
            raise InputError(f"{path}: has no array {name}; use the published file.")
        if np.asarray(found[name]).dtype.kind not in "fiu":
            raise InputError(f"{path}: {name} holds no numbers; use the published file.")
    return found


def _expressions(folder: Path, count: int) -> Floats:
    """Expression directions [E, V, 3] in metres; none if the file does not lie in the folder.

    ``Exp_Pca.bin`` is an int32 E, then little-endian float32: a mean of 3 M values and E directions
    of 3 M values each, in micrometres, for M vertices; the index says which of the model's they
    are, ``std_exp.txt`` how far each direction reaches.
    """
    path = folder / EXPRESSIONS
    if not path.is_file():
        return np.zeros((0, count, 3), np.float32)
    raw = path.read_bytes()
    directions = int(np.frombuffer(raw[:4], "<i4")[0]) if len(raw) >= 4 else 0
    per_vertex = 12 * (1 + directions)
    if not 0 < directions <= 1000 or (len(raw) - 4) % per_vertex:
        raise InputError(
            f"{path}: {len(raw)} bytes do not hold {directions} expressions; get the file again, "
            "or remove it."
        )
    moved = (len(raw) - 4) // per_vertex
    values = np.frombuffer(raw, "<f4", offset=4 + 12 * moved).reshape(directions, moved, 3)
    rows = _index(folder, moved, count)
    reach = _reach(folder, directions)
    basis = np.zeros((directions, count, 3), np.float32)
    basis[:, rows] = values * (reach * MICROMETRES)[:, None, None]
    if not np.isfinite(basis).all():
        raise InputError(f"{path}: holds values that are no numbers; get the file again.")
    return basis


def _index(folder: Path, moved: int, count: int) -> Ints:
    """Which of the model's vertices [M] the expressions move."""
    if moved == count:
        return np.arange(count)
    path = folder / EXPRESSION_INDEX
    if not path.is_file():
        raise InputError(
            f"{path}: is missing, and {EXPRESSIONS} moves {moved} of {count} vertices without "
            f"saying which; put it beside, or remove {EXPRESSIONS}."
        )
    rows = np.asarray(_read_mat(path, ("trimIndex",))["trimIndex"]).ravel().astype(np.int64) - 1
    if len(rows) != moved or rows.min() < 0 or rows.max() >= count:
        raise InputError(
            f"{path}: names {len(rows)} vertices, {EXPRESSIONS} moves {moved} of {count}; use "
            "files that belong together."
        )
    return rows


def _reach(folder: Path, directions: int) -> Floats:
    """One standard deviation [E] of each direction."""
    path = folder / EXPRESSION_SCALE
    if not path.is_file():
        raise InputError(
            f"{path}: is missing, and says how far the directions of {EXPRESSIONS} reach; put it "
            f"beside, or remove {EXPRESSIONS}."
        )
    try:
        reach = np.loadtxt(path, dtype=np.float64).ravel()
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: cannot be read ({error}); get the file again.") from None
    if len(reach) != directions or not np.isfinite(reach).all():
        raise InputError(
            f"{path}: has {len(reach)} values, {EXPRESSIONS} has {directions} directions; use "
            "files that belong together."
        )
    return reach
