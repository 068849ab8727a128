"""What the first pass over the footage found, frame by frame, and which pictures are kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from gsavatar.clip import MAX_FRAMES, TEST_MAX_FRAMES, split_rows
from gsavatar.errors import InputError
from gsavatar.frames import write_tensors_atomic
from gsavatar.landmarks import mouth_opening
from gsavatar.types import Landmarks
from gsavatar.visibility import Visibility

RUN_FRAMES = 10
"""Frames are kept in runs of this many: the tracker follows skin from one to the next."""


@dataclass(frozen=True)
class Sequence:
    """Per-frame results of the first pass over all files, in time order."""

    frame_ids: NDArray[np.int64]
    time_s: NDArray[np.float64]
    file_index: NDArray[np.int64]
    landmarks: Landmarks
    visibility: Visibility | None = None  # None in clips of older versions

    @property
    def clear(self) -> NDArray[np.float64]:
        """What each frame counts [T] by how well it shows the face, 1 for a clear one."""
        return np.ones(len(self.time_s)) if self.visibility is None else self.visibility.weight


def choose_frames(sequence: Sequence, test_from_s: float | None = None) -> NDArray[np.int64]:
    """Position in the shard of each kept frame, -1 for the others.

    The test part is kept whole (up to its limit); the training part by variety of head position,
    turn and mouth opening: frames are taken in rounds from the cells of a coarse grid, each with
    its neighbours in time.
    """
    points = sequence.landmarks.points
    everything = np.zeros(len(sequence.time_s), dtype=np.int64)
    train, test = split_rows(sequence.time_s, everything, test_from_s)
    found = sequence.landmarks.found.numpy()
    train = train[found[train]]
    nose, left, right = points[:, 1], points[:, 234], points[:, 454]
    turn = (nose[:, 0] - left[:, 0]) / (right[:, 0] - left[:, 0])
    values = torch.stack(
        (turn, nose[:, 0], nose[:, 1], mouth_opening(points), points[:, 152, 1] - points[:, 10, 1]),
        1,
    )[train].numpy()
    low, high = np.percentile(values, [1, 99], axis=0)
    grid = np.clip((values - low) / np.maximum(high - low, 1e-6) * 5, 0, 4).astype(int)
    _, cell = np.unique(grid, axis=0, return_inverse=True)
    rank = np.zeros(len(train), dtype=np.int64)
    order = np.random.default_rng(0).permutation(len(train))
    counts: dict[int, int] = {}
    for i in order:
        rank[i] = counts.get(int(cell[i]), 0)
        counts[int(cell[i])] = rank[i] + 1
    room = MAX_FRAMES - min(len(test), TEST_MAX_FRAMES)
    chosen = train[_with_neighbours(train, np.lexsort((order, rank)), room)]
    kept = np.sort(np.concatenate((chosen, test[:TEST_MAX_FRAMES])))
    stored = np.full(len(everything), -1, dtype=np.int64)
    stored[kept] = np.arange(len(kept))
    return stored


def _with_neighbours(
    rows: NDArray[np.int64], order: NDArray[np.int64], room: int
) -> NDArray[np.int64]:
    """Positions in ``rows`` of the first of ``order`` and the frames around each, ``room`` in all.

    A position's run ends where successive rows are not successive frames.
    """
    taken, free = np.zeros(len(rows), dtype=bool), min(room, len(rows))
    for i in order:
        if free <= 0:
            break
        near = np.arange(max(i - RUN_FRAMES // 2, 0), min(i + RUN_FRAMES // 2, len(rows)))
        near = near[(rows[near] - rows[i] == near - i) & ~taken[near]]
        near = near[np.argsort(np.abs(near - i), kind="stable")][:free]
        taken[near] = True
        free -= len(near)
    return np.flatnonzero(taken)


def save_sequence(root: Path, sequence: Sequence, stored: NDArray[np.int64]) -> None:
    """Writes ``root/landmarks.safetensors`` atomically."""
    tensors = {
        "frame_ids": torch.from_numpy(sequence.frame_ids),
        "time_s": torch.from_numpy(sequence.time_s),
        "file_index": torch.from_numpy(sequence.file_index),
        "points": sequence.landmarks.points,
        "found": sequence.landmarks.found,
        "stored": torch.from_numpy(stored),
    }
    if sequence.landmarks.scores is not None:
        tensors["scores"] = sequence.landmarks.scores
    if sequence.visibility is not None:
        tensors["detail"] = torch.from_numpy(sequence.visibility.detail)
        tensors["strangeness"] = torch.from_numpy(sequence.visibility.strangeness)
    write_tensors_atomic(root / "landmarks.safetensors", tensors)


def load_sequence(root: Path) -> tuple[Sequence, NDArray[np.int64]]:
    """What ``save_sequence`` wrote. Raises ``InputError`` if it cannot be read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        t = load_file(root / "landmarks.safetensors")
    except SafetensorError as error:
        raise InputError(
            f"{root / 'landmarks.safetensors'}: damaged ({error}); delete {root} and continue with "
            "--resume."
        ) from None
    # Copies: all tensors share one map of the file, and one that is kept would keep all of it.
    t = {name: value if name == "points" else value.clone() for name, value in t.items()}
    landmarks = Landmarks(t["points"], t["found"], t.get("scores"))
    visibility = None
    if "detail" in t:
        visibility = Visibility(t["detail"].numpy(), t["strangeness"].numpy())
    sequence = Sequence(
        t["frame_ids"].numpy(), t["time_s"].numpy(), t["file_index"].numpy(), landmarks, visibility
    )
    return sequence, t["stored"].numpy()
