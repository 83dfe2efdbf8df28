"""Lesson 09: maps of the family, by brute force; and a method of one's own, as the notebook writes it."""

from dataclasses import asdict
from pathlib import Path

import nbformat
import pytest
import torch

from macelib import Concept, MaceError
from macelib.baselines import Edit, build, method, methods, registry
from macelib.files import hash_tensors
from macelib.lessons import methods as m
from macelib.lessons.capacity import TRIED
from macelib.models.pipelines import kv_weights
from macelib.models.text import encode
from macelib.models.tiny import tiny_pipeline
from macelib.reading import build_settings
from macelib.templates import fill

NOTEBOOK = Path(__file__).resolve().parent.parent / "notebooks" / "09_compare_methods.ipynb"
SHIP, KEPT = Concept("ship", "sea"), ["cat", "horse"]
CONFIG = {"prior": {"use": False}}


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline("sd")


@pytest.fixture(scope="module")
def maps(pipe):
    return {name: m.text_map(e) for name, e in m.edits(pipe, [SHIP], [*m.FAMILY], KEPT, CONFIG, 0).items()}


def test_each_of_the_family_writes_its_one_map(pipe, maps):
    W = {name: w.detach().clone() for name, w in kv_weights(pipe.unet).items()}
    for name, edit in m.edits(pipe, [SHIP], [*m.FAMILY], KEPT, CONFIG, 0).items():
        edit.apply(pipe)
        new = {layer: w.detach().clone() for layer, w in kv_weights(pipe.unet).items()}
        edit.remove(pipe)
        changed = [layer for layer in W if not new[layer].equal(W[layer])]
        assert changed == [layer for layer in W if name != "speed" or layer.endswith("to_v")]
        for layer in changed:
            assert torch.allclose(new[layer].double(), W[layer].double() @ maps[name], atol=1e-5), (name, layer)


def test_what_is_no_map_is_refused(pipe):
    with pytest.raises(MaceError, match="is not one map"):
        m.text_map(build(pipe, [SHIP], "negative-prompt"))
    with pytest.raises(MaceError, match="'esd-x' is not one map"):
        m.edits(pipe, [SHIP], ["esd-x"], KEPT, CONFIG, 0)


def test_every_method_takes_the_settings_that_give_a_concept_its_own_anchor():
    own = m.own_anchor(methods(), {"seed": 3})
    for name, values in own.items():
        chosen = method(name)
        settings = build_settings(chosen.settings, asdict(chosen.settings()) | values)
        assert getattr(settings, "anchor", None) is None and getattr(settings, "seed", 3) == 3, name
    assert own["uce"] == {"anchor": None} and own["semantic-surgery"] == {} and own["mace"] == {"seed": 3}


def test_a_comparison_of_other_parts_has_another_folder(pipe, tmp_path):
    place = m.live_folder(tmp_path, pipe, "key", 3, 8)
    assert place.parent == tmp_path and place == m.live_folder(tmp_path, pipe, "key", 3, 8)
    others = [m.live_folder(tmp_path, pipe, *parts) for parts in (("edited", 3, 8), ("key", 8, 3), ("key", 3))]
    assert len({place, *others, m.live_folder(tmp_path, tiny_pipeline("sd", seed=1), "key", 3, 8)}) == 5


def test_spectra_of_a_map_that_is_known():
    R = torch.eye(6, dtype=torch.float64)
    R[0, 0], R[1, 2] = 0.5, 3.0  # R − I: one entry of −0.5, one of 3
    curves, table = m.spectra({"known": R, "none": torch.eye(6)})
    assert curves["known"][1][:2] == pytest.approx([3.0, 0.5]) and max(curves["known"][1][2:]) <= 1e-6
    assert table.largest["known"] == pytest.approx(3) and table.directions.to_dict() == {"known": 2, "none": 0}
    assert table.condition["known"] == pytest.approx(float(torch.linalg.cond(R))) and table.condition["none"] == 1
    told = m.spectra_said(table)
    assert "known 3.00, 2 and none 0.00, 0" in told and "Fewest are moved by none, most by known" in told


def test_reach_by_the_prompts_themselves(pipe, maps):
    """The same prompts encoded by hand; name and anchor are one token each, so that positions agree."""
    table = m.reach(pipe, maps | {"nothing": torch.eye(32, dtype=torch.float64)}, [SHIP], KEPT)
    assert table.loc["nothing"].tolist() == [1, 1, 0, 0]
    ids = pipe.tokenizer(["ship", "sea"], verbose=False)["input_ids"]
    assert [len(some) for some in ids] == [3, 3]
    R, gap, whole = maps["uce"], 0.0, 0.0
    for template in TRIED:
        f, g = encode(pipe, [fill(template, "ship"), fill(template, "sea")]).double()
        at = pipe.tokenizer(fill(template, "ship"), verbose=False)["input_ids"].index(ids[0][1])
        gap, whole = gap + (R @ f[at] - g[at]).square().sum(), whole + (f[at] - g[at]).square().sum()
    assert table["own tokens left"]["uce"] == pytest.approx(float((gap / whole).sqrt()), rel=1e-6)
    assert table["words around left"]["mace-stage-1"] < 1, "stage 1 does not do what Eq. 2 asks for"
    assert "words around left: " in m.reach_said(table)


def test_a_gallery_leaves_the_pipeline_as_it_was(pipe):
    before, names = hash_tensors(kv_weights(pipe.unet)), ["ship", "cat"]
    albums = m.gallery(pipe, m.edits(pipe, [SHIP], ["uce"], KEPT, CONFIG, 0), names, 3, steps=1)
    assert {name: [*pictures] for name, pictures in albums.items()} == {"original": names, "uce": names}
    assert hash_tensors(kv_weights(pipe.unet)) == before


def test_the_notebook_s_own_method_is_twenty_lines_and_works_as_all_do(pipe, tmp_path):
    """What a third party writes: the cells of notebook 09 that import, describe and register it, run as they stand."""
    cells = [cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    (source,) = [cell for cell in cells if "@register(" in cell]
    assert len(source.splitlines()) <= 20
    known = dict(registry._METHODS)
    try:
        exec(compile(source, str(NOTEBOOK), "exec"), {})
        (name,) = set(registry._METHODS) - set(known)
        edit = build(pipe, [SHIP], name, kept=KEPT)
        assert isinstance(edit, Edit) and list(method(name).trials())
        R, (c, a) = m.text_map(edit), encode(pipe, ["ship", "sea"]).double()[:, 1]
        gap = (c - a) / (c - a).norm()
        for x in torch.randn(3, len(c), generator=torch.Generator().manual_seed(0), dtype=torch.float64):
            assert torch.allclose(R @ x, x - gap * (gap @ x), atol=1e-6)  # without it, and nothing else
        assert torch.allclose(R @ c, R @ a, atol=1e-6), "name and anchor are read alike"
        before = hash_tensors(kv_weights(pipe.unet))
        again = Edit.load(edit.save(tmp_path / "edit.safetensors"))
        again.apply(pipe)
        assert hash_tensors(kv_weights(pipe.unet)) != before and again.key == edit.key
        again.remove(pipe)
        assert hash_tensors(kv_weights(pipe.unet)) == before
    finally:
        registry._METHODS.clear()
        registry._METHODS.update(known)
