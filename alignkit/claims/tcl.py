"""TCL's claims: does the loss within a modality keep neighbourhoods that wrong captions
spoil, is retrieval kept, what do local parts add, and what do near-duplicates cost?

Corpus: composed scenes. A picture shows two to five of 64 things, so there is no single
class: a neighbour counts if it shows one of the same things (with one thing a picture
this is class purity), among the ten nearest training pictures of a new one. Nothing is
trained on `things`. With pairs of your own they are the label `class`.

Arms: `cma` is the cross-modal loss alone, with momentum, queue and soft targets as in
the paper; `imc` adds the loss within each modality, `lmi` the local parts, `tcl` both.
@0.0 and @0.5: this share of training captions was shuffled. @known and @blind train
on a quarter of the scenes, each four times with its picture a little changed; the
copies are one item, or strangers. All heads are linear, of one width, on one budget.

Decided by pilots on `cma` alone, before any other term was trained:

- Scenes, not single objects: of 507 different single objects 100 are new, on which
  class purity (64 nouns; or colours) moved by up to 0.08 between seeds and not with the
  captions. On scenes `cma` finds neighbours at 0.41, 0.39 and 0.38 with 0, 30 and 50 %
  wrong captions; the frozen tokens stand at 0.44: there is room to keep 0.06.
- Eight seeds can show 0.015 at 50 %; expected were 0.02 to 0.10. Margin 0.02, the least
  expected there; for the difference of gains, for parts and near-duplicates it was zero
  and is 0.02 now, set when the figures were known (a registration replaces it).
- hit@10 (0.50 without wrong captions, 0.26 with half) moves by 0.03 between two equal
  runs: eight seeds show 0.037 and 0.025. The claim 'not lower by 0.03' became one of a
  gain when its figure was known; that LMI's expected 0 to 3 points may not be resolved was known.
- No arms at 30 %: their time was needed for the near-duplicates.
- 120 steps of 64 rows (9 epochs), momentum 0.99, a queue of 256, less than a third of
  the rows; places averaged to 4 × 4 and tokens projected to 128 numbers, for speed.
- Rates are chosen for each arm by the mean of both figures on validation, because the
  rate moves neighbourhoods, too. No arm chose 0.001 and ten 0.01, where the grid ended:
  0.03 took the place of 0.001 and the run began anew, no measured seed looked at.

Seen afterwards and left: `tcl@0.0` and `imc@known` chose 0.03, where the grid ends.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from alignkit.claims.claim import Arm, Claim, Condition, Null, Trained
from alignkit.claims.common import (
    GPU, WORTH, Encoders, by_arm, hit_at_10, image_text, need_labels, rates, single_objects,
)  # fmt: skip
from alignkit.data import Pairs, Splits, Tokens, shuffle_pairs
from alignkit.data.scenes import scenes
from alignkit.encoders import add_features
from alignkit.evaluation import encode_pairs
from alignkit.methods.tcl import Tcl, TclSettings, on_grid, view_of
from alignkit.parts import Method, mean_pool, unit
from alignkit.training import Budget

NEEDS = ("image", "text")
LABELS = ("class",)
RHOS = (0.0, 0.5)
NEAREST, COPIES = 10, 4


@dataclass(frozen=True)
class Scale(Encoders):
    """Scenes; encoders; `cut`: side of the grid of places and width of tokens before
    training (None: as they come); width, momentum, queue; budget."""

    scenes: int = 1200
    cut: tuple[int, int] | None = (4, 128)
    width: int = 64
    momentum: float = 0.99
    queue: int = 256
    budget: Budget = Budget(steps=120, batch_size=64, lr=3e-3)


SCALES = {
    # Few rows and steps: the code path in seconds, no claim is read off it.
    "tiny": Scale(scenes=100, queue=8,
                  budget=replace(Scale.budget, steps=10, batch_size=32, lr=1e-2)),
    "small": Scale(),
    # One 16 GB GPU; bring pairs of your own (`--pairs`), some thousand.
    "gpu": Scale(**GPU, cut=None, width=256,
                 momentum=0.995, queue=1024,
                 budget=replace(Scale.budget, steps=1500, batch_size=128, lr=1e-3)),
    # The paper's width, momentum, queue, batch, rate, and 30 epochs of four million.
    "full": Scale(image="timm:vit_base_patch16_224.augreg_in21k",
                  text="hf:google-bert/bert-base-uncased", cut=None, width=256,
                  momentum=0.995, queue=65_536,
                  budget=replace(Scale.budget, steps=234_000, batch_size=512, lr=1e-4,
                                 weight_decay=0.02)),
}


def data(scale: str = "small", pairs: Pairs | None = None) -> Pairs:
    """Scenes, or the user's `pairs` with the label `class`, with tokens of both
    encoders and `things` [n, classes], what a picture shows: 1 or 0.

    Raises ValueError as `image_text` does, or for a missing label.
    """
    s = SCALES[scale]
    if pairs is None and scale in ("tiny", "small"):
        # Single objects are not used here; so the tokens have one place in the cache.
        pairs = single_objects(scenes(s.scenes), s.scenes // 2)
        objects, names = pairs.tables["objects"], pairs.tables["vocabulary"]
        things = torch.zeros(len(pairs), len(names))
        things[torch.searchsorted(pairs.item, objects["item"]), objects["noun"]] = 1
    else:
        pairs = image_text(scale, pairs)
        need_labels(pairs, LABELS, "give every row a class, for neighbours")
        things = one_hot(pairs.labels["class"]).float()
    for column, name in (("image", s.image), ("text", s.text)):
        pairs = add_features(pairs, column, name, tokens=True)
        tokens = pairs[f"{column}_tokens"]
        if s.cut:
            tokens = smaller(tokens, s.cut[0] if column == "image" else 10**6, s.cut[1])
        pairs = pairs.with_features(**{f"{column}_tokens": tokens})
    return pairs.with_features(things=things)


def smaller(tokens: Tokens, side: int, width: int) -> Tokens:
    """Places averaged to side × side, values [n, t, d] turned to `width` numbers by a
    fixed random projection: both for time alone, and the same for every arm."""
    values, mask = on_grid(tokens, side)
    drawn = torch.Generator().manual_seed(0)
    projection = torch.randn(values.shape[2], width, generator=drawn) / width**0.5
    return Tokens(values @ projection * mask[:, :, None], mask)


# What is measured -----------------------------------------------------------------
def neighbours(query: Tensor, gallery: Tensor, shown: Tensor, there: Tensor) -> float:
    """Of the NEAREST rows of `gallery` [m, d] to each `query` [n, d], the share that
    shows one of the same things (`shown` [n, c], `there` [m, c]): with one thing a
    picture this is class purity."""
    nearest = (unit(query) @ unit(gallery).T).topk(min(NEAREST, len(gallery))).indices
    return ((there[nearest] * shown[:, None]).sum(2) > 0).double().mean().item()


def purity(method: Method | None, splits: Splits, part: str = "test") -> float:
    """`neighbours` of new pictures among the training pictures; of the frozen tokens'
    means, less their mean in training, without a method."""
    new, old = getattr(splits, part), splits.train
    if method is None:
        z = [mean_pool(rows["image_tokens"]) for rows in (new, old)]
        z = [x - z[1].mean(0) for x in z]
    else:
        z = [encode_pairs(method, rows, ("image",))["image"] for rows in (new, old)]
    return neighbours(*z, new["things"], old["things"])


def own_parts(method: Tcl, splits: Splits) -> float:
    """Mean cosine of a new picture's row with its own places, less with others'."""
    rows = splits.test
    z, n = encode_pairs(method, rows, ("image",))["image"], len(rows)
    values, mask = rows.columns.get("image_parts", rows["image_tokens"])
    with torch.no_grad():
        places = unit(method.heads["image"](values))
    cosine = torch.einsum("nd,mkd->nmk", z, places)
    cosine = (cosine * mask).sum(2) / mask.sum(1)
    own = cosine.diagonal().sum()
    return (own / n - (cosine.sum() - own) / (n * n - n)).item()


def pairs_found(method: Method, splits: Splits) -> float:
    """hit@10 on the test rows, mean of both directions."""
    return hit_at_10(method, splits.test)


def validate(method: Method, splits: Splits) -> dict[str, float]:
    """Both that is measured, on validation rows: for choosing the rate."""
    return {"both": (purity(method, splits, "val") + hit_at_10(method, splits.val)) / 2}


def cured(splits: Splits, seed: int) -> Splits:
    """A null's `transform`: no picture keeps the list of its things, the places of new
    ones, or in training its text; nothing of the claims can be left."""
    def turned(rows: Pairs) -> Pairs:
        drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
        values, mask = rows["image_tokens"]
        return rows.with_features(things=rows["things"][drawn],
                                  image_parts=Tokens(values[drawn], mask[drawn]))

    return Splits(shuffle_pairs(turned(splits.train), "text", seed),
                  turned(splits.val), turned(splits.test))


# Arms -----------------------------------------------------------------------------
def copied(train: Pairs, seed: int, known: bool) -> Pairs:
    """A share 1 / COPIES of the rows, each COPIES times, every copy's picture a little
    changed: near-duplicates. known: copies are one item, else strangers."""
    drawn = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(train), generator=drawn)[:len(train) // COPIES]
    rows = rows.repeat(COPIES)
    found = train.select(rows)
    found = found.with_features(
        image_tokens=view_of(found["image_tokens"], 0.1, 0.2, drawn))
    return replace(found, ids=[f"{name} {k}" for k, name in enumerate(found.ids)],
                   item=found.item if known else torch.arange(len(rows)))


def arms_of(pairs: Pairs, s: Scale) -> dict[str, Arm]:
    """Terms of the loss @ share of wrong captions, or @ how copies are kept."""
    towers = {m: f"{m}_tokens" for m in NEEDS}
    extra = ["things"] if "things" in pairs.columns else []

    @lru_cache(maxsize=8)  # arms of a seed share one copy of the tokens
    def splits_of(seed: int, kind: float | str) -> Splits:
        splits = pairs.only("image", "text", *towers.values(), *extra).split(seed)
        train = splits.train
        if isinstance(kind, str):
            return splits._replace(train=copied(train, seed, kind == "known"))
        return splits._replace(train=shuffle_pairs(train, "text", seed, kind))

    def arm(kind: float | str, *terms: str) -> Arm:
        made = TclSettings(towers=towers, width=s.width, terms=terms, queue=s.queue,
                           momentum=s.momentum)
        return Arm(partial(splits_of, kind=kind), lambda parts: Tcl(made, parts.train))

    arms = {f"{name}@{kind}": arm(kind, *terms)
            for kind in (*RHOS, "known", "blind")
            for name, terms in (("cma", ["cma"]), ("imc", ["cma", "imc"]))}
    return arms | {"lmi@0.0": arm(0.0, "cma", "lmi"),
                   "tcl@0.0": arm(0.0, "cma", "imc", "lmi")}


def gain(figures: Mapping[str, float], kind: float | str) -> float:
    """What IMC adds, with one kind of training rows."""
    return figures[f"imc@{kind}"] - figures[f"cma@{kind}"]


def lost(trained: Trained) -> float:
    """How much of the frozen tokens' neighbourhoods the baseline has lost."""
    return purity(None, trained.splits) - purity(trained.method, trained.splits)


def copies_met(trained: Trained, seen: int) -> float:
    """How many near-duplicates of its own a row meets among `seen` keys, on average."""
    train = trained.splits.train
    _, place, count = train.group.unique(return_inverse=True, return_counts=True)
    return (count[place] - 1).double().mean().item() * (seen - 1) / (len(train) - 1)


def claims(pairs: Pairs, scale: str = "small") -> list[Claim]:
    """The claims on `pairs` (from `data`)."""
    s = SCALES[scale]
    arms, seen = arms_of(pairs, s), s.budget.batch_size + s.queue

    def claim(baseline: str, method: str, figure: Callable, unit: str, bound: float,
              also: tuple = (), **rest) -> Claim:
        """A claim on two arms and those of `also`; bound: of the null."""
        rest = WORTH | rest
        names = (baseline, method, *also)
        return Claim(
            arms={name: arms[name] for name in names}, baseline=baseline, method=method,
            measure=by_arm(lambda arm: figure(arm.method, arm.splits)), figure=unit,
            differs="method", budget=s.budget, grid=rates(3e-3, 1e-2, 3e-2),
            null=Null("things, places and captions shuffled", cured, 0.0, bound),
            validate=validate, choose_by="both", **rest)

    def room(figure: Callable) -> Condition:
        return Condition("the baseline leaves room",
                         lambda arm: figure(arm.method, arm.splits), 0.05, 0.9)

    gone = Condition("neighbours lost by the baseline", lost, 0.02, 1.0)
    half = ("cma@0.5", "imc@0.5")
    parts = {"also": ("cma@0.0", "lmi@0.0"), "twins": {"tcl@0.0": "imc@0.0"}}
    return [
        claim(*half, purity, "purity", 0.02, name="neighbourhoods", headline=True,
              condition=gone, sentence="With half of the captions wrong, a loss within "
                                       "each modality keeps more neighbours."),
        claim(*half, purity, "purity", 0.03, ("cma@0.0", "imc@0.0"),
              twins={f"imc@{rho}": f"cma@{rho}" for rho in RHOS},
              subtracts="imc minus cma where half of the captions are wrong, less the same "
                        "where none is",
              statistic=lambda f: gain(f, 0.5) - gain(f, 0.0), condition=gone,
              name="more-with-noise", sentence="It keeps more with half of the captions "
                                               "wrong than with none."),
        claim(*half, pairs_found, "hit@10", 0.03, name="retrieval-with-noise",
              condition=room(pairs_found), sentence="It also retrieves better."),
        claim("imc@0.0", "tcl@0.0", pairs_found, "hit@10", 0.03, name="parts-retrieve",
              condition=room(pairs_found), sentence="Local parts add to retrieval.", **parts),
        claim("imc@0.0", "tcl@0.0", own_parts, "own - others", 0.03, **parts,
              name="own-parts", condition=room(own_parts),
              sentence="They draw a picture's row to its own places, from others'."),
        claim("cma@blind", "imc@blind", purity, "purity", 0.03,
              ("cma@known", "imc@known"), name="near-duplicates",
              twins={f"imc@{kind}": f"cma@{kind}" for kind in ("known", "blind")},
              condition=Condition("copies that a row meets",
                                  lambda arm: copies_met(arm, seen), 0.5, 100.0),
              subtracts="imc minus cma where near-duplicates are known, less the same where "
                        "they are strangers",
              statistic=lambda f: gain(f, "known") - gain(f, "blind"),
              sentence="Near-duplicates that are strangers cost it some of its gain."),
    ]
