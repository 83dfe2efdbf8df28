"""Settings: by kind, from YAML, and the sentence for what is not valid."""

import dataclasses
import doctest
from importlib import import_module

import pytest
import yaml

from macelib import config as module
from macelib.config import EraseConfig, FuseConfig, ImagesConfig, RefineConfig, TrainOptions
from macelib.errors import MaceError
from macelib.presets import KINDS, PRESETS, values


def test_a_set_field_holds_for_every_kind_and_an_unset_one_is_read_from_the_table():
    config = EraseConfig(seed=5, train=TrainOptions(steps=7))
    for kind in ("object", "style"):
        training = config.training(kind)
        row = values("mini", kind)["train"]
        assert training.steps == 7 and training.seed == 5 and training.lr == row["lr"]
    assert EraseConfig(defaults="celebrity").training("object").lr == values("mini", "celebrity")["train"]["lr"]
    assert EraseConfig().image_count("object") == 8
    assert EraseConfig(images=ImagesConfig(count=2)).image_count("object") == 2
    assert EraseConfig(images=ImagesConfig(masks="grounding")).mask_source("style") == "full"


def test_stages_may_be_numbers_as_yaml_and_papermill_read_them():
    assert EraseConfig.from_dict({"stages": 1}) == EraseConfig(stages=1) == EraseConfig(stages="1")
    assert EraseConfig().stages == "all" and EraseConfig.from_dict({"stages": "1+2"}).stages == "1+2"


def test_every_training_setting_can_be_set():
    from macelib.method.lora.train import TrainConfig

    ours = {f.name for f in dataclasses.fields(TrainOptions)} | {"seed"}
    assert ours == {f.name for f in dataclasses.fields(TrainConfig)}


def test_names_to_keep_are_the_domain_prior():
    assert doctest.testmod(module).failed == 0
    kept = EraseConfig(seed=3).keeping(["cat", "dog", "cat"])
    assert kept.seed == 3 and len(kept.prior.domain) == 60 and kept.prior.lambda3 is None
    assert kept.prior.names == ("cat", "dog")  # their own tokens alone
    assert kept.of("celebrity").prior.lambda3 == 250 and kept.of("object").prior.lambda3 == 1
    assert kept.defaults is None and EraseConfig(defaults="style").keeping(["cat"], 2).prior.lambda3 == 2


def test_yaml_round_trip(tmp_path):
    config = EraseConfig.from_dict({"seed": 2, "prior": {"domain": ["Ana"]}, "train": {"lr": "1e-4"}})
    assert config.train.lr == 1e-4 and config.prior.domain == ("Ana",)
    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump(EraseConfig.to_dict(config) | {"prior": {"domain": ["Ana"]}}))
    assert EraseConfig.load(path) == config
    path.write_text("")
    assert EraseConfig.load(path) == EraseConfig()


@pytest.mark.parametrize(
    "values, sentence",
    [
        ({"stepz": 1}, "stepz is not a setting; choose from seed"),
        ({"train": {"stepz": 1}}, "train.stepz is not a setting; choose from train.rank"),
        ({"train": {"steps": 1.5}}, "train.steps is 1.5; allowed: a whole number or nothing"),
        ({"train": {"steps": True}}, "train.steps is True; allowed: a whole number"),
        ({"train": {"lr": "fast"}}, "train.lr is 'fast'; allowed: a number"),
        ({"train": {"timesteps": "all"}}, "train.timesteps is 'all'; allowed: cfis, uniform, adaptive"),
        ({"train": 3}, "train is 3; allowed: a mapping"),
        ({"stages": 3}, "stages is 3; allowed: 1, 2, 1+2, all"),
        ({"stages": True}, "stages is True; allowed: 1, 2, 1+2, all"),
        ({"refine": {"lambda1": -1}}, "refine.lambda1 is -1.0; allowed: 0 or more"),
        ({"refine": {"lambda0": float("nan")}}, "refine.lambda0 is nan; allowed: a number"),
        ({"images": {"count": 0}}, "images.count is 0; allowed: 1 or more"),
        ({"images": {"fallback": ["full", "alpha"]}}, "images.fallback[1] is 'alpha'; allowed: attention, drawing"),
        ({"images": {"fallback": "full"}}, "images.fallback is 'full'; allowed: a list of attention, drawing"),
        ({"train": {"t1": 5000, "t2": 6000}}, "train.t1 is 5000; allowed: 0 to 999"),
        ({"train": {"gamma": 1e-20}}, "train.gamma is 1e-20; allowed: 1e-06 or more"),
        ({"prior": {"use": "no"}}, "prior.use is 'no'; allowed: true or false"),
        ({"prior": {"domain": "Ana"}}, "prior.domain is 'Ana'; allowed: a list of text"),
        ([1], "The settings is"),
        ({"rows": {"object": 5}}, "rows.object: "),
        ({"rows": {"object": {"train": {"rnak": 3}}}}, "rows.object: train.rnak is not a setting"),
        ({"rows": {"thing": {}}}, "rows has 'thing'; allowed: "),
    ],
)
def test_what_is_not_valid_is_named(values, sentence):
    with pytest.raises(MaceError) as error:
        EraseConfig.from_dict(values)
    assert sentence in str(error.value)


def test_what_is_written_in_python_is_read_as_from_a_file():
    rows = {"train": {"lr": "1e-3", "rank": 4}, "images": {"guidance": "7.5"}, "prior": {"domain": ["a cat"]}}
    config = EraseConfig(train=rows["train"], images=ImagesConfig(guidance="7.5"), prior={"domain": ["a cat"]})
    assert config == EraseConfig.from_dict(rows) == EraseConfig(**rows)
    assert (config.train.lr, config.images.guidance, config.prior.domain) == (1e-3, 7.5, ("a cat",))
    assert isinstance(config.train, TrainOptions)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: EraseConfig(train={"stepz": 1}), "train.stepz is not a setting"),
        (lambda: EraseConfig(train=ImagesConfig()), "train is ImagesConfig.*; allowed: a mapping of fields"),
        (lambda: EraseConfig(train=TrainOptions(lr="fast")), "train.lr is 'fast'; allowed: a number"),
        (lambda: EraseConfig.preset("paper", task="objects", count="1"), "count is '1'; allowed: a whole number"),
        (lambda: EraseConfig.preset("paper", task=["objects"]), "There is no task"),
        (lambda: EraseConfig.preset("paper", task="objects", concept=5), "concept is 5: give the name"),
        (lambda: EraseConfig.load(None), "The settings file is None: give the path of a file"),
    ],
)
def test_other_types_are_named_in_python_too(make, sentence):
    with pytest.raises(MaceError, match=sentence):
        make()


def test_every_value_of_a_row_is_a_setting(monkeypatch):
    monkeypatch.setattr(import_module("macelib.presets.values"), "BEST", {"object": {"refine": {"rounds": 1}}})
    for preset in PRESETS:
        for kind in KINDS:
            full = EraseConfig(preset_name=preset).of(kind)
            for section in ("prior", "refine", "images", "train", "fuse"):
                open_ = {name for name, value in dataclasses.asdict(getattr(full, section)).items() if value is None}
                assert open_ <= {"autocast", "domain", "guidance"}, f"{preset}, {kind}: {section} leaves {open_} open"


def test_unreadable_file_and_direct_use(tmp_path):
    with pytest.raises(MaceError, match="cannot be read"):
        EraseConfig.load(tmp_path / "absent.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(MaceError, match="give a YAML file"):
        EraseConfig.load(tmp_path / "bad.yaml")
    with pytest.raises(MaceError, match="seed is -1"):
        EraseConfig(seed=-1)
    with pytest.raises(MaceError, match=r"refine\.lambda0"):
        EraseConfig(refine=RefineConfig(lambda0=-0.5))
    with pytest.raises(MaceError, match=r"fuse\.method is 'Naive'; allowed: closed, naive"):
        EraseConfig(fuse=FuseConfig(method="Naive"))
    with pytest.raises(MaceError, match=r"refine\.products is 'fp32'"):
        EraseConfig(refine=RefineConfig(products="fp32"))
