"""The kernels: each op with its reference in plain torch, and which machinery serves it here."""

from __future__ import annotations

from gsavatar.ops.blend_motion import blend_motion, blend_motion_ref
from gsavatar.ops.evaluate_sh import evaluate_sh, evaluate_sh_ref
from gsavatar.ops.machinery import available
from gsavatar.ops.pose_gaussians import Pose, pose_gaussians, pose_gaussians_ref
from gsavatar.ops.rasterize import rasterize
from gsavatar.ops.rasterize_blended import Part, rasterize_blended
from gsavatar.ops.rasterize_ref import rasterize_ref
from gsavatar.ops.ssim import ssim, ssim_ref

__all__ = [
    "Part",
    "Pose",
    "available",
    "blend_motion",
    "blend_motion_ref",
    "evaluate_sh",
    "evaluate_sh_ref",
    "pose_gaussians",
    "pose_gaussians_ref",
    "rasterize",
    "rasterize_blended",
    "rasterize_ref",
    "ssim",
    "ssim_ref",
]
