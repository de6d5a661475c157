"""RCAR's claims: attention that is corrected by what it found against attention that is not,
what of it is the learned head's, and what fillers and the temperature have to do with it.

Draft: nothing is published yet. Delete this line with the first published results.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from alignkit.claims.claim import Arm, Claim, Condition, Trained
from alignkit.claims.common import UNLEARNED, by_arm, corpus, once, rates
from alignkit.data import Pairs, Splits, Tokens
from alignkit.data.scenes import NOUNS, scenes
from alignkit.encoders import add_regions
from alignkit.encoders.regions import grid_boxes
from alignkit.evaluation import encode_pairs, ranks
from alignkit.methods.rcar import Rcar, RcarSettings
from alignkit.parts import Method
from alignkit.training import Budget

FIRST = 100  # of the paired seeds; those below were free for looks while it was planned
NEEDS = ("image", "text")
FILLERS = ("well", "now", "here", "there", "just", "really", "some", "quite", "indeed",
           "perhaps", "also", "then")


@dataclass(frozen=True)
class Scale:
    """Scenes; fillers a caption at most; encoder and its layer; shares of the splits; shape
    of the method, and the margins of scores that are cosines and that are sigmoids; budget."""

    scenes: int = 1000
    fillers: int = 8
    encoder: str = "image:efficientnet-lite0"
    layer: int = 5
    parts: tuple[float, float, float] = (0.6, 0.15, 0.25)
    shape: RcarSettings = RcarSettings(width=32, alignment=16, words=64, dropout=0.1)
    margins: tuple[float, float] = (0.2, 0.2)
    budget: Budget = Budget(steps=150, batch_size=32, lr=1e-2, weight_decay=0.01, clip=2.0)


SCALES = {
    # Few rows and steps: the code path in seconds, no claim is read off it.
    "tiny": Scale(scenes=120, fillers=2, shape=replace(
        Scale.shape, width=8, alignment=8, words=8),
        budget=replace(Scale.budget, steps=4, batch_size=8)),
    "small": Scale(),
    # One 16 GB GPU; bring photographs with captions (`--pairs`), some thousand.
    "gpu": Scale(encoder="timm:convnext_base.fb_in22k_ft_in1k", layer=-1, shape=RcarSettings(
        width=256, alignment=64, words=300, vocabulary=8000, longest=32, summed=0.1),
        budget=replace(Scale.budget, steps=3000, batch_size=64, lr=1e-3)),
    # The paper's widths, batch, rate and 40 epochs of Flickr30K; its regions are a detector's.
    "full": Scale(encoder="timm:resnet101", layer=-1, shape=RcarSettings(
        width=1024, alignment=256, words=300, vocabulary=10_000, longest=64, summed=0.075),
        budget=replace(Scale.budget, steps=45_000, batch_size=128, lr=5e-4)),
}


# Data ---------------------------------------------------------------------------------
def data(scale: str = "small", pairs: Pairs | None = None) -> Pairs:
    """Scenes with the features of their plates and captions with fillers; or the user's
    `pairs` with those of their boxes, or of a grid of 36. Raises ValueError as `corpus`."""
    s, own = SCALES[scale], pairs is not None
    pairs = corpus(scale, pairs, lambda: scenes(s.scenes))
    boxes = pairs.columns.get("image_boxes", grid_boxes(len(pairs)) if own else None)
    pairs = add_regions(pairs, "image", s.encoder, layers=(s.layer,), boxes=boxes)
    end = f"_layer{s.layer}" if s.layer >= 0 else ""
    pairs = pairs.with_features(image_regions=pairs[f"image{end}_regions"])
    return pairs if own else with_fillers(pairs, s.fillers)


def with_fillers(pairs: Pairs, most: int) -> Pairs:
    """Scenes whose `text` says "dog on blue and bell on red" of their first two things, with 0
    to `most` fillers between the words; `text_plain` has none, `text_filled` has `most`.
    Equal plain captions are one item."""
    plain, some, filled = [], [], []
    for row, (_, (first, second, *_)) in enumerate(pairs["image"].sources):
        drawn = random.Random(f"fillers {row}")
        words = " and ".join(f"{noun} on {colour}" for noun, _, colour, *_ in (first, second))
        plain.append(words)
        some.append(_filled(words, drawn.randint(0, most), drawn))
        filled.append(_filled(words, most, drawn))
    numbers = {words: k for k, words in enumerate(sorted(set(plain)))}
    columns = {**pairs.columns, "text": some, "text_plain": plain, "text_filled": filled}
    return Pairs.make(columns, ids=pairs.ids, item=[numbers[words] for words in plain],
                      provenance=pairs.provenance.derive(f"captions with 0-{most} fillers 1"))


def _filled(words: str, n: int, drawn: random.Random) -> str:
    found = words.split()
    for _ in range(n):
        found.insert(drawn.randint(0, len(found)), drawn.choice(FILLERS))
    return " ".join(found)


# What is measured ---------------------------------------------------------------------
def found(method: Method, rows: Pairs, text: str = "text") -> float:
    """hit@1 of captions that ask for pictures and of pictures that ask for captions, the mean;
    all rows are the gallery, equal captions right answers to each other."""
    rows = rows.with_columns(text=rows[text])
    out = encode_pairs(method, rows, ("text", "image"))
    with torch.no_grad():
        scores = method.score(out["text"], out["image"])
    right = (rows.item[:, None] == rows.item).to(scores.device)
    hits = [(ranks(x, right) <= 1).double().mean() for x in (scores, scores.T)]
    return float(sum(hits) / 2)


@once
def on_tests(arm: Trained) -> dict[str, float]:
    """`found` of test captions as they are (''), without fillers and with all."""
    rows = arm.splits.test
    return {end: found(arm.method, rows, f"text{end}") for end in ("", "_plain", "_filled")
            if f"text{end}" in rows.columns}


def as_they_are(arm: Trained) -> float:
    """hit@1 of the test rows."""
    return on_tests(arm)[""]


def plain_and_filled(arms: Mapping[str, Trained]) -> dict[str, float]:
    """hit@1 by arm of captions with all their fillers, and without any ('… plain')."""
    return {name + end: on_tests(arm)[text] for end, text in (("", "_filled"), (
        " plain", "_plain")) for name, arm in arms.items()}


@torch.no_grad()
def sharper_on_nouns(arm: Trained) -> float:
    """The mean λ of nouns less that of fillers in the last look at their own picture, in parts
    of λ₀; of captions with all their fillers."""
    method, rows = arm.method, arm.splits.test
    rows = rows.with_columns(text=rows["text_filled"])
    out = encode_pairs(method, rows, ("text", "image"))
    ids = method.pieces(rows["text"], method.settings.longest).values
    lam = []
    for one in torch.arange(len(rows)).split(1):
        words, regions = (Tokens(*(x[one] for x in out[m].values())) for m in ("text", "image"))
        last = method.read(words, regions).lam[-1]
        lam.append(last.expand(1, 1, words.values.shape[1], 1)[0, 0, :, 0])
    lam = torch.stack(lam).cpu()
    mean = [lam[torch.isin(ids, pieces(method, words))].mean() for words in (NOUNS, FILLERS)]
    return float(mean[0] - mean[1]) / method.settings.lam


def pieces(method: Method, words) -> torch.Tensor:
    """The ids of those words that are in the method's vocabulary."""
    known = method.pieces.vocabulary
    return torch.tensor([known.index(word) for word in words if word in known])


def fillers_a_word(arm: Trained) -> float:
    """The share of the words of the training captions that are fillers."""
    words = " ".join(arm.splits.train["text"]).split()
    return sum(word in FILLERS for word in words) / len(words)


# Claims -------------------------------------------------------------------------------
def _arms(pairs: Pairs, s: Scale) -> dict[str, Arm]:
    rows = pairs.only(*(c for c in pairs.columns if c.startswith("text")), "image_regions")

    @lru_cache(maxsize=2)
    def splits(seed: int) -> Splits:
        return rows.split(seed, s.parts)

    def arm(regulator: str, steps: int) -> Arm:
        made = replace(s.shape, regulator=regulator, steps=steps,
                       margin=s.margins[regulator != "rcr"])
        return Arm(splits, lambda parts: Rcar(made, parts.train))

    return {"scan": arm("rcr", 0), "rcar": arm("rcar", 2), "head": arm("rar", 0),
            "rcr": arm("rcr", 1)}


def claims(pairs: Pairs, scale: str = "small") -> list[Claim]:
    """The claims on `pairs` (from `data`)."""
    s, own = SCALES[scale], "text_plain" not in pairs.columns
    arms = _arms(pairs, s)
    room = Condition("the baseline's hit@1 leaves room", as_they_are, 0.2, 0.8)
    planted = Condition("the share of words that are fillers", fillers_a_word, 0.2, 0.6)

    def claim(name: str, baseline: str, method: str, sentence: str, **rest) -> Claim:
        return Claim(**{**dict(
            name=name, sentence=sentence, baseline=baseline, method=method, differs="method",
            arms={n: arms[n] for n in (baseline, method)}, figure="hit@1",
            measure=by_arm(as_they_are), budget=s.budget, choose_by="hit@1",
            validate=lambda method, splits: {"hit@1": found(method, splits.val)},
            grid=rates(1e-3, 3e-3, 1e-2, 3e-2, 1e-1), null=UNLEARNED, condition=room,
            margin=0.03, margin_why="three in a hundred; each pair of picture and caption costs "
            "several times as much"), **rest})

    given = [
        claim("regulators", "scan", "rcar", "Attention that looks twice, the second time as what "
              "it found says, and a pool that weighs the words find more than SCAN's one look "
              "and mean.", headline=True),
        claim("head", "head", "rcar", "It is the regulators: the same alignment vectors, "
              "averaged and judged by the same learned head, find less."),
        claim("correspondence", "scan", "rcr", "A second look alone, with the mean of cosines as "
              "in SCAN, finds more than one."),
    ]
    if not own:
        given += [
            claim("fillers", "scan", "rcar", "The gain is larger where captions have many words "
                  "that say nothing.", measure=plain_and_filled, condition=(room, planted),
                  subtracts="rcar minus scan with eight fillers, less the same without",
                  statistic=lambda f: f["rcar"] - f["scan"] - (f["rcar plain"]
                                                               - f["scan plain"])),
            claim("temperature", "scan", "rcar", "In the second look nouns are looked up "
                  "sharper than fillers: their λ is larger.", figure="λ of nouns less fillers",
                  measure=by_arm(sharper_on_nouns), condition=(room, planted),
                  null=UNLEARNED._replace(margin=0.05), margin=0.05,
                  margin_why="a twentieth of λ₀; less changes no look"),
        ]
    return given
