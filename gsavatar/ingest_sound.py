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
from gsavatar.frames import read_notes, write_text_atomic
from gsavatar.progress import Reporter
from gsavatar.sequence import load_sequence
from gsavatar.speech_features import SpeechFeatures
from gsavatar.speech_sync import (
    MIN_OFFSET_MS,
    MouthPath,
    Offset,
    heard_offset,
    sound_offset,
)

TELLING_S, STRANGE_CONFIDENCE, SPOKEN_SHARE = 9.5, 0.25, 0.3
"""So much of speech (of which a voice is heard for such a share) tells its offset in nearly every
clip; where that stays less sure than this, sound and lips have nothing to do with each other."""
OWN_OFFSET_S = 6.0
"""From so much of a face on, one of several files is heard for itself."""

Float = NDArray[np.float32]


@dataclass(frozen=True)
class Lips:
    """What the mouth does in the frames that show a face."""

    mouth: MouthPath  # [T], on the clip's clock
    file_index: NDArray[np.int64]  # [T]

    @staticmethod
    def of(root: Path) -> Lips:
        """Those of the first pass over a clip."""
        sequence, _ = load_sequence(root)
        found = sequence.landmarks.found
        seen = found.numpy()
        mouth = MouthPath.of(sequence.landmarks.points[found], sequence.time_s[seen])
        return Lips(mouth, sequence.file_index[seen])


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
        return read_notes(done)
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
        offset, features = heard_offset(np.concatenate(parts), lips.mouth)
        result |= {"av_offset_ms": offset.late_ms, "av_offset_confidence": offset.confidence}
        own = [of_file(i, parts, lips, offset) for i in range(len(parts))]
        if correct_offset and any(o.counts for o in own):
            features = None  # those of the sound in its old place
            parts = [corrected(part, o) for o, part in zip(own, parts, strict=True)]
            result["speech_notes"] += _told([each.path.name for each in footage], own)
        samples = np.concatenate(parts)
        del parts
        if features is None:
            features = speech.extract(samples, progress=progress)
        result["speech_notes"] += doubts(
            max(o.confidence for o in (offset, *own)), lips.mouth, features
        )
    save_features(root / "features.safetensors", features)
    partial = root / "audio.partial.npy"
    np.save(partial, samples)
    partial.replace(root / "audio.npy")
    result["encoder"] = features.encoder
    write_text_atomic(done, json.dumps(result))
    return result


def doubts(confidence: float, mouth: MouthPath, features: SpeechFeatures) -> list[str]:
    """What is to be said of a sound with a voice in it that nothing connects with the lips:
    ``confidence`` is that of its surest offset."""
    spoken = float(features.voice.mean()) >= SPOKEN_SHARE
    if not spoken or mouth.seen_s < TELLING_S or confidence >= STRANGE_CONFIDENCE:
        return []
    return [
        "What is said does not seem to show on the lips. If this is another soundtrack, a "
        f"voice-over, or more than {speech.OFFSET_REACH_S:.1f} s away, lips learned from it will "
        "be wrong: give the video with its own sound in time."
    ]


def of_file(file: int, parts: Sequence[Float], lips: Lips, usual: Offset) -> Offset:
    """The offset of one of several files: its own where that is sure to be another than usual."""
    if len(parts) == 1:
        return usual
    start_s = sum(len(part) for part in parts[:file]) / SAMPLE_RATE
    mine = lips.file_index == file
    mouth = lips.mouth.at(mine, start_s)
    if mouth.seen_s < OWN_OFFSET_S:
        return usual
    own = sound_offset(parts[file], mouth)
    apart = abs(own.late_ms - (usual.late_ms if usual.counts else 0.0)) >= MIN_OFFSET_MS
    return own if own.sure and apart else usual


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


def corrected(samples: Float, offset: Offset) -> Float:
    """The sound in its place, if the offset counts."""
    return shifted(samples, offset.late_ms / 1000.0) if offset.counts else samples


def shifted(samples: Float, late_s: float) -> Float:
    """Sound that came ``late_s`` too late, moved to its place; the length stays."""
    shift = round(late_s * SAMPLE_RATE)
    moved = np.zeros_like(samples)
    if shift >= 0:
        moved[: len(samples) - shift] = samples[shift:]
    else:
        moved[-shift:] = samples[:shift]
    return moved
