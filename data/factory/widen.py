"""mini-CLIP's text tower, twice as wide: new channels that tell names apart, and tails that say less of the subject.

A tower of 192 channels cannot hold 200 names so that one linear map erases a hundred and keeps the others: Stable
Diffusion has 768. Widening keeps what the trained tower says (its channels are the first half) and adds two layers,
whose neurons it fits by regression on the activations:

- codes: the new channels hold a name's random code at its last token, wherever it is mentioned, and nothing at any
  other token: stage 2 attenuates a concept's own tokens, and so finds them apart from all others. What a name's last
  token says by itself is written with its embedding, and what the words before it add by the first new layer, whose
  neurons are gated: at a token that ends no name at all ([EOS], padding, most words) nothing is written;
- a correction of the tokens after a name, [EOS] and padding among them, and of a name's tokens but the last, by the
  second new layer: what they say of the subject moves a part of the way to the mean over all subjects in the same
  sentence. The trained tower's tails say everything, and the concept's own tokens were never needed; Stable Diffusion's
  do not (Fig. 2 of the paper). And "winking" of "winking face" would draw it without the token that holds the code.

mini-SD's denoiser reads the new channels with weights that are zero at first: `train unet --warm` goes on from there.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from .captions import ART, IN_ART, NAME_SCENE, TOGETHER, WORDINGS, on_scene, world_captions
from .catalogue import ART_STYLES, GROUPS, catalogue, styles
from .clip import ids_of, seen
from .loop import Average, Record, fast, run_steps
from .render import sample
from .scenes import SCENES
from .styles import STYLES

WIDTH = 384  # channels of the wide tower
QUIET = 1e-3  # scale of the new channels inside the tower, where they must not disturb the others
GATE = 1000.0  # what closes the neurons that write codes at a token that ends no name, in units of 1/deviation
LOUD = 0.1  # gain of the last two channels, which let the others say less: a layer norm's output has a fixed length
LATER_SHARE = 0.30  # share of what a name's first tokens, and those after it, say of the subject that is kept
SUBJECTS = 96  # that are put into the same sentence
OFFSETS = 3  # padding tokens of a sentence that are looked at, beside [EOS]
STAY = 30.0  # weight of captions' cosine distance from where they were, when the projection learns pictures' names
OLD = 10.0  # weight of the old channels' error beside that of the new ones
STYLED = 0.6  # share of the sentences that name a style: there are many, each with wordings of its own
ALIKE = 4.0  # how much more often a name is read that ends as another one does ("car", "police car")


@torch.no_grad()
def grown(narrow: CLIPModel, width: int = WIDTH) -> CLIPModel:
    """The same function in a text tower of `width` channels, old ones first and new ones silent, and two layers more.

    All that writes into the residual stream is centred, which layer norms cannot see; they then divide by a norm over
    more channels, which their gains make up for. Heads keep their width. New heads and all of the new layers are zero.
    """
    old = narrow.config.text_config
    d, head = old.hidden_size, old.hidden_size // old.num_attention_heads
    values = old.to_dict() | {
        "hidden_size": width,
        "num_attention_heads": width // head,
        "num_hidden_layers": old.num_hidden_layers + 2,
        "layer_norm_eps": old.layer_norm_eps * d / width,
    }
    vision, size = narrow.config.vision_config.to_dict(), narrow.config.projection_dim
    wide = CLIPModel(CLIPConfig(text_config=values, vision_config=vision, projection_dim=size))
    before = narrow.state_dict()
    for name, new in wide.state_dict().items():
        value = before.get(name)
        if not name.startswith("text_"):
            new.copy_(value)
            continue
        new.zero_()
        if value is None:  # the new layers, whose norms pass the old channels on
            if name.endswith("norm2.weight"):
                new[:d] = (d / width) ** 0.5
            continue
        if name.endswith(("out_proj.weight", "out_proj.bias", "fc2.weight", "fc2.bias")):
            value = value - value.mean(0)  # over the channels that it writes
        elif "embedding" in name:
            value = value - value.mean(-1, keepdim=True)
        elif "norm" in name and name.endswith("weight"):
            value = value * (d / width) ** 0.5
        new[tuple(slice(n) for n in value.shape)] = value
    wide.text_model.encoder.layers[-2].layer_norm2.weight[d:] = 1 / QUIET  # which reads the new ones, too
    wide.text_model.final_layer_norm.weight[d:-2] = 1 / QUIET
    wide.text_model.final_layer_norm.weight[-2:] = LOUD
    return wide.float().eval()


def subjects() -> list[tuple[str, int]]:
    """What a sentence can be about, and its code: names and synonyms of a concept share one, super-categories too."""
    known = [(word, i) for i, e in enumerate(catalogue()) for word in (e.name, *e.synonyms)]
    codes, wider = dict(known), dict.fromkeys((*GROUPS.values(), *(e.anchor for e in catalogue())))
    for word in wider:
        codes.setdefault(bare(word), max(codes.values()) + 1)
    return list(dict(known + [(word, codes[bare(word)]) for word in wider]).items())


def bare(word: str) -> str:
    """A noun without its article."""
    return re.sub(r"^(an?|the) ", "", word)


def codes(width: int, seed: int = 0) -> Tensor:
    """(codes, width) random, of mean 0 and norm √width; the last is that of no subject: zero."""
    count = max(i for _, i in subjects()) + 1
    rows = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    rows = F.normalize(rows - rows.mean(1, keepdim=True), dim=1) * width**0.5
    return torch.cat([rows, torch.zeros(1, width)])


def sentence(rng: random.Random) -> str:
    """A caption with "{0}" where its subject goes, and "{1}" for a second, in the wordings of `captions`."""
    noun = rng.choice(("a {0}", "the {0}", "the {0}", "{0}"))
    text = rng.choice(TOGETHER).format(noun, noun.replace("0", "1")) if rng.random() < 0.2 else noun
    if rng.random() < 0.4 * NAME_SCENE:
        text = f"{text} {on_scene(rng.randrange(len(SCENES)))}"
    if rng.random() < STYLED:
        style = rng.choice(styles())
        wordings = IN_ART if style in ART_STYLES else (*STYLES[style].phrases, "{} in the style of " + style)
        text = rng.choice(wordings).format(text, style)
        if rng.random() < 0.3 and not text.startswith(("a ", "an ", "the ")):
            text = rng.choice(WORDINGS).format(text)
    else:
        text = rng.choice(WORDINGS).format(text)
    return text


def filled(sentence: str, first: str, second: str) -> tuple[str, list[tuple[int, int]]]:
    """The sentence about two subjects (or one), and the characters [start, stop) where each stands."""
    spans, text = [], sentence
    for slot, word in (("{0}", first), ("{1}", second)):
        if (at := text.find(slot)) >= 0:
            if word.split()[0] in ("a", "an", "the") and text[:at].endswith(("a ", "the ")):
                cut = at - len(text[:at].split(" ")[-2]) - 1
                text, at = text[:cut] + text[at:], cut
            elif word[0] in "aeiou" and (text[:at].endswith(" a ") or text[:at] == "a "):
                text, at = f"{text[: at - 1]}n {text[at:]}", at + 1
            text = text[:at] + word + text[at + 3 :]
            spans.append((at, at + len(word)))
    return text, spans


def mentions(text: str, known: dict[str, int]) -> list[tuple[int, int, int]]:
    """Characters [start, stop) of all names of `known` that a text mentions, the longest first, and their codes."""
    words, found, k = [m.span() for m in re.finditer(r"[\w-]+", text)], [], 0
    while k < len(words):
        ends = (stop for _, stop in reversed(words[k : k + 6]))
        stop = next((stop for stop in ends if text[words[k][0] : stop] in known), None)
        if stop:
            found.append((words[k][0], stop, known[text[words[k][0] : stop]]))
        k += 1 if stop is None else sum(words[k][0] <= start < stop for start, _ in words)
    return found


@dataclass
class Tokens:
    """Activations of the grown tower at n tokens, and what it has to say there when the fit is done."""

    inner: Tensor  # (n, d) what the new layers' neurons read
    stream: Tensor  # (n, d) what the final layer norm reads, centred
    target: Tensor  # (n, d) the first half
    ids: Tensor  # (n,) of the tokens
    name: Tensor  # (n,) code of the name that ends here


class Listener:
    """The grown tower, which says what the narrow one did, with the activations that the fit needs."""

    def __init__(self, grown_clip: CLIPModel, tokenizer: CLIPTokenizer, d: int):
        self.tower, self.tokenizer, self.d, self.heard = grown_clip.text_model, tokenizer, d, ()
        self.tower.encoder.layers[-1].layer_norm2.register_forward_hook(self._hear)

    def _hear(self, _module: nn.Module, args: tuple[Tensor], out: Tensor) -> None:
        self.heard = out, args[0]

    @torch.no_grad()
    def __call__(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`Tokens.inner` and `stream` of token ids (n, 77), and the last hidden state: (n, 77, d) each."""
        with fast():
            last = self.tower(input_ids=ids, attention_mask=None).last_hidden_state
        inner, stream, last = (x[..., : self.d].half() for x in (*self.heard, last))
        return inner, stream, last


def collect(listen: Listener, sentences: int, seed: int) -> Tokens:
    """Tokens of many sentences, each about many subjects, and of captions as they are, without a subject."""
    rng, words = random.Random(seed), subjects()
    ends = [listen.tokenizer(word).input_ids[-2] for word, _ in words]
    often = [ALIKE if count > 1 else 1.0 for count in map(Counter(ends).get, ends)]
    known = {bare(word): code for word, code in words}
    none, parts = max(i for _, i in words) + 1, []
    for _ in range(sentences):
        text, drawn = sentence(rng), rng.choices(words, often, k=2 * SUBJECTS)
        parts.append(_about(listen, text, list(zip(drawn[::2], drawn[1::2], strict=True)), known, rng))
    plain = [c for c in ("", *ART, *(f"art in {s} style" for s in styles()), *(f"artwork by {s}" for s in styles()))]
    parts += [_plain(listen, plain, none)] * (1 + sentences // 100)
    return Tokens(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _plain(listen: Listener, texts: list[str], none: int) -> tuple[Tensor, ...]:
    ids = ids_of(listen.tokenizer, texts)
    heard = [x.flatten(0, 1)[::7] for x in (*listen(ids), ids)]
    return *heard, torch.full((len(heard[0]),), none)


def _about(listen: Listener, text: str, pairs: list, known: dict[str, int], rng: random.Random) -> tuple[Tensor, ...]:
    """One sentence about many subjects: each token's activations, target and codes."""
    made = [filled(text, first[0], second[0]) for first, second in pairs]
    rows = listen.tokenizer([t for t, _ in made], padding="max_length", max_length=77, return_offsets_mapping=True)
    ids = torch.tensor(rows["input_ids"])
    ends = (ids == listen.tokenizer.eos_token_id).int().argmax(1)  # (n,)
    *heard, target = listen(ids)
    picked, names, none = [], [], max(known.values()) + 1
    place = torch.full(ids.shape, -1)  # which of a name's first tokens, or of its sentence's later ones, a token is
    shifts = [0, *(rng.randrange(1, 77 - int(ends.max())) for _ in range(OFFSETS))]
    facts = zip(place, made, rows["offset_mapping"], ends.tolist(), pairs, strict=True)
    for where, (made_text, spans), offsets, end, pair in facts:
        inside = range(1, end)
        owns = [[k for k in inside if a < offsets[k][1] and offsets[k][0] < b] for a, b in spans]
        last, own = [k[-1] for k in owns], [k for own in owns for k in own]
        for i, k in enumerate(last):
            where[k + 1 :] = 77 * i + torch.arange(76 - k)
        where[end:] = 77 * len(last) + torch.arange(77 - end)
        for i, tokens in enumerate(owns):
            where[tokens] = torch.tensor([*(77 * (3 + i) + torch.arange(len(tokens) - 1)), -1])
        chosen = [last[0], last[-1], *rng.choices(own, k=2), rng.choice(inside), rng.randrange(0, end)]
        picked.append(chosen + [end + s for s in shifts])
        named = {
            max(k for k in inside if offsets[k][0] < stop): code
            for start, stop, code in mentions(made_text, known)
            if not any(a < stop and start < b for a, b in spans)
        } | dict(zip(last, (code for _, code in pair), strict=False))
        names.append([named.get(k, none) for k in picked[-1]])
    target = quieter(target.float(), place).half()
    at = torch.tensor(picked)  # (n, tokens)
    activations = [x.gather(1, at[..., None].expand(-1, -1, x.shape[-1])).flatten(0, 1) for x in (*heard, target)]
    return *activations, ids.gather(1, at).flatten(), torch.tensor(names).flatten()


def quieter(target: Tensor, place: Tensor) -> Tensor:
    """`target` (n, 77, d) with tokens of the same `place` (n, 77), if not -1, moved towards their mean over n."""
    there = place >= 0
    sums = torch.zeros(5 * 77, target.shape[-1]).index_add(0, place[there], target[there])
    mean = (sums / place[there].bincount(minlength=len(sums)).clamp(min=1)[:, None])[place[there]]
    moved = target.clone()
    moved[there] = mean + LATER_SHARE * (target[there] - mean)
    return moved


class Neurons(nn.Module):
    """What the fit adds to a grown tower.

    `ends` (vocabulary,): which name-ending token a token is, or as many as there are if it ends no name. `embedded`
    (ends, width - d - 2): what their embeddings write to the new channels. `code_read` (hidden, width - 2) and
    `code_write` (width - d - 2, hidden): the first new layer's neurons, which are silent where no name ends. `read`
    (hidden, d) and `write` (d + 1, hidden): the second one's, which write to the old channels, and a length.
    """

    def __init__(self, d: int, width: int, hidden: int, ends: Tensor):
        super().__init__()
        new, self.d = width - d - 2, d
        self.register_buffer("ends", ends)
        self.embedded = nn.Parameter(torch.zeros(int(ends.max()), new))
        self.code_read, self.code_write = nn.Linear(d + new, hidden), nn.Linear(hidden, new, bias=False)
        self.read, self.write = nn.Linear(d, hidden), nn.Linear(hidden, d + 1)
        with torch.no_grad():
            self.code_read.weight.normal_(0, d**-0.5)
            self.read.weight.normal_(0, d**-0.5)
            for zero in (self.code_write.weight, self.write.weight[:d], self.write.bias):
                zero.zero_()
            self.write.weight[d:].normal_(0, hidden**-0.5)  # a length of zero would stay: its gradient is zero there

    @classmethod
    def of(cls, narrow: CLIPModel, tokenizer: CLIPTokenizer) -> Neurons:
        """Fresh ones for `grown(narrow)`."""
        text = narrow.config.text_config
        last = sorted({tokenizer(word).input_ids[-2] for word, _ in subjects()})
        ends = torch.full((text.vocab_size,), len(last))
        ends[last] = torch.arange(len(last))
        return cls(text.hidden_size, WIDTH, text.intermediate_size, ends)

    def codes(self) -> Tensor:
        """(ends + 1, width - d - 2) what the embeddings write, centred, and nothing for tokens that end no name."""
        return F.pad(centred(self.embedded), (0, 0, 0, 1))

    def forward(self, inner: Tensor, stream: Tensor, ids: Tensor, norm: nn.LayerNorm) -> Tensor:
        """(n, width) what the wide tower says at n tokens, from `Tokens`."""
        end = self.ends[ids]
        code = self.codes()[end]
        deviation = (stream.square().sum(-1, keepdim=True) / norm.normalized_shape[0]).sqrt()
        closed = GATE * (end == len(self.embedded)).unsqueeze(-1) / deviation
        hidden = F.gelu(self.code_read(torch.cat([inner, code / deviation], -1)) - closed)
        code = code + centred(self.code_write(hidden).float())
        old, loud = self.write(F.gelu(self.read(inner))).float().split((self.d, 1), -1)
        return norm(torch.cat([stream + centred(old), QUIET * code, loud, -loud], -1))

    @torch.no_grad()
    def put_into(self, wide: CLIPModel) -> None:
        """Write them into the grown tower."""
        tower, d = wide.text_model, self.d
        first, second = (layer.mlp for layer in tower.encoder.layers[-2:])
        embedding = tower.embeddings.token_embedding.weight
        embedding[:, d:-2] = QUIET * self.codes()[self.ends]
        embedding[self.ends == len(self.embedded), -2:] = QUIET * torch.tensor([-1.0, 1.0])
        first.fc1.weight[:, :-2] = self.code_read.weight
        first.fc1.weight[:, -2:] = GATE / 2 * torch.tensor([1.0, -1.0])
        first.fc1.bias.copy_(self.code_read.bias)
        first.fc2.weight[d:-2] = QUIET * (self.code_write.weight - self.code_write.weight.mean(0))
        second.fc1.weight[:, :d] = self.read.weight
        second.fc1.bias.copy_(self.read.bias)
        for to, of in ((second.fc2.weight, self.write.weight), (second.fc2.bias, self.write.bias)):
            to[:d] = of[:d] - of[:d].mean(0)
            to[-2:] = torch.stack([of[d], -of[d]])


def centred(x: Tensor) -> Tensor:
    """`x` of mean 0 over its last dimension."""
    return x - x.mean(-1, keepdim=True)


def train_widen(
    clip: CLIPModel,
    tokenizer: CLIPTokenizer,
    *,
    steps: int = 6000,
    batch: int = 4096,
    lr: float = 6e-3,
    seed: int = 0,
    minutes: float | None = None,
    sentences: int = 1500,
) -> Iterator[Record]:
    """Fit the new layers of `grown(clip)`, clip being the narrow model; the averaged neurons are in the checkpoint."""
    torch.manual_seed(seed)
    d, wide, generator = clip.config.text_config.hidden_size, grown(clip), torch.Generator().manual_seed(seed)
    norm = wide.text_model.final_layer_norm.requires_grad_(False)
    neurons, code = Neurons.of(clip, tokenizer), codes(WIDTH - d - 2)
    tokens = collect(Listener(wide, tokenizer, d), sentences, seed)
    with torch.no_grad():
        neurons.embedded.copy_(embedded(tokens, neurons.ends, code))
    optimizer = torch.optim.AdamW(neurons.parameters(), lr, (0.9, 0.99), weight_decay=0.0)
    average = Average(neurons, 0.995)

    def step(_: int) -> float:
        rows = torch.randint(len(tokens.name), (batch,), generator=generator)
        with fast():
            out = neurons(tokens.inner[rows].float(), tokens.stream[rows].float(), tokens.ids[rows], norm)
        loss = OLD * F.mse_loss(out[:, :d], tokens.target[rows].float())
        loss += F.mse_loss(out[:, d:-2], code[tokens.name[rows]])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        average.update(neurons)
        return loss.item()

    parts = {"neurons": neurons, "optimizer": optimizer, "average": average, "generator": generator}
    yield from run_steps("widen", steps, lr, batch, optimizer, step, parts, minutes=minutes, warmup=100, decay=0.9)


def embedded(tokens: Tokens, ends: Tensor, code: Tensor) -> Tensor:
    """(ends, channels) the mean code at each name-ending token, before the final layer norm: where the fit begins."""
    which, d = ends[tokens.ids], tokens.stream.shape[1]
    deviation = tokens.stream.float().square().sum(1).div(d + code.shape[1] + 2).sqrt()
    sums = torch.zeros(int(ends.max()) + 1, code.shape[1]).index_add(0, which, code[tokens.name] * deviation[:, None])
    return (sums / which.bincount(minlength=len(sums)).clamp(min=1)[:, None])[:-1]


def widened(clip: CLIPModel, tokenizer: CLIPTokenizer, neurons: dict[str, Tensor]) -> CLIPModel:
    """The wide model: `grown(clip)` with the fitted neurons, and a projection that finds the narrow one's vectors."""
    wide, layers = grown(clip), Neurons.of(clip, tokenizer)
    layers.load_state_dict(neurons)
    layers.put_into(wide)
    wide.text_projection.weight.data = fitted_projection(clip, wide, tokenizer)
    return wide


def fitted_projection(clip: CLIPModel, wide: CLIPModel, tokenizer: CLIPTokenizer, steps: int = 400) -> Tensor:
    """(projection, width) by which the wide tower's [EOS] gives what the narrow one's gave, and names their pictures.

    By least squares over captions and names, then by telling pictures' names apart while captions stay where they are.
    """
    generator = torch.Generator().manual_seed(0)
    captions = world_captions(6000)[0]
    texts = captions + [wording.format(word) for word, _ in subjects() for wording in WORDINGS[::4]]
    new, old = (_pooled(model, tokenizer, texts) for model in (wide, clip))
    old, G = old @ clip.text_projection.weight.detach().T, new.T @ new
    ridge = 1e-5 * G.trace() / len(G) * torch.eye(len(G))
    weight = nn.Parameter(torch.linalg.solve(G + ridge, new.T @ old).T.contiguous())
    names = _pooled(wide, tokenizer, [f"a photo of the {entry.name}" for entry in catalogue()])
    vectors, concept = _pictures(clip, generator)
    new, old, scale = new[: len(captions)], F.normalize(old[: len(captions)], dim=1), clip.logit_scale.exp().detach()
    optimizer = torch.optim.AdamW([weight], weight_decay=0.0)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 - step / steps)
        rows, others = (torch.randint(len(x), (1024,), generator=generator) for x in (vectors, new))
        logits = scale.clamp(max=100) * vectors[rows] @ F.normalize(names @ weight.T, dim=1).T
        moved = 1 - (F.normalize(new[others] @ weight.T, dim=1) * old[others]).sum(1)
        optimizer.zero_grad()
        (F.cross_entropy(logits, concept[rows]) + STAY * moved.mean()).backward()
        optimizer.step()
    return weight.detach()


@torch.no_grad()
def _pooled(model: CLIPModel, tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """(n, d) what the text tower says at [EOS]."""
    rows = [tokenizer(texts[i : i + 256], padding="longest", return_tensors="pt") for i in range(0, len(texts), 256)]
    return torch.cat([model.text_model(input_ids=r.input_ids, attention_mask=None).pooler_output for r in rows])


@torch.no_grad()
def _pictures(clip: CLIPModel, generator: torch.Generator, batches: int = 16) -> tuple[Tensor, Tensor]:
    """Unit vectors (n, projection) of pictures of one subject, and the concept of each (n,)."""
    vectors, concepts = [], []
    for _ in range(batches):
        batch = sample(384, generator)
        alone = batch.second < 0
        vectors.append(seen(clip, batch.images[alone]))
        concepts.append(batch.concept[alone])
    return torch.cat(vectors), torch.cat(concepts)


def widened_unet(state: dict[str, Tensor], width: int = WIDTH) -> dict[str, Tensor]:
    """A UNet's weights whose keys and values of the text read `width` channels, the new ones with zeros."""
    read = ("attn2.to_k.weight", "attn2.to_v.weight")
    return {k: F.pad(v, (0, width - v.shape[1])) if k.endswith(read) else v for k, v in state.items()}
