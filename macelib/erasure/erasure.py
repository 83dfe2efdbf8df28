"""The artefact: an erasure that is megabytes, applied and removed in place, and re-fused per concept.

An erasure holds, per concept, a LoRA (B_i, D_i) and the factors of its statistics (X_i, G_i, C_i), and the prior P.
The text-space map R (Eq. 2) and the fusion (R̃, D*; Eq. 7) follow from them by two d x d solves, so adding, leaving out
or scaling a concept needs no model pass. Where the model reads a pooled text, a second map follows from its rows.
"""

import dataclasses
import logging
import math
import platform
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from .. import __version__
from ..concepts import Concept
from ..config import EraseConfig
from ..errors import MaceError
from ..method.fuse import Fusion, changed, finite, fuse_sums, less_identity
from ..method.pooled import pooled_map, pooled_sums, share_left
from ..method.refine import Refinement, solve_refinement
from ..models.entrances import denoiser, pooled_columns, text_weights
from ..models.swap import base_hash, originals, remove, take_back, write
from . import store
from .export import export
from .part import STRONGEST, Part

log = logging.getLogger(__name__)
GROWTH = 1.5  # of the norm of the weights, above which bfloat16 is too coarse for them


@dataclass(frozen=True, eq=False, repr=False)
class Erasure:
    """Erased concepts of one base model; every method that changes it returns a new one."""

    parts: tuple[Part, ...]
    layers: dict[str, int]  # name -> out features of every to_k and to_v, in execution order
    width: int  # d, of a text embedding
    base: str  # hash of the model it was made for
    P: Tensor | None = None  # (d, d) fp64, Σ e eᵀ of the prior per caption
    prior_key: str = ""
    config: EraseConfig = field(default_factory=EraseConfig)
    versions: dict[str, str] = field(default_factory=dict)
    pooled: dict[str, int] = field(default_factory=dict)  # name -> p of the layer that reads the pooled text
    pooled_P: Tensor | None = None  # (p, p) fp64, Σ u uᵀ of the prior per caption
    truncation: float = 0.0  # of R as made: ||R − exact|| / ||exact − I||; the factors of wide models are not whole

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
        """The erasure with other strengths, by name or one for all: 0 draws the concept as before, 1 erases it."""
        if not isinstance(strengths, Mapping):
            strengths = dict.fromkeys(self.strengths, strengths)
        self._names(strengths)
        for name, strength in strengths.items():
            if not 0 <= strength <= STRONGEST:
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
        """The erasure re-fused with other settings of stages 1 and 3 (lambda0, lambda1, lambda2, method, stages).

        MaceError for `stages` whose LoRAs it does not hold.
        """
        self._check_stages(config)
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
        flat = {n for name in names for n in ([name] if isinstance(name, str) else name)}
        if missing := sorted(flat - set(self.strengths)):
            raise MaceError(
                f"{', '.join(missing)} is not in this erasure; it holds {', '.join(self.strengths) or 'none'}."
            )
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

    # --- stages 1 and 3 -------------------------------------------------------------------------------------------

    def prior_weight(self, weight: float | str) -> float:
        """What multiplies P in Eq. 2 or 7: it counts for each concept. 0 without a prior.

        weight: λ1 or λ2, one for all, or the name of the setting ("refine.lambda1"), of which each has its own.
        """
        return math.fsum(self._each(weight)) if self.P is not None else 0.0

    def ridge(self, weight: float | str) -> float:
        """What multiplies I in Eq. 2 or 7: λ0 (as in `prior_weight`) as many times as the concepts weigh."""
        weights = [part.weight for part in self.parts] or [1.0]
        return math.fsum(w * own for w, own in zip(weights, self._each(weight), strict=True))

    def _each(self, setting: float | str) -> list[float]:
        """A setting of every concept, by its kind; of an object where there is none."""
        kinds = [part.concept.kind for part in self.parts] or ["object"]
        if not isinstance(setting, str):
            return [setting] * len(kinds)
        section, name = setting.split(".")
        own = {kind: getattr(getattr(self.config.of(kind), section), name) for kind in set(kinds)}
        return [own[kind] for kind in kinds]

    @cached_property
    def _sums(self) -> Tensor:
        """Σ X_i, Σ G_i, Σ C_i: (3, d, d) fp64."""
        total = torch.zeros(3, self.width, self.width, dtype=torch.float64)
        for part in self.parts:
            total += part.sums
        return total

    @cached_property
    def refinement(self) -> Refinement:
        """Stage 1 of the concepts together, Eq. 2: R (d, d), its condition number and residual; I where it is left out.

        (The setting `stages` leaves it out where it is "2".)
        """
        if self.config.stages == "2":
            return Refinement(torch.eye(self.width, dtype=torch.float64), condition=1.0, residual=0.0)
        X, G, _ = self._sums
        return solve_refinement(X, G, self.P, self.prior_weight("refine.lambda1"), self.ridge("refine.lambda0"))

    @cached_property
    def fusion(self) -> Fusion:
        """Stage 3, Eq. 7 (or Eq. 6): R̃ (d, d) and the D*_i of all concepts, side by side per layer: (L, Σr, d)."""
        f, C = self.config.fuse, self._sums[2]
        D = [torch.zeros(len(self.layers), 0, self.width), *(p.strength * p.D for p in self._fused)]
        if not self.parts or self.config.stages != "all" or f.method == "naive":
            R = self.refinement.R if self.parts else torch.eye(self.width, dtype=C.dtype)
            return Fusion(R, torch.cat(D, 1))
        DC = [
            p.weight * p.statistics.times_C(M.flatten(0, 1)).view(M.shape)
            for p, M in zip(self._fused, D[1:], strict=True)
        ]
        lambdas = self.prior_weight("fuse.lambda2"), self.ridge("fuse.lambda0")
        return fuse_sums(self.refinement.R, torch.cat(DC, 1), C, self.P, *lambdas)

    @property
    def _fused(self) -> tuple[Part, ...]:
        """The parts whose LoRAs count."""
        return () if self.config.stages == "1" else self.parts

    @cached_property
    def pooled_refinement(self) -> Refinement | None:
        """Stage 1 of the pooled text, Eq. 2, as `refinement`: its map is (p, p); None where none is read."""
        if not self.pooled:
            return None
        (p,) = self.pooled.values()
        if self.config.stages == "2":
            return Refinement(torch.eye(p, dtype=torch.float64), condition=1.0, residual=0.0)
        sums = pooled_sums(((part.pooled, part.weight, part.strength) for part in self.parts), p)
        weight = self.prior_weight("refine.lambda1") if self.pooled_P is not None else 0.0
        return pooled_map(sums, self.pooled_P, weight, self.ridge("refine.lambda0") or float(not self.parts))

    @property
    def pooled_left(self) -> dict[str, float]:
        """By concept, the share of its difference from its anchor that the pooled text keeps: 0 none, 1 all of it."""
        if not self.pooled:
            return {}
        return {part.concept.name: share_left(self.pooled_refinement.R, part.pooled) for part in self.parts}

    @cached_property
    def lora(self) -> dict[str, tuple[Tensor, Tensor]]:
        """The fused LoRA by layer: the B_i side by side (out, Σr), the D*_i one below the other (Σr, d); float32."""
        B = [torch.zeros(sum(self.layers.values()), 0), *(p.B for p in self._fused)]
        B = torch.cat(B, 1).split(list(self.layers.values()))
        return dict(zip(self.layers, zip(B, self.fusion.D_star.float(), strict=True), strict=True))

    def weights(self, W: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """W* = W R̃ + Σ B_i D*_i of every layer (out, d), computed in float32 on the device of W, in the dtype of W.

        Of a layer that reads the pooled text, the text's columns become W R; the others stay.
        """
        change = less_identity(self.fusion.R_tilde).float()
        for name, (B, D) in self.lora.items():
            yield name, changed(W[name], change.to(W[name].device), B, D, name)
        for name in self.pooled:
            yield name, finite(pooled_columns(W[name], self.pooled_refinement.R), name)

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
        tokens = {name: shapes.pop(name, None) for name in self.layers}
        fits = all(name in shapes and shapes.pop(name)[1] >= p for name, p in self.pooled.items()) and not shapes
        if not fits or tokens != {name: (out, self.width) for name, out in self.layers.items()}:
            raise MaceError(
                f"This erasure has {len(self.layers)} layers for text embeddings of {self.width}"
                f"{' and one for the pooled text' if self.pooled else ''}, the pipeline has other shapes: load the "
                "model that it was made for."
            )
        if not force and base_hash(pipe) != self.base:
            raise MaceError(
                "This erasure was made for another base model, or for this one in another precision (the weights "
                "differ): load that model in the dtype it was made with, or pass force=True to apply it all the same."
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


def _norm(weights: Mapping[str, Tensor]) -> float:
    """Frobenius norm of all together."""
    return float(torch.stack([w.float().norm().cpu() for w in weights.values()]).norm())


def _same(P: Tensor | None, Q: Tensor | None) -> bool:
    """Whether two priors are one, but for what another machine rounds otherwise."""
    return P is Q if P is None or Q is None else bool((P - Q).norm() <= 1e-6 * P.norm())


def versions() -> dict[str, str]:
    """Versions of the libraries that an erasure is made with."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version(), "macelib": __version__}
    for name in ("torch", "diffusers", "transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found
