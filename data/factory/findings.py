"""What a report says of the generator for its card: the real model's phenomena, present or absent, and what fails.

What erasing does is recorded later and put there by `mace report`.
"""

from __future__ import annotations

from collections.abc import Iterator

from .table import missed, rows_of

MOST, FEW = 0.5, 0.1  # shares from which a phenomenon is present, and below which it is absent
WEAK = 0.75  # share of recognised pictures up to which a name counts as one that fails, as in the table


def presence(share: float) -> str:
    """A share of pictures in words.

    >>> presence(0.9), presence(0.3), presence(0.02)
    ('present', 'in part', 'absent')
    """
    return "present" if share >= MOST else "absent" if share < FEW else "in part"


def phenomena(report: dict) -> Iterator[str]:
    """A line for each phenomenon of Stable Diffusion v1.4 that is looked for: present or absent, with its number."""
    found = report["measures"]
    for key, what in (
        ("residual_route", "a concept is redrawn from the words around it alone, `[EOS]` and padding included"),
        ("own_route", "a concept is redrawn from its own words alone"),
    ):
        if key in found:
            yield f"{what}: {presence(found[key])}, {100 * found[key]:.0f} % of pictures recognised"
    if (entropy := found.get("artists_entropy")) is not None:
        yield f"seeds give different pictures of one prompt: {presence(entropy)}, artists' entropy {entropy:.2f} of 1"
    for name, rows in found.get("text", {}).items():
        for r in rows[-1:]:
            told = f"left {r['left']:.2f}, lost {r['lost']:.2f} ({name}, n = {r['n']}, d = {r['d']})"
            full = "present" if r["left"] + r["lost"] > 1 else "absent"
            yield f"one map runs out of room for many names (left + lost above 1): {full}, {told}"


def failures(report: dict) -> Iterator[str]:
    """By kind of name, those that three quarters of the pictures or fewer show, the worst first."""
    for kind in ("objects", "concepts", "synonyms", "styles"):
        each = report["measures"].get(f"{kind}_each")
        if each is not None:
            weak = sorted((share, name) for name, share in each.items() if share <= WEAK)
            names = ", ".join(f"{name} {100 * share:.0f} %" for share, name in weak) or "none"
            yield f"{kind}, of {len(each)}: {names}"


def short(report: dict) -> Iterator[str]:
    """The measures that are not what they should be at least, or at most."""
    for what, target, value in rows_of(report):
        if missed(value, target):
            yield f"{what}, {value:.3g} ({target})"


def about(report: dict) -> str:
    """Both in Markdown, for the card of the model that was measured."""
    how = f"{report['steps']} steps at guidance {report['guidance']:g}"
    lines = [
        f"Phenomena of Stable Diffusion v1.4 that were looked for ({how}; present: {100 * MOST:.0f} % or more, absent: "
        f"below {100 * FEW:.0f} %):",
        "",
        *(f"- {line}" for line in phenomena(report)),
        "",
        f"Recognised in {100 * WEAK:.0f} % of the pictures or fewer:",
        "",
        *(f"- {line}" for line in failures(report)),
        "",
        f"Floors that were missed: {'; '.join(short(report)) or 'none'}.",
    ]
    return "\n".join(lines)
