"""The follow-up of UMAEA's headline: the same training, but zeros where an imagined picture goes.

The headline was 'some gain', +0.016 [+0.006, +0.026] over static fusion with noise, and the null
of `imagination` failed: with others' pictures the gain over noise is as large. So the presumed
cause of the gain is the training (three losses, three stages, no noise in the last one), and not
what is imagined. Here both arms are `umaea`, and in `zeroed` a vector of zeros goes wherever an
imagined one does: into the holes, and into its own contrastive loss. One entity in twenty has a
picture, so that is nearly everywhere, and low rates are what the abstract is about.

The null has two parts. The stand-in: neither arm has noise in the last stage, so what any harmless
stand-in gains is in both. The information: with others' pictures in every split nothing true can
be imagined, and imagined vectors must gain nothing over zeros. Corpus, links, steps, grid,
figure and margin are the headline's; the baseline's floor is twice as high.

Looked at before: the results, and a reader's seeds 5000 to 5007 with one picture in five: `umaea`
.243, with zeros in the place of imagined vectors .244; -.001 [-.010, +.008]. So 'no gain' is
expected. With one picture in twenty nothing of either arm was seen.

Seen afterwards: some gain, +0.006 [+0.002, +0.010], and with others' pictures the same, +0.006
[+0.002, +0.010]. So what little there is needs no true picture. Presumably it is of the stand-in:
an imagined vector is made of an entity's words and neighbours, of which zeros know nothing.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from alignkit.claims.claim import Arm, Claim
from alignkit.claims.follow_ups import FIRST
from alignkit.claims.umaea import ALIKE, NEEDS, ROOM, SCALES, TOLD, UNSEEN, data
from alignkit.claims.umaea import _arms as arms_of_the_paper
from alignkit.claims.umaea import claims as of_the_paper
from alignkit.data import Pairs
from alignkit.methods.umaea import Umaea, UmaeaSettings

__all__ = ["FIRST", "NEEDS", "claims", "data"]


class Zeroed(Umaea):
    """Zeros for what is imagined. E and D learn as before, and nobody asks them."""

    def build(self, settings: UmaeaSettings, pairs: Pairs) -> None:
        super().build(settings, pairs)
        self.imagination.register_forward_hook(blank)


def blank(_: nn.Module, __: tuple, found: dict[str, Tensor]) -> dict[str, Tensor]:
    """What an imagination gives, with zeros for the picture."""
    return found | {"imagined": torch.zeros_like(found["imagined"])}


def claims(pairs: Pairs, scale: str = "small") -> list[Claim]:
    """The follow-up, as the only one of a list."""
    s = SCALES[scale]
    first = next(claim for claim in of_the_paper(pairs, scale) if claim.headline)
    imagined = arms_of_the_paper(pairs, replace(s, rate=s.few))["umaea"]
    whole = UmaeaSettings(width=s.width, hidden=s.hidden, imagine=s.imagine, refine=s.refine)
    zeroed = Arm(imagined.data, lambda parts, **changes: Zeroed(
        replace(whole, **changes), parts.train))
    share = f"{s.few:.0%} of the entities"
    return [replace(
        first, name="not-zeros", headline=False, paper=None,
        sentence=f"Where {share} have a picture, UMAEA aligns more with imagined pictures than "
                 "with zeros in their place, all losses and stages in both.",
        when="Against its own training with zeros for what is imagined",
        baseline="zeroed", arms={"zeroed": zeroed, "umaea": imagined}, budgets={},
        null=UNSEEN, condition=(ROOM._replace(low=0.1), TOLD, ALIKE))]
