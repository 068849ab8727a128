"""Small corrections of a clip's head poses, learnt from the pictures together with the avatar.

A tracker's poses are off by fractions of a pixel, mostly by amounts that change slowly; the avatar
would learn the blur. The gradient that reaches the posed Gaussians says which way (as in BARF, Lin
et al. 2021, whose cameras move). Corrections are held at knots in time and are linear between: a
frame is drawn too rarely in a short training to learn six numbers of its own, and frames that are
never drawn are corrected by their neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gsavatar.geometry import se3_exp
from gsavatar.types import Drive

KNOT_S = 0.2
UNITS = (2e-4, 2e-4, 1e-3, 2e-3, 2e-3, 2e-3)
"""Metres and radians of one unit: each moves skin by about a third of a pixel at 512 px."""
LIMIT = 10.0
BETAS, EPSILON = (0.8, 0.95), 1e-12
RATES = (0.15, 0.02)
"""Units a step, when refinement starts and at the end of training."""
STARTS = 0.2
"""Share of the steps before which the cloud is too rough to say anything about poses."""
PULL = 0.005
"""Share by which a knot returns to the tracker's pose whenever it is touched."""


@dataclass(frozen=True)
class Correction:
    """What is added to one frame's pose, with the graph that its gradient needs."""

    leaf: Tensor  # [6], in UNITS
    knots: Tensor  # [2] int64
    shares: Tensor  # [2]

    def applied(self, drive: Drive) -> Drive:
        """The drive with the head turned and shifted about its own origin."""
        twist = self.leaf * torch.tensor(UNITS)
        turn = se3_exp(twist).to(drive.head_pose.device)
        return replace(drive, head_pose=drive.head_pose @ turn)


class PoseCorrections:
    """Twists at knots in time, with Adam's moments of their own (Kingma and Ba 2015).

    Only knots next to the drawn frame move. Their mean is kept at zero: where the head frame lies
    is the cloud's to say, and frames that are never corrected must stay where they are.
    """

    NAMES = ("twists", "first", "second", "seen")

    def __init__(self, knots: int) -> None:
        self.twists, self.first, self.second = torch.zeros(3, knots, 6)
        self.seen = torch.zeros(knots)

    @staticmethod
    def count(time_s: Tensor) -> int:
        """Knots that cover the instants [T]."""
        return int(float(time_s.max() - time_s.min()) / KNOT_S) + 2

    def at(self, time_s: float) -> Correction:
        """The correction at an instant, counted from the clip's first."""
        place = min(max(time_s / KNOT_S, 0.0), len(self.twists) - 1.001)
        knots = torch.tensor([int(place), int(place) + 1])
        late = place - int(place)
        shares = torch.tensor([1.0 - late, late])
        leaf = (shares[:, None] * self.twists[knots]).sum(0).requires_grad_()
        return Correction(leaf, knots, shares)

    @torch.no_grad()
    def learn(self, correction: Correction, share: float) -> None:
        """One step along the gradient of ``correction``, at a share of all steps."""
        gradient = correction.leaf.grad
        if gradient is None or share < STARTS:
            return
        on_way = (share - STARTS) / (1.0 - STARTS)
        rate = RATES[0] ** (1.0 - on_way) * RATES[1] ** on_way
        rows = correction.knots
        slopes = correction.shares[:, None] * gradient
        self.seen[rows] += 1.0
        self.first[rows] = BETAS[0] * self.first[rows] + (1.0 - BETAS[0]) * slopes
        self.second[rows] = BETAS[1] * self.second[rows] + (1.0 - BETAS[1]) * slopes.square()
        times = self.seen[rows, None]
        mean = self.first[rows] / (1.0 - BETAS[0] ** times)
        size = (self.second[rows] / (1.0 - BETAS[1] ** times)).sqrt()
        step = rate * correction.shares[:, None] * mean / (size + EPSILON)
        moved = (1.0 - PULL) * self.twists[rows] - step
        self.twists[rows] = moved.clamp(-LIMIT, LIMIT)
        known = self.seen > 0
        self.twists[known] -= self.twists[known].mean(0)

    def state(self) -> dict[str, Tensor]:
        """Tensors that ``restored`` takes."""
        return {name: getattr(self, name) for name in self.NAMES}

    @staticmethod
    def restored(tensors: dict[str, Tensor]) -> PoseCorrections:
        """The corrections whose ``state`` was saved."""
        corrections = PoseCorrections(0)
        for name in PoseCorrections.NAMES:
            setattr(corrections, name, tensors[name].clone())
        return corrections
