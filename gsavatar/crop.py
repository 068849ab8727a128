"""Which part of a video shows the subject: the face that persists, one scene, one square crop."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gsavatar import video
from gsavatar.ahead import in_turns
from gsavatar.errors import InputError
from gsavatar.footage import Footage, VideoFile, as_footage
from gsavatar.landmarks import FaceDetection, FaceLandmarker
from gsavatar.upright import Stance

log = logging.getLogger("gsavatar")

UInt8 = NDArray[np.uint8]
Box = tuple[float, float, float, float]

SCAN_EVERY_S = 0.32
SCAN_SIDE = 960
"""Frames are searched at most this large; the landmarker zooms by itself where it finds nothing."""
MIN_USABLE_S = 2.0
CUT_DISTANCE = 0.5
"""Difference of colour histograms (0 to 1) between scans that means another scene."""
MAX_SHIFT = 1.5
"""A face that jumps by this many of its heights between scans is another one."""
FACE_SHARE = (0.35, 0.65)
"""Share of the picture's height that the face takes in a crop that needs no change."""
CROP_HEIGHTS = 2.0
"""Side of the crop over the face's height."""
FACE_UP = 0.06
"""How far the face stands above the crop's middle, over the crop's side."""
MIN_FACE_PX = 48
AMBIGUOUS_SHARE = 0.6
ASKED_SHARE = 0.1
"""A second face seen this often as the first makes the choice the user's; one seen this often may
be asked for."""
MOST_TURNS = 2
"""Faces that are hard to see may be turned the wrong way at first."""
ALIKE_SHARE = 0.1
"""Crops whose middles lie within this share of their side become one."""


@dataclass(frozen=True)
class CropPlan:
    """The part of a file that is used."""

    footage: Footage
    box: Box  # top, left, bottom, right in pixels of the upright frame; may leave the picture
    first_index: int
    last_index: int
    frames: int  # of the whole file
    notes: tuple[str, ...]
    info: video.VideoInfo

    @property
    def path(self) -> Path:
        return self.footage.path


@dataclass
class _Person:
    """One face followed through the scans of a file."""

    boxes: dict[int, Box] = field(default_factory=dict)  # by scan
    thumbnail: UInt8 | None = None

    def last(self) -> Box:
        return self.boxes[max(self.boxes)]


@dataclass(frozen=True)
class _Glance:
    """A picture of a quick look, and the faces found in its smaller copy."""

    index: int
    time_s: float
    picture: UInt8
    small: UInt8
    scale: float  # of the copy
    faces: list[FaceDetection]


@dataclass
class _Scan:
    """What a quick look through a file found."""

    indices: list[int]
    times: list[float]
    people: list[_Person]
    cuts: list[int]  # scans that begin another scene
    frames: int
    end_s: float
    quarters: int = 0  # clockwise turns that set the faces upright


def plan(
    sources: Sequence[Path | Footage],
    *,
    face: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    thumbnail: Path | None = None,
) -> list[CropPlan]:
    """How each file or prepared folder is cropped and which frames of it are used.

    ``face`` is ``left``, ``right`` or a number as in the picture written to ``thumbnail`` when the
    choice is the user's. Raises ``InputError`` if a file shows no face, two equally often, or under
    two seconds of one.
    """
    if face is not None and face not in ("left", "right") and not face.isdigit():
        raise InputError(f"--face {face}: is not left, right or a number.")
    footage = [as_footage(source) for source in sources]
    counts = [each.probe().frames for each in footage]
    total = sum(counts)
    plans, before = [], 0
    with FaceLandmarker() as landmarker:
        for each, count in zip(footage, counts, strict=True):

            def told(done: int, before: int = before) -> None:
                if progress is not None:
                    progress(min(before + done, total), total)

            upright, scan = _upright(each, landmarker, told)
            plans.append(_plan_one(upright, scan, face, thumbnail))
            before += count
    return plans if len(plans) == 1 else _framed_alike(plans)


def _framed_alike(plans: list[CropPlan]) -> list[CropPlan]:
    """Plans whose crops of pictures of one size are equally large: the same camera must have the
    same focal length in all of them, and the same middle where heads are nearly in one place."""
    by_size: dict[tuple[int, int], list[int]] = {}
    for i, plan in enumerate(plans):
        by_size.setdefault((plan.info.width, plan.info.height), []).append(i)
    framed = list(plans)
    for (width, height), members in by_size.items():
        boxes = np.array([plans[i].box for i in members])
        side = float((boxes[:, 2] - boxes[:, 0]).max())
        middles = np.stack((boxes[:, ::2].mean(1), boxes[:, 1::2].mean(1)), 1)
        if float(np.ptp(middles, axis=0).max()) <= ALIKE_SHARE * side:
            middles = np.repeat(np.median(middles, axis=0, keepdims=True), len(middles), axis=0)
        for i, (y, x) in zip(members, middles, strict=True):
            y0, x0 = _inside(y - side / 2, side, height), _inside(x - side / 2, side, width)
            framed[i] = replace(plans[i], box=(y0, x0, y0 + side, x0 + side))
    if len(by_size) > 1:
        sizes = ", ".join(f"{width} x {height}" for width, height in by_size)
        note = f"The files are of several sizes ({sizes}); one lens is assumed for all crops."
        framed[0] = replace(framed[0], notes=(*framed[0].notes, note))
    return framed


def apply_crop(picture: UInt8, box: Box, size: int) -> UInt8:
    """The square ``box`` of a picture at ``size`` pixels; edges are repeated outside of it."""
    import cv2

    height, width = picture.shape[:2]
    top, left, bottom, right = (round(v) for v in box)
    pad = max(0, -top, -left, bottom - height, right - width)
    if pad:
        picture = np.asarray(
            cv2.copyMakeBorder(picture, pad, pad, pad, pad, cv2.BORDER_REPLICATE), np.uint8
        )
    part = picture[top + pad : bottom + pad, left + pad : right + pad]
    if part.shape[:2] == (size, size):
        return np.ascontiguousarray(part)
    shrinks = part.shape[0] > size
    how = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(part, (size, size), interpolation=how), np.uint8)


def _upright(
    footage: Footage, landmarker: FaceLandmarker, progress: Callable[[int], None]
) -> tuple[Footage, _Scan]:
    """Footage, turned so that faces stand upright if it is a video, and a look through it."""
    scan, turns = _look(footage, landmarker, progress), 0
    while isinstance(footage, VideoFile) and scan.quarters and turns < MOST_TURNS:
        footage = replace(footage, quarters=(footage.quarters + scan.quarters) % 4)
        scan, turns = _look(footage, landmarker, progress), turns + 1
    return footage, scan


def _look(footage: Footage, landmarker: FaceLandmarker, progress: Callable[[int], None]) -> _Scan:
    """Faces and scene changes, a few times a second."""
    import cv2

    indices: list[int] = []
    times: list[float] = []
    people: list[_Person] = []
    cuts: list[int] = []
    before: NDArray[np.float32] | None = None
    stance = Stance()
    end, end_s = -1, 0.0

    def shown() -> Iterator[tuple[int, float, UInt8]]:
        nonlocal end, end_s
        for end, end_s, picture in footage.glimpses(SCAN_EVERY_S):
            if picture is not None:
                yield end, end_s, picture

    def searched(one: tuple[int, float, UInt8]) -> _Glance:
        index, time_s, picture = one
        scale = min(1.0, SCAN_SIDE / max(picture.shape[:2]))
        small = picture
        if scale < 1.0:
            shrunk = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            small = np.asarray(shrunk, np.uint8)
        return _Glance(index, time_s, picture, small, scale, stance.faces(small, landmarker))

    with closing(in_turns([searched], shown())) as glances:
        for glance in glances:
            now = _histogram(glance.small)
            scan = len(indices)
            if before is not None and 0.5 * float(np.abs(now - before).sum()) > CUT_DISTANCE:
                cuts.append(scan)
            before = now
            _follow(people, glance.faces, glance.scale, scan, glance.picture)
            indices.append(glance.index)
            times.append(glance.time_s)
            progress(glance.index)
    return _Scan(indices, times, people, cuts, end + 1, end_s, stance.quarters)


def _histogram(picture: UInt8) -> NDArray[np.float32]:
    """Coarse colour histogram that sums to one."""
    import cv2

    counts = cv2.calcHist([picture[::4, ::4]], [0, 1, 2], None, [6, 6, 6], [0, 256] * 3)
    return (counts / max(float(counts.sum()), 1.0)).astype(np.float32).ravel()


def _follow(
    people: list[_Person], faces: list[FaceDetection], scale: float, scan: int, picture: UInt8
) -> None:
    """Adds the faces of a scan to the people they belong to."""
    for face in faces:
        top, left, bottom, right = (v / scale for v in face.box)
        box = (top, left, bottom, right)
        tall = bottom - top
        near = [
            p for p in people if scan not in p.boxes and _distance(p.last(), box) < MAX_SHIFT * tall
        ]
        if near:
            person = min(near, key=lambda p: _distance(p.last(), box))
        else:
            person = _Person()
            people.append(person)
            person.thumbnail = apply_crop(picture, _square(box, 1.6), 160)
        person.boxes[scan] = box


def _distance(a: Box, b: Box) -> float:
    return float(np.hypot((a[0] + a[2] - b[0] - b[2]) / 2, (a[1] + a[3] - b[1] - b[3]) / 2))


def _square(box: Box, heights: float) -> Box:
    """A square around a box, of so many of its heights."""
    half = heights * (box[2] - box[0]) / 2
    y, x = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return y - half, x - half, y + half, x + half


def _plan_one(footage: Footage, scan: _Scan, face: str | None, thumbnail: Path | None) -> CropPlan:
    """The plan of one file from what the scan found."""
    path, info = footage.path, footage.probe()
    if not scan.people:
        raise InputError(
            f"{path}: no face was found in {len(scan.indices)} frames looked at; film the face "
            "larger, from the front and in good light."
        )
    person = _choose(path, scan, face, thumbnail)
    tall = float(np.median([b[2] - b[0] for b in person.boxes.values()]))
    if tall < MIN_FACE_PX:
        raise InputError(
            f"{path}: the face is {tall:.0f} px high, at least {MIN_FACE_PX} px are needed; crop "
            "the video to the person at full resolution, or film closer."
        )
    notes = []
    if isinstance(footage, VideoFile) and footage.quarters:
        turn_deg = 90 * footage.quarters
        notes.append(f"{path.name}: not upright; it is turned by {turn_deg} degrees clockwise.")
    start, end = _longest_scene(scan, person)
    seen = [s for s in person.boxes if start <= s < end]
    used_s = len(seen) * SCAN_EVERY_S
    if used_s < MIN_USABLE_S and scan.end_s >= MIN_USABLE_S:
        raise InputError(
            f"{path}: one face is visible for about {used_s:.1f} s in one scene, at least "
            f"{MIN_USABLE_S:.0f} s are needed; give a longer take."
        )
    if len(scan.people) > 1:
        which = "the one that persists" if face is None else f"the one asked for ({face})"
        notes.append(f"{path.name}: {len(scan.people)} faces; {which} is used.")
    first = scan.indices[start]
    last = scan.indices[end] - 1 if end < len(scan.indices) else scan.frames - 1
    if start > 0 or end < len(scan.indices):
        parted = f"{len(scan.cuts)} cuts" if scan.cuts else "the face jumps from place to place"
        notes.append(
            f"{path.name}: {parted}; the longest scene, frames {first} to {last}, is used."
        )
    box = _crop_box(info, [person.boxes[s] for s in seen])
    return CropPlan(footage, box, first, last, scan.frames, tuple(notes), info)


def _choose(path: Path, scan: _Scan, face: str | None, thumbnail: Path | None) -> _Person:
    """The subject among the people of a file."""
    people = sorted(scan.people, key=lambda p: -len(p.boxes))
    longest = len(people[0].boxes)
    # One list for the thumbnail and for what is asked for, so that numbers mean the same.
    rivals = [
        p for p in people if len(p.boxes) >= ASKED_SHARE * longest and _together(p, people[0])
    ]
    rivals.sort(key=lambda p: float(np.median([b[1] + b[3] for b in p.boxes.values()])))
    equal = [p for p in rivals if len(p.boxes) >= AMBIGUOUS_SHARE * longest]
    if face is None and len(equal) == 1:
        return people[0]
    if face is None:
        counted = "counted from the left"
        if thumbnail is not None:
            _number(rivals, thumbnail)
            counted = f"as numbered in {thumbnail}"
        raise InputError(
            f"{path}: {len(equal)} faces are visible equally long; choose one with --face left, "
            f"--face right or --face N, {counted}."
        )
    if face in ("left", "right"):
        meant = equal if len(equal) > 1 else rivals
        return meant[0 if face == "left" else -1]
    if face.isdigit() and 1 <= int(face) <= len(rivals):
        return rivals[int(face) - 1]
    raise InputError(
        f"{path}: --face {face} is not left, right or a number from 1 to {len(rivals)}."
    )


def _together(a: _Person, b: _Person) -> bool:
    """Whether two faces are visible at the same time (or are one and the same)."""
    return a is b or len(a.boxes.keys() & b.boxes.keys()) > 0.3 * len(a.boxes)


def _number(people: list[_Person], path: Path) -> None:
    """Writes the faces side by side with their numbers, from left to right in the picture."""
    import cv2

    tiles = []
    for number, person in enumerate(people, 1):
        shown = person.thumbnail
        tile = np.zeros((160, 160, 3), np.uint8) if shown is None else shown.copy()
        cv2.putText(tile, str(number), (8, 34), cv2.FONT_HERSHEY_SIMPLEX, 1.2, (255, 220, 0), 3)
        tiles.append(tile)
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.concatenate(tiles, axis=1)[..., ::-1])


def _longest_scene(scan: _Scan, person: _Person) -> tuple[int, int]:
    """First and one past the last scan of the scene that shows the person longest."""
    jumps = []
    seen = sorted(person.boxes)
    for a, b in pairwise(seen):
        if _distance(person.boxes[a], person.boxes[b]) > 0.7 * (
            person.boxes[b][2] - person.boxes[b][0]
        ):
            jumps.append(b)
    edges = sorted({0, *scan.cuts, *jumps, len(scan.indices)})
    spans = list(pairwise(edges))
    return max(spans, key=lambda s: (sum(s[0] <= i < s[1] for i in seen), -s[0]))


def _crop_box(info: video.VideoInfo, boxes: list[Box]) -> Box:
    """One square for the whole file, with head and shoulders; the picture if it is one already."""
    tall = float(np.median([b[2] - b[0] for b in boxes]))
    # The landmarks end at the hairline: the face of the rule is taken from there to the chin.
    if info.width == info.height and FACE_SHARE[0] <= tall / info.height <= FACE_SHARE[1]:
        return 0.0, 0.0, float(info.height), float(info.width)
    top, bottom = min(b[0] for b in boxes), max(b[2] for b in boxes)
    left, right = min(b[1] for b in boxes), max(b[3] for b in boxes)
    side = max(CROP_HEIGHTS * tall, 1.25 * (bottom - top), 1.25 * (right - left))
    side = float(min(round(side), max(info.width, info.height)))
    y = float(np.median([(b[0] + b[2]) / 2 for b in boxes])) + FACE_UP * side
    x = float(np.median([(b[1] + b[3]) / 2 for b in boxes]))
    y0 = _inside(y - side / 2, side, info.height)
    x0 = _inside(x - side / 2, side, info.width)
    return y0, x0, y0 + side, x0 + side


def _inside(start: float, side: float, limit: int) -> float:
    """The start moved so that the span lies in the picture, or centred if it is larger."""
    if side >= limit:
        return float(round((limit - side) / 2))
    return float(round(min(max(start, 0.0), limit - side)))
