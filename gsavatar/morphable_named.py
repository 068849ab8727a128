"""ARKit's names for models whose expressions have none.

What each name should do is drawn at the landmarks (``morphable_clip.drawn_shapes``, which needs no
asset, and a few more here). A model with expression directions of its own gets the combination of
them that comes closest by least squares; where that misses what the name says, and for models
without expressions, the drawn displacements are spread over the skin instead.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

from gsavatar import morphable_head
from gsavatar.morphable import MESH_POINTS, Floats, Ints, canonical_face
from gsavatar.morphable_clip import CLIP_NAMES, FULL_M, SIDES, drawn_shapes, jaw_weight
from gsavatar.morphable_surface import Surface, lip_sides, vertex_normals
from gsavatar.tracking_priors import EXPRESSION_WEIGHT, LIPS, LOWER_LIP, UPPER_LIP

log = logging.getLogger("gsavatar")

JAW_SIDE_M, JAW_FORWARD_M, FUNNEL_M, FROWN_M, EYE_WIDE_M = 0.008, 0.005, 0.007, 0.010, 0.003
"""Travel of the face at coefficient 1, beside ``morphable_clip.FULL_M``."""
SIDE_RAMP_M = 0.01
"""Half the width over which one side of the mouth passes into the other."""

ERROR_SD_M = 0.001
"""How closely a combination should follow a drawn landmark; its weights are of deviation 1."""
DEPTH_WEIGHT = 0.3
"""What the drawn shapes say about depth is a guess."""
ENOUGH, MOST_GAIN = 0.5, 2.0
"""Least share of a drawn shape that a combination must explain, and how far it may be amplified."""
EXACT = ("eyeBlink",)
"""Shapes whose remainder is spread on top: an eye has to shut whatever the model knows of lids."""

SKIN_M, FADE_M = 0.003, 0.015
"""Up to where a vertex lies on the landmarks' surface, and how its hold on the vertex fades."""
OTHER_LIP_M = 0.006


def drawn_targets(rest: Floats) -> dict[str, Floats]:
    """What each name does to landmarks [470, 3] at coefficient 1: displacements [470, 3]."""
    targets: dict[str, Floats] = {}
    for name, shape in zip(CLIP_NAMES, drawn_shapes(rest), strict=True):
        if name in ("mouthUpperUp", "mouthLowerDown"):
            for side, sign in SIDES.items():
                targets[name + side] = shape * _ramp(rest, sign)[:, None]
        else:
            targets[name] = shape
    jaw = jaw_weight(rest)[:, None]
    arm = rest - morphable_head.jaw_hinge(rest)
    reach = float(arm[list(morphable_head.CHIN_MIDDLE), 2].mean())
    sideways = jaw * np.cross([0.0, JAW_SIDE_M / reach, 0.0], arm)
    targets |= {"jawLeft": sideways, "jawRight": -sideways}
    targets["jawForward"] = jaw * [0.0, 0.0, JAW_FORWARD_M]
    targets["mouthFunnel"] = _funnel(rest)
    for side in SIDES:
        smile = targets[f"mouthSmile{side}"]
        targets[f"mouthFrown{side}"] = smile * (FROWN_M / FULL_M["mouthSmile"]) * [-0.3, -1.0, 0.0]
        blink = targets[f"eyeBlink{side}"]
        most = max(float(np.abs(blink[:, 1]).max()), 1e-6)
        targets[f"eyeWide{side}"] = -blink * EYE_WIDE_M / most
    return targets


def _ramp(rest: Floats, sign: float) -> Floats:
    """Share [L] of one side of the mouth; both sides' shares add up to 1."""
    middle = rest[list(UPPER_LIP + LOWER_LIP), 0].mean()
    t = np.clip(0.5 + sign * (rest[:, 0] - middle) / (2 * SIDE_RAMP_M), 0.0, 1.0)
    return np.asarray(t * t * (3 - 2 * t))


def _funnel(rest: Floats) -> Floats:
    """Lips that come forward and apart, their corners towards the middle."""
    shape = np.zeros_like(rest)
    lips, middle = list(LIPS), rest[list(LIPS)].mean(0)
    half = np.abs(rest[lips, 0] - middle[0]).max()
    across = (rest[lips, 0] - middle[0]) / half
    shape[lips, 0] = -across * FUNNEL_M * 0.6
    shape[lips, 2] = FUNNEL_M
    arch = 0.5 * FUNNEL_M * (1 - ((rest[:, 0] - middle[0]) / half) ** 2)
    shape[list(UPPER_LIP), 1] = arch[list(UPPER_LIP)]
    shape[list(LOWER_LIP), 1] = -arch[list(LOWER_LIP)]
    return shape


@dataclass(frozen=True)
class LandmarkSkin:
    """How each vertex of a mesh hangs on the landmarks that surround it."""

    ids: Ints  # [V, 3], landmarks
    weights: Floats  # [V, 3], fading to zero away from the landmarks' surface
    distance: Floats  # [V], metres from that surface

    def spread(self, values: Floats) -> Floats:
        """Values [..., V, C] at the vertices of values [..., 470, C] at the landmarks."""
        return np.asarray((values[..., self.ids, :] * self.weights[..., None]).sum(-2))


def hang_on_landmarks(
    rest: Floats, vertices: Floats, faces: Ints, lower: Floats | None
) -> LandmarkSkin:
    """The skin of a mesh [V, 3] whose landmarks lie at ``rest`` [470, 3].

    Openings of mouth and eyes are no surface; ``lower`` [V] keeps the lips apart where it is known.
    """
    triangles = canonical_face()[1]
    holes = (morphable_head.INNER_RING, *morphable_head.EYE_RINGS_OF)
    open_ = np.any([np.isin(triangles, ring).all(1) for ring in holes], axis=0)
    surface = Surface(rest[:MESH_POINTS], triangles[~open_])
    detour = None
    if lower is not None:
        side = lip_sides()
        of_face = side[surface.faces].mean(1)

        def detour(rows: Ints, found: Ints) -> Floats:
            return OTHER_LIP_M * np.maximum(of_face[found] * (0.5 - lower[rows]) * 2, 0.0)

    face, weights = surface.closest(vertices, vertex_normals(vertices, faces), detour)
    ids = surface.faces[face]
    places = (rest[ids] * weights[..., None]).sum(1)
    distance = np.linalg.norm(places - vertices, axis=1)
    fade = np.exp(-0.5 * (np.maximum(distance - SKIN_M, 0.0) / FADE_M) ** 2)
    return LandmarkSkin(ids, weights * fade[:, None], distance)


def combined(directions: Floats, target: Floats) -> tuple[Floats, float]:
    """Weights [E] of directions [E, 470, 3] nearest to ``target`` [470, 3], and how near.

    Maximum a posteriori with unit normal weights, then amplified to the length of the target; the
    second value is the share of the target that is explained, 0 to 1.
    """
    say = np.sqrt(EXPRESSION_WEIGHT / EXPRESSION_WEIGHT.max())[:, None] * [1.0, 1.0, DEPTH_WEIGHT]
    say[MESH_POINTS:] = 0.0  # eyeballs do not follow expressions
    b = (target * say).ravel()
    A = (directions * say).reshape(-1, len(b))
    system = A @ A.T / ERROR_SD_M**2 + np.eye(len(A))
    found = np.linalg.solve(system, A @ b / ERROR_SD_M**2)
    reached = found @ A
    common = float(reached @ b)
    if common <= 0.0:
        return np.zeros(len(A)), 0.0
    gain = min(common / float(reached @ reached), MOST_GAIN)
    explained = 1.0 - float(((gain * reached - b) ** 2).sum() / (b @ b))
    return gain * found, max(explained, 0.0)


def named_shapes(
    targets: dict[str, Floats], own: dict[str, Floats], directions: Floats, at_landmarks: Floats,
    skin: LandmarkSkin, hold: Floats,
) -> tuple[tuple[str, ...], Floats]:  # fmt: skip
    """Names and displacements [K, V, 3] of a model in the head frame.

    ``own`` shapes [V, 3] are taken as they are; the others are combined of ``directions``
    [E, V, 3], which move the landmarks by ``at_landmarks`` [E, 470, 3], or drawn on the skin where
    ``hold`` [V] is 1.
    """
    shapes: dict[str, Floats] = {}
    drawn = []
    for name, target in targets.items():
        if name in own:
            shapes[name] = own[name]
            continue
        if not target[:MESH_POINTS].any():  # the eyeballs alone move
            shapes[name] = np.zeros_like(skin.spread(target))
            continue
        weights, explained = combined(at_landmarks, target)
        if explained < ENOUGH:
            drawn.append(name)
            shapes[name] = skin.spread(target) * hold[:, None]
            continue
        shapes[name] = np.tensordot(weights, directions, 1)
        if name.startswith(EXACT):
            rest = target - np.tensordot(weights, at_landmarks, 1)
            shapes[name] += skin.spread(rest) * hold[:, None]
    if drawn and len(directions):
        log.info("the face model has no expressions near %s: these are drawn", ", ".join(drawn))
    return tuple(shapes), np.stack(list(shapes.values())).astype(np.float32)
