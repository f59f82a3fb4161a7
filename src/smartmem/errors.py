"""The errors a user can cause, each a single line that says what is wrong, where, and what to do next.

The CLI prints ``str(error)`` and exits with 2; nothing derived from :class:`SmartmemError` shows a stack trace there.
"""

from __future__ import annotations


class SmartmemError(Exception):
    """Base class of every error that smartmem raises on purpose."""


class ModelError(SmartmemError):
    """The model file is missing, malformed, or uses something that cannot be compiled."""


class InputError(SmartmemError):
    """The arguments of a call (names, shapes, dtypes, options) do not fit the model."""


class CompilerError(SmartmemError):
    """smartmem itself failed: a pass broke an invariant, or a kernel did not prove safe. Please report it."""


class RuntimeFailure(SmartmemError):
    """The C compiler, the cache, or a compiled model could not be used on this machine."""
