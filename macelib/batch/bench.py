"""Speed of `jobs` runs side by side against one by one: `python -m macelib.batch.bench [RUNS] [JOBS]`."""

import json
import sys
import tempfile
import time
from pathlib import Path

from .engines import Local, cores
from .launch import launch
from .runs import plan

SOURCE = "import json, pathlib\nsum(range(3_000_000 + seed))\npathlib.Path(run_folder, 'metrics.json').write_text('{}')"


def notebook(folder: Path) -> Path:
    """A notebook that does nothing much."""
    common = {"cell_type": "code", "outputs": [], "execution_count": None}
    cells = [{**common, "metadata": {"tags": ["parameters"]}, "source": 'seed = 0  # any\nrun_folder = "."  # results'}]
    cells.append({**common, "metadata": {}, "source": SOURCE})
    path = folder / "tiny.ipynb"
    path.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 4}))
    return path


def main(count: int = 24, jobs: int = 2) -> None:
    """Print seconds and ratio."""
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        for n in (1, jobs):
            runs, start = (
                plan(notebook(Path(folder)), [{"seed": s} for s in range(count)], Path(folder, str(n))),
                time.time(),
            )
            done = launch(runs, Local(n, threads=1)).done
            seconds.append(time.time() - start)
            print(f"{len(done)} of {count} runs, {n} at once: {seconds[-1]:.1f} s")
    print(f"ratio {seconds[0] / seconds[1]:.2f} on {cores()} cores")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
