# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Errors of the endpoint handler, with the HTTP status that a server should answer."""

import torch


class RequestError(ValueError):
    """
    An invalid request; the message says how to fix it. Servers that follow the contract of custom handlers answer any
    `ValueError` with status 400 and the message; a server that reads `status_code` can be more precise.
    """

    def __init__(self, message: str, status_code: int = 400):
        super().__init__(message)
        self.status_code = status_code


class ServerError(RuntimeError):
    """A failure on the server's side: out of memory (`status_code` 507) or an error in the model (500)."""

    def __init__(self, message: str, status_code: int = 500):
        super().__init__(message)
        self.status_code = status_code


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error reports that memory ran out."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error)  # torch's allocator on CPUs raises a plain RuntimeError
    return isinstance(error, RuntimeError) and ("not enough memory" in text or "can't allocate memory" in text)
