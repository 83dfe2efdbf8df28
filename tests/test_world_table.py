"""The quality table: its place in the README, which shows what the shipped report says of the shipped weights."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from factory import findings, measures, recipe, report, table
from factory.cards import write_card
from factory.catalogue import catalogue
from factory.render import Batch, is_scene
from factory.run import FOLDER, weights_hash

from macelib.errors import MaceError
from macelib.files import data_folder, into_marks

MOST = 72_000_000  # bytes of weights in the checkout


def test_the_readme_shows_the_report_of_the_shipped_weights():
    shipped = json.loads((data_folder() / "world" / "report.json").read_text())
    assert table.readme_table(shipped) in (data_folder().parent / "README.md").read_text(encoding="utf-8")
    assert (data_folder() / "world" / "contact_sheet.png").is_file()


def test_the_shipped_weights_are_those_of_the_report_and_small():
    """All of them: a shipping that was cut short is half of one world and half of another."""
    said = json.loads((data_folder() / "world" / "report.json").read_text())["weights_sha256"]
    if isinstance(said, str):
        pytest.skip("the report is of before `make world` shipped all models together")
    assert said == {model: weights_hash(data_folder() / folder) for model, folder in FOLDER.items()}
    sizes = {path: path.stat().st_size for path in data_folder().glob("mini-*/**/*.safetensors")}
    assert sum(sizes.values()) <= MOST, sizes


@pytest.mark.parametrize(
    ("value", "target", "said"),
    [
        (0.59, ">= 0.60", ", missed"),
        (0.7, ">= 0.60", ""),
        (13.0, "<= 12", ", missed"),
        (3.0, "<= 12", ""),
        (0.01, "", ""),
    ],
)
def test_a_missed_target_is_said(value, target, said):
    assert table.missed(value, target) == said


@pytest.fixture
def shipped():
    values = dict.fromkeys(table.TARGETS, 0.5)
    return {"measures": values, "steps": 25, "precision": "bf16", "guidance": 5.0, "machine": "a laptop"}


@pytest.mark.parametrize(
    ("sweep", "chosen"),
    [
        ({1.5: (0.70, 0.9), 3: (0.895, 0.8), 5: (0.90, 0.5)}, 3),
        ({1.5: (0.70, 0.9), 3: (0.885, 0.8), 5: (0.90, 0.5)}, 5),
        ({1.5: (0.9, 0.1), 7.5: (0.9, 0.9)}, 1.5),
    ],
)
def test_the_smallest_guidance_within_a_point_of_the_best_is_chosen(sweep, chosen):
    assert report.guidance_of(sweep) == chosen


def test_entropy_of_the_artists():
    assert measures.entropy(torch.tensor([0, 1, 2, 3] * 5)) == pytest.approx(1)
    assert measures.entropy(torch.tensor([2] * 7)) == 0
    assert measures.entropy(torch.tensor([0, 1, 0, 1])) == pytest.approx(0.5)


def test_the_autoencoder_meets_every_artist_and_the_head_of_styles_no_scene_that_nobody_drew(monkeypatch):
    """Stand-ins: a picture's grey is its artist, but a scene's is another's; the autoencoder keeps what it is given."""

    def fresh(each, seed):
        concept = torch.arange(len(catalogue())).repeat_interleave(4 * each)
        style = torch.arange(4).repeat(len(catalogue()) * each)
        grey = torch.where(is_scene(concept), (style + 1) % 4, style) / 3
        nothing = torch.full_like(concept, -1)
        return Batch(grey.view(-1, 1, 1, 1).expand(-1, 3, 2, 2), grey, concept, nothing, style, nothing)

    given = []
    vae = SimpleNamespace(
        encode=lambda x: given.append(x) or SimpleNamespace(latent_dist=SimpleNamespace(mean=x)),
        decode=lambda z: SimpleNamespace(sample=z),
    )
    models = SimpleNamespace(
        some=lambda count: count, device="cpu", clip=None, tokenizer=None, pipe=SimpleNamespace(vae=vae),
        concepts=lambda images: torch.zeros(len(images)),
        styles=lambda images: (3 * images[:, 0, 0, 0]).round().long(),
    )  # fmt: skip
    monkeypatch.setattr(measures, "fresh", fresh)
    monkeypatch.setattr(measures, "seen", lambda clip, images: torch.ones(len(images), 1))
    monkeypatch.setattr(measures, "name_vectors", lambda *_: torch.ones(len(catalogue()), 1))
    assert measures.measure_renderings(models)["judge_styles_renderings"] == 1
    often = torch.bincount((1.5 * (given[0][:, 0, 0, 0] + 1)).round().long(), minlength=4)
    assert often.sum() == len(catalogue()) and often.min() > 0.8 * often.max(), often.tolist()


def test_names_of_the_text_s_table_are_those_it_says_whatever_share_of_pictures_is_measured(monkeypatch):
    asked = {}

    def table(encoder, erased, kept, counts):
        asked[encoder.name] = (counts, len(kept))
        return pd.DataFrame({"n": counts})

    monkeypatch.setattr(measures, "capacity", table)
    monkeypatch.setattr(measures, "of_tower", lambda folder, name: SimpleNamespace(name=name))
    monkeypatch.setattr(measures, "real_encoder", lambda: SimpleNamespace(name="real"))
    models = SimpleNamespace(folders={"clip": Path("mini-models/mini-clip")}, some=lambda count: 1)
    found = measures.measure_text(models)["text"]
    assert asked == {"tower of mini": ([1, 10, 30, 100, 300], 100), "real": ([1, 10, 30, 100], 100)}
    recorded = pd.read_csv(data_folder() / "world" / "capacity.csv")
    assert {*recorded.n} <= {row["n"] for row in found["tower of mini"]}


def test_no_part_of_the_text_s_table_is_kept_without_the_real_encoder(monkeypatch):
    monkeypatch.setattr("macelib.lessons.capacity.has_real", lambda: False)
    monkeypatch.setattr(measures, "of_tower", lambda folder, name: SimpleNamespace(name=name))
    monkeypatch.setattr(measures, "capacity", None)
    with pytest.raises(MaceError, match="comes with an extra"):
        measures.measure_text(SimpleNamespace(folders={"clip": Path("mini-models/mini-clip")}))
    extras = dict(re.findall(r"^(\w+) = \[(.*)\]", (data_folder().parent / "pyproject.toml").read_text(), re.MULTILINE))
    assert extras["encoder"] in extras["world"]


def test_a_measure_is_kept_for_the_code_that_took_it(monkeypatch, tmp_path):
    before = report.measured_by()
    for path in Path(report.__file__).parent.glob("*.py"):
        shutil.copy(path, tmp_path / path.name)
    monkeypatch.setattr(report, "__file__", str(tmp_path / "report.py"))
    assert report.measured_by() == before
    (tmp_path / "measures.py").write_text((tmp_path / "measures.py").read_text() + "\nMORE = 1\n")
    assert report.measured_by() != before


def test_a_table_has_a_place_in_a_page(tmp_path, shipped):
    path = tmp_path / "README.md"
    path.write_text("before\n<!-- report -->\nold\n<!-- end of report -->\nafter\n")
    assert table.into_readme(shipped, path)
    text = path.read_text()
    assert "old" not in text and text.startswith("before\n") and text.endswith("-->\nafter\n")
    assert text.count("|") >= 4 * (2 + len(table.TARGETS))


def test_a_card_says_which_phenomena_are_there_and_what_fails(tmp_path):
    row = {"n": 100, "d": 384, "left": 0.71, "lost": 0.5}
    found = {
        "residual_route": 0.98, "own_route": 0.05, "artists_entropy": 0.3,
        "text": {"tower": [row], "wide": [row | {"left": 0.4}]},
        "concepts_each": {"frog": 0.9, "wolf": 0.25, "cat": 0.125}, "styles_each": {"noto": 1.0},
    }  # fmt: skip
    said = findings.about({"measures": found, "steps": 25, "guidance": 2.0})
    for line in (
        "from the words around it alone, `[EOS]` and padding included: present, 98 % of pictures recognised",
        "own words alone: absent, 5 %",
        "of one prompt: in part, artists' entropy 0.30 of 1",
        "many names (left + lost above 1): present, left 0.71, lost 0.50 (tower, n = 100, d = 384)",
        "absent, left 0.40, lost 0.50 (wide, n = 100, d = 384)",
        "- concepts, of 3: cat 12 %, wolf 25 %",
        "- styles, of 1: none",
    ):
        assert line in said, line
    assert "synonyms" not in said, "not measured"
    (tmp_path / "training").mkdir()
    write_card(tmp_path, "unet", recipe.load(recipe.SHIPPED), tmp_path / "training")
    assert into_marks(tmp_path / "README.md", "findings", said) and said in (tmp_path / "README.md").read_text()


def test_a_gpu_is_said(shipped):
    places = {"measure_speed": "cpu", "measure_objects": "NVIDIA H200"}
    assert "a laptop, pictures drawn on an NVIDIA H200." in table.readme_table(shipped | {"measured_on": places})
    assert "drawn on" not in table.readme_table(shipped | {"measured_on": {"measure_objects": "cpu"}})
