"""The follow-up of MGCA's headline: without dropout, where pairs are learned by heart.

The headline was 'some gain, equivalent', +0.003 [+0.001, +0.005]: at a dropout of .4, the
baseline's best, there is little to mend. The presumed cause: false negatives, rows of the same
findings, do harm where pairs are learned by heart, and dropout keeps the baseline from that. Here
neither arm has dropout. All else is the headline's, but for the lowest of its rates, which is
left out, and for the null's tolerance.

Looked at before, of the baseline alone, seeds 1001 to 1004 without dropout: with 24 labels `ita`
has .718, .739 at rates of .001, .003 (one seed: .743 at .01). The cause is there: `ita known`, an
oracle that takes no row of the same findings for a negative, is above it by .003 to .007 at .001,
by .014 to .019 at .003, by .014 at .01 (the pilot of the headline had .030 with two seeds). On
shuffled pairs two runs of `ita` that differ in chance alone are up to .015 apart (deviation .010
at .003), so that eight seeds show the null to within some .009: a tolerance of .01, the margin,
would hardly ever be met, the headline's .02 would let pass twice the margin; .015 can be met, and
missed. Of `mgca` without dropout nothing was seen.

Seen afterwards: some gain, +0.008 [+0.003, +0.012], the null +0.001 [-0.007, +0.008]. Both arms
chose .01. Without dropout `mgca` has .751, as `ita` has with dropout on the headline's seeds (.750).
"""

from dataclasses import replace

from alignkit.claims.claim import Claim
from alignkit.claims.common import UNLEARNED, rates
from alignkit.claims.follow_ups import FIRST
from alignkit.claims.mgca import LABELS, NEEDS, SCALES, data, labelled
from alignkit.claims.mgca import _arms as arms_of_the_paper
from alignkit.claims.mgca import claims as of_the_paper
from alignkit.data import Pairs

__all__ = ["FIRST", "LABELS", "NEEDS", "claims", "data"]


def claims(pairs: Pairs, scale: str = "small") -> list[Claim]:
    """The follow-up, as the only one of a list."""
    first = next(claim for claim in of_the_paper(pairs, scale) if claim.headline)
    arms = arms_of_the_paper(labelled(pairs), replace(SCALES[scale], dropout=0.0))
    return [replace(
        first, name="no-dropout", headline=False, when="Without dropout of the pictures",
        paper=None, arms={name: arms[name] for name in first.arms},
        grid=rates(1e-3, 3e-3, 1e-2, 3e-2), null=UNLEARNED._replace(margin=0.015))]
