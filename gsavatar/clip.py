"""A clip on disk: frames, labels, track, sound and features, opened without reading it whole."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gsavatar.errors import InputError
from gsavatar.frames import FrameStore, UInt8, decode_png, write_text_atomic
from gsavatar.landmarks import LIPS_40
from gsavatar.speech import SpeechFeatures
from gsavatar.types import Camera, Drive, FittedFace, Frame, Landmarks, Track

VERSION = 1
MAX_FRAMES = 7500
"""Frames whose pictures are kept; landmarks, poses and curves are kept for all."""
TEST_SHARE = 1 / 11
TEST_MIN_S = 2.0
TEST_MAX_FRAMES = 750
GUARD_S = 0.5
"""Training frames this close to the test part are dropped: neighbours would leak."""

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Clip:
    """Everything known about one person's footage. Rows are the tracked frames in time order."""

    root: Path
    meta: dict[str, Any]
    track: Track
    landmarks: Landmarks  # the rows of the track
    stored: Rows  # [T], position in the shards, -1 where the picture is not kept
    train_rows: Rows
    test_rows: Rows

    def __len__(self) -> int:
        return self.track.frame_ids.shape[0]

    def __getitem__(self, row: int) -> Frame:
        """Everything known about a row, at the size of the protocol. Raises ``LookupError`` where
        its picture is not kept."""
        image = torch.from_numpy(np.array(self.frame(row))).float() / 255.0
        regions = torch.from_numpy(np.array(self.regions(row)))
        return self.as_frame(row, image, regions, self.lips(row), self.camera(row))

    def as_frame(
        self, row: int, image: Tensor, regions: Tensor, lips: tuple[float, ...], camera: Camera,
        audio: Tensor | None = None,
    ) -> Frame:  # fmt: skip
        """The frame of a row from its picture [H, W, 3] and labels [H, W], of whatever size or part
        of it; ``lips`` are in their pixels and ``camera`` is the one that sees them."""
        track = self.track
        return Frame(
            index=int(track.frame_ids[row]),
            time_s=float(track.time_s[row]),
            image=image,
            regions=regions,
            lips=torch.tensor(lips),
            weight=track.weight[row],
            camera=camera,
            drive=Drive(track.coefficients[row], track.head_pose[row], audio),
        )

    @property
    def time_s(self) -> Tensor:
        return self.track.time_s

    @property
    def frame_ids(self) -> Tensor:
        return self.track.frame_ids

    @cached_property
    def _frames(self) -> FrameStore:
        return FrameStore(self.root / "frames.bin")

    @cached_property
    def _regions(self) -> FrameStore:
        return FrameStore(self.root / "regions.bin")

    def frame(self, row: int) -> UInt8:
        """The protocol picture of a row, uint8 [512, 512, 3] RGB."""
        return self._frames[self._position(row)]

    def regions(self, row: int) -> UInt8:
        """The label plane of a row, uint8 [512, 512] of ``Region``."""
        return self._regions[self._position(row)]

    def _position(self, row: int) -> int:
        position = int(self.stored[row])
        if position < 0:
            # Not an IndexError, which would end a loop over the clip as if it were its last row.
            raise LookupError(f"the picture of row {row} is not kept in this clip")
        return position

    def lips(self, row: int) -> tuple[float, float, float, float]:
        """Tight box of the lips (top, left, bottom, right) in protocol pixels."""
        points = self.landmarks.points[row, list(LIPS_40), :2]
        (left, top), (right, bottom) = points.amin(0).tolist(), points.amax(0).tolist()
        return top, left, bottom, right

    def camera(self, row: int) -> Camera:
        """The camera of a row's file."""
        return self.track.cameras[int(self.track.file_index[row])]

    @cached_property
    def plates(self) -> UInt8:
        """Background of each file, uint8 [F, 512, 512, 3]."""
        count = len(self.track.cameras)
        return np.stack(
            [decode_png((self.root / f"plate{i}.png").read_bytes()) for i in range(count)]
        )

    @cached_property
    def audio(self) -> NDArray[np.float32] | None:
        """Sound of all files on the clip's clock, offset corrected, 16 kHz mono; memory-mapped."""
        path = self.root / "audio.npy"
        return np.load(path, mmap_mode="r") if path.exists() else None

    @property
    def train_s(self) -> float:
        """How long the part lasts that a fit may learn from."""
        if len(self.train_rows) == 0:
            return 0.0
        first, last = (float(self.time_s[int(self.train_rows[i])]) for i in (0, -1))
        return last - first

    @cached_property
    def training_part(self) -> str:
        """A fingerprint of the footage that a fit may learn from: whose frames, and which."""
        digest = hashlib.sha256(self.train_rows.astype("<i8").tobytes())
        for values in (self.time_s, self.landmarks.points):
            digest.update(values[torch.from_numpy(self.train_rows)].float().numpy().tobytes())
        return digest.hexdigest()[:16]

    @cached_property
    def features(self) -> SpeechFeatures | None:
        """Speech features of ``audio``; None for a silent clip."""
        path = self.root / "features.safetensors"
        return load_features(path) if path.exists() else None


def open_clip(root: Path) -> Clip:
    """The clip in a folder. Raises ``InputError`` if it is missing, unfinished or inconsistent."""
    try:
        meta = json.loads((root / "clip.json").read_text())
    except (OSError, ValueError):
        raise InputError(
            f"{root}: no finished clip here; run `gsavatar track` or `gsavatar fit` first."
        ) from None
    if meta.get("version") != VERSION:
        raise InputError(
            f"{root}: clip version {meta.get('version')} but this program reads {VERSION}; "
            "run the fit again."
        )
    track, landmarks, stored = load_track(root / "track.safetensors")
    clip_rows = split_rows(track.time_s.numpy(), stored, meta.get("test_from_s"))
    return Clip(root, meta, track, landmarks, stored, *clip_rows)


def split_rows(
    time_s: NDArray[np.float64], stored: Rows, test_from_s: float | None = None
) -> tuple[Rows, Rows]:
    """Training and test rows with pictures: the first 10/11 and the last 1/11 of the time.

    The test part lasts at least 2 s (at most 40 % of a very short clip), or begins at
    ``test_from_s`` where the footage came with a split; training rows within 0.5 s of it are
    dropped.
    """
    start, end = float(time_s[0]), float(time_s[-1])
    test_s = min(max((end - start) * TEST_SHARE, TEST_MIN_S), 0.4 * (end - start))
    cut = end - test_s if test_from_s is None else test_from_s
    kept = stored >= 0
    train = np.flatnonzero(kept & (time_s < cut - GUARD_S))
    test = np.flatnonzero(kept & (time_s >= cut))[:TEST_MAX_FRAMES]
    return train.astype(np.int64), test.astype(np.int64)


def save_track(path: Path, track: Track, landmarks: Landmarks, stored: Rows) -> None:
    """Writes the fit and the landmarks of its rows to one safetensors file."""
    from gsavatar.frames import write_tensors_atomic

    tensors = {
        "frame_ids": track.frame_ids,
        "time_s": track.time_s,
        "file_index": track.file_index,
        "head_pose": track.head_pose,
        "coefficients": track.coefficients,
        "weight": track.weight,
        "world_to_cam": torch.stack([c.world_to_cam for c in track.cameras]),
        "K": torch.stack([c.K for c in track.cameras]),
        "vertices": track.face.vertices,
        "basis": track.face.basis,
        "faces": track.face.faces,
        "part": track.face.part,
        "points": landmarks.points,
        "stored": torch.from_numpy(stored),
    }
    if landmarks.scores is not None:
        tensors["scores"] = landmarks.scores
    if track.face.landmark_corners is not None and track.face.landmark_shares is not None:
        tensors["landmark_corners"] = track.face.landmark_corners
        tensors["landmark_shares"] = track.face.landmark_shares
    info = {
        "provider": track.face.provider,
        "names": list(track.face.names),
        "size": [track.cameras[0].width, track.cameras[0].height],
    }
    write_tensors_atomic(path, tensors, json.dumps(info))


def load_track(path: Path) -> tuple[Track, Landmarks, Rows]:
    """What ``save_track`` wrote. Raises ``InputError`` if the file is missing or damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            info = json.loads(file.metadata()["info"])
            t = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"{path}: the track cannot be read ({error}); track again.") from None
    width, height = info["size"]
    cameras = tuple(
        Camera(w, k, width, height) for w, k in zip(t["world_to_cam"], t["K"], strict=True)
    )
    face = FittedFace(
        info["provider"], tuple(info["names"]), t["vertices"], t["basis"], t["faces"], t["part"],
        t.get("landmark_corners"), t.get("landmark_shares"),
    )  # fmt: skip
    track = Track(
        t["frame_ids"], t["time_s"], t["file_index"], cameras, t["head_pose"], t["coefficients"],
        t["weight"], face,
    )  # fmt: skip
    found = torch.ones(len(t["time_s"]), dtype=torch.bool)
    return track, Landmarks(t["points"], found, t.get("scores")), t["stored"].numpy()


def save_features(path: Path, features: SpeechFeatures) -> None:
    """Writes speech features to one safetensors file."""
    from gsavatar.frames import write_tensors_atomic

    info = json.dumps({"rate": features.rate, "encoder": features.encoder})
    tensors = {"values": features.values, "voice": features.voice, "silence": features.silence}
    write_tensors_atomic(path, tensors, info)


def load_features(path: Path) -> SpeechFeatures:
    """What ``save_features`` wrote."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        info = json.loads(file.metadata()["info"])
        t = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    return SpeechFeatures(rate=info["rate"], encoder=info["encoder"], **t)


def save_meta(root: Path, meta: dict[str, Any]) -> None:
    """Marks the clip as finished."""
    write_text_atomic(root / "clip.json", json.dumps({"version": VERSION, **meta}, indent=1))
