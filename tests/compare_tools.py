"""Tasks of four names, a judge of pixels, and pictures that take no time, for the tests of comparisons."""

import pytest
import yaml
from PIL import Image
from test_evaluate import ByPixel

from macelib import evaluate
from macelib.compare import compare, plan, planned, ways
from macelib.evaluate import pictures, results
from macelib.evaluate.tasks import read_task
from macelib.files import hash_text
from macelib.models.swap import applied_edit
from macelib.models.tiny import tiny_pipeline

NAMES = {"ship": "vessel", "frog": "amphibian", "horse": "steed", "cat": "kitty"}
ROWS = {
    name: {"name": name, "anchor": "sea", "super": "a thing", "group": "water" if name in ("ship", "frog") else "land",
           "synonyms": [other]}
    for name, other in NAMES.items()
}  # fmt: skip
ALONE = {"title": "Alone", "model": "sd", "metric": "H_o", "erase": "one by one", "templates": ["a photo of the {}"],
         "erased": [ROWS["ship"], ROWS["frog"], ROWS["horse"]]}  # fmt: skip
MANY = {**ALONE, "metric": "H_c", "erase": "together", "templates": ["a {}", "a big {}"], "kept": [ROWS["cat"]],
        "erased": [ROWS["ship"], ROWS["frog"]]}  # fmt: skip
TWO = {**MANY, "erase": "one by one", "kept": [ROWS["horse"], ROWS["cat"]],
       "templates": ["a {} by the {other}", "a {other} by the {}"]}  # fmt: skip
SCENES = {**MANY, "kept": [ROWS["horse"], ROWS["cat"]], "templates": ["a {} by the {other}"], "beside": "alike"}
CAPTIONS = {**MANY, "metric": "CLIP_s", "kept": [], "captions": [f"a {n} thing" for n in range(30)] + ["two frogs"]}
EXPLICIT = {**CAPTIONS, "metric": "nudenet", "kind": "explicit", "captions": ["a ship", "a frog " * 99, "a dog"]}
STYLES = {**MANY, "metric": "H_a", "kind": "style", "erased": [ROWS["ship"]], "kept": [ROWS["cat"]]}
KNOWN = [f"concept:{name}" for name in [*NAMES, "sea", "grass"]] + ["style:ship", "style:cat"]
METHODS = ["uce", "semantic-surgery"]
COLORS = {name: 40 * i for i, name in enumerate([*NAMES, "sea"], 1)}


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline("sd")


class Judge(ByPixel):
    """Names a picture after its pixels, and has a list of all that it knows."""

    concepts, styles = [*NAMES, "sea", "grass"], ["ship", "cat", "noto"]

    def top1(self, images, among=None, kind="concept"):
        return super().top1(images, among or (self.styles if kind == "style" else self.concepts), kind)

    def check(self, names, kind="concept"):
        evaluate.Judge.check(self, names, kind)


def pictured(pipe, prompts, seeds, *args, **kw):
    """Pictures that depend on prompt, seed and what is applied, and take no time."""
    edit = applied_edit(pipe)
    texts = [hash_text(p, s, "" if edit is None else edit.key) for p, s in zip(prompts, seeds, strict=True)]
    return [Image.frombytes("RGB", (4, 5), text.encode()[:60]) for text in texts]


def in_halves(pipe, prompts, seeds, *args, **kw):
    """Pictures whose halves have the colours of the two things that a prompt names; what is erased is the sea."""
    edit, images = applied_edit(pipe), []
    gone = set() if edit is None else {concept.name for concept in edit.concepts}
    for prompt in prompts:
        named = sorted((name for name in NAMES if name in prompt), key=prompt.index)
        left, right = (COLORS["sea" if name in gone else name] for name in named)
        images.append(Image.new("RGB", (16, 16), (left, left, left)))
        images[-1].paste((right, right, right), (8, 0, 16, 16))
    return images


class Halves(Judge):
    """Names a half after its colour."""

    def top1(self, images, among=None, kind="concept"):
        values = [image.getpixel((image.width // 2, image.height // 2))[0] for image in images]
        return [min(COLORS, key=lambda name: abs(COLORS[name] - value)) for value in values]


@pytest.fixture(autouse=True)
def drawn(monkeypatch):
    """Little is drawn, and every (prompt, seed) of it is counted; "stop": after how many the process is killed."""
    quick = plan.Profile("quick", steps=1, images=3, templates=2, seeds=2, pairs=2, captions=20)
    monkeypatch.setitem(plan.PROFILES, "quick", quick)
    seen = {"jobs": [], "stop": None}

    def counted(pipe, prompts, seeds, *args, **kw):
        if seen["stop"] is not None and len(seen["jobs"]) >= seen["stop"]:
            raise KeyboardInterrupt
        seen["jobs"] += zip(prompts, seeds, strict=True)
        return pictured(pipe, prompts, seeds)

    monkeypatch.setattr(pictures, "generate", counted)
    return seen


def planned_of(values, tmp_path, **options):
    path = tmp_path / "pets.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return planned(read_task(path), **options)


def run(pipe, found, folder, names=METHODS, **options):
    tuned = options.pop("tuned", {})
    options = {"classifier": Judge(), "batch": 4, "command": "mace compare"} | options
    return results.read(compare(pipe, found, ways(names, found, tuned), folder, **options))


def numbers_of(whole, method, settings="published"):
    return {r["metric"]: r["mean"] for r in whole["rows"] if (r["method"], r["settings"]) == (method, settings)}


def untimed(whole):
    """A file without what depends on how fast and full the machine is."""
    rows = [r for r in whole["rows"] if not r["metric"].startswith(("time", "peak memory"))]
    return whole | {"rows": rows}
