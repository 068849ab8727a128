"""The light that falls on a head, by which way its skin looks.

A head turns under lights that stand still, so that a patch of skin grows brighter and darker and
its gradients move over it. Light from afar on matte skin is a function of the skin's normal that
nine harmonics tell to a per cent (Ramamoorthi and Hanrahan, "An efficient representation for
irradiance environment maps", 2001). It follows from how bright points of the skin are in several
views, their own brightness unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gsavatar.morphable import Floats, Ints
from gsavatar.tracking_solve import Lens, Poses, project
from gsavatar.tracking_surface import Surface

BLUR_PX = 1.0
LEAST_FACING = 0.35
ROUNDS, ROBUST = 8, 0.05
"""Alternations between light and skin; error of a logarithm beyond which a sample is doubted."""
LEAST_LIGHT = 0.1
"""Least light, over the median, that the model may tell."""
LEAST_SAMPLES = 500
DARKEST, BRIGHTEST = 4.0, 250.0
"""Grey levels beyond which a picture is clipped and says nothing of light."""
LEAST_GAIN = 0.7
"""What a light must leave of the spread of brightness, at most, to be believed."""


@dataclass(frozen=True)
class Light:
    """Light from afar on a head."""

    amounts: Floats  # [9], of the harmonics
    least: float  # of how bright skin of one colour is, whichever way it looks

    def on(self, normals: Floats) -> Floats:
        """How bright skin of one colour is [...] whose normals are ``normals`` [..., 3] in the
        camera's axes."""
        return np.asarray(np.maximum(harmonics(normals) @ self.amounts, self.least))


def harmonics(normals: Floats) -> Floats:
    """Polynomials [..., 9] of normals [..., 3] that span the harmonics up to the second order."""
    x, y, z = normals[..., 0], normals[..., 1], normals[..., 2]
    return np.stack((np.ones_like(x), x, y, z, x * y, x * z, y * z, x * x, y * y), axis=-1)


def fit_light(  # noqa: PLR0917
    grays: Sequence[NDArray[np.float32]], poses: Poses, expressions: Floats, surface: Surface,
    lens: Lens,
) -> Light | None:  # fmt: skip
    """The light on a head in grey pictures [H, W]; None where it explains little.

    ``poses`` [T] and ``expressions`` [T, K] are the pictures'.
    """
    point, value, normal = _samples(grays, poses, expressions, surface, lens)
    if len(point) < LEAST_SAMPLES:
        return None
    basis, told = harmonics(normal), np.log(value)
    skin, weight = np.ones(len(surface.points)), np.ones(len(point))
    light, off = Light(np.zeros(9), 0.0), told
    for _ in range(ROUNDS):
        by_light = basis * skin[point, None]
        left = (by_light * weight[:, None]).T @ by_light
        left[np.diag_indices(9)] *= 1.0 + 1e-6
        amounts = np.linalg.solve(left, (by_light * weight[:, None]).T @ value)
        light = Light(amounts, LEAST_LIGHT * float(np.median(basis @ amounts)))
        if not light.least > 0:
            return None
        shone = light.on(normal)
        lit = np.bincount(point, weight * shone * value, len(skin))
        square = np.bincount(point, weight * shone**2, len(skin))
        skin = np.where(square > 0, lit / np.maximum(square, 1e-12), 1.0)
        skin /= np.median(skin[square > 0])
        off = told - np.log(np.maximum(skin[point] * shone, 1.0))
        weight = 1.0 / (1.0 + (off / ROBUST) ** 2)
    seen = np.bincount(point, minlength=len(skin))
    mean = np.bincount(point, told, len(skin)) / np.maximum(seen, 1)
    before = np.median(np.abs(told - mean[point]))
    return light if np.median(np.abs(off)) < LEAST_GAIN * before else None


def _samples(  # noqa: PLR0917
    grays: Sequence[NDArray[np.float32]], poses: Poses, expressions: Floats, surface: Surface,
    lens: Lens,
) -> tuple[Ints, Floats, Floats]:  # fmt: skip
    """Points of a surface in pictures: which [S], how bright [S], normals in the camera [S, 3]."""
    import cv2

    points, values, normals = [np.zeros(0, np.int64)], [np.zeros(0)], [np.zeros((0, 3))]
    facing = surface.facing(poses) > LEAST_FACING
    for t, gray in enumerate(grays):
        here = poses[np.array([t])]
        flat, _ = project(here, surface.at(expressions[t])[None], lens)
        inside = ((flat[0] > 1) & (flat[0] < np.array(gray.shape[::-1]) - 1)).all(1)
        shown = np.flatnonzero(facing[t] & inside)
        if len(shown) == 0:
            continue
        x, y = (flat[0, shown].T[..., None] - 0.5).astype(np.float32)
        soft = cv2.GaussianBlur(gray, (0, 0), BLUR_PX)
        value = cv2.remap(soft, x, y, cv2.INTER_LINEAR)[:, 0].astype(np.float64)
        told = (value > DARKEST) & (value < BRIGHTEST)
        points.append(shown[told])
        values.append(value[told])
        normals.append(surface.normals[shown[told]] @ here.R[0].T)
    return np.concatenate(points), np.concatenate(values), np.concatenate(normals)
