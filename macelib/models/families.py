"""Families: what is known of a kind of model, one record each; `register` adds one of your own.

A pipeline is of the family whose class and configs it has, wherever it was loaded from. One whose text has another
width, such as a small random one, is of none: `UNKNOWN`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from . import mini
from .mini import Entry

CLIP_OF_PAPER = "openai/clip-vit-large-patch14"
CROSS_ATTENTION = ("attn2.to_k", "attn2.to_v")
Captions = Sequence[str | tuple[str, Sequence[str]]]  # texts, some with what they are about


@dataclass(frozen=True)
class Family:
    """One kind of model."""

    name: str
    classes: tuple[str, ...]  # of its pipeline, or of one that its pipeline derives from
    configs: Mapping[str, Any]  # what tells it apart, the text's width first: {"unet.cross_attention_dim": 768}
    preset: str  # whose settings fill what is left open
    text: tuple[str, ...] = CROSS_ATTENTION  # linear layers that read the text, by the end of their path
    pooled: str | None = None  # the linear layer that reads the pooled text
    reads: str = "CLIP's last hidden states, padding included"  # how its pipeline reads a prompt
    scheduler: Literal["diffusion", "flow"] = "diffusion"  # noise schedule over t, or a straight path over σ
    guidance: float | Callable[[], float] | None = None  # classifier-free guidance scale, or who knows it (`scale`)
    captions: Callable[[], Captions] | None = None  # general captions; None: COCO's, which people get themselves
    judge: str | Callable[[], Any] = CLIP_OF_PAPER  # who looks at pictures: shipped, a folder, a hub id, or a maker
    scorer: str | Callable[[], Any] = CLIP_OF_PAPER  # who measures the CLIP score
    catalogue: Callable[[], tuple[Entry, ...]] | None = None  # what it is known to draw
    companions: Callable[[], Sequence[str]] | None = None  # what it draws beside another thing; None: `COMPANIONS`
    people: tuple[str, ...] = ()  # groups of the catalogue that stand for people
    phrases: Mapping[str, str] = field(default_factory=dict)  # its captions' other words for a super-category
    split: Callable[[], Mapping[str, Sequence[str]]] | None = None  # names of it to choose settings on: erased, kept
    shipped: str = ""  # name of the model that comes with macelib
    note: str = ""  # said wherever its settings are shown

    def fits(self, pipe) -> bool:
        """Whether a pipeline is of this family."""
        lineage = {kind.__name__ for kind in type(pipe).__mro__}
        return not lineage.isdisjoint(self.classes) and all(_config(pipe, k) == v for k, v in self.configs.items())

    def scale(self) -> float | None:
        """Classifier-free guidance scale of its pipelines unless one is given; None: what their call takes."""
        return self.guidance() if callable(self.guidance) else self.guidance


def _config(pipe, path: str) -> Any:
    """An entry of a part's config: "unet.in_channels"."""
    part, _, name = path.partition(".")
    return getattr(getattr(getattr(pipe, part, None), "config", None), name, None)


OTHER = "not the paper's model"
MINI = Family(
    "mini-SD",
    ("StableDiffusionPipeline",),
    {"unet.cross_attention_dim": 384, "unet.in_channels": 8, "unet.sample_size": 16},
    preset="mini",
    guidance=mini.guidance,
    captions=mini.captions,
    judge="mini-judge",
    scorer="mini-clip",
    catalogue=mini.catalogue,
    companions=mini.companions,
    people=mini.PEOPLE,
    phrases=mini.PHRASES,
    split=mini.split,
    shipped="mini-sd",
)
SHIPPED = MINI  # of the model that comes with macelib
UNKNOWN = Family("no known family", (), {}, preset="mini", note="a model of no known family")
_SDXL = ("StableDiffusionXLPipeline",)
_T5 = "T5's last hidden states behind caption_projection, padding masked"
_JOINT = ("context_embedder",)
_POOLED = "time_text_embed.text_embedder.linear_1"
_FLOW = {"scheduler": "flow", "preset": "untested"}
_families = [
    MINI,
    Family("SD 1.x", ("StableDiffusionPipeline",), {"unet.cross_attention_dim": 768}, preset="paper", guidance=7.5),
    Family(
        "SD 2.x", ("StableDiffusionPipeline",), {"unet.cross_attention_dim": 1024}, preset="paper", guidance=7.5,
        reads="OpenCLIP's last hidden states, of its 23 layers; padding included", note=OTHER,
    ),
    Family(
        "SDXL", _SDXL, {"unet.cross_attention_dim": 2048}, preset="paper", guidance=5.0, note=OTHER,
        pooled="add_embedding.linear_1", reads="both encoders' last hidden states but one, side by side; pooled text",
    ),
    Family(
        "PixArt", ("PixArtAlphaPipeline", "PixArtSigmaPipeline"), {"transformer.caption_channels": 4096},
        preset="untested", guidance=4.5, reads=_T5 + "; captions cleaned and lower-cased",
    ),
    Family(
        "Sana", ("SanaPipeline",), {"transformer.caption_channels": 2304}, guidance=4.5, **_FLOW,
        reads="Gemma-2's last hidden states behind caption_norm, after an instruction, padding masked",
    ),
    Family(
        "SD3", ("StableDiffusion3Pipeline",), {"transformer.joint_attention_dim": 4096}, guidance=7.0, **_FLOW,
        text=_JOINT, pooled=_POOLED, reads="two CLIPs padded to T5's width, then T5; padding included; pooled text",
    ),
    Family(
        "FLUX.1", ("FluxPipeline",), {"transformer.joint_attention_dim": 4096}, guidance=3.5, **_FLOW,
        text=_JOINT, pooled=_POOLED, reads="T5's last hidden states, padding included; CLIP's pooled text",
    ),
]  # fmt: skip


def register(family: Family) -> Family:
    """Add a family, or replace the one of its name; it is asked before those that were there."""
    _families[:] = [family, *(known for known in _families if known.name != family.name)]
    return family


def families() -> tuple[Family, ...]:
    """All families, in the order in which they are asked."""
    return tuple(_families)


def family_of(pipe) -> Family:
    """The first family that a pipeline fits; `UNKNOWN` where it is of none."""
    return next((family for family in _families if family.fits(pipe)), UNKNOWN)


def known_entries() -> list[Entry]:
    """All concepts of all catalogues."""
    return [entry for family in _families if family.catalogue for entry in family.catalogue()]
