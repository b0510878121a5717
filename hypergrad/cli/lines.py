"""Lines that the commands print, without the control characters that the files of a stranger may hold."""

import os
import sys
from typing import TextIO

from hypergrad.report.text import visible


def say(text: object = "", *, error: bool = False, end: str = "\n") -> None:
    """Print a text on standard output, or on standard error, with a mark in place of each control character.

    An escape sequence in the name of a leaf, a warning or a file would otherwise clear the screen, set the
    title of the window or hide a line. Line breaks and tabs stay. Where nobody reads standard error any more,
    what is for it is dropped, so that the result still comes.

    Args:
        text: What to print.
        error: Whether it is for standard error.
        end: What follows it.
    """
    file = sys.stderr if error else sys.stdout
    try:
        print(visible(str(text)), file=file, end=end, flush=error)
    except BrokenPipeError:
        if not error:
            raise
        drop(file)


def drop(file: TextIO) -> None:
    """Let what follows in a stream go nowhere, also what it still holds when the process ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, file.fileno())
    os.close(nowhere)


def open_streams() -> None:
    """Open the null device in the place of each standard stream that the process was started without.

    Without this, the first file of a study would get the stream's number, and whatever a library logs would be
    written into it.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, closefd=False))
