"""What the fit goes by: the fitted landmarks of those frames of a clip that show a face."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gsavatar.errors import InputError
from gsavatar.memory import Rows, RowsOnDisk
from gsavatar.morphable import FITTED_POINTS, Floats, Ints
from gsavatar.tracking_solve import chunks
from gsavatar.types import KnownPoses, Landmarks

MIN_FRAMES = 2


@dataclass(frozen=True)
class Observations:
    """Landmarks and clock of T usable frames.

    They are all of a clip that a fit holds for every frame, so they hold no more than it needs, and
    of the landmarks, the largest part of it, only those of a sample are in memory.
    """

    rows: Ints  # [T], of the landmarks they were taken from
    frame_ids: Ints  # [T]
    px: Rows  # [T, L, 2], single precision
    scores: Floats | None  # [T, 52], single precision
    time_s: Floats  # [T]
    file_index: Ints  # [T]
    pictured: NDArray[np.bool_]  # [T], the frame's picture is kept
    clear: Floats  # [T], what the frame counts by how well it shows the face, 0-1

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def seen_px(self) -> Floats:
        """The landmarks [T, L, 2], all of them in memory: of a sample."""
        return self.px[:]

    def of(self, points: Ints) -> Floats:
        """Where some landmarks [P] are in every frame, [T, P, 2]."""
        return np.concatenate([self.px[rows][:, points] for rows in chunks(len(self))])

    def at(self, rows: Ints) -> Observations:
        """Those of some frames."""
        scores = None if self.scores is None else self.scores[rows]
        return Observations(
            self.rows[rows], self.frame_ids[rows], self.px[rows], scores, self.time_s[rows],
            self.file_index[rows], self.pictured[rows], self.clear[rows],
        )  # fmt: skip


def observed(
    landmarks: Landmarks, time_s: Tensor, file_index: Tensor, frame_ids: Tensor,
    known: KnownPoses | None = None, pictured: NDArray[np.bool_] | None = None,
    clear: Floats | None = None, folder: Path | None = None,
) -> Observations:  # fmt: skip
    """The frames with landmarks, and with a pose where only those of ``known`` ones serve.

    ``pictured`` [T] tells which frames' pictures are kept and ``clear`` [T] what each counts, all
    of them and 1 if it is not given. ``folder`` is where the landmarks may lie while they are
    needed. Raises ``InputError`` if the usable frames are fewer than two.
    """
    fitted = torch.from_numpy(FITTED_POINTS)
    good = landmarks.found.clone()
    for some in chunks(len(good)):
        seen = landmarks.points[some][:, fitted, :2]
        good[some] &= torch.isfinite(seen).flatten(1).all(1)
    if known is not None:
        good &= torch.isin(frame_ids, known.frame_ids)
    rows = torch.nonzero(good)[:, 0]
    if len(rows) < MIN_FRAMES:
        lack = "show a face" if known is None else "show a face and have a pose"
        raise InputError(
            f"only {len(rows)} of {len(good)} frames {lack}, at least {MIN_FRAMES} are "
            "needed; film the face larger, from the front, in good light."
        )
    px = RowsOnDisk(len(fitted), 2, folder=folder)
    for some in chunks(len(rows)):
        px.append(landmarks.points[rows[some]][:, fitted, :2].numpy())
    scores = None
    if landmarks.scores is not None:
        scores = torch.nan_to_num(landmarks.scores[rows]).numpy()
    return Observations(
        rows.numpy(), frame_ids[rows].numpy(), px, scores,
        time_s[rows].double().numpy(), file_index[rows].numpy(),
        np.ones(len(rows), bool) if pictured is None else pictured[rows.numpy()],
        np.ones(len(rows)) if clear is None else clear[rows.numpy()],
    )  # fmt: skip
