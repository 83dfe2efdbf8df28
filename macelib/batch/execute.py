"""Executing one run: papermill with a kernel of the running interpreter, in a process that does nothing else."""

import base64
import contextlib
import json
import logging
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import MaceError, explained
from . import progress
from .parameters import RUN_FOLDER, read_notebook, read_parameters, source
from .readable import make_readable
from .runs import (  # fmt: skip
    FIGURES,
    METRICS,
    NOTEBOOK,
    STATUS,
    SUCCESS,
    Run,
    environment,
    figures,
    make_folder,
    read_json,
    state,
    write_json,
)

KERNEL = "python3"  # the name that notebooks carry: here it is found first, and is this interpreter
ANSI = re.compile(r"\x1b\[[0-9;]*m")


class RunFailed(MaceError):
    """A notebook that stopped with an error; its folder tells more."""


def execute(run: Run, force: bool = False) -> str:
    """Execute a run and return its state before: "complete" where nothing was to be done.

    What the notebook keeps in subfolders (pictures, checkpoints) is there again when a run cut short is redone; `force`
    begins from nothing. Raises RunFailed with the cell and the error; the notebook in the run's folder has the
    traceback. Two processes never work on the same run: the second waits and then finds it complete.
    """
    from filelock import FileLock

    folder = Path(run.folder)
    locks = folder.parent / ".locks"
    make_folder(locks)
    with FileLock(locks / f"{run.id}.lock"):
        before = state(folder)
        if before == "complete" and not force:
            return before
        run.check()
        _clear(folder, force)
        with _log(folder / "log.txt"):
            _execute(run, folder)
    return before


def _execute(run: Run, folder: Path) -> None:
    """The run itself, in an empty folder."""
    begin = time.time()
    about = {"id": run.id, "notebook": Path(run.notebook).name, "versions": run.versions}
    about["parameters"] = run.parameters
    write_json(folder / "run.json", about)
    write_json(folder / "environment.json", environment())
    status: dict[str, Any] = {"status": "complete"}
    try:
        run_notebook(run, folder)
        check_metrics(folder / METRICS)
    except Exception as error:
        status = {"status": "failed", **explain(error)}
    _save_figures(folder)
    make_readable(folder)
    progress.clear(folder)
    start = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(begin))
    status |= {"started": start, "seconds": round(time.time() - begin, 3), "machine": platform.node()}
    write_json(folder / STATUS, status)
    if status["status"] == "failed":
        where = f"cell {status['cell']}: " if status["cell"] is not None else ""
        raise RunFailed(f"{where}{status['error']}")
    write_json(folder / SUCCESS, {"id": run.id})


def run_notebook(run: Run, folder: Path) -> None:
    """Execute the notebook where it lies, with the parameters given and the run's folder."""
    values = dict(run.given)
    if RUN_FOLDER in read_parameters(run.notebook):
        values[RUN_FOLDER] = str(folder)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    cells = sum(c["cell_type"] == "code" and bool(source(c).strip()) for c in read_notebook(run.notebook)["cells"])
    os.environ[progress.VARIABLE] = str(folder / progress.BAR)
    told = progress.Cells(folder, cells + bool(values))  # papermill adds a cell with the values
    papermill(Path(run.notebook), folder / NOTEBOOK, folder, values, log_output=True, on_cell_execute=told)


def papermill(notebook: Path, out: Path, folder: Path, values: dict[str, Any] | None = None, **options) -> None:
    """Execute a notebook where it lies with a kernel of this interpreter; the executed one is written to `out`.

    folder: what a kernel is told of as its run's. options: of papermill.
    """
    from papermill import execute_notebook

    with tempfile.TemporaryDirectory(prefix="mace-") as private:
        _kernel_environment(Path(private), folder)
        execute_notebook(
            str(notebook),
            str(out),
            parameters=values,
            kernel_name=KERNEL,
            language="python",
            cwd=str(notebook.parent),
            progress_bar=False,
            start_timeout=300,
            store_widget_state=False,
            config=_transport(Path(private)),
            **options,
        )


def _kernel_environment(private: Path, folder: Path) -> None:
    """Describe this interpreter as a kernel in a private folder, so that none needs to be installed."""
    spec = private / "kernels" / KERNEL
    spec.mkdir(parents=True)
    command = [sys.executable, "-m", "macelib.batch.kernel", "-f", "{connection_file}"]
    write_json(spec / "kernel.json", {"argv": command, "display_name": "Python 3", "language": "python"})
    others = [os.environ["JUPYTER_PATH"]] if os.environ.get("JUPYTER_PATH") else []
    os.environ["JUPYTER_PATH"] = os.pathsep.join([str(private), *others])
    os.environ["JUPYTER_RUNTIME_DIR"] = str(private / "runtime")
    os.environ["IPYTHONDIR"] = str(private / "ipython")  # kernels side by side would lock each other's history
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
    os.environ["MACELIB_RUN_FOLDER"] = str(folder)


def _transport(private: Path):
    """Sockets in the private folder: kernels that start side by side cannot take each other's ports."""
    from traitlets.config import Config

    if sys.platform == "win32":
        return Config()
    return Config(KernelManager={"transport": "ipc", "ip": str(private / "k")})


def explain(error: Exception) -> dict[str, Any]:
    """Cell number (from 1, code cells only), error and traceback."""
    from papermill.exceptions import PapermillExecutionError

    if isinstance(error, PapermillExecutionError):
        text = "\n".join(ANSI.sub("", line) for line in error.traceback)
        return {"cell": error.exec_count, "error": f"{error.ename}: {error.evalue}", "traceback": text}
    try:
        with explained():  # out of memory and out of space in words
            raise error
    except MaceError as said:
        text = str(said)
    except Exception:
        text = f"{type(error).__name__}: {error}"
    return {"cell": None, "error": text, "traceback": ""}


def check_metrics(path: Path) -> None:
    """MaceError where a notebook wrote metrics that are not a JSON object."""
    if path.exists() and not isinstance(_json(path), dict):
        raise MaceError(f"{path.name} is not a JSON object: write numbers by name.")


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None


def _save_figures(folder: Path) -> None:
    """Pictures among the outputs as figures/cell-<code cell>-<number>.png, where the notebook saved none itself."""
    if not (folder / NOTEBOOK).exists() or figures(folder):
        return
    cells = [cell for cell in read_notebook(folder / NOTEBOOK)["cells"] if cell["cell_type"] == "code"]
    for i, cell in enumerate(cells, 1):
        pictures = [o["data"]["image/png"] for o in cell.get("outputs", ()) if "image/png" in o.get("data", ())]
        for j, data in enumerate(pictures, 1):
            (folder / FIGURES).mkdir(exist_ok=True)
            data = data if isinstance(data, str) else "".join(data)
            (folder / "figures" / f"cell-{i:02d}-{j}.png").write_bytes(base64.b64decode(data))


def _clear(folder: Path, everything: bool) -> None:
    """Take away an earlier attempt, the marker first; subfolders of the notebook's own go only with `everything`."""
    (folder / SUCCESS).unlink(missing_ok=True)
    for path in folder.iterdir() if folder.exists() else ():
        if not path.is_dir() or path.is_symlink():
            path.unlink()
        elif everything or path.name == FIGURES:
            shutil.rmtree(path)
    folder.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def _log(path: Path) -> Iterator[None]:
    """Send this process's output, and its children's, to a file."""
    sys.stdout.flush(), sys.stderr.flush()
    saved = [os.dup(1), os.dup(2)]
    with open(path, "wb", buffering=0) as file:
        os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        for number, copy in enumerate(saved, 1):
            os.dup2(copy, number), os.close(copy)


def record_death(run: Run, error: str) -> None:
    """Note the failure of a run whose process did not live to do it."""
    folder = Path(run.folder)
    if state(folder) == "unfinished" and not read_json(folder / STATUS):
        write_json(folder / STATUS, {"status": "failed", "cell": None, "error": error, "traceback": ""})
