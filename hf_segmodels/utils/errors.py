# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Errors that the commands show without a traceback."""


class UserError(Exception):
    """A mistake that the user can mend, in one line that says what to do."""


def first_line(error: BaseException) -> str:
    """What an error says, in one line: the first, with the next where the first only announces it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].endswith(":"):
        return " ".join(lines[:2])
    return lines[0] if lines else type(error).__name__
