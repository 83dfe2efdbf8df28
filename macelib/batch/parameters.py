"""The `parameters` cell of a notebook: names, types, defaults and help, and checking of values against it.

The cell holds plain literals, one per line, each with a trailing comment that is its help:

    rank = 4            # of a concept's LoRA
    captions: str | None = None  # a file of captions to preserve

The type is the annotation, or that of the default.
"""

import ast
import copy
import difflib
import io
import json
import math
import re
import tokenize
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..errors import MaceError

RUN_FOLDER = "run_folder"  # parameter through which a notebook is told where its results go
TYPES = {"bool": bool, "int": int, "float": float, "str": str, "list": list, "dict": dict, "None": type(None)}
WORDS = {"bool": "true or false", "int": "a whole number", "float": "a number", "str": "text", "list": "a list"}


class Loader(yaml.SafeLoader):
    """Safe YAML that reads 1e-4 as a number and refuses a key that stands twice."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if twice := [key for i, key in enumerate(keys) if key in keys[:i]]:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


@dataclass(frozen=True)
class Parameter:
    """One line of the `parameters` cell."""

    name: str
    type: str  # "int", "list[str]", "float | None", ...; "any" where the default is None and nothing is said
    default: Any
    help: str = ""


def read_notebook(path: str | Path) -> dict[str, Any]:
    """A notebook's JSON; MaceError where it is missing or is none."""
    try:
        notebook = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MaceError(f"There is no notebook {path}: check the name.") from error
    except (OSError, ValueError) as error:
        raise MaceError(f"{path} cannot be read as a notebook ({error}).") from error
    if not isinstance(notebook, dict) or not isinstance(notebook.get("cells"), list):
        raise MaceError(f"{path} is not a notebook of format 4: save it again with JupyterLab.")
    return notebook


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
    except (SyntaxError, tokenize.TokenError) as error:
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
        except (AttributeError, ValueError, TypeError) as error:
            line = text.splitlines()[node.lineno - 1].strip()
            raise MaceError(f"The parameters cell of {where} holds `{line}`; allowed: name = plain literal.") from error
        kind = ast.unparse(node.annotation) if isinstance(node, ast.AnnAssign) else kind_of(default)
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
    raise MaceError(f"{parameter.name} is {value!r}; allowed: {_say(parameter.type)}.")


def from_text(parameter: Parameter, text: str) -> Any:
    """A value from the command line: text as it is for text, else YAML; `a,b,c` for a list."""
    names = [option.partition("[")[0] for option in _options(parameter.type)]
    if "str" in names and not ("None" in names and text in ("null", "None")):
        return text
    if "list" in names and text.strip() and not text.lstrip().startswith("[") and text not in ("null", "None"):
        element = Parameter(parameter.name, parameter.type.partition("[")[2].partition("]")[0] or "any", None)
        return [from_text(element, part.strip()) for part in text.split(",")]
    try:
        value = None if text == "None" else yaml.load(text, Loader=Loader)
    except yaml.YAMLError:
        value = text
    return value


def check(parameters: Mapping[str, Parameter], given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """All parameters with `given` in place of the defaults, except the run folder. MaceError names all that is wrong.

    `a.b.c` is the entry b.c of a parameter `a` that is a mapping.
    """
    wrong, values = [], {name: copy.deepcopy(p.default) for name, p in parameters.items() if name != RUN_FOLDER}
    for name, value in sorted(given.items(), key=lambda item: "." in item[0]):
        name, _, path = name.partition(".")
        if path and isinstance(values.get(name), dict):
            value = _nested(values[name], path.split("."), value)
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
    """A copy of a mapping with the entry at a path set."""
    inner = mapping.get(path[0])
    if len(path) > 1:
        value = _nested(inner if isinstance(inner, dict) else {}, path[1:], value)
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
