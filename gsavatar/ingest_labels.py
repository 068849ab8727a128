"""The label plane of every kept frame."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gsavatar.ahead import in_turns
from gsavatar.frames import FrameStore, FrameWriter, UInt8
from gsavatar.progress import Reporter
from gsavatar.segmentation import Look, PersonMatte, Seen, label_plane, learn_person
from gsavatar.sequence import Sequence
from gsavatar.types import PROTOCOL_SIZE

LEARN_FRAMES = 16
"""Pictures from which the colours of hair, skin and clothes are learned."""


def label_frames(
    root: Path, sequence: Sequence, stored: NDArray[np.int64],
    known_person: Callable[[int], NDArray[np.float32] | None], reporter: Reporter,
) -> None:  # fmt: skip
    """Writes ``regions.bin`` beside the frames of a clip, unless it is there.

    ``known_person`` gives the matte of a frame by its id where the footage came with one, else
    None.
    """
    if (root / "regions.bin.json").exists():
        return
    frames, points = FrameStore(root / "frames.bin"), sequence.landmarks.points.numpy()
    rows = np.flatnonzero(stored >= 0)
    has_face = np.isfinite(points[:, 0, 0])
    nothing = np.zeros((PROTOCOL_SIZE, PROTOCOL_SIZE), np.uint8)

    def look(row: int, matte: PersonMatte) -> Look:
        picture = frames[int(stored[row])]
        person = known_person(int(sequence.frame_ids[row]))
        seen = matte.look(picture) if person is None else Seen(person, None)
        return Look(picture, seen.matte, points[row], seen.beliefs)

    with (
        reporter.stage("label the regions") as progress,
        PersonMatte() as one,
        PersonMatte(warned=True) as other,
        FrameWriter(root / "regions.bin", nothing.shape, coded=True) as writer,
    ):
        seen = rows[has_face[rows]]
        some = np.linspace(0, len(seen) - 1, min(LEARN_FRAMES, len(seen))).astype(int)
        colors = learn_person([look(int(row), one) for row in seen[some]])

        def labeller(matte: PersonMatte) -> Callable[[int], UInt8]:
            def label(row: int) -> UInt8:
                if not has_face[row]:
                    return nothing  # skipped by the fit; keeps the shards parallel
                return label_plane(look(row, matte), colors)

            return label

        with closing(in_turns([labeller(one), labeller(other)], rows.tolist())) as labelled:
            for done, labels in enumerate(labelled):
                writer.append(labels)
                progress(done + 1, len(rows))
