"""Settings as files of earlier versions name them."""

from typing import Any

OLD = {  # of train: name -> today's name, today's words
    "squared": ("loss", {True: "squared", False: "norm"}),
    "include_eos": ("S", {True: "own+tail", False: "own"}),
    "D": ("D", {"random": "scaled"}),
}


def renamed(values: Any) -> Any:
    """The settings with today's names for those of earlier versions."""
    if not isinstance(values, dict) or not isinstance(values.get("train"), dict):
        return values
    train = dict(values["train"])
    for old, (new, words) in OLD.items():
        if old in train and (value := train.pop(old)) is not None:
            train[new] = words.get(value, value)
    return {**values, "train": train}
