"""The sizes that notebook 08 shows, against published ones and against a file."""

from pathlib import Path

import nbformat
import pytest
import torch
from PIL import Image

from macelib import EraseConfig
from macelib.bench import Shapes, random_erasure
from macelib.concepts import Concept
from macelib.lessons.your_model import LAYOUTS, changed, convergence_said, file_size, needs, payload
from macelib.models.tiny import tiny_pipeline

NOTEBOOK = Path(__file__).resolve().parent.parent / "notebooks" / "08_your_model.ipynb"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "parameters", "matrices", "width"),
    [("SD v1.4", 859.52, 32, 768), ("SD v2.1", 865.91, 32, 1024), ("SDXL", 2567.46, 140, 2048)],
)
def test_layouts_are_the_published_ones(name, parameters, matrices, width):
    one, four = (needs(LAYOUTS[name], concepts) for concepts in (1, 4))
    assert one["parameters (M)"] == pytest.approx(parameters, abs=0.01)
    assert (one["matrices"], one["text width"]) == (matrices, width)
    assert four["training (GB)"] - one["training (GB)"] == pytest.approx(3 * one["per concept in a pass (GB)"])
    assert four["UNet call (TFLOP)"] == one["UNet call (TFLOP)"] > 0.5


@pytest.mark.parametrize("count", [1, 3])
def test_file_size_is_that_of_a_file(count, tmp_path):
    shapes = Shapes(out=(32, 32, 64, 64), width=192)
    path = random_erasure(shapes, count).save(tmp_path / "erasure.safetensors")
    predicted = file_size({str(i): (out, shapes.width) for i, out in enumerate(shapes.out)}, count)
    assert predicted == payload(path) < path.stat().st_size


def test_how_far_pictures_change():
    black, grey = Image.new("RGB", (4, 4)), Image.new("RGB", (4, 4), (51, 51, 51))
    table = changed(["a", "b"], [black, black], [grey, black])
    assert table["mean difference of pixels"].to_dict() == pytest.approx({"a": 0.2, "b": 0.0})


def test_how_fast_the_prior_converges():
    counts = [50, 500, 5000]
    assert convergence_said(counts, [n**-0.5 for n in counts]) == (
        "From 50 to 5000 captions the distance goes from 0.14 to 0.01, like n to the power -0.50 "
        "(independent captions: -0.50)."
    )
    assert convergence_said([3], [0.1]) == convergence_said([], []) == ""


@pytest.mark.parametrize("masks", ["attention", "drawing", "full"])
def test_the_notebook_shows_masks_of_every_source_that_needs_no_other_model(tmp_path, masks):
    first, *cells = [cell.source for cell in nbformat.read(NOTEBOOK, 4).cells if "make_masks" in cell.source]
    known = {"concepts": {}, "tflops": 1, "images": 2, "steps": 2, "guidance": 2.0, "seed": 0, "run_folder": tmp_path}
    exec("\n".join(line for line in first.splitlines() if "import" in line), known)
    known |= {"pipe": (pipe := tiny_pipeline("sd")), "chosen": [Concept("ship", "sea")]}
    known |= {"settings": EraseConfig.from_dict({"images": {"masks": masks}}).for_model(pipe, known["chosen"])}
    (cell,) = cells
    exec(cell, known)
    assert known["masks"] == masks and known["where"].shape == (2, 1, 64, 64) and torch.isfinite(known["where"]).all()
