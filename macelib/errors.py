"""The one exception of macelib: a sentence that names the cause and the cure."""

import contextlib
import errno
from collections.abc import Iterator


class MaceError(ValueError):
    """What the caller gave cannot be used; the message says why and what to do."""


def need(module: str, extra: str):
    """Import and return an optional module; MaceError names the extra that installs it."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MaceError(
            f'{module} is needed here and cannot be imported ({error}): pip install "macelib[{extra}]".'
        ) from error


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Out of memory and out of space as a MaceError that says what to do."""
    try:
        yield
    except MaceError:
        raise
    except (RuntimeError, MemoryError, OSError) as error:
        text = str(error).lower()
        if isinstance(error, MemoryError) or "out of memory" in text or "not enough memory" in text:
            raise MaceError(
                "The memory is full: lower train.concepts_per_pass and images.batch (or --batch), or set "
                "train.gradient_checkpointing; with a folder, what was done so far is kept."
            ) from error
        if getattr(error, "errno", None) == errno.ENOSPC or "no space left" in text:
            raise MaceError(
                "The disk is full: free some space and call again; with a folder, what was done is kept."
            ) from error
        raise
