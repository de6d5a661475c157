"""STRUCTURE's claims: the regulariser and the choice of layers, each as arms of its own.

Every arm is linear heads of width 128 on frozen features, of the same budget and grid of
learning rates. Baselines are `plain@n` (last layers, λ = 0, n training pairs); `keep@n`
adds the regulariser, `layers@n` takes the pair of layers that agree most on the training
pairs. Figure: hit@10 on held-out pairs, the mean of both directions.

Changed once after a full run: the grid ended at 0.003, which most arms chose, so 0.01
was added for all arms and every seed was run again.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from alignkit.claims.claim import Arm, Claim, Condition, Null, Trained
from alignkit.claims.common import (
    GPU, UNPAIRED, WORTH, held_out_hits, image_text, rates, validation_hits,
)  # fmt: skip
from alignkit.data import Pairs, Splits, few_pairs
from alignkit.encoders import add_features
from alignkit.evaluation import mutual_knn, rice_k
from alignkit.methods.structure import (
    Structure,
    StructureSettings,
    choose_layers,
    neighbourhoods,
)
from alignkit.stats import slope
from alignkit.training import Budget

NEEDS = ("image", "text")


@dataclass(frozen=True)
class Scale:
    """Encoders, training sizes (the last is all there are), width and budget."""

    image: str
    text: str
    sizes: tuple[int, ...]
    budget: Budget
    tau: float
    limit: int | None = None
    width: int = 128


SMALL = Scale(
    image="image:efficientnet-lite0", text="text:minilm", sizes=(100, 300, 1000),
    budget=Budget(steps=200, batch_size=512, lr=1e-3, validate_every=10,
                  select_by="hit@10"),
    # Measured on the features before any method arm ran: at the authors' 0.05 each name
    # sees only itself (diagonal mass 0.95 to 0.99) and the regulariser is silent; at 0.15
    # the mass lies between 0.1 and 0.7 for every size.
    tau=0.15)
SCALES = {
    # Few rows and steps: the code path in seconds, no claim is read off it.
    "tiny": replace(SMALL, sizes=(30, 60), limit=120,
                    budget=replace(SMALL.budget, steps=20, validate_every=10)),
    "small": SMALL,
    # One 16 GB GPU; bring pairs of your own (`--pairs`), some thousand.
    "gpu": replace(SMALL, **GPU, sizes=(1000, 2500, 5000), width=512,
                   budget=replace(SMALL.budget, steps=1000, batch_size=4096)),
    # The paper's encoders, sizes, batch and width; its pairs are MS-COCO.
    "full": replace(SMALL, image="timm:vit_large_patch14_dinov2.lvd142m",
                    text="hf:sentence-transformers/all-roberta-large-v1",
                    sizes=(1000, 5000, 10_000, 50_000), width=512, tau=0.05,
                    budget=replace(SMALL.budget, steps=5000, batch_size=4096,
                                   lr=1e-3)),
}


def data(scale: str = "small", pairs: Pairs | None = None) -> Pairs:
    """Pairs with every layer of both encoders; `pairs` of a user need `image`, `text`.

    Raises ValueError as `image_text` does.
    """
    s = SCALES[scale]
    pairs = image_text(scale, pairs, s.limit)
    pairs = add_features(pairs, "image", s.image, layers="all")
    return add_features(pairs, "text", s.text, layers="all")


def layer_columns(pairs: Pairs, modality: str) -> list[str]:
    """The layers' columns of a modality, from the first to the last."""
    return [c for c in pairs.columns if c.startswith(f"{modality}_layer")]


def kept_geometry(arms: Mapping[str, Trained]) -> dict[str, float]:
    """Overlap of the test rows' nearest neighbours before and after the heads."""
    kept = {}
    for name, (method, splits, _) in arms.items():
        with torch.no_grad():
            batch = splits.test.batch()
            outputs = method.encode(batch)
        k = rice_k(len(splits.test))
        both = [mutual_knn(batch[column], outputs[m], k)
                for m, column in method.settings.towers.items()]
        kept[name] = sum(both) / len(both)
    return kept


def diagonal_mass(arm: Trained, tau: float, batch_size: int) -> float:
    """Mean of diag(p) over both modalities on one training batch: near 1 each row sees
    only itself and the regulariser is silent."""
    rows = arm.splits.train.select(torch.arange(min(batch_size, len(arm.splits.train))))
    masses = [neighbourhoods(rows[column], tau).diagonal().mean().item()
              for column in arm.method.settings.towers.values()]
    return sum(masses) / len(masses)


def _sizes(pairs: Pairs, s: Scale) -> list[int]:
    """The training sizes that these pairs can give."""
    most = int(0.65 * len(pairs.item.unique()))  # a training split holds about 0.7
    return [n for n in s.sizes if n <= most] or [most]


def _arms(pairs: Pairs, s: Scale, sizes: list[int]) -> dict[str, Arm]:
    images, texts = layer_columns(pairs, "image"), layer_columns(pairs, "text")
    last = {"image": images[-1], "text": texts[-1]}

    def splits_of(n: int, columns: list[str]):
        def splits(seed: int) -> Splits:
            parts = pairs.only("image", "text", *columns).split(seed)
            return parts._replace(train=few_pairs(parts.train, n, seed))
        return splits

    def heads(strength: float, towers=last):
        settings = StructureSettings(towers=towers, width=s.width, strength=strength,
                                     tau=s.tau)
        return lambda splits: Structure(settings, splits.train)

    def chosen_layers(splits: Splits) -> Structure:
        best = choose_layers(splits.train, images, texts)
        return heads(0.0, {"image": best.image, "text": best.text})(splits)

    arms = {}
    for n in sizes:
        at_n = splits_of(n, list(last.values()))
        arms |= {f"plain@{n}": Arm(at_n, heads(0.0)), f"keep@{n}": Arm(at_n, heads(10.0)),
                 f"layers@{n}": Arm(splits_of(n, images + texts), chosen_layers)}
    return arms


def claims(pairs: Pairs, scale: str = "small") -> list[Claim]:
    """The claims on `pairs` (from `data`)."""
    s = SCALES[scale]
    sizes = _sizes(pairs, s)
    arms, few, most = _arms(pairs, s, sizes), sizes[0], sizes[-1]

    def isotropic(splits: Splits, seed: int) -> Splits:
        # No row has a neighbour: the diagonal mass is 1 and both arms see the same loss.
        g = torch.Generator().manual_seed(seed)
        noise = {c: torch.randn(x.shape, generator=g)
                 for c, x in splits.train.columns.items() if "_layer" in c}
        return splits._replace(train=splits.train.with_columns(**noise))

    common = dict(
        differs="method", budget=s.budget, validate=validation_hits, choose_by="hit@10",
        grid=rates(3e-4, 1e-3, 3e-3, 1e-2), null=UNPAIRED,
        condition=Condition(
            "diagonal mass of the neighbourhoods",
            lambda arm: diagonal_mass(arm, s.tau, s.budget.batch_size), 0.1, 0.7))

    def pair_of(other: str, n: int, **rest) -> dict:
        names = (f"plain@{n}", f"{other}@{n}")
        return {**common, "arms": {name: arms[name] for name in names},
                "baseline": names[0], "method": names[1], **rest}

    def gain(figures: dict[str, float], n: int) -> float:
        return figures[f"keep@{n}"] - figures[f"plain@{n}"]

    sized = [name for n in sizes for name in (f"plain@{n}", f"keep@{n}")]
    found = [Claim(
        name=f"regulariser-{n}", headline=n == few, figure="hit@10", measure=held_out_hits, **WORTH,
        sentence=f"The regulariser raises held-out retrieval with {n} training pairs.",
        **pair_of("keep", n)) for n in sizes]
    if len(sizes) > 1:
        found.append(Claim(
            name="fewer-pairs", figure="hit@10", measure=held_out_hits, **WORTH,
            sentence="The regulariser gains more where training pairs are fewer (minus the "
                     "slope of its gain a tenfold of pairs).",
            subtracts="minus the slope of (keep minus plain), a tenfold of pairs",
            statistic=lambda figures: -slope([math.log10(n) for n in sizes],
                                             [gain(figures, n) for n in sizes]),
            twins={f"keep@{n}": f"plain@{n}" for n in sizes},
            **pair_of("keep", few, arms={name: arms[name] for name in sized})))
    found.append(Claim(
        name="geometry", figure="kNN overlap", measure=kept_geometry, **WORTH,
        sentence=f"With {few} pairs, the regulariser keeps more of each encoder's "
                 "neighbourhoods.",
        **pair_of("keep", few, null=Null("isotropic random training features", isotropic,
                                         expected=0.0, margin=0.02))))
    found.append(Claim(
        name="layers", figure="hit@10", measure=held_out_hits, **WORTH,
        sentence=f"With {most} pairs, the layers that agree most retrieve better than the "
                 "last ones.", **pair_of("layers", most)))
    return found
