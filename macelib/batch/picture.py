"""A figure of a notebook's outputs as a file: `python -m macelib.batch.picture NOTEBOOK NUMBER FILE`."""

import base64
import sys
from pathlib import Path

from ..errors import MaceError
from ..files import atomic
from .parameters import read_notebook


def picture(notebook: str | Path, number: int) -> bytes:
    """The PNG of a notebook's figure, by its number from 1; MaceError where it has fewer."""
    outputs = [output for cell in read_notebook(notebook)["cells"] for output in cell.get("outputs", ())]
    found = [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", ())]
    if not 1 <= number <= len(found):
        raise MaceError(f"{notebook} has {len(found)} figures and no number {number}: execute it, or name another.")
    data = found[number - 1]
    return base64.b64decode(data if isinstance(data, str) else "".join(data))


if __name__ == "__main__":
    with atomic(sys.argv[3]) as temporary:
        temporary.write_bytes(picture(sys.argv[1], int(sys.argv[2])))
