"""The process of one job: `python -m macelib.batch.worker FOLDER` reads FOLDER/job and writes FOLDER/outcome."""

import os
import pickle
import shutil
import sys
import tempfile
import threading
import traceback
from pathlib import Path


def watch(folder: Path) -> None:
    """Wait until standard input closes, which is when the caller dies or gives the job up; then end everything."""
    while os.read(0, 1024):
        pass
    end_children()
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def end_children() -> None:
    """Kill all processes that this one has started, kernels above all."""
    import psutil  # comes with ipykernel

    for child in psutil.Process().children(recursive=True):
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue


def main(folder: Path) -> None:
    """Run the job; whatever it does, leave an outcome."""
    tempfile.tempdir = str(folder)  # what the job leaves there goes with the folder
    threading.Thread(target=watch, args=(folder,), daemon=True).start()
    paths, job = pickle.loads((folder / "job").read_bytes())
    sys.path += [path for path in paths if path not in sys.path]
    try:
        call, args = pickle.loads(job)
        data = pickle.dumps({"value": call(*args)})
    except BaseException as error:
        from macelib.errors import MaceError

        text = str(error) if isinstance(error, MaceError) else f"{type(error).__name__}: {error}"
        data = pickle.dumps({"error": text, "trace": traceback.format_exc()})
    (folder / "outcome.part").write_bytes(data)
    os.replace(folder / "outcome.part", folder / "outcome")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
