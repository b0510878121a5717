"""Lines that the commands print, without the control characters that the files of a stranger may hold."""

import sys

from hypergrad.report.text import visible


def say(text: object = "", *, error: bool = False, end: str = "\n") -> None:
    """Print a text on standard output, or on standard error, with a mark in place of each control character.

    An escape sequence in the name of a leaf, a warning or a file would otherwise clear the screen, set the
    title of the window or hide a line. Line breaks and tabs stay.

    Args:
        text: What to print.
        error: Whether it is for standard error.
        end: What follows it.
    """
    file = sys.stderr if error else sys.stdout
    print(visible(str(text)), file=file, end=end, flush=error)
