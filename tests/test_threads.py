"""What `import macelib` sees to: how PyTorch's threads wait, never over what the user has said; which notices go."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from macelib.models.threads import OTHERS, WAITING, wait_briefly

ROOT = Path(__file__).resolve().parent.parent
LATE = "PyTorch was loaded before macelib"


def python(code: str, **variables: str) -> subprocess.CompletedProcess:
    """Run code in a process without any of the variables, but for those given."""
    own = {name: value for name, value in os.environ.items() if name not in (*WAITING, *OTHERS)}
    environment = {**own, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2", **variables}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)


@pytest.mark.parametrize("said", [*WAITING, *OTHERS])
def test_what_the_user_has_said_stays(said):
    environment = {said: "ACTIVE", "HOME": "/"}
    wait_briefly(environment)
    assert environment == {said: "ACTIVE", "HOME": "/"}


def test_else_threads_wait_briefly():
    environment = {"HOME": "/"}
    wait_briefly(environment)
    assert environment == {"HOME": "/", **WAITING}


@pytest.mark.parametrize("entry", ["macelib", "macelib.cli", "macelib.batch.kernel", "macelib.batch.worker"])
def test_every_entry_point_says_it_before_pytorch(entry):
    code = f"import json, os, sys, {entry}; print(json.dumps(['torch' in sys.modules, dict(os.environ)]))"
    loaded, environment = json.loads(python(code).stdout)
    assert not loaded and WAITING.items() <= environment.items()


SAY = (
    "from macelib.models.threads import say_if_late as say; say('cpu', 1); say('cuda', 4); say('cpu', 2); say('cpu', 2)"
)


def test_too_late_is_said_once_and_only_where_it_matters():
    late = python("import sys; sys.modules['torch'] = sys\n" + SAY)
    assert late.stderr.count(LATE) == 1 and "Import macelib first" in late.stderr
    assert LATE not in python(SAY).stderr
    said = python("import sys; sys.modules['torch'] = sys\n" + SAY, GOMP_SPINCOUNT="300")
    assert LATE not in said.stderr


@pytest.mark.slow
def test_loading_a_pipeline_says_it():
    code = "import torch, macelib; from macelib.models import pipelines; macelib.load_pipeline('mini-sd', device='cpu')"
    assert LATE in python(code).stderr
    assert LATE not in python(code.replace("import torch, ", "import ")).stderr


@pytest.mark.slow
def test_pictures_are_read_without_torchvision_and_without_a_word():
    code = "import transformers; transformers.CLIPImageProcessor, transformers.SiglipImageProcessor; print('read')"
    assert "torchvision" in python(code).stderr  # else this test holds nothing
    done = python("import macelib\n" + code)
    assert done.stdout == "read\n" and done.stderr == ""
