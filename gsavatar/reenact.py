"""Another video as the performance: whoever speaks there moves the avatar."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from gsavatar import assets, crop, tracking
from gsavatar.errors import InputError
from gsavatar.landmarks import FaceLandmarker, nearest
from gsavatar.morphable import choose_provider
from gsavatar.package import Package
from gsavatar.progress import Progress, Reporter
from gsavatar.tracking_shape import OWN_FILES
from gsavatar.types import PROTOCOL_SIZE, Curves, Landmarks

POINTS = 478


def video_curves(
    path: Path, package: Package, reporter: Reporter, face: str | None = None
) -> Curves:
    """The performance in a video in the names of its own fit, one row per frame with the face.

    The driver's face is fitted on its own, so it may be anybody's; ``face`` tells whose, as for
    ``crop.plan``. Raises ``InputError`` if the file is no video, shows no face, or several, and if
    the avatar's face model is not here.
    """
    provider = _provider(package)
    with reporter.stage("look through the driving video") as progress:
        plan = crop.plan([path], face=face, progress=progress)[0]
    with reporter.stage("find its landmarks") as progress:
        landmarks, time_s = _landmarks(plan, progress)
    with reporter.stage("fit its face") as progress:
        return tracking.drive_curves(landmarks, time_s, provider, progress=progress)


def _provider(package: Package) -> str:
    """The face model whose coefficients mean what the avatar's do.

    A face learned from its clip has coefficients of its own scale, which only it fits; all others
    share ARKit's. Raises ``InputError`` if none of those models is here.
    """
    own = str(package.card.get("provider", "auto"))
    if own in ("auto", "clip"):
        return own
    if choose_provider() == "ict":
        return "ict"
    if own in OWN_FILES and assets.own_path(own) is not None:
        return own
    raise InputError(
        f"--drive: this avatar was made with the face model {own}, and neither it nor ict is here; "
        "see gsavatar assets for its file, or use --audio or --curves."
    )


def _landmarks(plan: crop.CropPlan, progress: Progress) -> tuple[Landmarks, torch.Tensor]:
    """Landmarks of every frame of the planned part, and the frames' times in seconds."""
    total = plan.last_index - plan.first_index + 1
    points, times = [], []
    scores: list[np.ndarray | None] = []
    centre = np.full(2, PROTOCOL_SIZE / 2)
    with FaceLandmarker() as landmarker:
        for index, time_s, rgb in plan.footage.decode():
            if index > plan.last_index:
                break
            if index < plan.first_index:
                continue
            faces = landmarker.detect(crop.apply_crop(rgb, plan.box, PROTOCOL_SIZE))
            face = nearest(faces, centre)
            if face is not None:
                centre = face.points[:, :2].mean(0)
            points.append(np.full((POINTS, 3), np.nan) if face is None else face.points)
            scores.append(None if face is None else face.scores)
            times.append(time_s)
            progress(len(times), total)
    known = next((s for s in scores if s is not None), None)
    table = None
    if known is not None:
        blank = np.full_like(known, np.nan)
        table = torch.from_numpy(np.stack([blank if s is None else s for s in scores])).float()
    stacked = torch.from_numpy(np.stack(points)).float()
    found = torch.isfinite(stacked[:, 0, 0])
    return Landmarks(stacked, found, table), torch.tensor(times, dtype=torch.float64)
