"""Executes notebooks with their defaults and keeps their outputs: `python -m macelib.batch.refresh notebooks/*.ipynb`.

What is written back is what belongs under version control: results and figures, without widgets, progress and timings.
A notebook that stops with an error stays as it was.
"""

import sys
import tempfile
import time
from pathlib import Path

import nbformat

from ..files import atomic
from .execute import explain, papermill
from .lab import METADATA
from .readable import is_widget

KEPT = ("tags",)  # of a cell's metadata


def refresh(path: Path) -> float:
    """Execute one notebook where it lies and write it back; the seconds that it took."""
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mace-") as place:
        out = Path(place) / path.name
        papermill(path, out, path.parent)
        notebook = cleaned(nbformat.read(out, as_version=4))
    nbformat.validate(notebook)
    with atomic(path) as temporary:
        nbformat.write(notebook, temporary)
    return time.monotonic() - begin


def cleaned(notebook):
    """The notebook without widgets, standard error (progress and notices) and the times of its run."""
    count = 0
    for cell in notebook.cells:
        cell.metadata = {key: cell.metadata[key] for key in KEPT if cell.metadata.get(key)}
        if cell.cell_type == "code":
            cell.execution_count = count = count + 1
            cell.outputs = [output for output in cell.outputs if _is_result(output)]
            for output in cell.outputs:
                if output.output_type == "execute_result":
                    output.execution_count = count
    notebook.metadata = dict(METADATA)
    return notebook


def _is_result(output) -> bool:
    return output.get("name") != "stderr" and not is_widget(output)


def main(paths: list[str]) -> int:
    """Refresh notebooks one after the other; those that fail are named, and the exit code says so."""
    failed = 0
    for path in map(Path, paths):
        try:
            seconds = refresh(path.resolve())
        except Exception as error:  # whatever ends a notebook or its kernel: the others are still executed
            failed += 1
            status = explain(error)
            print(f"{path}: stopped in code cell {status['cell']}: {status['error']}", flush=True)
        else:
            print(f"{path}: {seconds:.0f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
