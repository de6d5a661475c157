"""Plato's cave's claims: is a shape found by its name better in the shared subspace?

Corpus: Sweet Home 3D's furniture, one piece a name, 612 names. Shapes are soft occupancy
grids of their points (`points:grid`, 512-d, nothing learned), so neither side ever saw the
other. Anchors are the training rows (some 430), queries the test rows (some 110).

Arms: `affine` maps texts to shapes in the full spaces; `pca-affine` after each side's k
principal components; `cca-affine` after k canonical directions (the paper's). `local` and
`cca-local` score by local CKA instead. `icon-affine` and `icon-cca` have rendered icons
through an image encoder in place of the shapes, which are more like the names. All arms
have the same grid of k and ridge; the full spaces have no k, `local` has no ridge, either.

Looked at before, on the baseline alone: debiased CKA of shapes and names .12 (layers 0
and 1: .04, .09), of icons and names .31; mutual 10-NN .13 (chance .02); hit@5 of `affine`
over seven splits by ridge .16 to .20, best at 1 to 3, and with rows not centred .17, so
the baseline has centred rows; `icon-affine` .48. Five nearest of the same category, on
one split: shapes .39, names .53. In the plan, method arms too: hit@5 .21 to .29 with CCA,
k 50 and ridge 1; .20 with PCA. The paired seeds here were not among these.

Nothing is drawn by chance but the split: the pilot's two runs of the baseline are equal, and
its smallest difference, 0, says nothing. By hand: a hit@5 of some 110 queries both ways has
a standard error near .03, so eight splits can show a difference of .03 or so.

The grid's ridges went from .1 to 10 at first; `pca-affine` and `icon-cca` chose an end on
the tuning seeds' validation rows, so .03 and 30, then 100, were added for all arms before
anything was registered. `icon-cca` then took 100, where next to nothing is whitened and the
directions are those of partial least squares.

Changed after the first run: `weak-structure` was coded as the icons' gain less the shapes',
against its own sentence, and came out as "opposite"; it is the shapes' less the icons'. No
arm and no figure changed.

Run again by an independent reader, 8 and 32 other splits: `subspace` +.046 (24 by its second
look) and +.049, holds; `matching` +.013, not resolved, and +.020 [+.014, +.027], some gain;
`shared` +.060, some gain, and +.065, holds; `local-cka` +.096 and +.094, holds;
`weak-structure` +.034 [+.001, +.066], some gain, and +.047 [+.034, +.060], holds; `meaning`
no gain twice. Beyond the claims, ridge 3, hit@5 with 25 and with all 384 directions: local CKA
.255, .257 (.168 in the full spaces); the affine map .27, .11, but with diag(S) for a map .28,
.30. So the gain is the whitening's and the weights', not that of few dimensions; the follow-up
has an arm that is whitened and not cut, and finds no gain.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch

from alignkit.claims.claim import Arm, Claim, Condition, Null, Trained
from alignkit.claims.common import GPU, UNPAIRED, Encoders, by_arm, corpus, gains
from alignkit.data import Pairs, Splits
from alignkit.data.furniture import furniture
from alignkit.encoders import add_features
from alignkit.evaluation import (assignment_accuracy, cka_debiased, encode_pairs,
                                 evaluate_retrieval)
from alignkit.methods.platos_cave_3d import PlatosCave3d, PlatosCave3dSettings
from alignkit.parts import Method
from alignkit.training import Budget

FIRST = 100  # of the paired seeds; those below were free for looks while it was planned
NEEDS = ("points", "text")
SHAPES, ICONS = ("points_features", "text_features"), ("image_features", "text_features")


@dataclass(frozen=True)
class Scale(Encoders):
    """Encoders, and the grid: widths of the subspace and ridges. Values in the middle
    come first: an arm to which one does not matter takes the first."""

    points: str = "points:grid"
    limit: int | None = None
    ks: tuple[int, ...] = (25, 50, 10, 100)
    ridges: tuple[float, ...] = (1.0, 0.3, 3.0, 0.1, 10.0, 0.03, 30.0,
                                 100.0)


SCALES = {
    # Few rows: the code path in seconds, no claim is read off it.
    "tiny": Scale(limit=120, ks=(10, 5), ridges=(1.0,)),
    "small": Scale(),
    # Pairs of your own (`--pairs`) with `points` and `text`, some thousand.
    "gpu": Scale(**GPU, ks=(50, 25, 100, 200), ridges=(1.0, 0.1, 10.0, 0.01)),
    # The paper's texts, 30,000 anchors and k. PointBERT's features of Objaverse are made by
    # its authors' code: hand them over as the column `points_features`.
    "full": Scale(text="hf:laion/CLIP-ViT-bigG-14-laion2B-39B-b160k#text", ks=(50,),
                  ridges=(1e-3,)),
}


def one_piece_a_name() -> Pairs:
    """Furniture, of each name the first piece."""
    pairs = furniture()
    return pairs.select(pairs.first_of_item())


def data(scale: str = "small", pairs: Pairs | None = None) -> Pairs:
    """Furniture, one piece a name, or the user's `pairs` with `points` [n, p, 3] and
    `text`; with the features of points, texts and, where there are any, pictures.
    `points_features` of the user's own are taken as they are.

    Raises ValueError as `corpus` does.
    """
    s, own = SCALES[scale], pairs is not None
    pairs = corpus(scale, pairs, one_piece_a_name)
    for column in ("points", "text", "image"):
        if column in pairs.columns and f"{column}_features" not in pairs.columns:
            pairs = add_features(pairs, column, getattr(s, column))
    # After the features, which the whole corpus has in the cache.
    return pairs if own else pairs.select(range(min(len(pairs), s.limit or len(pairs))))


def found(method: Method, rows: Pairs) -> dict[str, float]:
    """hit@1, hit@5 and so on, the mean of shapes -> names and names -> shapes."""
    return evaluate_retrieval(method, rows, *method.settings.towers)["mean"]


def matched(arm: Trained) -> float:
    """Share of the test items that a one-to-one assignment pairs rightly."""
    rows = arm.splits.test.select(arm.splits.test.first_of_item())
    shapes, texts = encode_pairs(arm.method, rows, [*arm.method.settings.towers]).values()
    return assignment_accuracy(arm.method.score(texts, shapes))


def same_category(arm: Trained, k: int = 5) -> float:
    """Share of a test shape's k nearest ones that are of its category."""
    rows, side = arm.splits.test, [*arm.method.settings.towers][0]
    z = encode_pairs(arm.method, rows, [side])[side]
    near = (z @ z.T).fill_diagonal_(-torch.inf).topk(k).indices.cpu()
    label = rows.labels["category"]
    return float((label[near] == label[:, None]).double().mean())


def likeness(*columns: str) -> Callable[[Trained], float]:
    """Debiased CKA of two columns, over the rows of all splits."""
    def measure(arm: Trained) -> float:
        return cka_debiased(*(torch.cat([part[c] for part in arm.splits]) for c in columns))
    return measure


def other_categories(splits: Splits, seed: int) -> Splits:
    """A null's `transform`: test shapes change categories among themselves."""
    test = splits.test
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(seed))
    labels = {name: label[order] for name, label in test.labels.items()}
    return splits._replace(test=replace(test, labels=labels))


def _arms(pairs: Pairs, columns: tuple[str, str], named: Mapping[str, str],
          keep: list[str]) -> dict[str, Arm]:
    """named: arm -> "subspace align"."""
    rows, towers = pairs.only(*keep), {c.removesuffix("_features"): c for c in columns}

    def build(kind: str):
        subspace, align = kind.split()

        def method(splits: Splits, **changes) -> PlatosCave3d:
            settings = PlatosCave3dSettings(towers, subspace, align=align, **changes)
            return PlatosCave3d(settings, splits.train)
        return method

    return {name: Arm(rows.split, build(kind)) for name, kind in named.items()}


def claims(pairs: Pairs, scale: str = "small") -> list[Claim]:
    """The claims on `pairs` (from `data`); `weak-structure` where they have pictures,
    `meaning` where they have a label `category`."""
    s = SCALES[scale]
    keep = [c for c in pairs.columns if c in {"text", *SHAPES, *ICONS}]
    arms = _arms(pairs, SHAPES, {
        "affine": "none affine", "cca-affine": "cca affine", "pca-affine": "pca affine",
        "local": "none local-cka", "cca-local": "cca local-cka"}, keep)
    weak = Condition("debiased CKA of shapes and texts", likeness(*SHAPES), 0.0, 0.15)
    common = dict(
        differs="method", budget=Budget(), choose_by="hit@5", condition=weak,
        validate=lambda method, splits: found(method, splits.val),
        grid=tuple({"settings": {"k": k, "ridge": r}} for r in s.ridges for k in s.ks),
        null=UNPAIRED._replace(name="anchors shuffled", margin=0.03))
    hits = dict(figure="hit@5", measure=by_arm(lambda a: found(a.method, a.splits.test)["hit@5"]),
                margin=0.03, margin_why="three in a hundred, a sixth of what the full spaces "
                "find; less would not be worth choosing k for")

    def pair_of(baseline: str, method: str, **rest) -> dict:
        two = {name: arms[name] for name in (baseline, method)}
        return {**common, "arms": two, "baseline": baseline, "method": method, **rest}

    listed = [
        Claim(name="subspace", headline=True, **hits, **pair_of("affine", "cca-affine"),
              sentence="An affine map between the CCA subspaces of shapes and names finds "
                       "more unseen pairs than one between the full spaces."),
        Claim(name="matching", **pair_of("affine", "cca-affine"), figure="assignment",
              measure=by_arm(matched), margin=0.02,
              margin_why="two of a hundred shapes; chance matches one",
              sentence="Through the subspace more shapes are matched with their names, one to "
                       "one."),
        Claim(name="shared", **hits, **pair_of("pca-affine", "cca-affine"),
              sentence="It is what the subspace shares, not its few dimensions: CCA finds "
                       "more than each side's own principal components."),
        Claim(name="local-cka", **hits, **pair_of("local", "cca-local"),
              sentence="Local CKA, too, finds more pairs in the subspace than in the full "
                       "spaces."),
    ]
    if "image_features" in keep:
        arms |= _arms(pairs, ICONS, {"icon-affine": "none affine", "icon-cca": "cca affine"},
                      keep)
        four = ("affine", "cca-affine", "icon-affine", "icon-cca")
        alike = Condition("debiased CKA of icons and texts", likeness(*ICONS), 0.25, 1.0)
        listed.append(Claim(
            name="weak-structure", **hits,
            **pair_of("affine", "cca-affine", condition=(weak, alike),
                      null=common["null"]._replace(margin=0.05),
                      arms={name: arms[name] for name in four}),
            **gains(four[:2], four[2:]),
            sentence="The subspace gains more for shapes, which are hardly like the names, "
                     "than for icons, which are."))
    if "category" in pairs.labels:
        listed.append(Claim(
            name="meaning", figure="same category", measure=by_arm(same_category),
            **pair_of("affine", "cca-affine", null=Null(
                "categories shuffled", other_categories, 0.0, 0.02)),
            margin=0.03, margin_why="three neighbours in a hundred; chance gives some twelve",
            sentence="The five nearest shapes are of one's own category more often in the "
                     "subspace than in the full space, where form alone decides."))
    return listed
