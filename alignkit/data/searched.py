"""Pictures as a search by name finds them: each with a web text that never says its name, and
a definition of every class."""

import random
from dataclasses import replace

import torch

from alignkit.data.objects import objects
from alignkit.data.pairs import Pairs
from alignkit.data.scenes import NOUNS
from alignkit.data.styles import read_keywords
from alignkit.data.wordnet import definition


def keywords() -> dict[str, list[str]]:
    """{noun: CLDR's keywords that do not hold it}, of the nouns with four or more."""
    told = read_keywords("en")["en"]
    found = {}
    for noun, code in NOUNS.items():
        words = [word for word in told.get(chr(int(code, 16)), "").split(", ")
                 if word and noun not in word.lower()]
        if len(words) >= 4:
            found[noun] = words
    return found


def searched(each: int, nouns: int | None = None) -> Pairs:
    """`each` pictures of every noun of `keywords` (the first `nouns` of them; None: all).

    Columns `image` and `text`, two of the noun's keywords and one of another noun, in drawn
    order; label `class`; table `classes`, a row a class with its definition as `text`.
    """
    told = dict(list(keywords().items())[:nouns])
    every = list(NOUNS)
    pairs, names = objects(each, nouns=list(told), corpus_seed=7), list(told)
    shown = [names.index(every[k]) for k in pairs.labels["noun"].tolist()]
    texts = []
    for row, k in enumerate(shown):
        draw = random.Random(f"web {row}")
        own, stray = told[names[k]], told[draw.choice(names[:k] + names[k + 1:])]
        words = [*draw.sample(own, 2), draw.choice(stray)]
        draw.shuffle(words)
        texts.append(", ".join(words))
    classes = Pairs.make({"text": [definition(name) for name in names]}, ids=names)
    pairs = pairs.only("image", "text").with_columns(text=texts)
    return replace(pairs, labels={"class": torch.tensor(shown)}, label_names={"class": names},
                   tables={"classes": classes})
