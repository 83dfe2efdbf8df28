"""Lesson 03: stage 1 in two dimensions and on a model, what R does to prompts, and what λ does."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..concepts import Concept, align, anchored, prompts, templates, with_companions, with_templates
from ..config import EraseConfig
from ..errors import MaceError
from ..job import prior_of
from ..method.refine import solve_refinement
from ..method.sums import accumulate, gram
from ..models.text import encode, tokenizers
from ..show.viz import COLORS, Figure
from ..templates import fill
from .residual import groups
from .shared import TEMPLATE, panels, series

IN_SNOW = "a photo of the {} in the snow"


def toy(seed: int = 0, n: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings with two coordinates: e^f beside a concept, e^g beside its anchor, e^p of other captions; (n, 2)."""
    g = torch.Generator().manual_seed(seed)
    noise = [0.12 * torch.randn(n, 2, generator=g, dtype=torch.float64) for _ in range(3)]
    common = noise[0]  # a token differs between the two prompts by what stands beside it, not by itself
    e_f = torch.tensor([1.6, 0.7], dtype=torch.float64) + common
    e_g = torch.tensor([0.5, 1.5], dtype=torch.float64) + common + 0.3 * noise[1]
    angle = torch.linspace(-1.3, 0.1, n, dtype=torch.float64)
    e_p = 1.4 * torch.stack([angle.cos(), angle.sin()], 1) + noise[2]
    return e_f, e_g, e_p


def toy_figure(e_f: Tensor, e_g: Tensor, e_p: Tensor, lambdas: Sequence[float]) -> Figure:
    """A panel per λ1: where R takes e^f and e^p, both (n, 2); crosses mark where e^f should come, e^g."""
    X, G = accumulate(e_f, e_g)
    fig, axes = panels(len(lambdas), 1.75, 2.9, sharex=True, sharey=True)
    for lam, ax in zip(lambdas, axes, strict=True):
        R = solve_refinement(X, G, gram(e_p), lam, lambda0=0.0).R
        for rows, color, label in ((e_f, COLORS[1], "e_f → R e_f"), (e_p, COLORS[0], "e_p → R e_p")):
            moved = (rows @ R.T).numpy()
            at, way = rows.numpy().T, (moved - rows.numpy()).T
            ax.quiver(*at, *way, color=color, angles="xy", scale_units="xy", scale=1, width=0.012, alpha=0.7)
            ax.plot(*at, "o", color=color, markersize=3, label=label)
        ax.plot(*e_g.numpy().T, "x", color="#222222", markersize=4, label="e_g")
        ax.set_title(f"λ1 = {lam:g}", fontsize=8)
        ax.set_aspect("equal")
    handles = axes[-1].get_legend_handles_labels()
    fig.legend(*handles, fontsize=7, frameon=False, loc="outside lower center", ncols=3)
    return fig


def pairs(pipe, concept: Concept, config: EraseConfig | None = None) -> tuple[Tensor, Tensor]:
    """The rows of Eq. 1 on a model: co-existing tokens beside the concept, e^f, and beside its anchor, e^g; (n, d).

    config: filled settings whose templates and companions are used, and the root of the concept's weight.
    """
    if config is not None:
        concept = with_companions(with_templates(concept, config.templates), config.companions)
        return tuple(config.weight(concept.kind) ** 0.5 * e.double() for e in pairs(pipe, concept))
    e, a = encode(pipe, prompts(concept)).cpu(), encode(pipe, anchored(concept)).cpu()
    found = [align(tokenizers(pipe)[0], t, concept.name, concept.anchor) for t in templates(concept)]
    return (
        torch.cat([e[i, pair.source] for i, pair in enumerate(found)]),
        torch.cat([a[i, pair.target] for i, pair in enumerate(found)]),
    )


def asked(pipe, concept: Concept, config: EraseConfig) -> tuple[Tensor, Tensor, Tensor, float, float]:
    """What `erase` solves Eq. 2 for, of one concept: rows e^f and e^g (n, d), P (d, d), λ1 and λ0, all float64.

    MaceError: settings without a prior, which this lesson is about, or with rounds, which solve Eq. 2 more than once.
    """
    config = config.for_model(pipe, [concept])
    found, own = prior_of(pipe, [concept], config), config.of(concept.kind).refine
    if found is None or own.rounds:
        raise MaceError("One solve of Eq. 2 with a prior is shown: leave prior.use on and refine.rounds at 0.")
    return *pairs(pipe, concept, config), found.P, own.lambda1, config.weight(concept.kind) * own.lambda0


def cost(pipe, concepts: Sequence[Concept], config: EraseConfig, R: Tensor) -> float:
    """What Eq. 2 asks of all concepts together, at R, relative to R = I: a stronger prior never leaves less of it.

    (Σ w ‖R e^f − e^g‖² + λ0 ‖R − I‖²) / Σ w ‖e^f − e^g‖² over the rows of all templates.
    """
    config, total, whole = config.for_model(pipe, concepts), 0.0, 0.0
    for concept in concepts:
        e_f, e_g = pairs(pipe, concept, config)
        ridge = config.weight(concept.kind) * config.of(concept.kind).refine.lambda0
        total += float((e_f @ R.T - e_g).square().sum() + ridge * (R - torch.eye(len(R)).to(R)).square().sum())
        whole += float((e_f - e_g).square().sum())
    return total / whole


def per_layer(
    W: Tensor, e_f: Tensor, e_g: Tensor, P: Tensor | None = None, lambda1: float = 0.0, lambda0: float = 0.0
) -> Tensor:
    """Eq. 1 for one layer by least squares on its own keys or values, without R: W' (out, d) float64.

    Rows W e^g are fitted from rows e^f. The prior enters as d rows p with Σ p pᵀ = P, the ridge as rows √λ0 I.
    """
    W = W.detach().double().cpu()
    rows, targets = [e_f.double()], [e_g.double() @ W.T]
    if lambda1:
        values, vectors = torch.linalg.eigh(P)
        p = lambda1**0.5 * values.clamp(min=0).sqrt()[:, None] * vectors.T
        rows, targets = [*rows, p], [*targets, p @ W.T]
    if lambda0:
        ridge = lambda0**0.5 * torch.eye(W.shape[1]).to(W)
        rows, targets = [*rows, ridge], [*targets, ridge @ W.T]
    return torch.linalg.lstsq(torch.cat(rows), torch.cat(targets), driver="gels").solution.T


def spectrum(R: Tensor) -> Tensor:
    """Singular values of R − I (d,), largest first."""
    return torch.linalg.svdvals(R - torch.eye(len(R)).to(R))


def directions_for(values: Tensor, share: float = 0.9) -> int:
    """How many directions hold a share of the squared singular values.

    >>> directions_for(torch.tensor([3.0, 1.0, 0.1]), 0.85)
    1
    """
    part = values.square().cumsum(0) / values.square().sum()
    return int((part < share).sum()) + 1


def spectrum_figure(spectra: Mapping[str, Tensor]) -> Figure:
    """Singular values of R − I, and the share of their squares in the first k directions."""
    fig, (left, right) = panels(2, 3.4, 2.6)
    for i, (label, values) in enumerate(spectra.items()):
        color, k = COLORS[i % len(COLORS)], np.arange(1, len(values) + 1)
        left.plot(k, values.numpy(), color=color, label=label, linewidth=1.4)
        right.plot(k, (values.square().cumsum(0) / values.square().sum()).numpy(), color=color, linewidth=1.4)
    left.set(yscale="log", xscale="log", ylim=(max(1e-6, 1e-5 * left.get_ylim()[1]), None))
    left.set_xlabel("direction k", fontsize=8)
    left.set_title("singular values of R − I", fontsize=8)
    right.set(xscale="log", ylim=(0, 1.02))
    right.set_xlabel("first k directions", fontsize=8)
    right.set_title("share of ‖R − I‖²", fontsize=8)
    fig.legend(fontsize=7, frameon=False, loc="outside lower center", ncols=4)
    return fig


def moved(pipe, R: Tensor, names: Sequence[str], template: str = TEMPLATE) -> dict[str, float]:
    """By name: how far R moves the tokens of its prompt, ‖(R − I) E‖ / ‖E‖ over all but [BOS] (0: not at all)."""
    if not names:
        return {}
    E = encode(pipe, [fill(template, name) for name in names]).cpu().double()[:, 1:]  # (n, T − 1, d)
    change = E @ (R - torch.eye(len(R)).to(R)).T
    return dict(zip(names, (change.norm(dim=(1, 2)) / E.norm(dim=(1, 2))).tolist(), strict=True))


def moved_figure(groups: Mapping[str, Mapping[str, float]]) -> Figure:
    """Bars of `moved` by name, a colour per group of names."""
    count = sum(map(len, groups.values()))
    fig, (ax,) = panels(1, 6.0, max(2.0, 0.17 * count + 0.6))
    at = 0
    for i, (label, values) in enumerate(groups.items()):
        color = COLORS[(1, 4, 0)[i % 3]]
        ax.barh(range(at, at + len(values)), list(values.values()), 0.75, color=color, label=label)
        at += len(values)
    ax.set_yticks(range(count), [name for values in groups.values() for name in values], fontsize=7)
    ax.invert_yaxis()
    ax.set_xlabel("‖(R − I) E‖ / ‖E‖", fontsize=8)
    ax.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return fig


def effects(
    e_f: Tensor, e_g: Tensor, P: Tensor, lambdas: Sequence[float], lambda0: float = 1.0, vary: str = "lambda1"
) -> dict[str, list[float]]:
    """Per λ, without a picture: `left`, the share of e^f − e^g that R leaves; `disturbed`, how far R moves the prior,
    √(tr (R−I) P (R−I)ᵀ / tr P); `condition`, of the bracket that is solved.

    vary: "lambda1" (λ0 stays), or "lambda0" (no prior).
    """
    X, G = accumulate(e_f.double(), e_g.double())
    result: dict[str, list[float]] = {"left": [], "disturbed": [], "condition": []}
    for lam in lambdas:
        options = {"lambda1": lam, "lambda0": lambda0} if vary == "lambda1" else {"lambda0": lam}
        found = solve_refinement(X, G, P if vary == "lambda1" else None, **options)
        change = found.R - torch.eye(len(P)).to(P)
        result["left"].append(float((e_f.double() @ found.R.T - e_g.double()).norm() / (e_f - e_g).double().norm()))
        result["disturbed"].append(float(((change @ P) * change).sum().clamp(min=0).sqrt() / P.trace().sqrt()))
        result["condition"].append(found.condition)
    return result


def effects_figure(lambdas: Sequence[float], by: Mapping[str, Mapping[str, Sequence[float]]]) -> Figure:
    """A panel per name of a sweep (same λ): what is left of e^f − e^g, and how far the prior is moved."""
    fig, axes = panels(len(by), 3.4, 2.5, sharey=True)
    for (label, values), ax in zip(by.items(), axes, strict=True):
        ax.plot(lambdas, values["left"], "o-", color=COLORS[1], markersize=3, label="left of e_f − e_g")
        ax.plot(lambdas, values["disturbed"], "o-", color=COLORS[0], markersize=3, label="prior moved")
        ax.set(xscale="log", yscale="log")
        ax.set_xlabel(label, fontsize=8)
    fig.legend(*axes[0].get_legend_handles_labels(), fontsize=7, frameon=False, loc="outside lower center", ncols=2)
    return fig


# --- what a run found


def moved_by_group(pipe, R: Tensor, name: str) -> dict[str, float]:
    """How far R moves the tokens of `IN_SNOW`, ‖(R − I) E‖ / ‖E‖, by their group (see `residual.GROUPS`)."""
    prompt = fill(IN_SNOW, name)
    E, at = encode(pipe, [prompt])[0].cpu().double(), groups(tokenizers(pipe)[0], prompt, name)
    change = E @ (R - torch.eye(len(R)).to(R)).T
    return {group: float(change[where].norm() / E[where].norm()) for group, where in at.items() if where}


def by_group_said(found: Mapping[str, float], name: str) -> str:
    """`moved_by_group` in a sentence."""
    told = series([f"{group} {value:.2f}" for group, value in found.items() if group != "own"])
    return (
        f"In “{fill(IN_SNOW, name)}” R moves the name's own tokens by {found['own']:.2f} of their length, although "
        f"Eq. 2 does not ask for it; the tokens around them: {told}."
    )


def moved_said(by: Mapping[str, Mapping[str, float]]) -> str:
    """Whose prompts move most and least, by group of names, and whether a kept name moves more than the concept."""
    told = []
    for group, values in by.items():
        if not values:
            continue
        most, least = max(values, key=values.get), min(values, key=values.get)
        told.append(f"{group} {values[least]:.2f} ({least}) to {values[most]:.2f} ({most})")
    erased, *kept = by.values()
    concept = next(iter(erased))
    further = [name for values in kept for name, value in values.items() if value > erased[concept]]
    return f"Moved: {'; '.join(told)}. Names to keep whose prompts move more than that of {concept}: {series(further)}."


def rank_said(rank: Mapping[str, int], width: int) -> str:
    """How many directions hold nine tenths of ‖R − I‖², by label."""
    told = series([f"{count} ({label})" for label, count in rank.items()])
    return f"Nine tenths of $\\lVert R - I\\rVert^2$ lie in this many of {width} directions: {told}."


def price_said(by: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """How far the prior is moved where the same share of e^f − e^g is left, for two ways of `effects`."""
    ends = [(min(values["left"]), max(values["left"])) for values in by.values()]
    low, high = max(end[0] for end in ends), min(end[1] for end in ends)
    if low >= high:
        return ""
    level, told = (low * high) ** 0.5, []
    for label, values in by.items():
        order = np.argsort(values["left"])
        left, disturbed = (np.log(np.asarray(values[key]) + 1e-12)[order] for key in ("left", "disturbed"))
        told.append(f"{np.exp(np.interp(np.log(level), left, disturbed)):.2f} by {label}")
    return f"Where {level:.2f} of $e^f - e^g$ is left, the prior is moved by {series(told)}."


def lambda_said(accuracy: pd.DataFrame, lambdas: Sequence[float]) -> str:
    """For which λ1 the concept is gone (at most a tenth of what the original draws), and what is kept at the best."""
    if not accuracy.erased.iloc[0]:
        return "The original does not draw the concept, so that nothing can be seen to go."
    swept = accuracy.iloc[1:].set_axis(list(lambdas))
    gone = swept[swept.erased <= 0.1 * accuracy.erased.iloc[0]]
    if not len(gone):
        return f"No λ1 takes the concept away: at least {swept.erased.min():.0f} % of its pictures still show it."
    at = series([f"{value:g}" for value in gone.index], 99)
    text = f"The concept is gone (at most a tenth of its pictures show it still) at λ1 = {at}"
    end = f"At λ1 = {lambdas[-1]:g}, {swept.erased.iloc[-1]:.0f} % of its pictures show it."
    if not len(roles := gone.columns.drop("erased")):
        return f"{text}. {end}"
    kept = gone[roles].mean(axis=1)
    told = series([f"{role} {gone.loc[kept.idxmax(), role]:.0f} %" for role in roles])
    if len(gone) == 1:
        return f"{text}, where of the others are recognised: {told}. {end}"
    return f"{text}; of these {kept.idxmax():g} keeps most ({told}), {kept.idxmin():g} least. {end}"
