"""The `parameters` cell of a notebook: names, types, defaults and help, and checking of values against it.

The cell holds plain literals, one per line, each with a trailing comment that is its help:

    rank = 4            # of a concept's LoRA
    captions: str | None = None  # a file of captions to preserve

The type is the annotation, or that of the default.
"""

import ast
import copy
import csv
import difflib
import io
import json
import math
import tokenize
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yaml.constructor import ConstructorError

from ..errors import MaceError
from ..reading import FAILURES, parse, read_json

RUN_FOLDER = "run_folder"  # parameter through which a notebook is told where its results go
TYPES = {"bool": bool, "int": int, "float": float, "str": str, "list": list, "dict": dict, "None": type(None)}
WORDS = {"bool": "true or false", "int": "a whole number", "float": "a number", "str": "text", "list": "a list"}


@dataclass(frozen=True)
class Parameter:
    """One line of the `parameters` cell."""

    name: str
    type: str  # "int", "list[str]", "float | None", ...; "any" where the default is None and nothing is said
    default: Any
    help: str = ""


def read_notebook(path: str | Path) -> dict[str, Any]:
    """A notebook's JSON; MaceError where it is missing, cut short, or none."""
    notebook = read_json(path, "notebook")
    cells = notebook.get("cells") if isinstance(notebook, dict) else None
    if not isinstance(cells, list) or not all(_is_cell(cell) for cell in cells):
        raise MaceError(f"{path} is not a notebook of format 4: save it again with JupyterLab.")
    return notebook


def _is_cell(cell: Any) -> bool:
    """Whether a cell has what is read of it."""
    if not isinstance(cell, dict) or not isinstance(metadata := cell.get("metadata", {}), dict):
        return False
    text, tags = cell.get("source", ""), metadata.get("tags", [])
    lines = text if isinstance(text, list) else [text]
    return isinstance(tags, list) and all(isinstance(line, str) for line in lines)


def source(cell: Mapping[str, Any]) -> str:
    """Text of a cell, which the format allows to be a list of lines."""
    text = cell.get("source", "")
    return text if isinstance(text, str) else "".join(text)


def read_parameters(path: str | Path) -> dict[str, Parameter]:
    """The parameters of a notebook, in order. MaceError: no such cell, or a line that is not a plain literal."""
    cells = [c for c in read_notebook(path)["cells"] if "parameters" in c.get("metadata", {}).get("tags", ())]
    if len(cells) != 1:
        raise MaceError(
            f"{path} has {len(cells) or 'no'} cells tagged `parameters` where one is needed: tag it in JupyterLab's "
            "property inspector."
        )
    return parse_parameters(source(cells[0]), str(path))


def parse_parameters(text: str, where: str = "the parameters cell") -> dict[str, Parameter]:
    """The parameters in the source of a cell."""
    try:
        body = ast.parse(text).body
        tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    except (SyntaxError, tokenize.TokenError, ValueError, RecursionError, MemoryError) as error:
        raise MaceError(f"The parameters cell of {where} is not plain Python ({error}).") from error
    comments = {
        token.start[0]: token.string.lstrip("# ").rstrip() for token in tokens if token.type == tokenize.COMMENT
    }
    found = {}
    for node in body:
        target = node.targets[0] if isinstance(node, ast.Assign) and len(node.targets) == 1 else node
        target = node.target if isinstance(node, ast.AnnAssign) else target
        try:
            name, default = target.id, ast.literal_eval(node.value)
            json.dumps(default, allow_nan=False)
        except (AttributeError, ValueError, TypeError, RecursionError, MemoryError) as error:
            line = text.splitlines()[node.lineno - 1].strip()
            raise MaceError(f"The parameters cell of {where} holds `{line}`; allowed: name = plain literal.") from error
        kind = ast.unparse(node.annotation) if isinstance(node, ast.AnnAssign) else kind_of(default)
        if name in found:
            raise MaceError(f"The parameters cell of {where} sets {name} twice, line {node.lineno} again: keep one.")
        note = comments.get(node.end_lineno) or comments.get(node.lineno, "")
        found[name] = Parameter(name, kind, default, note)
        fit(found[name], default)
    return found


def kind_of(value: Any) -> str:
    """The type that a default stands for."""
    if value is None:
        return "any"
    if isinstance(value, list):
        kinds = {kind_of(v) for v in value}
        kinds = {"float"} if kinds == {"int", "float"} else kinds
        return f"list[{kinds.pop()}]" if len(kinds) == 1 else "list"
    return type(value).__name__


def fit(parameter: Parameter, value: Any) -> Any:
    """`value` as the parameter's type (a whole number may stand for a number), or MaceError."""
    for option in _options(parameter.type):
        name, _, element = option.rstrip("]").partition("[")
        if option == "any":
            return value
        if name not in TYPES:
            raise MaceError(f"{parameter.name} has the type {option}; choose from {', '.join(TYPES)}.")
        if name == "float" and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if not isinstance(value, TYPES[name]) or (name == "int" and isinstance(value, bool)):
            continue
        if name == "float" and not math.isfinite(value):
            continue
        if name == "list" and element:
            return [fit(Parameter(f"{parameter.name}[{i}]", element, None), v) for i, v in enumerate(value)]
        return value
    hint = " in quotes" if "str" in parameter.type and not isinstance(value, str) else ""
    raise MaceError(f"{parameter.name} is {value!r}; allowed: {_say(parameter.type)}{hint}.")


def from_text(parameter: Parameter, text: str) -> Any:
    """A value from the command line: text as it is for text, else YAML; `a,b,c` for a list.

    MaceError: a number that begins with a zero, a key that stands twice, an open quote in a list.
    """
    names = [option.partition("[")[0] for option in _options(parameter.type)]
    if "str" in names and not ("None" in names and text in ("null", "None")):
        return text
    if "list" in names and text.strip() and not text.lstrip().startswith("[") and text not in ("null", "None"):
        element = Parameter(parameter.name, parameter.type.partition("[")[2].partition("]")[0] or "any", None)
        try:
            (parts,) = csv.reader([text], skipinitialspace=True, strict=True)  # "a, b" in quotes is one
        except (csv.Error, ValueError) as error:
            raise MaceError(f"{parameter.name} is {text!r}; write a,b,c or [a, b, c], quotes closed.") from error
        return [from_text(element, part.strip()) for part in parts]
    try:
        return None if text == "None" else parse(text)[0]
    except ConstructorError as error:
        raise MaceError(f"{parameter.name} is {text!r}: {error.problem}.") from error
    except (*FAILURES, RecursionError):
        return text


def check(parameters: Mapping[str, Parameter], given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """All parameters with `given` in place of the defaults, except the run folder. MaceError names all that is wrong.

    `a.b.c` is the entry b.c of a parameter `a` that is a mapping; where `a` or `a.b` is given, too, it is set there.
    """
    wrong, values = [], {name: copy.deepcopy(p.default) for name, p in parameters.items() if name != RUN_FOLDER}
    for name, value in sorted(given.items(), key=lambda item: item[0].count(".")):
        name, _, path = name.partition(".")
        if path and isinstance(values.get(name), dict):
            try:
                value = _nested(values[name], path.split("."), value)
            except TypeError as error:
                wrong.append(f"{name}.{path} cannot be set, for {name} has {error}: keep one of them.")
                continue
        elif path:
            name = f"{name}.{path}"
        if name == RUN_FOLDER:
            wrong.append(f"{name} is set by the batch: leave it out.")
        elif name not in parameters:
            wrong.append(unknown(name, values, "a parameter"))
        else:
            try:
                values[name] = fit(parameters[name], value)
                json.dumps(values[name], allow_nan=False)
            except MaceError as error:
                wrong.append(str(error))
            except (TypeError, ValueError):
                wrong.append(f"{name} is {value!r}; allowed: what JSON can hold.")
    if wrong:
        raise MaceError(f"{where}: " + " ".join(wrong))
    return {name: fit(parameters[name], value) for name, value in values.items()}


def _nested(mapping: Mapping[str, Any], path: list[str], value: Any) -> dict[str, Any]:
    """A copy of a mapping with the entry at a path set; TypeError where something on the way is no mapping."""
    inner = mapping.get(path[0])
    if len(path) > 1:
        if not isinstance(inner, dict | None):
            raise TypeError(f"the value {inner!r} for {path[0]}")
        value = _nested(inner or {}, path[1:], value)
    return {**mapping, path[0]: value}


def unknown(name: str, names: Iterable[str], what: str) -> str:
    """A sentence about a name that is not there, with near ones."""
    near = difflib.get_close_matches(str(name), names := [str(n) for n in names], n=2, cutoff=0.5)
    return f"{name} is not {what}; " + (f"did you mean {' or '.join(near)}?" if near else f"have: {', '.join(names)}.")


def table(parameters: Mapping[str, Parameter]) -> str:
    """Name, type, default and help in columns."""
    rows = [("name", "type", "default", "help")]
    rows += [(p.name, p.type, json.dumps(p.default, ensure_ascii=False), p.help) for p in parameters.values()]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return "\n".join(
        "  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[3]]).rstrip() for row in rows
    )


def _options(kind: str) -> list[str]:
    return [part.strip() for part in kind.split("|")]


def _say(kind: str) -> str:
    """A type in words."""
    texts = []
    for option in _options(kind):
        name, _, element = option.rstrip("]").partition("[")
        words = {**WORDS, "dict": "a mapping", "None": "nothing (null)"}.get(name, name)
        texts.append(f"{words} of {element}" if element else words)
    return " or ".join(texts)
