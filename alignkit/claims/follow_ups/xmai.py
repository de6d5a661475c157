"""The follow-up of XMAI's headline: words that the towers know.

The headline holds, +0.501 [+0.451, +0.551], but most of it is one word: "large", true of every
picture, which the towers were never trained on (claim `true-word`, +0.436). That reason is taken
away: the detector reports the plates alone, so that one colour goes into each caption, and
colours are words that the towers were trained on. All else is the headline's.

Nearly known: on the headline's seed 100 the notebook takes the words apart, MRR .578 as they are
and .386 with the attack at plates alone (candidates there were proposed beside a mask before the
noun, which here is not there); a fifth of the colours were true. So this says that the attack
costs without the unknown word; that most of its words are false, it does not take away.
"""

from dataclasses import replace
from functools import lru_cache

from alignkit.claims.claim import Claim
from alignkit.claims.follow_ups import FIRST
from alignkit.claims.xmai import SCALES, with_attacks
from alignkit.claims.xmai import claims as of_the_paper
from alignkit.claims.xmai import data as of_the_headline
from alignkit.data import Pairs, Splits
from alignkit.training import seed_of

__all__ = ["FIRST", "NEEDS", "claims", "data"]
NEEDS = None


def data(scale: str = "small", pairs: Pairs | None = None, corpus_seed: int = 2) -> Pairs:
    """The headline's pictures and captions; the detector reports the plates alone.

    Raises ValueError for pairs of a user's own.
    """
    if pairs is not None:
        raise ValueError("this follow-up takes no pairs of your own: it is about the words that "
                         "the towers that come with alignkit were trained on")
    made = of_the_headline(scale, corpus_seed=corpus_seed)
    return made.with_columns(detected=[seen.split("; ")[1] for seen in made["detected"]])


def claims(pairs: Pairs, scale: str = "small") -> list[Claim]:
    """The follow-up, as the only one of a list."""
    first = of_the_paper(pairs, scale)[0]

    @lru_cache(maxsize=2)
    def splits(seed: int) -> Splits:
        rows = with_attacks(data(scale, corpus_seed=seed), SCALES[scale], seed)
        return rows.split(seed_of(seed, "split"), (0.05, 0.05, 0.9))

    return [replace(
        first, name="known-words", headline=False, paper=None,
        when="Where only words go in that the towers were trained on",
        arms={name: arm._replace(data=splits) for name, arm in first.arms.items()})]
