"""A comparison is gone on with after a kill, measures rows anew that changed, and refuses what it cannot do."""

import dataclasses
import importlib.util
from importlib import import_module

import compare_tools
import pytest
import torch
from compare_tools import ALONE, KNOWN, MANY, METHODS, ROWS, STYLES, Judge, planned_of, run, untimed
from tiny_data import tiny_clip, tiny_judge

from macelib import Concept, Erasure, MaceError, evaluate
from macelib.baselines import TextMap, build, register
from macelib.baselines.registry import _METHODS, Settings
from macelib.batch.jobs import Outcome
from macelib.compare import compare, measure, metric_names, ways
from macelib.compare.plan import ORIGINAL, Way
from macelib.evaluate import pictures, results
from macelib.files import locked, read_tensors
from macelib.method.images import seconds
from macelib.models.families import family_of
from macelib.models.pipelines import kv_weights
from macelib.models.sample import generate
from macelib.models.tiny import WIDTH, tiny_pipeline

values = import_module("macelib.presets.values")  # the package has a function of this name
drawn, pipe = compare_tools.drawn, compare_tools.pipe


@pytest.mark.slow
@pytest.mark.parametrize("stop", [5, 60])
def test_killed_at_any_moment_and_run_again_gives_the_same_tables(pipe, tmp_path, drawn, stop):
    found = planned_of(ALONE, tmp_path)
    whole = run(pipe, found, tmp_path / "whole")
    count = len(drawn["jobs"])
    drawn.update(jobs=[], stop=stop)
    with pytest.raises(KeyboardInterrupt):
        run(pipe, found, tmp_path / "out")
    before = len(drawn["jobs"])
    drawn["stop"] = None
    again = run(pipe, found, tmp_path / "out")
    assert untimed(again) == untimed(whole) and 0 < before < count == len(drawn["jobs"])


WRITES = [  # what is written of a row, and which time it is called
    ("compare.measure.save_tensors", 0), ("compare.measure.write_json", 1), ("compare.spent.write_json", 1),
    ("evaluate.pictures._write", 4), ("evaluate.pictures.write_json", 4), ("compare.tables.results.write", 0),
    ("compare.tables.keep_samples", 1),
]  # fmt: skip


@pytest.mark.parametrize("after", [False, True])
def test_killed_where_something_is_written(pipe, tmp_path, drawn, slow, after):
    """Before or after it: the same command gives the same tables, draws one batch again at most, counts none twice."""
    clip, found = evaluate.ClipClassifier(*tiny_clip()), planned_of(MANY, tmp_path)
    whole = run(pipe, found, tmp_path / "whole", ["slow"], features=clip)
    count = len(drawn["jobs"])
    for number, (place, at) in enumerate(WRITES):
        drawn["jobs"].clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(f"macelib.{place}", killing(import_from(place), at, after))
            with pytest.raises(KeyboardInterrupt):
                run(pipe, found, tmp_path / str(number), ["slow"], features=clip)
        again = run(pipe, found, tmp_path / str(number), ["slow"], features=clip)
        assert untimed(again) == untimed(whole), place
        assert len(drawn["jobs"]) <= count + 4, place
        times = {r["method"]: r["n"] for r in again["rows"] if r["metric"] == "time per picture, s"}
        assert max(times.values()) <= 12, place


def import_from(place):
    """What a place in macelib holds."""
    module, _, name = place.rpartition(".")
    return getattr(results if module.endswith("results") else import_module(f"macelib.{module}"), name)


def killing(call, at, after):
    """The call, of which one is the last."""
    done = []

    def instead(*args, **options):
        done.append(1)
        if len(done) <= at or after:
            value = call(*args, **options)
        if len(done) > at:
            raise KeyboardInterrupt
        return value

    return instead


@dataclasses.dataclass(frozen=True)
class Own(Settings):
    scale: float = 1.0


@pytest.fixture
def slow():
    """A method that trains, with settings of its own; what it was built with, in turn."""
    built = []

    @register("slow", Own, trains=True)
    def slow(request, settings):
        built.append(settings.scale)
        return TextMap(torch.eye(WIDTH) * (1 + settings.scale / 100))

    yield built
    del _METHODS["slow"]


def test_an_edit_of_other_settings_of_others_or_damaged_is_made_anew(pipe, tmp_path, slow, monkeypatch, caplog):
    found = planned_of(MANY, tmp_path)
    measuring = measure.Measuring(found, None, None, tmp_path / "out", family=family_of(pipe))

    def scale(value):
        edit = measuring.built(pipe, Way("slow", "tuned", {"scale": value}), (0, 0), lambda *_: None)
        return edit.settings["scale"], [concept.name for concept in edit.concepts]

    first = scale(1.0)
    with monkeypatch.context() as patch:
        patch.setattr(measure, "write_json", killing(measure.write_json, 0, False))  # the edit is kept, and no more
        with pytest.raises(KeyboardInterrupt):
            scale(2.0)
    assert scale(1.0) == first == (1.0, ["ship", "frog"]) and slow == [1.0, 2.0]
    assert scale(2.0)[0] == 2.0 and measuring.made(Way("slow", "tuned", {"scale": 1.0})) == [{}]
    (kept,) = [
        path for path in (tmp_path / "out" / "edits").iterdir() if read_tensors(path)[0]["settings"]["scale"] == 2
    ]
    kept.write_bytes(b"cut")
    assert scale(2.0)[0] == 2.0 and str(kept) in caplog.text and slow == [1.0, 2.0, 2.0, 2.0]
    build(pipe, [Concept("horse", "sea")], "slow", {"scale": 2.0}).save(kept)
    assert scale(2.0)[1] == ["ship", "frog"] and f"{kept} erases horse=sea, not ship=sea, frog=sea" in caplog.text


class Looks:
    """An engine whose jobs end as they are told."""

    def __init__(self, **outcomes):
        self.outcomes = outcomes

    def run(self, jobs):
        for job in jobs:
            yield Outcome(job.key, **self.outcomes[job.key.partition(" ")[0].replace("-", "_")])


def test_a_row_that_dies_in_its_process_is_no_result(pipe, tmp_path, monkeypatch):
    monkeypatch.setattr("macelib.compare.run.elsewhere", lambda pipe: ())
    monkeypatch.setattr("macelib.compare.run.plugged", lambda who: Judge())
    died = {"error": "ValueError: no", "trace": "Traceback, line 7"}
    engine = Looks(uce=died, semantic_surgery={"value": "It does not do that."})
    with pytest.raises(MaceError, match=r"uce \(published\): ValueError: no(?s:.*)line 7"):
        run(pipe, planned_of(MANY, tmp_path), tmp_path / "out", engine=engine, classifier="judge")
    whys = {r["method"]: r["why"] for r in results.read(tmp_path / "out" / "pets.json")["not_measured"]
            if r["metric"] == "all"}  # fmt: skip
    assert whys == {"semantic-surgery (published)": "It does not do that."}


def test_who_looks_is_known_by_weights_and_code(pipe, tmp_path, monkeypatch):
    clips = [evaluate.ClipClassifier(*tiny_clip(), name="clip") for _ in range(2)]
    with torch.no_grad():
        clips[1].model.visual_projection.weight.add_(1)
    run(pipe, planned_of(MANY, tmp_path), tmp_path / "features", [], features=clips[0])
    with pytest.raises(MaceError, match=r"another run \(features differ\)"):
        run(pipe, planned_of(MANY, tmp_path), tmp_path / "features", [], features=clips[1])
    for clip in clips:
        monkeypatch.setattr("macelib.compare.run.classifier_for", lambda pipe, kind="objects", clip=clip: clip)
        if clip is clips[0]:
            run(pipe, planned_of(STYLES, tmp_path), tmp_path / "scorer", [])
    with pytest.raises(MaceError, match=r"another run \(features, scorer differ\)"):
        run(pipe, planned_of(STYLES, tmp_path), tmp_path / "scorer", [])
    mine = tmp_path / "mine.py"
    for name in ("ship", "horse"):
        mine.write_text(f"def look(pictures, among):\n    return ['{name}'] * len(pictures)\n")
        if name == "ship":
            run(pipe, planned_of(MANY, tmp_path), tmp_path / "judge", [], classifier=f"{mine}:look")
    with pytest.raises(MaceError, match=r"another run \(judge differ\)"):
        run(pipe, planned_of(MANY, tmp_path), tmp_path / "judge", [], classifier=f"{mine}:look")


def test_what_is_damaged_is_looked_at_anew_without_drawing(pipe, tmp_path, drawn):
    found = planned_of(MANY, tmp_path)
    whole = run(pipe, found, tmp_path / "out", ["uce"])
    count = len(drawn["jobs"])
    (tmp_path / "out" / "seen" / "uce-published-000.json").write_text('{"key"')
    assert untimed(run(pipe, found, tmp_path / "out", ["uce"])) == untimed(whole) and len(drawn["jobs"]) == count


def test_tuned_settings_are_a_second_row_and_are_measured_anew_when_they_change(pipe, tmp_path, drawn):
    found = planned_of(MANY, tmp_path)
    whole = run(pipe, found, tmp_path / "out", ["uce"], tuned={"uce": {"lambda_": 5.0}})
    assert [(r["method"], r["settings"]) for r in whole["rows"] if r["metric"] == "Acc_e"] == [
        ("original", ""), ("uce", "published"), ("uce", "tuned")
    ]  # fmt: skip
    values = whole["environment"]["settings"]
    assert (values["uce (published)"]["lambda_"], values["uce (tuned)"]["lambda_"]) == (0.5, 5.0)
    count = len(drawn["jobs"])
    run(pipe, found, tmp_path / "out", ["uce"], tuned={"uce": {"lambda_": 0.01}})
    assert len(drawn["jobs"]) == count * 4 // 3  # one row of three


def test_a_method_that_refuses_is_not_measured_and_the_others_are(pipe, tmp_path):
    @register("refuses", Settings)
    def refuses(request, settings):
        raise MaceError("It does not do that.")

    try:
        whole = run(pipe, planned_of(MANY, tmp_path), tmp_path / "out", ["refuses", "uce"], against="refuses")
    finally:
        del _METHODS["refuses"]
    row = {"method": "refuses (published)", "metric": "all", "why": "It does not do that."}
    assert row in whole["not_measured"] and {r["method"] for r in whole["rows"]} == {"original", "uce"}
    why = "refuses: not measured, and the others are compared with it"
    assert {"method": "uce (published)", "metric": "H_c difference", "why": why} in whole["not_measured"]


def test_best_is_not_measured_while_nothing_is_chosen(pipe, tmp_path):
    whole = run(pipe, planned_of(MANY, tmp_path), tmp_path / "out", ["mace-best"])
    (why,) = [row["why"] for row in whole["not_measured"] if row["method"] == "mace-best (tuned)"]
    assert why.startswith("Nothing has been chosen for the preset 'best' yet") and "mace study tuning --grid" in why
    assert {row["method"] for row in whole["rows"]} == {"original"}


def test_a_training_that_was_done_is_kept(pipe, tmp_path, drawn):
    built, found = [], planned_of(MANY, tmp_path)

    @register("slow", Settings, trains=True)
    def slow(request, settings):
        built.append(1)
        return _METHODS["original"].make(request, settings)

    try:
        drawn["stop"] = 20  # the original and a part of the method
        with pytest.raises(KeyboardInterrupt):
            run(pipe, found, tmp_path / "out", ["slow"])
        drawn["stop"] = None
        whole = run(pipe, found, tmp_path / "out", ["slow"])
        quick, recorded = (ways(None, dataclasses.replace(found, profile=name), {}) for name in ("quick", "recorded"))
        assert Way("slow", "published") not in quick and Way("slow", "published") in recorded
    finally:
        del _METHODS["slow"]
    assert built == [1] and {r["training_seeds"] for r in whole["rows"] if r["method"] == "slow"} == {1}


TRAINED = {"prior": {"use": False}, "images": {"count": 1, "steps": 1, "masks": "full"}, "train": {"steps": 2}}


@pytest.mark.slow
def test_mace_is_trained_as_by_itself_and_its_loras_are_those_of_all_that_need_the_same(pipe, tmp_path, drawn):
    found = planned_of({**MANY, "kept": [ROWS["cat"]]}, tmp_path)
    rows = [Way(name, "tuned", TRAINED) for name in ("mace", "mace-added-up", "mace-without-cfis")]
    folder, options = tmp_path / "out", {"classifier": Judge(), "batch": 4}
    drawn["stop"] = 20  # the original and a part of the method
    with pytest.raises(KeyboardInterrupt):
        compare(pipe, found, [ORIGINAL, rows[0]], folder, **options)
    (kept,) = (folder / "edits").glob("mace-tuned-000-*.safetensors")
    own = build(pipe, found.erasures[0], "mace", TRAINED, task="object", kept=["cat"])
    weights = {name: w.detach() for name, w in kv_weights(pipe.unet).items()}
    for (name, a), (_, b) in zip(Erasure.load(kept).weights(weights), own.weights(weights), strict=True):
        assert (a - b).abs().max() < 1e-5, name
    (spent,) = (folder / "work" / "seconds").iterdir()
    assert 0 < seconds(spent) < 1000
    spent.write_text('{"seconds": 1000.0}')
    drawn["stop"] = None
    whole = results.read(compare(pipe, found, [ORIGINAL, *rows], folder, **options))
    time, encoder, memory = (
        {r["method"]: r["mean"] for r in whole["rows"] if r["metric"] == metric}
        for metric in ("time, s", "time in the text encoder, s", "peak memory, MB")
    )
    assert time["mace"] < 1000 < time["mace-added-up"] and time["mace-without-cfis"] < 1000
    assert set(encoder) == {"mace"} and min(memory["mace-added-up"], memory["mace-without-cfis"]) >= memory["mace"]
    why = next(r["why"] for r in whole["not_measured"] if r["metric"] == "time in the text encoder, s"
               and r["method"] == "mace-added-up (tuned)")  # fmt: skip
    assert "LoRAs were there before" in why
    assert len([*(folder / "work" / "loras").glob("*.safetensors")]) == 2, "with CFIS and without it"
    assert len([*(folder / "work" / "images").iterdir()]) == 2, "of the ship and of the frog, drawn once"
    assert whole["environment"]["settings"]["mace (tuned)"]["train"]["steps"] == 2


@pytest.mark.slow
def test_a_preset_that_changed_is_measured_anew(pipe, tmp_path, monkeypatch):
    """What MACE's settings leave open is what the preset says today."""
    built, found = [], planned_of(MANY, tmp_path)
    monkeypatch.setattr(measure, "build", lambda *args, **options: built.append(args[2]) or build(*args, **options))
    rows = [ORIGINAL, Way("mace-stage-1", "tuned", {"prior": {"use": False}}), Way("uce", "published")]
    for lr in (1.0, 1.0, 2.0):
        monkeypatch.setitem(values.MINI_TRAIN, "object", {"lr": lr})
        compare(pipe, found, rows, tmp_path / "out", classifier=Judge(), batch=4)
    assert built == ["mace-stage-1", "uce", "mace-stage-1"]


def test_best_is_measured_anew_when_something_is_chosen(tmp_path, monkeypatch):
    run = measure.Measuring(planned_of(MANY, tmp_path), None, None, tmp_path)
    before = run._key(Way("mace-best", "tuned"), (0, 0))
    monkeypatch.setattr(values, "BEST", {"object": {"train": {"until": 0.5}}})
    assert run._key(Way("mace-best", "tuned"), (0, 0)) != before


def test_a_method_of_one_s_own_is_measured_anew_when_its_code_is_edited(tmp_path):
    measuring, keys = measure.Measuring(planned_of(MANY, tmp_path), None, None, tmp_path), []
    try:
        for factor in (1, 2, 2):
            path = tmp_path / f"{factor}.py"
            path.write_text(f"def mine(request, settings):\n    return {factor}\n")
            spec = importlib.util.spec_from_file_location(f"mine_{factor}", path)
            spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
            register("mine", Settings)(module.mine)
            keys.append(measuring._key(Way("mine", "published"), (0, 0)))
    finally:
        _METHODS.pop("mine", None)
    assert keys[0] != keys[1] == keys[2]


@pytest.mark.parametrize("values", [{"synonyms": ["boat"]}, {"super": "a boat"}])
def test_a_task_whose_names_are_described_anew_is_another_run(pipe, tmp_path, values):
    run(pipe, planned_of(ALONE, tmp_path), tmp_path / "out", [])
    edited = {**ALONE, "erased": [ROWS["ship"] | values, *ALONE["erased"][1:]]}
    with pytest.raises(MaceError, match=r"pictures of another run \(erased differ\)"):
        run(pipe, planned_of(edited, tmp_path), tmp_path / "out", [])


def test_another_run_s_folder_is_refused(pipe, tmp_path):
    found = planned_of(MANY, tmp_path)
    run(pipe, found, tmp_path / "out", [])
    with pytest.raises(MaceError, match=r"pictures of another run .*seeds differ"):
        run(pipe, planned_of(MANY, tmp_path, seeds=1), tmp_path / "out", [])
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with locked(tmp_path / "out" / ".lock", "it"), pytest.raises(MaceError, match="Another process is at work"):
        run(pipe, found, tmp_path / "out", [])
    with pytest.raises(MaceError, match="holds no such run, but something else"):
        run(pipe, found, tmp_path / "other", [])


@pytest.mark.slow
def test_an_engine_measures_rows_in_processes_of_their_own(tmp_path, monkeypatch):
    from macelib import load_pipeline
    from macelib.batch import make_engine

    monkeypatch.setattr(pictures, "generate", generate)  # other processes draw, too
    tiny_pipeline("sd").save_pretrained(tmp_path / "model")
    tiny_judge(KNOWN).save_pretrained(tmp_path / "judge")
    pipe, found = load_pipeline(str(tmp_path / "model"), device="cpu"), planned_of(MANY, tmp_path, profile="quick")
    options = {"classifier": str(tmp_path / "judge")}
    here = run(pipe, found, tmp_path / "here", METHODS, **options)
    there = run(pipe, found, tmp_path / "there", METHODS, engine=make_engine("local", jobs=1, threads=1), **options)
    assert untimed(here) == untimed(there)
    with pytest.raises(MaceError, match="name it in text"):
        run(pipe, found, tmp_path / "objects", ["uce"], engine=make_engine("local"))


def test_names_that_are_not_known_are_refused_before_anything_is_drawn(pipe, tmp_path, drawn):
    found = planned_of({**MANY, "kept": [ROWS["cat"] | {"name": "zebra"}]}, tmp_path)
    with pytest.raises(MaceError, match="knows no concept 'zebra'"):
        run(pipe, found, tmp_path / "out")
    with pytest.raises(MaceError, match="no metric 'Acc_x'; near it: Acc_"):
        run(pipe, planned_of(MANY, tmp_path), tmp_path / "out", metrics=["Acc_x"])
    with pytest.raises(MaceError, match="among those that are measured 'mace'; near it: uce"):
        run(pipe, planned_of(MANY, tmp_path), tmp_path / "out", ["uce"], against="mace")
    with pytest.raises(MaceError, match=r"nudenet is needed here .*macelib\[explicit\]"):
        run(pipe, planned_of(MANY, tmp_path), tmp_path / "out", classifier="nudenet")
    with pytest.raises(MaceError, match="seeds is 0; allowed: 1 or more"):
        planned_of(MANY, tmp_path, seeds=0)
    assert not drawn["jobs"] and "H_c difference" in metric_names(planned_of(MANY, tmp_path))
