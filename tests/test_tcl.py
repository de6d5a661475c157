"""TCL's three losses against slow loops, its exact properties, the claims' figures."""

import math

import pytest
import torch
from torch.nn import functional as F

from alignkit import stats
from alignkit.claims import tcl as claims
from alignkit.claims.claim import Trained
from alignkit.course import tcl as exercises
from alignkit.data import Pairs, Splits, Tokens
from alignkit.methods.tcl import (
    Tcl,
    TclSettings,
    local_loss,
    on_grid,
    soft_loss,
    view_of,
)
from alignkit.parts import FeatureQueue, info_nce, unit
from alignkit.training import Budget, fit, seed_all


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def features(n: int = 12, t: int = 4, d: int = 6, item=None) -> Pairs:
    """Pairs whose rows share a hidden state; texts are padded."""
    hidden, columns = rows(n, t, 4), {}
    for k, name in enumerate(("image", "text"), 1):
        values = hidden @ rows(4, d, seed=k) + 0.2 * rows(n, t, d, seed=k + 5)
        real = (torch.arange(n) % 2 + 2) if name == "text" else torch.full((n,), t)
        mask = torch.arange(t) < real[:, None]
        columns[f"{name}_tokens"] = Tokens(values * mask[..., None], mask)
    return Pairs.make(columns, item=item)


def method_on(pairs: Pairs, seed: int = 0, **rest) -> Tcl:
    seed_all(seed)
    towers = {"image": "image_tokens", "text": "text_tokens"}
    return Tcl(TclSettings(towers=towers, **({"width": 5, "queue": 7} | rest)),
               pairs).double()


def stepped(method: Tcl, pairs: Pairs, step: int = 0, progress: float = 1.0) -> dict:
    """Losses of one step in training mode, with queues and averages moved on."""
    batch = method.collate(pairs, seed_all(step))
    losses = method.train()(batch, progress)
    grads = torch.autograd.grad(sum(losses.values()), method.heads.parameters())
    with torch.no_grad():
        for p, g in zip(method.heads.parameters(), grads):
            p -= 0.5 * g
    method.after_step()
    return batch


# The three losses, one number at a time -----------------------------------------------
def log_softmax(row: list) -> list:
    total = sum(x.exp() for x in row).log()
    return [x - total for x in row]


def loop_losses(method: Tcl, batch: dict, progress: float) -> dict:
    """The card's equations from the tokens of the batch."""
    s, tau = method.settings, 1 / method.temperature()
    rows_, keys, items, parts = {}, {}, {}, {}
    for name, column in s.towers.items():
        def project(tokens, head):
            found = []
            for x, mask in zip(*tokens):
                found.append([head.weight @ x[k] + head.bias
                              for k in range(len(mask)) if mask[k]])
            return found

        def whole(row):
            mean = sum(row) / len(row)
            return mean / mean.norm()

        slow = [[z.detach() for z in row] for row in
                project(batch[f"{column}_view2"], method.slow[name].slow)]
        rows_[name] = [whole(row) for row in
                       project(batch[f"{column}_view1"], method.heads[name])]
        keys[name] = [whole(row) for row in slow] + list(method.queues[name].rows)
        items[name] = batch["item"].tolist() + method.queues[name].item.tolist()
        parts[name] = [[z / z.norm() for z in row] for row in slow]
    soft = s.soft * min(1, progress / s.ramp)
    found = {"cma_loss": 0.0, "imc_loss": 0.0, "lmi_loss": 0.0}
    n, item = len(batch["item"]), batch["item"].tolist()
    for one, other in (("image", "text"), ("text", "image")):
        for i in range(n):
            for loss, side in (("cma_loss", other), ("imc_loss", one)):
                same = [float(item[i] == k) for k in items[side]]
                y = [x / sum(same) for x in same]
                if loss == "cma_loss":
                    seen = log_softmax([keys[one][i] @ k / tau.detach()
                                        for k in keys[side]])
                    y = [soft * x.exp() + (1 - soft) * w for x, w in zip(seen, y)]
                log_p = log_softmax([rows_[one][i] @ k / tau for k in keys[side]])
                found[loss] = found[loss] - sum(a * b for a, b in zip(y, log_p)) / n
            others = sum((rows_[one][i] @ z / tau).exp() for j in range(n)
                         if item[j] != item[i] for z in parts[one][j])
            own = [(rows_[one][i] @ z / tau).exp() for z in parts[one][i]]
            found["lmi_loss"] = found["lmi_loss"] - sum(
                (x / (x + others)).log() for x in own) / len(own) / n
    return {name: loss / 6 for name, loss in found.items()}


@pytest.mark.parametrize("item", [None, [0, 1, 2, 3, 3, 4]])
def test_losses_and_gradients_are_the_equations(item):
    pairs = features(6, item=item)
    method = method_on(pairs)
    for step in range(2):  # fills the queue with keys of these very items
        stepped(method, pairs.select([0, 2, 4]), step)
    batch = method.collate(pairs, seed_all(5))
    weights = [*method.heads.parameters(), method.temperature.log_scale]
    fast, slow = method.train()(batch, 0.01), loop_losses(method, batch, 0.01)
    assert fast.keys() == slow.keys()
    for name in fast:
        assert abs(fast[name] - slow[name]) < 1e-9 * slow[name], name
        found, wanted = (torch.cat([g.flatten() for g in torch.autograd.grad(
            losses[name], weights, retain_graph=True)]) for losses in (fast, slow))
        assert (found - wanted).norm() < 1e-9 * wanted.norm(), name


def test_terms_in_use_are_averaged():
    pairs = features()
    whole = method_on(pairs)
    batch = whole.collate(pairs, seed_all(0))
    every = whole.train()(batch, 1.0)
    for terms in (("cma",), ("imc",), ("cma", "lmi")):
        some = method_on(pairs, terms=terms).train()(batch, 1.0)
        assert set(some) == {f"{name}_loss" for name in terms}
        for name, loss in some.items():
            assert torch.isclose(loss * len(terms), every[name] * 3, rtol=1e-12)
    for wrong in ((), ("itm",)):
        with pytest.raises(ValueError, match="terms must be"):
            method_on(pairs, terms=wrong)


# The paper's exact properties -----------------------------------------------------------
def test_a_without_queue_momentum_and_softness_it_is_clips_loss():
    pairs = features()
    method = method_on(pairs, terms=("cma",), queue=0, momentum=0.0, soft=0.0, drop=0.0,
                       noise={})
    for step in range(3):
        stepped(method, pairs, step)
    loss = method(method.collate(pairs, seed_all(0)), 1.0)["cma_loss"]
    out = method.eval().encode(pairs.batch())
    clip = info_nce(out["image"], out["text"], method.temperature())
    assert torch.isclose(loss, clip, rtol=1e-12)
    slower = method_on(pairs, terms=("cma",), queue=0, momentum=0.9, soft=0.0, drop=0.0,
                       noise={})
    for step in range(3):
        stepped(slower, pairs, step)
    out = slower.encode(slower.collate(pairs, seed_all(0)))
    clip = info_nce(out["image"], out["text"], slower.temperature())
    loss = slower(slower.collate(pairs, seed_all(0)), 1.0)["cma_loss"]
    assert abs(loss - clip) > 1e-4


def test_a_its_gradient_is_the_half_that_comes_through_the_asking_rows():
    pairs = features()
    method = method_on(pairs, terms=("cma",), queue=0, momentum=0.0, soft=0.0, drop=0.0,
                       noise={})
    weights = [method.heads["image"].weight, method.heads["text"].weight]
    scale = method.temperature()
    loss = method(method.collate(pairs, seed_all(0)), 1.0)["cma_loss"]
    a, b = method.eval().encode(pairs.batch()).values()
    rows_ = torch.arange(len(a))
    half = (F.cross_entropy(scale * a @ b.detach().T, rows_)
            + F.cross_entropy(scale * b @ a.detach().T, rows_)) / 2
    found, halved, whole = (torch.cat([g.flatten() for g in torch.autograd.grad(
        x, weights, retain_graph=True)]) for x in (loss, half, info_nce(a, b, scale)))
    assert (found - halved).norm() < 1e-9 * halved.norm()
    assert (found - whole).norm() > 0.1 * whole.norm()


def test_b_with_one_part_a_row_lmi_is_info_nce_one_way():
    a, z = unit(rows(7, 4)), unit(rows(7, 1, 4, seed=1))
    parts = Tokens(z, torch.ones(7, 1, dtype=torch.bool))
    wanted = F.cross_entropy(9.0 * a @ z[:, 0].T, torch.arange(7))
    found = local_loss(a, parts, 9.0, torch.eye(7, dtype=torch.bool))
    assert torch.isclose(found, wanted, rtol=1e-12)


def test_a_row_among_its_own_costs_nothing_and_has_a_finite_gradient():
    leaf, z = unit(rows(5, 4)).requires_grad_(), unit(rows(5, 3, 4, seed=1))
    parts = Tokens(z, torch.ones(5, 3, dtype=torch.bool))
    loss = local_loss(leaf, parts, 9.0, torch.ones(5, 5, dtype=torch.bool))
    assert loss == 0 and (torch.autograd.grad(loss, leaf)[0] == 0).all()


def test_c_no_gradient_reaches_the_momentum_network_or_a_local_row():
    pairs = features()
    method = method_on(pairs)
    batch = method.train().collate(pairs, seed_all(0))
    trained = {name for name, _ in method.named_parameters()}
    assert trained == {f"heads.{m}.{p}" for m in ("image", "text")
                       for p in ("weight", "bias")} | {"temperature.log_scale"}
    whole, parts = method.targets("image", batch)
    assert not whole.requires_grad and not parts.values.requires_grad
    second = batch["image_tokens_view2"].values.requires_grad_()
    loss = sum(method(batch, 1.0).values())
    assert torch.autograd.grad(loss, second, allow_unused=True) == (None,)


def test_d_what_stands_at_padding_changes_nothing():
    pairs = features()
    values, mask = pairs["text_tokens"]
    junk = torch.where(mask[..., None], values, 100 + rows(*values.shape, seed=9))
    other = pairs.with_features(text_tokens=Tokens(junk, mask))
    for train in (True, False):
        method = method_on(pairs).train(train)
        one, two = (method(method.collate(p, seed_all(3)), 1.0) for p in (pairs, other))
        assert all(torch.equal(one[name], two[name]) for name in one)
    z, eye = unit(rows(12, 4, 5)), torch.eye(12, dtype=torch.bool)
    a, parts = unit(rows(12, 5, seed=1)), Tokens(z, mask)
    changed = Tokens(torch.where(mask[..., None], z, -z), mask)
    assert local_loss(a, parts, 9.0, eye) == local_loss(a, changed, 9.0, eye)
    full = local_loss(a, Tokens(z, torch.ones_like(mask)), 9.0, eye)
    assert abs(full - local_loss(a, parts, 9.0, eye)) > 1e-3


def test_e_the_momentum_network_is_the_papers_average_and_the_queue_its_keys():
    """Update, then features, then losses, then the queue: as at the start of a step."""
    pairs = features()
    method = method_on(pairs, momentum=0.9)
    wanted = {k: v.clone() for k, v in method.heads.state_dict().items()}
    held = method.queues["text"].rows.clone()
    for step in range(4):
        wanted = {k: 0.9 * wanted[k] + 0.1 * v
                  for k, v in method.heads.state_dict().items()}
        for name, slow in method.slow.items():
            weight = wanted[f"{name}.weight"]
            assert torch.allclose(slow.slow.weight, weight, rtol=1e-12)
        few = pairs.select([step, step + 4])
        batch = method.train().collate(few, seed_all(step))
        key, _ = method.targets("text", batch)
        stepped(method, few, step)
        held[(2 * step) % 7], held[(2 * step + 1) % 7] = key
        assert torch.allclose(method.queues["text"].rows, held, rtol=1e-12)
    assert method.queues["text"].item.tolist() == [7, 4, 1, 5, 2, 6, 3]


# Views, the grid, the soft targets ----------------------------------------------------
def test_views_drop_real_tokens_and_never_all():
    mask = torch.arange(6) < torch.tensor([6, 3, 1, 6] * 100)[:, None]
    tokens = Tokens(torch.ones(400, 6, 2), mask)
    view = view_of(tokens, 0.4, 0.5, torch.Generator().manual_seed(0))
    assert not (view.mask & ~mask).any() and view.mask.any(1).all()
    assert (view.values[~view.mask] == 0).all()
    six = mask.all(1)
    assert abs(view.mask[six].double().mean() - 0.6) < 0.03
    noise = (view.values - 1)[view.mask]
    assert abs(noise.std() - 0.5) < 0.02 and abs(noise.mean()) < 0.03
    same = view_of(tokens, 0.0, 0.0, torch.Generator())
    assert torch.equal(same.values * mask[..., None], tokens.values * mask[..., None])


def test_two_views_of_a_batch_differ_and_come_from_the_generator():
    pairs = features()
    method = method_on(pairs)
    one, two, other = (method.collate(pairs, seed_all(k)) for k in (0, 0, 1))
    assert torch.equal(one["image_tokens"].values, pairs["image_tokens"].values)
    first, second = one["image_tokens_view1"].values, one["image_tokens_view2"].values
    assert not torch.equal(first, second)
    assert torch.equal(first, two["image_tokens_view1"].values)
    assert not torch.equal(first, other["image_tokens_view1"].values)


@pytest.mark.parametrize("width, side", [(8, 4), (7, 4), (5, 2)])
def test_places_are_averaged_on_the_grid(width, side):
    values = rows(2, width**2, 3)
    mask = torch.rand(2, width**2, generator=torch.Generator().manual_seed(1)) < 0.5
    found = on_grid(Tokens(values, mask), side)
    assert found.values.shape == (2, side**2, 3)
    for y in range(side):
        for x in range(side):
            inside = torch.zeros(width, width, dtype=torch.bool)
            inside[y * width // side:math.ceil((y + 1) * width / side),
                   x * width // side:math.ceil((x + 1) * width / side)] = True
            for i in range(2):
                some = values[i][inside.flatten() & mask[i]]
                k = y * side + x
                assert found.mask[i, k] == bool(len(some))
                if len(some):
                    assert torch.allclose(found.values[i, k], some.mean(0))


def test_what_is_no_larger_square_stays():
    for t in (4, 12, 16):
        tokens = Tokens(rows(2, t, 3), torch.ones(2, t, dtype=torch.bool))
        assert on_grid(tokens, 4) is tokens


def test_soft_targets_grow_over_the_ramp():
    pairs = features()
    method = method_on(pairs, terms=("cma",), ramp=0.1, soft=0.5).train()
    batch = method.collate(pairs, seed_all(0))
    at = {p: method(batch, p)["cma_loss"].item() for p in (0.0, 0.05, 0.1, 0.9)}
    hard = method_on(pairs, terms=("cma",), soft=0.0).train()(batch, 0.9)["cma_loss"]
    assert at[0.0] == hard.item() and at[0.1] == at[0.9]
    assert at[0.05] == pytest.approx((at[0.0] + at[0.1]) / 2, rel=1e-12)
    assert abs(at[0.1] - at[0.0]) > 1e-3


def test_it_learns_to_retrieve_and_fills_its_queues():
    pairs = features(80)
    pairs = pairs.with_features(**{c: Tokens(v.values.float(), v.mask)
                                   for c, v in pairs.columns.items()})
    method = method_on(pairs, width=16, queue=40, drop=0.1).float()
    before = claims.hit_at_10(method, pairs)
    fit(method, pairs, Budget(steps=120, batch_size=40, lr=1e-2))
    assert claims.hit_at_10(method, pairs) > before + 0.1
    assert (method.queues["image"].item >= 0).all()


# The claims ---------------------------------------------------------------------------
def test_neighbours_count_those_that_show_one_of_the_same_things():
    gallery = torch.eye(12)
    shown = torch.tensor([[1.0, 1, 0], [0, 0, 1]])
    there = torch.zeros(12, 3)
    there[:3, 0] = there[2:5, 1] = 1  # five of the first ten, counted once each
    query = torch.cat([torch.ones(2, 10), torch.zeros(2, 2)], 1)
    assert claims.neighbours(query[:1], gallery, shown[:1], there) == pytest.approx(0.5)
    assert claims.neighbours(query, gallery, shown, there) == pytest.approx(0.25)


def test_the_gain_is_the_second_terms():
    figures = {"cma@0.5": 0.3, "imc@0.5": 0.45, "cma@0.0": 0.4, "imc@0.0": 0.41}
    assert claims.gain(figures, 0.5) == pytest.approx(0.15)
    assert claims.gain(figures, 0.0) == pytest.approx(0.01)


def test_own_parts_are_compared_with_those_of_others():
    values = torch.zeros(3, 2, 3)
    values[torch.arange(3), :, torch.arange(3)] = 1
    test = Pairs.from_features({
        "image_tokens": Tokens(values, torch.ones(3, 2, dtype=torch.bool)),
        "text_tokens": Tokens(values, torch.ones(3, 2, dtype=torch.bool))})
    method = method_on(test, width=3).float()
    with torch.no_grad():
        method.heads["image"].weight.copy_(torch.eye(3))
        method.heads["image"].bias.zero_()
    splits = Splits(test, test, test)
    assert claims.own_parts(method, splits) == pytest.approx(1.0)
    turned = test.with_features(image_parts=Tokens(values.roll(1, 0),
                                                   test["image_tokens"].mask))
    assert claims.own_parts(method, splits._replace(test=turned)) == pytest.approx(-0.5)


def test_copies_are_one_item_or_strangers_and_nothing_else_differs():
    train = features(24)
    known, blind = (claims.copied(train, 3, k) for k in (True, False))
    assert len(known) == 24 and len(known.item.unique()) == 6
    assert len(blind.item.unique()) == 24 and blind.ids == known.ids
    assert torch.equal(known["image_tokens"].values, blind["image_tokens"].values)
    assert torch.equal(known.group, blind.group)
    same = known.item == known.item[0]
    texts = known["text_tokens"].values[same]
    pictures = known["image_tokens"].values[same]
    assert same.sum() == 4 and (texts == texts[0]).all()
    assert not torch.equal(pictures[0], pictures[1])
    met = claims.copies_met(Trained(None, Splits(blind, None, None), None), 24)
    assert met == pytest.approx(3.0)


def test_in_the_control_nothing_keeps_its_place():
    pairs = features(30)
    pairs = pairs.with_columns(text=pairs.ids).with_features(things=torch.eye(30))
    splits = Splits(pairs, pairs, pairs)
    null = claims.cured(splits, 0)
    for old, new in zip(splits, null):
        assert sorted(new["things"].argmax(1).tolist()) == list(range(30))
        assert (new["things"].argmax(1) == torch.arange(30)).sum() < 6
        assert torch.equal(new["image_tokens"].values, old["image_tokens"].values)
    moved = (null.train["text_tokens"].values != pairs["text_tokens"].values)
    assert moved.flatten(1).any(1).all()


# The exercises teach what the package computes ----------------------------------------
def _step(rows, keys, queue, tau):
    """A ring whose oldest rows stand where the next ones go, read newest first."""
    ring = FeatureQueue(len(queue), rows.shape[1])
    ring.rows.copy_(queue.flip(0))
    columns, _ = ring.keys(keys, torch.arange(len(keys)))
    loss = soft_loss(rows, torch.cat([keys, queue]), torch.tensor(1 / tau),
                     torch.eye(len(rows), len(columns)))
    ring.push(keys.flip(0), torch.arange(len(keys)))
    return loss, ring.rows.roll(-int(ring.place), 0).flip(0)


def _more_with_noise(noisy, clean, t, margin):
    verdicts = [stats.verdict(stats.t_interval((noisy - clean)[:, k].tolist()), margin)
                for k in range(noisy.shape[1])]
    return torch.tensor([{"holds": 2.0, "some gain": 1.0}.get(v, 0.0) for v in verdicts])


@pytest.mark.parametrize("exercise, function", [
    (exercises.against_parts, lambda rows, parts, real, items, tau: local_loss(
        rows, Tokens(parts, real), 1 / tau, items[:, None] == items)),
    (exercises.step, _step), (exercises.more_with_noise, _more_with_noise)])
def test_exercises_are_the_package(exercise, function):
    exercise.grade(function)
