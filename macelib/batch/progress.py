"""How far a run is: written down by the process that executes it and by its kernel, read by whoever watches.

Both files lie in the run's folder and are gone when it ends.
"""

import os
from pathlib import Path

from .runs import read_json, write_json

CELL, BAR = "cell.json", "bar.json"  # the code cell that is executed; the bar of what it does
VARIABLE = "MACELIB_PROGRESS"  # environment variable that tells a kernel's bars where BAR is


class Cells:
    """Counts the code cells of a run as they begin, from 0 of `total`; called by nbclient (`on_cell_execute`)."""

    def __init__(self, folder: Path, total: int):
        self.folder, self.begun, self.total = folder, 0, total
        self._write()

    def __call__(self, cell, cell_index: int) -> None:
        self.begun += 1
        self._write()

    def _write(self) -> None:
        (self.folder / BAR).unlink(missing_ok=True)  # of an earlier cell
        write_json(self.folder / CELL, {"cell": self.begun, "cells": max(self.begun, self.total)})


def clear(folder: Path) -> None:
    """Take the files away."""
    for name in (CELL, BAR):
        (folder / name).unlink(missing_ok=True)


def begun(folder: Path, since: float) -> bool:
    """Whether the run went on after `since` (seconds of `time.time`): one that was killed leaves its file behind."""
    try:
        return os.stat(folder / CELL).st_mtime >= since
    except OSError:
        return False


def said(folder: Path) -> str:
    """Cell and bar in words: "cell 7/14, train 120/300"; "starts" before the first cell; empty where nothing runs."""
    cell, bar = read_json(folder / CELL), read_json(folder / BAR)
    parts = [f"cell {cell['cell']}/{cell['cells']}" if cell["cell"] else "starts"] if cell else []
    return ", ".join([*parts, *([f"{bar['stage']} {bar['done']}/{bar['total']}"] if bar else [])])
