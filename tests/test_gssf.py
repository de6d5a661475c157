"""The sparse score against slow loops, its exact properties, and what the claims do to
the channels."""

import numpy as np
import pytest
import torch

from alignkit.claims import gssf as claims
from alignkit.course import gssf as exercises
from alignkit.data import Pairs
from alignkit.evaluation import evaluate_retrieval, search
from alignkit.methods.gssf import Gssf, GssfSettings, weighed
from alignkit.parts import DualEncoder, Settings, info_nce, triplet_loss, unit
from alignkit.training import Budget, fit, seed_all


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def features(n: int = 120, d: int = 8) -> Pairs:
    """Pairs that share a hidden state; groups of two rows."""
    hidden = rows(n, 6)
    columns = {f"{side}_features": (hidden @ rows(6, d, seed=k)
                                    + 0.1 * rows(n, d, seed=k + 5)).float()
               for k, side in enumerate(("image", "text"), 1)}
    text = [f"caption {i}" for i in range(n)]
    return Pairs.make({"image": text, "text": text, **columns},
                      group=torch.arange(n) // 2)


def drawn(pairs: Pairs, **settings) -> Gssf:
    """A method in float64 whose w and W are far from the cosine."""
    seed_all(0)
    method = Gssf(GssfSettings(**({"width": 8, "block": 4} | settings)), pairs).double()
    with torch.no_grad():
        for k, parameter in enumerate((method.change, method.blocks)):
            if parameter is not None:
                parameter.copy_(rows(*parameter.shape, seed=20 + k))
    return method


def batch_of(pairs: Pairs) -> dict:
    return {k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v
            for k, v in pairs.batch().items()}


def loop_score(x, y, w, blocks):
    """The card's sum, one number at a time."""
    b, total = len(blocks[0]), 0.0
    for m in range(len(x)):
        total = total + w[m] * x[m] * y[m]
    for g, block in enumerate(blocks):
        for i in range(b):
            for j in range(b):
                total = total + x[g * b + i] * block[i, j] * y[g * b + j]
    return total


def loop_loss(x, y, w, blocks, scale):
    n, total = len(x), 0.0
    s = [[scale * loop_score(a, b, w, blocks) for b in y] for a in x]
    for i in range(n):
        row = sum(s[i][j].exp() for j in range(n))
        column = sum(s[j][i].exp() for j in range(n))
        total = total + row.log() + column.log() - 2 * s[i][i]
    return total / (2 * n)


# The equations ------------------------------------------------------------------------
def test_score_loss_and_gradient_are_the_equations():
    leaves = [unit(rows(5, 6)), unit(rows(5, 6, seed=1)), rows(6, seed=2),
              rows(2, 3, 3, seed=3)]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    x, y, w, blocks = leaves
    fast = info_nce(weighed(x, w, blocks), y, 3.0, torch.eye(5).bool())
    slow = loop_loss(x, y, w, blocks, 3.0)
    assert abs(fast - slow) < 1e-9 * slow
    for found, wanted in zip(torch.autograd.grad(fast, leaves),
                             torch.autograd.grad(slow, leaves)):
        assert (found - wanted).norm() < 1e-9 * wanted.norm()


def test_the_method_is_heads_unit_rows_and_the_loop():
    pairs = features(6)
    method, batch = drawn(pairs), batch_of(pairs)
    x, y = (batch[f"{side}_features"] @ method.heads[side].weight.T
            + method.heads[side].bias for side in ("image", "text"))
    x, y = (z / z.norm(dim=1, keepdim=True) for z in (x, y))
    w, blocks = 1 + method.change, method.blocks
    (loss,) = method(batch).values()
    wanted = loop_loss(x, y, w, blocks, torch.tensor(1 / 0.07, dtype=torch.float64))
    assert abs(loss - wanted) < 1e-6 * wanted
    loss.backward()
    assert method.temperature.log_scale.grad.abs() > 0  # it is learned
    out = method.encode(batch)
    for i in range(6):
        assert torch.isclose(method.score(out["image"], out["text"])[i, 5 - i],
                             loop_score(x[i], y[5 - i], w, blocks))
        assert torch.isclose(x[i] @ method.matrix() @ y[0],
                             loop_score(x[i], y[0], w, blocks))


def test_a_text_that_asks_has_the_same_score_turned():
    pairs = features(7)
    method = drawn(pairs)
    out = method.encode(batch_of(pairs))
    there = method.score(out["image"], out["text"])
    back = method.score(out["text"], out["image"])
    assert torch.allclose(back, there.T)
    assert (there - there.T).abs().max() > 0.1  # W is not symmetric: it is no accident


def test_the_gallery_is_the_plain_rows_in_both_directions():
    """The index of the cosine serves; only the query is turned."""
    pairs = features(20)
    method = drawn(pairs)
    out = method.encode(batch_of(pairs))
    plain = drawn(pairs, diagonal=False, block=0).encode(batch_of(pairs))
    for asks, asked in (("image", "text"), ("text", "image")):
        assert torch.equal(out[asked]["row"], plain[asked]["row"])
        found = search(out[asks]["asking"].detach(), out[asked]["row"].detach(), k=5)
        best = method.score(out[asks], out[asked]).topk(5)
        assert torch.equal(found.places, best.indices)
        assert torch.allclose(found.scores, best.values)


# The exact properties -----------------------------------------------------------------
def test_it_starts_as_the_dual_encoder():
    pairs = features(30)
    made = []
    for kind, settings in ((DualEncoder, Settings(width=8, temperature=0.07,
                                                  learn_temperature=True)),
                           (Gssf, GssfSettings(width=8, block=4)),
                           (Gssf, GssfSettings(width=8, diagonal=False, block=0))):
        seed_all(0)
        made.append(kind(settings, pairs))
    plain, _, cosine = made
    losses = [m(pairs.batch())["contrastive_loss"].item() for m in made]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6) == losses[2]
    assert set(dict(cosine.named_parameters())) == set(dict(plain.named_parameters()))
    reports = [evaluate_retrieval(m, pairs)["mean"] for m in made]
    assert reports[0] == reports[1] == reports[2]


def test_blocks_of_one_are_a_diagonal_and_one_block_is_the_full_form():
    x, w = rows(4, 6), rows(6, seed=1)
    ones, whole = rows(6, 1, 1, seed=2), rows(1, 6, 6, seed=3)
    none = torch.zeros(6).double()
    assert torch.allclose(weighed(x, w, ones), x * (w + ones[:, 0, 0]))
    assert torch.allclose(weighed(x, none, whole), x @ whole[0])
    assert torch.equal(weighed(x, w, None), x * w)


def test_no_weight_outside_the_blocks_exists():
    """The general form with a mask: the gradient of a full W is exactly 0 off the mask,
    and inside it is the gradient of the blocks."""
    x, y = unit(rows(5, 6)), unit(rows(5, 6, seed=1))
    mask = torch.block_diag(*torch.ones(2, 3, 3)).double()
    full = rows(6, 6, seed=2).requires_grad_()
    info_nce(x @ (full * mask), y, 5.0).backward()
    assert (full.grad[mask == 0] == 0).all() and (full.grad[mask == 1] != 0).all()
    blocks = torch.stack([full.detach()[:3, :3], full.detach()[3:, 3:]])
    blocks.requires_grad_()
    info_nce(weighed(x, torch.zeros(6).double(), blocks), y, 5.0).backward()
    assert torch.allclose(torch.block_diag(*blocks.grad), full.grad)


def test_it_is_linear_in_each_side_and_turns_with_the_groups():
    x, other, y = rows(3, 6), rows(3, 6, seed=1), rows(4, 6, seed=2)
    w, blocks = rows(6, seed=3), rows(2, 3, 3, seed=4)

    def s(x, y, blocks=blocks, w=w):
        return weighed(x, w, blocks) @ y.T

    assert torch.allclose(s(x + other, y), s(x, y) + s(other, y))
    assert torch.allclose(s(x, 2 * y), 2 * s(x, y))
    r, t = (torch.linalg.qr(rows(2, 3, 3, seed=k))[0] for k in (5, 6))
    turned = (torch.einsum("gij,ngj->ngi", q, z.view(-1, 2, 3)).reshape(-1, 6)
              for q, z in ((r, x), (t, y)))
    moved, none = r @ blocks @ t.transpose(1, 2), torch.zeros(6).double()
    assert torch.allclose(s(*turned, blocks=moved, w=none), s(x, y, w=none))


def test_a_larger_matrix_satisfies_the_hinge_by_its_size_alone():
    """Why the loss is a softmax with a learned temperature."""
    x = unit(rows(8, 5))
    y = unit(x + 0.1 * rows(8, 5, seed=1))
    assert (x @ y.T).argmax(1).tolist() == list(range(8))
    small, large = (triplet_loss(weighed(x, c * torch.ones(5).double(), None) @ y.T)
                    for c in (1.0, 30.0))
    assert small > 0.01 and large == 0


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="divide the width 10"):
        GssfSettings(width=10, block=4)
    for w, blocks in ((rows(5), None), (rows(6), rows(2, 2, 2)),
                      (rows(6), rows(3, 2, 3))):
        with pytest.raises(ValueError, match="groups · b = 6"):
            weighed(rows(4, 6), w, blocks)


def test_decay_pulls_to_the_cosine():
    pairs = features(40)
    kept = []
    for decay in (0.0, 5.0):
        seed_all(0)
        method = Gssf(GssfSettings(width=8, block=4), pairs)
        fit(method, pairs, Budget(steps=60, batch_size=40, lr=3e-2, weight_decay=decay))
        kept.append(float((method.matrix() - torch.eye(8)).norm().detach()))
    assert kept[1] < 0.7 * kept[0] and kept[1] > 0


@pytest.mark.parametrize("settings", [{"block": 0}, {"diagonal": False}, {}])
def test_it_learns_to_retrieve(settings):
    pairs = features()
    method = drawn(pairs, **settings).float()
    before = evaluate_retrieval(method, pairs)["mean"]["hit@1"]
    fit(method, pairs, Budget(steps=120, batch_size=60, lr=1e-2))
    assert evaluate_retrieval(method, pairs)["mean"]["hit@1"] > before + 0.3


# The claims ---------------------------------------------------------------------------
def arms() -> dict:
    s, pairs = claims.SCALES["tiny"], features()
    rows = pairs.only(*claims.SIDES, *(f"{side}_features" for side in claims.SIDES))
    return claims.heads_arms(rows, s) | claims.given_arms(rows, s)


def solved(arm, change=lambda splits: splits):
    splits = change(arm.data(3))
    method = arm.build(splits)
    method.take_heads(splits.train)
    return method, splits


def undamaged(splits) -> Gssf:
    """The cosine on the given heads."""
    method = claims.Given(claims.GivenSettings(diagonal=False, block=0, width=64),
                          splits.train)
    method.take_heads(splits.train)
    return method


def test_heads_rest_where_they_are_given():
    arm = arms()["block-mixed"]
    method, splits = solved(arm)
    before = {k: v.clone() for k, v in method.state_dict().items()}
    fit(method, splits.train, Budget(steps=5, batch_size=16, lr=1e-2))
    moved = {k for k, v in method.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == {"change", "blocks", "temperature.log_scale"}


def test_the_given_space_is_of_other_groups_and_of_unit_variance():
    pairs = features()
    first, second = claims.halves(pairs)
    assert not set(first.group.tolist()) & set(second.group.tolist())
    assert len(first) == len(second) == 60
    maps = claims.given_space(first, 64)
    for side, (weight, bias) in maps.items():
        z = first[f"{side}_features"].double() @ weight.T + bias
        assert z.shape == (60, 8) and z.mean(0).abs().max() < 1e-9
        assert z.std() == pytest.approx(1, abs=1e-6)
    splits = arms()["cosine-mixed"].data(3)
    train = claims.halves(features().split(3).train)
    assert set(splits.train.item.tolist()) <= set(train[1].item.tolist())


def test_the_exchange_is_one_cycle_a_group():
    order = claims.exchanged(64, 8, 5)
    assert sorted(order) == list(range(64)) and order != claims.exchanged(64, 8, 6)
    for start in range(0, 64, 8):
        place, seen = start, set()
        for _ in range(8):
            place = order[place]
            seen.add(place)
        assert seen == set(range(start, start + 8))


def test_a_matrix_in_the_blocks_undoes_the_exchange_and_half_a_block_cannot():
    """What the claim asks the blocks to learn exists: a permutation matrix."""
    made = arms()
    order = torch.tensor(made["block-mixed"].data(3).train.tables["order"])
    wanted = torch.eye(64)[order].T  # x · wanted = x in the text's order
    for size, reached in ((8, True), (16, True), (4, False)):
        inside = torch.block_diag(*torch.ones(64 // size, size, size)).bool()
        assert (wanted[inside].sum() == 64) == reached
    mixed, splits = solved(made["block-mixed"])
    plain = undamaged(splits)
    with torch.no_grad():
        mixed.change.fill_(-1)
        for g, block in enumerate(mixed.blocks):
            block.copy_(wanted[8 * g:8 * g + 8, 8 * g:8 * g + 8])
        batch = splits.test.batch()
        a, b = mixed.encode(batch), plain.encode(batch)
        assert torch.allclose(mixed.score(a["image"], a["text"]),
                              plain.score(b["image"], b["text"]), atol=1e-5)
        assert (mixed.score(a["image"], a["text"])
                - a["image"]["row"] @ a["text"]["row"].T).abs().max() > 0.1


def test_the_controls_remove_what_they_say():
    made = arms()
    order = made["block-mixed"].data(3).train.tables["order"]
    away = claims.elsewhere(made["block-mixed"].data(3), 0).test.tables["order"]
    assert sorted(away) == sorted(order)
    assert all((m // 8 - place // 8) % 8 == 2 for place, m in enumerate(away))
    splits = made["diag-noise"].data(3)
    assert splits.test["text_noise"].std() == pytest.approx(1, abs=0.1)
    assert not torch.allclose(splits.test["text_noise"], splits.test["image_noise"])
    quiet, loud = (solved(made["diag-noise"], change) for change in (
        lambda s: claims.silent(s, 0), lambda s: s))
    clean = undamaged(splits).encode(splits.test.batch())["image"]["row"]
    found = [m.encode(s.test.batch())["image"]["row"] for m, s in (quiet, loud)]
    assert torch.allclose(found[0][:, :64], clean, atol=1e-6)
    assert (found[0][:, 64:] == 0).all() and found[1][:, 64:].abs().min() > 0
    none = claims.nothing_paired(made["cosine"].data(3), 0)
    for part, before in zip(none, made["cosine"].data(3)):
        assert all(a != b for a, b in zip(part["text"], before["text"]))


def test_wide_heads_have_the_full_forms_weights():
    made = arms()
    sizes = {}
    for name in ("cosine", "full", "wide", "block"):
        method = made[name].build(made[name].data(0))
        sizes[name] = sum(p.numel() for p in method.parameters())
    assert sizes["cosine"] < sizes["block"] < sizes["full"] <= sizes["wide"]
    assert sizes["wide"] - sizes["full"] < 2 * 9  # a channel more or less
    assert sizes["full"] - sizes["cosine"] == 64 + 64 * 64


# The exercises teach what the package computes ----------------------------------------
def _found_blocks(x, y, b):
    """numpy's correlations of all channels, and the squares between the two sides."""
    d = x.shape[1]
    table = torch.from_numpy(np.corrcoef(x.T, y.T)[:d, d:]).float()
    return torch.stack([table[g:g + b, g:g + b] for g in range(0, d, b)])


def _structures(correlations, b):
    """A structure reaches a partner where its mask is one."""
    found = []
    for table in correlations:
        d, best = len(table), table.abs() == table.abs().amax(1, keepdim=True)
        masks = (torch.eye(d), torch.block_diag(*torch.ones(d // b, b, b)), torch.ones(d, d))
        found.append(next(k for k, mask in enumerate(masks) if (best * mask).sum() >= 0.9 * d))
    return torch.tensor(found).float()


@pytest.mark.parametrize("exercise, function", [
    (exercises.found_blocks, _found_blocks),
    (exercises.asking_texts, lambda texts, w, blocks: weighed(
        texts, w, blocks.transpose(1, 2))),
    (exercises.structures, _structures)], ids=lambda x: getattr(x, "name", ""))
def test_the_package_passes_the_exercise(exercise, function):
    assert exercise.grade(function).startswith(exercise.name)
