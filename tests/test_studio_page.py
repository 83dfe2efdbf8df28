"""What the studio's page offers beside drawing: Stop, verdicts, steps, sizes, saving, another concept, hints."""

import asyncio
import json
import re
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from PIL import Image
from test_studio import CONFIG, PROMPT, SEEDS, count_draws, erasure, folder, page, pictures, pipe, same  # noqa: F401
from tiny_data import tiny_clip, tiny_judge

from macelib import Concept, Erasure, MaceError
from macelib.evaluate.judge import ClipClassifier, Judge
from macelib.evaluate.verdict import verdicts
from macelib.models.families import MINI
from macelib.models.pipelines import kv_weights
from macelib.models.sample import generate
from macelib.models.swap import untouched
from macelib.show import hints, learn, past, studio
from macelib.show.easel import Easel, alone
from macelib.show.page import message
from macelib.show.studio import Studio
from macelib.show.worker import Stopped, Worker, heed


def test_the_worker_does_the_last_thing_and_stops_the_one_before():
    worker, done = Worker(), []

    def work(name):
        def run(stop):
            done.append(f"{name} begins")
            ended = stop.wait(0.5 if name == "c" else 30)
            done.append(f"{name} {'stopped' if ended else 'done'}")

        return run

    worker.start(work("a"))
    while not done:
        time.sleep(0.01)
    worker.start(work("b"))  # never begins: c is asked for while a still ends
    worker.start(work("c"))
    worker.wait(20)
    assert [line for line in done if line[0] != "b"] == ["a begins", "a stopped", "c begins", "c done"]
    worker.start(work("d"))
    worker.stop()
    worker.wait(20)
    assert "d done" not in done


@pytest.mark.slow
def test_stop_ends_a_drawing_at_its_next_step_and_leaves_the_pipeline_alone(page, pipe, monkeypatch):  # noqa: F811
    before = {name: w.detach().clone() for name, w in kv_weights(pipe.unet).items()}
    drawing, go_on, draw = threading.Event(), threading.Event(), page.easel._draw

    def slow(prompt, seeds, steps, guidance, tell):
        def waits(done, total):
            drawing.set()
            go_on.wait(20)
            tell(done, total)

        return draw(prompt, seeds, steps, guidance, waits)

    monkeypatch.setattr(page.easel, "_draw", slow)

    async def use():
        page.prompt.value = "a ship"
        while not drawing.is_set():
            await asyncio.sleep(0.01)
        assert not page.halt.disabled and "drawing" in page.status.value
        page.halt.click()
        go_on.set()
        page.worker.wait(20)

    asyncio.run(use())
    assert "stopped" in page.status.value and not page.error and page.halt.disabled
    assert "macelib-old" in page.picture._dom_classes
    assert all(torch.equal(w, before[name]) for name, w in kv_weights(pipe.unet).items())
    assert not page.start.disabled
    page.start.click()
    assert "ready" in page.status.value and "macelib-old" not in page.picture._dom_classes


def test_a_page_waits_for_others_and_still_hears_stop(page):  # noqa: F811
    held, release = threading.Event(), threading.Event()

    def hold():
        with alone():
            held.set()
            release.wait(20)

    other = threading.Thread(target=hold)
    other.start()
    held.wait(20)
    stop = threading.Event()
    stop.set()
    page.prompt.unobserve_all(), setattr(page.prompt, "value", "a dog")
    page.update(stop)
    assert "stopped" in page.status.value
    said = []
    page.status.observe(lambda change: said.append(change["new"]), "value")
    page.update(Later(release, said))
    other.join(20)
    waited = [i for i, text in enumerate(said) if "waiting for another" in text]
    assert waited and "drawing …" in said[waited[-1] + 1] and "ready" in said[-1]


class Later:
    """Nobody clicks Stop; the others let go as soon as the page has said that it waits."""

    def __init__(self, release, said):
        self.release, self.said = release, said

    def is_set(self) -> bool:
        if any("waiting" in text for text in self.said):
            self.release.set()
        return False


@pytest.mark.slow
def test_steps_and_guidance(page, pipe, monkeypatch):  # noqa: F811
    drawn = count_draws(page, monkeypatch)
    page.steps.value = 3
    with untouched(pipe):
        assert same(pictures(page, "before"), generate(pipe, PROMPT, SEEDS, 3))
        page.guidance.value = 2.0
        assert same(pictures(page, "before"), generate(pipe, PROMPT, SEEDS, 3, 2.0))
    assert len(drawn) == 4, "before and after, twice"
    page.steps.value, page.guidance.value = 2, 7.5
    assert page.settings["steps"] == 2 and page.easel.steps == 2


def test_a_larger_view_draws_nothing(page, monkeypatch):  # noqa: F811
    drawn = count_draws(page, monkeypatch)
    page.side.value = page.side.options["huge"]
    assert not drawn and "512px" in page.picture.value


def test_an_earlier_state_is_chosen_and_comes_back_undrawn(page, monkeypatch):  # noqa: F811
    first, html = page.past.value, page.picture.value
    assert PROMPT in first and "frog × 1" in first and "seeds 0, 1" in first
    page.ticks["frog"].value, page.sliders["ship"].value, page.seeds.value = False, 0.5, "3"
    assert page.past.value == page.past.options[0] and "erased: ship × 0.5; seeds 3" in page.past.value
    assert len(page.past.options) == 4 and page.picture.value != html
    drawn = count_draws(page, monkeypatch)
    page.past.value = first
    assert not drawn and page.picture.value == html and page.past.options[0] == first and len(page.past.options) == 4
    assert page.strengths == {"ship": 1.0, "frog": 1.0} and page.seeds.value == "0, 1" and not page.error
    monkeypatch.setattr(past, "MOST", 2)
    page.seeds.value = "4"
    assert len(page.past.options) == 2


def test_a_second_prompt_stands_beside_the_first(page, pipe, erasure):  # noqa: F811
    other = "a photo of the dog"
    page.beside.value = other
    assert page.settings["beside"] == other and f"and “{other}”" in page.past.value
    with untouched(pipe):
        assert same(pictures(page, f"before: {other}"), generate(pipe, other, SEEDS, 2))
        erasure.apply(pipe)
        assert same(pictures(page, f"after: {other}"), generate(pipe, other, SEEDS, 2))
    order = [row for row in re.findall(r'<img alt="([^"]+), seed 0"', page.picture.value)]
    assert order[:5] == ["before", "after", f"before: {other}", f"after: {other}", "difference"]
    page.beside.value = "dog " * 90
    assert "shorten it" in page.error
    page.beside.value = " "
    assert not page.error and not pictures(page, f"before: {other}") and "beside" not in page.settings


def test_the_bar_counts_the_steps_of_both_prompts(page):  # noqa: F811
    seen = []
    page.bar.observe(lambda change: seen.append((change["new"], page.bar.max)), "value")
    page.beside.value = "a photo of the dog"
    assert seen[:-1] == [(5, 8), (6, 8), (7, 8), (8, 8)], "the first prompt's half is there already"
    seen.clear()
    page.seeds.value = "7, 8"
    assert seen[:-1] == [(i, 8) for i in range(1, 9)] and seen[-1][0] == 0


def test_before_and_after_lie_one_over_the_other(page, monkeypatch):  # noqa: F811
    drawn = count_draws(page, monkeypatch)
    assert "<input" not in page.picture.value
    page.wipe.value = True
    for seed in SEEDS:
        both = re.search(
            rf'<figure class="wipe"><img alt="before, seed {seed}, wiped" src="([^"]+)">'
            rf'<img alt="after, seed {seed}, wiped" src="([^"]+)">'
            rf'<input type="range" value="50" aria-label="before to after, seed {seed}" oninput="([^"]+)">',
            page.picture.value,
        )
        for row, source in zip(("before", "after"), both.groups(), strict=False):
            assert f'<img alt="{row}, seed {seed}" src="{source}">' in page.picture.value
        assert "previousElementSibling.style.clipPath" in both[3]
    assert not drawn
    page.beside.value = "a photo of the dog"
    assert 'aria-label="before to after: a photo of the dog, seed 1"' in page.picture.value
    assert page.picture.value.count('class="wipe"') == 4


def test_another_cell_that_runs_is_said(pipe, erasure):  # noqa: F811
    shell = InteractiveShell.instance()
    try:
        shown = Studio(Easel(pipe, erasure, steps=2), PROMPT, SEEDS)
        assert shown.elsewhere.value == ""
        shell.user_ns["shown"] = shown
        shell.run_cell("seen = shown.elsewhere.value")
        assert "Another cell of the notebook is running" in shell.user_ns["seen"] and shown.elsewhere.value == ""
        shown.close()
        shell.run_cell("seen = shown.elsewhere.value")
        assert shell.user_ns["seen"] == ""
    finally:
        InteractiveShell.clear_instance()


def test_the_judges_verdict_stands_under_each_picture(pipe, erasure, tmp_path):  # noqa: F811
    judge = Judge(tiny_judge(["concept:ship", "concept:frog", "concept:grass", "style:neon"]))
    shown = Studio(Easel(pipe, erasure, steps=2), PROMPT, SEEDS, lambda *a: verdicts(judge, *a), tmp_path)
    texts = shown.picture.value.partition("difference")[0].split("<figcaption>")[1:]
    assert len(texts) == 4 and all("frog 0." in text for text in texts), "the concept of the prompt, wherever it stands"
    images = pictures(shown, "after")
    expected = judge.logits(images)[0].softmax(-1)
    for seen, row in zip(verdicts(judge, images, [], ["frog", "unheard of"]), expected, strict=True):
        best = judge.concepts[int(row.argmax())]
        assert next(iter(seen)) == best and seen["frog"] == pytest.approx(float(row[1])) and len(seen) <= 2
    shown.beside.value = "a ship"
    texts = shown.picture.value.partition("difference")[0].split("<figcaption>")[1:]
    assert len(texts) == 8 and all("ship 0." in text for text in texts[4:]), "the concept of the second prompt"
    assert not any("frog" in text and not text.startswith("frog") for text in texts[4:])
    shown.close()


def test_clip_chooses_among_concepts_and_anchors(pipe):  # noqa: F811
    classifier, images = ClipClassifier(*tiny_clip()), generate(pipe, PROMPT, SEEDS, 1)
    names = ["ship", "sea", "frog"]
    found = verdicts(classifier, images, names, names)
    assert all(sum(seen.values()) == pytest.approx(1, abs=1e-5) for seen in found)
    assert [next(iter(seen)) for seen in found] == classifier.top1(images, names)


def test_any_classifier_with_a_list_of_its_own_tells_how_sure_it_is(pipe):  # noqa: F811
    images = generate(pipe, PROMPT, SEEDS, 1)
    shares = torch.tensor([[0.3, 0.7]] * 2)
    sure = SimpleNamespace(concepts=["ship", "frog"], probabilities=lambda images, names: shares)
    assert verdicts(sure, images, ["sea"], ["ship", "unheard of"]) == [pytest.approx({"frog": 0.7, "ship": 0.3})] * 2


@pytest.mark.slow
def test_what_is_saved_draws_the_same_again(pipe, erasure, tmp_path):  # noqa: F811
    shown = Studio(Easel(pipe, erasure, steps=2), PROMPT, SEEDS, folder=tmp_path / "kept")
    shown.sliders["frog"].value, shown.ticks["ship"].value = 0.5, False
    shown.beside.value = "a photo of the dog"
    shown.save.click(), shown.save.click()
    assert not shown.error and sorted(p.name for p in (tmp_path / "kept").iterdir()) == ["001", "002"]
    assert str(tmp_path / "kept" / "002") in shown.status.value
    place = tmp_path / "kept" / "001"
    about = json.loads((place / "settings.json").read_text())
    assert about["strengths"] == {"frog": 0.5} and about["seeds"] == [0, 1] and about["versions"]["torch"]
    assert {"config", "model", "judge", "scheduler", "guidance", "precision", "drawn_by"} <= set(about)
    kept = Erasure.load(place / "erasure.safetensors")
    with untouched(pipe):
        kept.apply(pipe)
        how = about["seeds"], about["steps"], about["guidance"]
        again, second = generate(pipe, about["prompt"], *how), generate(pipe, about["beside"], *how)
    assert same(again, pictures(shown, "after"))
    assert same(second, [Image.open(place / f"beside-erased-seed-{seed}.png") for seed in SEEDS])
    names = {f"{kind}-seed-{seed}.png" for kind in ("original", "erased") for seed in SEEDS}
    assert {p.name for p in place.glob("*.png")} == {"page.png", *names, *(f"beside-{name}" for name in names)}
    shown.close()


def test_what_an_erasure_or_a_caller_asks_for_is_not_cut(pipe, erasure):  # noqa: F811
    shown = Studio(Easel(pipe, erasure.scaled({"frog": 1.6}), steps=2, guidance=150.0), PROMPT, SEEDS)
    assert shown.strengths["frog"] == 1.6 and shown.guidance.value == 150
    shown.close()
    with pytest.raises(MaceError, match="str has no UNet"):
        Easel("mini-sd", erasure)


def test_without_a_folder_nothing_can_be_saved(page):  # noqa: F811
    assert page.save.layout.display == "none"


@pytest.mark.slow
def test_a_concept_more(pipe, erasure, cache):  # noqa: F811
    shown = Studio(Easel(pipe, erasure, steps=2), "a photo of the dog", SEEDS)
    before = pictures(shown, "after")
    shown.more.value = "dog=grass"
    shown.learn.click()
    assert not shown.error and list(shown.ticks) == ["ship", "frog", "dog"] and shown.more.value == ""
    assert shown.strengths["dog"] == 1 and len(shown.lines.children) == 3 and "dog × 1" in shown.status.value
    assert not same(pictures(shown, "after"), before)
    parts = shown.easel.erasure.parts
    assert all(torch.equal(a.B, b.B) for a, b in zip(parts, erasure.parts, strict=False)), "the others' LoRAs stay"
    at_first = pictures(shown, "after")
    shown.more.value = "dog=art"
    shown.learn.click()
    assert not shown.error and list(shown.ticks) == ["ship", "frog", "dog"] and len(shown.lines.children) == 3
    assert shown.ticks["dog"].description == "dog → art" and not same(pictures(shown, "after"), at_first)
    assert [c.anchor for c in shown.easel.erasure.concepts] == ["sea", "grass", "art"]
    bads = ("Dog=sky", "twice"), ("dog", "No anchor is known"), ("a=a", "itself"), (" ", "No concept is named")
    for bad, said in bads:
        shown.more.value = bad
        shown.learn.click()
        assert said in shown.error and shown.more.value == bad and len(shown.ticks) == 3
    shown.close()


@pytest.mark.parametrize(("part", "passes"), [("text_encoder", 1), ("unet", 1), ("unet", 2)])  # read, drawn, trained
def test_learning_stops_at_the_next_pass_of_a_model(pipe, erasure, part, passes, cache):  # noqa: F811
    before = {name: w.detach().clone() for name, w in kv_weights(pipe.unet).items()}
    stop, done = threading.Event(), []

    def click(*_):
        done.append(1)
        if len(done) == passes:
            stop.set()

    hook = getattr(pipe, part).register_forward_pre_hook(click)
    try:
        with pytest.raises(Stopped):
            learn.learned(pipe, erasure, Concept("dog", "grass"), lambda *_: None, lambda: heed(stop))
    finally:
        hook.remove()
    assert len(done) == passes
    assert not pipe.unet._forward_pre_hooks and not pipe.text_encoder._forward_pre_hooks
    assert all(torch.equal(w, before[name]) for name, w in kv_weights(pipe.unet).items())


def test_what_is_learned_is_said_in_words(page, monkeypatch):  # noqa: F811
    said = []
    page.status.observe(lambda change: said.append(change["new"]), "value")

    def learned(pipe, erasure, concept, tell, heed):  # noqa: F811
        tell("train", 3, 20, "")
        raise MaceError("enough")

    monkeypatch.setattr(studio, "learned", learned)
    page.more.value = "dog=grass"
    page.learn.click()
    assert message("learning dog=grass: steps trained, 3 of 20") in said and page.error == "enough"
    assert not page.learn.disabled and not page.start.disabled


def test_every_control_stands_on_the_page_in_the_order_of_work(page):  # noqa: F811
    shown = [*reversed([*page.widgets()])]
    order = [page.prompt, page.beside, page.seeds, page.lines, page.more, page.start, page.halt, page.status]
    order += [page.odd, page.word, page.side, page.wipe, page.past, page.picture]
    places = [shown.index(widget) for widget in order]
    assert len(set(places)) == len(order)
    children = [*page.box.children]
    rows = [next(i for i, row in enumerate(children) if w is row or w in getattr(row, "children", ())) for w in order]
    assert rows == sorted(rows), "what is drawn, what is erased, how it goes, how it is looked at, the pictures"


def test_mini_sds_catalogue_has_the_anchor(pipe, monkeypatch):  # noqa: F811
    monkeypatch.setattr(learn, "family_of", lambda pipe: MINI)
    assert learn.asked(pipe, " ship ") == Concept("ship", "the sea", synonyms=learn.asked(pipe, "ship=x").synonyms)
    with pytest.raises(MaceError, match="Known names near it: ship"):
        learn.asked(pipe, "shipp")


def test_hints(pipe, page, monkeypatch):  # noqa: F811
    assert hints.hint(pipe, "quxfoo") == "", "what other models know is not known here"
    assert "empty" in hints.hint(pipe, " ")
    page.prompt.value = ""
    assert "empty" in page.odd.value and not page.error and "ready" in page.status.value
    page.prompt.value = PROMPT
    assert page.odd.value == ""
    monkeypatch.setattr(hints, "family_of", lambda pipe: MINI)
    assert hints.hint(pipe, "A photo of the frog, and a ship in the snow") == ""
    said = hints.hint(pipe, "a photo of the quxfoo with a shipp")
    assert "no “quxfoo”" in said and "“shipp” (near it: ship" in said
    assert "nor 2 more words: what it draws for them" in hints.hint(pipe, "qaz qwx qev qrb qty")
    assert hints.hint(pipe, "a quxfoo").endswith("what it draws for it is chance.")
