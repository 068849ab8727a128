"""A morphable face learned from one clip's landmarks, where no model of people is at hand.

The rest shape is MediaPipe's average face bent to the person's landmarks; expressions are named
after distances measured on the face (how far the chin drops, how wide the mouth is), and each one's
displacement of every landmark is regressed over the clip, held near a drawn one where the clip
shows too little of it. ``morphable_head`` adds what landmarks do not cover.
"""

from __future__ import annotations

import numpy as np

from gsavatar import morphable_head
from gsavatar.morphable import (
    MESH_POINTS,
    ROW_IRIS_LEFT,
    ROW_IRIS_RIGHT,
    Floats,
    MorphableModel,
    canonical_face,
)
from gsavatar.tracking_priors import (
    CORNERS,
    LOWER_LIP,
    NOSE_BRIDGE,
    NOSE_TIP,
    RIGID_WEIGHT,
    SHAPE_WEIGHT,
    UPPER_LIP,
)
from gsavatar.tracking_shape_step import ShapePrior, fit_shape
from gsavatar.tracking_solve import (
    Lens,
    Poses,
    first_poses,
    project,
    refine_poses,
    steadied,
)

ROUNDS = 6
FIELDS_M = ((0.008, 0.04), (0.003, 0.012))
"""Departure of a person from the average face: size and correlation length of smooth fields."""
SLIP_SD_M = 0.001
EFFECTIVE_FRAMES = 20.0
RIDGE = 0.002
"""Mean square of a coefficient from which the clip's own displacement outweighs the drawn one."""

SIDES = {"Left": 1.0, "Right": -1.0}
CHIN = (152, 175, 199, 200, 148, 377)
UPPER_MIDDLE, LOWER_MIDDLE = (0, 13, 37, 267, 82, 312), (17, 14, 84, 314, 87, 317)
CORNER = {"Left": (291, 308), "Right": (61, 78)}
LIDS_UP = {"Left": (386, 385, 387), "Right": (159, 158, 160)}
LIDS_DOWN = {"Left": (374, 380, 373), "Right": (145, 153, 144)}
EYE_ENDS = {"Left": (362, 263), "Right": (133, 33)}
IRIS_ROW = {"Left": ROW_IRIS_LEFT, "Right": ROW_IRIS_RIGHT}
BROW_INNER = {"Left": (336, 296, 285, 295), "Right": (107, 66, 55, 65)}
BROW_OUTER = {"Left": (300, 293, 276, 283), "Right": (70, 63, 46, 53)}

FULL_M = {
    "jawOpen": 0.030, "mouthClose": 0.012, "mouthUpperUp": 0.008, "mouthLowerDown": 0.010,
    "mouthPucker": 0.016, "mouthSmile": 0.012, "mouthSide": 0.010, "browInnerUp": 0.008,
    "browDown": 0.006, "browOuterUp": 0.008,
}  # fmt: skip
"""Travel of the face at coefficient 1, about that of common rigs."""
NOSE_FREE_M = 0.015
"""Distance from the nose from which skin moves freely."""
CLOSED_SHARE = 0.85
"""A detector leaves a slit in closed eyes: this share of the rest height gone counts as closed."""
JAW_SHARE_OF_LIP = 0.9
GAZE_RAD = {"In": 0.5, "Out": 0.5, "Up": 0.4, "Down": 0.4}

CLIP_NAMES: tuple[str, ...] = (
    "jawOpen", "mouthClose", "mouthPucker", "mouthSmileLeft", "mouthSmileRight", "mouthLeft",
    "mouthRight", "mouthUpperUp", "mouthLowerDown", "eyeBlinkLeft", "eyeBlinkRight", "browInnerUp",
    "browDownLeft", "browDownRight", "browOuterUpLeft", "browOuterUpRight",
    *(f"eyeLook{way}{side}" for way in GAZE_RAD for side in SIDES),
)  # fmt: skip
"""ARKit's names; the upper lip's raise and the lower lip's drop are not told apart by side."""


def learn_clip_model(seen_px: Floats, lens: Lens) -> MorphableModel:
    """The model of the person whose landmarks [T, L, 2] in pixels are given."""
    base, triangles = canonical_face()
    irises = [base[list(EYE_ENDS[side])].mean(0) for side in ("Right", "Left")]
    base = np.concatenate((base, irises))
    rest, poses, steady = _person(base, seen_px, lens)
    moved = _displacements(rest, poses, steady, lens)
    calm = _calm(rest + moved)
    resting = np.median(moved[calm], axis=0)
    rest, moved = rest + resting, moved - resting
    measured = measure(rest, moved)
    drawn = drawn_shapes(rest)
    shapes = _regress(measured, moved, drawn, rest)
    return morphable_head.complete(rest, triangles, CLIP_NAMES, shapes)


def _person(base: Floats, seen_px: Floats, lens: Lens) -> tuple[Floats, Poses, Floats]:
    """The person's mean landmarks [L, 3], the poses, and the observations freed from shake."""
    square = ((base[:, None] - base) ** 2).sum(-1)
    field = sum(sd**2 * np.exp(-0.5 * square / length**2) for sd, length in FIELDS_M)
    prior = ShapePrior(1.0, np.linalg.inv(field + np.eye(len(base)) * SLIP_SD_M**2))
    nothing = np.zeros((0, *base.shape))
    still = np.zeros((len(seen_px), *base.shape))
    rest, offset = base, np.zeros_like(base)
    poses = first_poses(base, seen_px, RIGID_WEIGHT, lens)
    steady = seen_px
    for _ in range(ROUNDS):
        poses = refine_poses(poses, rest[None], seen_px, RIGID_WEIGHT, lens)
        steady, _ = steadied(poses, rest[None], seen_px, RIGID_WEIGHT, lens)
        _, offset = fit_shape(
            poses, base, still, nothing, steady, SHAPE_WEIGHT, lens, prior, EFFECTIVE_FRAMES,
            (np.zeros(0), offset),
        )  # fmt: skip
        rest = base + offset
    return rest, poses, steady


def _displacements(rest: Floats, poses: Poses, seen_px: Floats, lens: Lens) -> Floats:
    """How far each landmark [T, L, 3] stands from rest, seen in the picture's plane."""
    pixels, seen = project(poses, rest[None], lens)
    plane = (seen_px - pixels) * seen[..., 2:] / lens.focal
    return np.asarray(np.concatenate((plane, np.zeros_like(plane[..., :1])), -1) @ poses.R)


def _calm(points: Floats) -> np.ndarray:
    """Frames [T] with closed lips and open eyes."""
    mouth = np.linalg.norm(points[:, 13] - points[:, 14], axis=-1)
    eyes = sum(_lid_gap(points, side) for side in SIDES)
    return np.asarray((mouth <= np.percentile(mouth, 35)) & (eyes >= np.percentile(eyes, 30)))


def _lid_gap(points: Floats, side: str) -> Floats:
    up, down = points[..., LIDS_UP[side], 1], points[..., LIDS_DOWN[side], 1]
    return np.asarray((up - down).mean(-1))


def measure(rest: Floats, moved: Floats) -> Floats:
    """Coefficients [T, K] in the order of ``CLIP_NAMES`` of landmark displacements [T, L, 3]."""

    def travel(points: tuple[int, ...], axis: int) -> Floats:
        return np.asarray(moved[:, list(points), axis].mean(1))

    jaw = -travel(CHIN, 1)
    lower = -travel(LOWER_MIDDLE, 1) - JAW_SHARE_OF_LIP * np.maximum(jaw, 0.0)
    side = travel(UPPER_LIP + LOWER_LIP, 0)
    width = travel(CORNER["Right"], 0) - travel(CORNER["Left"], 0)
    found = {
        "jawOpen": jaw / FULL_M["jawOpen"],
        "mouthClose": -lower / FULL_M["mouthClose"],
        "mouthPucker": width / FULL_M["mouthPucker"],
        "mouthLeft": side / FULL_M["mouthSide"],
        "mouthRight": -side / FULL_M["mouthSide"],
        "mouthUpperUp": travel(UPPER_MIDDLE, 1) / FULL_M["mouthUpperUp"],
        "mouthLowerDown": lower / FULL_M["mouthLowerDown"],
        "browInnerUp": travel(BROW_INNER["Left"] + BROW_INNER["Right"], 1) / FULL_M["browInnerUp"],
    }
    for name, sign in SIDES.items():
        outward = sign * (travel(CORNER[name], 0) - side)
        smile = 0.6 * outward + 0.8 * travel(CORNER[name], 1)
        found[f"mouthSmile{name}"] = smile / FULL_M["mouthSmile"]
        height = _lid_gap(rest, name)
        gone = height - _lid_gap(rest + moved, name)
        found[f"eyeBlink{name}"] = gone / (CLOSED_SHARE * height)
        found[f"browDown{name}"] = -travel(BROW_INNER[name], 1) / FULL_M["browDown"]
        outer = travel(BROW_OUTER[name], 1)
        found[f"browOuterUp{name}"] = outer / FULL_M["browOuterUp"]
        gaze = (moved[:, IRIS_ROW[name]] - travel_3d(moved, EYE_ENDS[name])) / EYE_RADIUS_M
        for way, value in (
            ("In", -sign * gaze[:, 0]), ("Out", sign * gaze[:, 0]), ("Up", gaze[:, 1]),
            ("Down", -gaze[:, 1]),
        ):  # fmt: skip
            found[f"eyeLook{way}{name}"] = value / GAZE_RAD[way]
    return np.clip(np.stack([found[name] for name in CLIP_NAMES], axis=1), 0.0, 1.3)


EYE_RADIUS_M = morphable_head.EYE_RADIUS_M


def travel_3d(moved: Floats, points: tuple[int, ...]) -> Floats:
    """Mean displacement [T, 3] of some landmarks."""
    return np.asarray(moved[:, list(points)].mean(1))


def drawn_shapes(rest: Floats) -> Floats:
    """Displacements [K, L, 3] as an anatomist would draw them, for what a clip does not show."""
    shapes = {name: np.zeros_like(rest) for name in CLIP_NAMES}
    jaw = jaw_weight(rest)
    turn = morphable_head.jaw_turn(rest, FULL_M["jawOpen"])
    shapes["jawOpen"] = jaw[:, None] * turn
    lower, upper = np.zeros(len(rest)), np.zeros(len(rest))
    lower[list(LOWER_LIP)], upper[list(UPPER_LIP)] = 1.0, 1.0
    shapes["mouthLowerDown"][:, 1] = -FULL_M["mouthLowerDown"] * lower
    shapes["mouthClose"][:, 1] = FULL_M["mouthClose"] * lower
    shapes["mouthUpperUp"][:, 1] = FULL_M["mouthUpperUp"] * upper
    mouth = _bump(rest, UPPER_MIDDLE + LOWER_MIDDLE, 0.03)
    middle = rest[list(UPPER_MIDDLE + LOWER_MIDDLE)].mean(0)
    half = abs(rest[CORNER["Left"][0], 0] - middle[0])
    shapes["mouthPucker"][:, 0] = (
        -mouth * (rest[:, 0] - middle[0]) / half * FULL_M["mouthPucker"] / 2
    )
    shapes["mouthPucker"][:, 2] = 0.006 * mouth
    for name, sign in (("mouthLeft", 1.0), ("mouthRight", -1.0)):
        shapes[name][:, 0] = sign * FULL_M["mouthSide"] * mouth
    shapes["browInnerUp"][:, 1] = FULL_M["browInnerUp"] * _bump(
        rest, BROW_INNER["Left"] + BROW_INNER["Right"], 0.015
    )
    for side, sign in SIDES.items():
        corner = _bump(rest, CORNER[side], 0.018)[:, None]
        shapes[f"mouthSmile{side}"] = corner * np.array([0.6 * sign, 0.8, -0.3]) * 0.012
        inner, outer = _bump(rest, BROW_INNER[side], 0.012), _bump(rest, BROW_OUTER[side], 0.015)
        shapes[f"browDown{side}"][:, 1] = -FULL_M["browDown"] * inner
        shapes[f"browOuterUp{side}"][:, 1] = FULL_M["browOuterUp"] * outer
        lid = np.zeros(len(rest))
        lid[list(LIDS_UP_ALL[side])] = 1.0
        height = _lid_gap(rest, side)
        ends = rest[list(EYE_ENDS[side])]
        along = np.abs(rest[:, 0] - ends[:, 0].mean()) / (np.ptp(ends[:, 0]) / 2 + 1e-9)
        arch = np.clip(1 - along**2, 0.0, 1.0)
        shapes[f"eyeBlink{side}"][:, 1] = -CLOSED_SHARE * height * lid * arch
        for way, angle in GAZE_RAD.items():
            towards = morphable_head.gaze_turn(way, sign, angle)
            row = IRIS_ROW[side]
            shapes[f"eyeLook{way}{side}"][row] = np.cross(towards, [0.0, 0.0, EYE_RADIUS_M])
    return np.stack([shapes[name] for name in CLIP_NAMES])


LIDS_UP_ALL = {
    "Left": (398, 384, 385, 386, 387, 388, 466), "Right": (173, 157, 158, 159, 160, 161, 246),
}  # fmt: skip


def jaw_weight(rest: Floats) -> Floats:
    """How far each landmark [L] follows the jaw: 1 on lower lip and chin, 0 above the mouth."""
    line = rest[list(CORNERS), 1].mean()
    weight = np.clip((line + 0.005 - rest[:, 1]) / 0.02, 0.0, 1.0)
    weight[list(UPPER_LIP)] = 0.0
    weight[list(LOWER_LIP)] = 1.0
    weight[list(CORNERS)] = 0.4
    weight[MESH_POINTS:] = 0.0
    return np.asarray(weight)


def _bump(rest: Floats, centres: tuple[int, ...], radius_m: float) -> Floats:
    """A smooth hill [L] of height 1 on some landmarks that is gone a few radii away."""
    gap = np.linalg.norm(rest[:, None] - rest[list(centres)], axis=-1).min(1)
    hill = np.exp(-0.5 * (gap / radius_m) ** 2)
    # The nose is bone and cartilage: what moved it would be taken for a turn of the head.
    nose = np.linalg.norm(rest[:, None] - rest[list(NOSE_BRIDGE + NOSE_TIP)], axis=-1).min(1)
    hill *= np.clip(nose / NOSE_FREE_M, 0.0, 1.0)
    hill[MESH_POINTS:] = 0.0
    return np.asarray(hill)


def _reach(rest: Floats) -> Floats:
    """Where each expression may move anything [K, L]: keeps chance correlations out."""
    mouth = _bump(rest, UPPER_LIP + LOWER_LIP + CHIN, 0.03)
    reach = {}
    for name in CLIP_NAMES:
        side = next((s for s in SIDES if name.endswith(s)), None)
        if name.startswith(("jaw", "mouth")):
            reach[name] = mouth
        elif name.startswith("brow"):
            of = SIDES if side is None else (side,)
            reach[name] = _bump(rest, sum((BROW_INNER[s] + BROW_OUTER[s] for s in of), ()), 0.012)
        else:
            eye = "Left" if side is None else side  # eye shapes always have a side
            hill = _bump(rest, LIDS_UP[eye] + LIDS_DOWN[eye], 0.008)
            hill[IRIS_ROW[eye]] = 1.0
            reach[name] = hill
    return np.stack([reach[name] for name in CLIP_NAMES])


def _regress(measured: Floats, moved: Floats, drawn: Floats, rest: Floats) -> Floats:
    """Displacement [K, L, 3] of each coefficient over the clip, near ``drawn`` where unseen.

    Depth is not observed: it stays as drawn, and for the jaw follows from the hinge.
    """
    K = len(CLIP_NAMES)
    ridge = RIDGE * len(measured)
    system = measured.T @ measured + ridge * np.eye(K)
    flat = moved[..., :2].reshape(len(moved), -1)
    prior = drawn[..., :2].reshape(K, -1)
    learned = np.linalg.solve(system, measured.T @ flat + ridge * prior).reshape(K, -1, 2)
    shapes = drawn.copy()
    shapes[..., :2] = learned * _reach(rest)[..., None]
    for k, name in enumerate(CLIP_NAMES):
        if name.startswith("eyeLook"):  # the eyeball turns by its geometry, the lids as seen
            row = IRIS_ROW["Left" if name.endswith("Left") else "Right"]
            shapes[k, row] = drawn[k, row]
    jaw = CLIP_NAMES.index("jawOpen")
    arm = rest - morphable_head.jaw_hinge(rest)
    shapes[jaw, :, 2] = -shapes[jaw, :, 1] * arm[:, 1] / np.maximum(arm[:, 2], 0.02)
    return shapes
