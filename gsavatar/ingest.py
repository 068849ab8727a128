"""From video files to a clip folder: decode, landmarks, sound, labels, fit. Each stage is atomic.

A stage that finished is not run again; a stage that was interrupted starts over and gives the same
result. ``clip.json`` is written last and marks the clip as whole.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gsavatar import assets, crop, ingest_folder, visibility
from gsavatar.ahead import in_turns
from gsavatar.clip import (
    MAX_FRAMES,
    Clip,
    open_clip,
    save_meta,
    save_track,
    split_rows,
)
from gsavatar.errors import InputError
from gsavatar.footage import Footage, PictureFolder, as_footage, the_folder
from gsavatar.frames import (
    RAW_LIMIT,
    FrameStore,
    FrameWriter,
    UInt8,
    check_room,
    encode_png,
    read_notes,
    write_bytes_atomic,
    write_text_atomic,
)
from gsavatar.idle import jump_cuts
from gsavatar.ingest_labels import label_frames
from gsavatar.ingest_sound import hear
from gsavatar.landmarks import FaceDetection, FaceLandmarker, nearest
from gsavatar.memory import give_back_freed
from gsavatar.plate import background_plate
from gsavatar.progress import Reporter
from gsavatar.segmentation import MATTES
from gsavatar.sequence import Sequence, choose_frames, load_sequence, save_sequence
from gsavatar.tracking import fit_track
from gsavatar.tracking_observations import observed
from gsavatar.tracking_shape import OWN_FILES, load_own
from gsavatar.types import PROTOCOL_SIZE, KnownPoses, Landmarks, Track

log = logging.getLogger("gsavatar")

SHAPE = (PROTOCOL_SIZE, PROTOCOL_SIZE, 3)
MIN_USABLE_S = 2.0
PLATE_FRAMES = 48
MAX_PAUSE_S = 0.2
"""After a longer pause between tracked frames a head may be elsewhere without any cut."""


@dataclass(frozen=True)
class IngestOptions:
    """What the user may say about the footage."""

    face: str | None = None  # left, right or a number from the thumbnail
    provider: str = "auto"
    model_file: Path | None = None
    focal_px: float | None = None
    correct_offset: bool = True
    poses: str = "track"  # or folder, for the path that a prepared folder brings


def ingest(
    videos: SequenceOf[Path | Footage], root: Path, options: IngestOptions, reporter: Reporter
) -> Clip:
    """The clip of some files of one person, or of a prepared folder, made in ``root`` or continued.

    Raises ``InputError`` when a file cannot be used or shows too little of one face.
    """
    root.mkdir(parents=True, exist_ok=True)
    if (root / "clip.json").exists():
        return open_clip(root)
    _check_face_model(options, reporter)
    footage = [as_footage(video) for video in videos]
    folder = the_folder(footage)
    known = ingest_folder.known_poses(footage, options.poses)
    # Each stage reads what it needs of the first pass and keeps none of it: hours of footage.
    meta = _decode(footage, root, options, reporter)
    give_back_freed()
    durations_s = [source["duration_s"] for source in meta["sources"]]
    meta |= hear(footage, durations_s, root, reporter, correct_offset=options.correct_offset)
    give_back_freed()
    box = meta["sources"][0]["crop"]
    label_frames(
        root, *load_sequence(root), lambda row: ingest_folder.person(folder, box, row), reporter
    )
    give_back_freed()
    track = _fit(root, meta, options, known, folder, reporter)
    give_back_freed()
    _finish(root, meta, track, folder, reporter)
    give_back_freed()
    return open_clip(root)


def _fit(
    root: Path, meta: dict[str, Any], options: IngestOptions, known: KnownPoses | None,
    folder: PictureFolder | None, reporter: Reporter,
) -> Track:  # fmt: skip
    """The fit of the face in every frame that shows it."""
    focal_px, principal_point = ingest_folder.lens(folder, meta["sources"])
    sequence, stored = load_sequence(root)
    seen = observed(
        sequence.landmarks, torch.from_numpy(sequence.time_s),
        torch.from_numpy(sequence.file_index), torch.from_numpy(sequence.frame_ids), known,
        stored >= 0, sequence.clear, root,
    )  # fmt: skip
    del sequence
    pictures, regions = FrameStore(root / "frames.bin"), FrameStore(root / "regions.bin")
    # Without a matte the person is a guess around the landmarks, which says nothing new of them.
    matted = folder is not None or any(map(assets.available, MATTES))
    with reporter.stage("fit the face") as progress:
        return fit_track(
            seen,
            provider=options.provider,
            model_file=options.model_file,
            focal_px=options.focal_px or focal_px,
            principal_point=principal_point,
            known=known,
            pictures=lambda row: None if stored[row] < 0 else pictures[int(stored[row])],
            regions=(
                (lambda row: None if stored[row] < 0 else regions[int(stored[row])])
                if matted
                else None
            ),
            progress=progress,
        )


def _check_face_model(options: IngestOptions, reporter: Reporter) -> None:
    """Refuses a face model that cannot serve before any work is spent on the footage."""
    if options.provider in OWN_FILES or options.model_file is not None:
        with reporter.stage("read the face model"):
            load_own(options.provider, options.model_file)


def _decode(
    footage: list[Footage], root: Path, options: IngestOptions, reporter: Reporter
) -> dict[str, Any]:
    """Frames, landmarks and the description of the sources."""
    done = root / "decode.json"
    if done.exists():
        return read_notes(done)
    with reporter.stage("look through the video") as progress:
        plans = crop.plan(
            footage, face=options.face, progress=progress, thumbnail=root.parent / "faces.png"
        )
    total = sum(p.last_index - p.first_index + 1 for p in plans)
    keep_all = total <= MAX_FRAMES
    check_room(root, min(total, MAX_FRAMES), SHAPE)
    with reporter.stage("decode and find landmarks") as progress:
        writer = _shard(root, total) if keep_all else None
        sequence, durations = _first_pass(plans, writer, lambda done: progress(done, total))
    meta: dict[str, Any] = {
        "sources": [
            {
                "path": str(p.path), "width": p.info.width, "height": p.info.height,
                "fps": p.info.fps, "crop": [float(v) for v in p.box], "duration_s": duration,
                "first_index": p.first_index, "last_index": p.last_index, "frames": p.frames,
            }
            for p, duration in zip(plans, durations, strict=True)
        ],
        "notes": [note for p in plans for note in p.notes],
        "frames": len(sequence.time_s),
    }  # fmt: skip
    _check_usable(sequence, footage, meta["notes"])
    folder = the_folder(footage)
    if folder is not None:
        meta["notes"] += ingest_folder.about(folder, options.poses, options.focal_px)
        meta["test_from_s"], said = ingest_folder.test_part(folder, sequence)
        meta["notes"] += said
    if keep_all:
        stored = np.arange(len(sequence.time_s), dtype=np.int64)
    else:
        stored = choose_frames(sequence, meta.get("test_from_s"))
        with reporter.stage("keep the most telling frames") as progress:
            _second_pass(plans, root, stored, progress)
        meta["notes"].append(
            f"{MAX_FRAMES} of {total} frames are kept as pictures; all of them are tracked."
        )
    save_sequence(root, sequence, stored)
    write_text_atomic(done, json.dumps(meta))
    return meta


def _shard(root: Path, frames: int) -> FrameWriter:
    return FrameWriter(root / "frames.bin", SHAPE, coded=frames * int(np.prod(SHAPE)) > RAW_LIMIT)


def _cropped(plan: crop.CropPlan) -> Iterator[tuple[int, float, UInt8]]:
    """Index, time and protocol picture of the planned part of one file."""
    for index, time_s, rgb in plan.footage.decode():
        if index > plan.last_index:
            return
        if index >= plan.first_index:
            yield index, time_s, crop.apply_crop(rgb, plan.box, PROTOCOL_SIZE)


def _detected(
    plan: crop.CropPlan, landmarkers: SequenceOf[FaceLandmarker]
) -> Iterator[tuple[tuple[int, float, UInt8], list[FaceDetection]]]:
    """What ``_cropped`` gives, each with the faces in it, looked at by several in turns."""

    def finder(landmarker: FaceLandmarker) -> Callable[[tuple[int, float, UInt8]], Any]:
        return lambda frame: (frame, landmarker.detect(frame[2]))

    return in_turns([finder(landmarker) for landmarker in landmarkers], _cropped(plan))


def _most_frames(plan: crop.CropPlan) -> int:
    """Frames that the planned part of one file has at most; ids of a folder may leave gaps."""
    span = plan.last_index - plan.first_index + 1
    pictures = plan.footage.pictures if isinstance(plan.footage, PictureFolder) else range(span)
    return min(span, len(pictures))


def _first_pass(
    plans: list[crop.CropPlan], writer: FrameWriter | None, progress: Any
) -> tuple[Sequence, list[float]]:
    """Landmarks of every frame; pictures too if there is a writer."""
    ids: list[int] = []
    times, files, scores, durations = [], [], [], []
    # One array from the start: a list of hours' landmarks, joined at the end, would be there twice.
    points = np.empty((sum(_most_frames(p) for p in plans), 478, 3), np.float32)
    views: list[visibility.FaceView | None] = []
    start_s, start_id = 0.0, 0
    with FaceLandmarker() as one, FaceLandmarker() as other:
        for file, plan in enumerate(plans):
            centre = np.array([PROTOCOL_SIZE / 2, PROTOCOL_SIZE / 2])
            for (index, time_s, picture), found in _detected(plan, (one, other)):
                face = nearest(found, centre)
                if face is not None:
                    centre = face.points[:, :2].mean(0)
                points[len(ids)] = np.nan if face is None else face.points
                scores.append(None if face is None else face.scores)
                views.append(None if face is None else visibility.look(picture, face.points))
                ids.append(start_id + index)
                times.append(start_s + time_s)
                files.append(file)
                if writer is not None:
                    writer.append(picture)
                progress(len(ids))
            durations.append(max(times[-1] - start_s + 1.0 / plan.info.fps, plan.info.duration_s))
            start_s += durations[-1]
            start_id += plan.last_index + 1
    if writer is not None:
        writer.close()
    known = next((s for s in scores if s is not None), None)
    table = None
    if known is not None:
        blank = np.full_like(known, np.nan)
        table = torch.from_numpy(np.stack([blank if s is None else s for s in scores])).float()
    stacked = torch.from_numpy(points[: len(ids)])
    landmarks = Landmarks(stacked, torch.isfinite(stacked[:, 0, 0]), table)
    judged = visibility.judged(views)
    return Sequence(np.array(ids), np.array(times), np.array(files), landmarks, judged), durations


def _check_usable(sequence: Sequence, footage: list[Footage], notes: list[str]) -> None:
    """Raises unless a face was seen long enough; notes the frames without one."""
    found = sequence.landmarks.found.numpy()
    step = float(np.median(np.diff(sequence.time_s))) if len(found) > 1 else 0.0
    usable_s = float(found.sum()) * step
    names = ", ".join(str(f.path) for f in footage)
    if usable_s < MIN_USABLE_S:
        cure = (
            "give a longer clip"
            if found.all()
            else ("film the face larger, from the front, in good light")
        )
        raise InputError(
            f"{names}: a face is visible for {usable_s:.1f} s only, at least {MIN_USABLE_S:.0f} s "
            f"are needed; {cure}."
        )
    if not found.all():
        lost = sequence.frame_ids[~found]
        notes.append(
            f"{len(lost)} of {len(found)} frames show no face and are skipped "
            f"(the first is frame {lost[0]})."
        )
    if sequence.visibility is not None:
        notes += visibility.told(sequence.visibility, sequence.time_s)


def _second_pass(
    plans: list[crop.CropPlan], root: Path, stored: NDArray[np.int64], progress: Any
) -> None:
    """Pictures of the chosen frames."""
    row = 0
    with _shard(root, int((stored >= 0).sum())) as writer:
        for plan in plans:
            for _, _, picture in _cropped(plan):
                if stored[row] >= 0:
                    writer.append(picture)
                row += 1
                progress(row, len(stored))


def _saved(root: Path, track: Track) -> NDArray[np.int64]:
    """Writes the track file; the position in the shards [T] of each frame of the track."""
    sequence, stored = load_sequence(root)
    rows = np.searchsorted(sequence.frame_ids, track.frame_ids.numpy())
    scores = sequence.landmarks.scores
    picked = torch.from_numpy(rows)
    landmarks = Landmarks(
        sequence.landmarks.points[picked], sequence.landmarks.found[picked],
        None if scores is None else scores[picked],
    )  # fmt: skip
    save_track(root / "track.safetensors", track, landmarks, stored[rows])
    return np.asarray(stored[rows])


def _finish(
    root: Path, meta: dict[str, Any], track: Track, folder: PictureFolder | None,
    reporter: Reporter,
) -> None:  # fmt: skip
    """Track file, plates and the clip's description."""
    stored = _saved(root, track)
    give_back_freed()
    frames, regions = FrameStore(root / "frames.bin"), FrameStore(root / "regions.bin")
    train, _ = split_rows(track.time_s.numpy(), stored, meta.get("test_from_s"))
    meta["plate_unseen"] = []
    for file in range(len(track.cameras)):
        mine = train[track.file_index.numpy()[train] == file]
        if len(mine) == 0:  # a file wholly inside the test part: its own frames must serve
            mine = np.flatnonzero(track.file_index.numpy() == file)
            mine = mine[stored[mine] >= 0]
        picks = mine[np.linspace(0, len(mine) - 1, min(PLATE_FRAMES, len(mine))).astype(int)]
        positions = [int(stored[row]) for row in picks]
        given = ingest_folder.plate(folder, meta["sources"][file]["crop"])
        plate, unseen = given or background_plate((frames[i], regions[i]) for i in positions)
        write_bytes_atomic(root / f"plate{file}.png", encode_png(plate))
        meta["plate_unseen"].append(round(unseen, 4))
    meta["provider"] = track.face.provider
    meta["focal_sigma"] = track.focal_sigma
    meta["notes"] += track.notes
    pauses = np.diff(track.time_s.numpy(), prepend=0.0) > MAX_PAUSE_S
    pauses |= np.diff(track.file_index.numpy(), prepend=0) != 0
    cuts = [i for i in jump_cuts(track.head_pose) if not pauses[i]]
    if cuts:
        seconds = ", ".join(f"{float(track.time_s[i]):.1f}" for i in cuts[:8])
        meta["notes"].append(
            f"The head jumps at {seconds} s, as after a cut; the motion that is replayed under a "
            "speech keeps clear of that."
        )
    for note in meta["notes"] + meta.get("speech_notes", []):
        reporter.note(note)
    save_meta(root, meta)
