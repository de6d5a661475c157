"""Losses in tiles and cached gradients against the whole computation."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from needs import examples
from large_batch_run import multiply_16_bits_here, trained
from torch import nn

from alignkit.course.large_batches import Peak
from alignkit.data import Pairs, Tokens
from alignkit.parts import (
    DualEncoder, Method, Settings, TransformerEncoder, info_nce, mean_pool, positives_of,
    sigmoid_loss, unit,
)  # fmt: skip
from alignkit.parts.large_batch import (
    cached_backward, row_paths, tiled_info_nce, tiled_sigmoid,
)  # fmt: skip
from alignkit.training import Budget, fit

HERE = Path(__file__).parent
LOSSES = {
    "info_nce": (lambda a, b, s, c, items: info_nce(a, b, s, positives_of(items)),
                 lambda a, b, s, c, items, **k: tiled_info_nce(a, b, s, items, **k)),
    "sigmoid": (lambda a, b, s, c, items: sigmoid_loss(a, b, s, c, positives_of(items)),
                lambda a, b, s, c, items, **k: tiled_sigmoid(a, b, s, c, items, **k)),
}


def rows(kind: str, n: int = 150, d: int = 24) -> tuple[torch.Tensor, ...]:
    """Unit rows a, b and items: independent; close pairs; duplicates of one item."""
    g = torch.Generator().manual_seed(n)
    a, b = torch.randn(2, n, d, generator=g, dtype=torch.float64)
    if kind != "independent":
        b = a + 0.1 * b
    item = torch.arange(n)
    if kind == "duplicates":
        a[:20], b[:20], item[:20] = a[0], b[0], 0
        item[60:65] = 60
    return unit(a), unit(b), item[torch.randperm(n, generator=g)] if kind == "wild" else item


def with_gradients(loss, a, b, scale, bias, items, dtype) -> list[torch.Tensor]:
    """[value, gradients of a, b, scale, bias] of a loss computed in dtype."""
    values = [torch.as_tensor(x).to(dtype).clone().requires_grad_()
              for x in (a, b, scale, bias)]
    value = loss(*values, items)
    value.backward()
    return [x.detach().double() for x in
            (value, *(torch.zeros(()) if x.grad is None else x.grad for x in values))]


@pytest.mark.parametrize("tile", [1000, 64, 7])
@pytest.mark.parametrize("kind", ["independent", "close", "duplicates", "wild"])
@pytest.mark.parametrize("scale", [1.0, 14.0, 40.0, 100.0])
@pytest.mark.parametrize("name", LOSSES)
def test_tiles_agree_with_the_whole(name, scale, kind, tile):
    dense, tiled = LOSSES[name]
    a, b, items = rows(kind)
    case = (a, b, scale, -scale / 2, items)
    whole = with_gradients(dense, *case, torch.float64)
    unit_of = max(scale / len(a) ** 0.5, *(whole[k].norm().item() for k in (1, 2)))
    if name == "info_nce":
        unit_of = scale / len(a) ** 0.5
    for dtype, within in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        single = with_gradients(lambda *x: tiled(*x, tile=tile), *case, dtype)
        assert abs(single[0] - whole[0]) <= 10 * within * (1 + abs(whole[0]))
        for found, right in zip(single[1:3], whole[1:3], strict=True):
            assert (found - right).norm() <= within * unit_of
        for found, right in zip(single[3:], whole[3:], strict=True):
            assert abs(found - right) <= 10 * within * (1 + abs(right))


@pytest.mark.parametrize("name", LOSSES)
def test_tiles_take_half_precision_and_sum_in_float32(name):
    dense, tiled = LOSSES[name]
    a, b, items = rows("close")
    a, b = a.bfloat16(), b.bfloat16()
    right = with_gradients(dense, a.double(), b.double(), 20.0, -10.0, items, torch.float64)
    a, b = a.requires_grad_(), b.requires_grad_()
    value = tiled(a, b, 20.0, -10.0, items, tile=32)
    value.backward()
    assert value.dtype == torch.float32 and a.grad.dtype == torch.bfloat16
    assert abs(value.item() - right[0]) < 1e-5 * (1 + right[0])
    assert (a.grad.double() - right[1]).norm() < 5e-3 * right[1].norm()
    with torch.autocast("cpu", torch.bfloat16):
        assert tiled(a, b, 20.0, -10.0, items, tile=32) == value


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", LOSSES)
def test_16_bits_where_a_gpu_multiplies_them(name, dtype, monkeypatch):
    """A sigmoid's weights are up to 1, a softmax's up to 1 / n: float16 holds neither's
    gradient if it is lifted as the other's."""
    multiply_16_bits_here(monkeypatch.setattr)
    a, b, items = rows("independent", n=300)
    inputs = [x.to(dtype).requires_grad_() for x in (a, b)]
    wide = [x.detach().double().requires_grad_() for x in inputs]
    dense, tiled = LOSSES[name]
    value, right = tiled(*inputs, 10.0, -5.0, items, tile=64), dense(*wide, 10.0, -5.0, items)
    assert abs(value.item() - right.item()) < 1e-5 * right.item()
    for found, true in zip(*(torch.autograd.grad(loss, x)
                             for loss, x in ((value, inputs), (right, wide))), strict=True):
        assert found.dtype == dtype and (found.double() - true).norm() < 0.01 * true.norm()


@pytest.mark.parametrize("scale", [5.0, 100.0])
@pytest.mark.parametrize("name", LOSSES)
def test_two_tiles_exist_at_once(name, scale):
    a, b, _ = (x.float().requires_grad_() if x.is_floating_point() else x
               for x in rows("independent", n=1024, d=8))
    with Peak() as peak:
        LOSSES[name][1](a, b, scale, -5.0, None, tile=256).backward()
    assert 2 <= peak.most / (4 * 256**2) < 3.2  # and some numbers a row


@pytest.mark.parametrize("name", LOSSES)
def test_the_order_of_rows_does_not_matter(name):
    _, tiled = LOSSES[name]
    a, b, items = rows("duplicates")
    order = torch.randperm(len(a), generator=torch.Generator().manual_seed(1))
    one = with_gradients(lambda *x: tiled(*x, tile=16), a, b, 9.0, -4.0, items, torch.float64)
    two = with_gradients(lambda *x: tiled(*x, tile=16), a[order], b[order], 9.0, -4.0,
                         items[order], torch.float64)
    assert torch.allclose(one[0], two[0], rtol=1e-12)
    for left, right in zip(one[1:3], two[1:3], strict=True):
        assert torch.allclose(left[order], right, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_gradients_are_those_of_finite_differences():
    a, b, items = rows("duplicates", n=70, d=5)
    a, b = a[55:], b[55:]
    inputs = [x.clone().requires_grad_() for x in (a, b, torch.tensor(4.0).double())]
    bias = torch.tensor(-1.0).double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda a, b, s: 3 * tiled_info_nce(a, b, s, items[55:], tile=4), inputs)
    assert torch.autograd.gradcheck(
        lambda a, b, s, c: 3 * tiled_sigmoid(a, b, s, c, items[55:], tile=4),
        [*inputs, bias])


def saved_bytes(loss) -> int:
    """Bytes that autograd keeps for the backward pass of `loss()`."""
    kept: dict[int, int] = {}

    def keep(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        value = loss()
    assert value.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("name", LOSSES)
def test_tiles_keep_no_logits(name):
    dense, tiled = LOSSES[name]
    n, d = 1500, 8
    a, b = (unit(torch.randn(n, d)).requires_grad_() for _ in range(2))
    items = torch.arange(n)
    # The rows or their gradients; items, and four sums a row and a column.
    assert saved_bytes(lambda: tiled(a, b, 9.0, -4.0, items, tile=128)) <= 8 * n * d + 40 * n + 64
    assert saved_bytes(lambda: dense(a, b, 9.0, -4.0, items)) >= 4 * n * n


def test_tiles_say_what_is_wrong():
    a, b, items = rows("close")
    for call, words in ((lambda: tiled_info_nce(a, b[1:], 1.0), r"paired rows.*149"),
                        (lambda: tiled_sigmoid(a, b, 1.0, 0.0, items[1:]), "item.*149"),
                        (lambda: tiled_info_nce(a, b, 1.0, items.double()), "float64"),
                        (lambda: tiled_info_nce(a, b, 1.0, tile=0), "tile.*0")):
        with pytest.raises(ValueError, match=words):
            call()


def test_without_a_gradient_only_the_value():
    a, b, _ = rows("close")
    for loss in (tiled_info_nce(a, b, 5.0), tiled_sigmoid(a, b, 5.0, 0.0)):
        assert not loss.requires_grad and loss.isfinite()
    a = a.requires_grad_()  # b wants none
    (gradient,) = torch.autograd.grad(tiled_info_nce(a, b, 5.0), a)
    assert gradient.shape == a.shape


# Cached gradients -----------------------------------------------------------------------
class Deep(Method):
    """Two towers of 4 transformer layers with dropout, one of them on tokens."""

    def build(self, settings, pairs):
        self.image, self.text = (TransformerEncoder(16, layers=4, heads=2, dropout=0.2)
                                 for _ in range(2))
        self.scale, self.encoded = nn.Parameter(torch.tensor(5.0)), []

    def encode(self, batch):
        self.encoded.append(len(batch["ids"]))
        picture = self.image(Tokens(batch["image"], batch["real"]))
        words = self.text(batch["text"])
        return {"image": unit(mean_pool(picture)), "text": {"pooled": unit(mean_pool(words)),
                                                           "tokens": words}}

    def losses(self, outputs, batch, progress):
        length = outputs["text"]["tokens"].values.square().mean()
        return {"pull_loss": info_nce(outputs["image"], outputs["text"]["pooled"],
                                      self.scale, positives_of(batch["item"])),
                "length_loss": progress * length}


def deep_batch(n: int) -> dict:
    g = torch.Generator().manual_seed(0)
    mask = torch.rand(n, 6, generator=g) < 0.7
    mask[:, 0] = True
    return {"image": torch.randn(n, 5, 16, generator=g), "ids": [str(i) for i in range(n)],
            "real": torch.ones(n, 5, dtype=torch.bool), "item": torch.arange(n) // 2,
            "text": Tokens(torch.randn(n, 6, 16, generator=g), mask), "factor": 2.0}


def gradients(method: Method) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in method.named_parameters()}
    method.zero_grad()
    return found


@pytest.mark.parametrize("chunk", [4, 5, 100])
def test_cached_gradients_are_the_direct_ones_with_dropout(chunk):
    torch.manual_seed(0)
    method, batch = Deep(None, None).train(), deep_batch(18)
    torch.manual_seed(1)
    losses = cached_backward(method, batch, 0.5, chunk=chunk)
    cached, seen = gradients(method), method.encoded[:]
    assert seen == 2 * [min(chunk, 18 - k) for k in range(0, 18, chunk)]
    drawn = torch.rand(1)

    torch.manual_seed(1)
    outputs = []
    for k in range(0, 18, chunk):
        place = slice(k, k + chunk)
        outputs.append(method.encode({
            "image": batch["image"][place], "real": batch["real"][place],
            "ids": batch["ids"][place], "text": Tokens(*(x[place] for x in batch["text"]))}))
    whole = {"image": torch.cat([o["image"] for o in outputs]), "text": {
        "pooled": torch.cat([o["text"]["pooled"] for o in outputs]),
        "tokens": Tokens(*(torch.cat(x) for x in zip(
            *(o["text"]["tokens"] for o in outputs), strict=True)))}}
    right = method.losses(whole, batch, 0.5)
    sum(right.values()).backward()
    assert drawn == torch.rand(1)  # the random state goes on as if nothing was replayed
    assert {k: v.item() for k, v in losses.items()} == {k: v.item() for k, v in right.items()}
    direct = gradients(method)
    for name in direct:
        assert torch.allclose(cached[name], direct[name], rtol=1e-4, atol=1e-6), name
    assert direct["scale"].abs() > 1e-4


def test_cached_gradients_add_and_scale():
    pairs = Pairs.from_features({f"{m}_features": torch.randn(12, 4) for m in
                                 ("image", "text")})
    method, batch = DualEncoder(Settings(width=3), pairs), pairs.batch()
    sum(method(batch).values()).backward()
    direct = gradients(method)
    for _ in range(2):
        cached_backward(method, batch, chunk=5, scale=lambda loss: 3 * loss)
    for name, found in gradients(method).items():
        assert torch.allclose(found, 6 * direct[name], rtol=1e-4, atol=1e-6)


def test_training_with_cached_gradients_ends_where_it_would(tmp_path):
    ends = [trained(chunk, tmp_path / f"{chunk}.safetensors") for chunk in (0, 3, 8, 100)]
    for end in ends[1:]:
        for name, value in end.items():
            assert torch.allclose(value, ends[0][name], rtol=1e-4, atol=1e-5), name


def test_cached_gradients_say_what_is_wrong():
    class Centre(DualEncoder):
        def encode(self, batch):
            return {**super().encode(batch), "centre": torch.zeros(3)}

    pairs = Pairs.from_features({f"{m}_features": torch.randn(12, 4) for m in
                                 ("image", "text")})
    with pytest.raises(ValueError, match=r"encode gave \(3,\) for 5 rows"):
        cached_backward(Centre(Settings(width=3), pairs), pairs.batch(), chunk=5)
    with pytest.raises(ValueError, match="chunk.*0"):
        cached_backward(DualEncoder(Settings(width=3), pairs), pairs.batch(), chunk=0)


class WithBank(DualEncoder):
    """Its batches have a bank of `n` entries that every row looks at, a noise a row, and
    prompts as long as the batch: rows and others of the same length."""

    def build(self, settings, pairs):
        super().build(settings, pairs)
        g = torch.Generator().manual_seed(1)
        self.register_buffer("bank", torch.randn(12, 4, generator=g))

    def collate(self, rows, generator):
        n = len(rows)
        return super().collate(rows, generator) | {
            "bank": self.bank, "prompts": [f"p{k}" for k in range(12)],
            "noise": torch.randn(n, 4, generator=generator),
            "views": {"first": rows["image_features"] / 2, "bank": Tokens(
                self.bank[:, None], torch.ones(12, 1, dtype=torch.bool))}}

    def encode(self, batch):
        assert len(batch["bank"]) == len(batch["prompts"]) == 12
        assert len(batch["views"]["bank"].values) == 12
        seen = batch["image_features"] + batch["noise"] + batch["views"]["first"]
        looked = (seen @ batch["bank"].T).softmax(-1) @ batch["bank"]
        return super().encode({**batch, "image_features": seen + looked})


@pytest.mark.parametrize("chunk", [4, 5, 6])
def test_what_is_only_as_long_as_the_batch_is_no_row(chunk):
    g = torch.Generator().manual_seed(0)
    pairs = Pairs.make({f"{m}_features": torch.randn(12, 4, generator=g)
                        for m in ("image", "text")}, labels={"kind": torch.arange(12)})
    method = WithBank(Settings(width=3), pairs)
    batch = method.collate(pairs, torch.Generator().manual_seed(2))
    loss = sum(method(batch).values())
    loss.backward()
    direct, paths = gradients(method), row_paths(method, pairs)
    assert paths == {("ids",), ("item",), ("image_features",), ("text_features",), ("noise",),
                     ("labels", "kind"), ("present", "image_features"),
                     ("present", "text_features"), ("views", "first")}
    (found,) = cached_backward(method, batch, chunk=chunk, rows=paths).values()
    assert torch.allclose(found, loss, rtol=1e-5)
    for name, gradient in gradients(method).items():
        assert torch.allclose(gradient, direct[name], rtol=1e-4, atol=1e-6), name
    losses = []
    for rows in (0, chunk):
        torch.manual_seed(0)
        budget = Budget(steps=3, batch_size=12, lr=0.1, chunk=rows)
        losses.append(fit(WithBank(Settings(width=3), pairs), pairs, budget).curve())
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@settings(max_examples=examples(40), deadline=None)
@given(n=st.integers(3, 16), bank=st.integers(1, 16), chunk=st.integers(1, 16),
       seed=st.integers(0, 9))
def test_any_lengths_of_bank_batch_and_chunk_give_the_direct_loss(n, bank, chunk, seed):
    class Any(WithBank):
        def collate(self, rows, generator):
            drawn = torch.Generator().manual_seed(9)
            return super().collate(rows, generator) | {
                "bank": torch.randn(bank, 4, generator=drawn)}

        def encode(self, batch):
            assert len(batch["bank"]) == bank
            seen = batch["image_features"] + batch["noise"] + batch["views"]["first"]
            looked = (seen @ batch["bank"].T).softmax(-1) @ batch["bank"]
            return DualEncoder.encode(self, {**batch, "image_features": seen + looked})

    g = torch.Generator().manual_seed(seed)
    pairs = Pairs.from_features({f"{m}_features": torch.randn(n, 4, generator=g)
                                 for m in ("image", "text")})
    method = Any(Settings(width=3), pairs)
    batch = method.collate(pairs, torch.Generator().manual_seed(seed))
    loss = sum(method(batch).values())
    loss.backward()
    direct = gradients(method)
    (found,) = cached_backward(method, batch, chunk=chunk,
                               rows=row_paths(method, pairs)).values()
    assert torch.allclose(found, loss.detach(), rtol=1e-4)
    for name, gradient in gradients(method).items():
        assert torch.allclose(gradient, direct[name], rtol=1e-3, atol=1e-5), name


def test_a_batch_of_pairs_with_a_bank_beside_it_needs_no_more(chunk=5):
    """Without `rows`, what `Pairs.batch` gave is cut and nothing else."""
    class Looks(DualEncoder):
        def encode(self, batch):
            looked = batch["image_features"] @ batch["bank"].T @ batch["bank"]
            return super().encode({**batch, "image_features": looked})

    g = torch.Generator().manual_seed(0)
    pairs = Pairs.from_features({f"{m}_features": torch.randn(12, 4, generator=g)
                                 for m in ("image", "text")})
    method = Looks(Settings(width=3), pairs)
    batch = pairs.batch() | {"bank": torch.randn(12, 4, generator=g)}
    (loss,) = method(batch).values()
    (found,) = cached_backward(method, batch, chunk=chunk).values()
    assert torch.allclose(found, loss.detach(), rtol=1e-5)
    with pytest.raises(ValueError, match=r"what `collate` adds is cut only with rows=row_paths"):
        class Adds(DualEncoder):
            def encode(self, batch):
                return {**super().encode(batch), "noise": batch["noise"]}

        noisy = pairs.batch() | {"noise": torch.zeros(12, 3)}
        cached_backward(Adds(Settings(width=3), pairs), noisy, chunk=5)


# Several processes ----------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_processes_agree_with_one(world, tmp_path):
    trained(chunk=0, path=tmp_path / "alone.safetensors")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
                "WORLD_SIZE": str(world), "USE_LIBUV": "0"}
    runs = [subprocess.Popen([sys.executable, HERE / "large_batch_run.py", tmp_path],
                             text=True,
                             env={**os.environ, **settings, "RANK": str(rank)},
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            for rank in range(world)]
    for run in runs:
        said, _ = run.communicate(timeout=120)
        assert run.returncode == 0 and "agree" in said, said
