"""What a run will cost, and why it does not train."""

import math
import re
import time
from dataclasses import replace

import pytest
import torch
from training_runs import Noisy, assert_same, dual, pairs, snapshot

from alignkit.data import Pairs
from alignkit.parts import DualEncoder, Settings
from alignkit.training import (
    Budget, diagnose, estimate, fit, gradient_cosines, memory_of, seed_all,
)  # fmt: skip

SHORT = Budget(steps=6, batch_size=16, lr=1e-2)


# Estimate ---------------------------------------------------------------------------
def test_estimate_changes_nothing_and_grows_with_the_batch():
    seed_all(0)
    method = Noisy(Settings(width=3), pairs())
    before, state = snapshot(method), torch.get_rng_state()
    small, large = (estimate(method, pairs(), replace(SHORT, batch_size=b)) for b in (8, 48))
    assert_same(method.state_dict(), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in method.parameters()) and method.training
    assert large.saved > 3 * small.saved > 0
    assert small.seconds > 0 and "MiB" in str(small)
    numbers = 2 * (6 * 3 + 3)
    assert small.trainable == numbers and small.optimizer == 3 * 4 * numbers
    assert small.weights == 4 * (numbers + 6 * 3 + 1)  # the average and the temperature


def test_estimate_says_what_workers_would_do(monkeypatch):
    class Slow(Noisy):
        def collate(self, rows, generator):
            time.sleep(0.1)
            return super().collate(rows, generator)

    seed_all(0)
    quick, slow = (estimate(kind(Settings(width=3), pairs()), pairs(), SHORT)
                   for kind in (Noisy, Slow))
    steps = 8 + 6  # of its two stages
    assert steps * 0.1 <= slow.making < slow.seconds and quick.making < 0.5
    assert slow.fed_by(0) is slow
    assert slow.fed_by(2).seconds == pytest.approx(max(slow.making / 2, slow.seconds - slow.making))
    monkeypatch.setitem(type(slow).workers.__globals__, "cores", lambda: 6)
    one = replace(slow, seconds=4.0, making=3.0)
    assert one.workers() == 5 and one.workers(2) == 2 and one.workers(8) == 0
    assert replace(one, making=2.0).workers() == 2  # half more than one for one
    assert replace(one, making=0.15).workers() == 0  # too little to be worth it


def test_memory_of_a_method_on_the_meta_device():
    rows = Pairs.from_features({"image_features": torch.zeros(4, 1024),
                                "text_features": torch.zeros(4, 1024)})
    with torch.device("meta"):
        method = DualEncoder(Settings(width=512), rows)
    weights, extra, trainable = memory_of(method)
    assert trainable == 2 * (1024 * 512 + 512)
    assert (weights, extra) == (4 * trainable + 4, 12 * trainable)


# Diagnosis --------------------------------------------------------------------------
def healthy():
    rows = pairs().split(0).train  # item numbers above the number of rows
    method = dual(rows)
    return method, rows, fit(method, rows, replace(SHORT, steps=60))


def test_a_healthy_run_has_no_findings():
    method, rows, history = healthy()
    state, before = torch.get_rng_state(), snapshot(method)
    assert diagnose(method, rows, history) == []
    assert torch.equal(torch.get_rng_state(), state)
    assert_same(method.state_dict(), before)


def test_one_number_a_row_is_no_feature():
    method, rows, history = healthy()
    rows = rows.with_columns(age=torch.arange(float(len(rows))))
    assert diagnose(method, rows, history) == []


def constant(rows):
    return rows.with_columns(text_features=torch.ones(len(rows), 6))


def parallel(rows):
    return rows.with_columns(text_features=rows["text_features"] + 30)


def twice(rows):
    text = rows["text_features"].clone()
    text[4] = text[9]
    return rows.with_columns(text_features=text)


FEATURES = {
    "every row is the same": constant, "nearly parallel": parallel,
    "2 rows have the same features as a row of another item|1 rows have": twice}


@pytest.mark.parametrize("finding", FEATURES)
def test_faults_of_features_are_found(finding):
    rows = FEATURES[finding](pairs())
    found = diagnose(dual(rows), rows)
    assert re.search(f"^text_features: .*({finding})", "\n".join(found), re.M), found
    assert not any(line.startswith("image_features") for line in found)


def test_rows_of_one_item_may_share_features():
    rows = pairs()
    image = rows["image_features"].repeat_interleave(2, 0)[:50]
    shared = Pairs.from_features({"image_features": image,
                                  "text_features": rows["text_features"]},
                                 item=[1000 + i // 2 for i in range(50)])
    assert diagnose(dual(shared), shared) == []


def test_a_loss_stuck_at_ln_batch_is_found():
    method, rows = dual(temperature=1.0), pairs()
    with torch.no_grad():
        for head in method.heads.values():
            head.weight *= 1e-4  # the bias decides: every output is alike
    history = fit(method, rows, replace(SHORT, steps=20, lr=0.0, batch_size=32))
    found = diagnose(method, rows, history)
    assert "the loss stays at 3.47 = ln(32)" in found[0]
    assert [line for line in found if line.startswith("outputs of image have collapsed")]
    assert [line for line in found if line.startswith("outputs of text have collapsed")]


def test_a_growing_loss_is_found():
    method, rows, history = healthy()
    for row in history.steps[30:]:
        row["loss"] *= 1e4
    assert "the loss grew" in diagnose(method, rows, history)[0]


def test_a_temperature_at_its_clamp_is_found():
    method = dual(temperature=0.01, learn_temperature=True)
    assert any("at its clamp" in line for line in diagnose(method, pairs()))
    del method.temperature
    method.temperature = 0.07  # a method's own number is no reason to stop
    assert not any("at its clamp" in line for line in diagnose(method, pairs()))


def test_outputs_that_are_not_finite_are_found():
    method = dual()
    with torch.no_grad():
        method.heads["text"].weight[0, 0] = math.inf
    assert "outputs of text are not finite" in diagnose(method, pairs())


# Gradients that pull apart -------------------------------------------------------------
def test_gradient_cosines_are_those_of_gradients_taken_one_by_one():
    w = [torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor(3.0, requires_grad=True)]
    losses = [w[0].sum(), -w[0].sum() + w[1], 5 * w[1], (w[0] ** 2).sum()]
    found = gradient_cosines(losses, w)  # (1, 1, 0), (−1, −1, 1), (0, 0, 5), (2, 4, 0)
    assert torch.allclose(found.diagonal(), torch.ones(4))
    assert torch.allclose(found, found.T)
    for i, j, wanted in [(0, 1, -2 / 6 ** 0.5), (0, 2, 0.0), (1, 2, 1 / 3 ** 0.5),
                         (0, 3, 6 / 40 ** 0.5)]:
        assert float(found[i, j]) == pytest.approx(wanted, abs=1e-6)
    assert all(p.grad is None for p in w)


def test_gradients_cancel_where_the_sum_is_stationary():
    generator = torch.Generator().manual_seed(0)
    targets = torch.randn(5, 3, generator=generator)
    w = targets.mean(0).requires_grad_()  # the least Σ|w − t|²
    found = gradient_cosines([((w - t) ** 2).sum() for t in targets], [w])
    lengths = (targets - targets.mean(0)).norm(dim=1)
    products = found * lengths[:, None] * lengths
    assert float((products.sum() - products.trace()) / products.trace()) == pytest.approx(-1)


def test_gradient_cosines_refuse_what_has_no_direction():
    w = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match="losses must be two or more, got 1"):
        gradient_cosines([w.sum()], [w])
    with pytest.raises(ValueError, match="loss 1 has no gradient on these weights"):
        gradient_cosines([w.sum(), (0 * w).sum()], [w])
