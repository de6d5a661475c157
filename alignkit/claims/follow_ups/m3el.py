"""The follow-up of M3EL's headline: four times the training mentions.

The headline was 'no gain', -0.032 [-0.050, -0.015]: with 673 training mentions of 302 entities
all levels link fewer than global vectors. The presumed cause, from looks after the result (in
the claims file): the added levels' scores learn the training mentions and mislead on others; the
same network by its global scores alone links more. Here there are some 2,200 of 750 entities:
emoji with three keywords or more in place of six, words that 2 to 30 of them have in place of 3
to 15, six mentions an entity at most in place of three, and 70 % of the entities trained in place
of 55; 5 % choose and 25 % measure, among 1,069. There are twice the steps, so that the mentions
are seen some four times in place of seven. Encoders, arms, batch, figure, null and conditions
are the headline's; of its rates the upper four and a higher one, and a larger margin.

Looked at before: how many entities and mentions there are, the headline's published seeds and the
looks told in its claims file; of these mentions, by the pilot, `global` alone: hit@1 .525, its
text matcher's .127. Two registrations were refused, with rates up to .003, which both arms chose;
then a third, as .02 is below what eight seeds show with 15 % of the entities tested (.032). The
margin was raised for it, and more tested; that alone would have done (.013, this one's pilot).

Seen afterwards: no gain, equivalent, -0.007 [-0.025, +0.012], nearly what a reader's seeds 5000 to
5007 say of the headline itself. So more mentions do not make the levels pay here.
"""

from dataclasses import replace
from functools import lru_cache

from alignkit.claims import m3el
from alignkit.claims.claim import Claim
from alignkit.claims.common import rates
from alignkit.claims.follow_ups import FIRST
from alignkit.claims.m3el import NEEDS, TOKENS
from alignkit.data import Pairs, Splits
from alignkit.data.emoji_graphs import mentions

__all__ = ["FIRST", "NEEDS", "claims", "data"]
PARTS = (0.7, 0.05, 0.25)


def data(scale: str = "small", pairs: Pairs | None = None) -> Pairs:
    """More mentions of more emoji (at 'tiny' the headline's, whose features are there), or the
    user's `pairs`, with the tokens of all.

    Raises ValueError as the headline's `data`.
    """
    if pairs is None and scale == "small":
        pairs = mentions(least=3, shared=(2, 30), each=6)
    return m3el.data(scale, pairs)


def claims(pairs: Pairs, scale: str = "small") -> list[Claim]:
    """The follow-up, as the only one of a list."""
    first = next(claim for claim in m3el.claims(pairs, scale) if claim.headline)
    rows = pairs.only(*TOKENS)
    rows = replace(rows, tables={"entities": rows.select(rows.first_of_item())})

    @lru_cache(maxsize=2)
    def splits(seed: int) -> Splits:
        return rows.split(seed, PARTS)

    return [replace(
        first, name="more-mentions", headline=False, paper=None,
        when="With 2,200 training mentions in place of 670", margin=0.03,
        margin_why="three in a hundred, what the headline lost; less is not to be seen here",
        arms={name: arm._replace(data=splits) for name, arm in first.arms.items()},
        budget=replace(first.budget, steps=2 * first.budget.steps),
        grid=rates(3e-4, 1e-3, 3e-3, 1e-2, 3e-2))]
