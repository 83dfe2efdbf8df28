"""Atomic writes, tensors with a checksum, the cache folder, locks, and content hashes."""

import hashlib
import json
import logging
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import MaceError, first_line, unreadable, unwritable

log = logging.getLogger(__name__)


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`, renamed to `path` on success and deleted on any error.

    The temporary name keeps the suffix, so writers that look at it still work. Works for a folder, too, where `path`
    does not exist yet. What is written gets the permissions that the umask allows, of which safetensors leaves the
    owner's alone. Raises MaceError where the folder cannot be written, the disk is full, or `path` has no name.
    """
    path, holder = check_named(path), None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        holder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        temporary = holder / path.name
        yield temporary
        usual_permissions(temporary)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise unwritable(path, error) from error
    finally:
        if holder is not None:
            shutil.rmtree(holder, ignore_errors=True)


def check_named(path: str | Path) -> Path:
    """The path; MaceError for one without a name of its own: "", ".", ".." and a disk's root are never written to."""
    path = Path(path)
    if path.name in ("", ".."):
        raise MaceError(f"{str(path)!r} has no name of its own: give one for what is written, such as {path / 'out'}.")
    return path


def check_file(path: str | Path) -> Path:
    """The path; MaceError for a folder, where a file is to be written."""
    path = Path(path)
    if path.is_dir():
        raise MaceError(f"{path} is a folder, and a file is written: give one in it, such as {path / 'out'}.")
    return check_named(path)


def write_text(path: str | Path, text: str) -> Path:
    """Write a text in UTF-8, atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def write_json(path: str | Path, values, indent: int | None = 1, **options) -> Path:
    """Write JSON, atomically; options: of `json.dumps`."""
    return write_text(path, json.dumps(values, indent=indent, ensure_ascii=False, **options) + "\n")


def write_checked(path: str | Path, values) -> Path:
    """Write what is to be gone on from as JSON, atomically, with a checksum."""
    return write_json(path, {"sha256": _checksum(values), "values": values})


def read_checked(path: str | Path):
    """What `write_checked` wrote; None where nothing was. MaceError for a file that is damaged or was edited."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        if found["sha256"] != _checksum(found["values"]):
            raise ValueError("its checksum is another")
        return found["values"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise MaceError(f"{path} is damaged ({first_line(error)}): delete it, and it is made anew.") from error


def _checksum(values) -> str:
    return hash_text(json.dumps(values, ensure_ascii=False))


def usual_permissions(written: Path) -> None:
    """Add the permissions of a new file to those of a file, or of all in a folder."""
    probe = written.parent / f".{written.name}.permissions"
    probe.touch()
    usual = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for file in (written, *written.rglob("*")):
        if file.is_file():
            file.chmod(stat.S_IMODE(file.stat().st_mode) | usual)


def check_writable(folder: str | Path) -> None:
    """MaceError where a folder, there or not, cannot be written; nothing is left behind."""
    folder = Path(folder)
    for place in (folder, *folder.absolute().parents):
        try:
            place.stat()
            with tempfile.TemporaryFile(dir=place):
                return
        except FileNotFoundError:
            continue  # to be made in the folder above
        except OSError as error:
            raise unwritable(folder, error) from error


def name_of(text: str) -> str:
    """A file's name for a text of any script and length: readable where it can be, and no other text has it.

    >>> name_of("Delivery truck"), name_of("船")
    ('delivery-truck-1e809ec0f313', 'd68a4acd58ec')
    """
    readable = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60].strip("-")
    return "-".join([*filter(None, [readable]), hash_text(text)[:12]])


@contextmanager
def locked(path: str | Path, what: str, wait: bool = True) -> Iterator[bool]:
    """Hold the lock file `path`: nobody else does at the same time. Yields whether another process was waited for.

    The lock goes with the process that holds it, however that ends. what: a noun, for the sentence that says whom one
    waits for; without `wait`, MaceError says it.
    """
    path, waited = Path(path), False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if not wait:
                raise MaceError(
                    f"Another process is at work on {what}: wait until it has ended, or choose another folder."
                ) from None
            log.warning("Another process is at work on %s: this one waits for it.", what)
            lock.acquire()
            waited = True
    except (OSError, NotImplementedError) as error:
        raise MaceError(f"{path} cannot be locked ({error}): choose a folder on another disk.") from error
    try:
        yield waited
    finally:
        lock.release()


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], about: Mapping | None = None) -> Path:
    """Write a safetensors file atomically: tensors, what is to be said `about` them (JSON), a checksum over both.

    MaceError where it cannot be written, or `path` is a folder.
    """
    path = check_file(path)
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(about or {})
    with atomic(path) as temporary:
        save_file(whole, temporary, metadata={"macelib": text, "sha256": hash_text(text, hash_tensors(whole))})
    return Path(path)


def read_tensors(path: str | Path) -> tuple[dict, dict[str, Tensor], bool]:
    """What `save_tensors` wrote: about, tensors, and whether there was a checksum (a foreign file has none).

    MaceError for a file that is missing or cut short, and for one whose checksum is not that of its contents.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118, aligned in memory
    except (OSError, SafetensorError, ValueError) as error:
        raise unreadable(path, error) from error
    text, checksum = header.get("macelib", "{}"), header.get("sha256")
    if checksum is not None and checksum != hash_text(text, hash_tensors(tensors)):
        raise MaceError(f"{path} is damaged (its checksum is another): copy or make it again.")
    try:
        about = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MaceError(f"{path} is damaged (its header is no JSON): copy or make it again.") from error
    if not isinstance(about, dict):
        raise MaceError(f"{path} is damaged (its header is no mapping): copy or make it again.")
    return about, tensors, checksum is not None


def read_cached(path: str | Path, key: str) -> dict[str, Tensor] | None:
    """Tensors that `save_tensors` kept about {"key": key}; None where there are none, or (said) others or damaged."""
    if not Path(path).exists():
        return None
    try:
        about, tensors, checked = read_tensors(path)
    except MaceError as error:
        log.warning("%s It is made anew.", error)
        return None
    if not checked or about.get("key") != key:
        log.warning("%s has no checksum, or is of something else: it is made anew.", path)
        return None
    return tensors


def cache_folder() -> Path:
    """$MACELIB_CACHE, or `macelib` in the user's cache folder ($XDG_CACHE_HOME, ~/.cache); created when first asked."""
    if os.environ.get("MACELIB_CACHE"):
        folder = Path(os.environ["MACELIB_CACHE"]).expanduser()
    else:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "macelib"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MaceError(f"The cache folder {folder} cannot be made ({error}): set MACELIB_CACHE to one.") from error
    return folder


def data_folder() -> Path:
    """Models, protocols and lists: $MACELIB_DATA, or `data` in the installed package, or `data` beside the package."""
    if os.environ.get("MACELIB_DATA"):
        return Path(os.environ["MACELIB_DATA"]).expanduser()
    package = Path(__file__).resolve().parent
    return package / "data" if (package / "data").is_dir() else package.parent / "data"


def notebooks_folder() -> Path:
    """The notebooks: in the installed package, or beside the package."""
    package = Path(__file__).resolve().parent
    return package / "notebooks" if (package / "notebooks").is_dir() else package.parent / "notebooks"


def into_marks(path: str | Path, mark: str, text: str) -> bool:
    """Put `text` between `<!-- mark -->` and `<!-- end of mark -->` in a page; False where it has no such place."""
    begin, end = f"<!-- {mark} -->", f"<!-- end of {mark} -->"
    page = Path(path).read_text(encoding="utf-8") if Path(path).is_file() else ""
    if begin not in page or end not in page:
        return False
    before, _, rest = page.partition(begin)
    write_text(path, f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}")
    return True


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """sha256 (hex) over name, dtype, shape and bytes of every tensor, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        if tensor.numel():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


@cache
def sources_hash(package: str) -> str:
    """sha256 (hex) over the names and texts of an imported package's sources, as they were when first asked for."""
    folder = Path(sys.modules[package].__file__).parent
    paths = sorted(folder.rglob("*.py"))
    return hash_text(*(part for path in paths for part in (path.relative_to(folder), path.read_text(encoding="utf-8"))))


def hash_file(path: str | Path) -> str:
    """sha256 (hex) of a file's bytes; empty where it cannot be read."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        return ""


def hash_text(*parts) -> str:
    """sha256 (hex) over the parts as text, each with its length before it, so that ("ab",) and ("a", "b") differ."""
    digest = hashlib.sha256()
    for part in parts:
        data = str(part).encode()
        digest.update(f"{len(data)}:".encode() + data)
    return digest.hexdigest()
