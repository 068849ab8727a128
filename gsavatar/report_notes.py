"""What was not measured and why, from the keys of ``metrics.json`` to the words of the report."""

from __future__ import annotations

import re
from collections.abc import Sequence

from gsavatar.metrics_file import BASELINES
from gsavatar.report_words import COLUMNS, NEVER_MOVE, OPENING_KEYS, ROWS

KEYS = re.compile(r"[a-z_]+(\.[a-z_]+)*(, [a-z_]+(\.[a-z_]+)*)*")
"""What stands before the colon of a note: dotted keys."""

OURS = "test"
SECTIONS = {
    OURS: "test frames", "test_pasted": "head pasted on the real frame",
    "test_expression": "driven by the tracked expression",
    "test_expression_pasted": "driven by the tracked expression and pasted",
} | {name: label.lower() for name, label in COLUMNS if name in BASELINES}  # fmt: skip
MEASURES = {key: label for key, label, *_ in ROWS} | {
    "cv_open_corr": "Sound explains the opening", "av_offset_ms": "Sound against picture",
    "fit_seconds": "Time of the fit", "stages": "Time of each stage",
    "render_fps": "Pictures a second", "train_iters_per_s": "Training steps a second",
    "peak_rss_mb": "Largest memory", "peak_vram_mb": "Largest GPU memory",
}  # fmt: skip


def gathered(notes: Sequence[str]) -> list[str]:
    """Notes ``keys: reason`` in the words of people, all measures of a reason in one line.

    What holds for the avatar is said once and not again of what it is compared with; that a still
    mouth has no opening and a picture no held head is not said at all.
    """
    missing: dict[str, dict[str, list[str]]] = {}  # by reason and measure: the sections
    alone = []
    for note in notes:
        keys, colon, reason = note.partition(": ")
        if not colon or not KEYS.fullmatch(keys):
            alone.append(note)
        elif keys.removeprefix("baselines.") in SECTIONS:
            whose = SECTIONS[keys.removeprefix("baselines.")]
            alone.append(f"{_capital(whose)}: {reason}")
        else:
            for key in keys.split(", "):
                section, _, name = key.rpartition(".")
                section = section.removeprefix("baselines.")
                if not _is_trivial(section, name):
                    missing.setdefault(reason, {}).setdefault(name, []).append(section)
    return [line for reason, found in missing.items() for line in _lines(reason, found)] + alone


def _is_trivial(section: str, name: str) -> bool:
    """Whether nobody would ask: a comparison that cannot have this measure."""
    still = section in NEVER_MOVE and name in OPENING_KEYS
    return still or (section in BASELINES and name == "hold_px")


def _lines(reason: str, found: dict[str, list[str]]) -> list[str]:
    """One line for all measures that the same sections lack for a reason."""
    by_whom: dict[str, list[str]] = {}
    for name, sections in found.items():
        whose = [SECTIONS[s] for s in dict.fromkeys(sections) if s in SECTIONS]
        whom = "" if OURS in sections or not whose else f" ({', '.join(whose)})"
        by_whom.setdefault(whom, []).append(MEASURES.get(name, name))
    return [f"{'; '.join(names)}{whom}: {reason}" for whom, names in by_whom.items()]


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]
