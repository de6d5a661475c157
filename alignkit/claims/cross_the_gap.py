"""Cross the Gap's claims: do queries that were turned into the other modality find more
of their own, does the native task suffer, and does a loss within a modality take the
gain away? And the controls that its critics ask for.

Corpus: composed pictures of 64 nouns (`data.objects`): a thing on a coloured plate,
which the caption names, beside clutter, which it does not. Drawings of a corpus seed of
their own: no tower was trained or chosen on them. Relevant is what shows the same noun.

Towers: those that come with alignkit, with and without the loss between two views of a
picture: each paired seed, 0 to 7, has a pair of its own, and its own draw of who asks.
Seeds of pilots take one of the same eight: they measure noise of the baseline only.

Arms: `plain` queries are the tower's own rows; `inverted` ones went through OTI
(pictures) or OVI (texts); `centred` pictures lose their mean and all but 64 principal
directions, learned on other rows; `span` pictures are projected on the span of the nouns'
64 prompts, of 128 dimensions. `…-intra` are the towers with the second loss.

Decided by pilots on `plain` alone (one tower, before any query was inverted for a figure):

- 256 pictures ask 512: mAP about 0.58, accuracy about 0.87: room both ways. Other draws
  of who asks move that mAP by 0.01, unpaired: some points can be seen with 8 seeds.
- Captions with plates ask captions with plates: mAP 0.33. Prompts without plates had
  0.91 there, and a gain would have been pressed against the ceiling.
- Margin 0.01 for gains and losses, the least of "a few points"; 0 against controls,
  where any advantage counts.
- Steps of OTI are the paper's 150. Those of OVI are 300 and not 1,000, for the price:
  on prompts, the loss falls from 0.97 to 0.030, and to 0.021 with all thousand.

All was fixed when the code path was first tried at `tiny` (ten steps an inversion). One
thing was changed after figures were seen. The first run had five pairs of towers, and
paired seeds 5 to 7 took the first three again: `images` gave +0.045 [+0.013, +0.078] and
held, but eight seeds of five pairs are not independent and that interval was too narrow
(each pair counted once: +0.038 [-0.013, +0.088]). So three pairs more were trained by the
same recipe, and all eight seeds were run again. What is published is the second run, in which
`images` is not resolved.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from alignkit.claims.claim import Arm, Claim, Condition, Null, Trained
from alignkit.claims.common import by_arm, gains, model_of
from alignkit.data import Pairs, Splits
from alignkit.data.objects import objects, short_caption
from alignkit.evaluation import encode_pairs, mean_average_precision, zero_shot
from alignkit.methods.cross_the_gap import CrossTheGap, CrossTheGapSettings
from alignkit.parts import Method, unit
from alignkit.parts.two_towers import load_two_towers, pixels_of
from alignkit.training import Budget, seed_of

NEEDS = None
TOWERS = 8  # seeds of the shipped towers: one for each paired seed
MARGIN = 0.01
CORPUS_SEED = 2  # drawings that no tower was trained or chosen on


@dataclass(frozen=True)
class Scale:
    """Pictures of each noun, how many of the test rows and of their captions ask, steps
    of both inversions."""

    each: int = 20
    queries: int = 256
    texts: int = 64
    word_steps: int = 150
    patch_steps: int = 300


SCALES = {
    # The code path in seconds, no claim is read off it.
    "tiny": Scale(each=4, queries=24, texts=16, word_steps=10, patch_steps=5),
    "small": Scale(),
    # The paper's steps.
    "gpu": Scale(each=100, queries=1024, texts=256, patch_steps=1000),
    "full": Scale(each=300, queries=4096, texts=512, patch_steps=1000),
}


def data(scale: str = "small", pairs: Pairs | None = None) -> Pairs:
    """Pictures of 64 nouns with their pixels as bytes.

    Raises ValueError for pairs of a user's own: the towers know these drawings only.
    """
    if pairs is not None:
        raise ValueError("this paper's claims take no pairs of your own: they are about "
                         "the towers that come with alignkit, which know its drawings only")
    pairs = objects(SCALES[scale].each, corpus_seed=CORPUS_SEED)
    return pairs.with_features(image_pixels=pixels_of(pairs["image"]))


def shuffled_nouns(splits: Splits, seed: int) -> Splits:
    """A null's `transform`: test rows get each other's nouns, so nothing is relevant."""
    test = splits.test
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(seed))
    return splits._replace(test=replace(
        test, labels={**test.labels, "noun": test.labels["noun"][order]}))


# What asks and what is asked, with the way of the arm --------------------------------
def once(trained: Trained, name: str, make: Callable[[], Tensor]) -> Tensor:
    """`make()`, kept for the arms of one draw: several claims need it."""
    if name not in trained.method.made:
        trained.method.made[name] = make()
    return trained.method.made[name]


def own(trained: Trained, part: str, column: str) -> Tensor:
    """The tower's own unit rows of `test` or `train`."""
    return once(trained, f"{part} {column}", lambda: encode_pairs(
        trained.method, getattr(trained.splits, part), (column,))[column])


def noise(trained: Trained) -> torch.Generator:
    """The start of the inversions, by the paired seed."""
    seed = trained.splits.test.tables["seed"]
    return torch.Generator().manual_seed(seed_of(seed, "inversion"))


def pictures(trained: Trained) -> tuple[Tensor, Tensor]:
    """Pictures that ask and pictures that are asked, unit rows."""
    method, z = trained.method, own(trained, "test", "image")
    asks, asked = z[method.asks], z[method.asked]
    if method.way == "inverted":
        return once(trained, "OTI", lambda: method.from_image(asks, noise(trained))), asked
    if method.way == "centred":
        seen = own(trained, "train", "image")
        basis = torch.linalg.svd(seen - seen.mean(0), full_matrices=False)[2]
        keep = basis[:len(trained.splits.test.label_names["noun"])].T
        return tuple(unit((x - seen.mean(0)) @ keep) for x in (asks, asked))
    if method.way == "span":
        basis = torch.linalg.qr(plain_prompts(trained).T)[0]
        return tuple(unit(x @ basis) for x in (asks, asked))
    return asks, asked


def said(trained: Trained, texts: list[str]) -> Tensor:
    """The text tower's unit rows of any texts."""
    with torch.no_grad():
        return trained.method.towers.text(trained.method.towers.tokens(texts))


def plain_prompts(trained: Trained) -> Tensor:
    """The prompt of every noun, in the order of its label."""
    nouns = trained.splits.test.label_names["noun"]
    return said(trained, [short_caption(noun) for noun in nouns])


def prompts(trained: Trained) -> Tensor:
    """The prompts, turned into pictures where the arm does so."""
    z = plain_prompts(trained)
    if trained.method.way != "inverted":
        return z
    return once(trained, "OVI", lambda: trained.method.from_text(z, noise(trained)))


# What is measured ---------------------------------------------------------------------
def image_map(trained: Trained) -> float:
    """mAP of pictures that ask for pictures of their noun."""
    noun = trained.splits.test.labels["noun"]
    query, gallery = pictures(trained)
    relevant = noun[trained.method.asks][:, None] == noun[trained.method.asked]
    some = relevant.any(1)
    return mean_average_precision((query @ gallery.T)[some], relevant[some])


def captions(trained: Trained) -> tuple[Tensor, Tensor, Tensor]:
    """Captions that ask, captions that are asked, unit rows, each caption once; bool:
    of one noun. Those that ask are the first of the pictures that ask."""
    test, method = trained.splits.test, trained.method
    noun = {test["text"][i]: int(test.labels["noun"][i])
            for i in torch.cat([method.asks, method.asked]).tolist()}
    z, nouns = said(trained, list(noun)), torch.tensor(list(noun.values()))
    asks, asked = z[:method.texts], z[method.texts:]
    if method.way == "inverted":
        asks = once(trained, "OVI of captions",
                    lambda: method.from_text(z[:method.texts], noise(trained)))
    return asks, asked, nouns[:method.texts, None] == nouns[method.texts:]


def text_map(trained: Trained) -> float:
    """mAP of captions that ask for captions of their noun on other plates."""
    asks, asked, relevant = captions(trained)
    some = relevant.any(1)
    return mean_average_precision((asks @ asked.T)[some], relevant[some])


def accuracy_of_images(trained: Trained) -> float:
    """Zero-shot accuracy of the pictures that ask, among the prompts of all nouns."""
    labels = trained.splits.test.labels["noun"][trained.method.asks]
    return zero_shot(pictures(trained)[0], plain_prompts(trained), labels)["accuracy"]


def accuracy_of_prompts(trained: Trained) -> float:
    """The same of the pictures as they are, among the prompts, which may be turned."""
    labels = trained.splits.test.labels["noun"][trained.method.asks]
    asks = own(trained, "test", "image")[trained.method.asks]
    return zero_shot(asks, prompts(trained), labels)["accuracy"]


# The claims ---------------------------------------------------------------------------
def arms_of(pairs: Pairs, s: Scale) -> dict[str, Arm]:
    """All arms by name."""
    made: dict[tuple, dict] = {}

    @lru_cache(maxsize=2)
    def splits_of(seed: int) -> Splits:
        tables = {**pairs.tables, "seed": seed, "towers": model_of(seed, range(TOWERS))}
        return replace(pairs, tables=tables).split(seed, (0.3, 0.1, 0.6))

    def arm(way: str = "plain", intra: float = 0.0) -> Arm:
        def build(splits: Splits) -> Method:
            towers = load_two_towers(splits.train.tables["towers"], intra)
            method = CrossTheGap(CrossTheGapSettings(
                towers.settings, tuple(towers.pieces.vocabulary),
                word_steps=s.word_steps, patch_steps=s.patch_steps), splits.train)
            method.towers.load_state_dict(towers.state_dict())
            order = torch.randperm(len(splits.test))  # equal in all arms of a seed
            method.asks, method.asked = order[:s.queries], order[s.queries:]
            method.texts, method.way = s.texts, way
            # What is made depends on these alone, and on no noun: the control has it, too.
            draw = splits.test.tables["seed"], intra, tuple(order.tolist())
            method.made = made.setdefault(draw, {})
            return method
        return Arm(splits_of, build)

    return {"plain": arm(), "inverted": arm("inverted"), "centred": arm("centred"),
            "span": arm("span"), "plain-intra": arm(intra=1.0),
            "inverted-intra": arm("inverted", 1.0)}


def claims(pairs: Pairs, scale: str = "small") -> list[Claim]:
    """The claims on `pairs` (from `data`)."""
    arms = arms_of(pairs, SCALES[scale])

    def claim(name: str, sentence: str, measure: Callable, figure: str,
              room: tuple[float, float], baseline: str = "plain",
              names: tuple[str, ...] = (), **rest) -> Claim:
        names = (baseline, "inverted", *names)
        return Claim(
            name=name, sentence=sentence, arms={n: arms[n] for n in names},
            baseline=baseline, method="inverted", differs="method",
            measure=by_arm(measure), figure=figure, headline=name == "images", units=TOWERS,
            margin=MARGIN, margin_why="one in a hundred, of eight pairs of towers",
            budget=Budget(steps=0), validate=lambda method, splits: {}, choose_by=figure,
            subtracts=rest.pop("subtracts", "plain minus inverted" if "statistic" in rest
                               else ""),
            null=Null("nouns of the test rows shuffled", shuffled_nouns, 0.0, 0.02),
            condition=Condition(f"{figure} of the arm {baseline!r} leaves room", measure,
                                *room), **rest)

    return [
        claim("images", "Pictures find more pictures of their noun after they were turned "
              "into pseudo-words.", image_map, "mAP", (0.1, 0.8)),
        claim("texts", "Captions find more captions of their noun after they were "
              "turned into pseudo-patches.", text_map, "mAP", (0.1, 0.8)),
        claim("mirror-images", "Classification by prompts gets worse if the pictures are "
              "turned into texts first.", accuracy_of_images, "accuracy",
              (0.3, 1.0), statistic=lambda f: f["plain"] - f["inverted"]),
        claim("beyond-centring", "Turned pictures find more than pictures whose features "
              "were only centred and cut to their principal directions.", image_map,
              "mAP", (0.1, 0.8), "centred"),
        claim("beyond-span", "They find more than pictures projected on the span of the "
              "nouns' prompts.", image_map, "mAP", (0.1, 0.8), "span"),
        claim("intra-modal", "Towers that were also trained on two views of each picture "
              "gain less (difference of the gains).", image_map, "mAP", (0.1, 0.8),
              names=("plain-intra", "inverted-intra"),
              **gains(("plain", "inverted"), ("plain-intra", "inverted-intra"))),
    ]
