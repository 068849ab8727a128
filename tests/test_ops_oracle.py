"""The rasterizer against an oracle that shares no line with it: nerfacc's dense compositing.

The Gaussians' footprints come from scipy's rotations and from automatic derivatives of the pinhole
projection, the compositing from nerfacc in plain torch, which runs on any machine. This is the only
importer of nerfacc.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from gsavatar import ops
from gsavatar.types import Rendering
from tests.test_ops_rasterize import Scene, assert_alike, call, cotangents, leaves, scene

nerfacc = pytest.importorskip("nerfacc", reason="nerfacc is not installed; it is in gsavatar[dev]")

SIDE = 40
LEARNED = ("means", "scales", "opacities", "colors")


def inside(count: int) -> Scene:
    """Gaussians that all lie in the picture: beyond its margin ours follow another rule."""
    s = scene(count, seed=count, side=SIDE, size=0.02 if count > 1 else 0.1)
    s["means"] = 0.5 * s["means"]
    s["screen_probe"] = torch.zeros_like(s["screen_probe"])
    return s


def footprints(s: Scene) -> tuple[Tensor, Tensor, Tensor]:
    """Screen means [N, 2], covariances [N, 2, 2] before the blur, and depths [N]."""
    K, world_to_cam = s["K"], s["world_to_cam"]
    turn = Rotation.from_quat(np.roll(s["quats"].detach().numpy(), -1, axis=-1)).as_matrix()
    axes = torch.from_numpy(turn) @ torch.diag_embed(s["scales"])

    def on_screen(point: Tensor) -> Tensor:
        seen = K @ (world_to_cam[:3, :3] @ point + world_to_cam[:3, 3])
        return seen[:2] / seen[2]

    slopes = torch.func.vmap(torch.func.jacrev(on_screen))(s["means"]) @ axes
    depths = s["means"] @ world_to_cam[2, :3] + world_to_cam[2, 3]
    return torch.func.vmap(on_screen)(s["means"]), slopes @ slopes.mT, depths


def by_rays(s: Scene) -> Rendering:
    """The picture of a ray through every pixel, each Gaussian a sample of it."""
    screen, covariance, depths = footprints(s)
    blurred = covariance + 0.3 * torch.eye(2, dtype=covariance.dtype)
    share = (torch.linalg.det(covariance) / torch.linalg.det(blurred)).sqrt()
    y, x = torch.meshgrid(
        torch.arange(SIDE).double() + 0.5, torch.arange(SIDE + 7).double() + 0.5, indexing="ij"
    )
    away = torch.stack((x, y), dim=-1).reshape(-1, 1, 2) - screen  # [P, N, 2]
    distance = (away * torch.linalg.solve(blurred, away[..., None])[..., 0]).sum(-1)
    alpha = (s["opacities"] * share).clamp_max(0.999) * (-0.5 * distance).exp()
    order = depths.argsort()
    alpha = torch.where(alpha < 1 / 255, 0.0, alpha)[:, order]
    weights, _ = nerfacc.render_weight_from_alpha(alpha)

    def summed(values: Tensor) -> Tensor:
        channels = values[order].reshape(1, len(order), -1).expand(len(weights), -1, -1)
        return nerfacc.accumulate_along_rays(weights, channels).reshape(SIDE, SIDE + 7, -1)

    covered = summed(torch.ones_like(depths))
    of_branch = torch.eye(3, dtype=torch.float64)[s["branch"].long()]
    rgb = summed(s["colors"]) + (1 - covered) * s["background"]
    return Rendering(rgb, covered, summed(of_branch), summed(depths))


# Ours stop a pixel at a transmittance of 1e-4; nerfacc goes on to the last Gaussian.
@pytest.mark.parametrize("count", [1, 150])
def test_native_and_reference_are_what_rays_see(count: int) -> None:
    exact = leaves(inside(count), torch.float64)
    want, v = by_rays(exact), cotangents(SIDE)
    sum((getattr(want, name) * v[name]).sum() for name in v).backward()
    assert want.alpha.mean() > 0.01 and (count == 1 or want.alpha.max() > 0.99)
    for function, dtype in ((ops.rasterize, torch.float32), (ops.rasterize_ref, torch.float64)):
        inputs = leaves(inside(count), dtype)
        got = call(function, inputs, SIDE)
        sum((getattr(got, name) * v[name].to(dtype)).sum() for name in v).backward()
        for name in v:
            assert_alike(name, getattr(got, name).detach(), getattr(want, name).detach(), 3e-4)
        for name in LEARNED:
            assert_alike(name, inputs[name].grad, exact[name].grad, 5e-3)
