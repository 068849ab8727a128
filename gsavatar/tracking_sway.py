"""How a torso moves in a clip: with the head, which a pose can tell, and beside that.

Nothing but the head's pose drives shoulders later, and to learn that from pictures alone each
Gaussian would have to find by itself that it moves by tens of pixels with thousands of others: at
collars and lapels they disagree, and tear. So the torso is followed as one flat piece, before
training. What the pose explains of its path is where its motion starts; what it does not explain
is taken into account while the pictures are compared, and forgotten.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gsavatar.ahead import HANDS, together
from gsavatar.clip import Clip
from gsavatar.motion import TORSO_NAMES, torso_coefficients
from gsavatar.types import PROTOCOL_SIZE, Camera, Region

Floats = NDArray[np.float64]

SIZE = 160
"""Side in pixels of the pictures in which the torso is followed."""
EVERY = 2
"""Frames from one that is looked at to the next; shoulders are slow."""
MOST = 2000
"""Frames of a long clip that are looked at."""
MIN_SHARE = 0.02
"""Share of the picture that must be torso."""
MIN_FRAMES = 30
RIM = 5
"""Pixels of the small picture that count no more around what may hide the torso."""
LEAST_LIKENESS = 0.8
"""Correlation of the torso with the reference from which a frame counts."""
STEPS, ENOUGH, SOFTNESS = 30, 1e-4, 5
RIDGE = 0.01
"""Belief that the torso does not follow, of a frame's worth each; coefficients are about one."""


@dataclass(frozen=True)
class Sway:
    """Shift (right, down) and roll of the torso as the camera sees it, about a centre.

    Lengths are tangents, pixels over the focal length: the same for every size and crop.
    """

    centre: Tensor  # [2]
    per_pose: Tensor  # [6, 3], for one of each of ``TORSO_NAMES``
    left: Tensor  # [T, 3] of every row, what the pose does not explain; zero where not known

    def shapes(self, means: Tensor, weight: Tensor, camera: Camera) -> Tensor:
        """Displacements [6, N, 3] in metres that ``per_pose`` means for places [N, 3] of the room.

        ``weight`` [N] is the share of the head's pose that a place takes anyway.
        """
        tangents, depth = _seen(means, camera)
        moved = torch.stack([_moved(unit, tangents - self.centre) for unit in self.per_pose])
        metres = torch.nn.functional.pad(moved * depth[:, None], (0, 1))
        return (1.0 - weight)[:, None] * (metres @ camera.world_to_cam[:3, :3])

    def pixels(self, row: int, means: Tensor, weight: Tensor, camera: Camera) -> Tensor:
        """By how many of the camera's pixels [N, 2] posed places [N, 3] of the torso lay elsewhere
        in a row than the head's pose tells; ``weight`` as for ``shapes``."""
        tangents, _ = _seen(means, camera)
        moved = _moved(self.left[row].to(means), tangents - self.centre.to(means))
        return camera.K[0, 0] * (1.0 - weight)[:, None] * moved


def _seen(means: Tensor, camera: Camera) -> tuple[Tensor, Tensor]:
    """Tangents [N, 2] under which a camera sees places [N, 3], and their depth [N] in metres."""
    seen = means @ camera.world_to_cam[:3, :3].T + camera.world_to_cam[:3, 3]
    return seen[:, :2] / seen[:, 2:], seen[:, 2]


def _moved(motion: Tensor, arms: Tensor) -> Tensor:
    """How far shift and small roll [3] take points that lie at ``arms`` [N, 2] from the centre."""
    return motion[:2] + motion[2] * torch.stack((-arms[:, 1], arms[:, 0]), dim=-1)


def measure_sway(clip: Clip) -> Sway:
    """The sway of a clip's torso, from its training part; zeros where too little is seen of it."""
    left = torch.zeros(len(clip.time_s), 3)
    none = Sway(torch.zeros(2), torch.zeros(len(TORSO_NAMES), 3), left)
    every = max(EVERY, -(-len(clip.train_rows) // MOST))
    rows = clip.train_rows[::every]
    if len(rows) < MIN_FRAMES:
        return none
    poses = clip.track.head_pose[rows]
    off = (poses - poses.median(0).values).flatten(1).norm(dim=1)
    reference, mask = _look(clip, int(rows[int(off.argmin())]))
    if mask.mean() < MIN_SHARE:
        return none
    halves = np.array_split(rows, HANDS)
    warps = np.concatenate(together(lambda half: _followed(clip, half, reference), halves))
    known = np.isfinite(warps).all((1, 2))
    if known.sum() < MIN_FRAMES:
        return none
    K, scale = clip.track.cameras[0].K.double().numpy(), PROTOCOL_SIZE / SIZE
    there = np.argwhere(mask > 0).mean(0)[::-1]  # x, y of the small picture
    motion = _motions(warps[known], there) * (scale / K[0, 0], scale / K[0, 0], 1.0)
    per_pose, rest = _explained(torso_coefficients(poses[known]).double().numpy(), motion)
    for column in range(3):
        left[:, column] = torch.from_numpy(_at_all(rows[known], rest[:, column], len(left), every))
    centre = (scale * (there + 0.5) - K[:2, 2]) / K[0, 0]
    return Sway(torch.from_numpy(centre).float(), torch.from_numpy(per_pose).float(), left)


def _look(clip: Clip, row: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """A frame in grey and where it surely shows the torso, both small."""
    import cv2

    size = (SIZE, SIZE)
    small = cv2.resize(clip.frame(row), size, interpolation=cv2.INTER_AREA)
    torso = (clip.regions(row) == Region.TORSO).astype(np.uint8)
    sure = cv2.resize(torso, size, interpolation=cv2.INTER_NEAREST)
    mask = cv2.erode(sure, np.ones((RIM, RIM), np.uint8))
    grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
    return np.asarray(grey, np.float32), np.asarray(mask, np.uint8)


def _followed(clip: Clip, rows: NDArray[np.int64], reference: NDArray[np.float32]) -> Floats:
    """Rigid maps [T, 2, 3] of the reference's torso into each frame; NaN where it is not found.

    By the enhanced correlation coefficient (Evangelidis and Psarakis 2008), which light does not
    mislead, from where the frame before was.
    """
    import cv2

    found = np.full((len(rows), 2, 3), np.nan)
    start = np.eye(2, 3, dtype=np.float32)
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, STEPS, ENOUGH)
    for i, row in enumerate(rows.tolist()):
        picture, mask = _look(clip, row)
        try:
            likeness, warp = cv2.findTransformECC(
                reference, picture, start.copy(), cv2.MOTION_EUCLIDEAN, criteria, mask, SOFTNESS
            )
        except cv2.error:  # it found nothing to hold on to
            continue
        if likeness >= LEAST_LIKENESS:
            found[i] = start = np.asarray(warp, np.float32)
    return found


def _motions(warps: Floats, centre: Floats) -> Floats:
    """Shift of the centre and roll [T, 3] in rigid maps [T, 2, 3]."""
    shift = warps[:, :, :2] @ centre + warps[:, :, 2] - centre
    return np.column_stack((shift, np.arctan2(warps[:, 1, 0], warps[:, 0, 0])))


def _explained(coefficients: Floats, motion: Floats) -> tuple[Floats, Floats]:
    """What each coefficient [T, 6] says of the motion [T, 3], as [6, 3], and what none says.

    The constant is not said by any: a reference is not the head at rest.
    """
    columns = np.column_stack((coefficients, np.ones(len(coefficients))))
    belief = np.diag([RIDGE * len(columns)] * coefficients.shape[1] + [0.0])
    fit = np.linalg.solve(columns.T @ columns + belief, columns.T @ motion)
    return fit[:-1], motion - columns @ fit


def _at_all(
    known: NDArray[np.int64], values: Floats, count: int, every: int
) -> NDArray[np.float32]:
    """Values of some rows, ``every`` apart, at all of ``count``, linear between; zero farther from
    any."""
    rows = np.arange(count)
    after = np.searchsorted(known, rows).clip(1, len(known) - 1)
    nearest = np.minimum(np.abs(rows - known[after - 1]), np.abs(rows - known[after]))
    between = np.interp(rows, known, values)
    return np.where(nearest <= 2 * every, between, 0.0).astype(np.float32)
