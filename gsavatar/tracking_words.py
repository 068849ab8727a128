"""The tracking report's numbers in plain words: what each means, what is good, what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from gsavatar.report_words import SURE, Finding, Tile, number
from gsavatar.tracking_measures import Measures
from gsavatar.tracking_sounds import ENOUGH, SoundKind

GOOD_SHARE, POOR_SHARE = 0.98, 0.9
GOOD_FIT_PX, POOR_FIT_PX = 4.0, 7.0
GOOD_STEADY_PX, POOR_STEADY_PX = 0.15, 0.35
GOOD_FOCAL, POOR_FOCAL = 0.05, 0.15
GOOD_TURNS_DEG = 20.0
SHOWN_REACH = 0.25
"""A coefficient whose range is smaller was hardly shown."""
IN_SYNC_MS = 40.0

PARTS_MEAN: dict[str, tuple[str, str]] = {
    "forehead and nose bridge": ("Points that speech hardly moves.", "below the mean of all"),
    "lips": ("How well the mouth's shapes follow the lips.", "below 4 px"),
    "eyelids": ("How well lids and blinks are followed.", "below 3 px"),
    "irises": ("How well the gaze is followed.", "below 3 px"),
    "outline of the face": ("The least certain landmarks: they slide.", "below 8 px"),
}


@dataclass(frozen=True)
class Row:
    """A measure of the table: its value, what it means and what is good."""

    name: str
    value: str
    means: str
    good: str


def spread(values: Any) -> tuple[float, float]:
    """What 94 of 100 values lie between: a stray frame is no turn."""
    low, high = np.percentile(values, (3, 97))
    return float(low), float(high)


def tiles(m: Measures, meta: dict[str, Any]) -> list[Tile]:
    """The headline numbers."""
    tracked = m.total - lost(m)
    low, high = spread(m.yaw)
    offset, sigma = meta.get("av_offset_ms"), m.lens.sigma
    sure = meta.get("av_offset_confidence")
    told = offset is not None and (sure is None or sure >= SURE)
    steady = m.steadiness
    return [
        Tile("Frames tracked", f"{100 * tracked / max(m.total, 1):.1f}", "%",
             f"{tracked} of {m.total}"),
        Tile("Landmarks from the mesh", number(m.fit.mean_px if m.fit else None, 1), "px",
             "mean distance, of 512"),
        Tile("Jitter of the path", number(steady.ours.jitter_px if steady else None, 2), "px",
             f"landmarks alone {number(steady.landmarks.jitter_px if steady else None, 2)}"),
        Tile("Focal length", number(m.lens.focal_px, 0), "px",
             "assumed or given" if sigma is None else f"give or take {100 * sigma:.1f} %"),
        Tile("Turns of the head", f"{low:+.0f} … {high:+.0f}", "°", "to the right … to the left"),
        Tile("Sound against picture", number(offset if told else None, 0), "ms",
             "positive: the sound is late" if told
             else "no sound" if offset is None else "could not be told"),
    ]  # fmt: skip


def lost(m: Measures) -> int:
    """Frames of the sources without a pose."""
    return sum(d.count for d in m.dropped)


def findings(m: Measures, sounds: list[SoundKind], meta: dict[str, Any]) -> list[Finding]:
    """What is good and what is weak about a track, with what to do about it."""
    found = [_frames(m), _fit(m), _steady(m), _lens(m), _turns(m), _sounds(sounds), _sync(meta)]
    return [f for f in found if f is not None]


def _frames(m: Measures) -> Finding:
    share = 1.0 - lost(m) / max(m.total, 1)
    text = f"{100 * share:.1f} % of the frames have a pose."
    if share >= GOOD_SHARE:
        return Finding(True, "Frames", text)
    cure = " Keep hands and hair out of the face and the head out of profile; the list is below."
    return Finding(False, "Frames", text + cure)


def _fit(m: Measures) -> Finding | None:
    if m.fit is None:
        return None
    text = f"The mesh lies {m.fit.mean_px:.1f} px from the landmarks on average."
    if m.fit.mean_px <= GOOD_FIT_PX:
        return Finding(True, "Face model", text)
    cure = " Look at the film: if the mesh sits beside the face, the face model does not suit it."
    return Finding(False, "Face model", text + cure)


def _steady(m: Measures) -> Finding | None:
    if m.steadiness is None:
        return None
    ours, raw = m.steadiness.ours.jitter_px, m.steadiness.landmarks.jitter_px
    text = f"The head's path trembles by {ours:.2f} px"
    if np.isfinite(raw) and raw > ours:
        text += f", {raw / max(ours, 1e-6):.1f} times less than landmarks alone"
    if ours <= GOOD_STEADY_PX:
        return Finding(True, "Steadiness", text + ".")
    cure = ". A rendered head will tremble as much; sharper, less noisy video helps."
    return Finding(False, "Steadiness", text + cure)


def _lens(m: Measures) -> Finding | None:
    sigma = m.lens.sigma
    if sigma is None:
        return None
    text = f"The focal length is known to {100 * sigma:.1f} %."
    if sigma <= GOOD_FOCAL:
        return Finding(True, "Lens", text)
    return Finding(False, "Lens", text + " The farther a head turns, the surer it is.")


def _turns(m: Measures) -> Finding:
    low, high = spread(m.yaw)
    text = f"The head turns over {high - low:.0f} degrees."
    if high - low >= GOOD_TURNS_DEG:
        return Finding(True, "Turns", text)
    cure = " Views beyond that are a guess; turn the head slowly to both sides once."
    return Finding(False, "Turns", text + cure)


def _sounds(sounds: list[SoundKind]) -> Finding | None:
    rare = [s.name for s in sounds if s.times < ENOUGH and s.phones]
    if not sounds:
        return None
    if not rare:
        return Finding(True, "Speech sounds", "Every kind of mouth shape is there often enough.")
    return Finding(
        False, "Speech sounds", f"Too rare to be learned well: {', '.join(rare)}. Read a page "
        "aloud, clearly.",
    )  # fmt: skip


def _sync(meta: dict[str, Any]) -> Finding | None:
    offset, sure = meta.get("av_offset_ms"), meta.get("av_offset_confidence")
    if offset is None or sure is None:
        return None
    if sure < SURE:
        return Finding(
            False, "Sound", "Whether sound and lips agree cannot be told from this clip: its "
            "speech is too short or unclear, or not what these lips say.",
        )  # fmt: skip
    side = "late" if offset > 0 else "early"
    if abs(offset) <= IN_SYNC_MS:
        within = f"to within a frame ({abs(offset):.0f} ms {side}, too little to be seen)"
        return Finding(True, "Sound", f"Sound and lips agree {within}.")
    fixed = any("corrected" in note for note in meta.get("speech_notes", []))
    end = "it was put right here" if fixed else "it was left so"
    return Finding(fixed, "Sound", f"The sound came {abs(offset):.0f} ms {side}; {end}.")


def rows(m: Measures) -> list[Row]:
    """The table of all numbers."""
    tracked = m.total - lost(m)
    found = [
        Row("Frames tracked", f"{tracked} of {m.total}", "Frames of the files that got a pose.",
            f"{100 * GOOD_SHARE:.0f} % or more; below {100 * POOR_SHARE:.0f} % parts are missing"),
        Row("Frames doubted", str(m.doubted), "Tracked, but landmarks and face disagree more than "
            "usual, or one of the next two. They count less in a fit.", "a few percent at most"),
        Row("Frames blurred", _count(m.blurred), "Less fine detail on the face than usual: out of "
            "focus, or moved.", "a few percent at most"),
        Row("Mouth hidden", _count(m.hidden), "Frames in which the lower face does not look like "
            "itself: a hand, a microphone.", "a few percent at most"),
        Row("Pictures kept", str(m.kept), "Frames a fit may learn from; of long footage the most "
            "varied 7500.", "1500 or more, that is a minute"),
        *_fit_rows(m), *_steady_rows(m), *_lens_rows(m), *_angle_rows(m),
    ]  # fmt: skip
    return found


def _count(frames: int | None) -> str:
    return "not looked at" if frames is None else str(frames)


def _fit_rows(m: Measures) -> list[Row]:
    if m.fit is None:
        return []
    parts = [
        Row(f"… {name}", f"{value:.2f} px", *PARTS_MEAN[name])
        for name, value in m.fit.part_px.items()
    ]  # fmt: skip
    low, high = spread(m.fit.frame_px)
    return [
        Row("Reprojection error", f"{m.fit.mean_px:.2f} px",
            "Mean distance of all landmarks from their places on the fitted mesh, in pixels of the "
            "512-px crop. Landmarks have an error of their own: they shake by half a pixel and "
            "slide over cheeks and outline as a head turns.",
            f"below {GOOD_FIT_PX:.0f} px; from {POOR_FIT_PX:.0f} px the mesh sits beside the face"),
        Row("… from frame to frame", f"{low:.2f} … {high:.2f} px",
            "Between what 94 of 100 frames lie.", "even; a peak is a frame to look at"),
        *parts,
    ]  # fmt: skip


def _steady_rows(m: Measures) -> list[Row]:
    s = m.steadiness
    if s is None:
        return []
    return [
        Row("Jitter", f"{s.ours.jitter_px:.3f} px",
            "Every picture is laid onto one by the head's path; forehead and nose should then "
            "stand still. This is how unevenly they still move (optical flow, second difference, "
            "root mean square): the trembling of the path.",
            f"below {GOOD_STEADY_PX} px; from {POOR_STEADY_PX} px a rendered head trembles "
            "visibly; about 0.02 px is the measuring itself"),
        Row("… of landmarks alone", f"{s.landmarks.jitter_px:.3f} px",
            "The same with each picture laid by its own landmarks: what a tracker without memory "
            "gives.", "several times the line before"),
        Row("Motion left", f"{s.ours.rms_px:.3f} px",
            "All that forehead and nose still move from frame to frame, with brows and slow drift.",
            f"below {2 * GOOD_STEADY_PX} px; lively brows give more"),
        Row("… of landmarks alone", f"{s.landmarks.rms_px:.3f} px", "The same by landmarks alone.",
            "several times the line before"),
    ]  # fmt: skip


def _lens_rows(m: Measures) -> list[Row]:
    sigma = m.lens.sigma
    sure = "not measured" if sigma is None else f"{100 * sigma:.1f} %"
    return [
        Row("Focal length", f"{m.lens.focal_px:.0f} px",
            f"Of the 512-px crop, which then takes in {m.lens.field_deg:.0f} degrees. Too short a "
            "one makes faces bulge in other views.", "within 5 % of the true one"),
        Row("… its uncertainty", sure,
            "One standard deviation. A head that does not turn leaves it open; then a usual lens "
            "is believed.",
            f"below {100 * GOOD_FOCAL:.0f} %; from {100 * POOR_FOCAL:.0f} % it is mostly belief"),
    ]  # fmt: skip


def _angle_rows(m: Measures) -> list[Row]:
    def words(values: Any) -> str:
        low, high = spread(values)
        return f"{low:+.0f} … {high:+.0f}°"

    return [
        Row("Yaw", words(m.yaw), "Turn against the camera, positive to the person's left; 94 of "
            "100 frames.", "over 20 degrees in all; beyond what was shown views are a guess"),
        Row("Pitch", words(m.pitch), "Nod, positive up.", "over 10 degrees in all"),
        Row("Roll", words(m.roll), "Tilt, positive to the left shoulder.", "any"),
    ]  # fmt: skip
