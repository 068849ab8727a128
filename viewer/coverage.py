"""Which views of the head the clip showed: how far a page's view is from the nearest of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gsavatar.types import Camera, Curves

GUESS_BEYOND_DEG, GUESS_UNTIL_DEG = 10.0, 7.0
"""A view further than the first from every filmed one shows sides of the head that no picture
taught, until it comes nearer than the second."""


def directions(camera_position: Tensor, head_pose: Tensor) -> Tensor:
    """Unit vectors [*B, 3] from the head to a camera in the room [3], in the head frame."""
    away = camera_position.double() - head_pose[..., :3, 3].double()
    seen = (head_pose[..., :3, :3].double().mT @ away[..., None])[..., 0]
    return torch.nn.functional.normalize(seen, dim=-1)


@dataclass(frozen=True)
class Coverage:
    """The directions from which a clip showed its head."""

    filmed: Tensor  # [T, 3], unit, head frame

    @classmethod
    def of(cls, camera: Camera, performance: Curves) -> Coverage:
        """What a clip's camera saw of a head that moved like this."""
        place = torch.linalg.inv(camera.world_to_cam.double())[:3, 3]
        return cls(directions(place, performance.head_pose))

    def distance_deg(self, camera_position: Tensor, head_pose: Tensor) -> float:
        """Angle in degrees from a view of a head at ``head_pose`` [4, 4] to the nearest filmed."""
        cosine = (self.filmed @ directions(camera_position, head_pose)).max()
        return math.degrees(math.acos(float(cosine.clamp(-1.0, 1.0))))


def is_guess(distance_deg: float, before: bool) -> bool:
    """Whether a view this far from the filmed ones is a guess; slow to change its mind.

    ``before`` is the answer for the view just left: a nodding head does not make it flicker.
    """
    return distance_deg > (GUESS_UNTIL_DEG if before else GUESS_BEYOND_DEG)
