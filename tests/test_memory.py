"""Rows on disk: the same values as in memory, and the same fit from them."""

from __future__ import annotations

import errno
import gc
import importlib
import sys
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from gsavatar.memory import RowsOnDisk, import_apart
from gsavatar.morphable import FITTED_POINTS, canonical_face
from gsavatar.tracking_observations import observed
from gsavatar.tracking_priors import RIGID_WEIGHT
from gsavatar.tracking_solve import CHUNK, Lens, Poses, first_poses, refine_poses
from gsavatar.types import Landmarks

Read = Callable[[np.ndarray | RowsOnDisk], np.ndarray]


@pytest.fixture
def values() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(7, 5, 2)).astype(np.float32)


@pytest.fixture
def kept(values: np.ndarray) -> RowsOnDisk:
    rows = RowsOnDisk(5, 2)
    for part in (values[:3], values[3:3], values[3:].astype(np.float64)):
        rows.append(part)
    return rows


@pytest.mark.parametrize(
    "read",
    [
        lambda rows: rows[:],
        lambda rows: rows[2:5],
        lambda rows: rows[-2:],
        lambda rows: rows[5:99],
        lambda rows: rows[4:2],
        lambda rows: rows[np.array([6, 0, 3, 3])],
        lambda rows: rows[np.array([-1, 2])],
        lambda rows: rows[np.array([], np.int64)],
        lambda rows: rows[np.arange(7) % 3 == 0],
    ],
)
def test_rows_on_disk_read_as_an_array(values: np.ndarray, kept: RowsOnDisk, read: Read) -> None:
    assert len(kept) == len(values)
    np.testing.assert_array_equal(read(kept), read(values), strict=True)


def test_what_was_read_is_ones_own(values: np.ndarray, kept: RowsOnDisk) -> None:
    kept[:][:] = 0.0
    np.testing.assert_array_equal(kept[:], values)


def test_rows_that_are_not_there_are_refused(kept: RowsOnDisk) -> None:
    with pytest.raises(IndexError, match="out of bounds"):
        kept[np.array([6, 7])]


def test_a_full_disk_is_told_by_the_rows_that_do_not_fit() -> None:
    resource = pytest.importorskip("resource", reason="needs a limit on a file's size")
    rows, before = RowsOnDisk(468, 2), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (37_340, before[1]))
    try:
        rows.append(np.ones((9, 468, 2)))
        with pytest.raises(OSError) as told:
            rows.append(np.ones((1, 468, 2)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert told.value.errno == errno.EFBIG
    assert len(rows) == 9


def test_rows_on_disk_leave_nothing_behind(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = RowsOnDisk(2, folder=tmp_path)
        rows.append(np.ones((3, 2)))
        del rows
        gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_other_steps_than_one_are_refused(kept: RowsOnDisk) -> None:
    with pytest.raises(AssertionError, match="every 2"):
        kept[::2]


def test_poses_are_the_same_from_disk_and_in_whatever_parts() -> None:
    """To the bit: how a clip's frames are cut into chunks must not show."""
    rng = np.random.default_rng(1)
    count, lens = CHUNK + 40, Lens(1200.0, 256.0, 256.0)
    points = np.concatenate((canonical_face()[0], np.zeros((2, 3))))
    seen = 256.0 + 900.0 * points[None, :, :2] + rng.normal(size=(count, len(points), 2))
    seen = seen.astype(np.float32)
    rows = RowsOnDisk(len(points), 2)
    rows.append(seen)

    def poses(of: np.ndarray | RowsOnDisk) -> Poses:
        start = first_poses(points, of, RIGID_WEIGHT, lens)
        return refine_poses(start, points[None], of, RIGID_WEIGHT, lens, steps=2)

    whole, some = poses(rows), poses(seen[CHUNK - 20 :])
    assert np.ptp(whole.t, axis=0).min() > 0
    np.testing.assert_array_equal(poses(seen).R, whole.R)
    np.testing.assert_array_equal(some.t, whole.t[CHUNK - 20 :])


def test_observations_hold_the_frames_that_show_a_face() -> None:
    points = torch.randn(600, 478, 3)
    points[[5, 300]] = float("nan")
    found = torch.ones(600, dtype=torch.bool)
    found[7] = False
    clock = torch.arange(600)
    seen = observed(Landmarks(points, found, None), clock / 25.0, torch.zeros(600).long(), clock)
    expected = [row for row in range(600) if row not in (5, 7, 300)]
    assert seen.rows.tolist() == expected
    fitted = points[expected][:, FITTED_POINTS, :2].numpy()
    np.testing.assert_array_equal(seen.seen_px, fitted)
    np.testing.assert_array_equal(seen.of(np.array([3, 9])), fitted[:, [3, 9]])
    np.testing.assert_array_equal(seen.at(np.array([590, 4])).seen_px, fitted[[590, 4]])


class Held:
    """Something large in its place."""


@pytest.mark.parametrize("apart", [True, False])
def test_an_import_apart_keeps_nothing_of_its_callers(
    apart: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module that keeps an exception keeps the frames of whoever imports it the usual way."""
    name = f"gsavatar_keeps_its_error_{apart}"
    (tmp_path / f"{name}.py").write_text(
        "try:\n    import gsavatar_no_such_library\n"
        "except ImportError as error:\n    kept = error\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    def first_used() -> weakref.ref[Held]:
        held = Held()
        (import_apart if apart else importlib.import_module)(name)
        return weakref.ref(held)

    held = first_used()
    gc.collect()
    kept = sys.modules.pop(name).kept
    assert isinstance(kept, ImportError)
    assert (held() is None) is apart


def test_an_import_apart_tells_what_is_missing() -> None:
    with pytest.raises(ModuleNotFoundError, match="gsavatar_no_such_library"):
        import_apart("gsavatar_no_such_library")
