"""Smooth random fields over the points of a face, as a few modes of unit deviation each."""

from __future__ import annotations

import functools

import numpy as np

from gsavatar.morphable import Floats

FieldSizes = tuple[tuple[float, float], ...]
"""Deviation and correlation length (metres) of each of the fields that are added up."""


def smooth_modes(points: Floats, fields: FieldSizes, most: int) -> Floats:
    """The strongest modes [P, M] of the sum of fields at points [P, 3] (Karhunen-Loeve)."""
    return _modes(np.ascontiguousarray(points, np.float64).tobytes(), fields, most)


@functools.lru_cache(maxsize=4)
def _modes(points: bytes, fields: FieldSizes, most: int) -> Floats:
    """The same; a fit asks for those of one face again and again."""
    from scipy.linalg import eigh

    at = np.frombuffer(points).reshape(-1, 3)
    square = ((at[:, None] - at[None]) ** 2).sum(-1)
    covariance = sum(sd**2 * np.exp(-0.5 * square / length**2) for sd, length in fields)
    last = len(at) - 1
    value, modes = eigh(covariance, subset_by_index=(max(last + 1 - most, 0), last))
    made = np.asarray(modes * np.sqrt(np.maximum(value, 0.0)))
    made.flags.writeable = False
    return made


def both_ways(modes: Floats) -> Floats:
    """Modes [2 P, 2 M] of independent fields along x and y, rows as x, y of each point in turn."""
    points, count = modes.shape
    plane = np.zeros((2 * points, 2 * count))
    plane[0::2, :count] = plane[1::2, count:] = modes
    return plane
