"""Web images whose class name has another sense: texts choose which of them to trust.

Paper: CAPro: Webly Supervised Learning with Cross-Modality Aligned Prototypes. Qin, Chen,
Shen, Fu, Gu, Li, Sun, Ji, NeurIPS 2023, arXiv 2310.09761.

Claim: pictures found by a class's name are partly, perhaps mostly, of another sense of the
name, and then neither a small loss nor the middle of the class says which are right. The
texts beside the pictures do: those nearest to the class's definition are its anchors, whose
mean is the class's prototype. Contrast with prototypes, labels cleaned by them, and soft
labels of a dictionary of neighbours follow.

Use it when: labels come from a search by name, some names are ambiguous, the wrong sense
may be the majority, and the pictures come with texts. Look at the anchors first: they
decide everything else.

Equations, û = u / |u|; text side, t_i the texts' embeddings, d_k those of definitions:
    A: the `kept` best of the `near` nearest pictures after re-ranking, weight 1 − distance,
       symmetric by the larger, no loops, rows sum to 1;      t' = unit(A t)
    anchors of class k: the K texts t' labelled k with the smallest re-ranked distance to d_k
network, v = e(x), z = unit(p(v)), z' = unit(p(e'(strong view))), e' a slow copy of e, Q the
queue of z', c_k the prototypes (at first the unit mean of the anchors' z'):
    L_cls = CE(W v, y)                     L_inst = CE over (z·z', z·Q) / τ, its own key right
    L_prj = MSE(back(z), v)                L_proto = CE(z Cᵀ / τ, y)
    L_low = (1 − β) CE(f(z), y) + β CE(f(z), b)
    b = Σ_j s_j [α softmax(f(q_j)) + (1 − α) softmax(q_j Cᵀ / τ)],  s_j ~ clip(z·q_j, 0, 1)
    r = α softmax(W v) + (1 − α) softmax(z Cᵀ / τ)
    y ← argmax r if max r ≥ γ;  else y stays if r_y ≥ 1/C;  else the row counts in L_inst
    alone;  anchors keep their label;           c_y ← unit(m c_y + (1 − m) z)
Three stages: without prototypes; with them, labels cleaned after a tenth; W alone on the
training rows as cleaned, with mixup. A picture's class is the largest of W v.

Frozen: what made the features. Trained: e, p, back, W, f; in the third stage W alone.
Exact property: β = 0 takes b out; b sums to 1 and no gradient reaches the queue, f through
b, or the prototypes; α = 1 takes the prototypes out of cleaning; γ > 1 relabels nothing;
with K at least the size of the classes texts have no say in the first prototypes; texts of
a picture without neighbours that have one become 0.
Deviations from github.com/yuleiqin/capro (bd1771c): the backbone is an MLP on features; the
strong view is their dropout. visual_knn_rerank.py:60 stores the re-ranked DISTANCE as an
edge's weight, so that farther neighbours weigh more: `weight="distance"` does so, 1 − it is
the default. There a picture is among its own neighbours; here it is not. Sizes of
neighbourhoods are ours. A missing text is 0 and at distance 2 of all, there the embedding of
" ". model.py:679 puts the batch's keys into the queue before b, here they stand beside it.
The momentum copy moves after a step, at model.py:643 before. The encoder is not held still
first; the queue is filled anew with the prototypes. Multi-label classes (NUS-WIDE) are not built.
Reconstructed: nothing of the method; the paper's own figures were not found.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from alignkit.data import Pairs
from alignkit.parts import FeatureQueue, Method, Momentum, Stage, unit
from alignkit.parts.large_batch import gather_rows
from alignkit.parts.reranking import rerank

CHOSEN, TEXTS, WEIGHTS, TARGETS = (("text", "drawn", "all"), ("smoothed", "raw"),
                                   ("closeness", "distance"), ("collective", "own"))


@dataclass(frozen=True)
class CaproSettings:
    """image, text: feature columns; label: of the search. hidden, width: of v and z.
    anchors: K; chosen: by text, drawn, or all rows, of which none is then protected.
    texts: smoothed by the graph, or raw; weight: of its edges. near, kept: neighbours.
    k1, k2, share: of re-ranking, of the graph's few neighbours and of a class's texts alike.
    temperature τ, alpha, beta, gamma. target: b, or the row's `own` prediction in its place.
    slow, slow_prototypes: decays. drop: of the strong view. clean_from: progress from which
    labels are cleaned. first, last: steps of the first and the third stage."""

    image: str = "image_features"
    text: str = "text_features"
    label: str = "query"
    hidden: int = 256
    width: int = 64
    queue: int = 512
    anchors: int = 8
    chosen: str = "text"
    texts: str = "smoothed"
    weight: str = "closeness"
    near: int = 20
    kept: int = 5
    k1: int = 10
    k2: int = 3
    share: float = 0.3
    temperature: float = 0.1
    alpha: float = 0.5
    beta: float = 0.1
    gamma: float = 0.6
    target: str = "collective"
    slow: float = 0.99
    slow_prototypes: float = 0.95
    drop: float = 0.3
    clean_from: float = 0.1
    first: int = 60
    last: int = 30

    def __post_init__(self):
        for name, known in (("chosen", CHOSEN), ("texts", TEXTS), ("weight", WEIGHTS),
                            ("target", TARGETS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got "
                                 f"{getattr(self, name)!r}")
        if min(self.anchors, self.near, self.kept) < 1:
            raise ValueError("anchors, near and kept must be at least 1, got "
                             f"{self.anchors}, {self.near} and {self.kept}")


# The text side ------------------------------------------------------------------------
def distances(x: Tensor) -> Tensor:
    """2 − 2 cos between unit rows [..., n, d], 0 to itself; a row of zeros is at 2 of all."""
    found = (2 - 2 * x @ x.mT).clamp_min(0)
    return found * (1 - torch.eye(x.shape[-2], dtype=x.dtype, device=x.device))


def visual_graph(x: Tensor, s: CaproSettings) -> tuple[Tensor, Tensor]:
    """(edges [2, e], weights [e]) of A for pictures x [n, d]: row i's edges are those with
    edges[0] = i, their weights sum to 1."""
    x, n = unit(x), len(x)
    near, kept = min(s.near, n - 1), min(s.kept, n - 1)
    ends, weights = [], []
    for rows in torch.arange(n, device=x.device).split(512):
        cosines = x[rows] @ x.T
        cosines[torch.arange(len(rows), device=x.device), rows] = -2  # not its own neighbour
        around = cosines.topk(near).indices
        found = rerank(distances(x[torch.cat([rows[:, None], around], 1)]), s.k1, s.k2, s.share)
        d, best = found[:, 0, 1:].topk(kept, largest=False)
        ends.append(torch.stack([rows.repeat_interleave(kept),
                                 around.gather(1, best).flatten()]))
        weights.append(d.flatten().clamp(0.001, 0.999))
    ends, w = torch.cat(ends, 1), torch.cat(weights)
    w = w if s.weight == "distance" else 1 - w
    both, place = torch.cat([ends, ends.flip(0)], 1).unique(dim=1, return_inverse=True)
    w = w.new_zeros(both.shape[1]).scatter_reduce(0, place, w.repeat(2), "amax")
    return both, w / w.new_zeros(n).index_add(0, both[0], w)[both[0]]


def smoothed(texts: Tensor, graph: tuple[Tensor, Tensor]) -> Tensor:
    """unit(A t): each text replaced by the mean of its picture's neighbours'; 0 stays 0."""
    (here, there), w = graph
    return unit(torch.zeros_like(texts).index_add(0, here, w[:, None] * texts[there]))


def match(texts: Tensor, definition: Tensor, s: CaproSettings) -> Tensor:
    """Re-ranked distance [n] of unit texts [n, d] to the definition [d] of their class."""
    return rerank(distances(torch.cat([definition[None], texts])), s.k1, s.k2, s.share)[0, 1:]


class AnchorMeans(Method):
    """The anchors alone: a picture's class is that of the nearest mean of anchors, in the
    space of the features. Nothing is trained."""

    settings: CaproSettings
    traits = frozenset({"untrained", "no pairs"})

    def build(self, settings: CaproSettings, pairs: Pairs) -> None:
        classes = len(pairs.label_names[settings.label])
        # Items of the anchors of each class, −1 where there are none.
        self.register_buffer("anchors", torch.full((classes, settings.anchors), -1))
        self.register_buffer("centres", torch.zeros(classes, pairs[settings.image].shape[1]))

    def stages(self) -> list[Stage]:
        return [Stage("anchors", solve=self.find)]

    @torch.no_grad()
    def find(self, pairs: Pairs) -> None:
        """Choose the anchors of each class, and take the means of those that begin it."""
        members = self.members(pairs)
        rows = self.seen(pairs)
        self.centres.copy_(torch.stack([unit(rows[own].mean(0)) for own in members]))

    def seen(self, pairs: Pairs) -> Tensor:
        """Rows whose means begin the classes [n, width of the centres]."""
        return self.frozen(pairs[self.settings.image].to(self.centres))

    def frozen(self, x: Tensor) -> Tensor:
        return unit(F.layer_norm(x, x.shape[-1:]))

    def texts(self, pairs: Pairs) -> Tensor:
        """The texts' unit rows [n, d] that are matched; 0 where a picture has none."""
        s = self.settings
        there = pairs.present[s.text][:, None].to(self.centres)
        raw = unit(pairs[s.text].to(self.centres)) * there
        if s.texts == "raw":
            return raw
        return smoothed(raw, visual_graph(pairs[s.image].to(self.centres), s))

    def members(self, pairs: Pairs) -> list[Tensor]:
        """Row numbers that begin each class; the anchors' items are kept.

        Raises ValueError for a class without rows, or no table `classes` of definitions.
        """
        s, y = self.settings, pairs.labels[self.settings.label].to(self.anchors.device)
        counts = y.bincount(minlength=len(self.anchors))
        if not counts.all():
            name = pairs.label_names[s.label][int(counts.argmin())]
            raise ValueError(f"class {name!r} has no training row labelled {s.label!r}")
        rows = [(y == k).nonzero()[:, 0] for k in range(len(self.anchors))]
        self.anchors.fill_(-1)
        if s.chosen == "all":
            return rows
        if s.chosen == "drawn":
            far = [torch.rand(len(own), device=y.device) for own in rows]
        else:
            if "classes" not in pairs.tables:
                raise ValueError("pairs has no table 'classes': the definitions, with "
                                 f"features {s.text!r}")
            told = unit(pairs.tables["classes"][s.text].to(self.centres))
            texts = self.texts(pairs)
            far = [match(texts[own], told[k], s) for k, own in enumerate(rows)]
        kept = [own[d.argsort(stable=True)[:s.anchors]] for own, d in zip(rows, far)]
        for k, own in enumerate(kept):
            self.anchors[k, :len(own)] = pairs.item.to(own.device)[own]
        return kept

    def encode(self, batch: dict) -> dict[str, Tensor]:
        """`image`: scores of the classes [b, C]; `label`: the row's label, one-hot."""
        logits = self.frozen(batch[self.settings.image]) @ self.centres.T
        return {"image": logits} | self._labels(batch, logits)

    def _labels(self, batch: dict, logits: Tensor) -> dict[str, Tensor]:
        y = batch["labels"].get(self.settings.label)
        return {} if y is None else {"label": F.one_hot(y, logits.shape[1]).to(logits)}

    def score(self, query: Tensor, gallery: Tensor) -> Tensor:
        """Scores of pictures (`image`) for the classes of rows (`label`), or back."""
        return query @ gallery.T


# The network --------------------------------------------------------------------------
class Capro(AnchorMeans):
    """All three stages."""

    traits = frozenset({"no pairs", "stopped"})

    def build(self, settings: CaproSettings, pairs: Pairs) -> None:
        s, width = settings, pairs[settings.image].shape[1]
        classes = len(pairs.label_names[s.label])
        self.encoder = nn.Sequential(nn.LayerNorm(width, elementwise_affine=False),
                                     nn.Linear(width, s.hidden), nn.ReLU())
        self.projector = _mlp(s.hidden, s.hidden, s.width)
        self.back = _mlp(s.width, s.hidden, s.hidden)
        self.classifier = nn.Linear(s.hidden, classes, bias=False)
        self.low = nn.Linear(s.width, classes, bias=False)
        self.slow = Momentum(self.encoder, s.slow)
        self.queue = FeatureQueue(s.queue, s.width)
        self.register_buffer("anchors", torch.full((classes, s.anchors), -1))
        self.register_buffer("centres", torch.zeros(classes, s.width))  # the prototypes
        # Of each training row after cleaning, −1: dropped.
        self.register_buffer("corrected", torch.full((len(pairs),), -1))
        self._fresh = None

    def stages(self) -> list[Stage]:
        s = self.settings
        return [Stage("vanilla", steps=s.first), Stage("prototypes", solve=self.find),
                Stage("capro"), Stage("clean", solve=self.correct),
                Stage("classifier", self.cleaned, [{"params": list(
                    self.classifier.parameters())}], steps=s.last)]

    @torch.no_grad()
    def find(self, pairs: Pairs) -> None:
        """Anchors and first prototypes; and keys of drawn rows, made now, into the queue."""
        super().find(pairs)
        few = pairs.select(torch.randperm(len(pairs))[:len(self.queue.rows)])
        self.queue.push(self.seen(few), few.item.to(self.queue.item.device))

    def seen(self, pairs: Pairs) -> Tensor:
        """z' of the rows as they are."""
        x = pairs[self.settings.image].to(self.centres)
        return torch.cat([unit(self.projector(self.slow(part))) for part in x.split(1024)])

    def collate(self, rows: Pairs, generator: torch.Generator) -> dict:
        """The batch with its strong view; of cleaned rows, mixed with others of them."""
        s, batch = self.settings, rows.batch()
        x, still = batch[s.image], not self.training
        batch["strong"] = x if still else F.dropout(x, s.drop)
        if "cleaned" in rows.labels:
            order = torch.randperm(len(rows), generator=generator)
            part = torch.distributions.Beta(0.8, 0.8).sample() if not still else torch.ones(())
            batch |= {s.image: part * x + (1 - part) * x[order], "part": part,
                      "other": rows.labels[s.label][order]}
        return batch

    def encode(self, batch: dict) -> dict[str, Tensor]:
        """As `AnchorMeans`, of W v; also v and z."""
        v = self.encoder(batch[self.settings.image])
        logits = self.classifier(v)
        return {"image": logits, **self._labels(batch, logits), "v": v,
                "z": unit(self.projector(v))}

    def losses(self, outputs: dict, batch: dict, progress: float) -> dict[str, Tensor]:
        s, y, logits = self.settings, batch["labels"][self.settings.label], outputs["image"]
        self._fresh = None
        if "cleaned" in batch["labels"]:
            mixed = (batch["part"] * F.cross_entropy(logits, y)
                     + (1 - batch["part"]) * F.cross_entropy(logits, batch["other"]))
            return {"mixup_loss": mixed}
        v, z, kept = outputs["v"], outputs["z"], torch.ones_like(y, dtype=torch.bool)
        with torch.no_grad():
            key = unit(self.projector(self.slow(batch["strong"])))
        ready = bool(self.centres.any())
        if ready and progress >= s.clean_from:
            y, kept = self.clean(logits, z, y, batch["item"])
        found = {"class_loss": _mean(_ce(logits, y), kept),
                 "instance_loss": self._instances(z, key),
                 "back_loss": _mean(((self.back(z.detach() if ready else z) - v.detach())
                                     ** 2).mean(1), kept),
                 "low_loss": _mean(self._low(z, y, key, batch["item"]), kept)}
        if ready:
            found["prototype_loss"] = _mean(_ce(z @ self.centres.T / s.temperature, y), kept)
        self._fresh = key, batch["item"], z.detach(), y, kept, ready
        return found

    def _instances(self, z: Tensor, key: Tensor) -> Tensor:
        right = (z * key).sum(1, keepdim=True)
        logits = torch.cat([right, z @ self.queue.rows.to(z).T], 1) / self.settings.temperature
        return F.cross_entropy(logits, torch.zeros(len(z), dtype=torch.long, device=z.device))

    def _low(self, z: Tensor, y: Tensor, key: Tensor, item: Tensor) -> Tensor:
        beta = self.settings.beta
        logits = self.low(z)
        return (1 - beta) * _ce(logits, y) + beta * _ce(logits, self.target(z, key, item))

    @torch.no_grad()
    def target(self, z: Tensor, key: Tensor, item: Tensor) -> Tensor:
        """b [b, C]: the votes of the dictionary (`collective`), or the row's own."""
        if self.settings.target == "own":
            return self.vote(z)
        keys, _ = self.queue.keys(key, item)
        near = (z @ keys.T).clamp(0, 1) + 1e-7
        return (near / near.sum(1, keepdim=True)) @ self.vote(keys)

    def vote(self, z: Tensor) -> Tensor:
        """α softmax(f(z)) + (1 − α) softmax(z Cᵀ / τ), rows sum to 1."""
        return self._mixed(self.low(z), z)

    def _mixed(self, logits: Tensor, z: Tensor) -> Tensor:
        s = self.settings
        near = (z @ self.centres.to(z).T / s.temperature).softmax(1)
        return s.alpha * logits.softmax(1) + (1 - s.alpha) * near

    @torch.no_grad()
    def clean(self, logits: Tensor, z: Tensor, y: Tensor, item: Tensor) -> tuple:
        """(labels [b], which rows are kept [b]) by r and the rows' own labels y."""
        r = self._mixed(logits, z)
        sure, guess = r.max(1)
        anchor = torch.isin(item, self.anchors)
        changed = (sure >= self.settings.gamma) & ~anchor
        likely = r.gather(1, y[:, None])[:, 0] >= 1 / r.shape[1]
        return torch.where(changed, guess, y), likely | changed | anchor

    @torch.no_grad()
    def after_step(self) -> None:
        """Keys into the queue, the slow copy and the prototypes one step on."""
        if self._fresh is None:
            return
        key, item, z, y, kept, ready = self._fresh
        self.queue.push(key, item)
        self.slow.update(self.encoder)
        if ready:
            self.centres.copy_(moved(self.centres, *map(gather_rows, (z, y, kept)),
                                     self.settings.slow_prototypes))

    @torch.no_grad()
    def correct(self, pairs: Pairs) -> None:
        """The labels of all training rows, cleaned by r."""
        s, device = self.settings, self.centres.device
        out = self.encode({s.image: pairs[s.image].to(self.centres), "labels": {}})
        y, kept = self.clean(out["image"], out["z"], pairs.labels[s.label].to(device),
                             pairs.item.to(device))
        self.corrected.copy_(torch.where(kept, y, -1))

    def cleaned(self, pairs: Pairs) -> Pairs:
        """The training rows that are kept, with their corrected labels."""
        y = self.corrected.cpu()
        rows, y = pairs.select(y >= 0), y[y >= 0]
        return replace(rows, labels=rows.labels | {self.settings.label: y,
                                                   "cleaned": torch.ones_like(y)})


class CrossEntropy(Capro):
    """L_cls alone, on the labels as they are."""

    traits = frozenset({"no pairs"})

    def stages(self) -> list[Stage]:
        return [Stage("labels", parameters=[{"params": [*self.encoder.parameters(),
                                                        *self.classifier.parameters()]}])]

    def losses(self, outputs: dict, batch: dict, progress: float) -> dict[str, Tensor]:
        return {"class_loss": F.cross_entropy(outputs["image"],
                                              batch["labels"][self.settings.label])}


def moved(centres: Tensor, z: Tensor, y: Tensor, kept: Tensor, decay: float) -> Tensor:
    """Prototypes [C, w] after c_y ← m c_y + (1 − m) z for each kept row in turn, then unit."""
    z, y = z[kept].to(centres), y[kept]
    same = y[:, None] == y
    later = same.triu(1).sum(1)  # rows of its class that come after it
    own = F.one_hot(y, len(centres)).to(centres)
    weight = (1 - decay) * decay ** later.to(centres)
    return unit(decay ** own.sum(0)[:, None] * centres + own.T @ (weight[:, None] * z))


def _mlp(*widths: int) -> nn.Module:
    d, hidden, out = widths
    return nn.Sequential(nn.Linear(d, hidden), nn.ReLU(), nn.Linear(hidden, out))


def _ce(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits, y, reduction="none")


def _mean(loss: Tensor, kept: Tensor) -> Tensor:
    """Mean of the kept rows; 0 if there are none."""
    return (loss * kept).sum() / kept.sum().clamp_min(1)
