"""What the concepts of an erasure become together: stages 1 and 3, solved when asked for, and the weights they give."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from ..config import EraseConfig
from ..method.fuse import Fusion, changed, finite, fuse_sums, less_identity, null_space
from ..method.pooled import pooled_sums, share_left
from ..method.refine import Refinement, solve_refinement
from ..method.rounds import refine_in_rounds
from ..models.entrances import pooled_columns
from .part import Part


@dataclass(frozen=True, eq=False, repr=False)
class Fused:
    """The parts of an erasure, the prior and the settings, and what they are solved to."""

    parts: tuple[Part, ...]
    layers: dict[str, int]  # name -> out features of every to_k and to_v, in execution order
    width: int  # d, of a text embedding
    base: str  # hash of the model it was made for
    P: Tensor | None = None  # (d, d) fp64, Σ e eᵀ of the prior per caption
    prior_key: str = ""
    config: EraseConfig = field(default_factory=EraseConfig)
    versions: dict[str, str] = field(default_factory=dict)  # of the libraries it was made with; "model": its name
    pooled: dict[str, int] = field(default_factory=dict)  # name -> p of the layer that reads the pooled text
    pooled_P: Tensor | None = None  # (p, p) fp64, Σ u uᵀ of the prior per caption
    H: Tensor | None = None  # (d, d) fp64, Σ WᵀW over all layers, where refine.rounds asks for it
    truncation: float = 0.0  # of R as made: ||R − exact|| / ||exact − I||; the factors of wide models are not whole

    def prior_weight(self, weight: float | str) -> float:
        """What multiplies P in Eq. 2 or 7: it counts for each concept. 0 without a prior.

        weight: λ1 or λ2, one for all, or the name of the setting ("refine.lambda1"), of which each has its own.
        """
        return math.fsum(self._each(weight)) if self.P is not None else 0.0

    def ridge(self, weight: float | str) -> float:
        """What multiplies I in Eq. 2 or 7: λ0 (as in `prior_weight`) as many times as the concepts weigh."""
        weights = [part.weight for part in self.parts] or [1.0]
        return math.fsum(w * own for w, own in zip(weights, self._each(weight), strict=True))

    def _whole(self, section: str = ""):
        """Settings (of a section) that are one for all concepts; of an open configuration those of the first's kind."""
        config = self.config.of(self._kinds[0])
        return getattr(config, section) if section else config

    @property
    def _kinds(self) -> list[str]:
        """The kind of every concept; an object's where there is none."""
        return [part.concept.kind for part in self.parts] or ["object"]

    def _each(self, setting: float | str) -> list[float]:
        """A setting of every concept, by its kind."""
        kinds = self._kinds
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
        return self._left_out(self.width) or self.refined(*self._sums[:2])

    def _left_out(self, width: int) -> Refinement | None:
        """I where stage 1 changes nothing: it is left out, or there is no concept."""
        if self.parts and self.config.stages != "2":
            return None
        return Refinement(torch.eye(width, dtype=torch.float64), condition=1.0, residual=0.0)

    def refined(self, X: Tensor, G: Tensor) -> Refinement:
        """Eq. 2 with the sums X, G (d, d) of all concepts, the prior and the settings, adversarial rounds included.

        MaceError where rounds ask for an H that is not kept.
        """
        own = self._whole("refine")
        weak = [p for p in self.parts if own.rounds and p.strength != 1]
        kept = sum(p.weight * (1 - p.strength) * p.statistics.G() for p in weak)
        lambdas = self.prior_weight("refine.lambda1"), self.ridge("refine.lambda0")
        return refine_in_rounds(X, G, self.P, *lambdas, own.rounds, self.H, own.gamma, kept)

    @cached_property
    def fusion(self) -> Fusion:
        """Stage 3, Eq. 7 (or Eq. 6): R̃ (d, d) and the D*_i of all concepts, side by side per layer: (L, Σr, d)."""
        f, C = self.config.fuse, self._sums[2]
        D = [torch.zeros(len(self.layers), 0, self.width), *(p.strength * p.D for p in self._fused)]
        if not self.parts or self.config.stages != "all" or f.method == "naive":
            return Fusion(self.refinement.R, torch.cat(D, 1))
        DC = [
            p.weight * p.statistics.times_C(M.flatten(0, 1)).view(M.shape)
            for p, M in zip(self._fused, D[1:], strict=True)
        ]
        lambdas = self.prior_weight("fuse.lambda2"), self.ridge("fuse.lambda0")
        return fuse_sums(self.refinement.R, torch.cat(DC, 1), C, self.P, *lambdas, self.directions)

    @cached_property
    def directions(self) -> Tensor | None:
        """The directions (d, q) that the fusion may change, see `null_space`; None: all."""
        return null_space(self.P, self._whole("fuse").null_space)

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
        if (identity := self._left_out(p)) is not None:
            return identity
        sums = pooled_sums(((part.pooled, part.weight, part.strength) for part in self.parts), p)
        weight = self.prior_weight("refine.lambda1") if self.pooled_P is not None else 0.0
        return solve_refinement(*sums, self.pooled_P, weight, self.ridge("refine.lambda0"))

    @property
    def pooled_left(self) -> dict[str, float]:
        """By concept, the share of its difference from its anchor that the pooled text keeps: 0 none, 1 all of it."""
        if not self.pooled:
            return {}
        return {part.concept.name: share_left(self.pooled_refinement.R, part.pooled) for part in self.parts}

    @cached_property
    def lora(self) -> dict[str, tuple[Tensor, Tensor]]:
        """The fused LoRA by layer: the B_i side by side (out, Σr), the D*_i one below the other (Σr, d); float32.

        Of the layers that are written: with `written` "v" those of the values.
        """
        names = [*self.layers] if self._whole().written == "kv" else [n for n in self.layers if n.endswith(".to_v")]
        B = [torch.zeros(sum(self.layers.values()), 0), *(p.B for p in self._fused)]
        B = torch.cat(B, 1).split(list(self.layers.values()))
        both = dict(zip(self.layers, zip(B, self.fusion.D_star.float(), strict=True), strict=True))
        return {name: both[name] for name in names}

    def weights(self, W: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """W* = W R̃ + Σ B_i D*_i of every layer that is written (out, d), computed in float32, in device and dtype of W.

        Of a layer that reads the pooled text, the text's columns become W R; the others stay.
        """
        change = less_identity(self.fusion.R_tilde).float()
        for name, (B, D) in self.lora.items():
            yield name, changed(W[name], change, name, B, D)
        for name in self.pooled:
            yield name, finite(pooled_columns(W[name], self.pooled_refinement.R), name)
