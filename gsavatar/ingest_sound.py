"""The sound of a clip: on the pictures' clock, each file's offset corrected, and what it says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gsavatar import speech
from gsavatar.audio import SAMPLE_RATE
from gsavatar.clip import save_features
from gsavatar.footage import Footage, sounds_of
from gsavatar.frames import write_text_atomic
from gsavatar.landmarks import mouth_opening
from gsavatar.progress import Reporter
from gsavatar.sequence import load_sequence

MIN_OFFSET_CONFIDENCE = 0.5
MIN_OFFSET_MS = 40.0
"""Less than a frame is neither visible nor surely measured."""
OWN_OFFSET_S = 10.0
"""From so much of a face on, one of several files is heard for itself."""

Float = NDArray[np.float32]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Lips:
    """The mouth's opening in the frames that show a face."""

    time_s: Floats  # [T], of the clip
    file_index: NDArray[np.int64]  # [T]
    opening: Floats  # [T]

    @staticmethod
    def of(root: Path) -> Lips:
        """Those of the first pass over a clip."""
        sequence, _ = load_sequence(root)
        found = sequence.landmarks.found
        opening = mouth_opening(sequence.landmarks.points)[found].double().numpy()
        seen = found.numpy()
        return Lips(sequence.time_s[seen], sequence.file_index[seen], opening)


@dataclass(frozen=True)
class Offset:
    """How late a sound is, and how sure that is, 0-1."""

    late_ms: float
    confidence: float

    @property
    def counts(self) -> bool:
        """Whether it is sure and large enough to be corrected."""
        return self.confidence >= MIN_OFFSET_CONFIDENCE and abs(self.late_ms) >= MIN_OFFSET_MS

    def corrected(self, samples: Float) -> Float:
        """The sound in its place, if the offset counts."""
        return shifted(samples, self.late_ms / 1000.0) if self.counts else samples


def hear(
    footage: list[Footage], durations_s: Sequence[float], root: Path, reporter: Reporter,
    *, correct_offset: bool,
) -> dict[str, Any]:  # fmt: skip
    """Writes sound and features of a clip to ``root``; what is to be said of them.

    The offset is estimated on all files together, and where a file is long enough to tell that its
    own is another, each file's sound is moved by its own.
    """
    done = root / "speech.json"
    if done.exists():
        loaded: dict[str, Any] = json.loads(done.read_text())
        return loaded
    parts = sounds_of(footage, durations_s)
    result: dict[str, Any] = {
        "av_offset_ms": None,
        "av_offset_confidence": None,
        "speech_notes": [],
    }
    if parts is None:
        result["speech_notes"].append(
            "The video has no usable sound: only expression drive is trained, not speech drive."
        )
        write_text_atomic(done, json.dumps(result))
        return result
    with reporter.stage("hear the speech") as progress:
        lips = Lips.of(root)
        offset = estimated(np.concatenate(parts), lips.time_s, lips.opening)
        result |= {"av_offset_ms": offset.late_ms, "av_offset_confidence": offset.confidence}
        own = [of_file(i, parts, lips, offset) for i in range(len(parts))]
        if correct_offset:
            parts = [o.corrected(part) for o, part in zip(own, parts, strict=True)]
            result["speech_notes"] += _told([each.path.name for each in footage], own)
        samples = np.concatenate(parts)
        del parts
        features = speech.extract(samples, progress=progress)
    save_features(root / "features.safetensors", features)
    partial = root / "audio.partial.npy"
    np.save(partial, samples)
    partial.replace(root / "audio.npy")
    result["encoder"] = features.encoder
    write_text_atomic(done, json.dumps(result))
    return result


def estimated(samples: Float, time_s: Floats, opening: Floats) -> Offset:
    """The offset of a sound from the lips, on the sound's clock."""
    quick = speech.extract(samples, encoder="log_mel")
    late_ms, confidence = speech.estimate_av_offset(quick, time_s, opening)
    return Offset(float(late_ms), float(confidence))


def of_file(file: int, parts: Sequence[Float], lips: Lips, usual: Offset) -> Offset:
    """The offset of one of several files: its own where that is sure to be another than usual."""
    if len(parts) == 1:
        return usual
    start_s = sum(len(part) for part in parts[:file]) / SAMPLE_RATE
    mine = lips.file_index == file
    time_s = lips.time_s[mine] - start_s
    step_s = float(np.median(np.diff(time_s))) if len(time_s) > 1 else 0.0
    if len(time_s) * step_s < OWN_OFFSET_S:
        return usual
    own = estimated(parts[file], time_s, lips.opening[mine])
    apart = abs(own.late_ms - (usual.late_ms if usual.counts else 0.0)) >= MIN_OFFSET_MS
    return own if own.confidence >= MIN_OFFSET_CONFIDENCE and apart else usual


def _told(names: Sequence[str], offsets: Sequence[Offset]) -> list[str]:
    """What is said of corrected offsets: one sentence if all files have the same."""
    if not any(offset.counts for offset in offsets):
        return []
    if all(offset == offsets[0] for offset in offsets):
        return [f"The sound was {_words(offsets[0])}; corrected."]
    parts = [f"{_words(o)} in {n}" for n, o in zip(names, offsets, strict=True) if o.counts]
    return [f"The sound was {', '.join(parts)}; corrected."]


def _words(offset: Offset) -> str:
    return f"{abs(offset.late_ms):.0f} ms {'late' if offset.late_ms > 0 else 'early'}"


def shifted(samples: Float, late_s: float) -> Float:
    """Sound that came ``late_s`` too late, moved to its place; the length stays."""
    shift = round(late_s * SAMPLE_RATE)
    moved = np.zeros_like(samples)
    if shift >= 0:
        moved[: len(samples) - shift] = samples[shift:]
    else:
        moved[-shift:] = samples[:shift]
    return moved
