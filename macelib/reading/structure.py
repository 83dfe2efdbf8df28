"""YAML and JSON as people mean them: nothing twice, no octal numbers, no times of day, text where text is asked for."""

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from ..errors import MaceError, first_line
from .text import read_text

MERGE = "tag:yaml.org,2002:merge"
MOST = 10**6  # values of a file, an alias counted as all that it stands for
FAILURES = (yaml.YAMLError, ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError)
Where = Callable[[str], str]


class Values(yaml.SafeLoader):
    """Safe YAML: 1e-4 is a number, 12:30 and 2014-01-01 are texts; 010 and a key that stands twice are refused."""

    yaml_implicit_resolvers: dict = {}

    def construct_object(self, node, deep=False):
        return super().construct_object(node, deep=True)  # refuses what holds itself

    def construct_mapping(self, node, deep=False):
        known: list = []
        for key in (key for key, _ in node.value if key.tag != MERGE):
            if (name := self.construct_object(key)) in known:
                raise yaml.constructor.ConstructorError(None, None, f"{name!r} stands twice: keep one", key.start_mark)
            known.append(name)
        return super().construct_mapping(node, deep=True)

    def _number(self, node):
        text = self.construct_scalar(node).replace("_", "")
        if re.match(r"[-+]?0\d", text):
            problem = f"{text} begins with a zero: leave the zero out, or put a text in quotes"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        if node.tag.endswith("int"):
            return int(text, 0)
        return float(text.replace(".inf", "inf").replace(".nan", "nan").replace(".Inf", "inf").replace(".NaN", "nan"))


_BOOL = re.compile("(?:yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF)$")
_NULL = re.compile("(?:~|null|Null|NULL|)$")
_INT = re.compile(r"[-+]?(?:0x[0-9a-fA-F]+|0o[0-7]+|0b[01]+|[0-9][0-9_]*)$")
_FLOAT = re.compile(
    r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+|[0-9][0-9_]*(?=[eE]))(?:[eE][-+]?[0-9]+)?$|[-+]?\.(?:inf|Inf)$|\.(?:nan|NaN)$"
)
for _tag, _pattern, _first in (
    ("bool", _BOOL, "yYnNtTfFoO"),
    ("null", _NULL, ["~", "n", "N", ""]),
    ("int", _INT, "-+0123456789"),
    ("float", _FLOAT, "-+.0123456789"),
    ("merge", re.compile("<<$"), "<"),
):
    Values.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, list(_first))
for _tag in ("int", "float"):
    Values.add_constructor(f"tag:yaml.org,2002:{_tag}", Values._number)


class Texts(Values):
    """Safe YAML in which every plain value but null is the text that was written: no, 007 and 1e3 are names."""

    yaml_implicit_resolvers: dict = {}


Texts.add_implicit_resolver("tag:yaml.org,2002:null", _NULL, ["~", "n", "N", ""])


def parse(text: str, loader: type[Values] = Values) -> tuple[Any, yaml.Node | None]:
    """The value of a YAML text and its node. Raises YAMLError, or one of FAILURES for a tag that does not fit."""
    reading = loader(text)
    try:
        node = reading.get_single_node()
        if node is not None and _count(node, {}) > MOST:
            problem = f"its aliases stand for more than {MOST:,} values"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return (None if node is None else reading.construct_document(node)), node
    finally:
        reading.dispose()


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node holds; known: those of nodes that were met before, 0 of one that holds itself."""
    if id(node) not in known:
        known[id(node)], inner = 0, [] if isinstance(node, yaml.ScalarNode) else node.value
        parts = (part for entry in inner for part in (entry if isinstance(entry, tuple) else (entry,)))
        known[id(node)] = 1 + sum(_count(part, known) for part in parts)
    return known[id(node)]


def read_data(path: str | Path, what: str, loader: type[Values] = Values) -> tuple[Any, Where]:
    """What a YAML or JSON file holds, and a function that says where a field ("train.steps", "grid[2].x") stands.

    MaceError names file and line of what is not YAML or JSON, or stands twice.
    """
    if Path(str(path)).suffix.lower() == ".json":
        return read_json(path, what), lambda _: str(path)
    text = read_text(path, what)
    try:
        value, node = parse(text, loader)
    except (*FAILURES, RecursionError) as error:
        raise MaceError(_say(path, what, text, error)) from error
    return value, lambda field: f"{path}{_line(node, field)}"


@contextlib.contextmanager
def placed(where: Where, above: str = "") -> Iterator[None]:
    """A MaceError of the block, whose sentence begins with a field of `above`, gets file and line before it."""
    try:
        yield
    except MaceError as error:
        field = str(error).partition(" ")[0].rstrip(":")
        place = where(f"{above}.{field}" if above else field)
        raise MaceError(f"{place}: {above}{above and ': '}{error}") from error


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Mappings within mappings as `a.b`; a list becomes JSON text. An entry named `value` goes by its parent's name.

    >>> flatten({"train": {"lr": 0.1}, "H_o": {"value": 92.0, "low": 90.0}})
    {'train.lr': 0.1, 'H_o': 92.0, 'H_o.low': 90.0}
    """
    flat: dict[str, Any] = {}
    for name, value in values.items():
        full = prefix.rstrip(".") if name == "value" and prefix else f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{full}.")
        else:
            flat[full] = json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else value
    return flat


def read_json(path: str | Path, what: str) -> Any:
    """What a JSON file holds; MaceError names file and line, a file that is cut short, and a key that stands twice."""
    text = read_text(path, what)
    try:
        return json.loads(text, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        if not text.strip() or _is_cut(text, error):
            how = "is cut short: it ends in the middle" if text.strip() else "is empty"
            raise MaceError(f"The {what} {path} {how}; copy or make it again.") from error
        raise MaceError(f"{path}, line {error.lineno}: the {what} is not JSON there ({error.msg}).") from error
    except MaceError as error:
        raise MaceError(f"The {what} {path}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise MaceError(f"The {what} {path} cannot be read ({first_line(error)}): write it more simply.") from error


def _is_cut(text: str, error: json.JSONDecodeError) -> bool:
    """Whether the text is JSON as far as it goes."""
    rest = text[error.pos :].strip()
    begun = any(word.startswith(rest) for word in ("true", "false", "null", "-"))
    in_escape = "escape" in error.msg and len(rest) < 6
    return begun or in_escape or error.msg.startswith("Unterminated string")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise MaceError(f"{next(n for n in names if names.count(n) > 1)!r} stands twice in one object: keep one.")
    return values


def _say(path, what: str, text: str, error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is not None:
        return f"The {what} {path}, line {mark.line + 1}, cannot be read ({error.problem}): give a YAML file."
    if isinstance(error, yaml.reader.ReaderError):
        line = text[: error.position].count("\n") + 1
        return f"The {what} {path}, line {line}, cannot be read (a character that YAML forbids): write it again."
    return f"The {what} {path} cannot be read ({first_line(error)}): give a YAML file."


def _line(node: yaml.Node | None, field: str) -> str:
    """ ", line 3" of a field, or of the last part of it that stands in the file; "" where none does."""
    line, whole = "", isinstance(node, yaml.MappingNode) and any(k.value == field for k, _ in node.value)
    for key in [field] if whole else re.findall(r"[^.\[\]]+", field):
        if isinstance(node, yaml.MappingNode):
            hit = next(((k, v) for k, v in node.value if k.value == key), None)
        elif isinstance(node, yaml.SequenceNode) and key.isdecimal() and int(key) < len(node.value):
            hit = (node.value[int(key)],) * 2
        else:
            hit = None
        if hit is None:
            break
        line, node = f", line {hit[0].start_mark.line + 1}", hit[1]
    return line
