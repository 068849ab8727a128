"""Bundle adjustment of skin patches that are followed from frame to frame: pose and focal length.

At 30 degrees a pose from a detector's landmarks is off by a degree or more, always in the same way.
Poses, the patches' places on the head, what brows and jaw do and the focal length follow instead
from one robust least-squares problem over where patches are seen. Any other frame's pose then comes
from the same patches.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np

from gsavatar.ahead import together
from gsavatar.morphable import Floats, Ints
from gsavatar.tracking_flow import Pictures
from gsavatar.tracking_least_squares import (
    FOCAL_SHARED_ERROR,
    SHARED_ERROR,
    TURNED_SHARED_ERROR,
    Problem,
    Sightings,
    at_focal,
)
from gsavatar.tracking_light import fit_light
from gsavatar.tracking_motion import reach, rotvecs
from gsavatar.tracking_skin import Evened, Patches, SkinMap, evened, find, pick
from gsavatar.tracking_solve import Lens, Poses
from gsavatar.tracking_surface import Surface, bent

log = logging.getLogger("gsavatar")

KEY_FRAMES, ADJUSTED_FRAMES = 14, 60
LEAST_TURN_RAD = 0.2
"""Skin slides on the skull by what it slides, while what a turn shows of a face's depth grows with
the turn. Where a head turns less than this from its mean, sliding skin widened its nods by 40 % and
flattened its face: there the face's depth and how widely the head turns are the landmarks' to say.
"""
USUAL_MISFIT = 0.5
"""Median misfit of sightings, in their deviations, up to which skin counts as lying still. Where
upscaled film lets the skin's texture swim it is more, and a head has to turn as much more to show
anything: what brows were thought to do had nodded such a head by four degrees.
"""
PLACES, TURNED_PLACES = (0.6, 1.0), (1.0, 2.0)
"""Share of their deviation by which places may leave the fitted face, while the focal length is
sought and then; of a head that turns more, as its skin shows where they are."""
TURNED_PASSES = 3
"""How often a turning head's patches are looked for, each time from better poses and places."""
UNSETTLED = 0.1
"""Change of the focal length's logarithm from which the person is fitted again before going on."""
MIN_OBSERVATIONS = 25
MIN_SIGHTINGS = 3


@dataclass(frozen=True)
class Bundle:
    """The answer for the frames that were adjusted."""

    lens: Lens
    focal_sigma: float  # of the focal length's logarithm, by the curvature of the problem
    rows: Ints  # of the frames given, which were adjusted
    poses: Poses  # of those
    skin: SkinMap
    swims: bool = False  # the head turns enough to show its depth, had its skin lain still
    settled: bool = True  # False: given up early, for the face was fitted through another lens

    @property
    def shows_depth(self) -> bool:
        """Whether the head turned enough, for how still its skin lies, to tell the face's shape."""
        return self.skin.shows_depth


def adjust(  # noqa: PLR0917
    pictures: Pictures | None, rows: Ints, poses: Poses, expressions: Floats, surface: Surface,
    lens: Lens, *, believed: float | None, one_light: bool = True, last: bool = True,
) -> Bundle | None:  # fmt: skip
    """Poses, focal length and patches of sample frames; None where the pictures say too little.

    ``rows`` are the landmark rows of the frames, ``poses`` where landmarks put the head,
    ``expressions`` [T, K] what landmarks see of the face's motion; all through ``lens``, whose
    focal length is sought if one is ``believed``. ``one_light`` says that the same lamps shine on
    all of them. Unless this is the ``last`` try, it is given up, unsettled, once the focal length
    turns out another than the one the face was fitted with: that face has taken on what the wrong
    lens does to it, and holds the answer back.
    """
    some = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), ADJUSTED_FRAMES)).astype(int))
    found = [] if pictures is None else [(i, pictures(int(rows[i]))) for i in some]
    there = [(i, evened(picture)) for i, picture in found if picture is not None]
    if len(there) < MIN_OBSERVATIONS:
        return None
    index, images = np.array([i for i, _ in there]), [image for _, image in there]
    own = poses[index]
    keys = _spread_views(own, KEY_FRAMES)
    patches = _picked(images, own, expressions[index], keys, surface, lens)
    if patches is None:
        return None
    sample = _Sample(
        index, keys, images, own, expressions[index], reach(poses), one_light, lens, believed, last
    )  # fmt: skip
    skin = SkinMap(
        tuple(images[k] for k in keys), own[keys], sample.expressions[keys], patches, surface,
        shows_depth=sample.turn_rad >= LEAST_TURN_RAD,
    )  # fmt: skip
    return _adjusted(sample, skin)


@dataclass(frozen=True)
class _Sample:
    """The frames that are adjusted."""

    index: Ints  # [F], among those given
    keys: Ints  # key frames among the F
    images: list[Evened]
    poses: Poses  # [F], by landmarks
    expressions: Floats  # [F, K]
    turn_rad: float  # how far the head turns
    one_light: bool
    lens: Lens  # that landmarks were seen through
    believed: float | None  # focal length, where it is sought
    last: bool  # whether it is not to be given up


def _adjusted(sample: _Sample, skin: SkinMap) -> Bundle | None:
    """The bundle by the patches of ``skin``, as far as they lie still enough for how it is made."""
    images, own, shown, keys = sample.images, sample.poses, sample.expressions, sample.keys
    patches, surface, shows_depth = skin.patches, skin.surface, skin.shows_depth
    lens, new, sigma = sample.lens, own, 0.0
    prior = replace(lens, focal=sample.believed or lens.focal)
    start = at_focal(own, prior.focal / lens.focal)
    # Motions sought freely made an avatar of a head that hardly turns worse.
    shared, loose, sought = SHARED_ERROR, PLACES, surface.brows[:0]
    if shows_depth:
        shared, loose, sought = TURNED_SHARED_ERROR, TURNED_PLACES, skin.sought
    passes = TURNED_PASSES if shows_depth else 2
    for number in range(passes):
        cautious = number == 0
        if shows_depth and sample.one_light:
            grays = [image.gray for image in images]
            skin = replace(skin, light=fit_light(grays, new, shown, skin.surface, lens))
        seen = _sightings(skin, images, new, shown, lens, keys, coarse=cautious)
        count = np.bincount(seen.point, minlength=len(patches.points))
        seen = seen.at(count[seen.point] >= MIN_SIGHTINGS)
        if len(seen.point) < 10 * MIN_OBSERVATIONS:
            return None
        problem = Problem(
            start, patches.points, patches.place_sd * loose[0 if cautious else 1],
            np.einsum("gk,pkc->pgc", sought, patches.shapes), seen, prior, focal_known=True,
            shared_error=FOCAL_SHARED_ERROR if cautious else shared, swing_held=not shows_depth,
        )  # fmt: skip
        state = problem.began(new, skin.patches.points, lens)
        if sample.believed is not None:
            freely = replace(
                problem, place_sd=patches.place_sd * loose[1], focal_known=False,
                shared_error=FOCAL_SHARED_ERROR,
            )  # fmt: skip
            sought_lens = freely.solve(state)
            if sought_lens is None:
                return None
            state, sigma = sought_lens
        solved = problem.solve(state)
        if solved is None:
            return None
        state, _ = solved
        if shows_depth and cautious:
            misfit = problem.misfit(state)
            if sample.turn_rad < LEAST_TURN_RAD * max(misfit / USUAL_MISFIT, 1.0):
                log.info(
                    "the skin's texture swims (misfit %.2f) and the head turns by %.0f degrees "
                    "only: landmarks say how deep the face is", misfit, np.degrees(sample.turn_rad),
                )  # fmt: skip
                skin = replace(skin, shows_depth=False, light=None)
                found = _adjusted(sample, skin)
                return None if found is None else replace(found, swims=True)
        lens, new, places = state.lens, state.poses, state.places
        skin = replace(skin, key_poses=new[keys], patches=replace(skin.patches, points=places))
        if cautious and not sample.last and abs(np.log(lens.focal / sample.lens.focal)) > UNSETTLED:
            return Bundle(lens, sigma, sample.index, new, skin, settled=False)
        if shows_depth:
            known = np.unique(seen.point)  # nothing says where the others are
            skin = replace(skin, surface=bent(surface, patches.points[known], places[known]))
    skin = replace(skin, patches=skin.patches.at(np.unique(seen.point)))
    return Bundle(lens, sigma, sample.index, new, skin)


def _picked(  # noqa: PLR0917
    images: list[Evened], poses: Poses, expressions: Floats, keys: Ints, surface: Surface,
    lens: Lens,
) -> Patches | None:  # fmt: skip
    """The patches of all key frames; None where none shows any."""
    found = together(
        lambda n: pick(
            images[keys[n]], poses[keys[n : n + 1]], expressions[keys[n]], surface, lens, n
        ),
        range(len(keys)),
    )
    parts = [patches for patches in found if patches is not None]
    return Patches.join(parts) if parts else None


def _spread_views(poses: Poses, most: int) -> Ints:
    """Rows of views that lie far apart, the usual one first (farthest point sampling)."""
    turns = rotvecs(poses.R)
    first = int(np.linalg.norm(turns - np.median(turns, axis=0), axis=1).argmin())
    chosen, nearest = [first], np.linalg.norm(turns - turns[first], axis=1)
    while len(chosen) < min(most, len(turns)):
        far = int(nearest.argmax())
        if nearest[far] < 0.02:
            break
        chosen.append(far)
        nearest = np.minimum(nearest, np.linalg.norm(turns - turns[far], axis=1))
    return np.array(chosen, dtype=np.int64)


def _sightings(  # noqa: PLR0917
    skin: SkinMap, images: list[Evened], poses: Poses, expressions: Floats, lens: Lens, keys: Ints,
    *, coarse: bool,
) -> Sightings:  # fmt: skip
    """Where every patch is in every frame that sees it from nearly the same side."""
    points, frames, pixels = [], [], []
    found = together(
        lambda t: find(
            skin, images[t], poses[np.array([t])], expressions[t], lens, KEY_FRAMES, coarse=coarse
        ),
        range(len(images)),
    )
    for frame, (here, at) in enumerate(found):
        other = keys[skin.patches.key_of[here]] != frame
        # In its own frame a patch is where it was picked.
        picked = np.flatnonzero(keys[skin.patches.key_of] == frame)
        points += [here[other], picked]
        pixels += [at[other], skin.patches.key_px[picked] + 0.5]
        frames.append(np.full(int(other.sum()) + len(picked), frame, np.int64))
    every, of = np.concatenate(points), np.concatenate(frames)
    shift = np.einsum("tk,pkc->tpc", expressions, skin.patches.shapes)[of, every]
    return Sightings(every, of, np.concatenate(pixels), skin.patches.trust[every], shift)
