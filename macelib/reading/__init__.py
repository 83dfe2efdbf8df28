"""Reading what people write, as they mean it; or a MaceError that names file, line and cure.

`text` has encodings, lines, quotes and comments, `tables` CSV, `structure` YAML and JSON, `lists` lists in any of
these, `settings` dataclasses. May import `errors` alone.
"""

from .lists import SUFFIXES, read_items
from .settings import build_settings, check_ranges, check_settings
from .structure import FAILURES, Texts, Values, Where, flatten, parse, placed, read_data, read_json
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
    "SUFFIXES",
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
    "placed",
    "read_data",
    "read_entries",
    "read_items",
    "read_json",
    "read_table",
    "read_text",
    "seeds",
    "unquoted",
]
