"""Web images whose class name has another sense: texts choose which of them to trust.

Paper: CAPro: Webly Supervised Learning with Cross-Modality Aligned Prototypes. Qin, Chen,
Shen, Fu, Gu, Li, Sun, Ji, NeurIPS 2023, arXiv 2310.09761.

Claim: where most pictures found by a class's name are of another sense, neither a small loss
nor the middle of the class tells which are right. Texts do: the pictures whose texts are nearest
to the definition, the anchors, begin prototypes, which clean labels; neighbours vote on labels.

Use it when: labels come from a search by name, pictures have texts; look at the anchors first.

Equations, t_i the texts' embeddings, d_k those of definitions; v = e(x), z = unit(p(v)),
z' = unit(p(e'(strong view))), e' a slow copy of e, Q the queue of z', c_k the prototypes
(at first the unit mean of the anchors' z'):
    A: the `kept` best of the `near` nearest pictures after re-ranking, weight 1 − distance,
       symmetric by the larger, no loops, rows sum to 1;      t' = unit(A t)
    anchors of class k: the K texts t' labelled k with the smallest re-ranked distance to d_k
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
Exact property: β = 0 takes b out; b sums to 1 and passes no gradient; α = 1 takes prototypes out
of cleaning; γ > 1 relabels nothing; with K a class's size texts have no say in its prototype.
Deviations from github.com/yuleiqin/capro (bd1771c): the backbone is an MLP on features, not
held still first, trained by AdamW, not SGD; the strong view is their dropout. A missing text is
0, far from all, there the embedding of " ". graph/visual_knn_rerank.py:60 weighs edges by the
re-ranked DISTANCE, farther ones more (`weight="distance"`); there a picture is its own
neighbour too. Sizes of neighbourhoods and decays (there .999) are ours. model.py:679 puts the
batch's keys into the queue before b, here they stand beside it; model.py:643 moves the slow
copy before a step. Prototypes begin with stage two, there after 10 of 120 epochs, and the queue
anew. Stage three: model.py:893-911 does not spare anchors; the rate is a thousandth there
(shells/google500/noise_clean.sh), here as before; mixup is of features in place of CE, at
train.py:652 of pictures beside CE. NUS-WIDE's several labels are not built. Run beside theirs
in float64: `rerank` is graph/rerank_feature.py's; losses, gradient, cleaned labels, prototypes
are those of model.py:599 and train.py:567-697 to 1e-15, b given their queue.
Reconstructed: nothing of the method; the paper's own figures were not found.
"""

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from alignkit.data import Pairs
from alignkit.parts import FeatureQueue, Momentum, Stage, noisy_labels, unit
from alignkit.parts.classifier import Classifier
from alignkit.parts.large_batch import gather_rows
from alignkit.parts.reranking import neighbour_graph, smoothed

CHOICES = {"chosen": ("text", "drawn", "all"), "texts": ("smoothed", "raw"),
           "weight": ("closeness", "distance"), "target": ("collective", "own")}


@dataclass(frozen=True)
class CaproSettings:
    """image, text: feature columns; label: of the search. hidden, width: of v and z.
    anchors: K; chosen: by text, drawn, or all rows, of which none is then protected.
    texts: smoothed by the graph, or raw; weight: of its edges. near: neighbours, and kept.
    ranking: k1, k2 and share, of the graph's few neighbours and of a class's texts alike.
    temperature τ, alpha, beta, gamma. target: b, or the row's `own` prediction in its place.
    slow: decays of e' and of prototypes. drop: of the strong view. clean_from: progress of
    stage two at which cleaning begins. first, last: steps of the first and third stage."""

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
    near: tuple[int, int] = (20, 5)
    ranking: tuple[int, int, float] = (10, 3, 0.3)
    temperature: float = 0.1
    alpha: float = 0.5
    beta: float = 0.1
    gamma: float = 0.6
    target: str = "collective"
    slow: tuple[float, float] = (0.99, 0.95)
    drop: float = 0.3
    clean_from: float = 0.1
    first: int = 60
    last: int = 30

    def __post_init__(self):
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got "
                                 f"{getattr(self, name)!r}")


class AnchorMeans(Classifier):
    """Untrained: a picture's class is that of the nearest mean of anchors' features."""

    settings: CaproSettings
    traits = frozenset({"untrained", "no pairs"})

    def build(self, settings: CaproSettings, pairs: Pairs, width: int | None = None) -> None:
        classes = len(pairs.label_names[settings.label])
        self.register_buffer("anchors", torch.full((classes, settings.anchors), -1))  # items
        self.register_buffer("centres", torch.zeros(
            classes, width or pairs[settings.image].shape[1]))

    def stages(self) -> list[Stage]:
        return [Stage("anchors", solve=self.find)]

    @torch.no_grad()
    def find(self, pairs: Pairs) -> None:
        """Choose the anchors of each class, and take the means of the rows that begin it."""
        rows = self.seen(pairs)
        self.centres.copy_(torch.stack([unit(rows[own].mean(0))
                                        for own in self.members(pairs)]))

    def seen(self, pairs: Pairs) -> Tensor:
        """Rows whose means begin the classes [n, width of the centres]."""
        x = pairs[self.settings.image].to(self.centres)
        return unit(F.layer_norm(x, x.shape[-1:]))

    def texts(self, pairs: Pairs) -> Tensor:
        """The texts' unit rows [n, d] that are matched; 0 where a picture has none."""
        s = self.settings
        there = pairs.present[s.text][:, None].to(self.centres)
        raw = unit(pairs[s.text].to(self.centres)) * there
        if s.texts == "raw":
            return raw
        x = pairs[s.image].to(self.centres)
        return smoothed(raw, neighbour_graph(x, *s.near, s.ranking,
                                             by_distance=s.weight == "distance"))

    def members(self, pairs: Pairs) -> list[Tensor]:
        """Row numbers that begin each class; the anchors' items are kept.

        Raises ValueError for a class without rows, or no table `classes` of definitions.
        """
        s = self.settings
        rows = noisy_labels.rows_of_classes(pairs.labels[s.label], len(self.anchors))
        self.anchors.fill_(-1)
        if s.chosen == "all":
            return rows
        far = [torch.rand(len(own)) for own in rows]
        if s.chosen == "text":
            if "classes" not in pairs.tables:
                raise ValueError("pairs has no table 'classes': definitions, with features "
                                 f"{s.text!r}")
            told = unit(pairs.tables["classes"][s.text].to(self.centres))
            texts = self.texts(pairs)
            far = [noisy_labels.misfit(texts[own], told[k], s.ranking).cpu()
                   for k, own in enumerate(rows)]
        kept = [own[d.argsort(stable=True)[:s.anchors]] for own, d in zip(rows, far)]
        for k, own in enumerate(kept):
            self.anchors[k, :len(own)] = pairs.item[own]
        return kept

    def encode(self, batch: dict) -> dict[str, Tensor]:
        """`image`: cosines with the classes' means [b, C]; `label`: see `Classifier`."""
        x = batch[self.settings.image]
        cosines = unit(F.layer_norm(x, x.shape[-1:])) @ self.centres.T
        return {"image": cosines} | self.labels_of(batch, cosines)


class Capro(AnchorMeans):
    """All three stages."""

    traits = frozenset({"no pairs", "stopped"})

    def build(self, settings: CaproSettings, pairs: Pairs) -> None:
        s = settings
        super().build(s, pairs, s.width), Classifier.build(self, s, pairs)
        self.projector = _mlp(s.hidden, s.hidden, s.width)
        self.back = _mlp(s.width, s.hidden, s.hidden)
        self.low = nn.Linear(s.width, len(self.anchors), bias=False)
        self.slow = Momentum(self.encoder, s.slow[0])
        self.queue = FeatureQueue(s.queue, s.width)
        # Labels of the training rows after cleaning, −1: dropped.
        self.register_buffer("corrected", torch.zeros(len(pairs), dtype=torch.long))
        self.corrected.copy_(pairs.labels[s.label])
        self._fresh = None

    def stages(self) -> list[Stage]:
        s, last = self.settings, [{"params": list(self.classifier.parameters())}]
        return [Stage("vanilla", steps=s.first), Stage("prototypes", solve=self.find),
                Stage("capro"), Stage("clean", solve=self.correct),
                Stage("classifier", self.cleaned, last, steps=s.last)]

    @torch.no_grad()
    def find(self, pairs: Pairs) -> None:
        """Anchors and first prototypes; and keys of drawn rows, made now, into the queue."""
        super().find(pairs)
        few = pairs.select(torch.randperm(len(pairs))[:len(self.queue.rows)])
        self.queue.push(self.seen(few), few.item.to(self.queue.item.device))

    def seen(self, pairs: Pairs) -> Tensor:
        """z' of the rows as they are."""
        return unit(self.projector(self.slow(pairs[self.settings.image].to(self.centres))))

    def collate(self, rows: Pairs, generator: torch.Generator) -> dict:
        """The batch with its strong view; of cleaned rows, mixed with others of them."""
        s, batch = self.settings, rows.batch()
        x = batch[s.image]
        batch["strong"] = F.dropout(x, s.drop, self.training)
        if "cleaned" in rows.labels:
            order = torch.randperm(len(rows), generator=generator)
            part = torch.distributions.Beta(0.8, 0.8).sample()
            batch |= {s.image: part * x + (1 - part) * x[order], "part": part,
                      "other": rows.labels[s.label][order]}
        return batch

    def encode(self, batch: dict) -> dict[str, Tensor]:
        """As `Classifier`; also z."""
        out = Classifier.encode(self, batch)
        return out | {"z": unit(self.projector(out["v"]))}

    def losses(self, outputs: dict, batch: dict, progress: float) -> dict[str, Tensor]:
        s, y, logits = self.settings, batch["labels"][self.settings.label], outputs["image"]
        self._fresh = None
        if "cleaned" in batch["labels"]:
            part = batch["part"]
            return {"mixup_loss": part * F.cross_entropy(logits, y)
                    + (1 - part) * F.cross_entropy(logits, batch["other"])}
        v, z, kept = outputs["v"], outputs["z"], torch.ones_like(y, dtype=torch.bool)
        with torch.no_grad():
            key = unit(self.projector(self.slow(batch["strong"])))
        ready = bool(self.centres.any())
        if ready and progress >= s.clean_from:
            y, kept = self.clean(logits, z, y, batch["item"])
        self._fresh = key, batch["item"], z.detach(), y, kept, ready
        again = self.back(z.detach() if ready else z) - v.detach()
        low, b = self.low(z), self.target(z, key, batch["item"])
        ce = partial(F.cross_entropy, reduction="none")
        found = {"class_loss": ce(logits, y), "back_loss": again.square().mean(1),
                 "low_loss": (1 - s.beta) * ce(low, y) + s.beta * ce(low, b)}
        if ready:
            found["prototype_loss"] = ce(z @ self.centres.T / s.temperature, y)
        found = {name: (loss * kept).sum() / kept.sum().clamp_min(1)
                 for name, loss in found.items()}
        return found | {"instance_loss": self.queue.info_nce(z, key, 1 / s.temperature)}

    @torch.no_grad()
    def target(self, z: Tensor, key: Tensor, item: Tensor) -> Tensor:
        """b [b, C]: the votes of the dictionary (`collective`), or the row's own."""
        if self.settings.target == "own":
            return self.predicted(self.low(z), z)
        keys, _ = self.queue.keys(key, item)
        return noisy_labels.votes(z, keys, self.predicted(self.low(keys), keys))

    def predicted(self, logits: Tensor, z: Tensor) -> Tensor:
        """α softmax(logits) + (1 − α) softmax(z Cᵀ / τ): of W v it is r. Rows sum to 1."""
        s = self.settings
        near = (z @ self.centres.to(z).T / s.temperature).softmax(1)
        return s.alpha * logits.softmax(1) + (1 - s.alpha) * near

    @torch.no_grad()
    def clean(self, logits: Tensor, z: Tensor, y: Tensor, item: Tensor) -> tuple:
        """(labels [b], which rows are kept [b]) by r and the rows' own labels y."""
        return noisy_labels.relabelled(self.predicted(logits, z), y, self.settings.gamma,
                                       torch.isin(item, self.anchors))

    @torch.no_grad()
    def after_step(self) -> None:
        """Keys into the queue, the slow copy and the prototypes one step on."""
        if self._fresh is None:
            return
        key, item, z, y, kept, ready = self._fresh
        self.queue.push(key, item)
        self.slow.update(self.encoder)
        if ready:
            rows = map(gather_rows, (z, y, kept))
            self.centres.copy_(noisy_labels.moved_centres(
                self.centres, *rows, self.settings.slow[1]))

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


def _mlp(d: int, hidden: int, out: int) -> nn.Module:
    return nn.Sequential(nn.Linear(d, hidden), nn.ReLU(), nn.Linear(hidden, out))
