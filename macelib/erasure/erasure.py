"""The artefact: an erasure that is megabytes, applied and removed in place, and re-fused per concept.

An erasure holds, per concept, a LoRA (B_i, D_i) and the factors of its statistics (X_i, G_i, C_i), and the prior P.
The text-space map R (Eq. 2) and the fusion (R̃, D*; Eq. 7) follow from them by two d x d solves, so adding, leaving out
or scaling a concept needs no model pass. Where the model reads a pooled text, a second map follows from its rows.
"""

import dataclasses
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path

import torch
from torch import Tensor

from ..concepts import Concept
from ..config import EraseConfig
from ..errors import MaceError
from ..models.about import versions  # noqa: F401 (one of this package's names)
from ..models.entrances import denoiser, text_weights
from ..models.swap import base_hash, originals, remove, take_back, write
from . import store
from .export import export
from .fused import Fused
from .part import STRONGEST, Part

log = logging.getLogger(__name__)
GROWTH = 1.5  # of the norm of the weights, above which bfloat16 is too coarse for them


@dataclass(frozen=True, eq=False, repr=False)
class Erasure(Fused):
    """Erased concepts of one base model; every method that changes it returns a new one."""

    def __repr__(self) -> str:
        held = ", ".join(f"{p.concept.name} -> {p.concept.anchor} x {p.strength:g}" for p in self.parts[:8])
        return f"<Erasure of {len(self.parts)} concepts: {held}{', ...' if len(self.parts) > 8 else ''}>"

    # --- what is erased -------------------------------------------------------------------------------------------

    @property
    def title(self) -> str:
        """What tables say of its settings: their preset, and where they are not its own."""
        return self.config.title

    @property
    def concepts(self) -> list[Concept]:
        """The erased concepts."""
        return [part.concept for part in self.parts]

    @property
    def strengths(self) -> dict[str, float]:
        """Strength by name of concept."""
        return {part.concept.name: part.strength for part in self.parts}

    def without(self, *names: str) -> "Erasure":
        """The erasure without these concepts (names, or one list of them); MaceError for a name it does not hold."""
        chosen = self._names(names)
        return self.of([p for p in self.parts if p.concept.name not in chosen])

    def only(self, *names: str) -> "Erasure":
        """The erasure of these concepts alone (names, or one list of them); MaceError for a name it does not hold."""
        chosen = self._names(names)
        return self.of([p for p in self.parts if p.concept.name in chosen])

    def scaled(self, strengths: Mapping[str, float] | float) -> "Erasure":
        """The erasure with other strengths, by name or one for all: 0 draws the concept as before, 1 erases it.

        MaceError for a name that it does not hold, and for a strength that is no number from 0 to `STRONGEST`.
        """
        if not isinstance(strengths, Mapping):
            strengths = dict.fromkeys(self.strengths, strengths)
        self._names(strengths)
        for name, strength in strengths.items():
            is_number = isinstance(strength, Real) and not isinstance(strength, bool)
            if not (is_number and 0 <= strength <= STRONGEST):
                limits = f"0 (as before) to {STRONGEST:g} (1: erased)"
                raise MaceError(f"The strength of {name!r} is {strength!r}; allowed: {limits}.")
        new = [dataclasses.replace(p, strength=float(strengths.get(p.concept.name, p.strength))) for p in self.parts]
        return self.of([a if a.strength == b.strength else b for a, b in zip(self.parts, new, strict=True)])

    def __add__(self, other: "Erasure") -> "Erasure":
        """Both erasures as one; the settings of stages 1 and 3 and the order are the left one's.

        Priors that differ are averaged over the concepts. MaceError where the bases differ or a concept is in both.
        """
        if not isinstance(other, Erasure):
            return NotImplemented
        if self.base != other.base or self.layers != other.layers:
            raise MaceError("The two erasures were made for different models; add erasures of the same base only.")
        if both := sorted(set(self.strengths) & set(other.strengths)):
            raise MaceError(f"Both erasures hold {', '.join(both)}; leave it out of one with .without(...).")
        if not self.parts or not other.parts:
            return self if self.parts else other
        other._check_stages(self.config)
        total = self.of([*self.parts, *other.parts])
        if self.prior_key == other.prior_key and _same(self.P, other.P):
            return total
        log.warning(
            "The two priors differ: each still holds captions that name the other's concepts. Erase them together, or "
            "give both one prior that names none of them."
        )
        share = len(self.parts) / len(total.parts)
        P, pooled = (_mean(a, b, share) for a, b in ((self.P, other.P), (self.pooled_P, other.pooled_P)))
        return total.with_prior(P, f"{self.prior_key}+{other.prior_key}", pooled)

    def with_prior(self, P: Tensor | None, key: str = "", pooled: Tensor | None = None) -> "Erasure":
        """The erasure re-fused with another prior: P (d, d), and (p, p) of the pooled text, normalised per caption."""
        return dataclasses.replace(self, P=P, prior_key=key, pooled_P=pooled)

    def with_config(self, config: EraseConfig) -> "Erasure":
        """The erasure re-fused with other settings of stages 1 and 3.

        (lambda0, lambda1, lambda2, rounds, gamma, null_space, method, stages, written.)
        MaceError for `stages` whose LoRAs it does not hold, and for `rounds` where it was made without.
        """
        if not isinstance(config, EraseConfig):
            raise MaceError(f"config is {config!r}: give an EraseConfig, such as EraseConfig.from_dict({{...}}).")
        self._check_stages(config)
        if config.refine.rounds and self.H is None:
            raise MaceError("refine.rounds asks for sums over the model's layers that this erasure lacks: erase again.")
        return dataclasses.replace(self, config=config)

    def _check_stages(self, config: EraseConfig) -> None:
        """MaceError where the LoRAs that `config.stages` needs are missing, or were trained for other weights."""
        trained = any(part.D.numel() for part in self.parts)
        missing = config.stages != "1" and not trained
        if self.parts and (missing or (config.stages == "2") != (self.config.stages == "2")):
            raise MaceError(
                f"stages is {config.stages!r}, and these concepts were erased with stages {self.config.stages!r}: "
                "their LoRAs are missing, or for other weights; erase them again."
            )

    def _names(self, names: Iterable) -> set[str]:
        held, flat = ", ".join(self.strengths) or "none", set()
        for name in names:
            flat |= {*name} if isinstance(name, Iterable) and not isinstance(name, str) else {name}
        if wrong := [name for name in flat if not isinstance(name, str)]:
            raise MaceError(f"{wrong[0]!r} is no name: give names of this erasure's concepts; it holds {held}.")
        if missing := sorted(flat - set(self.strengths)):
            raise MaceError(f"{', '.join(missing)} is not in this erasure; it holds {held}.")
        return flat

    def of(self, parts: Iterable[Part]) -> "Erasure":
        """The same with other parts; the running sums follow by the parts that left and came, where those are fewer."""
        parts = tuple(parts)
        new = dataclasses.replace(self, parts=parts)
        before, after = {id(p): p for p in self.parts}, {id(p): p for p in parts}
        left, came = [before[i] for i in before.keys() - after], [after[i] for i in after.keys() - before]
        if "_sums" in self.__dict__ and len(left) + len(came) < len(parts):
            sums = self._sums.clone()
            for sign, changed in ((-1, left), (1, came)):
                for part in changed:
                    sums += sign * part.sums
            new.__dict__["_sums"] = sums
        return new

    # --- in the model ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def apply(self, pipe, force: bool = False) -> "Erasure":
        """Write W* = W R̃ + Σ B_i D*_i into the pipeline, in place; what another erasure wrote there is replaced.

        MaceError where the pipeline is not the one it was made for, unless `force` and the shapes agree, and where
        something else has changed the weights that another erasure wrote.
        """
        self.check(pipe, force)
        take_back(pipe)
        weights, W = text_weights(denoiser(pipe)), originals(denoiser(pipe))
        new = dict(self.weights({name: w.to(weights[name].device) for name, w in W.items()}))
        write(denoiser(pipe), W, new)
        if denoiser(pipe).dtype == torch.bfloat16 and (growth := _norm(new) / _norm(W)) > GROWTH:
            log.warning(
                "The erased weights are %.1f times as large as the original ones, and bfloat16 keeps eight bits of "
                "them: names that stay may be drawn worse. Load the model in float32.",
                growth,
            )
        return self

    def remove(self, pipe) -> None:
        """Give the pipeline its original weights back, bit for bit; nothing happens where no erasure is applied.

        MaceError where something else has changed the weights since.
        """
        remove(pipe)

    def check(self, pipe, force: bool = False) -> None:
        """MaceError where the pipeline is not the one it was made for; with `force`, only where shapes differ."""
        shapes = {name: tuple(w.shape) for name, w in text_weights(denoiser(pipe)).items()}
        own, rest = {name: (out, self.width) for name, out in self.layers.items()}, dict(shapes)
        tokens = {name: rest.pop(name, None) for name in own}
        fits = all(name in rest and rest.pop(name)[1] >= p for name, p in self.pooled.items()) and not rest
        called = f" (called {self.versions['model']} when it was made)" if "model" in self.versions else ""
        if not fits or tokens != own:
            raise MaceError(
                f"This erasure was made for another base model{called}: it has {_said(own)}"
                f"{' and one for the pooled text' if self.pooled else ''}, the pipeline has other shapes"
                f" ({_said(shapes)}): load the model that it was made for, or erase again."
            )
        if not force and base_hash(pipe) != self.base:
            raise MaceError(
                f"This erasure was made for another base model{called}, or for this one in another precision (the "
                "weights differ): load that model in the dtype it was made with, or pass force=True to apply it all "
                "the same."
            )

    # --- on disk --------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write everything into one safetensors file; `load` gives it back exactly."""
        return store.save(self, path)

    @classmethod
    def load(cls, path: str | Path) -> "Erasure":
        """Read a file that `save` wrote; MaceError for one that is missing, cut short, damaged or of another kind."""
        return cls(**store.load(path))

    def export(self, pipe, folder: str | Path, format: str = "pipeline", force: bool = False, **options) -> Path:
        """Write the erased model for other programs: "pipeline", "weights" or "lora" (see `macelib.erasure.export`)."""
        return export(self, pipe, folder, format, force, **options)


def _mean(a: Tensor | None, b: Tensor | None, share: float) -> Tensor | None:
    """share · a + (1 − share) · b, where None counts as zero; None of two."""
    if a is None or b is None:
        return share * a if a is not None else b if b is None else (1 - share) * b
    return share * a + (1 - share) * b


def _said(shapes: Mapping[str, tuple[int, int]]) -> str:
    """Layers in words, by their shapes (out, in)."""
    outs, widths = ({shape[i] for shape in shapes.values()} for i in (0, 1))
    return f"{len(shapes)} layers of {min(outs)} to {max(outs)} for text embeddings of {', '.join(map(str, widths))}"


def _norm(weights: Mapping[str, Tensor]) -> float:
    """Frobenius norm of all together."""
    return float(torch.stack([w.float().norm().cpu() for w in weights.values()]).norm())


def _same(P: Tensor | None, Q: Tensor | None) -> bool:
    """Whether two priors are one, but for what another machine rounds otherwise."""
    return P is Q if P is None or Q is None else bool((P - Q).norm() <= 1e-6 * P.norm())
