"""BridgeTower: each of the upper layers of two frozen towers enters the layer over both that
is as far from the end, by a sum and a LayerNorm.

Paper: BridgeTower: Building Bridges Between Encoders in Vision-Language Representation
Learning. Xu, Wu, Rosenman, Lal, Che, Duan, AAAI 2023, arXiv 2206.08657.

Claim: models with two towers feed only the last layer of each into the layers that read words
and picture together. The layers below know other things. Bridges let the layers over both see
them from the bottom up, cost almost no parameters, and the fused model answers more questions
and finds more pictures.

Use it when: layers of your towers know different things, and you cannot tell beforehand which of
them your questions need. Try the one layer below the last by itself first: here (frozen towers,
200 steps) bridges were .020 ahead of the last layer and .015 behind that lower layer, neither
beyond the margin of .05; fresh seeds: .021 [.002, .040], .029 behind [.004, .055]. That is early
training: .16 to .20 of answers right, any thing of the picture named at random .29. After 1,000
steps (two seeds, no claim): last .53 and .61, bridges .60 and .59, the lower layer .79 and .79.

Equations, T_k and V_k the towers' upper layers, k = 1 … L, and Z those of the layers over both:
    T'_k = W_T T_k + b + type_text,  V'_k = W_V V_k + b + type_image
    x_1 = LN(T'_1),  x_k = LN(T'_k + Z^T_{k-1});  y likewise of V'
    Z^T_k = Layer^T_k(x_k; y_k),  Z^V_k = Layer^V_k(y_k; x_k): attention to itself, to the other's
            stream as it came in, MLP, each LN(x + f(x)), no weight in common
    c = [tanh(W h^T_0 + b); tanh(W' h^V_0 + b')], the first word and the whole picture
    answers = Σ_a BCE(head(c)_a, one-hot answer), mean over the questions
    words   = CE(masked words), of a pass with masked texts
    match   = CE(matched? of c), half of the texts with another picture (pretraining)
    contrast = InfoNCE of the last layers' first tokens, equal items all right (retrieval), and
    hard-match = CE(matched? of c), of each pair, each text and each picture with a stranger
            drawn by the contrast

Frozen: both towers; projections, bridges, layers over both and heads are trained.
Exact property: with bridges whose taps are 0 and whose LayerNorms are new the network is the
same without bridges, for LN(LN(z)) = LN(z): what a bridge adds is all in its tap.
Deviations (official files in src/modules at commit 90f4bac): the towers are frozen and their
layers made once (there all is trained, layers over both at five times the towers' rate and heads
at up to fifty times, meter_utils.py; here one rate); two layers over both of width 64 (six of
768); a convolutional tower's plates with the whole picture before them (the patches and class
token of CLIP's ViT); its layers differ in width, so taps of each width have a projection of their
own, where all share one (bt_module.py:274-275; here too where widths are equal, as the words');
each number of a tap is standardised by the training tokens, which stands for the last LayerNorm
of CLIP that all tapped layers go through (bt_module.py:499), and is done to the words as well;
LayerNorms' epsilon 1e-12 in bridges and the answers' head too, where it is torch's 1e-5
(heads.py:10, bt_module.py:125-128 and 163; in the layers it is 1e-12 there as well); AdamW with
betas .9 and .95, a cosine after 5 % of warm-up and one weight decay (.9 and .98, a straight line,
no decay of biases and LayerNorms: meter_utils.py:269-394); weights are drawn as wide for this
width as 0.02 is for 768; the answers' bias begins where one answer of all is right (at 0),
without which 200 steps teach nothing but that; one answer is right (soft scores of ten people,
objectives.py:503-507); no dropout (.1). METER here has the first LayerNorm too. Of 'match' half
of the rows exactly get a picture of the batch (of the data set, objectives.py:52-70); of 'words'
the caller masks, before the tower reads (see the columns), and the head is a table of its own, as
there. The contrast's scale is learned as a logarithm and at most 100 (its inverse within .001 and
.5, objectives.py:150); strangers that cannot be drawn are an error (1e-5 is added to all weights
then, objectives.py:216-218, and a right one may be drawn). Of a gallery the `top` of each query
are read together (k_test = 128 in config.py).
Reconstructed: nothing of the layers over both, bridges and poolers: they agree with transformers'
BridgeTower in value and gradient (1e-9, tests/test_bridgetower.py), and a reader found the same of
the official bert_model.py and of the losses of objectives.py. The standardising, the bias and the
sizes are ours.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from alignkit.data import Pairs, Tokens
from alignkit.parts import Method
from alignkit.parts.fusion import EPS, CoAttention, hard_negatives, initial
from alignkit.parts.layers import Temperature
from alignkit.parts.losses import info_nce, positives_of
from alignkit.parts.similarity import cosine, unit

Taps = list[Tokens | None]  # what enters at each layer over both


@dataclass(frozen=True)
class BridgeTowerSettings:
    """image_taps, text_taps: for each layer over both the column of the tower layer that
    enters there, None where none does: ("tap2", None, None) is METER. mixed: all taps enter
    together, as a learned mean, at the first layer alone. width, heads: of the layers over
    both; head_scale: how many times wider the answers' head is than what it reads. tasks:
    some of 'answers', 'words', 'match', 'contrast', 'hard-match'. words: how many there are to
    name. shared, temperature: of the contrast. top: how many of a gallery are read together
    with a query."""

    image_taps: tuple[str | None, ...] = ("image_tap0", "image_tap1", "image_tap2")
    text_taps: tuple[str | None, ...] = ("text_tap0", "text_tap1", "text_tap2")
    mixed: bool = False
    width: int = 64
    heads: int = 4
    head_scale: int = 2
    answers: int = 2
    tasks: tuple[str, ...] = ("answers",)
    words: int = 2
    shared: int = 64
    temperature: float = 0.07
    top: int = 32


class BridgeTower(Method):
    """Columns: the taps, tokens of frozen layers; the first of each row stands for the whole
    (a class token, the whole picture). Label `answer` for 'answers'; for 'words' the columns
    `masked_<text tap>` and `masked_words`, tokens of the words' numbers, real where asked."""

    settings: BridgeTowerSettings

    def build(self, settings: BridgeTowerSettings, pairs: Pairs) -> None:
        s, d = settings, settings.width
        if len(s.image_taps) != len(s.text_taps) or not (s.image_taps[0] and s.text_taps[0]):
            raise ValueError("image_taps and text_taps must be as many, and the first of each "
                             f"a column, got {s.image_taps} and {s.text_taps}")
        self.taps = {"text": s.text_taps, "image": s.image_taps}
        widths = {name: [pairs[c].values.shape[2] for c in taps if c]
                  for name, taps in self.taps.items()}
        # Layers of one width share a projection, as all do in the paper.
        self.project = nn.ModuleDict({
            f"{name}{w}": nn.Linear(w, d) for name in widths for w in dict.fromkeys(widths[name])})
        self.kind = nn.Embedding(2, d)  # of words, of pictures
        self.layers = nn.ModuleList(CoAttention(d, s.heads, shared=False) for _ in s.text_taps)
        self.norms = nn.ModuleDict({
            f"{name}{k}": nn.LayerNorm(d, EPS) for name, taps in self.taps.items()
            for k, c in enumerate(taps) if c and not (s.mixed and k)})
        self.pool = nn.ModuleDict({name: nn.Linear(d, d) for name in self.taps})
        wide = 2 * d * s.head_scale
        self.answer_head = nn.Sequential(nn.Linear(2 * d, wide), nn.LayerNorm(wide, EPS),
                                         nn.GELU(), nn.Linear(wide, s.answers))
        self.match_head = nn.Linear(2 * d, 2)
        self.word_head = nn.Sequential(nn.Linear(d, d), nn.GELU(), nn.LayerNorm(d, EPS),
                                       nn.Linear(d, s.words))
        self.contrast_head = nn.ModuleDict({
            name: nn.Linear(widths[name][-1], s.shared) for name in self.taps})
        self.apply(initial)
        # One answer of many is right: from 0 the first steps would teach nothing but that.
        nn.init.constant_(self.answer_head[-1].bias, -math.log(max(1, s.answers - 1)))
        self.temperature = Temperature(s.temperature, True)
        if s.mixed:
            self.share = nn.ParameterDict({
                name: nn.Parameter(torch.zeros(len(w))) for name, w in widths.items()})
        for column in self._columns():
            real = pairs[column].values[pairs[column].mask]
            known = {"mean": real.mean(0), "scale": real.std(0).clamp_min(1e-6)}
            for what, values in known.items():
                self.register_buffer(f"{what}_{column}", torch.zeros(len(values)))
                getattr(self, f"{what}_{column}").copy_(values)

    def _columns(self) -> list[str]:
        return sorted({c for taps in self.taps.values() for c in taps if c})

    def collate(self, rows: Pairs, generator: torch.Generator) -> dict:
        """The taps; what else the tasks need."""
        batch = {c: rows[c] for c in self._columns()} | {"item": rows.item}
        if "answer" in rows.labels:
            batch["answer"] = rows.labels["answer"]
        if "words" in self.settings.tasks:
            batch |= {c: rows[c] for c in rows.columns if c.startswith("masked_")}
        return batch

    def encode(self, batch: dict) -> dict[str, dict]:
        """By modality the projected taps [n, t, width], "text0" that of the first layer, their
        "mask", and "first", the unit row of the contrast; text and picture have not met."""
        return {name: self._side(name, [c and batch[c] for c in taps])
                for name, taps in self.taps.items()
                if all(c in batch for c in taps if c)}

    def _side(self, name: str, taps: Taps) -> dict:
        raw = {k: self._standard(c, tap) for k, (c, tap) in
               enumerate(zip(self.taps[name], taps, strict=True)) if c}
        found = {f"{name}{k}": self._enter(name, tap.values) for k, tap in raw.items()}
        if self.settings.mixed:
            share = self.share[name].softmax(0)
            found = {f"{name}0": sum(w * x for w, x in zip(share, found.values(), strict=True))}
        last = raw[max(raw)]
        return {**found, "mask": last.mask,
                "first": unit(self.contrast_head[name](last.values[:, 0]))}

    def _standard(self, column: str, tap: Tokens) -> Tokens:
        """Each number of a tap with mean 0 and deviation 1 over the training tokens."""
        mean, scale = (getattr(self, f"{what}_{column}") for what in ("mean", "scale"))
        return Tokens((tap.values - mean) / scale, tap.mask)

    def _enter(self, name: str, tap: Tensor) -> Tensor:
        kind = self.kind.weight[[*self.taps].index(name)]
        return self.project[f"{name}{tap.shape[2]}"](tap) + kind

    def bridge(self, name: str, k: int, tap: Tokens | None, before: Tokens | None) -> Tokens:
        """What layer k over both reads of a side: LN(tap + what the layer before gave)."""
        if tap is None:
            return before
        values = tap.values if before is None else tap.values + before.values
        return Tokens(self.norms[f"{name}{k}"](values), tap.mask)

    def together(self, words: Taps, regions: Taps) -> tuple[Tokens, Tokens]:
        """Both streams after the last layer; projected taps of each layer, or None."""
        x = y = None
        for k, (layer, a, b) in enumerate(zip(self.layers, words, regions, strict=True)):
            x, y = layer(self.bridge("text", k, a, x), self.bridge("image", k, b, y))
        return x, y

    def fused(self, text: dict, image: dict) -> tuple[Tensor, Tokens]:
        """Rows of words and pictures read together: c [n, 2 · width], and the words."""
        x, y = self.together(self.entering("text", text), self.entering("image", image))
        first = {"text": x.values[:, 0], "image": y.values[:, 0]}
        return torch.cat([torch.tanh(self.pool[name](h)) for name, h in first.items()], 1), x

    def entering(self, name: str, side: dict) -> Taps:
        """What `encode` gives of a side, layer by layer."""
        return [Tokens(side[key], side["mask"]) if (key := f"{name}{k}") in side else None
                for k in range(len(self.layers))]

    def losses(self, outputs: dict, batch: dict, progress: float) -> dict[str, Tensor]:
        text, image = outputs["text"], outputs["image"]
        return {f"{task.replace('-', '_')}_loss": getattr(self, f"_{task.replace('-', '_')}")(
            text, image, batch) for task in self.settings.tasks}

    def _answers(self, text: dict, image: dict, batch: dict) -> Tensor:
        logits = self.answer_head(self.fused(text, image)[0])
        right = F.one_hot(batch["answer"], logits.shape[1]).to(logits)
        each = F.binary_cross_entropy_with_logits(logits, right, reduction="none")
        return each.sum(1).mean()

    def _words(self, text: dict, image: dict, batch: dict) -> Tensor:
        hidden = self._side("text", [c and batch[f"masked_{c}"] for c in self.taps["text"]])
        asked = batch["masked_words"]
        logits = self.word_head(self.fused(hidden, image)[1].values[asked.mask])
        return F.cross_entropy(logits, asked.values[asked.mask])

    def _match(self, text: dict, image: dict, batch: dict) -> Tensor:
        n = len(batch["item"])
        order = torch.randperm(n)
        other = torch.arange(n)
        other[order[:n // 2]] = order[:n // 2].roll(1)
        same = (batch["item"][other] == batch["item"]).long()
        return F.cross_entropy(self.match_head(self.fused(text, _rows(image, other))[0]), same)

    def _contrast(self, text: dict, image: dict, batch: dict) -> Tensor:
        return info_nce(image["first"], text["first"], self.temperature(),
                        positives_of(batch["item"]))

    def _hard_match(self, text: dict, image: dict, batch: dict) -> Tensor:
        scores = self.temperature() * cosine(text["first"], image["first"])
        same, draw = batch["item"][:, None] == batch["item"], torch.default_generator
        own, pictures, texts = (torch.arange(len(same)), hard_negatives(scores, same, draw),
                                hard_negatives(scores.T, same, draw))
        c, _ = self.fused(_rows(text, torch.cat([own, own, texts])),
                          _rows(image, torch.cat([own, pictures, own])))
        right = torch.arange(len(c)) < len(own)
        return F.cross_entropy(self.match_head(c), right.long())

    def answer_logits(self, batch: dict) -> Tensor:
        """[n, answers] of a batch of `collate`."""
        found = self.encode(batch)
        return self.answer_head(self.fused(found["text"], found["image"])[0])

    def score(self, query: dict, gallery: dict) -> Tensor:
        """Cosines of the contrast; the `top` of each query are read together with it and come
        first, in the order of how surely they match: 2 plus that probability."""
        coarse = cosine(query["first"], gallery["first"])
        best = coarse.topk(min(self.settings.top, coarse.shape[1]), 1).indices
        fine = []
        for k, at in enumerate(best):
            asks, found = _rows(query, torch.full_like(at, k)), _rows(gallery, at)
            c, _ = self.fused(asks, found) if "text0" in query else self.fused(found, asks)
            fine.append(2 + self.match_head(c).softmax(1)[:, 1])
        return coarse.scatter(1, best, torch.stack(fine))


def _rows(side: dict, at: Tensor) -> dict:
    return {name: x[at] for name, x in side.items()}
