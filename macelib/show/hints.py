"""What is odd about a prompt, said beside the pictures: a model draws something for any text."""

import difflib
import re
from functools import cache

from ..models.families import MINI, family_of
from ..models.mini import captions, catalogue, world

WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
MOST = 3  # unknown words that are named


@cache
def vocabulary() -> frozenset[str]:
    """All words of the mini world: of its captions, names, synonyms, anchors and styles."""
    texts = [text for text, _ in captions()] + [*world()["styles"], *world()["companions"]]
    for entry in catalogue():
        texts += [entry.name, entry.anchor, entry.group, *entry.synonyms]
    return frozenset(word for text in texts for word in WORD.findall(text.casefold()))


def hint(pipe, prompt: str, *more: str) -> str:
    """A sentence about an empty prompt and, for mini-SD, about words that its world has not; empty if there is none.

    more: texts whose words are looked at, too; they may be empty.
    """
    if not prompt.strip():
        return "The prompt is empty: the model draws whatever comes."
    if family_of(pipe) is not MINI:
        return ""
    unknown = [
        word for word in dict.fromkeys(WORD.findall(" ".join((prompt, *more)).casefold())) if word not in vocabulary()
    ]
    said = []
    for word in unknown[:MOST]:
        near = difflib.get_close_matches(word, sorted(vocabulary()), 3, 0.6)
        said.append(f"“{word}”" + (f" (near it: {', '.join(near)})" if near else ""))
    rest = f" nor {len(unknown) - MOST} more words" if len(unknown) > MOST else ""
    them = "them" if len(unknown) > 1 else "it"
    return f"mini-SD's world has no {', no '.join(said)}{rest}: what it draws for {them} is chance." if said else ""
