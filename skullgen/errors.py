"""The one exception that speaks to people."""


class UserError(Exception):
    """A mistake that the user can mend: one line with what is wrong, where, and what to do.

    `launch.py` prints the line, without a traceback, and exits with code 2.
    """
