"""JupyterLab's configuration for work on the notebooks: `jupyter lab --config macelib/batch/lab.py`.

A notebook that is saved keeps what Lab would otherwise change by its mere opening: the names of kernel and language. So
version control shows what was done in it, and nothing else. Kernels inherit how PyTorch's threads wait.
"""

import macelib  # noqa: F401  says how threads wait

METADATA = {  # of a notebook, whatever kernel ran it
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def tidy(model: dict, **_) -> None:
    """Take out of a Python notebook about to be saved what depends on the machine and the time."""
    content = model.get("content")
    if model.get("type") != "notebook" or not isinstance(content, dict):
        return
    if content["metadata"].get("language_info", {}).get("name", "python") == "python":
        content["metadata"] |= METADATA
        for cell in content["cells"]:
            cell["metadata"].pop("execution", None)


if "get_config" in globals():  # there when Jupyter reads this file
    c = globals()["get_config"]()
    c.FileContentsManager.pre_save_hook = tidy
