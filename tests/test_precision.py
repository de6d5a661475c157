"""Mixed precision: bf16, fp16 with its scaler, both with cached gradients."""

from dataclasses import replace

import pytest
import torch
from training_runs import assert_same, dual, pairs, snapshot

from alignkit.training import Budget, checkpoint, distributed, fit

SHORT = Budget(steps=6, batch_size=16, lr=1e-2)


def test_bfloat16_trains_and_leaves_no_trace():
    method, full = dual(), dual()
    seen = fit(method, pairs(), replace(SHORT, precision="bf16")).curve()
    exact = fit(full, pairs(), SHORT).curve()
    assert seen != exact and seen == pytest.approx(exact, rel=0.05)
    assert all(v.dtype == torch.float32 for v in method.state_dict().values())
    # Afterwards the method computes in float32 again, and trains so.
    batch = pairs().batch()
    plain = method.losses(method.encode(batch), batch, 0.0)
    assert torch.equal(method(batch)["contrastive_loss"], plain["contrastive_loss"])
    method.load_state_dict(dual().state_dict())
    assert fit(method, pairs(), SHORT).curve() == exact


def test_bfloat16_resumes_bit_for_bit(tmp_path):
    budget = replace(SHORT, precision="bf16", save_every=2)
    whole, again = dual(), dual()
    fit(whole, pairs(), budget)
    stop = iter(range(3))

    def after_step():
        if next(stop, None) is None:
            raise KeyboardInterrupt

    again.after_step = after_step
    with pytest.raises(KeyboardInterrupt):
        fit(again, pairs(), budget, folder=tmp_path)
    again = dual()
    assert checkpoint.newest(tmp_path)[1]["step"] == 2
    fit(again, pairs(), budget, folder=tmp_path)
    assert_same(again.state_dict(), whole.state_dict())


def with_half(monkeypatch, scale: float = 2.0**8) -> None:
    """fp16 with a gradient scaler as on a GPU, on the CPU."""
    real = distributed.accelerator

    def accelerator(precision="no"):
        made = real("no" if precision == "fp16" else precision)
        if precision == "fp16":
            made.native_amp, made.state._mixed_precision = True, "fp16"
            made.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        return made

    monkeypatch.setattr(distributed, "accelerator", accelerator)


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_cached_gradients_at_every_precision(monkeypatch, precision):
    with_half(monkeypatch)
    budget = replace(SHORT, precision=precision, clip=0.5)
    full, direct, cached = dual(), dual(), dual()
    exact = fit(full, pairs(), replace(SHORT, clip=0.5)).curve()
    seen = [fit(direct, pairs(), budget).curve(),
            fit(cached, pairs(), replace(budget, chunk=5)).curve()]
    within = 1e-6 if precision == "no" else 0.02
    for curve, method in zip(seen, (direct, cached)):
        assert curve != exact or precision == "no"
        assert curve == pytest.approx(exact, rel=within)
        for name, weight in method.state_dict().items():
            assert torch.allclose(weight, full.state_dict()[name], atol=within), name


def test_a_step_that_overflows_is_left_out(monkeypatch, tmp_path):
    """The scale that was too high is halved, and is kept in the checkpoint."""
    with_half(monkeypatch, 2.0**60)
    method = dual(temperature=0.01)
    before = snapshot(method)
    budget = replace(SHORT, steps=1, precision="fp16", chunk=5, save_every=1)
    fit(method, pairs(), budget, folder=tmp_path)
    assert_same(method.state_dict(), before)
    assert checkpoint.newest(tmp_path)[1]["scaler"]["scale"] == 2.0**59


def test_what_a_processor_cannot_do_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="'fp16' needs a GPU: take 'bf16'"):
        fit(dual(), pairs(), replace(SHORT, precision="fp16"))
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    with pytest.raises(ValueError, match="changes a contrastive loss.*chunk="):
        fit(dual(), pairs(), SHORT)
