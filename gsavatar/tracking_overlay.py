"""What the tracker believes, drawn on the footage: mesh and landmarks beside the region labels.

The mesh is drawn as lines of equal height and of equal breadth on the head: they follow nose and
cheeks as the lines of a globe do, where the mesh's own triangles would be a solid mass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gsavatar.ahead import HANDS, in_turns
from gsavatar.clip import Clip
from gsavatar.landmarks import FACE_OVAL, INNER_LIPS, LEFT_EYE, OUTER_LIPS, RIGHT_EYE
from gsavatar.morphable import FITTED_POINTS
from gsavatar.tracking_steadiness import path_px
from gsavatar.types import PROTOCOL_SIZE, FacePart, Region
from gsavatar.video import SAMPLE_RATE, VideoWriter

Array = NDArray[np.float64]
Rows = NDArray[np.int64]
UInt8 = NDArray[np.uint8]

PANEL = 384
"""Side of each of the two pictures in the film, in pixels."""
MAX_FRAMES = 250
"""Frames drawn: all of a short clip, else the middle of ``STRETCHES`` equal parts of it."""
STRETCHES = 5
LINE_EVERY_M = 0.015
DRAWN_PARTS = (FacePart.SKIN, FacePart.LIPS, FacePart.SCALP)
MESH_COLOUR, POINT_COLOUR, EDGE_COLOUR = (60, 200, 255), (255, 0, 150), (255, 210, 60)
TEXT_COLOUR = (255, 255, 255)
TEXT_SCALE = 0.45
MESH_SHARE, REGION_SHARE = 0.65, 0.45
"""How much of a pixel is drawing; the rest is footage."""
REGION_COLOURS: dict[Region, tuple[int, int, int]] = {
    Region.BACKGROUND: (40, 44, 52), Region.SKIN: (255, 170, 120), Region.HAIR: (150, 95, 200),
    Region.LIPS: (235, 60, 90), Region.INNER_MOUTH: (120, 0, 30), Region.EYES: (70, 160, 255),
    Region.NECK: (240, 215, 90), Region.TORSO: (70, 190, 120),
}  # fmt: skip
CONTOURS = (FACE_OVAL, OUTER_LIPS, INNER_LIPS, LEFT_EYE, RIGHT_EYE)
SHIFT = 4
"""Binary digits behind the point of the pixels handed to OpenCV."""


@dataclass(frozen=True)
class Lines:
    """Line pieces on a rest mesh: both ends lie on edges between two vertices."""

    ends: NDArray[np.int64]  # [S, 2, 2], vertices of the edge under each end
    share: Array  # [S, 2], part of the second vertex
    faces: NDArray[np.int64]  # [S, 3], triangle that the piece lies on


def level_lines(vertices: Array, faces: NDArray[np.int64], every_m: float) -> Lines:
    """Where planes of equal x and of equal y, ``every_m`` apart, cut triangles [F, 3]."""
    ends, shares, owners = [], [], []
    for axis in (0, 1):
        level = vertices[faces][..., axis] / every_m  # [F, 3]
        first, last = np.ceil(level.min(1)), np.floor(level.max(1))
        for step in range(int((last - first).max()) + 1 if len(faces) else 0):
            at = first + step
            cut = np.flatnonzero((at <= last) & (level.min(1) < level.max(1)))
            side = level[cut] >= at[cut, None]
            crossed = side != np.roll(side, -1, axis=1)  # edge i runs from corner i to i + 1
            whole = crossed.sum(1) == 2
            cut, crossed = cut[whole], crossed[whole]
            edges = np.argsort(~crossed, axis=1, kind="stable")[:, :2]
            a = np.take_along_axis(faces[cut], edges, 1)
            b = np.take_along_axis(faces[cut], (edges + 1) % 3, 1)
            low, high = (np.take_along_axis(level[cut], e, 1) for e in (edges, (edges + 1) % 3))
            ends.append(np.stack((a, b), -1))
            shares.append((at[cut, None] - low) / (high - low))
            owners.append(faces[cut])
    if not ends:
        return Lines(np.zeros((0, 2, 2), np.int64), np.zeros((0, 2)), np.zeros((0, 3), np.int64))
    return Lines(np.concatenate(ends), np.concatenate(shares), np.concatenate(owners))


class Overlay:
    """Draws rows of a clip."""

    def __init__(self, clip: Clip) -> None:
        face = clip.track.face
        drawn = np.isin(face.part.numpy(), [int(p) for p in DRAWN_PARTS])
        faces = face.faces.numpy()
        faces = faces[drawn[faces].all(1)]
        self.clip = clip
        used, faces = np.unique(faces, return_inverse=True)
        self.vertices = face.vertices[used].double().numpy()
        self.basis = face.basis[:, used].float().numpy()
        self.lines = level_lines(self.vertices, faces.reshape(-1, 3), LINE_EVERY_M)
        self.scale = PANEL / PROTOCOL_SIZE
        self.palette = np.array([REGION_COLOURS[r] for r in Region], np.uint8)

    def __call__(self, row: int) -> UInt8:
        """Mesh and landmarks on the left, regions on the right, uint8 [384, 768, 3]."""
        import cv2

        picture = _shrunk(self.clip.frame(row), cv2.INTER_LINEAR)
        left = self._mesh(picture, row)
        right = self._regions(picture, row)
        label = f"frame {int(self.clip.frame_ids[row])}  {float(self.clip.time_s[row]):.2f} s"
        _write(left, label)
        _write(right, f"trust {float(self.clip.track.weight[row]):.2f}")
        return np.concatenate((left, right), axis=1)

    def _mesh(self, picture: UInt8, row: int) -> UInt8:
        import cv2

        drawn = picture.copy()
        pieces = list(_fixed(self.scale * self._pieces(row)))
        cv2.polylines(drawn, pieces, False, MESH_COLOUR, 1, cv2.LINE_AA, SHIFT)
        mixed = cv2.addWeighted(drawn, MESH_SHARE, picture, 1.0 - MESH_SHARE, 0.0)
        points = self.clip.landmarks.points[row, FITTED_POINTS, :2].double().numpy()
        x, y = np.round(self.scale * points - 1.0).astype(int).T  # of squares of two pixels
        inside = (x >= 0) & (y >= 0) & (x < PANEL - 1) & (y < PANEL - 1)
        x, y = x[inside], y[inside]
        for down in (0, 1):
            for across in (0, 1):
                mixed[y + down, x + across] = POINT_COLOUR
        return np.asarray(mixed, np.uint8)

    def _pieces(self, row: int) -> Array:
        """Pixels [S, 2, 2] of the line pieces on triangles that face the camera."""
        values = self.clip.track.coefficients[row].numpy()
        moved = self.vertices + np.tensordot(values, self.basis, 1)
        flat = path_px(self.clip.track, np.array([row]), moved)[0]
        a, b, c = (flat[self.lines.faces[:, i]] for i in range(3))
        along, across = b - a, c - a
        # y points down: triangles that wind to the left around their outward normal turn here.
        front = along[:, 0] * across[:, 1] - along[:, 1] * across[:, 0] < 0
        ends = flat[self.lines.ends[front]]  # [S, 2, 2, 2]
        share = self.lines.share[front][..., None]
        return np.asarray(ends[:, :, 0] * (1.0 - share) + ends[:, :, 1] * share)

    def _regions(self, picture: UInt8, row: int) -> UInt8:
        import cv2

        colours = np.take(self.palette, _shrunk(self.clip.regions(row), cv2.INTER_NEAREST), axis=0)
        mixed = cv2.addWeighted(colours, REGION_SHARE, picture, 1.0 - REGION_SHARE, 0.0)
        points = self.clip.landmarks.points[row, :, :2].double().numpy()
        curves = [_fixed(self.scale * points[list(ids)]) for ids in CONTOURS]
        cv2.polylines(mixed, curves, True, EDGE_COLOUR, 1, cv2.LINE_AA, SHIFT)
        return np.asarray(mixed, np.uint8)


def _shrunk(plane: UInt8, how: int) -> UInt8:
    """A protocol picture or label plane at the size of a panel."""
    import cv2

    return np.asarray(cv2.resize(plane, (PANEL, PANEL), interpolation=how), np.uint8)


def _fixed(pixels: Array) -> NDArray[np.int32]:
    """Pixels whose centres lie at +0.5 as OpenCV's fixed-point numbers."""
    return np.asarray(np.round((pixels - 0.5) * 2**SHIFT), np.int32)


def _write(picture: UInt8, words: str) -> None:
    """Words in the lower left corner, readable on any ground."""
    import cv2

    font = cv2.FONT_HERSHEY_SIMPLEX
    (wide, tall), _ = cv2.getTextSize(words, font, TEXT_SCALE, 1)
    picture[-tall - 18 :, : wide + 20] //= 3
    at = (10, picture.shape[0] - 9)
    cv2.putText(picture, words, at, font, TEXT_SCALE, TEXT_COLOUR, 1, cv2.LINE_AA)


def chosen_rows(clip: Clip) -> Rows:
    """Rows with pictures that are drawn: all, or stretches from all over a longer clip."""
    rows = np.flatnonzero(clip.stored >= 0)
    if len(rows) <= MAX_FRAMES:
        return rows
    each = MAX_FRAMES // STRETCHES
    parts = np.array_split(rows, STRETCHES)
    return np.concatenate([p[(len(p) - each) // 2 :][:each] for p in parts])


def write_overlay(
    clip: Clip, path: Path, progress: Callable[[int, int], None] | None = None
) -> int:
    """A film of the drawn rows with the clip's sound as it was corrected; returns its frames."""
    rows = chosen_rows(clip)
    times = clip.time_s.double().numpy()
    step = float(np.median(np.diff(times))) if len(times) > 1 else 0.04
    overlay = Overlay(clip)
    sound = None if clip.audio is None else _sound_of(clip.audio, times[rows], step)
    with VideoWriter(path, 2 * PANEL, PANEL, 1.0 / step, sound, draft=True) as film:
        for done, picture in enumerate(in_turns([overlay] * HANDS, rows.tolist())):
            film.write(picture)
            if progress is not None:
                progress(done + 1, len(rows))
    return len(rows)


def _sound_of(samples: NDArray[np.float32], times: Array, step: float) -> NDArray[np.float32]:
    """The sound of each drawn frame, one after the other; a gap in the frames is one here too."""
    edges = np.round(np.arange(len(times) + 1) * step * SAMPLE_RATE).astype(int)
    joined = np.zeros(edges[-1], np.float32)
    for start, end, time in zip(edges[:-1], edges[1:], times, strict=True):
        at = round(float(time) * SAMPLE_RATE)
        part = samples[at : at + end - start]
        joined[start : start + len(part)] = part
    return joined
