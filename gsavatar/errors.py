"""The one exception a user sees: a sentence naming the file, the value and the cure."""


class InputError(Exception):
    """Something the user gave or lacks; the command line prints it and exits with code 2."""
