"""Alt-MoE against a slow loop written from the equations, and its exact properties."""

import pytest
import torch
from torch.nn import functional as F

from alignkit.data import Pairs, Tokens
from alignkit.methods.alt_moe import AltMoe, AltMoeSettings, Joint, uneven
from alignkit.training import gradient_cosines

TOWERS = {"image": "image_features", "text": "text_tokens", "speech": "speech_features"}
WIDE = {"image": 5, "text": 3, "speech": 4}


def toy_features(pairs: Pairs) -> Pairs:
    """For the shared tests: a third modality, so that there are six directions."""
    return pairs.with_features(speech_features=pairs["text_features"].flip(1) ** 2)


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def pairs(n: int = 4) -> Pairs:
    mask = torch.arange(3) < torch.tensor([1, 3, 2, 2] * n)[:n, None]
    return Pairs.from_features({
        "image_features": rows(n, 5), "speech_features": 2 + 3 * rows(n, 4, seed=1),
        "text_tokens": Tokens(rows(n, 3, 3, seed=2) * mask[..., None], mask)})


def made(kind: type = Joint, **changes) -> AltMoe:
    torch.manual_seed(0)
    settings = AltMoeSettings(towers=TOWERS, width=6, temperature=0.5,
                              **{"experts": 4, "top": 2, **changes})
    method = kind(settings, pairs()).double().eval()
    with torch.no_grad():  # norms and biases off their neutral start
        for k, p in enumerate(method.parameters()):
            p += 0.1 * rows(*p.shape, seed=10 + k)
    for m, column in TOWERS.items():  # as built they are in single precision
        x = real_tokens(pairs()[column])
        x = torch.cat(x)
        method.get_buffer(f"mean_{m}").copy_(x.mean(0))
        method.get_buffer(f"scale_{m}").copy_((x - x.mean(0)).square().mean().sqrt())
    return method


def real_tokens(column) -> list[torch.Tensor]:
    """A row's real tokens [t, d], row by row."""
    if isinstance(column, torch.Tensor):
        return [x[None] for x in column]
    return [x[m] for x, m in zip(*column, strict=True)]


def loop_linear(layer, x):
    return layer.weight @ x + layer.bias


def loop_gelu(x):
    return x * (1 + torch.erf(x / 2 ** 0.5)) / 2


def loop_norm(layer, x):
    centred = x - x.sum() / len(x)
    return layer.weight * centred / ((centred**2).sum() / len(x) + layer.eps).sqrt() + layer.bias


def loop_mixture(experts, u, top):
    """Σ over the `top` largest of softmax(W u + b), not renormalised, and all weights."""
    logits = loop_linear(experts.gate, u)
    g = [z.exp() / sum(other.exp() for other in logits) for z in logits]
    kept = sorted(range(len(g)), key=lambda e: -g[e].item())[:top]
    out = 0
    for e in kept:
        first, _, _, second, _ = experts.experts[e]
        out = out + g[e] * loop_linear(second, loop_gelu(loop_linear(first, u)))
    return out, torch.stack([g[e] if e in kept else 0 * g[e] for e in range(len(g))])


def loop_loss(method: AltMoe, batch: dict, a: str, b: str) -> torch.Tensor:
    s = method.settings
    x, y = ([[(t - method.get_buffer(f"mean_{m}")) / method.get_buffer(f"scale_{m}")
              for t in row] for row in real_tokens(batch[TOWERS[m]])] for m in (a, b))
    said, gates = {"predict": [], "contrast": []}, []
    for row in x:
        for task in said:
            total, weights = 0, 0
            for t in row:
                u = loop_gelu(loop_linear(method.lift[a], t + method.start[f"{a}->{b}"][0, 0]))
                u = u + method.task[task][0, 0]
                mixed, g = loop_mixture(method.experts, u, s.top)
                total = total + loop_gelu(loop_norm(method.norm[task], mixed)) + u
                weights = weights + g / len(row)
            head = getattr(method, task)[f"{a}->{b}"]
            said[task].append(loop_linear(head, total / len(row)))
            gates.append(weights)
    true = [sum(row) / len(row) for row in y]
    n, loss = len(x), 0
    for p, t in zip(said["predict"], true, strict=True):
        for difference in (p - t).abs():
            one = difference**2 / 2 if difference < 1 else difference - 0.5
            loss = loss + s.alpha * one / (n * len(t))
    targets = [loop_linear(method.target[b], t) for t in true]
    logits = [[(c @ t) / (c @ c).sqrt() / (t @ t).sqrt() / s.temperature for t in targets]
              for c in said["contrast"]]
    for i in range(n):
        row = sum(logits[i][j].exp() for j in range(n)).log()
        column = sum(logits[j][i].exp() for j in range(n)).log()
        loss = loss + (1 - s.alpha) * (row + column - 2 * logits[i][i]) / (2 * n)
    use = sum(gates)
    mean = sum(use) / len(use)
    return loss + s.balance * sum((u - mean) ** 2 for u in use) / len(use) / mean**2


@pytest.mark.parametrize("changes", [{}, {"alpha": 0.2, "balance": 0.3, "top": 3},
                                     {"experts": 1, "top": 1, "hidden": 9}])
def test_loss_and_gradients_are_the_equations(changes):
    method, batch = made(**changes), pairs().batch()
    fast = sum(method(batch).values())
    slow = sum(loop_loss(method, batch, a, b) for a, b in method.directions) / 6
    assert abs(fast / slow - 1) < 1e-9
    weights = list(method.parameters())
    for x, y in zip(*(torch.autograd.grad(loss, weights, allow_unused=True)
                      for loss in (fast, slow)), strict=True):
        if x is None:
            assert y is None or not y.any()
        else:
            assert (x - y).norm() <= 1e-9 * (1 + y.norm())
    assert len(method(batch)) == 2 + bool(method.settings.balance)


def test_a_weight_of_zero_leaves_its_heads_without_a_gradient():
    for alpha, gone in ((0.0, "predict"), (1.0, "contrast")):
        method = made(alpha=alpha)
        losses = method(pairs().batch())
        assert len(losses) == 1
        sum(losses.values()).backward()
        assert all(p.grad is None for p in getattr(method, gone).parameters())


# Exact properties ---------------------------------------------------------------------
def step_of(method: AltMoe) -> list[str]:
    """One step of AdamW in training mode; the names of the tensors with a gradient."""
    method.train()
    adam = torch.optim.AdamW(method.parameters(), lr=0.1, weight_decay=0.1)
    before = {k: p.detach().clone() for k, p in method.named_parameters()}
    sum(method(pairs().batch()).values()).backward()
    named = {k for k, p in method.named_parameters() if p.grad is not None}
    adam.step()
    moved = {k for k, p in method.named_parameters() if not torch.equal(p, before[k])}
    assert moved == named and {id(p) for p in adam.state} == {
        id(p) for k, p in method.named_parameters() if k in named}
    method.zero_grad()
    method.after_step()
    return sorted(named)


def test_a_step_moves_nothing_of_another_direction():
    method = made(AltMoe, dropout=0.0)
    for a, b in [*method.directions, method.directions[0]]:
        named, way = step_of(method), f"{a}->{b}"
        own = {f"start.{way}", *(f"{part}.{name}.{end}" for end in ("weight", "bias")
                                 for part, name in (("lift", a), ("predict", way),
                                                    ("contrast", way), ("target", b)))}
        other = {k for k in named if not k.startswith(("task.", "experts.", "norm."))}
        assert other == own
        assert "experts.gate.weight" in named
        assert any(k.startswith("experts.experts.") for k in named)
    assert int(method.turn) == 7


def test_with_zeros_in_place_of_none_adamw_moves_what_did_not_take_part():
    method = made(AltMoe).train()
    adam = torch.optim.AdamW(method.parameters(), lr=0.1, weight_decay=0.1)
    idle = method.predict["speech->text"].weight
    before = idle.detach().clone()
    sum(method(pairs().batch()).values()).backward()
    idle.grad = torch.zeros_like(idle)
    adam.step()
    assert torch.allclose(idle, before * (1 - 0.1 * 0.1))


def test_an_expert_that_no_row_has_chosen_has_no_gradient():
    method = made()
    with torch.no_grad():
        method.experts.gate.weight.zero_()
        method.experts.gate.bias.copy_(torch.tensor([0.0, 3.0, -3.0, 2.0]))
    sum(method(pairs().batch()).values()).backward()
    for e, layers in enumerate(method.experts.experts):
        assert all((p.grad is None) == (e in (0, 2)) for p in layers.parameters())


def test_equal_experts_are_their_output_times_the_kept_weight():
    experts = made().experts
    for other in experts.experts[1:]:
        other.load_state_dict(experts.experts[0].state_dict())
    u = rows(7, 6)
    mixed, weights = experts(u)
    assert torch.allclose(mixed, weights.sum(1, keepdim=True) * experts.experts[0](u),
                          rtol=1e-12) and weights.sum(1).max().item() < 1
    dense = made(top=4).experts
    mixed, weights = dense(u)
    assert torch.allclose(weights, dense.gate(u).softmax(1), rtol=1e-12)
    assert torch.allclose(mixed, sum(weights[:, e, None] * dense.experts[e](u)
                                     for e in range(4)), rtol=1e-12)


def test_the_joint_loss_is_the_mean_of_the_directions_one_by_one():
    joint, turns, batch = made(), made(AltMoe, dropout=0.0), pairs().batch()
    assert torch.equal(sum(joint(batch).values()), sum(turns(batch).values()))  # in eval mode
    one_by_one = []
    for k in range(6):
        turns.train().turn.fill_(k)
        one_by_one.append(sum(turns(batch).values()))
    assert abs(sum(one_by_one) / 6 / sum(joint(batch).values()) - 1) < 1e-12
    cosines = gradient_cosines([sum(terms.values()) for terms in joint.by_direction(
        joint.encode(batch), batch).values()], joint.shared())
    assert cosines.shape == (6, 6)


def test_targets_carry_no_gradient_and_padding_says_nothing():
    method, batch = made(alpha=1.0), pairs().batch()
    image = batch["image_features"].requires_grad_()
    speech = batch["speech_features"].requires_grad_()
    outputs = method.encode(batch)
    sum(method.by_direction(outputs, batch)["image", "speech"].values()).backward()
    assert image.grad.any() and not speech.grad.any()
    values, mask = batch["text_tokens"]
    noisy = {**batch, "text_tokens": Tokens(values + 9 * ~mask[..., None], mask)}
    assert torch.equal(sum(method(batch).values()), sum(method(noisy).values()))


def test_uneven_use():
    assert uneven(torch.full((5, 4), 0.3)) == 0
    assert uneven(torch.tensor([[1.0, 0, 0, 0]])) == 3  # one expert of four: CV² = 4 − 1


# The method ---------------------------------------------------------------------------
def test_it_has_as_many_weights_as_the_paper():
    """12 experts of 2048 between 4096 and 1024: 140.6 million, 140 on the page."""
    rows = Pairs.from_features({"image_features": torch.zeros(2, 1024),
                                "text_features": torch.zeros(2, 4096)})
    with torch.device("meta"):
        method = AltMoe(AltMoeSettings(width=2048), rows)
    assert round(sum(p.numel() for p in method.parameters()) / 1e6, 1) == 140.6


def test_scores_compare_what_is_said_with_what_is():
    for ranks_by in ("contrast", "predict"):
        method = made(ranks_by=ranks_by)
        outputs = method.encode(pairs().batch())
        scores = method.score(outputs["image"], outputs["text"])
        wanted = F.normalize(outputs["image"][ranks_by, "image", "text"], dim=1) @ (
            F.normalize(outputs["text"][ranks_by, "text", "text"], dim=1)).T
        assert torch.allclose(scores, wanted, rtol=1e-12)
    assert outputs["image"]["gate", "image", "text"].shape == (4, 2, 4)


@pytest.mark.parametrize("changes, message", [
    ({"alpha": 1.5}, r"alpha must lie in \[0, 1\], got 1.5"),
    ({"ranks_by": "both"}, "ranks_by must be 'predict' or 'contrast', got 'both'"),
    ({"towers": {"image": "image_features"}}, "two modalities or more")])
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        AltMoeSettings(**changes)


def test_rows_without_a_modality_are_refused():
    rows = pairs().with_present("speech_features", torch.tensor([True, True, False, True]))
    with pytest.raises(ValueError, match="some rows have no speech"):
        made()(rows.batch())
