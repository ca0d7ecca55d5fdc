# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Errors that the commands show without a traceback."""


class UserError(Exception):
    """An error that the user can fix. The message is one line and says how."""

    exit_code = 2


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, with the second line if the first one ends with a colon."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].endswith(":"):
        return " ".join(lines[:2])
    return lines[0] if lines else type(error).__name__
