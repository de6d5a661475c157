"""The third opening notebook: the arms of its claims, its exercises, its scales."""

import pytest
import torch

from alignkit.claims.large_batches import SCALES, Parted, PartedBatches, claims, data
from alignkit.course.large_batches import Peak, about_negatives, merged, own_loss
from alignkit.data import Pairs
from alignkit.parts import DualEncoder, info_nce, unit


def rows(n: int = 80) -> Pairs:
    generator = torch.Generator().manual_seed(0)
    return Pairs.from_features({name: torch.randn(n, 6, generator=generator)
                                for name in ("image_features", "text_features")})


def test_the_loss_is_the_mean_of_small_softmaxes():
    torch.manual_seed(0)  # the last line does not hold for all heads
    pairs = rows(22)
    method = PartedBatches(Parted(width=4, rows=20, together=8), pairs)
    batch = pairs.batch()
    a, b = method.encode(batch).values()
    blocks = [slice(0, 8), slice(8, 16), slice(16, 20)]  # rows 20 and 21 are left out
    by_hand = sum(len(a[k]) * info_nce(a[k], b[k], method.temperature())
                  for k in blocks) / 20
    (loss,) = method(batch).values()
    assert torch.isclose(loss, by_hand)
    (one,) = PartedBatches(Parted(width=4, together=999), pairs)(batch).values()
    assert one > loss + 0.5


@pytest.mark.parametrize("scale", SCALES)
def test_what_each_claim_holds_equal(scale):
    pairs, budget = rows(), SCALES[scale].budget
    seen = {}
    for claim in claims(pairs, scale):
        assert claim.method == "large" and claim.budget == budget
        (arm,) = (claim.arms[name] for name in claim.arms if name != "large")
        s = arm.build(arm.data(0)).settings
        (stage,) = PartedBatches(s, pairs).stages()
        assert s.together == SCALES[scale].small_batch < budget.batch_size
        seen[claim.name] = s.rows, stage.steps
    large, small = budget.batch_size, SCALES[scale].small_batch
    assert seen["equal-rows"] == (large, budget.steps)
    assert seen["equal-steps"] == (small, budget.steps)
    taken, steps = seen["equal-passes"]
    assert taken == small and taken * steps == large * budget.steps
    arm = claim.arms["large"]
    assert type(arm.build(arm.data(0))) is DualEncoder


def test_too_few_pairs_for_the_large_batch():
    with pytest.raises(ValueError, match="80 rows.*512"):
        data("small", rows())


def test_merged_sums_are_the_sum():
    logits = 30 * torch.randn(9, 8).double()
    parts = [(x.amax(1), (x - x.amax(1, keepdim=True)).exp().sum(1))
             for x in logits.split(4, 1)]
    assert torch.allclose(merged.reference(*parts[0], *parts[1]), logits.logsumexp(1))


def test_the_mean_over_processes_is_the_loss_of_all():
    a, b = (unit(torch.randn(12, 5).double()) for _ in range(2))
    found = [own_loss.reference(own, other, rank) for own_, other in ((a, b), (b, a))
             for rank, own in enumerate(own_.split(4))]
    assert torch.allclose(sum(found) / 6, info_nce(a, b, 20.0))


def test_the_claim_on_equal_rows_is_the_one_about_negatives():
    pairs, settings = rows(), {}
    for claim in claims(pairs, "small"):
        (arm,) = (claim.arms[name] for name in claim.arms if name != "large")
        settings[claim.name] = arm.build(arm.data(0)).settings
        assert claim.grid == claims(pairs, "small")[0].grid
    found = about_negatives.reference(*(torch.tensor([[large, getattr(s, name)] for s in
                                                      settings.values()]) for name, large in
                                        (("rows", 512), ("steps", 25), ("together", 512))),
                                      torch.full((3, 2), 4))
    assert dict(zip(settings, found.tolist())) == {
        "equal-passes": 0, "equal-steps": 0, "equal-rows": 1}


def test_the_peak_counts_what_is_alive_at_once():
    before = torch.zeros(1000)
    with Peak() as peak:
        one = before + 1  # 4,000 bytes
        two = one * 2  # 4,000 more
        view = two[:500].view(5, 100).T  # nothing new
        assert peak.now == peak.most == 8000
        del one
        assert peak.now == 4000
        del two
        assert peak.now == 4000  # the view holds it
        del view
        assert peak.now == 0
        three = torch.zeros(500)
        three += 1  # in place
    assert peak.now == 2000 and peak.most == 8000
