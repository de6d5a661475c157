"""Seven skeletons through the same fit, checkpoint and claim code, with no branch in
shared code for any of them."""

import ast
import inspect
from dataclasses import replace

import pytest
import torch
from skeletons import SKELETONS

from alignkit.claims import Claim, Condition, Null, run
from alignkit.data import shuffle_pairs
from alignkit.stats import VERDICTS
from alignkit.training import Budget, fit, seed_all

BUDGET = Budget(steps=12, batch_size=16, lr=1e-2)


def build(name: str, seed: int = 0):
    make, _, setting, _, _ = SKELETONS[name]
    arm = make(setting)
    splits = arm.data(seed)
    seed_all(seed)
    return arm.build(splits), splits


def claim(name: str) -> Claim:
    make, low, high, measure, differs = SKELETONS[name]

    def wrong_rows(splits, seed):
        column = next(iter(splits.train.columns))
        return splits._replace(train=shuffle_pairs(splits.train, column, seed))

    return Claim(
        name=name, sentence=f"{high} beats {low}", arms={"low": make(low), "high": make(high)},
        baseline="low", method="high", differs=differs, measure=measure, figure="figure",
        budget=BUDGET, validate=lambda method, splits: {"rows": float(len(splits.val))},
        choose_by="rows", margin=0.001, margin_why="a test", null=Null("shuffled", wrong_rows, 0.0, 0.5),
        condition=Condition("rows", lambda arm: len(arm.splits.train), 10, 1000))


@pytest.mark.parametrize("name", SKELETONS)
def test_fit_trains_what_it_should(name):
    method, splits = build(name)
    before = {k: v.clone() for k, v in method.state_dict().items()}
    history = fit(method, splits.train, BUDGET)
    changed = [k for k, v in method.named_parameters() if not torch.equal(before[k], v)]
    if "untrained" in method.traits:
        assert not history.steps and not changed
    else:
        trainable = {k for k, p in method.named_parameters() if p.requires_grad}
        assert set(changed) == trainable
        assert all(k.endswith("_loss") for k in set(history.steps[0])
                   - {"stage", "step", "loss", "lr"})
    assert len(history.steps) == sum(
        BUDGET.steps if stage.steps is None else stage.steps
        for stage in method.stages() if not stage.solve)


@pytest.mark.parametrize("name", SKELETONS)
def test_interrupted_run_ends_with_the_same_bits(name, tmp_path):
    budget = replace(BUDGET, save_every=5)
    whole, splits = build(name)
    fit(whole, splits.train, budget)
    broken, _ = build(name)
    steps = iter(range(8))

    def after_step():
        if next(steps, None) is None:
            raise KeyboardInterrupt  # the ninth step is lost, the fifth was saved

    broken.after_step = after_step
    interrupted = False
    try:
        fit(broken, splits.train, budget, folder=tmp_path)
    except KeyboardInterrupt:
        interrupted = True
    assert interrupted or "untrained" in whole.traits
    again, _ = build(name)
    fit(again, splits.train, budget, folder=tmp_path)
    for key, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[key]), key


@pytest.mark.slow
@pytest.mark.parametrize("name", SKELETONS)
def test_claim_runs_to_a_verdict(name, tmp_path):
    c = claim(name)
    _, splits = build(name)
    (result,) = run(name, [c], splits.train, "tiny", seeds=range(5), work=tmp_path,
                    say=lambda _: None)
    assert result.verdict in VERDICTS
    assert len(result.differences) == 5
    assert result.differences == [f["high"] - f["low"] for f in result.figures]
    (kept,) = run(name, [c], splits.train, "tiny", seeds=range(5), work=tmp_path,
                  say=lambda _: None)
    assert kept.figures == result.figures  # read back, not computed again


@pytest.mark.slow
@pytest.mark.parametrize("name", ["captioner", "cca", "ranking"])
def test_a_built_in_effect_is_found(name, tmp_path):
    """The machinery must see an effect that is there by construction."""
    _, splits = build(name)
    (result,) = run(name, [claim(name)], splits.train, "tiny", seeds=range(6),
                    work=tmp_path, say=lambda _: None)
    assert result.verdict == "holds", result


def test_skeletons_are_short():
    tree = ast.parse(inspect.getsource(inspect.getmodule(SKELETONS["cca"][0])))
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            assert node.end_lineno - node.lineno < 40, node.name
