"""The gold control: a model whose denoiser was trained without the concepts, as its card says."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ..errors import MaceError
from ..files import data_folder, hash_tensors
from ..models.entrances import denoiser
from ..models.pipelines import SHIPPED
from ..models.text import text_hash

COMMAND = "make world RECIPE=data/factory/without-objects.yaml"  # trains one for the ten objects
FENCED, MADE = re.compile(r"^```yaml\n(.*?)^```", re.DOTALL | re.MULTILINE), re.compile(r"Made by `([^`]+)`")


def card(model: str | Path) -> dict[str, Any]:
    """What the card in a model's folder says: the concepts it was trained `without`, the command; {}: it has none.

    MaceError where it cannot be read.
    """
    path = (data_folder() / str(model) if str(model) in SHIPPED else Path(model).expanduser()) / "README.md"
    if not path.is_file():
        return {}
    try:
        text = path.read_text(encoding="utf-8")
        values = [yaml.safe_load(found) for found in FENCED.findall(text)]
        without = [str(name) for found in values if isinstance(found, dict) for name in found.get("without") or ()]
    except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        raise MaceError(f"The card {path} cannot be read ({error}): restore it.") from error
    made = MADE.search(text)
    return {"without": without, **({"command": made[1]} if made else {})}


def check_card(model: str | Path, names: Sequence[str], required: bool = False) -> dict[str, Any]:
    """`card`; MaceError where there is one that does not list all the names as left out.

    required: MaceError without a card, too, or where it does not say by which command the model was made.
    """
    about = card(model)
    if required and "command" not in about:
        raise MaceError(
            f"{model} has no card that says what it was trained without, and by which command, which is to be "
            f"recorded: give a model made by {COMMAND}."
        )
    if about and (seen := [name for name in names if name not in about["without"]]):
        names, without = ", ".join(seen), ", ".join(about["without"])
        said = f"{model} has seen {names}: its card says that it was trained without {without}."
        if not without:
            said = f"Nothing says that {model} never saw {names}: its card lists nothing as `without: [...]`."
        raise MaceError(f"{said} Give a model that never knew them; for the ten objects: {COMMAND}.")
    return about


def check_never(pipe, never) -> str:
    """The hash of a denoiser that stands in the place of another.

    MaceError where the two models differ in text encoder or autoencoder: it would be attacked with what it cannot read.
    """
    for part, of in (("text encoder", text_hash), ("autoencoder", lambda p: hash_tensors(p.vae.state_dict()))):
        if of(pipe) != of(never):
            raise MaceError(
                f"The model that never knew has another {part} than the one that is attacked: train its denoiser alone "
                f"on the same, as in {COMMAND}."
            )
    return hash_tensors(denoiser(never).state_dict())
