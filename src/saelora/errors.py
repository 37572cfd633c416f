"""The one error that means "the input is wrong", as opposed to "this program is wrong"."""


class InputError(Exception):
    """Something the user gave cannot be used.

    The message is one line: what was got, what was expected, what to do. The command line prints it
    without a traceback and exits with code 2.
    """

    exit_code = 2
