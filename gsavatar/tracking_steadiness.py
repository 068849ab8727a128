"""How steadily a path holds the head: what still moves after it was taken out of the pictures.

Every picture is laid onto a reference picture by where the path puts a dozen points of rigid skin
(an affine map); optical flow between successive pictures then shows what the path missed. The flow
is that of ``metrics_motion``, which the tracker does not use.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gsavatar import metrics_motion
from gsavatar.types import FacePart, Track

Array = NDArray[np.float64]
Rows = NDArray[np.int64]
UInt8 = NDArray[np.uint8]

HIT_PARTS = (FacePart.SKIN, FacePart.SCALP, FacePart.LIPS)
MARGIN_PX = 40
"""Around the outermost patch centres: half a patch at the coarse level, and some motion."""
SEGMENT = 64
"""Frames of one piece of the spectrum: at 25 frames/s it tells frequencies 0.4 Hz apart."""


@dataclass(frozen=True)
class Residual:
    """What moves on from one picture to the next although the path says it should not."""

    motion_px: Array  # [T - 1, 2], NaN where nothing was found or frames are not neighbours

    @property
    def rms_px(self) -> float:
        """Root mean square of the motion from picture to picture."""
        return metrics_motion.rms(self.motion_px)

    @property
    def jitter_px(self) -> float:
        """Root mean square of the second difference, as ``jitter_px`` of an evaluation."""
        return metrics_motion.rms(0.5 * np.diff(self.motion_px, axis=0))


def head_points(track: Track, row: int, pixels: Array) -> Array:
    """Points [P, 3] of the rest mesh, in the head frame, that are seen at ``pixels`` of a row.

    Pixels that see no mesh are left out. The expression of that row is taken out of the place.
    """
    import torch

    from gsavatar.tracking import posed_mesh

    face, camera = track.face, track.cameras[int(track.file_index[row])]
    parts = torch.tensor([int(p) for p in HIT_PARTS], dtype=face.part.dtype)
    faces = face.faces[torch.isin(face.part[face.faces], parts).all(1)].numpy()
    view = camera.world_to_cam.double().numpy()
    seen = posed_mesh(track, row).double().numpy() @ view[:3, :3].T + view[:3, 3]
    K = camera.K.double().numpy()
    flat = seen[:, :2] / seen[:, 2:] * (K[0, 0], K[1, 1]) + K[:2, 2]
    return hits(pixels, flat, seen[:, 2], face.vertices.double().numpy(), faces)


def hits(pixels: Array, flat: Array, depth: Array, rest: Array, faces: NDArray[np.int64]) -> Array:
    """Places [P, 3] on a rest mesh [V, 3] that are the nearest behind ``pixels`` [P, 2].

    ``flat`` [V, 2] and ``depth`` [V] are where its vertices are seen. Pixels beside the mesh are
    left out.
    """
    a, b, c = (flat[faces[:, i]] for i in range(3))
    area = _cross(b - a, c - a)
    area = np.where(np.abs(area) < 1e-9, np.nan, area)
    found = []
    for pixel in pixels:
        shares = np.stack((_cross(b - pixel, c - pixel), _cross(c - pixel, a - pixel)), -1)
        shares = np.column_stack((shares / area[:, None], np.zeros(len(faces))))
        shares[:, 2] = 1.0 - shares[:, 0] - shares[:, 1]
        hit = np.flatnonzero((shares >= 0).all(1))
        if len(hit):
            nearest = hit[np.argmin((shares[hit] * depth[faces[hit]]).sum(1))]
            weight = shares[nearest] / depth[faces[nearest]]  # even in space, not in the picture
            found.append(weight @ rest[faces[nearest]] / weight.sum())
    return np.array(found).reshape(-1, 3)


def _cross(a: Array, b: Array) -> Array:
    return np.asarray(a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0])


def path_px(track: Track, rows: Rows, points: Array) -> Array:
    """Where the track puts head points [P, 3] in some rows, [T, P, 2] protocol pixels."""
    files = track.file_index.numpy()[rows]
    views = np.stack([c.world_to_cam.double().numpy() for c in track.cameras])[files]
    K = np.stack([c.K.double().numpy() for c in track.cameras])[files]
    poses = views @ track.head_pose.double().numpy()[rows]
    seen = points @ poses[:, :3, :3].transpose(0, 2, 1) + poses[:, None, :3, 3]
    focal = np.stack((K[:, 0, 0], K[:, 1, 1]), -1)[:, None]
    return np.asarray(seen[..., :2] / seen[..., 2:] * focal + K[:, None, :2, 2])


def residual_motion(
    pictures: Callable[[int], UInt8], paths: Sequence[Array], reference: int, centres: Array,
    neighbours: Array, progress: Callable[[int, int], None] | None = None,
) -> list[Residual]:  # fmt: skip
    """What every path [T, P, 2] (pixels) leaves of the motion of ``pictures(0 .. T - 1)``.

    ``centres`` [C, 2] are patches of rigid skin in the picture ``reference``; ``neighbours``
    [T - 1] tells which frames follow each other without a gap.
    """
    count = len(paths[0])
    motion = np.full((len(paths), max(count - 1, 0), 2), np.nan)
    before: list[Any] = [None] * len(paths)
    corner = np.floor(centres.min(0) - MARGIN_PX)
    width, height = (int(v) for v in np.ceil(centres.max(0) + MARGIN_PX - corner))
    for t in range(count):
        picture = pictures(t)
        for i, path in enumerate(paths):
            part = laid_on(picture, path[t], path[reference] - corner, (width, height))
            levels = metrics_motion.grey_levels(part)
            if t > 0 and neighbours[t - 1]:
                motion[i, t - 1] = metrics_motion.displacement(before[i], levels, centres - corner)
            before[i] = levels
        if progress is not None:
            progress(t + 1, count)
    return [Residual(m) for m in motion]


def laid_on(picture: UInt8, here_px: Array, there_px: Array, size: tuple[int, int]) -> UInt8:
    """A picture of ``size`` (width, height) in which what ``picture`` shows at ``here_px`` [P, 2]
    lies at ``there_px``, as well as an affine map can."""
    import cv2

    design = np.column_stack((there_px - 0.5, np.ones(len(there_px))))
    back, *_ = np.linalg.lstsq(design, here_px - 0.5, rcond=None)
    # Cubic interpolation would shift what it samples between pixels by up to 0.1 px.
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    moved = cv2.warpAffine(picture, back.T, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(moved, np.uint8)


def spectrum(motion_px: Array, fps: float) -> tuple[Array, Array]:
    """Frequencies [F] in Hz and the rms motion [F] in px of bands one step of frequency wide.

    Welch's mean over half-overlapping pieces with Hann windows (Welch 1967); the squares add up to
    the mean square of the motion. Empty if no piece of ``SEGMENT`` frames is whole.
    """
    window = np.hanning(SEGMENT + 1)[:-1]
    power = []
    for start in range(0, len(motion_px) - SEGMENT + 1, SEGMENT // 2):
        piece = motion_px[start : start + SEGMENT]
        if np.isfinite(piece).all():
            waves = np.fft.rfft(piece * window[:, None], axis=0)
            power.append((np.abs(waves) ** 2).sum(1) / (SEGMENT * (window**2).sum()))
    if not power:
        return np.zeros(0), np.zeros(0)
    mean = np.mean(power, axis=0)
    mean[1:-1] *= 2.0  # negative frequencies
    return np.asarray(np.fft.rfftfreq(SEGMENT, 1.0 / fps), np.float64), np.sqrt(mean)
