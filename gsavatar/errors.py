"""The one exception a user sees: a sentence naming the file, the value and the cure."""


class InputError(Exception):
    """Something the user gave or lacks; the command line prints it and exits with code 2."""


def first_line(error: Exception) -> str:
    """What an error says first, for a sentence of ours; its kind where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]
