"""The artefact of a method: applied and removed in place, saved, loaded and exported, as an `Erasure` is."""

import dataclasses
import json
import logging
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..concepts import Concept
from ..erasure import versions
from ..erasure.export import check_folder, check_format, new_folder
from ..errors import MaceError, check_path
from ..files import hash_tensors, hash_text, read_tensors, save_tensors
from ..models.pipelines import model_hash
from ..models.swap import base_hash, remove, untouched
from .changes import Change, TextMap, WeightChange, original_parameters
from .registry import Request, source

log = logging.getLogger(__name__)
FORMAT = "macelib-edit-1"
LARGE = 5.0  # ‖R − I‖₂ above which a text map is likely to draw noise
KEPT = ("method", "settings", "base", "notes", "report", "versions")  # fields that are JSON as they are


@dataclass(frozen=True, eq=False, repr=False)
class Edit:
    """What a method made of a list of concepts, for one base model."""

    method: str  # its name in the registry
    concepts: list[Concept]
    settings: dict[str, Any]
    change: Change
    base: str  # hash of the model it was made for
    notes: list[str] = field(default_factory=list)  # what the method cut or left out
    report: dict[str, float] = field(default_factory=dict)  # e.g. columns, ‖R − I‖₂
    versions: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, request: Request, name: str, settings: Any, change: Change) -> "Edit":
        """The edit that a method's change makes; a warning for each note, and for a text map that is far from I."""
        if isinstance(change, TextMap):
            request.report["distance"] = far = float(torch.linalg.matrix_norm(change.R.double() - _eye(change.R), 2))
            if far > LARGE:
                request.note(f"‖R − I‖₂ is {far:.1f}, above {LARGE:g}: the edit may draw noise; raise its ridge.")
        for note in request.notes:
            log.warning("%s: %s", name, note)
        values = dataclasses.asdict(settings)
        made_by = versions()
        about = model_hash(request.pipe), list(request.notes), dict(request.report), made_by
        return cls(name, list(request.concepts), values, change, *about)

    def __repr__(self) -> str:
        held = ", ".join(c.name for c in self.concepts[:8])
        return f"<{self.method} on {len(self.concepts)} concepts: {held}{', ...' if len(self.concepts) > 8 else ''}>"

    @property
    def title(self) -> str:
        """What tables say of its settings: the method's name."""
        return self.method

    @cached_property
    def key(self) -> str:
        """Hash of the change and of the source of its kind, and of what that uses here.

        Two edits with the same key draw the same pictures.
        """
        (tensors, plain), kind = _taken_apart(self.change), type(self.change)
        return hash_text(
            kind.__name__, hash_tensors(tensors), json.dumps(plain, sort_keys=True), source(kind, __package__)
        )

    # --- in the model ---------------------------------------------------------------------------------------------

    def apply(self, pipe, force: bool = False) -> "Edit":
        """Change the pipeline, in place; what an erasure or another edit did there is taken back first.

        MaceError where the pipeline is not the one it was made for, unless `force`.
        """
        self.check(pipe, force)
        remove(pipe)
        undo = self.change.put(pipe)
        pipe._macelib_edit = (self, undo)
        return self

    def remove(self, pipe) -> None:
        """Give the pipeline back as it was, bit for bit; nothing happens where nothing is applied."""
        remove(pipe)

    def check(self, pipe, force: bool = False) -> None:
        """MaceError where the pipeline is not the one it was made for; with `force`, only where shapes differ."""
        if not force and base_hash(pipe) != self.base:
            raise MaceError(
                "This edit was made for another base model, or for this one in another precision (the weights "
                "differ): load that model in the dtype it was made with, or pass force=True to apply it all the same."
            )
        if isinstance(self.change, WeightChange):
            before = original_parameters(pipe.unet)
            try:
                unknown = [n for n, w in self.change.weights(before) if w.shape != before[n].shape]
            except (KeyError, RuntimeError) as error:
                raise MaceError(f"This edit does not fit the pipeline ({error}): load its own model.") from error
            if unknown:
                raise MaceError(f"{unknown[0]} has another shape in this pipeline: load the edit's own model.")

    # --- on disk --------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write everything into one safetensors file; `load` gives it back exactly."""
        tensors, plain = _taken_apart(self.change)
        about = {"format": FORMAT, "change": type(self.change).__name__, "plain": plain}
        about |= {name: getattr(self, name) for name in KEPT}
        about["concepts"] = [dataclasses.asdict(concept) for concept in self.concepts]
        return save_tensors(path, tensors, about)

    @classmethod
    def load(cls, path: str | Path) -> "Edit":
        """Read a file that `save` wrote; MaceError for one that is missing, cut short, damaged or of another kind."""
        check_path(path, "edit")
        about, tensors, checked = read_tensors(path)
        if about.get("format") != FORMAT:
            raise MaceError(f"{path} is not an edit that this version reads ({FORMAT}): make one with `build`.")
        if about.get("change") not in Change.kinds:
            raise MaceError(
                f"{path} holds a {about.get('change')!r} of method {about.get('method')!r}, which is not known here: "
                "import the module that registers it."
            )
        try:
            if not checked or not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
                raise MaceError(f"{path} is damaged (it has no checksum, or holds NaN): copy or make it again.")
            concepts = [
                Concept(**{k: tuple(v) if isinstance(v, list) else v for k, v in c.items()}) for c in about["concepts"]
            ]
            change = _put_together(Change.kinds[about["change"]], tensors, about["plain"])
            return cls(concepts=concepts, change=change, **{name: about[name] for name in KEPT})
        except (LookupError, TypeError, AttributeError) as error:
            raise MaceError(f"{path} is damaged ({error!r}): copy or make it again.") from error

    def export(self, pipe, folder: str | Path, format: str = "pipeline", force: bool = False) -> Path:
        """Write the edited model for other programs: "pipeline" or "weights" (see `macelib.erasure.export`).

        MaceError: another format, an edit that does not live in weights, a folder that holds something.
        """
        check_format(format)
        if not isinstance(self.change, WeightChange):
            raise MaceError(f"{self.method} does not live in weights: it works while macelib draws, and has no export.")
        if format == "lora":
            raise MaceError(f"{self.method} is no LoRA: export it as pipeline or weights.")
        check_folder(folder)
        self.check(pipe, force)
        with new_folder(folder, format) as temporary, untouched(pipe):
            if format == "pipeline":
                self.apply(pipe, force=True)
                pipe.save_pretrained(temporary)
            else:
                new = self.change.weights(original_parameters(pipe.unet))
                weights = {name: w.detach().cpu().contiguous() for name, w in new}
                save_file(weights, temporary / "unet.safetensors")
        return Path(folder)


def _eye(R: Tensor) -> Tensor:
    return torch.eye(len(R), dtype=torch.float64, device=R.device)


def _taken_apart(change: Change) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A change's tensors by field (and key: "field/key"), and its plain values."""
    tensors, plain = {}, {}
    for f in dataclasses.fields(change):
        value = getattr(change, f.name)
        if isinstance(value, Tensor):
            tensors[f.name] = value
        elif isinstance(value, dict) and value and all(isinstance(v, Tensor) for v in value.values()):
            tensors |= {f"{f.name}/{key}": v for key, v in value.items()}
        else:
            plain[f.name] = value
    return tensors, plain


def _put_together(kind: type, tensors: dict[str, Tensor], plain: dict[str, Any]) -> Change:
    """Inverse of `_taken_apart`."""
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in plain.items()}
    for name, tensor in tensors.items():
        name, slash, key = name.partition("/")
        if slash:
            values.setdefault(name, {})[key] = tensor
        else:
            values[name] = tensor
    return kind(**values)
