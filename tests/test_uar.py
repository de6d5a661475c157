"""UAR's block, loss and mask against loops from the equations, and what must hold exactly."""

import math

import pytest
import torch

from alignkit.claims import uar as claims_file
from alignkit.data import Pairs, Tokens
from alignkit.data.phantoms import phantoms
from alignkit.data.reports import findings_of
from alignkit.methods.uar import Uar, UarSettings, codebook, codes_of
from alignkit.parts import TransformerDecoder
from alignkit.parts.unifier import BASES, Unifier, made_basis
from alignkit.training import Budget, fit

WIDTH, ROWS, HEADS = 6, 9, 2
NEAR = dict(rtol=1e-9, atol=1e-9)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed),
                       dtype=torch.float64)


def toy(n: int = 8, cells: int = 5) -> Pairs:
    words = ["there is edema", "a left nodule is seen", "marked fibrosis", "normal chest"]
    mask = torch.ones(n, cells, dtype=torch.bool)
    mask[1, 3:] = False
    codes = torch.randint(4, (n, cells, 2), generator=torch.Generator().manual_seed(1))
    return Pairs.make({
        "image_tokens": Tokens(drawn(n, cells, 4).float(), mask),
        "image_codes": Tokens(codes, mask),
        "text": [f"{words[i % 4]}. " + ("no edema." if i % 3 else "") for i in range(n)]})


def small(**changes) -> Uar:
    torch.manual_seed(0)
    return Uar(UarSettings(**{**dict(codes=4, parts=2, width=WIDTH, rows=ROWS, heads=HEADS,
                                     words=200, longest=20), **changes}), toy())


def unifier(kind: str = "orthonormal") -> Unifier:
    torch.manual_seed(0)
    block = Unifier(WIDTH, ROWS, HEADS, kind).double()
    for parameter in (block.gamma, block.beta):
        torch.nn.init.normal_(parameter)
    return block


# One block for both ---------------------------------------------------------------------
def slow_unifier(block: Unifier, x: torch.Tensor) -> torch.Tensor:
    """Token by token and head by head, from the equation."""
    rows = torch.stack([block.gamma[i] * block.basis[i] + block.beta[i] for i in range(ROWS)])
    w_q, w_k, w_v = block.attention.in_proj_weight.chunk(3)
    w_o, each, found = block.attention.out_proj.weight, WIDTH // HEADS, []
    for token in x:
        heads = []
        for h in range(HEADS):
            part = slice(h * each, (h + 1) * each)
            scores = [(w_q @ token)[part] @ (w_k @ row)[part] / math.sqrt(each)
                      for row in rows]
            e = [score.exp() for score in scores]
            heads.append(sum(a / sum(e) * (w_v @ row)[part] for a, row in zip(e, rows)))
        mixed = w_o @ torch.cat(heads)
        enter, keep = (1 / (1 + (-(w[0].weight @ token + w[1].weight @ mixed)).exp())
                       for w in (block.enter, block.keep))
        found.append(enter * torch.tanh(token + mixed) + keep * token + mixed)
    return torch.stack(found)


def test_the_shared_block_and_its_gradient_are_the_loops():
    block, x = unifier(), drawn(3, 4, WIDTH).requires_grad_()
    leaves = [x, *block.parameters()]
    weigh = drawn(12, WIDTH, seed=3)
    fast = block(Tokens(x, torch.ones(3, 4).bool())).values.flatten(0, 1)
    slow = slow_unifier(block, x.flatten(0, 1))
    assert torch.allclose(fast, slow, **NEAR)
    for a, b in zip(*(torch.autograd.grad((y * weigh).sum(), leaves) for y in (fast, slow))):
        assert torch.allclose(a, b, **NEAR)


def test_gates_without_weights_halve_and_gamma_one_keeps_the_basis():
    torch.manual_seed(0)
    block, x = Unifier(WIDTH, ROWS, HEADS).double(), drawn(4, WIDTH)
    assert torch.equal(block.gamma * block.basis + block.beta, block.basis)
    for gate in (*block.enter, *block.keep):
        torch.nn.init.zeros_(gate.weight)
    mixed = block.mixed(x)
    found = block(Tokens(x[None], torch.ones(1, 4).bool())).values[0]
    assert torch.allclose(found, (x + mixed).tanh() / 2 + x / 2 + mixed, **NEAR)


def test_the_block_acts_on_each_token_alone():
    block, x, order = unifier(), drawn(1, 7, WIDTH), torch.randperm(7)
    mask = torch.ones(1, 7).bool()
    found = block(Tokens(x, mask)).values
    assert torch.allclose(block(Tokens(x[:, order], mask)).values, found[:, order], **NEAR)
    other = x.clone()
    other[0, 2] += 1
    moved = (block(Tokens(other, mask)).values - found).abs().sum(2)[0]
    assert moved[2] > 0.1 and moved[torch.arange(7) != 2].max() < 1e-12


@pytest.mark.parametrize("kind", BASES)
def test_a_basis_has_the_norm_of_an_orthonormal_one(kind):
    basis = made_basis(40, 6, kind)
    assert basis.square().sum() == pytest.approx(6, rel=1e-5)
    assert torch.allclose(basis.T @ basis, torch.eye(6), atol=1e-5) == (kind == "orthonormal")
    with pytest.raises(ValueError, match="basis is"):
        UarSettings(basis=kind, rows=3)


# Codes ----------------------------------------------------------------------------------
def test_codes_are_the_nearest_centres_of_each_part():
    cells = toy()["image_tokens"]
    centres = codebook(cells, 3, 2, 0)
    found = codes_of(cells, centres)
    assert centres.shape == (2, 3, 2) and found.values.shape == (8, 5, 2)
    for n, l, j in ((0, 0, 0), (3, 4, 1), (7, 2, 0)):
        far = [(cells.values[n, l, j::2] - c).norm() for c in centres[j]]
        assert int(found.values[n, l, j]) == far.index(min(far))
    assert (found.values[1, 3:] == 0).all()
    # Padding is not read by the codebook.
    other = Tokens(cells.values + 9 * ~cells.mask[..., None], cells.mask)
    assert torch.equal(codebook(other, 3, 2, 0), centres)
    for codes, parts in ((99, 2), (3, 3)):
        with pytest.raises(ValueError, match="parts must divide"):
            codebook(cells, codes, parts, 0)


def test_rows_of_a_cells_parts_are_summed():
    method, codes = small(), toy()["image_codes"]
    found = method.looked_up(codes).values
    table = method.cells.weight
    a, b = codes.values[2, 3].tolist()
    assert torch.allclose(found[2, 3], (table[a] + table[4 + b]) / 2**0.5)


# The mask -------------------------------------------------------------------------------
def slow_attention(layer, x, seen, bias):
    """Cross-attention of one head with k σ(M) / √d added, from the equation."""
    w_q, w_k, w_v = layer.in_proj_weight.chunk(3)
    b_q, b_k, b_v = layer.in_proj_bias.chunk(3)
    q, k, v = x @ w_q.T + b_q, seen @ w_k.T + b_k, seen @ w_v.T + b_v
    scores = (q @ k.mT + bias) / math.sqrt(q.shape[-1])
    return scores.softmax(-1) @ v @ layer.out_proj.weight.T + layer.out_proj.bias


def test_the_decoders_bias_is_the_equations():
    torch.manual_seed(0)
    decoder = TransformerDecoder(WIDTH, 1, 1).double().eval()
    x, seen, mask = drawn(2, 3, WIDTH), drawn(2, 5, WIDTH, seed=1), drawn(3, 5, seed=2)
    added = 1000 * torch.sigmoid(mask)
    whole = Tokens(x, torch.ones(2, 3).bool()), Tokens(seen, torch.ones(2, 5).bool())
    found = decoder(*whole, added / math.sqrt(WIDTH)).values
    layer = decoder.layers[0]
    hidden = torch.ones(3, 3).triu(1).bool()
    y = layer.norm1(x)
    y = x + layer.self_attn(y, y, y, attn_mask=hidden, need_weights=False)[0]
    y = y + slow_attention(layer.multihead_attn, layer.norm2(y), seen, added)
    y = y + layer.linear2(torch.nn.functional.gelu(layer.linear1(layer.norm3(y))))
    assert torch.allclose(found, decoder.norm(y), **NEAR)
    # A constant is not seen; padding of the memory is not either.
    plain = decoder(*whole).values
    assert torch.allclose(decoder(*whole, torch.full((3, 5), 7.0).double()).values, plain, **NEAR)
    short = Tokens(seen, torch.arange(5).expand(2, 5) < 4)
    assert torch.allclose(decoder(whole[0], short, added).values, decoder(
        whole[0], Tokens(seen[:, :4], short.mask[:, :4]), added[:, :4]).values, **NEAR)


def test_a_mask_of_one_value_does_nothing_whatever_k():
    method, batch = small(layers=2).double().eval(), toy().batch()
    batch = method.collate(toy(), torch.Generator()) | {"item": batch["item"]}
    plain = small(layers=2, strength=None).double().eval()
    for value in (-3.0, 0.0, 2.0):
        torch.nn.init.constant_(method.mask, value)
        assert torch.allclose(method(batch)["words_loss"], plain(batch)["words_loss"], **NEAR)
        assert method(batch)["mask_loss"].item() == pytest.approx(
            1 - 1 / (1 + math.exp(-value)))
    with torch.no_grad():
        method.mask[:, 0] = 3
    assert (method(batch)["words_loss"] - plain(batch)["words_loss"]).abs() > 1e-4


def test_the_masks_own_loss_opens_it():
    method = small().double()
    torch.nn.init.normal_(method.mask)
    loss = method(method.collate(toy(), torch.Generator()))["mask_loss"]
    found, = torch.autograd.grad(loss, method.mask)
    at = torch.sigmoid(method.mask)
    assert torch.allclose(found, -at * (1 - at) / method.mask.numel(), **NEAR)


def test_the_mask_rests_in_the_first_stage_and_learns_from_the_start_if_joint():
    for joint in (False, True):
        method, seen = small(joint=joint), []

        def look(model) -> dict:
            seen.append(model.mask.detach().std().item())
            return {}

        stages = method.stages()
        assert [s.name for s in stages] == ["without the mask", "with it"]
        ours = stages[0].parameters[0]["params"]
        assert any(p is method.mask for p in ours) == joint
        fit(method, toy(), Budget(steps=2, batch_size=4), validate=look)
        assert (seen[0] > 0) == joint and seen[1] > 0


# The loss of pairs ----------------------------------------------------------------------
@pytest.mark.parametrize("hardest", [True, False])
def test_the_global_loss_and_its_gradient_are_the_loops(hardest):
    method = small(hardest=hardest, weight=0.7).double()
    batch = method.collate(toy(), torch.Generator())
    ids, real = batch["text_ids"]
    assert any(torch.equal(ids[i], ids[j]) for i in range(8) for j in range(i))
    found = method.losses(outputs := method.encode(batch), batch, 0)["global_loss"]

    def mean_of(values, mask):
        total = sum(values[i] for i in range(len(mask)) if mask[i]) / int(sum(mask))
        return total / total.norm()

    image = [mean_of(v, m) for v, m in zip(outputs["memory"].values, batch["image_codes"].mask)]
    inner = [[0 < i < int(m.sum()) - 1 for i in range(len(m))] for m in real]
    text = [mean_of(v, m) for v, m in zip(outputs["words"].values, inner)]
    slow = 0.0
    for i in range(8):
        others = [j for j in range(8) if not torch.equal(ids[i], ids[j])]
        own = image[i] @ text[i]
        for hinges in ([(0.2 - own + image[i] @ text[j]).relu() for j in others],
                       [(0.2 - own + image[j] @ text[i]).relu() for j in others]):
            slow = slow + 0.7 * (max(hinges) if hardest else sum(hinges)) / 8
    assert torch.allclose(found, slow, **NEAR)
    leaves = [p for name, p in method.named_parameters() if name.startswith(
        ("cells", "words", "unifier"))]
    for a, b in zip(*(torch.autograd.grad(x, leaves, retain_graph=True, allow_unused=True)
                      for x in (found, slow))):
        assert (a is None and b is None) or torch.allclose(a, b, **NEAR)


def test_one_pair_has_no_wrong_answer():
    method = small()
    loss = method(method.collate(toy().select([0]), torch.Generator()))["global_loss"]
    assert float(loss.detach()) == 0


# Writing --------------------------------------------------------------------------------
def test_words_cost_what_the_loop_over_prefixes_says_and_later_words_do_not_leak():
    method = small().double().eval()
    batch = method.collate(toy(), torch.Generator())
    outputs, (ids, real) = method.encode(batch), batch["text_ids"]
    costs = []
    for row in range(8):
        memory = Tokens(*(x[row:row + 1] for x in outputs["memory"]))
        for t in range(1, int(real[row].sum())):
            words = method.unifier(Tokens(method.words(ids[row:row + 1, :t]),
                                          torch.ones(1, t).bool()))
            logits = method.next_words(words, memory)[0, -1]
            costs.append(logits.exp().sum().log() - logits[ids[row, t]])
    assert torch.allclose(method(batch)["words_loss"], torch.stack(costs).mean(), **NEAR)


def test_it_writes_what_it_learned_by_heart():
    pairs, method = toy(), small(width=16, rows=16, margin=None, strength=None)
    fit(method, pairs, Budget(steps=150, batch_size=8, lr=1e-2))
    batch = method.collate(pairs, torch.Generator())
    own = method.pieces.decode(batch["text_ids"].values)
    assert method.generate(batch) == own == method.generate(batch, beams=3)


# The claims' own figures ----------------------------------------------------------------
def test_reports_tell_what_is_there_alone():
    raw = phantoms(40)
    pairs = claims_file.present_alone(raw)
    assert [findings_of(t) for t in pairs["text"]] == [findings_of(t) for t in raw["text"]]
    assert not any("no " in t for t in pairs["text"]) and all(pairs["text"])
    assert len(claims_file.abnormal(pairs)) == sum(map(bool, map(findings_of, raw["text"])))
    assert claims_file.told(["a b. c.", "b."]) == [{"a", "b", "c"}, {"b"}]


def test_codes_come_from_training_rows():
    pairs = toy(30).only("text", "image_tokens")
    splits = pairs.split(0)
    s = claims_file.Scale(codes=3, parts=2)
    found = claims_file.with_codes(splits, s, 0)
    changed = splits._replace(test=splits.test.with_features(image_tokens=Tokens(
        splits.test["image_tokens"].values + 5, splits.test["image_tokens"].mask)))
    other = claims_file.with_codes(changed, s, 0)
    assert torch.equal(found.train["image_codes"].values, other.train["image_codes"].values)
    assert not torch.equal(found.test["image_codes"].values, other.test["image_codes"].values)


def test_f1_of_a_method_that_knows_and_of_one_that_repeats(monkeypatch):
    rows = claims_file.present_alone(phantoms(60))
    texts = claims_file.abnormal(rows)["text"]
    monkeypatch.setattr(claims_file, "written", lambda method, rows: list(rows["text"]))
    assert claims_file.report_f1(None, rows) == 1
    assert claims_file.report_f1(None, rows, turned=1) < 0.5
    monkeypatch.setattr(claims_file, "written", lambda m, rows: ["normal chest."] * len(rows))
    assert claims_file.report_f1(None, rows) == 0 and len(texts) > 20
