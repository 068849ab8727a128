"""What moves Gaussians, and the motion that is linear in named coefficients: sum_k c_k B_k."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gsavatar.types import Drive, Offsets

TORSO_NAMES = ("poseRx", "poseRy", "poseRz", "poseTx", "poseTy", "poseTz")
"""The torso's own coefficients: the head's displacement from rest, scaled to about one."""

ROTATION_UNIT_RAD = 0.1
TRANSLATION_UNIT_M = 0.02

MEANS_UNIT_M = 0.05
"""Length of one unit of the basis' first three columns: one learning rate then suits all nine."""


class Motion(Protocol):
    """What moves a branch; ``LinearMotion`` and ``fields.FieldMotion`` are the two ways."""

    def offsets(self, means: Tensor, drive: Drive) -> Offsets:
        """Offsets of the Gaussians with canonical ``means`` [N, 3], each [*B, N, 3]."""
        ...


@dataclass(frozen=True)
class LinearMotion:
    """A basis over K coefficients for means, rotations and log scales of N Gaussians."""

    basis: Tensor  # [K, N, 9]: means in MEANS_UNIT_M, rotation vectors in radians, log scales
    seed: Tensor  # [K, N, 3]: the fitted model's displacement in metres, which B stays near

    def __call__(self, coefficients: Tensor) -> Offsets:  # [*B, K]
        """Offsets of every Gaussian, each [*B, N, 3]; zeros for zero coefficients."""
        k, count, _ = self.basis.shape
        moved = (coefficients @ self.basis.reshape(k, count * 9)).reshape(
            *coefficients.shape[:-1], count, 9
        )
        means, rotvecs, log_scales = moved.split(3, dim=-1)
        return Offsets(means * MEANS_UNIT_M, rotvecs, log_scales)

    def offsets(self, means: Tensor, drive: Drive) -> Offsets:
        """``Motion``: the offsets belong to the Gaussians, wherever their means are."""
        del means
        return self(drive.coefficients)


@torch.no_grad()
def regularise(motion: LinearMotion, around: Tensor, pull: float, blend: float) -> None:
    """Moves a basis in place towards its seed by the share ``pull`` and towards the mean of every
    Gaussian's neighbours ``around`` [N, k] by the share ``blend``.

    A proximal step beside the optimiser's, like decoupled weight decay (Loshchilov and Hutter
    2019): far cheaper than a loss, whose gradient would fill the whole basis at every step.
    """
    basis = motion.basis
    basis[..., :3].lerp_(motion.seed / MEANS_UNIT_M, pull)
    basis[..., 3:6].mul_(1.0 - pull)
    mean = torch.zeros_like(basis)
    for column in around.T:
        mean += basis.index_select(1, column)
    basis.lerp_(mean / around.shape[1], blend)


def seeded(seed: Tensor) -> LinearMotion:
    """The motion that equals the fitted model's shapes ``seed`` [K, N, 3]."""
    return LinearMotion(torch.nn.functional.pad(seed / MEANS_UNIT_M, (0, 6)), seed)


def torso_coefficients(head_pose: Tensor) -> Tensor:
    """``TORSO_NAMES`` [*B, 6] of a head pose [*B, 4, 4]; zeros at rest.

    The rotation part is the vector of the skew-symmetric part, which is first-order exact and
    enough for the linear model that reads it.
    """
    r = head_pose[..., :3, :3]
    skew = torch.stack(
        (r[..., 2, 1] - r[..., 1, 2], r[..., 0, 2] - r[..., 2, 0], r[..., 1, 0] - r[..., 0, 1]),
        dim=-1,
    )
    return torch.cat(
        (0.5 * skew / ROTATION_UNIT_RAD, head_pose[..., :3, 3] / TRANSLATION_UNIT_M), dim=-1
    )
