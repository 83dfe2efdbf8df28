"""An executed notebook as a page that any browser opens, its pictures inside; formulas need MathJax from the net.

Widgets are left out: without their kernel, a progress bar would stand where it began.
"""

from pathlib import Path

from .runs import NOTEBOOK, READABLE, read_json, write_text

TEMPLATE = """{%- extends "lab/index.html.j2" -%}
{%- block html_head_js_requirejs -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}"""  # scripts from elsewhere that no notebook of ours needs


def is_widget(output) -> bool:
    """Whether a cell's output is a live widget."""
    return any("widget" in kind for kind in output.get("data", {}))


def make_readable(folder: Path) -> None:
    """Write the page beside a run's notebook, where there is one."""
    if not (folder / NOTEBOOK).exists():
        return
    import nbformat
    from jinja2 import DictLoader
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(extra_loaders=[DictLoader({"run.html.j2": TEMPLATE})], template_file="run.html.j2")
    about = read_json(folder / "run.json")
    name = f"{Path(about.get('notebook', NOTEBOOK)).stem} · {folder.name}"
    notebook = nbformat.read(folder / NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not is_widget(output)]
    text, _ = exporter.from_notebook_node(notebook, resources={"metadata": {"name": name}})
    write_text(folder / READABLE, text)
