"""What this package raises."""

import re


class InputError(ValueError):
    """Something the user gave is wrong: an argument, a tensor, a file.

    The message names the value received, the rule it breaks and the remedy. The command line prints it alone, without
    a traceback; in Python it is a `ValueError`.
    """


class Diverged(InputError):
    """A training ended since its loss, a gradient or a weight was not finite; the message begins with the step."""


def printable(text: str) -> str:
    """A text without what a terminal would obey: what a stranger's file says may hold anything."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda one: f"\\x{ord(one[0]):02x}", text)
