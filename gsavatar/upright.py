"""Which way up the faces of a video are, for videos whose rotation flag is missing or wrong."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gsavatar.landmarks import OUTER_EYE_CORNERS, FaceDetection, FaceLandmarker
from gsavatar.video_colour import turned

UInt8 = NDArray[np.uint8]

MOST_FACES = 0.6
"""Pictures lie on a side when that share of their faces is nearer to lying than to standing. Some
of them are then seen the wrong way round."""
MOST_TRIED = 50
LOST_SHARE, OVER_SHARE = 0.1, 0.8
"""In two of three pictures that stand on their head the detector sees a face, and sees it upright.
They are told by the rest: at least the first share of all, and the second of it shows a face when
it is turned over."""


@dataclass
class Stance:
    """How faces stand in the pictures that were looked at so far."""

    rolls_deg: list[float] = field(default_factory=list)
    looks: int = 0
    lost: int = 0  # looks without a face, of the first of which it is known ...
    tried: int = 0
    over: int = 0  # ... whether the picture shows one when it is turned over

    def faces(self, picture: UInt8, landmarker: FaceLandmarker) -> list[FaceDetection]:
        """The faces in a picture, which count from now on."""
        found = landmarker.detect(picture)
        self.looks += 1
        self.rolls_deg += [roll_deg(face.points) for face in found]
        if not found:
            self.lost += 1
            if self.tried < MOST_TRIED:
                self.tried += 1
                self.over += bool(landmarker.detect(turned(picture, 2)))
        return found

    @property
    def quarters(self) -> int:
        """Clockwise quarter turns, 0 to 3, that set the faces upright; 0 where that is unclear."""
        nearest = np.round(np.array(self.rolls_deg) / 90.0).astype(int)
        stands, left, over, right = np.bincount(-nearest % 4, minlength=4)
        most = MOST_FACES * len(nearest)
        if left != right and left + right >= most:
            return 1 if left > right else 3
        lost = self.lost >= max(LOST_SHARE * self.looks, 2)
        told = lost and self.over >= OVER_SHARE * self.tried
        return 2 if over > most or (told and stands >= most) else 0


def roll_deg(points: NDArray[np.floating]) -> float:
    """How far a face [478, 2 or 3] is turned clockwise in its picture: the slope of its eyes."""
    right, left = (points[i, :2] for i in OUTER_EYE_CORNERS)
    x, y = (left - right).astype(np.float64)
    return float(np.degrees(np.arctan2(y, x)))
