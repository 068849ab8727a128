"""The colour of what no training frame shows: the back of the head, what lies behind the ears.

Gaussians there are learned from what little shines through the hair in front of them, and Adam
takes a faint gradient for as much as a strong one: from the front nobody sees it, from beside the
back of a head is red and blue. They are given the colour of the nearest surface that was seen, hair
from scalp and skin from skin, again and again: what is in front of them has to learn to hide them.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from gsavatar.avatar import Avatar
from gsavatar.clip import Clip
from gsavatar.morphable_surface import nearest_of
from gsavatar.ops.evaluate_sh import SH_0
from gsavatar.ops.rasterize_ref import project_ref
from gsavatar.render import render
from gsavatar.seeding import spread_rows
from gsavatar.surround import Look
from gsavatar.types import Branch, Camera, Drive, FacePart, Gaussians, to_device

SEEN_SHARE = 0.1
"""A Gaussian of whose alpha less than this reaches any training picture is not seen."""
NEIGHBOURS = 16
SOFTNESS_M = 0.005
"""Neighbours nearer than this count alike."""
SMALLEST_PX = 0.3
FRAMES, SIZE = 8, 256
PAINT_EVERY = 100
"""Training steps from one painting to the next."""


class Unseen:
    """Which parts of a clip's head no training frame shows, and what colour they should have."""

    def __init__(self, clip: Clip, look: Look) -> None:
        self.clip, self.look = clip, look
        self._nearest = nearest_of(look.points.numpy())

    @torch.no_grad()
    def paint(self, avatar: Avatar) -> int:
        """Sets, in place, the colours of the face branch's unseen Gaussians; how many they are.

        Unseen are those nearest to a part of the fitted mesh that faces no training camera, of
        which other Gaussians hide nine tenths in every frame looked at.
        """
        at = next(i for i, b in enumerate(avatar.branches) if b.kind == Branch.FACE)
        start = sum(len(b.raw) for b in avatar.branches[:at])
        raw, look = avatar.branches[at].raw, self.look
        means, device = raw.means.cpu(), raw.means.device
        near = torch.from_numpy(self._nearest(means.numpy()))
        share = seen_share(avatar, self.clip)[start : start + len(raw)].cpu()
        hidden = ~look.faced[near] & (share < SEEN_SHARE)
        is_scalp = look.part == int(FacePart.SCALP)
        for kind in (True, False):
            rows = (hidden & (is_scalp[near] == kind)).nonzero()[:, 0]
            palette = look.known & (is_scalp == kind)
            if len(rows) and palette.any():
                colors = _mixed(means[rows], look.points[palette], look.colors[palette])
                at_rows = rows.to(device)
                raw.sh[at_rows] = 0.0
                raw.sh[at_rows, 0] = ((colors - 0.5) / SH_0).to(device)
        return int(hidden.sum())


def _mixed(places: Tensor, points: Tensor, colors: Tensor) -> Tensor:
    """Colours [M, 3] at places [M, 3]: those [P, 3] of the nearest points [P, 3], mixed."""
    distance, near = torch.cdist(places, points).topk(min(NEIGHBOURS, len(points)), largest=False)
    weight = 1.0 / (distance + SOFTNESS_M).square()
    return (weight[..., None] * colors[near]).sum(1) / weight.sum(1, keepdim=True)


def seen_share(avatar: Avatar, clip: Clip) -> Tensor:
    """How much of its own alpha each Gaussian [N] brings into a picture, at most over frames.

    A Gaussian's part of a picture is the gradient of the summed picture by its colour; alone it
    would fill ``2 pi opacity sqrt(det covariance)`` pixels.
    """
    device = avatar.branches[0].raw.means.device
    best = torch.zeros(len(avatar), device=device)
    for row in spread_rows(clip.train_rows, FRAMES):
        drive = Drive(clip.track.coefficients[row], clip.track.head_pose[row])
        gaussians = avatar(to_device(drive, device))
        camera = to_device(clip.camera(row).resized(SIZE, SIZE), device)
        with torch.enable_grad():
            sh = gaussians.sh.detach().clone().requires_grad_()
            shown = render(replace(gaussians, sh=sh), camera, sh.new_zeros(3))
            (gradient,) = torch.autograd.grad(shown.rgb.sum(), sh)
        brought = gradient[:, 0].mean(-1) / SH_0
        best = torch.maximum(best, brought / _alone(gaussians, camera).clamp_min(SMALLEST_PX))
    return best


def _alone(gaussians: Gaussians, camera: Camera) -> Tensor:
    """The sum [N] of each Gaussian's alpha over a picture that shows it alone, in pixels."""
    _, _, covariance, compensation = project_ref(
        gaussians.means, gaussians.quats, gaussians.scales, camera.world_to_cam, camera.K,
        camera.width, camera.height,
    )  # fmt: skip
    area = 2.0 * torch.pi * torch.linalg.det(covariance).clamp_min(0.0).sqrt()
    return gaussians.opacities * compensation * area
