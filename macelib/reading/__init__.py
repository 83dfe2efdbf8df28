"""Reading what people write, as they mean it; or a MaceError that names file, line and cure.

`text` has encodings, lines, quotes and comments, `tables` CSV, `structure` YAML and JSON. May import `errors` alone.
"""

from .structure import Texts, Values, parse, read_data, read_json
from .tables import read_table
from .text import (
    SEPARATORS,
    Item,
    located,
    name_in,
    outside,
    pair,
    phrase,
    phrases,
    read_entries,
    read_text,
    seeds,
    unquoted,
)

__all__ = [
    "SEPARATORS",
    "Item",
    "Texts",
    "Values",
    "located",
    "name_in",
    "outside",
    "pair",
    "parse",
    "phrase",
    "phrases",
    "read_data",
    "read_entries",
    "read_json",
    "read_table",
    "read_text",
    "seeds",
    "unquoted",
]
