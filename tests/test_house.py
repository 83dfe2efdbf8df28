"""The house: which package of macelib may import which, imports inside functions included."""

import ast
import os
import shutil
import subprocess
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import macelib

ROOT = Path(macelib.__file__).parent
ABOVE = (
    "baselines", "attacks", "job", "checks", "groups", "erasure", "plan", "show", "evaluate", "batch", "lessons", "cli",
    "bench", "compare",
)  # fmt: skip
FORBIDDEN = {
    "reading": ("models", "method", "concepts", "config", "files", *ABOVE),
    "presets": ("config", "models", "method", *ABOVE),
    "models": ("method", "concepts", "config", "presets", *ABOVE),
    "method": ABOVE,
    "erasure": ("job", "plan", "show", "evaluate", "batch", "lessons", "cli", "bench", "compare"),
    "plan": ("evaluate", "show", "batch", "lessons", "cli", "bench", "compare"),
    "show": ("evaluate", "batch", "lessons", "cli", "bench", "compare"),
    "evaluate": ("show", "batch", "lessons", "cli", "bench", "compare"),
    "baselines": ("show", "evaluate", "batch", "lessons", "cli", "bench", "compare"),
    "attacks": ("show", "evaluate", "batch", "lessons", "cli", "bench", "compare"),
    "batch": ("models", "method", "erasure", "show", "evaluate", "compare", "lessons", "cli", "job", "plan"),
    "compare": ("show", "lessons", "cli"),
    "lessons": ("batch", "cli", "compare"),
    "bench": ("compare", "cli"),
}
MOST = 8  # modules directly in macelib, beside __init__
LONG = 300  # lines of a file


def files() -> dict[str, Path]:
    """File by module: "macelib.models.text", packages by their own name."""
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = ("macelib", *path.relative_to(ROOT).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(source: str, package: str) -> set[str]:
    """Everything that a source imports, anywhere in it, by absolute name; `from a import b` gives a.b."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            found |= {".".join([*base, *filter(None, [node.module]), alias.name]) for alias in node.names}
    return found


@pytest.fixture(scope="module")
def named() -> dict[str, set[str]]:
    """What each module names in its imports."""
    found = {}
    for name, path in files().items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        found[name] = imports(path.read_text(encoding="utf-8"), package)
    return found


@pytest.fixture(scope="module")
def graph(named) -> dict[str, set[str]]:
    """Which modules of macelib each imports: the longest name that is a module, as Python finds it."""
    found = {}
    for name, targets in named.items():
        longest = (t if t in named else t.rpartition(".")[0] for t in targets)
        found[name] = {target for target in longest if target in named}
    return found


def test_imports_are_found_wherever_they_stand():
    source = (
        "import os\ndef f():\n    from ..files import atomic\n    class A:\n        from . import text as t, tokens"
    )
    expected = {"os", "macelib.files.atomic", "macelib.models.text", "macelib.models.tokens"}
    assert imports(source, "macelib.models") == expected
    assert imports("from . import a\nfrom .x.y import z", "macelib") == {"macelib.a", "macelib.x.y.z"}


def test_the_graph_knows_the_house(graph):
    assert graph["macelib.method.fuse"] == {"macelib.errors", "macelib.method.refine"}
    assert "macelib.job" in graph["macelib.cli"] and "macelib.erasure" in graph["macelib.cli.draw"]  # inside functions


@pytest.mark.parametrize("package", FORBIDDEN)
def test_packages_import_what_lies_below(graph, package):
    members = [name for name in graph if f"{name}.".startswith(f"macelib.{package}.")]
    assert members
    for name in members:
        above = {t for t in graph[name] if t.split(".")[1:2] and t.split(".")[1] in FORBIDDEN[package]}
        assert not above, f"{name} imports {', '.join(sorted(above))}"


def test_the_library_imports_nothing_of_the_factory(named):
    assert not [name for name, targets in named.items() if any(t.split(".")[0] == "factory" for t in targets)]


def test_no_modules_import_each_other_in_a_circle(graph):
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))
    assert order.index("macelib.models.text") < order.index("macelib.method.refine") < order.index("macelib.job")


def test_few_modules_stand_outside_the_packages():
    assert len([path for path in ROOT.glob("*.py") if path.name != "__init__.py"]) <= MOST


def test_no_file_is_long():
    paths = [*ROOT.rglob("*.py"), *(ROOT.parent / "data" / "factory").glob("*.py")]
    lines = {str(path): len(path.read_text(encoding="utf-8").splitlines()) for path in paths}
    assert len(lines) > 200 and not {name: n for name, n in lines.items() if n > LONG}


def test_packages_say_what_is_in_them():
    for path in ROOT.rglob("__init__.py"):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        assert "import" in text, f"{path.parent.name} does not say what it may import"


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make here")
def test_what_make_starts_keeps_what_python_compiles():
    """Libraries are installed uncompiled; where nothing is kept, every process compiles them anew, for 15 s."""
    rule = "include Makefile\nshown: ; @printenv PYTHONDONTWRITEBYTECODE || true\n"
    options = {"cwd": ROOT.parent, "env": {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}, "input": rule, "text": True}
    shown = subprocess.run(["make", "-s", "-f", "-", "shown"], capture_output=True, check=True, **options)
    assert shown.stdout.strip() == "" and shown.stderr == ""
