"""UMAEA: align two knowledge graphs whose pictures are partly missing.

Paper: Rethinking Uncertainly Missing and Ambiguous Visual Modality in Multi-Modal Entity
Alignment. Chen, Guo, Fang, Zhang, Chen, Pan, Li, Chen, Zhang, ISWC 2023, arXiv 2307.16210.

Claim: models that fill missing pictures with noise fit the noise, so that at high rates of
missing pictures they stall, or fall. Losses at several scales, weighed by how far an entity
trusts each modality, and pictures imagined from the other modalities, give better
alignments at every rate.

Use it when: two graphs describe the same things, some hundred links are known, every entity
has its place in a graph and some words, and pictures lack for many. Try first zeros for the
missing pictures, or no pictures: on our emoji static fusion without pictures has half of
UMAEA's gain over noise, and UMAEA with zeros in the place of what it imagines all of it.

Equations, of an entity: e_m = W_m x_m + b_m for image, attributes and relations, e_graph its
node after two graph attentions of learned nodes, n modalities, ê = e / |e|:
    z, A = one transformer layer over the n vectors e_m, and its attention
    w = softmax_m(Σ_q A_qm / √n);      dynamic = [w_m ê_m];      fixed = [softmax(s)_m ê_m]
    icl(a, b; u) = −½ mean_i u_i log softmax_j([a_i·b_j / τ, a_i·a_j / τ without j = i])_i,
        and the same with a and b exchanged, of unit rows; u = 1 if not given
    joint = icl(dynamic) + icl(fixed)
    modality = Σ_m exp(−v_m) icl(e_m; n min(w_m of both ends)) + v_m
    late = Σ_m exp(−v_m) icl(z_m) + v_m
    loss = Σ_k L_k / 2c_k² + log(1 + c_k²),  L = joint, modality, late
Imagination, of h = unit([e_graph, e_relations, e_attributes]):
    μ, t = E(h);     y = μ exp(t / 2) + noise (none in evaluation);     i = ŷ,  h' = unit(D(y))
    where a picture lacks e_image := i, and modality gains icl(i; n w_image)
    pictures = 20 d [KL(softmax(e_image) | softmax(i)) + KL(softmax(h) | softmax(h'))], of
        entities with a picture; d the width
    alike = 600 mean KL of the softmaxes of icl's logits at τ = 1, of h and of i
    prior = 3000 mean ½ (exp t + μ² − 1 − t) / (d (n − 1)), summed over the d channels
Stages: `align`, all but E and D learn, with pictures as they were filled; `imagine`, E and D
alone, from half of all the losses; `refine`, image head, transformer, s, v and c learn on.
Without `scales` (the baseline, not the paper's) the loss is icl(fixed).

Frozen: the picture encoder; and what a stage does not train (above).
Exact property: with no picture missing and equal weights, imagination changes no score. A common
factor on `fixed` changes none, one modality has w = 1, u = 1 is no weight, and a batch of one
pair has icl = 0. To exchange the graphs changes no loss.
Deviations (official code: zjukg/UMAEA at 83d7235, UMAEA/): there the weights that are best by the
test links are kept, also for validation (main.py:113, :178, :233); here the last ones, and
held-out links choose the rate. There the transformer's outputs are named in the order graph,
relations, attributes, image (model/UMAEA.py:115), while they stand as image, attributes,
relations, graph (model/UMAEA_tools.py:215), so that a modality's v weighs another one's late
loss; here its own. There s has six entries of which four are used (UMAEA_tools.py:80, :98), a
common factor that unit length removes, and two v more, to no effect. There v and c learn five
times as fast (src/utils.py:50); here as fast as the rest. The prior is a mean over the batch's
entities, there over all. There E's and D's biases are not decayed (src/utils.py:49). There no
gradient is clipped or set to 0 after `align`, as both still ask the first stage's network
(main.py:64, :284, :294; old ones are divided by the scaler's 65536). 20 d is their 6000 at the
width of 300. Kept: y's noise has unit variance, and exp(t / 2) scales the mean
(model/Tool_model.py:361). Left out: the iterative variant and names of entities. Their network
ran beside this one, twice, on equal tensors (float64, no dropout or noise, all entities in the
batch, 20 d in both, v alike): loss and gradient agree to 1e-14 (less 4 log 2 in `imagine`).
Reconstructed: all but the abstract is from the code. On seeds from 5000 on an independent reader
has some gain as before, +.031 [+.018, +.045] in hit@1; there zeros for what is imagined do as
well. With one picture in twenty (a follow-up) they are .006 behind, with others' pictures too.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from alignkit.data import Pairs
from alignkit.parts import Method, Stage, logits_of, unit
from alignkit.parts.graph import GraphAttention, with_loops

SIDES = {"entity": "", "other": "_other"}  # a graph -> what its columns and tables end with
COLUMNS = {"image": "image{}_features", "attributes": "text{}_attributes",
           "relations": "text{}_relations", "graph": None}
ALIGN, IMAGINE, REFINE = range(3)


@dataclass(frozen=True)
class UmaeaSettings:
    """modalities: some of `COLUMNS`. scales: with the losses of each modality and the
    transformer's. imagine, refine: steps of the stages after `align`, which takes the
    budget's (0 and 0: no imagination). width: d. hidden: inner width of the transformer.
    temperature: τ. rate: the budget's rate, of which `refine` takes two fifths."""

    modalities: tuple[str, ...] = tuple(COLUMNS)
    scales: bool = True
    imagine: int = 50
    refine: int = 100
    width: int = 300
    hidden: int = 400
    temperature: float = 0.1
    dropout: float = 0.1
    rate: float = 5e-4

    def __post_init__(self):
        if {*self.modalities} - {*COLUMNS} or not {*self.modalities} - {"graph"}:
            raise ValueError(f"modalities must be some of {list(COLUMNS)}, not the graph alone, "
                             f"got {self.modalities}")
        if (self.imagine > 0) != (self.refine > 0) or self.imagine and not (
                self.scales and {"image", "graph"} < {*self.modalities}):
            raise ValueError("imagine and refine go together, and need scales, images and two "
                             f"more modalities, got {self}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")


def side_logits(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """[a·b, a·a] / τ of unit rows [b, d]: [b, 2b]; a row does not meet itself."""
    itself = torch.eye(len(a), dtype=torch.bool, device=a.device)
    within = logits_of(a, a, 1 / temperature).masked_fill(itself, -1e9)
    return torch.cat([logits_of(a, b, 1 / temperature), within], 1)


def icl(a: Tensor, b: Tensor, temperature: float, weight: Tensor | None = None) -> Tensor:
    """`icl` of paired rows [b, d], made unit here; weight: u [b]."""
    a, b, right = unit(a), unit(b), torch.arange(len(a), device=a.device)
    each = sum(F.cross_entropy(side_logits(own, other, temperature), right, reduction="none")
               for own, other in ((a, b), (b, a)))
    return (each if weight is None else each * weight).mean() / 2


def alike_loss(source: tuple[Tensor, Tensor], target: tuple[Tensor, Tensor]) -> Tensor:
    """Mean KL between how pairs of the target and of the source are alike, over all entries
    of the logits; (a, b) of each [b, d]. No gradient to the target."""
    (a, b), (c, d) = ([unit(x) for x in rows] for rows in (source, target))
    return sum(F.kl_div(side_logits(*found, 1.0).log_softmax(1),
                        side_logits(*want, 1.0).detach().softmax(1), reduction="none").mean()
               for found, want in (((a, b), (c, d)), ((b, a), (d, c)))) / 2


def softmax_kl(target: Tensor, source: Tensor) -> Tensor:
    """KL(softmax(target) | softmax(source)) of rows [b, d], the mean over rows."""
    return F.kl_div(source.log_softmax(1), target.softmax(1), reduction="batchmean")


class _Transformer(nn.Module):
    """One layer, post-norm, with one head: x [b, n, d] -> z, A [b, n, n]."""

    def __init__(self, s: UmaeaSettings):
        super().__init__()
        self.query, self.key = nn.Linear(s.width, s.width), nn.Linear(s.width, s.width)
        self.value, self.out = nn.Linear(s.width, s.width), nn.Linear(s.width, s.width)
        self.inner = nn.Sequential(nn.Linear(s.width, s.hidden), nn.GELU(),
                                   nn.Linear(s.hidden, s.width))
        self.first, self.second = (nn.LayerNorm(s.width, eps=1e-12) for _ in range(2))
        self.dropout = nn.Dropout(s.dropout)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.query(x) @ self.key(x).mT / x.shape[2] ** 0.5
        attention = self.dropout(scores.softmax(-1))
        x = self.first(x + self.dropout(self.out(attention @ self.value(x))))
        return self.second(x + self.dropout(self.inner(x))), attention


class _Imagination(nn.Module):
    """E and D: h [b, d (n - 1)] -> what the losses need of it."""

    def __init__(self, known: int, width: int):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(known, width), nn.ReLU(),
                                     nn.Linear(width, 2 * width))
        self.decoder = nn.Sequential(nn.Linear(width, width), nn.ReLU(),
                                     nn.Linear(width, known), nn.ReLU())

    def forward(self, h: Tensor) -> dict[str, Tensor]:
        mean, t = self.encoder(h).chunk(2, 1)
        y = mean * (t / 2).exp()
        if self.training:
            y = y + torch.randn_like(y)
        prior = (t.exp() + mean.square() - 1 - t).sum(1) / 2 / h.shape[1]
        return {"known": h, "again": unit(self.decoder(y)), "imagined": unit(y), "prior": prior}


class Umaea(Method):
    """Columns `COLUMNS` of both graphs; labels `node` and `node_other`, whose nodes the rows
    are; tables `edges` and `edges_other`, and `nodes`, how many each graph has."""

    settings: UmaeaSettings

    def build(self, settings: UmaeaSettings, pairs: Pairs) -> None:
        s, names, nodes = settings, settings.modalities, pairs.tables["nodes"]
        self.heads = nn.ModuleDict({
            name: nn.Linear(pairs[COLUMNS[name].format("")].shape[1], s.width)
            for name in names if name != "graph"})
        if "graph" in names:
            edges = [pairs.tables["edges"], pairs.tables["edges_other"] + nodes[0]]
            edges = with_loops(torch.cat(edges, 1), sum(nodes))
            self.register_buffer("edges", edges, persistent=False)
            self.nodes = nn.Parameter(torch.randn(sum(nodes), s.width) / sum(nodes) ** 0.5)
            self.graph = nn.ModuleList([GraphAttention(s.width), GraphAttention(s.width)])
        self.starts = dict(zip(SIDES, (0, nodes[0]), strict=True))
        self.share = nn.Parameter(torch.ones(len(names)))  # s
        self.transformer = _Transformer(s) if s.scales else None
        self.variance = nn.Parameter(torch.zeros(len(names))) if s.scales else None  # v
        self.balance = nn.Parameter(torch.ones(3)) if s.scales else None  # c
        known = s.width * (len(names) - 1)
        self.imagination = _Imagination(known, s.width) if s.imagine else None
        self.register_buffer("stage", torch.tensor(ALIGN))

    def stages(self) -> list[Stage]:
        s = self.settings
        if not s.imagine:
            return [Stage(parameters=self.groups(self.named_parameters(), s.rate))]
        resting = ("imagination", "nodes", "graph", "heads.attributes", "heads.relations")
        first, last = ([(name, p) for name, p in self.named_parameters()
                        if not name.startswith(rest)] for rest in (resting[:1], resting))
        dreams = [{"params": list(self.imagination.parameters()), "lr": 4e-3,
                   "weight_decay": 3.0}]
        enter = [Stage(f"enter {k}", solve=partial(self.enter, stage=k)) for k in range(3)]
        return [enter[ALIGN], Stage("align", parameters=self.groups(first, s.rate)),
                enter[IMAGINE], Stage("imagine", parameters=dreams, steps=s.imagine),
                enter[REFINE], Stage("refine", parameters=self.groups(last, 0.4 * s.rate),
                                     steps=s.refine)]

    @staticmethod
    def groups(named: Iterable[tuple[str, nn.Parameter]], rate: float) -> list[dict]:
        """Biases, s, v and c are not decayed."""
        light = ("bias", "share", "variance", "balance")
        found = {False: [], True: []}
        for name, p in named:
            found[name.endswith(light)].append(p)
        return [{"params": found[False], "lr": rate},
                {"params": found[True], "lr": rate, "weight_decay": 0.0}]

    @torch.no_grad()
    def enter(self, pairs: Pairs, stage: int) -> None:
        """Begin a stage: c are ones again."""
        self.stage.fill_(stage)
        self.balance.fill_(1.0)

    def encode(self, batch: dict) -> dict[str, dict[str, Tensor]]:
        """By graph: `fixed`, unit; with `scales` `dynamic`, the modalities' own rows e_m by
        name and z_m as `late_…`, `weights` [b, n], and what imagination gives."""
        nodes = None
        if "graph" in self.settings.modalities:
            nodes = self.graph[1](F.elu(self.graph[0](self.nodes, self.edges)), self.edges)
        first = COLUMNS[next(name for name in self.settings.modalities if name != "graph")]
        return {side: self.side(batch, side, nodes) for side, end in SIDES.items()
                if first.format(end) in batch}

    def side(self, batch: dict, side: str, nodes: Tensor | None) -> dict[str, Tensor]:
        s, end, e, found = self.settings, SIDES[side], {}, {}
        for name in s.modalities:
            if name == "graph":
                at = batch["labels"][f"node{end}"] + self.starts[side]
                e[name] = nodes.index_select(0, at)
            else:
                x = batch[COLUMNS[name].format(end)]
                e[name] = self.heads[name](unit(x) if name == "image" else x)
        if self.imagination and self.stage > ALIGN:
            known = [e[name] for name in reversed(s.modalities) if name != "image"]
            found = self.imagination(unit(torch.cat(known, 1)))
            here = batch["present"][COLUMNS["image"].format(end)][:, None]
            found["here"] = here[:, 0]
            e["image"] = torch.where(here, e["image"], found["imagined"].to(e["image"]))
        rows = torch.stack([unit(x) for x in e.values()], 1)  # [b, n, d]
        found["fixed"] = unit((self.share.softmax(0)[:, None] * rows).flatten(1))
        if not s.scales:
            return found | e
        late, attention = self.transformer(torch.stack([x.to(rows) for x in e.values()], 1))
        weights = (attention.sum(1) / len(e) ** 0.5).softmax(1)
        found |= {"weights": weights, "dynamic": (weights[:, :, None] * rows).flatten(1)}
        return found | e | {f"late_{name}": z for name, z in zip(e, late.unbind(1))}

    def score(self, query: dict[str, Tensor], gallery: dict[str, Tensor]) -> Tensor:
        """Cosines of `fixed`, [n_query, n_gallery]."""
        return query["fixed"] @ gallery["fixed"].T

    def losses(self, outputs: dict, batch: dict, progress: float) -> dict[str, Tensor]:
        a, b, names = outputs["entity"], outputs["other"], self.settings.modalities

        def of(name: str, weight: Tensor | None = None) -> Tensor:
            return icl(a[name], b[name], self.settings.temperature, weight)

        if not self.settings.scales:
            return {"joint_loss": of("fixed")}
        trust = len(names) * torch.minimum(a["weights"], b["weights"]).T  # u [n, b]
        own, v = (-self.variance).exp(), self.variance.sum()
        found = {"joint": of("dynamic") + of("fixed"),
                 "modality": v + sum(f * of(m, u) for f, m, u in zip(own, names, trust)),
                 "late": v + sum(f * of(f"late_{m}") for f, m in zip(own, names))}
        if "imagined" in a:
            found["modality"] = found["modality"] + of("imagined", trust[names.index("image")])
        balanced = {f"{name}_loss": loss / (2 * c.square()) + (1 + c.square()).log()
                    for (name, loss), c in zip(found.items(), self.balance)}
        if self.stage != IMAGINE:
            return balanced
        return balanced | {f"{k}_loss": x / 2 for k, x in self.imagination_losses(a, b).items()}

    def imagination_losses(self, a: dict, b: dict) -> dict[str, Tensor]:
        """`pictures` is of entities that have one; 0 if none in the batch has."""
        both = {k: torch.cat([a[k], b[k]]) for k in ("image", "imagined", "known", "again",
                                                     "here", "prior")}
        here, scale = both["here"], 20.0 * self.settings.width
        pictures = both["known"].new_zeros(()) if not here.any() else scale * (
            softmax_kl(both["image"][here], both["imagined"][here])
            + softmax_kl(both["known"][here], both["again"][here]))
        alike = alike_loss(*((a[k], b[k]) for k in ("imagined", "known")))
        return {"pictures": pictures, "alike": 600 * alike, "prior": 3000 * both["prior"].mean()}
