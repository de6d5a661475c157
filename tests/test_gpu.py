"""What has to be seen on a GPU: exact losses and retrieval, mixed precision, resume,
compilation, a real class at full size. `.ci/gpu` runs it; with ALIGNKIT_DRY=1 the same code
runs on CPU."""

import os
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch.testing import assert_close
from training_runs import BUDGET, Centred, Noisy
from training_runs import pairs as few_rows

from alignkit.claims import paper
from alignkit.claims.train import train
from alignkit.data import Pairs
from alignkit.evaluation import retrieve, search
from alignkit.parts import DualEncoder, Settings, info_nce, sigmoid_loss, unit
from alignkit.parts.large_batch import plain, tiled_info_nce, tiled_sigmoid, tiles
from alignkit.training import Budget, fit

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(
    not CUDA and not os.environ.get("ALIGNKIT_DRY"), reason="no GPU")]


def rows(n: int, d: int, dtype=torch.float32, seed: int = 0) -> tuple:
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, d, generator=g)
    return tuple(unit(hidden + torch.randn(n, d, generator=g)).to(DEVICE, dtype)
                 .requires_grad_() for _ in range(2))


def value_and_gradients(loss, a, b, scale):
    wide = torch.promote_types(a.dtype, torch.float32)
    scale = torch.tensor(scale, device=a.device, dtype=wide, requires_grad=True)
    value = loss(a, b, scale)
    return value, *torch.autograd.grad(value, (a, b, scale))


@pytest.fixture(params=["kernels", "torch's operations"])
def maker(request, monkeypatch):
    """Tiles are made by the kernels where the GPU has them, and by torch's operations."""
    if request.param != "kernels":
        monkeypatch.setattr(tiles, "_maker", lambda a: plain)


@pytest.mark.skipif(not CUDA or torch.cuda.get_device_capability() < (8, 0),
                    reason="no GPU that has the kernels")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_kernels_run_here(dtype):
    assert tiles._runs(torch.device(DEVICE), dtype, 512)


LOSSES = [
    (tiled_info_nce, info_nce),
    (lambda a, b, s: tiled_sigmoid(a, b, s, -5.0), lambda a, b, s: sigmoid_loss(a, b, s, -5.0))]


@pytest.mark.parametrize("scale", [10.0, 100.0])
@pytest.mark.parametrize("tiled, dense", LOSSES, ids=["info_nce", "sigmoid"])
def test_tiles_give_the_whole_losss_value_and_gradient(maker, tiled, dense, scale):
    """In float32 (TF32 is off unless it is asked for), against float64 on the CPU."""
    a, b = rows(3333, 96)
    found = value_and_gradients(tiled, a, b, scale)
    wide = [x.detach().cpu().double().requires_grad_() for x in (a, b)]
    right = [x.detach() for x in value_and_gradients(dense, *wide, scale)]
    for mine, theirs in zip(found, right):
        assert_close(mine.detach().cpu().double(), theirs, rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize("n", [2000, 300])
@pytest.mark.parametrize("tiled, dense", LOSSES, ids=["info_nce", "sigmoid"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tiles_take_16_bits_and_sum_in_32(maker, dtype, tiled, dense, n):
    a, b = rows(n, 64, dtype)
    found = value_and_gradients(tiled, a, b, 20.0)
    wide = [x.detach().cpu().double().requires_grad_() for x in (a, b)]
    right = value_and_gradients(dense, *wide, 20.0)
    assert found[0].dtype == torch.float32 and found[1].dtype == dtype
    assert_close(found[0].detach().cpu().double(), right[0].detach(), rtol=1e-3, atol=0)
    for mine, whole in zip(found[1:3], right[1:3]):
        assert (mine.cpu().double() - whole).norm() < 0.02 * whole.norm()


def test_ranks_are_those_of_the_cpu():
    """Rows of small whole numbers: each product is exact on any device, and ties abound."""
    g = torch.Generator().manual_seed(0)
    query, gallery = (torch.randint(-2, 3, (3000, 16), generator=g).float() for _ in range(2))
    item = torch.randint(2000, (3000,), generator=g)
    here = retrieve(query.to(DEVICE), gallery.to(DEVICE), item.to(DEVICE), item.to(DEVICE))
    assert here == retrieve(query, gallery, item, item)
    near = search(query.to(DEVICE), gallery.to(DEVICE), 10)
    assert torch.equal(near[0].cpu(), search(query, gallery, 10)[0])


def test_a_large_batch_needs_little_memory_and_the_scaler_of_float16_works():
    """Gradients of a large batch in float16, times a scaler's 2¹⁶, against float32."""
    a, b = rows(9000 if CUDA else 300, 64, torch.float16)
    half = torch.autograd.grad(tiled_info_nce(a, b, 20.0) * 2**16, (a, b))
    wide = [x.detach().float().requires_grad_() for x in (a, b)]
    whole = torch.autograd.grad(tiled_info_nce(*wide, 20.0) * 2**16, wide)
    for mine, right in zip(half, whole):
        assert (mine.float() - right).norm() < 0.02 * right.norm()


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_training_learns_in_every_precision_and_keeps_float32_weights(precision):
    if precision == "fp16" and not CUDA:
        pytest.skip("fp16 needs a GPU")
    rows = few_rows(200)
    method = DualEncoder(Settings(width=8), rows)
    seen = fit(method, rows, Budget(steps=60, batch_size=100, lr=1e-2, precision=precision))
    losses = seen.curve()
    assert losses[-1] < 0.8 * losses[0]
    assert {p.dtype for p in method.parameters()} == {torch.float32}
    assert {p.device.type for p in method.parameters()} == {DEVICE}


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(tmp_path):
    def trained(folder, stop=None):
        torch.manual_seed(0)
        rows = few_rows()
        method = Noisy(Settings(width=3), rows)
        calls = []

        def validate(m):
            calls.append(1)
            if stop and len(calls) == stop:
                raise KeyboardInterrupt
            return {"figure": 0.0}
        try:
            fit(method, rows, BUDGET, validate=validate, folder=folder)
        except KeyboardInterrupt:
            return trained(folder)
        return [p.detach().cpu() for p in method.parameters()]

    once, twice = trained(tmp_path / "a"), trained(tmp_path / "b", stop=4)
    for mine, theirs in zip(twice, once):
        assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_workers_and_pinned_memory_change_nothing():
    rows, ends = few_rows(), []
    for workers in (0, 2):
        torch.manual_seed(0)
        method = Centred(Settings(width=3), rows)
        history = fit(method, rows, Budget(steps=12, batch_size=16, lr=1e-2), workers=workers)
        ends.append(method.state_dict())
        assert next(method.parameters()).device.type == DEVICE and history.waited > 0
    for name, weight in ends[0].items():
        assert_close(ends[1][name], weight)


def test_cached_gradients_train_as_the_whole_batch_does():
    rows, found = few_rows(120), []
    for chunk in (0, 25):
        torch.manual_seed(0)
        method = DualEncoder(Settings(width=8), rows)
        fit(method, rows, Budget(steps=5, batch_size=120, lr=1e-2, chunk=chunk))
        found.append([p.detach().cpu() for p in method.parameters()])
    for whole, cached in zip(*found):
        assert_close(cached, whole, rtol=1e-4, atol=1e-5)


def test_a_compiled_loss_is_the_loss():
    a, b = rows(256, 32)
    compiled = torch.compile(lambda x, y: info_nce(x, y, 20.0))
    value, *gradients = [compiled(a, b)]
    gradients = torch.autograd.grad(value, (a, b))
    right = info_nce(a, b, 20.0)
    assert_close(value, right)
    for mine, theirs in zip(gradients, torch.autograd.grad(right, (a, b))):
        assert_close(mine, theirs, rtol=1e-3, atol=1e-6)


def test_a_real_class_at_full_size_gives_features_and_trains_a_head():
    """ViT-B/32 with random weights, as an encoder of one's own; the head in 16 bits."""
    timm = pytest.importorskip("timm")
    tower = timm.create_model("vit_base_patch32_224", pretrained=False, num_classes=0)
    g = torch.Generator().manual_seed(0)
    pictures = torch.randn(24, 3, 224, 224, generator=g)
    with torch.no_grad():
        features = tower.to(DEVICE).eval()(pictures.to(DEVICE)).float().cpu()
    assert features.shape == (24, 768) and features.isfinite().all()
    rows = Pairs.from_features({"image_features": features,
                                "text_features": torch.randn(24, 32, generator=g)})
    method = DualEncoder(Settings(width=16), rows)
    fit(method, rows, Budget(steps=3, batch_size=24, precision="bf16"))
    assert all(p.isfinite().all() for p in method.parameters())


class Bert(torch.nn.Module):
    """BERT with random weights; a word's number is drawn by its letters."""

    def __init__(self):
        super().__init__()
        from transformers import BertConfig, BertModel

        self.bert = BertModel(BertConfig(num_hidden_layers=12 if CUDA else 1)).to(DEVICE)

    def forward(self, texts: list[str]) -> torch.Tensor:
        words = [[sum(map(ord, word)) % 30000 for word in text.split()] for text in texts]
        longest = max(map(len, words))
        ids = torch.tensor([x + [0] * (longest - len(x)) for x in words], device=DEVICE)
        return self.bert(ids, attention_mask=(ids > 0).long()).pooler_output


def test_a_papers_own_path_at_scale_gpu(tmp_path, monkeypatch):
    """A table of pictures and captions through ViT-B/32 and BERT, with random weights, to a
    trained and measured arm; few steps."""
    pytest.importorskip("timm")
    module, draw = paper("geodesic-mixup"), torch.Generator().manual_seed(0)
    monkeypatch.setitem(module.SCALES, "gpu", replace(
        module.SCALES["gpu"], image="random:timm:vit_base_patch32_224", text=Bert()))
    lines = ["image,caption"]
    for k in range(70):
        noise = torch.randint(256, (9, 9, 3), generator=draw, dtype=torch.uint8)
        Image.fromarray(noise.numpy()).resize((64, 64)).save(tmp_path / f"{k}.png")
        lines.append(f"{k}.png,patch {k} of noise {k * 7 % 11}")
    (tmp_path / "pairs.csv").write_text("\n".join(lines), "utf-8")
    found = train("geodesic-mixup", tmp_path / "run", "gpu", pairs=tmp_path / "pairs.csv",
                  changes={"steps": 4, "precision": "bf16"}, workers=2)
    assert found["history"]["steps"] == 4 and found["budget"]["precision"] == "bf16"
    assert found["figures"] and all(0 <= x <= 1 for x in found["figures"].values())
