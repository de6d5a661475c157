"""vip-ant's claims: what an audio tower learns of words from pictures alone, and what some
pairs of sounds and captions are worth on top of that, and by themselves.

Corpus: composed pictures of 32 nouns on coloured plates, and the captions that the shipped
picture and text towers know ("a dog on a blue disc", 384 of them). Sixteen voices of
espeak-ng say a caption in two phrases, the second from a fixed moment on. Splits are by
voice and by caption: ten voices and 70 % of the captions train, three others and 20 % are
measured. A training picture is said by all ten. The towers never saw these pictures; each
paired seed has towers of its own (there are eight).

Figure: hit@1 of sounds that ask all 384 captions, in new voices and of captions that were
never heard; either shape of the plate is right. Noun and colour of two thirds of the test
captions were heard in training, with the other shape; on a reader's seed (3000) `both@64`
finds .40 of these and .49 of the others, `gold@64` .21 and .12. Arms: `pictures` trains the
audio tower on sounds and pictures alone (200 steps), so it is zero-shot; `both@64` goes on
with 64 captions, each said once (50 steps); `gold@64` has those alone, for as many steps in
all; `captions` is the bound: the very rows of `pictures`, each with its caption in the place
of its picture. `curated` goes on from `pictures` with captions that the towers find for the
pictures (one of the three nearest of those that train), `any-caption` with drawn ones. All
begin as the picture tower, but `random-start`. Nothing is tuned, for any arm: rate and batch
are those at which `captions` did best on seed 1000 (.002 and .003 of 48 rows, .003 of 32).

Looked at before, and no more: in planning, Whisper's features in place of spectrograms (at
its ceiling with pictures alone: out). For this design, on seeds 1000 and 2000 and never with an
arm that is trained on pictures: picture to caption hit@1 of all towers (.65 to .91 with the
loss between two views, .43 to .56 without: the former are taken; what they miss is the plate's
shape, two captions that differ in it have cosines of up to .99, so either is right); and
`captions`. With 64 nouns, said in one piece, the plate wherever the noun ended, it stayed
at .06 after 400 steps; with the second phrase at a fixed moment it came to .89 in 600, with
32 nouns to .86 in 240, and .97 from drawn weights. In 240 steps of this batch and rate it came
to .92 and .77 (two seeds), `gold@64` with batches of 48 to .22.

Looked at afterwards, for 'picture-start', on seeds 3000 and 3001: `pictures` has .48 and .29,
at a third of the rate .20 and .18, at twice .09 and .05; drawn weights .88 and .54, .89 and
.57, .60 and .49; stem alone taken over .81, .43, all but it .89, .28; 600 steps (3000) .94.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import torch
from torch import Tensor

from alignkit.claims.claim import Arm, Claim, Condition, Null, Trained
from alignkit.claims.common import by_arm, corpus
from alignkit.data import Pairs, Splits, shuffle_pairs
from alignkit.data.objects import objects
from alignkit.data.scenes import NOUNS, SHAPES
from alignkit.data.two_phrases import captions as captions_of
from alignkit.data.two_phrases import split_said, two_phrases
from alignkit.encoders import add_features
from alignkit.evaluation import encode_pairs, retrieval
from alignkit.methods.vip_ant import VipAnt, VipAntSettings, curated
from alignkit.parts import Method
from alignkit.parts.audio_tower import AudioTower
from alignkit.parts.two_towers import TwoTowersSettings, load_two_towers, pixels_of
from alignkit.training import Budget

FIRST = 100  # of the paired seeds; those below were free for looks while it was planned
NEEDS = ("image", "speech", "text")
TOWERS, INTRA = 8, 1.0  # seeds of the shipped towers, and which kind of them
SAID = list(NOUNS)[::2]
CAPTIONS = captions_of(SAID)
POINTS = {"margin": 0.05, "margin_why": "five captions in a hundred; less is not worth the "
                                        "pictures of some thousand sounds"}
CLIP = "openai/clip-vit-base-patch32"


@dataclass(frozen=True)
class Scale:
    """Pictures a noun, voices a picture; encoders of a user's own pairs; the picture
    tower's shape, spectrogram and stride; steps on pairs after those on pictures; budget."""

    each: int = 24
    voices: int = 10
    sound: str = "fbank:32x30"
    image: str = ""  # none: the shipped towers
    text: str = ""
    picture: TwoTowersSettings | tuple = TwoTowersSettings()
    frames: int = 64
    stride: tuple[int, int] = (2, 1)
    mask: tuple[int, int] = (0, 0)
    gold_steps: int = 50
    few: int = 64
    budget: Budget = Budget(steps=200, batch_size=32, lr=3e-3, weight_decay=0.01)


BASE_32 = Scale(sound="fbank:128x10", image=f"hf:{CLIP}#image", text=f"hf:{CLIP}#text",
                picture=(("patch_size", 32),), frames=1000, stride=(24, 16),
                mask=(32, 200))
SCALES = {
    # Few rows and steps: the code path in seconds, no claim is read off it.
    "tiny": Scale(each=6, voices=1, gold_steps=3, few=16,
                  budget=replace(Scale.budget, steps=3, batch_size=16)),
    "small": Scale(),
    # One 16 GB GPU; bring videos' middle frames, sounds and captions (`--pairs`).
    "gpu": replace(BASE_32, gold_steps=300, budget=replace(
        Scale.budget, steps=1500, batch_size=128, lr=1e-4, precision="fp16")),
    # The paper's towers, batch and epochs (20 of 3,971 steps; 10 of 690).
    "full": replace(BASE_32, gold_steps=6_900, budget=replace(
        Scale.budget, steps=80_000, batch_size=432, lr=1e-4, warmup=0.5, precision="fp16")),
}


def said_objects(s: Scale) -> Pairs:
    """Pictures, and in table `phrases` the frames of every phrase in every voice."""
    pairs = objects(s.each, nouns=SAID, corpus_seed=3)
    phrases = add_features(two_phrases(SAID), "speech", s.sound, tokens=True)
    return replace(pairs, tables={**pairs.tables, "phrases": phrases["speech_tokens"]},
                   provenance=pairs.provenance.derive(f"said: {phrases.provenance.hash}"))


def data(scale: str = "small", pairs: Pairs | None = None) -> Pairs:
    """Pictures with their pixels, and every phrase in every voice as log-mel frames (table
    `phrases`); or the user's `pairs` (`image`, `speech`, `text`).

    Raises ValueError as `corpus` does.
    """
    s, own = SCALES[scale], pairs is not None
    pairs = corpus(scale, pairs, lambda: said_objects(s))
    if own:
        pairs = add_features(pairs, "speech", s.sound, tokens=True)
    if s.image:
        return add_features(add_features(pairs, "image", s.image), "text", s.text)
    return pairs.with_features(image_pixels=pixels_of(pairs["image"]))


# Rows ---------------------------------------------------------------------------------
@lru_cache(maxsize=8)
def towers_of(seed: int):
    """The shipped towers of a seed: each of the eight paired seeds has its own (`units`)."""
    return load_two_towers((seed - FIRST) % TOWERS, INTRA)


@torch.no_grad()
def in_one_space(pairs: Pairs, seed: int) -> Pairs:
    """With `image_features` and `text_features` of the seed's towers in the place of pixels;
    of composed pairs the rows of all captions as table `asked`."""
    towers, composed = towers_of(seed), "phrases" in pairs.tables
    z = torch.cat([towers.image(x.float() / 255) for x in pairs["image_pixels"].split(256)])
    known = CAPTIONS if composed else list(dict.fromkeys(pairs["text"]))
    captions = towers.text(towers.tokens(known))
    at = torch.tensor([known.index(text) for text in pairs["text"]])
    kept = pairs.only(*(c for c in pairs.columns if c != "image_pixels"))
    return replace(kept.with_features(image_features=z, text_features=captions[at]),
                   tables=pairs.tables | ({"asked": captions} if composed else {}))


# Figures ------------------------------------------------------------------------------
def found_by(rows: Pairs, z: Tensor, gallery: Tensor) -> float:
    """hit@1 of z that ask all captions, either shape of the plate being right; without
    captions known by number, the gallery of rows."""
    if "asked" not in rows.tables:
        return retrieval(z, gallery, rows.item, rows.item)["hit@1"]
    asked = rows.tables["asked"].to(z)
    return retrieval(z, asked, rows.labels["caption"] // len(SHAPES),
                     torch.arange(len(asked)) // len(SHAPES))["hit@1"]


def hits(method: Method, rows: Pairs, side: str = "text") -> float:
    """hit@1 of sounds that ask the captions ('text'), or the pictures of rows ('image')."""
    found = encode_pairs(method, rows, ("sound", side))
    if side == "text":
        return found_by(rows, found["sound"], found["text"])
    right = rows.labels.get("caption", rows.item)
    return retrieval(found["sound"], found["image"], right, right)["hit@1"]


def chosen_by(method: Method, splits: Splits) -> dict[str, float]:
    """A claim's `validate`: without a caption in training none is looked at."""
    return {"hit@1": hits(method, splits.val, method.settings.plan[-1][0])}


def pivot(trained: Trained) -> float:
    """hit@1 of the test pictures that ask the captions: how good the frozen link is."""
    found = encode_pairs(trained.method, trained.splits.test, ("image", "text"))
    return found_by(trained.splits.test, found["image"], found["text"])


def sounds_dealt_anew(splits: Splits, seed: int) -> Splits:
    """A null's `transform`: no training sound keeps its picture and caption."""
    sound = "speech_tokens" if "speech_tokens" in splits.train.columns else "text_tokens"
    return splits._replace(train=shuffle_pairs(splits.train, sound, seed))


DEALT = Null("training sounds dealt anew", sounds_dealt_anew, 0.0, 0.05)


# Claims -------------------------------------------------------------------------------
def _arms(pairs: Pairs, s: Scale) -> dict[str, Arm]:
    ready, composed = "image_features" in pairs.columns, "phrases" in pairs.tables

    @lru_cache(maxsize=3)
    def rows(seed: int) -> Splits:
        seen = pairs if ready else in_one_space(pairs, seed)
        return (split_said(seen, pairs.tables["phrases"], seed, s.voices) if composed
                else seen.split(seed))

    def gold(n: int, seed: int) -> Splits:
        """n training rows alone have a caption, drawn, each another one."""
        parts = rows(seed)
        train = parts.train
        caption = train.labels.get("caption", train.item)
        g = torch.Generator().manual_seed(seed)
        row_of = {int(caption[k]): k for k in torch.randperm(len(train), generator=g).tolist()}
        rows_of = torch.tensor([row_of[c] for c in sorted(row_of)])
        have = torch.zeros(len(train), dtype=torch.bool)
        have[rows_of[torch.randperm(len(rows_of), generator=g)[:n]]] = True
        return parts._replace(train=train.with_present(towers(train)["text"], have))

    def told(seed: int, by_picture: bool) -> Splits:
        """Training rows with a caption that the towers find for the picture, or a drawn one."""
        parts = rows(seed)
        train, g = parts.train, torch.Generator().manual_seed(seed)
        columns = towers(train)
        pool = train[columns["text"]].unique(dim=0)
        picked = torch.randint(len(pool), (len(train),), generator=g)
        if by_picture:
            near = curated(train[columns["image"]], pool, k=3)
            picked = near.gather(1, torch.randint(3, (len(train), 1), generator=g))[:, 0]
        return parts._replace(train=train.with_features(**{columns["text"]: pool[picked]}))

    def towers(part: Pairs, plan: tuple = ()) -> dict[str, str]:
        sound = "speech_tokens"
        if sound not in part.columns:  # as in tests: the tokens of a side that does not teach
            sound = "image_tokens" if plan and plan[0][0] == "text" else "text_tokens"
        return {"sound": sound, "image": "image_features", "text": "text_features"}

    def arm(*plan: tuple[str, int | None], rows=rows, start=True) -> Arm:
        def build(splits: Splits) -> Method:
            return VipAnt(VipAntSettings(
                towers=towers(splits.train, plan), plan=plan, picture=s.picture,
                frames=s.frames, stride=s.stride, mask=s.mask), splits.train)

        return Arm(rows, build, start=partial(as_picture_tower, s) if start is True else start)

    pictures, more = ("image", None), ("text", s.gold_steps)
    alone = ("text", s.budget.steps + s.gold_steps)
    few = _gold(pairs, s)
    return {f"gold@{few}": arm(alone, rows=partial(gold, few)),
            f"both@{few}": arm(pictures, more, rows=partial(gold, few)),
            "pictures": arm(pictures), "captions": arm(("text", None)),
            "random-start": arm(pictures, start=None),
            "curated": arm(more, rows=partial(told, by_picture=True), start="pictures"),
            "any-caption": arm(more, rows=partial(told, by_picture=False),
                               start="pictures")}


def _gold(pairs: Pairs, s: Scale) -> int:
    """How many captions are gold: `few`, or as many as these pairs can give."""
    return min(s.few, int(0.6 * len(pairs.item.unique())))


def as_picture_tower(s: Scale, seed: int) -> Mapping[str, Tensor]:
    """An arm's `start`: the audio tower's tensors, made of the picture tower's."""
    if s.image:
        from transformers import CLIPVisionModelWithProjection
        tower = CLIPVisionModelWithProjection.from_pretrained(CLIP)
    else:
        tower = towers_of(seed)
    bands = int(s.sound.removeprefix("fbank:").partition("x")[0])
    hears = AudioTower(tower, bands, s.frames, s.stride)
    return {f"tower.{name}": x for name, x in hears.state_dict().items()}


def claims(pairs: Pairs, scale: str = "small") -> list[Claim]:
    """The claims on `pairs` (from `data`)."""
    s = SCALES[scale]
    arms, n = _arms(pairs, s), _gold(pairs, s)
    room = Condition("the baseline's hit@1 leaves room",
                     lambda arm: hits(arm.method, arm.splits.test), 0.0, 0.85)
    linked = Condition("picture to caption hit@1 of the frozen towers", pivot, 0.7, 1.0)

    def claim(name: str, sentence: str, *names: str, differs: str = "data", **rest) -> Claim:
        return Claim(
            name=name, sentence=sentence, arms={n: arms[n] for n in names},
            baseline=names[0], method=names[1], differs=differs, figure="hit@1",
            measure=by_arm(lambda arm: hits(arm.method, arm.splits.test)),
            budget=s.budget, validate=chosen_by, choose_by="hit@1", units=TOWERS,
            null=DEALT,
            **{**POINTS, "condition": [linked, room], **rest})

    return [
        claim("few-gold", f"Training on sounds and pictures, then on {n} captions, "
              f"finds more captions than those {n} alone.", f"gold@{n}", f"both@{n}",
              headline=True),
        claim("zero-shot", "Trained on pictures alone, sounds find at least half as many "
              "captions as trained on a caption for every picture.", "captions", "pictures",
              subtracts="pictures minus half of captions",
              statistic=lambda f: f["pictures"] - f["captions"] / 2, condition=linked),
        claim("curated", "Captions that the frozen towers find for the pictures help more than "
              "drawn ones.", "any-caption", "curated", "pictures"),
        claim("picture-start", "An audio tower that begins as the picture tower learns more "
              "from pictures than one of drawn weights.", "random-start", "pictures",
              differs="method"),
    ]
