"""Atomic writes, the cache folder, and content hashes."""

import hashlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from .errors import MaceError, unwritable


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`, renamed to `path` on success and deleted on any error.

    The temporary name keeps the suffix, so writers that look at it still work. Works for a folder, too, where `path`
    does not exist yet. What is written gets the permissions that the umask allows, of which safetensors leaves the
    owner's alone. Raises MaceError where the folder cannot be written or the disk is full.
    """
    path = Path(path)
    temporary = None
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
        if temporary is not None:
            shutil.rmtree(temporary.parent, ignore_errors=True)


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
    with atomic(path) as temporary:
        temporary.write_text(f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}", encoding="utf-8")
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


def hash_text(*parts) -> str:
    """sha256 (hex) over the parts as text, each with its length before it, so that ("ab",) and ("a", "b") differ."""
    digest = hashlib.sha256()
    for part in parts:
        data = str(part).encode()
        digest.update(f"{len(data)}:".encode() + data)
    return digest.hexdigest()
