"""The studio on a tiny pipeline: the controls, what they set off, and what is shown when something is wrong."""

import asyncio
import base64
import gc
import io
import re
import time
import weakref

import pytest
import torch
from PIL import Image

from macelib import Concept, EraseConfig, MaceError
from macelib.files import data_folder
from macelib.models.pipelines import fast_precision, kv_weights, load_pipeline
from macelib.models.sample import generate
from macelib.models.swap import untouched
from macelib.models.tiny import tiny_pipeline
from macelib.show import cells, doing, easel, studio
from macelib.show.easel import Easel, difference, prepared
from macelib.show.page import gallery, message
from macelib.show.studio import Studio, parse_seeds

FEW = ("a photo of the {}", "{} at sunset")
CONCEPTS = [Concept("ship", "sea", templates=FEW), Concept("frog", "grass", templates=FEW)]
CONFIG = EraseConfig.from_dict({
    "images": {"count": 1, "steps": 1, "masks": "full"},
    "train": {"steps": 2, "lr": 0.1},
    "prior": {"use": False},
})  # fmt: skip
PROMPT = "a photo of the frog"
SEEDS = (0, 1)


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline("sd")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("studio")


@pytest.fixture(scope="module")
def erasure(pipe, folder):
    return prepared(pipe, CONCEPTS, CONFIG, folder=folder)


@pytest.fixture
def page(pipe, erasure):
    shown = Studio(Easel(pipe, erasure, steps=2), PROMPT, SEEDS)
    assert not shown.error
    yield shown
    shown.close()


def pictures(page, row: str) -> list[Image.Image]:
    """The pictures of a row, out of the page's HTML."""
    found = re.findall(rf'<img alt="{row}, seed \d+" src="data:image/png;base64,([^"]+)">', page.picture.value)
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in found]


def same(one, other) -> bool:
    return [a.tobytes() for a in one] == [b.tobytes() for b in other]


def count_draws(page, monkeypatch) -> list:
    """A list that grows with every drawing by the model."""
    drawn, draw = [], page.easel._draw
    monkeypatch.setattr(page.easel, "_draw", lambda *a: drawn.append(a[:2]) or draw(*a))
    return drawn


def test_pictures_are_those_of_the_erasure(page, pipe, erasure):
    from macelib.models.sample import generate

    with untouched(pipe):
        before = generate(pipe, PROMPT, SEEDS, 2)
        erasure.apply(pipe)
        after = generate(pipe, PROMPT, SEEDS, 2)
    assert same(pictures(page, "before"), before) and same(pictures(page, "after"), after)
    assert not same(before, after)
    assert len(pictures(page, "difference")) == 2 and page.picture.value.count("<img") == 10


def test_a_tick_draws_the_model_without_the_concept(page, pipe, erasure, monkeypatch):
    drawn = count_draws(page, monkeypatch)
    page.ticks["frog"].value = False
    assert len(drawn) == 1 and page.sliders["frog"].disabled and "erased: ship × 1" in page.status.value
    expected = Easel(pipe, erasure.only("ship"), steps=2).draw(PROMPT, SEEDS, {"ship": 1})
    assert same(pictures(page, "after"), expected.images)
    page.ticks["frog"].value = True
    assert len(drawn) == 1 and not page.sliders["frog"].disabled, "what was drawn before is remembered"


def test_a_slider_draws_a_weaker_erasure(page):
    original, full = page.easel.draw(PROMPT, SEEDS), page.easel.draw(PROMPT, SEEDS, page.strengths)
    page.none.click()
    assert same(pictures(page, "after"), original.images) and "nothing" in page.status.value
    page.ticks["frog"].value, page.sliders["frog"].value = True, 0.05
    weak = page.easel.draw(PROMPT, SEEDS, page.strengths)
    assert page.strengths == {"frog": 0.05} and same(pictures(page, "after"), weak.images)
    assert 0 < difference(weak, original) < difference(full, original)
    page.all.click()
    assert page.strengths == {"ship": 1.0, "frog": 1.0}, "all is all"


def test_strength_zero_is_the_original_and_the_order_does_not_count(page, pipe, erasure):
    fresh = Easel(pipe, erasure, steps=2)
    assert difference(fresh.draw(PROMPT, SEEDS, {"frog": 0.0}), page.easel.draw(PROMPT, SEEDS)) == 0
    orders = ({"frog": 1.0, "ship": 0.5}, {"ship": 0.5, "frog": 1.0})
    assert difference(page.easel.draw(PROMPT, SEEDS, orders[0]), fresh.draw(PROMPT, SEEDS, orders[1])) == 0


def test_the_pipeline_is_left_alone_even_after_an_error(pipe, erasure, monkeypatch):
    before = {name: w.detach().clone() for name, w in kv_weights(pipe.unet).items()}

    def broken(*_, **__):
        raise RuntimeError("a <bad> day")

    with monkeypatch.context() as patch:
        patch.setattr(easel, "generate", broken)
        page = Studio(Easel(pipe, erasure, steps=2), PROMPT, SEEDS)
        assert page.error == "RuntimeError: a <bad> day" and "a &lt;bad&gt; day" in page.status.value
        assert 'role="alert"' in page.status.value
        with pytest.raises(MaceError, match="bad"):
            page.figure()
    assert all(torch.equal(w, before[name]) for name, w in kv_weights(pipe.unet).items())
    page.update()
    assert not page.error and "ready" in page.status.value, "the page works again"
    page.close()


@pytest.mark.parametrize(
    ("control", "bad", "sentence"),
    [("seeds", "1, x", "allowed: 1 to 8"), ("seeds", "", "allowed"), ("prompt", "frog " * 90, "tokens")],
)
def test_bad_input_is_said_in_the_page_and_the_pictures_stay(page, control, bad, sentence):
    shown, good = page.picture.value, getattr(page, control).value
    getattr(page, control).value = bad
    assert sentence in page.error and sentence in page.status.value and page.picture.value == shown
    assert "macelib-old" in page.picture._dom_classes, "they are dimmed, for they are not of this prompt"
    getattr(page, control).value = good
    assert not page.error and "macelib-old" not in page.picture._dom_classes


def test_an_interrupt_stops_the_drawing_only(page, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(easel, "generate", interrupted)
    page.prompt.value = "a ship"
    assert "stopped" in page.status.value and not page.error


def test_busy_while_drawing(page, monkeypatch):
    seen, draw = [], page.easel._draw

    def watched(*arguments):
        seen.append((page.status.value, "macelib-busy" in page.picture._dom_classes))
        drawing = draw(*arguments)
        seen.append((page.bar.value, page.bar.max))
        return drawing

    monkeypatch.setattr(page.easel, "_draw", watched)
    page.others.click()
    assert seen[0] == (message("drawing …"), True) and seen[1] == (2, 4), "before is half of it"
    assert seen[3] == (4, 4)
    assert page.seeds.value == "2, 3" and "macelib-busy" not in page.picture._dom_classes and page.bar.value == 0


def test_words_of_the_prompt(page):
    assert page.word.value == "frog", "the concept, at first"
    assert page.word.options == ("frog", "[start]", "a", "photo", "of", "the", "[end]", "[padding]")
    page.prompt.value = "the frog and the big dog"
    assert page.word.value == "frog" and "the (4)" in page.word.options
    positions = page.easel.words(page.prompt.value)
    assert positions["the"] == [1] and positions["the (4)"] == [4] and positions["frog"] == [2]
    assert positions["[end]"] == [7] and positions["[padding]"][0] == 8
    page.prompt.value = "a big dog"
    assert page.word.value == "dog"


def test_a_word_of_several_tokens_is_looked_up_whole(page):
    page.prompt.value = "a photo of the quxfoo"
    words = page.easel.words(page.prompt.value)
    pieces = [label for label, at in words.items() if label != "quxfoo" and set(at) <= set(words["quxfoo"])]
    assert len(pieces) == len(words["quxfoo"]) > 1 and page.word.value == "quxfoo", "and it is what is offered"
    w = {label: i for i, label in enumerate(words)}
    heat = page.easel.draw(page.prompt.value, SEEDS).heat
    assert torch.allclose(heat[:, w["quxfoo"]], heat[:, [w[p] for p in pieces]].mean(1), atol=1e-6)


def test_a_word_shows_its_attention_without_drawing(page, pipe, monkeypatch):
    from macelib.models.attention import trace
    from macelib.models.sample import generate

    drawn, row = count_draws(page, monkeypatch), pictures(page, "“frog”, before")
    page.word.value = "photo"
    assert not drawn and len(pictures(page, "“photo”, after")) == 2
    assert not same(pictures(page, "“photo”, before"), row)
    with trace(pipe) as maps:
        generate(pipe, PROMPT, SEEDS, 2)
    heat = page.easel.draw(PROMPT, SEEDS).heat[:, list(page.easel.words(PROMPT)).index("photo")]
    assert torch.allclose(heat, maps.heat(PROMPT, "photo", image=None), atol=1e-6)


def test_changes_that_come_quickly_are_drawn_once(page, monkeypatch):
    drawn = count_draws(page, monkeypatch)

    async def hurry():
        for strength in (0.9, 0.8, 0.7):
            page.sliders["frog"].value = strength
        assert not drawn
        await asyncio.sleep(doing.PAUSE * 3)
        page.worker.wait()

    asyncio.run(hurry())
    assert len(drawn) == 1 and page.strengths["frog"] == 0.7 and "frog × 0.7" in page.status.value


def test_running_the_cell_again_leaves_one_page(pipe, erasure, monkeypatch):
    first = Studio(Easel(pipe, erasure, steps=2), PROMPT, SEEDS)
    drawn = [count_draws(first, monkeypatch)]
    second = Studio(Easel(pipe, erasure, steps=2), PROMPT, SEEDS)
    drawn.append(count_draws(second, monkeypatch))
    first.ticks["frog"].value = False  # as a message that was still under way
    first.update()
    second.ticks["frog"].value = False
    assert [len(d) for d in drawn] == [0, 1] and first.box.comm is None and second.box.comm is not None
    second.close()


def test_a_closed_page_lets_go_of_its_model(pipe, erasure):
    page = Studio(Easel(pipe, erasure, steps=2), PROMPT, SEEDS)  # which IPython's Out would hold
    held = weakref.ref(page.easel)
    page.close()
    page.worker.wait(60)
    gc.collect()
    assert held() is None and not page.error
    page.learn.click(), page.update()
    for ask in (page.figure, lambda: page.settings):
        with pytest.raises(MaceError, match="This page is closed: run its cell again"):
            ask()


def test_a_cell_that_runs_again_with_another_model_leaves_one_page(pipe, erasure, monkeypatch):
    monkeypatch.setattr(studio, "running_cell", lambda: "a")
    first, other = Studio(Easel(pipe, erasure, steps=2), PROMPT, SEEDS), tiny_pipeline("sd")
    monkeypatch.setattr(studio, "running_cell", lambda: "b")
    elsewhere = Studio(Easel(other, erasure, steps=2), PROMPT, SEEDS)
    assert first.box.comm is not None, "the page of another cell and another model stays"
    monkeypatch.setattr(studio, "running_cell", lambda: "a")
    again = Studio(Easel(tiny_pipeline("sd"), erasure, steps=2), PROMPT, SEEDS)
    assert first.box.comm is None and elsewhere.box.comm is not None and again.box.comm is not None
    elsewhere.close(), again.close()


def test_the_running_cell_is_known_by_its_name(monkeypatch):
    assert cells.running_cell() == ""

    class Shell:
        def get_parent(self):
            return {"metadata": {"cellId": "c7"}}

    monkeypatch.setattr(cells, "get_ipython", Shell)
    assert cells.running_cell() == "c7"


def test_what_a_page_and_a_batch_run_are_given(page, monkeypatch):
    assert "application/vnd.jupyter.widget-view+json" in page._repr_mimebundle_()
    monkeypatch.setenv(studio.BATCH, "runs/1")
    assert list(page._repr_mimebundle_()) == ["text/plain"]
    assert len(page.figure("all").axes) == 10


def test_memory_is_bounded(pipe, erasure):
    small = Easel(pipe, erasure, steps=1, keep=2)
    for prompt in ("a ship", "a frog", "a dog", "a frog"):
        small.draw(prompt, [0])
    assert [key[0] for key in small._known] == ["a dog", "a frog"]


def test_autocast(pipe, erasure):
    exact, fast = (Easel(pipe, erasure, steps=2, autocast=a).draw(PROMPT, SEEDS, {"frog": 1}) for a in (None, "bf16"))
    assert 0 < difference(exact, fast) < 0.05
    assert torch.allclose(exact.heat, fast.heat, atol=1e-3)
    assert Easel(pipe, erasure, autocast="auto").autocast == fast_precision(pipe)
    with pytest.raises(MaceError, match="autocast"):
        Easel(pipe, erasure, autocast="int8")


def test_prepared_erases_once(pipe, erasure, folder, monkeypatch, caplog):
    assert [p.suffix for p in folder.iterdir() if p.name != ".locks"] == [".safetensors"], "the work folder is gone"
    again = prepared(pipe, CONCEPTS, CONFIG, folder=folder)
    assert all(torch.equal(a.B, b.B) for a, b in zip(again.parts, erasure.parts, strict=True))
    calls = []
    monkeypatch.setattr(easel, "erase", lambda *a, **kw: calls.append(a) or erasure)
    prepared(pipe, CONCEPTS, CONFIG, folder=folder)
    assert not calls
    prepared(pipe, CONCEPTS[:1], CONFIG, folder=folder)  # other content, another file
    assert len(calls) == 1 and len(list(folder.glob("*.safetensors"))) == 2
    for path in folder.glob("*.safetensors"):
        path.write_bytes(b"damaged")
    prepared(pipe, CONCEPTS, CONFIG, folder=folder)
    assert len(calls) == 2 and "made anew" in caplog.text


@pytest.mark.parametrize(
    ("text", "seeds"), [("3", (3,)), ("0, 1, 5-7", (0, 1, 5, 6, 7)), (" 4  2 ", (4, 2)), ("0-7", tuple(range(8)))]
)
def test_seeds(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "-1", "1,1", "0-8", "0-999999999999", "5-3", "1.5", "9" * 30])
def test_seeds_that_are_none(text):
    with pytest.raises(MaceError, match="allowed: 1 to 8"):
        parse_seeds(text)


def test_large_pictures_are_sent_small_and_labels_are_escaped():
    text = gallery({'<a "b">': [Image.new("RGB", (512, 512))]}, ["seed 0"], {'<a "b">': ["<c> 0.9"]})
    assert "image/jpeg" in text and len(text) < 10_000 and "<a" not in text and "<c>" not in text
    assert "&lt;a &quot;b&quot;&gt;, seed 0" in text and "<figcaption>&lt;c&gt; 0.9</figcaption>" in text
    sent = re.findall(r"base64,([^\"]+)", gallery({"a": [Image.new("RGB", (512, 512))]}, ["s"], side=192))
    assert Image.open(io.BytesIO(base64.b64decode(sent[0]))).size == (384, 384)


@pytest.mark.slow
def test_a_reaction_costs_one_drawing_of_the_pictures():
    """Moving a slider draws four pictures of 6 steps once: 6 passes of the UNet, and little beside them."""
    if not (data_folder() / "mini-sd" / "model_index.json").is_file():
        pytest.skip("data/mini-sd is not there")
    pipe = load_pipeline("mini-sd")
    made = prepared(pipe, [Concept("frog", "grass", templates=FEW)], CONFIG)
    page, passes, ratios = Studio(Easel(pipe, made, steps=6, guidance=5.0), PROMPT), [], []
    hook = pipe.unet.register_forward_hook(lambda *_: passes.append(1))
    for strength in (0.25, 0.5, 0.75):
        passes.clear()
        page.sliders["frog"].value = strength
        assert len(passes) == 6
        begun = time.perf_counter()
        generate(pipe, PROMPT, range(4), steps=6, guidance=5.0)
        ratios.append(page.seconds / (time.perf_counter() - begun))
    hook.remove()
    page.close()
    assert sorted(ratios)[1] < 2, ratios
