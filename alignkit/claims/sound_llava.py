"""sound-llava's claims: what a sound's token gains and loses when it is trained to find
the picture.

Corpus: composed pictures of 32 nouns; each is described by one of 16 voices that says its
noun and, before or after it, one of 32 other nouns that are never pictured. So each sound
has one word that the picture shows and one that is off the screen. Encoders: Whisper tiny
(mean of its last states, 384) and EfficientNet-lite0 (1,280). Splits are by voice: four
voices train the projector, the rows of six choose weights and fit the probes, those of
six others are measured; no picture is in two of them.

Arms: `random` is the MLP with its initial weights; `linear` and `projected` are trained
with InfoNCE, the second on the very MLP of `random`; `rebuilt` must also give the sound's
features back; `both` is `projected` on clips of two frames, of which the second shows the
other word (the mean of both features). A linear probe, with its penalty chosen for each arm on
voices left out, names the word off the screen (`off`, chance 1/32) or the one shown.
hit@1: the picture that a sound finds shows the noun that is said.

Looked at before, and no more: in planning, on 400 mixtures of one vocabulary, raw, random
and projected tokens (off screen .525, .483, .367; the other way round where words were
spoken at once), which no seed of here shares. For this design, on the tuning seeds 1000
and 2000 and baselines alone: the probe on raw and random tokens at three layers of Whisper
(with 16 words off the screen random tokens were near the ceiling, .965; with 32 at .75),
the picture's probe for the word off the screen (.03), and `linear` with eight, four, three
and two training voices: hit@1 of .95, .89, .85 and .77, its tokens' probe .90 to .97. Four
voices leave the projector room above `linear`, and the probe 312 rows.

Afterwards, by a reader, seeds 5000 to 5007: off-screen +0.117 [+0.085, +0.148] and selective
+0.172 [+0.131, +0.212] hold. And: the probe's L-BFGS stops here and there a little before
the minimum. With another minimiser (scipy's, the same at three tolerances) seed 100 names
one sound of 308 more for `projected` and `rebuilt`: figures are sure to half a hundredth.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256

import torch
from torch import Tensor

from alignkit.claims.claim import Arm, Claim, Condition, Null, Trained
from alignkit.claims.common import by_arm, corpus, rates
from alignkit.data import Pairs, Splits, shuffle_pairs
from alignkit.data.heard import heard, split_by_voice
from alignkit.data.scenes import NOUNS
from alignkit.encoders import add_features
from alignkit.evaluation import (
    best_probe, cka_debiased, encode_pairs, mutual_knn, outside_subspace, retrieval,
)  # fmt: skip
from alignkit.methods.sound_llava import SoundSettings, SoundToken, Untrained, raw_token
from alignkit.parts import Method, unit
from alignkit.training import Budget

FIRST = 100  # of the paired seeds; those below were free for looks while it was planned
NEEDS = ("image", "speech")
SHOWN, HIDDEN = list(NOUNS)[::2], list(NOUNS)[1::2]
PROBED: dict[bytes, float] = {}  # accuracies by a hash of all that went in
VOICES = (4, 6, 6)  # train, choose and fit probes, measure
POINTS = {"margin": 0.05, "margin_why": "five sounds in a hundred; less would not be heard "
                                        "in captions that name half of the sources"}


@dataclass(frozen=True)
class Scale:
    """Nouns shown (and as many words off the screen), pictures of each, encoders, hidden
    width, λ of `rebuilt`, budget."""

    nouns: int = len(SHOWN)
    each: int = 26
    image: str = "image:efficientnet-lite0"
    sound: str = "sound:whisper-tiny.en"
    hidden: int = 256
    rebuild: float = 1.0
    budget: Budget = Budget(steps=150, batch_size=256, lr=1e-3, validate_every=10,
                            select_by="hit@1")


SCALES = {
    # Few words, rows and steps: the code path in seconds, no claim is read off it.
    "tiny": Scale(nouns=4, each=16, hidden=32,
                  budget=replace(Scale.budget, steps=20, validate_every=10)),
    "small": Scale(),
    # One 16 GB GPU; bring clips of your own (`--pairs`), some thousand: geometry alone.
    "gpu": Scale(image="hf:openai/clip-vit-large-patch14#image",
                 sound="hf:openai/whisper-base", hidden=1024,
                 budget=replace(Scale.budget, steps=1000, batch_size=1024)),
    # The paper's vision tower; what it does not say (widths, rate, steps) is ours.
    "full": Scale(image="hf:openai/clip-vit-large-patch14-336#image",
                  sound="hf:openai/whisper-large-v3", hidden=1024,
                  budget=replace(Scale.budget, steps=20_000, batch_size=4096)),
}


def data(scale: str = "small", pairs: Pairs | None = None) -> Pairs:
    """Pictures that are heard, with features; or the user's `pairs` (`image`, `speech`),
    on which retrieval and geometry are measured alone.

    Raises ValueError as `corpus` does.
    """
    s = SCALES[scale]
    pairs = corpus(scale, pairs, lambda: add_features(
        heard(s.each, nouns=SHOWN[:s.nouns], off_screen=HIDDEN[:s.nouns]), "image_off", s.image))
    return add_features(add_features(pairs, "image", s.image), "speech", s.sound)


def tokens(method: Method, rows: Pairs, name: str = "sound") -> Tensor:
    """The tokens [n, d] of the sounds (or pictures) of rows."""
    return encode_pairs(method, rows, (name,))[name]


def named(method: Method, splits: Splits, label: str) -> float:
    """How many test sounds a linear probe of the tokens names rightly; it is fitted on the
    validation rows, which trained nothing, and leaves out half of their voices at a time.
    The same numbers are probed once, for several claims ask."""
    val, test = splits.val, splits.test
    voice = val.labels["voice"]
    rows = (tokens(method, val), val.labels[label], tokens(method, test), test.labels[label],
            torch.isin(voice, voice.unique()[::2]).long())
    key = sha256(b"".join(x.cpu().numpy().tobytes() for x in rows)).digest()
    if key not in PROBED:
        PROBED[key] = best_probe(*rows)["accuracy"]
    return PROBED[key]


def hits(method: Method, rows: Pairs) -> float:
    """hit@1 of sound -> picture; any picture of the noun that is said is right."""
    found = encode_pairs(method, rows, ("sound", "image"))
    right = rows.labels.get("noun", rows.item)
    return retrieval(unit(found["sound"]), unit(found["image"]), right, right)["hit@1"]


def words(arms: Mapping[str, Trained]) -> dict[str, float]:
    """A claim's `measure`: the probe for the word off the screen; beside it that for the
    word shown, hit@1, and the first probe on raw tokens."""
    figures = {}
    for name, (method, splits, _) in arms.items():
        figures[name] = named(method, splits, "off")
        figures[f"{name}, shown"] = named(method, splits, "noun")
        figures[f"{name}, hit@1"] = hits(method, splits.test)
    rows = next(iter(arms.values())).splits
    raw = Untrained(SoundSettings(head="raw"), rows.val)
    return figures | {"raw": named(raw, rows, "off")}


def shape(arms: Mapping[str, Trained]) -> dict[str, float]:
    """A claim's `measure`: debiased linear CKA of tokens and pictures of the test rows;
    beside it the tokens' length outside the pictures' principal subspace (as many
    directions as a quarter of the rows) and their overlap with the raw neighbours."""
    figures = {}
    for name, (method, splits, _) in arms.items():
        token, image = (tokens(method, splits.test, m) for m in ("sound", "image"))
        raw = splits.test[method.settings.towers["sound"]]
        figures[name] = cka_debiased(token, image)
        most = max(1, min(len(image) // 4, image.shape[1] - 1))
        figures[f"{name}, outside"] = outside_subspace(token, image, most)
        figures[f"{name}, kNN"] = mutual_knn(token, raw_token(raw, token.shape[1]), 10)
    return figures


# Nulls --------------------------------------------------------------------------------
def words_dealt_anew(splits: Splits, seed: int) -> Splits:
    """No row keeps its labels: what a token says of its words cannot be read."""
    def dealt(part: Pairs, k: int) -> Pairs:
        g = torch.Generator().manual_seed(seed + k)
        return replace(part, labels=part.labels | {
            name: part.labels[name][torch.randperm(len(part), generator=g)]
            for name in ("noun", "off")})
    return Splits(*(dealt(part, k) for k, part in enumerate(splits)))


def shuffled(parts: int) -> Callable[[Splits, int], Splits]:
    """A null's `transform`: in the first `parts` no sound keeps its picture."""
    return lambda splits, seed: Splits(*(
        shuffle_pairs(part, _sound(part), seed + k) if k < parts else part
        for k, part in enumerate(splits)))


DEALT = Null("the words' labels dealt anew", words_dealt_anew, 0.0, 0.03)
TRAINED_APART = Null("training sounds shuffled", shuffled(1), 0.0, 0.05)
ALL_APART = Null("sounds of every part shuffled", shuffled(3), 0.0, 0.05)


def _sound(pairs: Pairs) -> str:
    """The features of the sounds; without any, those of the texts."""
    return next(c for c in ("speech_features", "text_features") if c in pairs.columns)


# Claims -------------------------------------------------------------------------------
def _arms(pairs: Pairs, s: Scale) -> dict[str, Arm]:
    sound = _sound(pairs)
    kept = ["image_features", sound]
    kept += ["image_off_features"] * ("image_off_features" in pairs.columns)
    settings = SoundSettings(towers={"image": "image_features", "sound": sound},
                             hidden=s.hidden)

    def splits(seed: int) -> Splits:
        rows = pairs.only(*kept)
        return (split_by_voice(rows, seed, VOICES) if "voice" in rows.labels
                else rows.split(seed, (0.5, 0.25, 0.25)))

    def two_frames(seed: int) -> Splits:
        return Splits(*(part.with_features(image_features=(
            part["image_features"] + part["image_off_features"]) / 2)
            for part in splits(seed)))

    def arm(kind: type = SoundToken, frames: Callable = splits, **changes) -> Arm:
        own = replace(settings, **changes)
        return Arm(frames, lambda parts: kind(own, parts.train))

    return {"random": arm(Untrained), "projected": arm(), "linear": arm(head="linear"),
            "rebuilt": arm(rebuild=s.rebuild), "both": arm(frames=two_frames)}


def claims(pairs: Pairs, scale: str = "small") -> list[Claim]:
    """The claims on `pairs` (from `data`); without labels those on retrieval and geometry."""
    s, labelled = SCALES[scale], {"noun", "off", "voice"} <= set(pairs.labels)
    arms = _arms(pairs, s)
    common = dict(
        method="projected", differs="method", budget=s.budget, choose_by="hit@1",
        validate=lambda method, splits: {"hit@1": hits(method, splits.val)},
        grid=rates(3e-4, 1e-3, 3e-3, 1e-2, 3e-2))

    def between(*names: str, **rest) -> dict:
        return {**common, "arms": {name: arms[name] for name in names},
                "baseline": names[0], "method": names[1], **rest}

    found = [
        Claim(name="retrieval", headline=not labelled, figure="hit@1",
              measure=by_arm(lambda arm: hits(arm.method, arm.splits.test)),
              sentence="A sound finds its picture by a projected token better than by a "
                       "linear map.", margin=0.02,
              margin_why="two in a hundred; less would change nobody's choice",
              condition=Condition("the linear map's hit@1 leaves room",
                                  lambda arm: hits(arm.method, arm.splits.test), 0.2, 0.93),
              null=TRAINED_APART, **between("linear", "projected")),
        Claim(name="geometry", figure="CKA", measure=shape, margin=0.05,
              margin_why="a twentieth of the scale, the width of what two unlike encoders "
                         "share by chance",
              sentence="Projection brings the tokens' geometry nearer to that of the "
                       "pictures.",
              condition=Condition("CKA of random tokens and pictures",
                                  lambda arm: shape({"": arm})[""], -0.1, 0.5),
              null=ALL_APART, **between("random", "projected", "rebuilt"))]
    if not labelled:
        return found
    lost = [
        Condition("a probe of random tokens names the word off the screen",
                  lambda arm: named(arm.method, arm.splits, "off"), 0.4, 0.95),
        Condition("a probe of the picture does so", _by_picture, 0.0, 0.1)]
    return [
        Claim(name="off-screen", headline=True, figure="off", measure=words, **POINTS,
              sentence="Projection takes the word that is off the screen from a sound's "
                       "token: the same MLP untrained keeps more of it.",
              subtracts="random minus projected",
              statistic=lambda f: f["random"] - f["projected"], condition=lost,
              null=DEALT, **between("random", "projected")),
        found[0],
        Claim(name="selective", figure="off", measure=words, **POINTS,
              sentence="It costs more of the word off the screen than of the word shown.",
              subtracts="random minus projected, less the same for the word shown",
              statistic=lambda f: (f["random"] - f["projected"]
                                   - f["random, shown"] + f["projected, shown"]),
              condition=lost, null=DEALT, **between("random", "projected")),
        Claim(name="both-shown", figure="off", measure=words, **POINTS,
              sentence="Where a second frame shows the other word too, projection keeps "
                       "more of it.", condition=lost[1], null=DEALT,
              **between("projected", "both", differs="data")),
        Claim(name="rebuilt", figure="off", measure=words, **POINTS,
              sentence="A projector that must also give the sound's features back keeps "
                       "more of the word off the screen.", condition=lost[1], null=DEALT,
              **between("projected", "rebuilt")),
        found[1]]


def _by_picture(arm: Trained) -> float:
    """Accuracy of a probe of the picture (its first frame) for the word off the screen."""
    val, test = arm.splits.val, arm.splits.test
    fold = torch.arange(len(val)) % 2
    return best_probe(val["image_features"], val.labels["off"], test["image_features"],
                      test.labels["off"], fold, (1.0, 100.0))["accuracy"]
