"""The one exception of macelib: a sentence that names the cause and the cure."""

import contextlib
import difflib
import errno
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

FULL = "free some space"
CURES = {
    errno.ENOSPC: FULL,
    errno.EDQUOT: FULL,
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EACCES: "ask for the right to write there, or choose another folder",
    errno.EPERM: "ask for the right to write there, or choose another folder",
    errno.EROFS: "choose a folder that can be written",
    errno.ENOTDIR: "a file stands where a folder is needed; choose another folder",
    errno.EEXIST: "a file stands where a folder is needed; choose another folder",
    errno.EISDIR: "a folder stands there; choose another name",
}


class MaceError(ValueError):
    """What the caller gave cannot be used; the message says why and what to do."""


def unknown(what: str, name: object, known: Iterable[str], close: float = 0.5, cure: str = "") -> MaceError:
    """The MaceError of a name that is not among those that are known: the nearest of them, or all.

    what: a noun. close: 0..1, how alike a near name is. cure: one more sentence.

    >>> str(unknown("method", "uec", ["uce", "speed"]))
    "There is no method 'uec'; near it: uce."
    >>> str(unknown("task", "zzz", ["objects"], cure="Give a file."))
    "There is no task 'zzz'; there are objects. Give a file."
    """
    known = [*known]
    near = difflib.get_close_matches(str(name), known, 3, close)
    hint = f"near it: {', '.join(near)}" if near else f"there are {', '.join(known) or 'none'}"
    return MaceError(f"There is no {what} {str(name)!r}; {hint}.{cure and ' ' + cure}")


def unwritable(path: str | Path, error: Exception) -> MaceError:
    """The MaceError of a file or folder that could not be written: the system's reason, and what helps against it."""
    number = getattr(error, "errno", None) or (errno.ENOSPC if "no space left" in str(error).lower() else None)
    reason = getattr(error, "strerror", None) or error
    return MaceError(f"{path} could not be written ({reason}): {CURES.get(number, 'choose another folder')}.")


def unreadable(path: str | Path, error: Exception) -> MaceError:
    """The MaceError of a safetensors file that could not be read: that it is a folder, or the reason, and the cure."""
    if Path(path).is_dir():
        inside = next(iter(sorted(Path(path).glob("*.safetensors"))), None)
        cure = f"give the file in it, {inside}" if inside else "give a .safetensors file"
        return MaceError(f"{path} is a folder, and a file is needed: {cure}.")
    return MaceError(f"{path} cannot be read ({error}): it is missing or cut short; copy or make it again.")


def refusal(error: MaceError) -> str:
    """A refusal in its words; the disk's fault is raised."""
    if isinstance(error.__cause__, OSError):
        raise error
    return str(error)


def check_path(path: object, what: str) -> None:
    """MaceError for what is no path at all. what: a noun."""
    if not isinstance(path, (str, os.PathLike)):
        raise MaceError(f"The {what} is {path!r}: give the path of a file.")


def first_line(error: object) -> str:
    """The first line of what an exception says, 200 characters at most; of one that says nothing, its class.

    >>> first_line(OSError(" no such file\\nin it")), first_line(TimeoutError())
    ('no such file', 'TimeoutError')
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


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
