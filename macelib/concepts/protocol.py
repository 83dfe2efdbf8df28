"""The paper's lists as they stand in `data/protocols`."""

import contextlib
from collections.abc import Iterator
from typing import Any

from ..errors import MaceError
from ..files import data_folder
from ..reading import read_json


@contextlib.contextmanager
def protocol(name: str) -> Iterator[Any]:
    """What `data/protocols` holds under a name; MaceError where the block does not find in it what it looks for."""
    path = data_folder() / "protocols" / f"{name}.json"
    try:
        yield read_json(path, "protocol")
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise MaceError(f"The protocol {path} is damaged ({error!r}): restore it, or set MACELIB_DATA.") from error
