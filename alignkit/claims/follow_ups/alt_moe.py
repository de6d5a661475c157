"""The follow-up of Alt-MoE's headline: as many passes through the predictor.

The headline was 'opposite', -0.136 [-0.151, -0.121]: in 192 steps one direction a step finds
half of what all six at each step find. Two causes were presumed: it has sent a sixth of the
rows through the predictor, and the directions' gradients do not conflict, the paper's
condition. Here the first is taken away: `turns` is the headline's `alternating` with six times
the steps, so as many passes as `joint`, and as many validations. All else is the headline's. The
second could not be supplied: the looks below found no corpus on which directions conflict.

Looked at before, on `joint` alone, seed 1000 and rates 0.01 and 0.03: the mean cosine of the
directions' gradients on the headline's corpus is +.05 and +.06 at width 32, +.04 and .00 at 16.
Then on things that have two sides, so that each two of picture, text and sound have one in
common: where a vector is the mean of its two things' +.07 and +.02 (width 32), +.19 and +.07
(16), hit@10 1.7 times chance; where it holds both one after the other +.04 and +.01 (32),
+.06 and -.03 (16), hit@10 some 3 times chance. A conflict as small as that, at one rate of two
and where little is learned, is no corpus for a claim.
On seeds 1000 and 2000, before this was thought of: turns at rate 0.01 for 1,152 steps found
.27 and .27 on the test rows, `joint` .27 and .28. So no more than 'no gain' is expected.
"""

from dataclasses import replace

from alignkit.claims.alt_moe import NEEDS, data, towers
from alignkit.claims.alt_moe import claims as of_the_paper
from alignkit.claims.claim import Claim
from alignkit.claims.follow_ups import FIRST
from alignkit.data import Pairs

__all__ = ["FIRST", "NEEDS", "claims", "data"]


def claims(pairs: Pairs, scale: str = "small") -> list[Claim]:
    """The follow-up, as the only one of a list."""
    first = next(claim for claim in of_the_paper(pairs, scale) if claim.headline)
    ways, budget = len(towers(pairs)) * (len(towers(pairs)) - 1), first.budget
    return [replace(
        first, name="same-passes", headline=False, method="turns",
        sentence="One direction a step retrieves better than all directions at each step, in "
                 "as many passes through the predictor.",
        when="Where turns have as many passes",
        arms={"joint": first.arms["joint"], "turns": first.arms["alternating"]},
        budgets={"turns": {"steps": budget.steps * ways,
                           "validate_every": budget.validate_every * ways}})]
