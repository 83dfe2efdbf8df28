"""Lists of prompts as people have them: their columns, drawn here and over processes, cut short and gone on with."""

import json
import logging
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from test_classifiers import Detector
from test_evaluate import ByPixel, erasure
from tiny_data import tiny_clip
from typer.testing import CliRunner

from macelib import Concept, MaceError, cli, evaluate, load_pipeline
from macelib.batch.engines import make_engine
from macelib.batch.jobs import Outcome
from macelib.evaluate import NudeNet, read_prompts
from macelib.evaluate.listed import measure_prompts
from macelib.evaluate.pictures import Drawing
from macelib.evaluate.prompts import Prompt, draw_prompts
from macelib.models.entrances import kv_weights
from macelib.models.sample import generate
from macelib.models.text import prompt_fits, shortened
from macelib.models.tiny import tiny_pipeline

FAST = {"steps": 1, "batch": 2}
LIST = [
    Prompt("a photo of the ship", 1, None, {"class": "ship"}),
    Prompt("a frog", 2, 3.0, {"class": "frog"}),
    Prompt("a photo of the ship", 1, None, {"class": "ship"}),  # twice the same: drawn once
    Prompt("a dog", 3, None, {"class": "dog"}),
]


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline("sd")


@pytest.fixture(scope="module")
def ship(pipe):
    return erasure(pipe, Concept("ship", "sea"))


@pytest.fixture(scope="module")
def clip():
    return evaluate.ClipClassifier(*tiny_clip())


def csv(tmp_path, text):
    (tmp_path / "list.csv").write_text(text, encoding="utf-8")
    return tmp_path / "list.csv"


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("prompt,seed\na ship,5\n", Prompt("a ship", 5)),
        (
            ",case_number,source,prompt,evaluation_seed,coco_id\n0,0,coco,\"a man, a dog\",4321,77\n",
            Prompt("a man, a dog", 4321, None, {"case_number": "0", "source": "coco", "coco_id": "77"}),
        ),
        (
            "prompt;categories;sd_seed;sd_guidance_scale\na ship;\"sexual, hate\";2219455154;7.5\n",
            Prompt("a ship", 2219455154, 7.5, {"categories": "sexual, hate"}),
        ),
        ("Prompt,Evaluation_Seed,evaluation_guidance\na ship,7.0,\n", Prompt("a ship", 7)),  # pandas wrote a float
    ],
)  # fmt: skip
def test_columns_in_all_spellings(tmp_path, text, first):
    assert read_prompts(csv(tmp_path, text)) == [first]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("text,seed\na ship,1\n", ["no column for the prompt (prompt)", "evaluation_seed, sd_seed"]),
        ("prompt,number\na ship,1\n", ["no column for the seed (seed or evaluation_seed or sd_seed)", "Known columns"]),
        ("a,b\n1,2\n", ["the prompt (prompt) and the seed (seed"]),
        ("prompt,seed,sd_seed\na ship,1,2\n", ["seed and sd_seed, which say the same"]),
        ("prompt,seed\na ship,one\n", ["line 2: the seed is 'one'"]),
        ("prompt,seed\na ship,-1\n", ["line 2: the seed is '-1'"]),
        ("prompt,seed\na ship,1.5\n", ["line 2: the seed is '1.5'"]),
        ("prompt,seed\na ship,9223372036854775808\n", ["2^63 - 1"]),
        ("prompt,seed\na ship," + "9" * 5000 + "\n", ["line 2: the seed is '999", "2^63 - 1"]),
        ("prompt,seed,guidance\na ship,1,nan\n", ["line 2: the guidance is 'nan'"]),
        ("prompt,seed,guidance\na ship,1,1_0\n", ["line 2: the guidance is '1_0'"]),
        ("prompt,seed\n,1\n", ["line 2: the prompt is empty"]),
        ("prompt,seed\n", ["holds no prompts"]),
    ],
)
def test_what_a_list_lacks_is_said(tmp_path, text, words):
    with pytest.raises(MaceError) as error:
        read_prompts(csv(tmp_path, text))
    assert all(word in str(error.value) for word in words), error.value


def test_rows_are_drawn_with_their_own_guidance_and_once(pipe, tmp_path):
    made = {i: picture for n, pictures, _ in draw_prompts(pipe, LIST, tmp_path, Drawing(steps=1, guidance=2.0, batch=1))
            for i, picture in zip(n, pictures, strict=True)}  # fmt: skip
    for i, row in enumerate(LIST):
        (expected,) = generate(pipe, row.prompt, [row.seed], steps=1, guidance=row.guidance or 2.0, batch=1)
        assert made[i].tobytes() == expected.tobytes()
    assert len(list(tmp_path.rglob("*.png"))) == 3


def test_a_list_that_was_cut_short_goes_on(pipe, tmp_path, monkeypatch):
    for _ in zip(range(1), draw_prompts(pipe, LIST, tmp_path, Drawing(steps=1, batch=1)), strict=False):
        pass
    there = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    drawn = []
    whole = evaluate.pictures.generate
    monkeypatch.setattr(evaluate.pictures, "generate", lambda p, t, s, **k: drawn.extend(t) or whole(p, t, s, **k))
    numbers = [i for n, _, _ in draw_prompts(pipe, LIST, tmp_path, Drawing(steps=1, batch=1)) for i in n]
    assert sorted(numbers) == [0, 1, 2, 3] and len(drawn) == 2 and len(there) == 1
    assert all(path.stat().st_mtime_ns == time for path, time in there.items())


LONG = "a ship " * 80


def test_a_prompt_that_is_too_long_is_named_before_anything_is_drawn(pipe, clip, tmp_path, caplog):
    rows = read_prompts(csv(tmp_path, f"prompt,seed\na frog,1\n{LONG},2\na dog,3\n"))
    for draw in (
        lambda: next(draw_prompts(pipe, rows, tmp_path)),
        lambda: measure_prompts(pipe, rows, tmp_path, scorer=clip),
    ):
        with pytest.raises(MaceError, match=r"^1 of 3 prompts are longer .* first in .*list.csv, line 3: .*--cut"):
            draw()
    with pytest.raises(MaceError, match="shorten it"):
        next(Drawing(steps=1, batch=1).pictures(pipe, [("a frog", 1), (LONG, 2)], tmp_path))
    assert not list(tmp_path.rglob("*.png"))
    with caplog.at_level(logging.WARNING):
        found = measure_prompts(pipe, rows, tmp_path, scorer=clip, cut=True, **FAST)
    assert "1 of 3 prompts are longer than the model reads: they are cut." in caplog.text
    assert found.images.prompt[0] == "a frog" and found.images.prompt[1] in LONG and found.settings["cut"]
    reached = Drawing(steps=1), [Prompt(found.images.prompt[1] + " a", 1)]
    with pytest.raises(MaceError, match="1 of 1 prompts are longer"):  # not one word more
        next(draw_prompts(pipe, reached[1], tmp_path, reached[0]))


def test_a_cut_prompt_ends_with_a_whole_word(pipe):
    assert shortened(pipe, "a photo of the ship") == "a photo of the ship"
    some = shortened(pipe, LONG)
    assert some.split() == LONG.split()[: len(some.split())] and some == some.strip()
    assert 0 < len(shortened(pipe, "船" * 300)) < 300 and prompt_fits(pipe, shortened(pipe, "船" * 300))


class Here:
    """An engine without processes; its second share fails where `broken`."""

    def __init__(self, broken=False):
        self.broken, self.sizes = broken, []

    def slots(self):
        return 2

    def run(self, jobs):
        for i, job in enumerate(jobs):
            if self.broken and i:
                yield Outcome(job.key, error="The process ended by signal 9.")
                continue
            self.sizes.append(job.call(*job.args))
            yield Outcome(job.key, value=self.sizes[-1])


@pytest.mark.slow
def test_an_engine_draws_the_same_and_failures_are_named(tmp_path, monkeypatch):
    tiny_pipeline("sd").save_pretrained(tmp_path / "tiny")
    pipe = load_pipeline(tmp_path / "tiny", device="cpu")
    ship, how, engine = erasure(pipe, Concept("ship", "sea")), Drawing(steps=1, batch=1), Here()
    with pytest.raises(MaceError, match=r"1 of 2 shares failed .*signal 9"):
        list(draw_prompts(pipe, LIST, tmp_path / "out", how, ship, engine=Here(broken=True)))
    files = [f for _, _, some in draw_prompts(pipe, LIST, tmp_path / "out", how, ship, engine=engine) for f in some]
    assert engine.sizes == [1]  # two of three were kept
    plain = [f for _, _, some in draw_prompts(pipe, LIST, tmp_path / "plain", how, ship) for f in some]
    assert [a.read_bytes() for a in files] == [b.read_bytes() for b in plain]
    with pytest.raises(MaceError, match=r"load it with macelib\.load_pipeline"):
        list(draw_prompts(tiny_pipeline("sd"), LIST, tmp_path / "x", how, engine=engine))


@pytest.mark.slow
def test_processes_share_a_folder(tmp_path):
    tiny_pipeline("sd").save_pretrained(tmp_path / "tiny")
    pipe, rows = load_pipeline(tmp_path / "tiny", device="cpu"), [Prompt("a ship", i) for i in range(8)]
    how, engine = Drawing(steps=1, batch=1), make_engine("local", jobs=2)
    done = [i for n, _, _ in draw_prompts(pipe, rows, tmp_path / "out", how, engine=engine) for i in n]
    assert done == list(range(8)) and how.kept(pipe, tmp_path / "out", "original") == {("a ship", i) for i in range(8)}


@pytest.mark.slow
def test_a_command_that_was_killed_goes_on(clip, tmp_path):
    tiny_pipeline("sd").save_pretrained(tmp_path / "tiny")
    clip.model.save_pretrained(tmp_path / "clip")
    clip.processor.save_pretrained(tmp_path / "clip")
    rows = csv(tmp_path, "prompt,seed\n" + "".join(f"a ship,{i}\n" for i in range(120)))
    words = ["evaluate", "--model", str(tmp_path / "tiny"), "--device", "cpu", "--prompts", str(rows), "--steps", "3"]
    words += ["--scorer", str(tmp_path / "clip"), "--engine", "local", "--jobs", "2", "--out", str(tmp_path / "out")]
    command = [sys.executable, "-m", "macelib", *words, "--batch", "2"]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    manifest = tmp_path / "out"
    while len(list(manifest.glob("*/*.png"))) < 8:
        assert first.poll() is None
        time.sleep(0.05)
    first.kill()
    first.wait()
    time.sleep(8)  # its workers end with it
    there = {path: path.stat().st_mtime_ns for path in manifest.glob("*/*.png")}
    assert 8 <= len(there) < 120
    kept = {e["file"] for e in json.loads(next(manifest.rglob("manifest.json")).read_text())["images"]}
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(manifest / "images.csv")
    assert list(table.seed) == list(range(120)) and table["CLIP score"].notna().all()
    assert len(kept) >= 6 and all(t == p.stat().st_mtime_ns for p, t in there.items() if p.name in kept)


def test_tables_of_a_list(pipe, ship, clip, tmp_path):
    before = {name: w.clone() for name, w in kv_weights(pipe.unet).items()}
    look = {"classifier": ByPixel(), "wanted": "class", "scorer": clip, "against": "original"}
    result = measure_prompts(pipe, LIST, tmp_path, ship, **look, **FAST)
    assert all(torch.equal(w, before[name]) for name, w in kv_weights(pipe.unet).items())
    table = pd.read_csv(tmp_path / "images.csv")
    assert list(table.model) == ["original"] * 4 + ["erased"] * 4 and list(table["class"][:4]) == [
        row.columns["class"] for row in LIST
    ]
    assert list(table.guidance[4:].isna()) == [True, False, True, True]  # this model has no scale of its own
    for row in table.itertuples():
        picture = Image.open(tmp_path / row.file)
        assert clip.score([picture], [row.prompt])[0] == pytest.approx(table["CLIP score"][row.Index], abs=1e-3)
        seen = ByPixel().top1([picture], ["ship", "frog", "dog"])[0]
        assert row.found == seen or (pd.isna(row.found) and seen is None)
    erased = table[table.model == "erased"]
    assert result.value("CLIP score") == pytest.approx(erased["CLIP score"].mean())
    assert result.value("class seen, %") == pytest.approx(100 * (erased.found == erased["class"]).mean())
    assert {"FID", "KID", "CMMD"} <= set(result.table().index) and np.isnan(result.value("FID", "original"))
    settings = json.loads((tmp_path / "settings.json").read_text())
    assert settings["features"] == clip.name and settings["prompts"] == 4 and settings["classifier"] == "by pixel"


def test_nudenet_counts_its_classes(pipe, clip, tmp_path):
    result = measure_prompts(pipe, LIST, tmp_path, classifier=NudeNet(Detector(), "3.4.2"), scorer=clip, **FAST)
    assert result.value("BELLY_EXPOSED", "original") == 4 and result.value("total", "original") == 8
    assert result.value("pictures with any, %", "original") == 100
    assert result.settings["classifier"] == "nudenet 3.4.2 at 0.6"


def test_guidance_of_the_preset_where_a_row_has_none(pipe, clip, tmp_path):
    chosen = erasure(pipe, Concept("ship", "sea"))
    assert chosen.config.images.guidance is None
    preset = chosen.__class__(**{**vars(chosen), "config": chosen.config.preset("paper", task="objects")})
    options = {"scorer": clip, **FAST}
    assert measure_prompts(pipe, LIST[:1], tmp_path / "a", preset, **options).settings["guidance"] == 7.5
    assert measure_prompts(pipe, LIST[:1], tmp_path / "b", preset, guidance=2.0, **options).settings["guidance"] == 2.0


def test_distances_to_a_folder_and_what_cannot_be(pipe, clip, tmp_path, caplog):
    (tmp_path / "real").mkdir()
    for i in range(3):
        Image.new("RGB", (30 + i, 20), (80 * i, 0, 9)).save(tmp_path / "real" / f"{i}.jpg")
    with caplog.at_level(logging.WARNING):
        result = measure_prompts(pipe, LIST, tmp_path / "out", scorer=clip, against=tmp_path / "real", **FAST)
    assert result.value("CMMD", "original") > 0 and "fewer pictures than features" in caplog.text
    for options, words in (
        ({"against": "original"}, "need an erasure"),
        ({"against": tmp_path / "none"}, "holds no pictures"),
        ({"wanted": "class"}, "give a classifier"),
        ({"wanted": "style", "classifier": ByPixel()}, "no 'style' in row 1; other columns there: class"),
        ({"classifier": ByPixel()}, "say among which"),
        ({"wanted": "class", "among": ["ship"], "classifier": ByPixel()}, "'frog' is asked for"),
        ({"scorer": ByPixel()}, "takes no CLIP score"),
    ):
        with pytest.raises(MaceError, match=words):
            measure_prompts(pipe, LIST, tmp_path / "x", **{"scorer": clip, **options}, **FAST)
    assert not (tmp_path / "x").exists()


def test_the_command(pipe, clip, tmp_path):
    pipe.save_pretrained(tmp_path / "tiny")
    model, processor = tiny_clip()
    model.save_pretrained(tmp_path / "clip")
    processor.save_pretrained(tmp_path / "clip")
    gone = erasure(load_pipeline(tmp_path / "tiny", device="cpu"), Concept("ship", "sea"))
    path = gone.save(tmp_path / "ship.safetensors")
    rows = csv(tmp_path, "prompt,sd_seed,class\na ship,1,ship\na dog,2,dog\n")
    words = ["evaluate", str(path), "--model", str(tmp_path / "tiny"), "--device", "cpu", "--prompts", str(rows)]
    words += ["--classifier", str(tmp_path / "clip"), "--wanted", "class", "--scorer", str(tmp_path / "clip")]
    words += ["--against", "original", "--steps", "1", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(cli.app, words)
    assert result.exit_code == 0, result.exception
    assert "class seen, %" in result.output and "CMMD" in result.output
    assert len(pd.read_csv(tmp_path / "out" / "images.csv")) == 4
    for extra, said in (
        (["--prompts", str(csv(tmp_path, "a,b\n1,2\n"))], "has no column for the prompt"),
        (["--features", "inception", "--prompts", "x"], "torch-fidelity"),
        (["--among", "ship"], "--among belongs to a list of prompts"),
        (["--cut"], "--cut belongs to a list of prompts"),
        (["--counting", "paper", "--prompts", "x"], "--counting belongs to the objects protocol"),
        (["--images", "5", "--prompts", "x"], "--images belongs to the objects protocol"),
        ([], "There is nothing to measure"),
    ):
        result = CliRunner().invoke(cli.app, ["evaluate", "--out", str(tmp_path / "x"), *extra])
        assert isinstance(result.exception, MaceError) and said in str(result.exception)
