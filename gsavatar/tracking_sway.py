"""How a torso moves in a clip: with the head, which a pose can tell, and beside that.

Nothing but the head's pose drives shoulders later, and to learn that from pictures alone each
Gaussian would have to find by itself that it moves by tens of pixels with thousands of others: at
collars and lapels they disagree, and tear. So the torso is followed as one flat piece, before
training. What the pose explains of its path is where its motion starts; what it does not explain
is taken into account while the pictures are compared, and forgotten.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gsavatar.ahead import in_halves
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
NEAR_S = 0.2
"""How far in time from a frame that was looked at the torso's own path is known."""
RIDGE = 0.01
"""Belief that the torso does not follow, worth this share of the frames; coefficients are about
one."""


@dataclass(frozen=True)
class Sway:
    """Shift (right, down) and roll of the torso as the camera sees it, about a centre.

    Lengths are tangents, pixels over the focal length: the same for every size and crop.
    """

    centre: Tensor  # [3], a place of the room
    per_pose: Tensor  # [6, 3], for one of each of ``TORSO_NAMES``
    left: Tensor  # [T, 3] of every row, what the pose does not explain; zero where not known

    def shapes(self, means: Tensor, weight: Tensor, camera: Camera) -> Tensor:
        """Displacements [6, N, 3] in metres that ``per_pose`` means for places [N, 3] of the room.

        ``weight`` [N] is the share of the head's pose that a place takes anyway.
        """
        arms, depth = self._arms(means, camera)
        moved = torch.stack([_moved(unit, arms) for unit in self.per_pose])
        metres = torch.nn.functional.pad(moved * depth[:, None], (0, 1))
        return (1.0 - weight)[:, None] * (metres @ camera.world_to_cam[:3, :3])

    def pixels(self, row: int, means: Tensor, weight: Tensor, camera: Camera) -> Tensor:
        """By how many of the camera's pixels [N, 2] posed places [N, 3] of the torso lay elsewhere
        in a row than the head's pose tells; ``weight`` as for ``shapes``."""
        moved = _moved(self.left[row].to(means), self._arms(means, camera)[0])
        return camera.K[0, 0] * (1.0 - weight)[:, None] * moved

    def _arms(self, means: Tensor, camera: Camera) -> tuple[Tensor, Tensor]:
        """Where places [N, 3] are seen from the centre, in tangents [N, 2], and their depth [N]."""
        tangents, depth = _seen(means, camera)
        return tangents - _seen(self.centre.to(means)[None], camera)[0], depth


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
    none = Sway(torch.zeros(3), torch.zeros(len(TORSO_NAMES), 3), left)
    every = max(EVERY, -(-len(clip.train_rows) // MOST))
    rows = clip.train_rows[::every]
    if len(rows) < MIN_FRAMES:
        return none
    poses = clip.track.head_pose[rows]
    off = (poses - poses.median(0).values).flatten(1).norm(dim=1)
    reference_row = int(rows[int(off.argmin())])
    reference, mask = _look(clip, reference_row)
    if mask.mean() < MIN_SHARE:
        return none
    there = np.argwhere(mask > 0).mean(0)[::-1]  # x, y of the small picture
    scale = PROTOCOL_SIZE / SIZE
    centre = _under(clip.camera(reference_row), scale * (there + 0.5))
    framing = _framing(clip, reference_row, centre)
    unit = scale / float(clip.camera(reference_row).K[0, 0])
    walks = in_halves(lambda half: _followed(clip, half, reference, framing / unit), rows.tolist())
    warps = np.concatenate(walks)
    known = np.isfinite(warps).all((1, 2))
    if known.sum() < MIN_FRAMES:
        return none
    files = clip.track.file_index.numpy()
    motion = _motions(warps[known], there) * (unit, unit, 1.0)
    motion[:, :2] -= framing[files[rows[known]]]
    coefficients = torso_coefficients(poses).double().numpy()[known]
    per_pose, rest = _explained(coefficients, motion)
    times = clip.time_s.double().numpy()
    for file in range(len(clip.track.cameras)):
        own = np.flatnonzero(files[rows[known]] == file)
        if len(own):
            some = np.asarray(files == file).nonzero()[0]
            held = _held_between(times[rows[known][own]], rest[own], times[some])
            left.index_copy_(0, torch.from_numpy(some), torch.from_numpy(held))
    return Sway(centre, torch.from_numpy(per_pose).float(), left)


def _under(camera: Camera, pixel: Floats) -> Tensor:
    """The place [3] under a pixel, as deep as the head at rest."""
    tangents = (torch.from_numpy(pixel).float() - camera.K[:2, 2]) / camera.K[0, 0]
    turn, shift = camera.world_to_cam[:3, :3], camera.world_to_cam[:3, 3]
    return turn.T @ (torch.cat((tangents, tangents.new_ones(1))) * shift[2] - shift)


def _framing(clip: Clip, reference: int, place: Tensor) -> Floats:
    """By how much [F, 2], in tangents, the camera of each file sees a place elsewhere than that of
    the reference does: files may be cropped in different places."""
    at = [c.K[:2, :2] @ _seen(place[None], c)[0][0] + c.K[:2, 2] for c in clip.track.cameras]
    own = int(clip.track.file_index[reference])
    pixels = torch.stack(at) - at[own]
    return (pixels / clip.track.cameras[own].K[0, 0]).double().numpy()


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


def _followed(
    clip: Clip, rows: Iterator[int], reference: NDArray[np.float32], framing: Floats
) -> Floats:
    """Rigid maps [T, 2, 3] of the reference's torso into each frame; NaN where it is not found.

    By the enhanced correlation coefficient (Evangelidis and Psarakis 2008), which light does not
    mislead, from where the frame before it was, or its file is framed (``framing`` [F, 2], pixels).
    """
    import cv2

    found: list[Floats] = []
    start, file = np.eye(2, 3, dtype=np.float32), -1
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, STEPS, ENOUGH)
    for row in rows:
        if int(clip.track.file_index[row]) != file:
            file = int(clip.track.file_index[row])
            start = np.column_stack((np.eye(2), framing[file])).astype(np.float32)
        picture, mask = _look(clip, row)
        found.append(np.full((2, 3), np.nan))
        try:
            likeness, warp = cv2.findTransformECC(
                reference, picture, start.copy(), cv2.MOTION_EUCLIDEAN, criteria, mask, SOFTNESS
            )
        except cv2.error:  # it found nothing to hold on to
            continue
        if likeness >= LEAST_LIKENESS:
            start = np.asarray(warp, np.float32)
            found[-1] = start.astype(np.float64)
    return np.stack(found) if found else np.zeros((0, 2, 3))


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


def _held_between(known_s: Floats, values: Floats, time_s: Floats) -> NDArray[np.float32]:
    """Values [P, 3] of some instants at others [T], linear between; zero far from any."""
    after = np.searchsorted(known_s, time_s).clip(1, max(len(known_s) - 1, 1))
    before = known_s[after - 1]
    nearest = np.minimum(np.abs(time_s - before), np.abs(time_s - known_s[after % len(known_s)]))
    between = [np.interp(time_s, known_s, column) for column in values.T]
    return np.where(nearest[:, None] <= NEAR_S, np.stack(between, -1), 0.0).astype(np.float32)
