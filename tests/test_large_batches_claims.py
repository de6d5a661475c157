"""The third opening notebook: the arms of its claims, its exercises, its scales."""

import pytest
import torch

from alignkit.claims.large_batches import SCALES, Parted, PartedBatches, claims, data
from alignkit.course.large_batches import Peak, merged, tile_gradient
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


def test_the_exercises_agree_with_autograd():
    for logits, by_row, by_column, i, j, n in tile_gradient.draw():
        assert max(i + logits.shape[0], j + logits.shape[1]) <= n
    a, b = (unit(torch.randn(9, 4).double()) for _ in range(2))
    logits = (5 * a @ b.T).requires_grad_()
    p, q = (logits.log_softmax(k).diagonal() for k in (0, 1))
    loss = -(p + q).mean() / 2
    (whole,) = torch.autograd.grad(loss, logits)
    logits = logits.detach()
    tile = tile_gradient.reference(logits[2:6, 4:9], logits.logsumexp(1)[2:6],
                                   logits.logsumexp(0)[4:9], 2, 4, 9)
    assert torch.allclose(tile, whole[2:6, 4:9])
    parts = [(x.amax(1), (x - x.amax(1, keepdim=True)).exp().sum(1))
             for x in logits.split(4, 1)[:2]]
    assert torch.allclose(merged.reference(*parts[0], *parts[1]),
                          logits[:, :8].logsumexp(1))


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
