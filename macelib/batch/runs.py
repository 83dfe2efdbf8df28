"""One run of a notebook: its identity, its folder, and what state it is in.

papermill_runs/<sweep>/<run-id>/
    notebook.ipynb    as executed, with its outputs (and its traceback, where it failed)
    notebook.html     the same as a page to read
    run.json          notebook, parameters, code version: what the id is made of
    metrics.json      written by the notebook
    summary.txt       written by the notebook, where it has something to say at the end
    *.png, figures/   written by the notebook, or else the pictures among its outputs
    log.txt           output of papermill and of the notebook's cells
    environment.json  Python, packages, machine, git commit
    status.json       how it ended: seconds, and cell, error and traceback of a failure
    SUCCESS           written last: without it, a run is not complete
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from ..errors import MaceError, unwritable
from .parameters import check, read_notebook, read_parameters, source

PACKAGE = Path(__file__).resolve().parent.parent
SETTINGS = "config"  # parameter that holds fields of EraseConfig
ROOT = Path("papermill_runs")  # default folder of all sweeps
NOTEBOOK, READABLE, METRICS, FIGURES = "notebook.ipynb", "notebook.html", "metrics.json", "figures"
SUMMARY, STATUS, SUCCESS = "summary.txt", "status.json", "SUCCESS"
SWEEP = "sweep.json"  # in a sweep's folder: the runs that make it up
ENDED = ("complete", "failed")  # states in which a run's metrics and figures are shown


@dataclass(frozen=True)
class Run:
    """A notebook with all its parameters; picklable."""

    id: str  # 12 hexadecimal digits of the hash over notebook, parameters and code
    notebook: str  # absolute path
    parameters: dict[str, Any]  # every parameter, defaults included
    given: dict[str, Any]  # those that differ from the defaults
    versions: dict[str, str]  # hashes: notebook, code
    folder: str  # absolute path

    @property
    def state(self) -> str:
        """complete, failed, unfinished (running or killed) or waiting."""
        return state(Path(self.folder))

    def check(self) -> None:
        """MaceError where notebook or code are not any more what the id was made of."""
        if versions(self.notebook) != self.versions:
            what = "notebook" if notebook_version(self.notebook) != self.versions["notebook"] else "library's code"
            raise MaceError(f"The {what} was changed after the sweep began: start the sweep again.")


def plan(notebook: str | Path, given: Iterable[Mapping[str, Any]], folder: str | Path) -> list[Run]:
    """Runs of a sweep: parameters checked, ids made, repeated ones left out. MaceError before anything is started."""
    notebook, folder = Path(notebook).resolve(), Path(folder).resolve()
    known, hashes = read_parameters(notebook), versions(notebook)
    runs, wrong, settings = {}, [], []
    for some in given:
        try:
            values = check(known, some, notebook.name)
            if values.get(SETTINGS) and values[SETTINGS] not in settings:
                check_settings(values[SETTINGS])
                settings.append(values[SETTINGS])
        except MaceError as error:
            wrong += [str(error)] if str(error) not in wrong else []
            continue
        text = json.dumps([notebook.name, hashes, values], sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()[:12]
        other = {name: value for name, value in values.items() if value != known[name].default}
        runs.setdefault(key, Run(key, str(notebook), values, other, hashes, str(folder / key)))
    if wrong:
        raise MaceError(" ".join(wrong[:5]) + (f" ({len(wrong) - 5} more such runs.)" if len(wrong) > 5 else ""))
    return list(runs.values())


def check_settings(values: Mapping[str, Any]) -> None:
    """MaceError where a `config` parameter is not what `EraseConfig.from_dict` takes."""
    from ..config import EraseConfig

    EraseConfig.from_dict(dict(values))


def state(folder: Path) -> str:
    """State of the run in a folder: complete, failed, unfinished or waiting."""
    if (folder / SUCCESS).exists():
        return "complete"
    if read_json(folder / STATUS).get("status") == "failed":
        return "failed"
    return "unfinished" if folder.exists() else "waiting"


def figures(folder: Path) -> list[Path]:
    """Figures of a run, by name: pictures in its folder and in figures/, not those in the notebook's own subfolders."""
    return sorted(folder.glob("*.png")) + sorted((folder / FIGURES).glob("*.png"))


def versions(notebook: str | Path) -> dict[str, str]:
    """Hashes of what a result depends on besides the parameters."""
    return {"notebook": notebook_version(notebook), "code": code_version()}


def notebook_version(path: str | Path) -> str:
    """Hash of the cells' sources: outputs and metadata do not count."""
    cells = [[cell.get("cell_type"), source(cell)] for cell in read_notebook(path)["cells"]]
    return hashlib.sha256(json.dumps([c for c in cells if c[0] == "code"]).encode()).hexdigest()[:12]


def code_version() -> str:
    """Hash of the library's Python files, but for those that only launch runs."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if not name.startswith(("batch/", "cli/")):
            digest.update(f"{name}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def remember(folder: Path, name: str, runs: Sequence[Run], add: bool = False) -> None:
    """Write sweep.json, the runs that make up a sweep; `add` keeps those that were there, of the same versions."""
    make_folder(folder)
    with FileLock(folder / ".sweep.lock"):  # `mace run` may be called many times at once
        before = read_runs(folder) if add else []
        kept = ("id", "parameters", "versions")
        now = [{key: value for key, value in asdict(run).items() if key in kept} for run in runs]
        ids = {run["id"] for run in now}
        same = [run for run in before if run["id"] not in ids and run.get("versions") == now[0]["versions"]]
        rows = {"name": name, "notebook": Path(runs[0].notebook).name, "runs": same + now}
        write_json(folder / SWEEP, rows)


def make_folder(folder: Path) -> None:
    """Make a folder that can be written; MaceError says why it cannot."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise unwritable(folder, error) from error


def environment() -> dict[str, Any]:
    """Python, packages, machine and git commit of this process."""
    found = {d.name: d.version for d in importlib.metadata.distributions() if d.name}
    threads = {name: value for name, value in os.environ.items() if name.endswith("_NUM_THREADS")}
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "machine": platform.node(),
        "cores": os.cpu_count(),
        "threads": threads,
        "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
        **git(),
        "packages": dict(sorted(found.items(), key=lambda item: item[0].lower())),
    }


@functools.cache
def git() -> dict[str, Any]:
    """Commit of the library's checkout and whether files differ from it; None where it is not in one."""
    try:
        head, changes = (
            subprocess.run(["git", "-C", PACKAGE, *arguments], capture_output=True, text=True, check=True).stdout
            for arguments in (["rev-parse", "HEAD"], ["status", "--porcelain", "--", "."])
        )
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "changed": None}
    return {"commit": head.strip(), "changed": bool(changes.strip())}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where the file is missing or damaged."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def read_runs(folder: Path) -> list[dict[str, Any]]:
    """The runs that sweep.json says make up a sweep: `id` and `parameters` of each; none where there is no such file.

    MaceError for a damaged one.
    """
    if not (path := folder / SWEEP).exists():
        return []
    found = read_json(path).get("runs")
    if not isinstance(found, list) or not all(map(_is_run, found)):
        raise MaceError(f"{path} is damaged: delete it and launch the sweep again; what is complete stays so.")
    return found


def _is_run(entry: Any) -> bool:
    named = isinstance(entry, dict) and isinstance(entry.get("id"), str) and Path(entry["id"]).name == entry["id"]
    return bool(named and isinstance(entry.get("parameters"), dict))


def write_json(path: Path, values: Any) -> None:
    """Write JSON through a temporary file: another process reads the old or the new, never half."""
    write_text(path, json.dumps(values, indent=1, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write text through a temporary file in the same folder; without `macelib.files`, which loads PyTorch.

    The file has the permissions that the umask allows; the temporary one is gone after any error.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name[:100]}.", dir=path.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary or "")


def _umask() -> int:
    os.umask(mask := os.umask(0o077))
    return mask
