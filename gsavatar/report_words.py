"""What the numbers mean, in plain words: one finding per measure, good or weak."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Values = Mapping[str, Any]

COLUMNS = (
    ("avatar", "This avatar"), ("still_mouth", "Mouth held still"),
    ("nearest_pose_frame", "Nearest training frame"), ("mean_frame", "Mean training frame"),
    ("previous_frame", "Real frame before"),
)  # fmt: skip
ROWS = (
    ("psnr_head", "Head, PSNR in dB", 2, 1), ("ssim_head", "Head, SSIM", 4, 1),
    ("psnr_mouth", "Mouth, PSNR in dB", 2, 1), ("psnr", "Whole picture, PSNR in dB", 2, 1),
    ("ssim", "Whole picture, SSIM", 4, 1), ("lpips", "Whole picture, LPIPS", 4, -1),
    ("lmd_px", "Lip landmark distance in px", 3, -1),
    ("mouth_open_corr", "Mouth opening, correlation", 3, 1),
    ("mouth_open_lag_ms", "Mouth opening, delay in ms", 0, 0),
    ("closure_acc", "Closures, balanced accuracy", 3, 1),
    ("mouth_sharpness", "Mouth sharpness, share of real", 3, 0),
    ("jitter_px", "Head jitter in px", 3, -1), ("hold_px", "Jitter of a held head in px", 3, -1),
    ("blendshape_mae_lower", "Lower-face scores, mean error", 4, -1),
    ("blendshape_mae_upper", "Upper-face scores, mean error", 4, -1),
)  # fmt: skip
"""Key, name, digits, and whether more (1) or less (-1) is better."""

NEVER_MOVE = ("still_mouth", "mean_frame")
"""Columns whose mouth is still: what it seems to say is the landmarker's noise."""
OPENING_KEYS = ("mouth_open_corr", "mouth_open_lag_ms")
IN_TIME_MS = 40.0
"""People do not notice less."""
TIMED_CORR = 0.4
"""Below this the best lag of two curves is chance."""
SHORT_TRAIN_S = 8.0
"""Below this, about 9 s of video, a fit learns from seconds."""
REPEATED_DB = 45.0
"""A training frame this like a test frame is the same picture again: talking heads half a second
apart are 20 to 30 dB alike, successive frames 34."""
SURE = 0.5
"""Confidence from which sound and picture are believed to be that far apart."""


@dataclass(frozen=True)
class Finding:
    """One sentence about one measure."""

    good: bool
    title: str
    text: str


@dataclass(frozen=True)
class Tile:
    """One headline number with what it is and what to hold it against."""

    label: str
    value: str
    unit: str
    beside: str


def number(value: Any, digits: int = 2) -> str:
    """A number as text, a dash where it is null."""
    return "–" if value is None else f"{value:.{digits}f}"


def measure(values: Values, column: str, key: str) -> Any:
    """A number of one column as it is shown: none where a mouth that never moves has no say."""
    return None if column in NEVER_MOVE and key in OPENING_KEYS else values.get(key)


def findings(content: Values) -> list[Finding]:
    """What is good and what is weak about an avatar, the head first."""
    test, base = content["test"], content["baselines"]
    found = [
        _repeated(base), _head(test, base), _moving(test, base), _lips(test, base),
        _following(test), _lag(test, content["ci"]), _closures(test), _sharpness(test),
        _steadiness(test),
    ]  # fmt: skip
    return [f for f in found if f is not None]


def _is_repeated(base: Mapping[str, Values]) -> bool:
    """Whether the test frames are in the training part as well."""
    return (base["nearest_pose_frame"]["psnr_head"] or 0.0) >= REPEATED_DB


def _repeated(base: Mapping[str, Values]) -> Finding | None:
    if not _is_repeated(base):
        return None
    return Finding(
        False, "Footage", "The test frames were in the training part, too (the nearest is "
        f"{base['nearest_pose_frame']['psnr_head']:.0f} dB alike): the footage repeats, and the "
        "numbers say nothing about frames the avatar never saw. Give each recording once.",
    )  # fmt: skip


def _head(test: Values, base: Mapping[str, Values]) -> Finding | None:
    ours = test["psnr_head"]
    if _is_repeated(base):
        return None
    known = [base[n]["psnr_head"] for n in ("mean_frame", "nearest_pose_frame")]
    rivals = [v for v in known if v is not None]
    if ours is None or not rivals:
        return None
    gain = ours - max(rivals)
    alike = test["ssim_head"]
    rival = max(base[n]["ssim_head"] or 0.0 for n in ("mean_frame", "nearest_pose_frame"))
    if gain > 0 and alike is not None and alike <= rival:
        return Finding(
            False, "Likeness", f"The head is {gain:.1f} dB closer to the real frames than training "
            f"frames are, but its structure is no more like them (SSIM {alike:.2f} against "
            f"{rival:.2f}): it is blurred or noisy.",
        )  # fmt: skip
    if gain > 0:
        return Finding(
            True, "Likeness", f"The head is {gain:.1f} dB closer to the real frames than the "
            "better of the training part's mean picture and its nearest frame.",
        )  # fmt: skip
    return Finding(
        False, "Likeness", f"The head is {-gain:.1f} dB worse than simply showing the training "
        "frame with the nearest pose: head pose or training went wrong.",
    )  # fmt: skip


def _moving(test: Values, base: Mapping[str, Values]) -> Finding | None:
    """What the moving mouth adds: less than nothing is a weakness, however like the head is."""
    ours, still = test["psnr_head"], base["still_mouth"]["psnr_head"]
    if ours is None or still is None:
        return None
    gain = round(ours - still, 1)
    way = "closer" if gain > 0 else "farther"
    how = f"{abs(gain):.1f} dB {way} than" if gain else "as close as"
    text = f"With its mouth moving the head is {how} with the mouth held still."
    return Finding(gain > 0, "Moving the mouth", text)


def _lips(test: Values, base: Mapping[str, Values]) -> Finding | None:
    ours, still = test["lmd_px"], base["still_mouth"]["lmd_px"]
    if ours is None or not still:
        return None
    ratio = ours / still
    r = test["mouth_open_corr"]
    if ratio <= 0.9 and r is not None and r < TIMED_CORR:
        return Finding(
            False, "Lip shapes", f"Lip landmarks are {100 * (1 - ratio):.0f} % closer to the truth "
            "than with a mouth held at its mean, but do not open with the real ones: another still "
            "mouth might do as well.",
        )  # fmt: skip
    if ratio <= 0.9:
        return Finding(
            True, "Lip shapes", f"Lip landmarks are {100 * (1 - ratio):.0f} % closer to the truth "
            "than with a mouth that never moves.",
        )  # fmt: skip
    ours_text, still_text = f"{ours:.2f}", f"{still:.2f}"
    how = "hardly closer to" if ours < still else "farther from"
    how = f"{how} the truth than" if ours_text != still_text else "as far from the truth as"
    return Finding(
        False, "Lip shapes", f"The lips are {how} with a mouth that never moves "
        f"({ours_text} px against {still_text} px).",
    )  # fmt: skip


def _following(test: Values) -> Finding | None:
    r = test["mouth_open_corr"]
    if r is None:
        return None
    strength = "closely" if r >= 0.75 else "well" if r >= 0.65 else "roughly"
    if r >= 0.5:
        return Finding(
            r >= 0.65, "Following the voice",
            f"The mouth opens and closes {strength} with the real one (r = {r:.2f}).",
        )  # fmt: skip
    return Finding(
        False, "Following the voice", f"The mouth does not follow the voice (r = {r:.2f}); more "
        "or clearer speech in the video would help.",
    )  # fmt: skip


def _lag(test: Values, ci: Values) -> Finding | None:
    lag, r = test["mouth_open_lag_ms"], test["mouth_open_corr"]
    if lag is None:
        return None
    unsure = "Whether the mouth is early or late cannot be told: "
    if r is not None and r < TIMED_CORR:
        why = f"it goes too little with the real one for that (r = {r:.2f})."
        return Finding(False, "Timing", unsure + why)
    low, high = ci.get("mouth_open_lag_ms") or (lag, lag)
    wide = max(abs(low), abs(high)) > 2 * IN_TIME_MS
    if low <= 0 <= high and (wide or abs(lag) > IN_TIME_MS):
        why = f"the test part only says that it is between {_timed(low)} and {_timed(high)}."
        return Finding(False, "Timing", unsure + why)
    if abs(lag) <= IN_TIME_MS:
        return Finding(True, "Timing", f"The mouth is in time ({_timed(lag)}).")
    return Finding(False, "Timing", f"The mouth is {_timed(lag)}, which people notice.")


def _timed(ms: float) -> str:
    return f"{abs(ms):.0f} ms {'late' if ms > 0 else 'early'}"


def _closures(test: Values) -> Finding | None:
    value = test["closure_acc"]
    if value is None:
        return None
    share = f"{100 * value:.0f} % of open and closed moments are right"
    if round(value, 2) >= 0.75:
        return Finding(True, "Closing", f"The mouth closes when it should ({share}).")
    return Finding(False, "Closing", f"The mouth often misses closures ({share}; 50 % is chance).")


def _sharpness(test: Values) -> Finding | None:
    value = test["mouth_sharpness"]
    if value is None:
        return None
    share = f"{100 * value:.0f} % of the real detail"
    if round(value, 2) < 0.85:
        return Finding(False, "Mouth detail", f"The mouth is blurred ({share}).")
    if value > 1.1:
        return Finding(False, "Mouth detail", f"The mouth is too contrasty or noisy ({share}).")
    as_sharp = "as sharp as the video" if value >= 0.95 else "nearly as sharp as the video"
    return Finding(True, "Mouth detail", f"The mouth is {as_sharp} ({share}).")


def _steadiness(test: Values) -> Finding | None:
    value = test["jitter_px"]
    if value is None:
        return None
    if round(value, 2) <= 0.2:
        return Finding(True, "Steadiness", f"The head is held steady ({value:.2f} px of jitter).")
    return Finding(False, "Steadiness", f"The head trembles against the video ({value:.2f} px).")


def few_seconds(train_s: float | None, preset: str) -> list[str]:
    """What to say of a fit that had only seconds to learn from; nothing where it had more."""
    if train_s is None or train_s >= SHORT_TRAIN_S or preset == "fewshot":
        return []
    return [
        f"Only {train_s:.1f} s of footage are there to learn from: `--preset fewshot` suits that "
        "better, and a minute of talking better still."
    ]


def sound_offset(offset_ms: float, sure: float | None) -> str:
    """How late the sound of a clip is, if that could be told."""
    if sure is not None and sure < SURE:
        return f"could not be told (confidence {sure:.2f} of 1)"
    words = _timed(offset_ms) if abs(offset_ms) >= 0.5 else "in time"
    return words if sure is None else f"{words}, confidence {sure:.2f} of 1"


def tiles(content: Values) -> list[Tile]:
    """The headline numbers."""
    test, base, speed = content["test"], content["baselines"], content["speed"]

    def beside(name: str, key: str, digits: int, words: str) -> str:
        return f"{words} {number(measure(base[name], name, key), digits)}"

    return [
        Tile("Head, PSNR", number(test["psnr_head"], 1), "dB",
             beside("mean_frame", "psnr_head", 1, "mean training picture")),
        Tile("Head, SSIM", number(test["ssim_head"], 3), "",
             beside("mean_frame", "ssim_head", 3, "mean training picture")),
        Tile("Lip distance", number(test["lmd_px"]), "px",
             beside("still_mouth", "lmd_px", 2, "mouth held still")),
        Tile("Mouth opening", number(test["mouth_open_corr"]), "r",
             beside("still_mouth", "mouth_open_corr", 2, "mouth held still")),
        Tile("Mouth sharpness", number(test["mouth_sharpness"]), "× real", "1 is right"),
        Tile("Head jitter", number(test["jitter_px"]), "px",
             beside("previous_frame", "jitter_px", 2, "real frame before")),
        Tile("Rendering", number(speed["render_fps"], 0), "pictures/s", "512 × 512, one at a time"),
        Tile("Fitting", duration(speed["fit_seconds"]), "", "wall time, all stages"),
    ]  # fmt: skip


MEANINGS: tuple[tuple[str, str], ...] = (
    ("PSNR, dB", "10 log10 of 1 over the mean squared error of colours 0-1; higher is nearer. "
     "Head: skin, hair, lips, mouth and eyes of the real frame. Mouth: a square around the lips."),
    ("SSIM", "likeness of structure in windows of 11 pixels; 1 is the same picture"),
    ("Lip landmarks, px", "mean distance of 40 lip landmarks from the real ones, each frame's mean "
     "shift taken out, in pixels of the 512 x 512 picture that everything is measured on"),
    ("Mouth opening, r", "correlation of the gap between the lips with the real one over time: 1 "
     "follows it, 0 has nothing to do with it; the lag says by how much it comes late"),
    ("Closures", "share of right answers to 'is the mouth closed', open and closed frames counting "
     "the same: 0.5 is chance"),
    ("Mouth sharpness", "detail of the rendered mouth over that of the real one: below 1 is blur"),
    ("Jitter, px", "how unevenly the rendered forehead and nose move against the real ones from "
     "frame to frame; of a held head: the same with the pose held and the sound playing"),
    ("Sound explains the opening", "correlation of the opening with what the sound says of it, in "
     "parts of the training footage that the rule was not learned from"),
)  # fmt: skip
"""The measures of the report's table, in plain words."""


def duration(seconds: Any) -> str:
    """Seconds as minutes or hours, short."""
    if seconds is None:
        return "–"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"
