"""The follow-up of GSSF's headline: a score that moves a tenth as fast as the heads.

The headline was 'opposite', -0.050 [-0.075, -0.026]: behind heads that learn from 400 pairs,
blocks find less than the cosine. Two causes were presumed: one rate for all weights lets M run
away, and what M could do the heads can do as well. Here the first is taken away: w - 1 and W
are a tenth of the numbers that learn, so a step of AdamW moves them a tenth as far. That is in
the arm `slow-block`; all else is the headline's, but for the grid: `block` had chosen its
largest rate there, so a larger one is added, and the smallest is left out; the decay is the 1
that both arms had chosen.

Looked at before: the notebook's look (section 8), seeds 0 and 11, with the cosine's rate and
decay for the heads: blocks .315 at a tenth of that rate, .306 for the cosine. So no more than
'no gain' is expected; that blocks are no longer worse is what would be learned.
"""

from dataclasses import replace

from torch import Tensor

from alignkit.claims.claim import Arm, Claim
from alignkit.claims.common import rates
from alignkit.claims.follow_ups import FIRST
from alignkit.claims.gssf import NEEDS, data
from alignkit.claims.gssf import claims as of_the_paper
from alignkit.data import Pairs, Splits
from alignkit.methods.gssf import Gssf

__all__ = ["FIRST", "NEEDS", "claims", "data"]
SHARE = 0.1  # of the heads' rate


class SlowGssf(Gssf):
    """GSSF whose weights are 1 and 0 and a share of what learns, and so move less a step."""

    def weights(self) -> tuple[Tensor, Tensor]:
        """As `Gssf.weights`, of a score with diagonal and blocks."""
        return 1 + SHARE * self.change, SHARE * self.blocks


def claims(pairs: Pairs, scale: str = "small") -> list[Claim]:
    """The follow-up, as the only one of a list."""
    first = next(claim for claim in of_the_paper(pairs, scale) if claim.headline)
    block = first.arms["block"]

    def slow(splits: Splits) -> Gssf:
        return SlowGssf(block.build(splits).settings, splits.train)

    return [replace(
        first, name="slow-score", headline=False, method="slow-block",
        budget=replace(first.budget, weight_decay=1.0), grid=rates(1e-2, 3e-2, 1e-1, 3e-1),
        sentence="Behind heads that learn, blocks that move a tenth as fast find more than the "
                 "cosine.",
        when="Where the score moves a tenth as fast as the heads",
        arms={"cosine": first.arms["cosine"], "slow-block": Arm(block.data, slow)},
        twins={"slow-block": "cosine"})]
