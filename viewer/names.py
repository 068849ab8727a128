"""Coefficients in plain words: which group a slider stands in, what it is called, what pairs it.

ARKit's names are made of words (``mouthSmileLeft``); left and right are the person's own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum


class Group(str, Enum):
    """Where a coefficient's slider stands; the order is that of the page."""

    JAW = "Jaw and tongue"
    MOUTH = "Lips"
    CHEEKS = "Cheeks and nose"
    LIDS = "Eyelids"
    BROWS = "Brows"
    GAZE = "Gaze"
    OTHER = "Learned from the clip"


PREFIXES = {
    "jaw": Group.JAW, "tongue": Group.JAW, "mouth": Group.MOUTH, "cheek": Group.CHEEKS,
    "nose": Group.CHEEKS, "eyeLook": Group.GAZE, "eye": Group.LIDS, "brow": Group.BROWS,
}  # fmt: skip
"""The group of names that begin so; the first that fits counts."""
UNSAID = {Group.MOUTH: "mouth", Group.LIDS: "eye", Group.BROWS: "brow"}
"""What a group's title says already and its sliders need not repeat."""
WORDS = {
    "mouthClose": "Together", "mouthLeft": "Shift left", "mouthRight": "Shift right",
    "mouthRollLower": "Lower lip in", "mouthRollUpper": "Upper lip in",
    "mouthShrugLower": "Lower lip up", "mouthShrugUpper": "Upper lip up",
    "mouthLowerDownLeft": "Lower down left", "mouthLowerDownRight": "Lower down right",
    "mouthUpperUpLeft": "Raise left", "mouthUpperUpRight": "Raise right",
    "jawLeft": "Jaw to the left", "jawRight": "Jaw to the right",
    "eyeWideLeft": "Open wide left", "eyeWideRight": "Open wide right",
}  # fmt: skip
"""Names whose own words would mislead."""
FIRST = {"jawOpen", "mouthSmileLeft", "mouthSmileRight"}
"""What people reach for first stands at the top of its group."""
GAZE = re.compile(r"eyeLook(Down|Up|In|Out)(Left|Right)")
SIDES = (("Left", "Right"), ("Right", "Left"))


def group_of(name: str) -> Group:
    """The group of sliders a coefficient belongs to."""
    return next((group for start, group in PREFIXES.items() if name.startswith(start)), Group.OTHER)


def grouped(names: Sequence[str]) -> dict[Group, tuple[str, ...]]:
    """Names by group, else in the given order; groups without a name are left out."""
    ordered = sorted(names, key=lambda name: name not in FIRST)
    groups = {group: tuple(n for n in ordered if group_of(n) == group) for group in Group}
    return {group: members for group, members in groups.items() if members}


def plain(name: str) -> str:
    """What a slider is called in its group, e.g. ``Smile left`` for ``mouthSmileLeft``."""
    if name in WORDS:
        return WORDS[name]
    gaze = GAZE.fullmatch(name)
    if gaze is not None:
        where, side = gaze.groups()
        return f"{side} eye {where.lower()}"
    short = name.removeprefix(UNSAID.get(group_of(name), ""))
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", short).lower()
    return words[:1].upper() + words[1:]


def twin(name: str, names: Sequence[str]) -> str | None:
    """The same coefficient of the other side; None if it has none among ``names``.

    Gaze is no pair: both eyes look to one side with one inwards and the other outwards. Nor are
    shifts of jaw and mouth, which exclude each other.
    """
    if name in {"jawLeft", "jawRight", "mouthLeft", "mouthRight"} or GAZE.fullmatch(name):
        return None
    for side, other in SIDES:
        mirrored = name.removesuffix(side) + other
        if name.endswith(side) and mirrored in names:
            return mirrored
    return None
