"""The slow copy and the queue of keys against slow loops; both live in buffers."""

import pytest
import torch
from torch import nn

from alignkit.data import Tokens
from alignkit.parts import FeatureQueue, Momentum, TransformerEncoder, unit


def batch(n: int = 5, d: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


# The slow copy ------------------------------------------------------------------------
def test_it_starts_equal_and_has_no_parameters():
    source = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2))
    slow = Momentum(source, 0.9)
    assert torch.equal(slow(batch()), source(batch()))
    assert list(slow.parameters()) == []
    assert set(slow.state_dict()) == {f"slow.{name}" for name in source.state_dict()}


@pytest.mark.parametrize("decay", [0.0, 0.9, 1.0])
def test_after_n_steps_it_is_the_moving_average(decay):
    source = nn.Linear(3, 2).double()
    slow = Momentum(source, decay)
    wanted = source.weight.detach().clone()
    for step in range(7):
        with torch.no_grad():
            source.weight += torch.full_like(source.weight, 0.1 * step)
        slow.update(source)
        wanted = decay * wanted + (1 - decay) * source.weight.detach()
    assert torch.allclose(slow.slow.weight, wanted, rtol=1e-14, atol=1e-15)
    assert (slow.slow.weight == source.weight).all() == (decay == 0.0)


def test_no_gradient_reaches_it_or_passes_through_it():
    source = nn.Linear(3, 2)
    slow, x = Momentum(source), batch().requires_grad_()
    assert not slow(x).requires_grad and source(x).requires_grad
    slow.update(source)
    assert not any(buffer.requires_grad for buffer in slow.buffers())


def test_buffers_of_the_source_are_taken_over():
    source = nn.BatchNorm1d(3)
    slow = Momentum(source, 0.9)
    source(batch(20) + 4)
    slow.update(source)
    assert slow.slow.running_mean.abs().sum() > 0.3
    assert torch.equal(slow.slow.running_mean, source.running_mean)
    assert slow.slow.num_batches_tracked == 1


def test_a_transformer_can_be_copied():
    torch.manual_seed(0)
    source = TransformerEncoder(8, layers=2, heads=2)
    tokens = Tokens(torch.randn(4, 3, 8), torch.ones(4, 3, dtype=torch.bool))
    for train in (True, False):
        slow = Momentum(source.train(train)).train(train)
        assert torch.allclose(slow(tokens).values, source(tokens).values, atol=1e-6)


def test_a_wrong_decay_is_refused():
    with pytest.raises(ValueError, match="decay must lie"):
        Momentum(nn.Linear(2, 2), 1.5)


# The queue ----------------------------------------------------------------------------
@pytest.mark.parametrize("sizes", [[2, 2, 2], [3, 4, 1, 3], [5, 5], [7], [12, 3]])
def test_the_newest_keys_are_held(sizes):
    """Against a list whose oldest are cut; also batches longer than the queue."""
    queue = FeatureQueue(5, 3)
    newest, start = [(-1, None)] * 5, 0
    for k, n in enumerate(sizes):
        rows = batch(n, seed=k)
        queue.push(rows, torch.arange(start, start + n))
        newest = (newest + list(zip(range(start, start + n), rows)))[-5:]
        start += n
    held = {int(i): row for i, row in zip(queue.item, queue.rows)}
    assert sorted(queue.item.tolist()) == sorted(i for i, _ in newest)
    assert all(torch.equal(held[i], row) for i, row in newest if i >= 0)


def test_keys_are_the_batch_and_then_the_queue():
    queue = FeatureQueue(4, 3)
    assert torch.allclose(queue.rows.norm(dim=1), torch.ones(4))  # random, of no item
    assert queue.item.tolist() == [-1] * 4
    queue.push(batch(2), torch.tensor([7, 9]))
    rows, item = queue.keys(unit(batch(3, seed=1)), torch.tensor([9, 1, 2]))
    assert rows.shape == (7, 3) and item.tolist() == [9, 1, 2, 7, 9, -1, -1]
    assert torch.equal(rows[3:5], batch(2))


def test_a_key_of_the_queue_is_a_copy_without_gradient():
    queue, rows = FeatureQueue(4, 3), batch(2).requires_grad_()
    queue.push(rows, torch.tensor([0, 1]))
    assert not queue.rows.requires_grad
    queue.rows.zero_()
    assert rows.detach().abs().sum() > 0


def test_no_queue_is_only_the_batch():
    queue = FeatureQueue(0, 3)
    queue.push(batch(2), torch.tensor([0, 1]))
    rows, item = queue.keys(batch(2), torch.tensor([4, 5]))
    assert torch.equal(rows, batch(2)) and item.tolist() == [4, 5]
    with pytest.raises(ValueError, match="length must be"):
        FeatureQueue(-1, 3)


def test_its_place_goes_into_the_checkpoint():
    one, other = FeatureQueue(5, 3), FeatureQueue(5, 3)
    one.push(batch(3), torch.arange(3))
    other.load_state_dict(one.state_dict())
    for queue in (one, other):
        queue.push(batch(4, seed=1), torch.arange(3, 7))
    assert torch.equal(one.rows, other.rows) and torch.equal(one.item, other.item)
    assert int(one.place) == 2


def test_info_nce_against_the_queue_is_the_loop():
    torch.manual_seed(0)
    queue = FeatureQueue(5, 3).double()
    z, own = (unit(torch.randn(4, 3, dtype=torch.float64)) for _ in range(2))
    loss = 0.0
    for row, key in zip(z, own):
        scores = [7.0 * (row @ key), *(7.0 * (row @ q) for q in queue.rows)]
        loss += (sum(s.exp() for s in scores).log() - scores[0]) / 4
    assert torch.allclose(queue.info_nce(z, own, 7.0), loss, rtol=0, atol=1e-12)
