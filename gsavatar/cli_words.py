"""The words of a command line: the command they ask for, or one sentence on what is mistyped.

Tyro alone decides what it takes, and draws a box of many lines round what it refuses. Only refused
words are looked at again here, by the fields of the commands: tyro's hook for that is private. What
is not understood here keeps tyro's box.
"""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Iterable, Sequence
from contextlib import redirect_stderr
from dataclasses import MISSING, dataclass, fields
from difflib import get_close_matches
from typing import Any, Literal, get_args, get_origin, get_type_hints

import tyro

from gsavatar.cli_options import Command, command_line
from gsavatar.errors import InputError

POSITIONAL = get_args(tyro.conf.Positional[int])[1]
NEAR = 0.75
"""How alike a word must be to what is advised in its place, of 1."""
SWITCHED = ("true", "false", "yes", "no", "on", "off")
NUMBERS = {int: "a whole number", float: "a number"}


def command_of(words: Sequence[str]) -> Any:
    """The command of some words, as an object of ``cli_options``.

    Raises ``InputError`` for mistyped words; leaves by ``SystemExit`` once help was shown, or a box
    about what is not understood here.
    """
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            command = tyro.cli(
                command_line(shutil.get_terminal_size().columns, words),
                prog="gsavatar",
                description="A talking avatar of one person, from a video (--version tells its "
                "version).",
                args=words,
                config=(tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff),
            )
    except SystemExit as leaving:
        if leaving.code:
            refuse(words)
        sys.stderr.write(said.getvalue())
        raise
    sys.stderr.write(said.getvalue())
    return command


@dataclass(frozen=True)
class _Option:
    """What a command takes: a word in its place, or a value (or nothing, a ``bool``) by name."""

    name: str  # as it is typed, without dashes
    kind: Any  # of its value, None left out
    positional: bool
    needed: bool
    optional: bool  # whether None is a value, too


def refuse(words: Sequence[str]) -> None:
    """Raises ``InputError`` with what is wrong in a command line that tyro refused, and the cure;
    does nothing if that is not known here."""
    kinds: dict[str, type] = {kind.__name__.lower(): kind for kind in get_args(Command)}
    if not words:
        raise InputError(f"no command given; name {_either(kinds)}.")
    command = words[0]
    if command not in kinds:
        cure = _nearest(command, kinds) or f"use {_either(kinds)}"
        raise InputError(f"{command}: is no command; {cure}.")
    _refuse_rest(command, _options(kinds[command]), list(words[1:]))


def _options(command: type) -> list[_Option]:
    kinds, notes = get_type_hints(command), get_type_hints(command, include_extras=True)
    options = []
    for field in fields(command):
        kind = kinds[field.name]
        optional = type(None) in get_args(kind)
        if optional:
            (kind,) = (part for part in get_args(kind) if part is not type(None))
        name = field.name.rstrip("_").replace("_", "-")
        positional = POSITIONAL in get_args(notes[field.name])
        options.append(_Option(name, kind, positional, field.default is MISSING, optional))
    return options


def _refuse_rest(command: str, options: list[_Option], rest: list[str]) -> None:
    """As ``refuse``, for the words after the name of a command."""
    named = {f"--{option.name}": option for option in options if not option.positional}
    given: list[_Option] = []
    runs: list[list[str]] = [[]]  # of words without a name, with options between them
    while rest:
        word, equals, value = rest.pop(0).partition("=")
        if word == "--":  # from here on nothing is a name
            runs[-1] += rest
            break
        if not word.startswith("-"):
            runs[-1].append(word + equals + value)
            continue
        runs.append([])
        option = named.get(word.replace("_", "-"))
        if option is None:
            cure = _nearest(word, named) or f"see gsavatar {command} --help"
            raise InputError(f"{word}: gsavatar {command} has no such option; {cure}.")
        given.append(option)
        if option.kind is bool:
            if equals:
                raise InputError(f"{word}={value}: {word} takes no value; leave ={value} away.")
            continue
        if not equals:
            if not rest or _is_name(rest[0]):
                cure = f"name one, as gsavatar {command} --help tells"
                raise InputError(f"{word}: its value is missing; {cure}.")
            value = rest.pop(0)
        wanted = None if option.optional and value == "None" else _wanted(option.kind, value)
        if wanted is not None:
            raise InputError(f"{word} {value}: is not {wanted}; name one, or leave {word} away.")
    _refuse_places(command, options, given, [run for run in runs if run])


def _refuse_places(
    command: str, options: list[_Option], given: list[_Option], runs: list[list[str]]
) -> None:
    """As ``refuse``, for what is missing or too much; ``runs`` are the words without a name."""
    loose = [word for run in runs for word in run]
    places = [option for option in options if option.positional]
    there = [*given, *places[: len(loose)]]
    for option in options:
        if option.needed and option not in there:
            name = option.name.upper() if option.positional else f"--{option.name}"
            cure = f"name it, as gsavatar {command} --help tells"
            raise InputError(f"gsavatar {command} needs {name}; {cure}.")
    if any(get_origin(place.kind) is tuple for place in places):
        if len(runs) > 1:
            if runs[1][0].lower() in SWITCHED:
                cure = f"switches take no value; leave {runs[1][0]} away"
                raise InputError(f"{runs[1][0]}: stands apart from {runs[0][0]}; {cure}.")
            raise InputError(f"{runs[1][0]}: stands apart from {runs[0][0]}; name both together.")
    elif len(loose) > len(places):
        raise InputError(
            f"{loose[len(places)]}: is more than gsavatar {command} takes; leave it away."
        )


def _wanted(kind: Any, value: str) -> str | None:
    """What a value should have been; None if it is."""
    if get_origin(kind) is Literal:
        choices = [str(choice) for choice in get_args(kind)]
        return None if value in choices else _either(choices)
    if kind not in NUMBERS:
        return None
    try:
        kind(value)
    except ValueError:
        return NUMBERS[kind]
    return None


def _is_name(word: str) -> bool:
    """Whether a word is the name of an option, and not a value."""
    return word.startswith("-") and _wanted(float, word) is not None


def _nearest(word: str, known: Iterable[str]) -> str:
    """The advice to use what was most likely meant; empty if nothing is near."""
    plain = {name.strip("-"): name for name in known}
    near = get_close_matches(word.strip("-").replace("_", "-"), plain, 1, NEAR)
    return f"use {plain[near[0]]}" if near else ""


def _either(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} or {last}" if most else last
