"""The one exception of this package."""


class InputError(ValueError):
    """Something the user gave is wrong: an argument, a tensor, a file.

    The message names the value received, the rule it breaks and the remedy. The command line prints it alone, without
    a traceback; in Python it is a `ValueError`.
    """
