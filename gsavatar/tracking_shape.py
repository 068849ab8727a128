"""The person's rest face: identity, and offsets that the model cannot express."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from gsavatar import assets
from gsavatar.ahead import together
from gsavatar.errors import InputError
from gsavatar.morphable import ROW_IRIS_LEFT, ROW_IRIS_RIGHT, Floats, MorphableModel
from gsavatar.morphable_bfm import load_bfm
from gsavatar.morphable_clip import learn_clip_model
from gsavatar.morphable_flame import load_flame
from gsavatar.morphable_ict import load_ict
from gsavatar.tracking_outline import Outlines, Rim, Spread
from gsavatar.tracking_priors import (
    EXPRESSION_WEIGHT,
    EYELIDS,
    LIPS,
    RIGID_WEIGHT,
    SHAPE_WEIGHT,
    UsualScores,
    expression_prior,
)
from gsavatar.tracking_shape_step import ShapePrior, fit_shape
from gsavatar.tracking_slide import Slide, learn_slide, no_slide
from gsavatar.tracking_solve import (
    Lens,
    Poses,
    first_poses,
    fit_expressions,
    refine_poses,
    steadied,
)
from gsavatar.types import FacePart, is_upper_face

ROUNDS, FIRST_AGAIN = 6, 2
"""How many, and the first of a fit that goes on from another's shape."""
SLIDE_ROUNDS = (1, 3, 5)
"""Before which of them the landmarks' slide is learned; it needs a shape."""
OUTLINE_FROM = 2
"""Round from which on the face's outline is looked for."""
EFFECTIVE_FRAMES = 12.0
"""A detector errs alike in similar frames: hundreds of them know little more than a dozen."""
FIELDS_M = ((0.003, 0.02), (0.0015, 0.006))
"""Departure of a person from the model: smooth fields, each its size and correlation length."""
SLIP_SD_M, CONTOUR_SLIP_SD_M = 0.0025, 0.0003
"""A landmark's own offset: where the detector puts it, against where the embedding does. Lips, lids
and irises are drawn by their landmarks, so there the mesh must follow."""
UPPER_LIP, LOWER_LIP = 13, 14
EYE_HEIGHTS = ((159, 145), (386, 374))
CALM_MOUTH, CALM_EYES = 35.0, 30.0
"""Percentiles of the openings below and above which mouth and eyes count as at rest."""
REST_LIMIT = 0.6
PIECE = 1000
"""Vertices whose distances from all landmarks are held at once."""
WIDE_PERCENTILE = 98.0
"""Of how far speech moves the skin; beyond are errors of single frames."""
FIELD_PARTS = (FacePart.SKIN, FacePart.LIPS, FacePart.SCALP, FacePart.NECK, FacePart.LASH)
MOUTH_PARTS = (FacePart.UPPER_TEETH, FacePart.LOWER_TEETH, FacePart.TONGUE, FacePart.SOCKET)


@dataclass(frozen=True)
class Fit:
    """A model fitted to one person."""

    model: MorphableModel
    vertices: Floats  # [V, 3], the rest mesh
    rest: Floats  # [L, 3], where the detector's landmarks are at rest
    shapes: Floats  # [K, L, 3], how they move
    upper: Floats  # [K], 1 for shapes of the upper face
    rigid_weight: Floats  # [L]
    usual: UsualScores | None
    mobility: Floats  # [L], metres that jaw, lips and cheeks move each landmark at their widest
    slide: Slide  # where the detector sees the landmarks of a turned head
    edge: Rim | None  # the model's, where outlines were given
    found: tuple[Floats, Floats, Floats]  # identity [I], offsets [L, 3] and posture [K]


def load_model(
    provider: str, seen_px: Floats, lens: Lens, model_file: Path | None = None
) -> MorphableModel:
    """The provider's model; ``clip`` learns its own from landmarks [T, L, 2].

    Raises ``InputError`` if the provider's file is missing or no such model.
    """
    own = load_own(provider, model_file)
    if own is not None:
        return own
    return load_ict() if provider == "ict" else learn_clip_model(seen_px, lens)


def load_own(provider: str, model_file: Path | None) -> MorphableModel | None:
    """The model in the user's own file; None for providers that read none.

    Raises ``InputError`` if the file is missing, no such model, or given to another provider.
    """
    if provider in OWN_FILES:
        return OWN_FILES[provider](assets.own_file(provider, model_file))
    if model_file is not None:
        raise InputError(
            f"{model_file}: the face model {provider} reads no file; add --face-model "
            f"{' or '.join(OWN_FILES)}, or leave --face-model-file away."
        )
    return None


OWN_FILES = {"flame": load_flame, "bfm": load_bfm}


def fit_person(
    model: MorphableModel, seen_px: Floats, scores: Floats | None,
    usual: UsualScores | None, time_s: Floats, lens: Lens, held: Poses | None = None,
    outlines: Outlines | None = None, begun: Fit | None = None,
) -> Fit:  # fmt: skip
    """The person's shape from sample frames, by poses, expressions and shape in turn.

    With ``held`` poses [T], known better than landmarks know them, only the others are sought.
    ``outlines`` show where the face ends in some of the frames. ``begun`` is an earlier fit of the
    same model to the same person, from which this one goes on.
    """
    base = model.at_landmarks(model.neutral)
    identity = model.at_landmarks(model.identity)
    shapes = model.at_landmarks(model.expression)
    field, slip = _offset_covariances(base, model.provider)
    prior = ShapePrior(1.0, np.linalg.inv(field + np.diag(slip)))
    belief = expression_prior(model.names, scores, usual, time_s)
    # Sample frames lie apart in time: nothing ties neighbours together.
    belief = replace(belief, change_precision=np.zeros_like(belief.precision))
    upper = np.array([float(is_upper_face(name)) for name in model.names])
    beta: Floats = np.zeros(len(identity))
    rest, offset = base, np.zeros_like(base)
    at_rest: Floats = np.zeros(len(model.names))
    moved = np.zeros((len(seen_px), *base.shape))
    slide = no_slide(len(base))
    edge = None
    if begun is not None:
        (beta, offset, at_rest), rest, edge = begun.found, begun.rest, begun.edge
    if edge is None and outlines is not None:
        edge = Rim(model, base, _spread(base, field, slip))
    poses = held or first_poses(base, seen_px, RIGID_WEIGHT, lens)
    for step in range(0 if begun is None else FIRST_AGAIN, ROUNDS):
        if held is None:
            poses = refine_poses(poses, rest + moved, seen_px, RIGID_WEIGHT, lens)
        steady, _ = steadied(poses, rest + moved, seen_px, RIGID_WEIGHT, lens)
        if held is not None and step in SLIDE_ROUNDS:
            slide = learn_slide(
                poses, rest, shapes, steady, EXPRESSION_WEIGHT, lens, belief, EFFECTIVE_FRAMES
            )
        slid = slide.pixels(poses, lens)
        steady = steady - slid
        c = fit_expressions(
            poses, rest, shapes, steady.__getitem__, EXPRESSION_WEIGHT, lens, belief
        )
        calm = resting(c, steady)
        at_rest, c = np.clip(at_rest + calm, -REST_LIMIT, REST_LIMIT), c - calm
        moved, posture = np.tensordot(c, shapes, 1), np.tensordot(at_rest, shapes, 1)
        # Against held poses the face has a size and a place, which steadying would take out.
        plain = steady if held is None else seen_px - slid
        rim = None
        if edge is not None and outlines is not None and step >= OUTLINE_FROM:
            there = edge.rest(beta, offset, at_rest)
            rim = edge.sightings(outlines, poses, there, c, lens, EFFECTIVE_FRAMES)
        beta, offset = fit_shape(
            poses, base + posture, moved, identity, plain, SHAPE_WEIGHT, lens, prior,
            EFFECTIVE_FRAMES, (beta, offset), poses_known=held is not None, rim=rim,
        )  # fmt: skip
        rest = base + posture + np.tensordot(beta, identity, 1) + offset
        moved = np.tensordot(c * upper, shapes, 1) if step < ROUNDS - 1 else moved
    smooth = np.linalg.solve(field + np.diag(slip), offset)
    posture = np.tensordot(at_rest, model.expression, 1)
    vertices = model.rest(beta, _spread_offsets(model, base, smooth) + posture)
    spoken = np.tensordot(c * (1 - upper), shapes, 1)
    mobility = np.percentile(np.linalg.norm(spoken, axis=-1), WIDE_PERCENTILE, axis=0)
    return Fit(
        model, vertices, rest, shapes, upper, RIGID_WEIGHT, usual, mobility, slide, edge,
        (beta, offset, at_rest),
    )  # fmt: skip


def resting(coefficients: Floats, seen_px: Floats) -> Floats:
    """Coefficients [K] of the person's calm face: lips together and eyes open, by the landmarks.

    What a face always shows is its shape rather than an expression, so zero is put there.
    """
    mouth = np.linalg.norm(seen_px[:, UPPER_LIP] - seen_px[:, LOWER_LIP], axis=-1)
    eyes = sum(
        np.linalg.norm(seen_px[:, up] - seen_px[:, down], axis=-1) for up, down in EYE_HEIGHTS
    )
    calm = (mouth <= np.percentile(mouth, CALM_MOUTH)) & (eyes >= np.percentile(eyes, CALM_EYES))
    return np.asarray(np.median(coefficients[calm] if calm.any() else coefficients, axis=0))


def _kernel(a: Floats, b: Floats) -> Floats:
    """Covariance [A, B] in square metres of the smooth field between points [A, 3] and [B, 3]."""
    square = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
    return np.asarray(sum(sd**2 * np.exp(-0.5 * square / length**2) for sd, length in FIELDS_M))


def _offset_covariances(base: Floats, provider: str) -> tuple[Floats, Floats]:
    """Covariance of the smooth field [L, L] and variance of each landmark's own slip [L]."""
    # A clip's own model has its vertices where the landmarks are: nothing can slip.
    slip = np.full(len(base), (CONTOUR_SLIP_SD_M if provider == "clip" else SLIP_SD_M) ** 2)
    slip[[*LIPS, *EYELIDS, ROW_IRIS_RIGHT, ROW_IRIS_LEFT]] = CONTOUR_SLIP_SD_M**2
    return _kernel(base, base), slip


def _spread(base: Floats, field: Floats, slip: Floats) -> Spread:
    """What offsets of landmarks [L, 3] say of those of other skin."""
    known = np.linalg.inv(field + np.diag(slip))

    def spread(places: Floats) -> Floats:
        parts = np.array_split(places, max(len(places) // PIECE, 1))
        return np.concatenate(together(lambda part: _kernel(part, base) @ known, parts))

    return spread


def _spread_offsets(model: MorphableModel, base: Floats, smooth: Floats) -> Floats:
    """Offsets [V, 3] of all vertices: the field on the skin, a shift of what lies behind it."""
    offsets = np.zeros((len(model.neutral), 3))
    skin = np.flatnonzero(np.isin(model.part, [int(p) for p in FIELD_PARTS]))
    pieces = np.array_split(skin, max(len(skin) // PIECE, 1))
    spread = together(lambda rows: _kernel(model.neutral[rows], base) @ smooth, pieces)
    offsets[skin] = np.concatenate(spread)
    inside = np.isin(model.part, [int(p) for p in MOUTH_PARTS])
    offsets[inside] = (_kernel(base[list(LIPS)], base) @ smooth).mean(0)
    balls = model.part == int(FacePart.EYEBALL)
    for side in (-1.0, 1.0):
        lids = [i for i in EYELIDS if base[i, 0] * side > 0]
        own = balls & (model.neutral[:, 0] * side > 0)
        offsets[own] = (_kernel(base[lids], base) @ smooth).mean(0)
        row = ROW_IRIS_LEFT if side > 0 else ROW_IRIS_RIGHT
        offsets[own, :2] = (_kernel(base[[row]], base) @ smooth)[0, :2]
    return offsets
