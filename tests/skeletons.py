"""Seven very different papers in at most 40 lines each, on random tensors: what the
contracts must carry. Each gives a maker of arms, a measure and what differs."""

import copy
from types import SimpleNamespace as Settings

import torch
from torch import nn
from torch.nn import functional as F

from alignkit.claims import Arm
from alignkit.data import Pairs, Tokens, drop_modality
from alignkit.evaluation import evaluate_retrieval, retrieval
from alignkit.parts import Method, Stage, info_nce, optimise_inputs, unit


def _latent(n: int, *widths: int, seed: int = 0, noise: float = 0.1) -> list[torch.Tensor]:
    """Views [n, width] of one hidden vector a row."""
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, 6, generator=g)
    return [hidden @ torch.randn(6, w, generator=g) + noise * torch.randn(n, w, generator=g)
            for w in widths]


def hit(arms) -> dict[str, float]:
    return {name: evaluate_retrieval(arm.method, arm.splits.test, *arm.method.asks)
            ["mean"]["hit@5"] for name, arm in arms.items()}


# 1 · A captioner trained in two stages.
class Captioner(Method):
    """Bridge first, then bridge and decoder at rates of their own; teacher forcing."""

    def build(self, settings, pairs):
        words = int(pairs["text"].values.max()) + 1  # the vocabulary comes from data
        self.bridge = nn.Linear(pairs["image"].shape[1], 16)
        self.words, self.decoder = nn.Embedding(words, 16), nn.GRU(16, 16, batch_first=True)
        self.out = nn.Linear(16, words)

    def stages(self):
        rest = [*self.words.parameters(), *self.decoder.parameters(), *self.out.parameters()]
        bridge = {"params": list(self.bridge.parameters()), "lr": 1e-2}
        return [Stage("bridge", parameters=[bridge], steps=4),
                Stage("all", parameters=[{**bridge, "lr": 1e-3}, {"params": rest}],
                      steps=self.settings.steps)]

    def encode(self, batch):
        shown = self.bridge(batch["image"])
        heard, _ = self.decoder(self.words(batch["text"].values[:, :-1]), shown[None])
        return {"image": shown, "logits": self.out(heard)}

    def losses(self, outputs, batch, progress):
        words, mask = batch["text"]
        loss = F.cross_entropy(outputs["logits"].transpose(1, 2), words[:, 1:], reduction="none")
        return {"caption_loss": loss[mask[:, 1:]].mean()}

    @torch.no_grad()
    def generate(self, batch, length=4):
        state, word = self.bridge(batch["image"])[None], batch["text"].values[:, :1]
        words = []
        for _ in range(length):
            heard, state = self.decoder(self.words(word), state)
            words.append(word := self.out(heard).argmax(-1))
        return torch.cat(words, 1)


def captioner(steps):
    def data(seed):
        (image,) = _latent(60, 8)
        words = torch.cat([torch.zeros(60, 1), 1 + 2 * torch.arange(4) + (image[:, :4] > 0)], 1)
        text = Tokens(words.long(), torch.ones(60, 5, dtype=torch.bool))
        return Pairs.make({"image": image, "text": text}).split(seed)
    return Arm(data, lambda splits: Captioner(Settings(steps=steps), splits.train))


def word_accuracy(arms):
    return {name: (arm.method.generate(arm.splits.test.batch())
                   == arm.splits.test["text"].values[:, 1:]).float().mean().item()
            for name, arm in arms.items()}


# 2 · Graph alignment in three stages with missing images and edges.
class GraphAlign(Method):
    """Pictures are spread along the edges in closed form, then heads are trained on all
    entities, then on those with a picture of their own."""

    asks = ("left", "right")

    def build(self, settings, pairs):
        n = pairs.tables["entities"]
        adjacency = torch.eye(n)
        adjacency[tuple(pairs.tables["edges"])] = 1.0
        self.register_buffer("spread", adjacency / adjacency.sum(1, keepdim=True))
        self.register_buffer("image", torch.zeros(n, pairs["image"].shape[1]))
        self.left = nn.Linear(pairs["left"].shape[1], 8)
        self.right = nn.Linear(pairs["right"].shape[1] + pairs["image"].shape[1], 8)

    def _fill(self, pairs):
        image = torch.zeros_like(self.image)
        image[pairs.item] = pairs["image"] * pairs.present["image"][:, None]
        for _ in range(self.settings.hops):
            image = self.spread @ image
        self.image.copy_(image)

    def stages(self):
        return [Stage("fill", solve=self._fill), Stage("all", steps=6),
                Stage("seen", view=lambda p: p.select(p.present["image"]), steps=6)]

    def encode(self, batch):
        right = torch.cat([batch["right"], self.image[batch["item"]]], 1)
        return {"left": unit(self.left(batch["left"])), "right": unit(self.right(right))}

    def losses(self, outputs, batch, progress):
        return {"align_loss": info_nce(outputs["left"], outputs["right"], 10.0)}


def graph(hops):
    def data(seed):
        left, right, image = _latent(60, 8, 5, 6)
        near = torch.cdist(left, left).topk(4, largest=False).indices[:, 1:]
        edges = torch.stack([torch.arange(60).repeat_interleave(3), near.flatten()])
        pairs = Pairs.make({"left": left, "right": right, "image": image},
                           tables={"edges": edges, "entities": 60})
        return drop_modality(pairs, "image", seed=0, fraction=0.5).split(seed)
    return Arm(data, lambda splits: GraphAlign(Settings(hops=hops), splits.train))


# 3 · Closed-form canonical correlations.
class CCA(Method):
    """Whitened cross-covariance, singular vectors, no gradient step."""

    traits, asks = frozenset({"untrained"}), ("a", "b")

    def build(self, settings, pairs):
        for name in self.asks:
            d = pairs[name].shape[1]
            self.register_buffer(f"mean_{name}", torch.zeros(d))
            self.register_buffer(f"map_{name}", torch.zeros(d, settings.width))

    def stages(self):
        return [Stage("solve", solve=self._solve)]

    def _solve(self, pairs):
        white, centred = {}, {}
        for name in self.asks:
            getattr(self, f"mean_{name}").copy_(pairs[name].mean(0))
            x = centred[name] = pairs[name] - pairs[name].mean(0)
            values, vectors = torch.linalg.eigh(x.T @ x / len(x) + 1e-3 * torch.eye(x.shape[1]))
            white[name] = vectors / values.sqrt() @ vectors.T
        cross = white["a"] @ centred["a"].T @ centred["b"] @ white["b"] / len(pairs)
        u, _, v = torch.linalg.svd(cross, full_matrices=False)
        self.map_a.copy_((white["a"] @ u)[:, : self.settings.width])
        self.map_b.copy_((white["b"] @ v.T)[:, : self.settings.width])

    def encode(self, batch):
        return {name: unit((batch[name] - getattr(self, f"mean_{name}"))
                           @ getattr(self, f"map_{name}")) for name in self.asks}


def cca(width):
    def data(seed):
        a, b = _latent(80, 8, 7)
        return Pairs.make({"a": a, "b": b}).split(seed)
    return Arm(data, lambda splits: CCA(Settings(width=width), splits.train))


# 4 · Per-sample inversion through a frozen tower.
class Inversion(Method):
    """An image is turned into an input of the frozen text tower before it is compared."""

    traits, asks = frozenset({"untrained"}), ("image", "text")

    def build(self, settings, pairs):
        g = torch.Generator().manual_seed(0)
        tower = torch.randn(pairs["text"].shape[1], pairs["image"].shape[1], generator=g)
        self.register_buffer("tower", tower)

    def stages(self):
        return []

    def encode(self, batch):
        start = torch.zeros(len(batch["image"]), len(self.tower))
        inputs = optimise_inputs(
            lambda x: (x @ self.tower - batch["image"]).square().sum(1), start,
            steps=self.settings.steps, lr=0.1)
        return {"image": unit(inputs), "text": unit(batch["text"])}


def inversion(steps):
    def data(seed):
        (text,) = _latent(50, 5)
        tower = torch.randn(5, 9, generator=torch.Generator().manual_seed(0))
        return Pairs.make({"image": text @ tower, "text": text}).split(seed)
    return Arm(data, lambda splits: Inversion(Settings(steps=steps), splits.train))


# 5 · Preference optimisation on rows that an engine made.
def engine(pairs: Pairs, seed: int) -> Pairs:
    """A data engine: a worse answer for every row."""
    g = torch.Generator().manual_seed(seed)
    worse = pairs["answer"] + torch.randn(pairs["answer"].shape, generator=g)
    return pairs.with_columns(worse=worse)


class Preference(Method):
    """DPO with a Gaussian policy around a linear map; the reference is a frozen copy."""

    def build(self, settings, pairs):
        self.policy = nn.Linear(pairs["question"].shape[1], pairs["answer"].shape[1])
        self.reference = copy.deepcopy(self.policy).requires_grad_(False)

    def stages(self):
        # The reference is the policy as it starts, whatever weights that arm was given.
        return [Stage("copy", solve=lambda _: self.reference.load_state_dict(
            self.policy.state_dict())), Stage("prefer")]

    def encode(self, batch):
        def log_p(model, answer):
            return -(model(batch["question"]) - answer).square().sum(1) / 2
        return {"margin": log_p(self.policy, batch["answer"])
                - log_p(self.reference, batch["answer"])
                - log_p(self.policy, batch["worse"]) + log_p(self.reference, batch["worse"])}

    def losses(self, outputs, batch, progress):
        return {"preference_loss": -F.logsigmoid(self.settings.beta * outputs["margin"]).mean()}


def preference(beta):
    def data(seed):
        question, answer = _latent(60, 6, 4)
        return engine(Pairs.make({"question": question, "answer": answer}), 0).split(seed)
    return Arm(data, lambda splits: Preference(Settings(beta=beta), splits.train))


def preferred(arms):
    return {name: (arm.method.encode(arm.splits.test.batch())["margin"] > 0)
            .float().mean().item() for name, arm in arms.items()}


# 6 · Token pruning that differs at inference only.
class Pruned(Method):
    """Mean of the `keep` longest tokens when evaluating, of all when training."""

    asks = ("image", "text")

    def build(self, settings, pairs):
        self.image = nn.Linear(pairs["image"].values.shape[-1], 8)
        self.text = nn.Linear(pairs["text"].shape[-1], 8)

    def encode(self, batch):
        values, mask = batch["image"]
        if not self.training:
            length = values.norm(dim=-1).masked_fill(~mask, -1)
            kept = length.topk(min(self.settings.keep, mask.shape[1]), 1).indices
            mask = mask & torch.zeros_like(mask).scatter(1, kept, True)
        mean = (values * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return {"image": unit(self.image(mean)), "text": unit(self.text(batch["text"]))}

    def losses(self, outputs, batch, progress):
        return {"contrastive_loss": info_nce(outputs["image"], outputs["text"], 10.0)}


def pruned(keep):
    def data(seed):
        text, flat = _latent(70, 6, 24)
        mask = torch.arange(4) < torch.randint(2, 5, (70, 1), generator=torch.manual_seed(0))
        image = Tokens(flat.view(70, 4, 6), mask)
        return Pairs.make({"image": image, "text": text}).split(seed)
    return Arm(data, lambda splits: Pruned(Settings(keep=keep), splits.train))


# 7 · Ranking of user–item interactions, training items excluded.
class Ranking(Method):
    """Matrix factorisation with InfoNCE; a row is an interaction, ids are its columns."""

    def build(self, settings, pairs):
        users, items = pairs.tables["users"], pairs.tables["items"]
        self.user, self.film = nn.Embedding(users, 8), nn.Embedding(items, 8)
        seen = torch.zeros(users, items, dtype=torch.bool)
        seen[pairs["user"], pairs["film"]] = True
        self.register_buffer("seen", seen)

    def encode(self, batch):
        return {name: {"z": unit(getattr(self, name)(batch[name])), "id": batch[name]}
                for name in ("user", "film")}

    def losses(self, outputs, batch, progress):
        positives = self.seen[batch["user"][:, None], batch["film"][None]]
        return {"rank_loss": info_nce(outputs["user"]["z"], outputs["film"]["z"], 5.0, positives)}

    def score(self, query, gallery):
        known = self.seen[query["id"][:, None], gallery["id"][None]]
        hide = known if self.settings.exclude else torch.zeros_like(known)
        return (query["z"] @ gallery["z"].T).masked_fill(hide, -1e4)


def ranking(exclude):
    def data(seed):
        a, b = _latent(30, 6, 6)
        film = (a @ b.T).topk(6, dim=1).indices.flatten()
        user = torch.arange(30).repeat_interleave(6)
        pairs = Pairs.make({"user": user, "film": film}, tables={"users": 30, "items": 30})
        return pairs.split(seed)
    return Arm(data, lambda splits: Ranking(Settings(exclude=exclude), splits.train))


def ranked(arms):
    figures = {}
    for name, arm in arms.items():
        every = torch.arange(30)  # the whole catalogue is the gallery, not the test rows
        films = arm.method.encode({"user": every, "film": every})["film"]
        asked = arm.method.encode(arm.splits.test.batch())["user"]
        figures[name] = retrieval(asked, films, arm.splits.test["film"], every,
                                  score=arm.method.score)["hit@10"]
    return figures


SKELETONS = {  # name -> (arm maker, baseline setting, method setting, measure, differs)
    "captioner": (captioner, 2, 40, word_accuracy, "method"),
    "graph": (graph, 0, 2, hit, "method"),
    "cca": (cca, 1, 5, hit, "method"),
    "inversion": (inversion, 1, 60, hit, "inference"),
    "preference": (preference, 0.0, 1.0, preferred, "method"),
    "pruning": (pruned, 4, 2, hit, "inference"),
    "ranking": (ranking, False, True, ranked, "inference"),
}
