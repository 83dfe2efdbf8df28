"""Reading what people write, as they mean it; or a MaceError that names file, line and cure.

`text` has encodings, lines, quotes and comments, `tables` CSV, `structure` YAML and JSON, `settings`
dataclasses from any of them. May import `errors` alone.
"""

from .settings import build_settings, check_ranges, check_settings
from .structure import FAILURES, Texts, Values, Where, flatten, parse, read_data, read_json
from .tables import read_table
from .text import (
    EQUALS,
    QUOTES,
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
    "EQUALS",
    "FAILURES",
    "QUOTES",
    "SEPARATORS",
    "Item",
    "Texts",
    "Values",
    "Where",
    "build_settings",
    "check_ranges",
    "check_settings",
    "flatten",
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
