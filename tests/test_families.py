"""Families: what a pipeline is of follows from its class and its configs, and people add their own."""

import dataclasses
import inspect
import json
import re
from pathlib import Path
from types import SimpleNamespace

import diffusers
import pytest
from factory import recipe

import macelib
from macelib.batch.parameters import read_parameters
from macelib.evaluate import classifier_for
from macelib.files import data_folder, notebooks_folder
from macelib.method.prior import captions_for
from macelib.models import families as module
from macelib.models.families import MINI, UNKNOWN, Family, families, family_of, register
from macelib.models.pipelines import default_guidance, load_pipeline
from macelib.models.tiny import tiny_pipeline


def like(kind: str, **configs):
    """An object with the class name and the configs of a pipeline."""
    parts: dict = {}
    for path, value in configs.items():
        part, _, name = path.partition("__")
        parts.setdefault(part, {})[name] = value
    held = {part: SimpleNamespace(config=SimpleNamespace(**values)) for part, values in parts.items()}
    return type(kind, (), held)()


def test_the_shipped_model_is_of_its_family_and_a_path_says_nothing(tmp_path):
    assert family_of(load_pipeline("mini-sd", device="cpu")) is MINI
    tiny_pipeline("sd").save_pretrained(tmp_path / "mini-sd")
    other = load_pipeline(tmp_path / "mini-sd", device="cpu")
    assert family_of(other) is UNKNOWN and default_guidance(other) is None


@pytest.mark.parametrize(
    ("pipe", "name", "preset"),
    [
        (lambda: tiny_pipeline("sd", width=384, channels=8), "mini-SD", "mini"),
        (lambda: tiny_pipeline("sd", width=768), "SD 1.x", "paper"),
        (lambda: tiny_pipeline("sd2", width=1024), "SD 2.x", "paper"),
        (lambda: tiny_pipeline("sdxl", width=1024), "SDXL", "paper"),
        (lambda: tiny_pipeline("sd"), "no known family", "mini"),
        (lambda: tiny_pipeline("sdxl"), "no known family", "mini"),
        (lambda: like("PixArtSigmaPipeline", transformer__caption_channels=4096), "PixArt", "untested"),
        (lambda: like("SanaPipeline", transformer__caption_channels=2304), "Sana", "untested"),
        (lambda: like("StableDiffusion3Pipeline", transformer__joint_attention_dim=4096), "SD3", "untested"),
        (lambda: like("FluxPipeline", transformer__joint_attention_dim=4096), "FLUX.1", "untested"),
        (lambda: like("FluxPipeline", transformer__joint_attention_dim=32), "no known family", "mini"),
    ],
)
def test_recognised_by_class_and_configs(pipe, name, preset):
    family = family_of(pipe())
    assert (family.name, family.preset) == (name, preset)


@pytest.mark.parametrize("family", families(), ids=lambda family: family.name)
def test_classes_configs_and_guidance_are_those_of_diffusers(family):
    for name in family.classes:
        kind = getattr(diffusers, name)
        usual = inspect.signature(kind.__call__).parameters["guidance_scale"].default
        assert family is MINI or family.guidance == usual
        for path in family.configs:
            part, _, entry = path.partition(".")
            model = inspect.signature(kind.__init__).parameters[part].annotation
            assert entry in inspect.signature(model.__init__).parameters, path


def chosen_guidance(report: dict) -> float | None:
    """The guidance that a report chose by its sweep; None: an earlier report, which chose none."""
    return report["guidance"] if "guidance_sweep" in report else None


def test_the_shipped_model_s_guidance_is_what_its_report_chose():
    """An earlier report chose none; the recipe offers what is drawn with until then."""
    chosen = chosen_guidance(json.loads((data_folder() / "world" / "report.json").read_text()))
    if chosen is None:
        assert MINI.scale() in recipe.load(recipe.SHIPPED).report.guidance
        chosen = MINI.scale()
    assert chosen == MINI.scale()


def test_notebooks_draw_with_the_model_s_own_guidance():
    shown = {path.name: read_parameters(path).get("guidance") for path in notebooks_folder().glob("*.ipynb")}
    found = {name: parameter for name, parameter in shown.items() if parameter}
    assert len(found) >= 8 and {parameter.default for parameter in found.values()} == {None}
    assert all(parameter.help.endswith("None: the model's own") for parameter in found.values())


def test_a_family_of_one_s_own(monkeypatch):
    monkeypatch.setattr(module, "_families", list(families()))
    pipe, judge = tiny_pipeline("sd"), object()
    mine = register(
        Family(
            "mine", ("StableDiffusionPipeline",), {"unet.cross_attention_dim": 32}, preset="mini", guidance=3.0,
            captions=lambda: ["a red dog"], judge=lambda: judge,
        )
    )  # fmt: skip
    assert family_of(pipe) is mine and default_guidance(pipe) == 3.0
    assert captions_for(pipe) == ["a red dog"] and classifier_for(pipe) is judge
    again = register(dataclasses.replace(mine, guidance=4.0))
    assert family_of(pipe) is again and len(families()) == len(module._families)


def test_method_and_evaluation_do_not_mention_the_mini_world():
    root = Path(macelib.__file__).parent
    for path in [*(root / "method").rglob("*.py"), *(root / "evaluate").rglob("*.py")]:
        text = path.read_text(encoding="utf-8")
        found = set(re.findall(r"(?i)\bmini\b|mini[-_ ](?:sd|judge|clip|world)|is_mini", text))
        assert not found, f"{path.name}: {found}"
