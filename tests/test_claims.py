"""Claims: the runner on arms whose figures are arranged."""

from dataclasses import replace

import pytest
import torch
from fake_claims import (
    BUDGET, Fake, arm, claim, measured, no_signal, result_of, seed_of_split, wobble,
)  # fmt: skip

from alignkit.claims import Condition, Null, Runs, runner
from alignkit.claims.runner import PILOT_SEEDS, TUNING_SEED
from alignkit.stats import prediction_interval, smallest_detectable, t_interval


@pytest.fixture(autouse=True)
def starts():
    Fake.starts.clear()
    return Fake.starts


# Verdicts -----------------------------------------------------------------------------
@pytest.mark.parametrize("effect, margin, verdict", [
    (0.1, 0.0, "holds"), (-0.1, 0.0, "opposite"), (0.0, 0.0, "not resolved at this scale"),
    (0.1, 0.2, "not resolved at this scale"), (-0.1, 0.2, "not resolved at this scale")])
def test_verdicts(tmp_path, effect, margin, verdict):
    assert result_of(tmp_path, effect=effect, margin=margin).verdict == verdict


def test_the_figures_of_a_result(tmp_path):
    seeds = (3, 0, 11, 7, 5, 6)
    result = result_of(tmp_path, claim(noise=0.02), seeds=seeds)
    wanted = [0.1 + 0.02 * (wobble(s, "more") - wobble(s, "less")) for s in seeds]
    assert result.seeds == list(seeds)
    assert result.differences == pytest.approx(wanted, abs=1e-6)
    differences = result.differences
    assert result.interval == t_interval(differences)._asdict()
    assert result.prediction == prediction_interval(differences)._asdict()
    assert result.detectable == smallest_detectable(t_interval(differences).sd, 6)
    assert result.mean("less") == pytest.approx(
        0.5 + 0.02 * sum(wobble(s, "less") for s in seeds) / 6, abs=1e-6)
    assert result.pilot["value"] == 14 and result.pilot["present"]
    assert result.agrees(result.prediction["low"])
    assert result.agrees(result.interval["mean"])
    assert not result.agrees(result.prediction["high"] + 1e-6)


def test_a_statistic_of_many_arms(tmp_path):
    arms = {"less": arm(0.0), "more": arm(0.1), "most": arm(0.4)}
    three = claim(noise=0.0, arms=arms, method="most", twins={"more": "less", "most": "less"},
                  statistic=lambda f: f["most"] - 2 * f["more"] + f["less"])
    assert result_of(tmp_path, three).differences == pytest.approx([0.2] * 5)


@pytest.mark.parametrize("noise, margin, passed", [
    (0.01, 0.05, True), (0.01, 0.005, False), (0.5, 0.05, False)])
def test_null(tmp_path, noise, margin, passed):
    """The effect vanishes with the signal; noise makes a control fail, not pass."""
    result = result_of(tmp_path, noise=noise, null_margin=margin)
    assert result.null["passed"] is passed
    assert abs(result.null["interval"]["mean"]) < 2 * noise
    assert result.null["differences"] != result.differences


def test_a_control_that_keeps_the_effect_fails(tmp_path):
    kept = Null("nothing is changed", lambda splits, seed: splits, 0.0, 0.05)
    result = result_of(tmp_path, null=kept)
    assert not result.null["passed"] and result.verdict == "holds"


@pytest.mark.parametrize("low, high, present", [(10, 20, True), (15, 20, False), (0, 13, False)])
def test_condition(tmp_path, low, high, present):
    wanted = Condition("rows", lambda a: len(a.splits.train), low, high)
    assert result_of(tmp_path, condition=wanted).pilot["present"] is present


def test_the_pilot_trains_baselines_alone(tmp_path, starts):
    """Two runs of the baseline, in weights of their own, stand for the two arms."""
    Runs([claim()]).pilots(PILOT_SEEDS, 8)
    assert {effect for effect, _ in starts} == {0.0}
    assert len(starts) == 2 * len(PILOT_SEEDS)
    assert not torch.equal(starts[0][1]["shared.weight"], starts[1][1]["shared.weight"])


@pytest.mark.parametrize("seeds", [range(4), (0, 1, 2, 3, 3), (), (0, 1, 2, 3, 4, 4)])
def test_too_few_seeds_give_no_verdict(tmp_path, seeds, starts):
    with pytest.raises(ValueError, match="seeds must be at least 5"):
        result_of(tmp_path, seeds=seeds)
    assert not starts  # refused before anything is trained


# Fair comparisons ---------------------------------------------------------------------
def test_tensors_of_equal_name_and_shape_start_equal(tmp_path, starts):
    wide = claim(arms={"less": arm(0.0), "more": arm(0.1, width=5)})
    runs = Runs([wide])
    drawn = []
    for seed in (0, 1):
        runs.trained(wide, seed)
        (_, less), (_, more) = starts[-2:]
        assert torch.equal(less["shared.weight"], more["shared.weight"])
        assert torch.equal(less["shared.bias"], more["shared.bias"])
        assert less["own.weight"].shape != more["own.weight"].shape
        drawn.append(less["shared.weight"])
    assert not torch.equal(*drawn)  # each seed draws its own


def test_parameters_start_equal_but_what_comes_from_data_does_not(starts):
    both = claim()
    Runs([both]).trained(both, 0)
    (_, less), (_, more) = starts
    for name in ("shared.weight", "shared.bias", "own.weight", "own.bias"):
        assert torch.equal(less[name], more[name])
    assert (less["effect"], more["effect"]) == (0.0, pytest.approx(0.1))


def test_in_inference_claims_only_the_baseline_is_trained(starts):
    inference = claim(differs="inference")
    trained = Runs([inference]).trained(inference, 0)
    assert [effect for effect, _ in starts] == [0.0]
    assert trained["more"].history is None and trained["less"].history.steps
    weights = [a.method.shared.weight for a in trained.values()]
    assert torch.equal(*weights)
    assert not torch.equal(weights[0], starts[0][1]["shared.weight"])


def count_fits(monkeypatch) -> list:
    """What is trained from now on: (effect, seed of the split, budget)."""
    fits, fit = [], runner.fit

    def counted(method, pairs, budget, seed, **rest):
        fits.append((method.settings.effect, int(pairs["x"][0, 0]) - 1, budget))
        return fit(method, pairs, budget, seed, **rest)

    monkeypatch.setattr(runner, "fit", counted)
    return fits


def test_tuning_sees_validation_of_its_own_seed_alone(monkeypatch, tmp_path):
    fits, asked = count_fits(monkeypatch), []

    def validate(method, splits):
        asked.append(seed_of_split(splits))
        rate = fits[-1][2].lr  # what the method was just trained with
        best = 3e-3 if method.settings.effect else 1e-2
        return {"score": -abs(rate - best), "other": rate}

    tuned = claim(grid=({"lr": 1e-3}, {"lr": 3e-3}, {"lr": 1e-2}), validate=validate)
    runs = Runs([tuned])
    runs.tune(tuned)
    assert runs.tuned == {"less": {"lr": 1e-2}, "more": {"lr": 3e-3}}
    assert {seed for _, seed, _ in fits} == {TUNING_SEED} == set(asked)
    assert len(fits) == 6 and not {TUNING_SEED} & {*PILOT_SEEDS, *range(100)}
    assert runs.budget(tuned, "less") == replace(BUDGET, lr=1e-2)

    result = result_of(tmp_path, tuned)
    assert result.settings["tuned"] == runs.tuned
    measured_with = {(effect, b.lr) for effect, seed, b in fits if 0 <= seed < 5}
    assert measured_with == {(0.0, 1e-2), (0.1, 3e-3)}


def test_an_arm_is_trained_once_a_seed_however_many_claims_share_it(monkeypatch, tmp_path):
    fits = count_fits(monkeypatch)
    one = claim()
    two = replace(one, name="other", arms={"less": one.arms["less"], "third": arm(0.3)},
                  method="third", null=one.null)
    found = result_of(tmp_path, one, two)
    seeds = [(effect, seed) for effect, seed, _ in fits if 0 <= seed < 5]
    # 3 arms; with the null the signal is gone and the seed reads −1
    assert len(seeds) == len(set(seeds)) == 3 * 5
    assert len([seed for _, seed, _ in fits if seed == -1]) == 3 * 5
    assert [r.differences for r in found] == [pytest.approx(d, abs=0.05) for d in
                                              ([0.1] * 5, [0.3] * 5)]


def test_two_nulls_of_one_name_are_two(monkeypatch):
    fits = count_fits(monkeypatch)
    one = claim()
    two = replace(one, name="other", null=one.null._replace(
        transform=lambda splits, seed: no_signal(splits, seed)))
    runs = Runs([one, two])
    for c in (one, two):
        runs.trained(c, 0, null=True)
    assert len(fits) == 4


@pytest.mark.parametrize("change", [
    {"arms": {"less": arm(0.0), "more": arm(0.2)}}, {"budget": replace(BUDGET, steps=9)},
    {"grid": ({"lr": 1.0},)}], ids=["arm", "budget", "grid"])
def test_one_name_is_one_arm(change):
    one = claim()
    with pytest.raises(ValueError, match="'less'"):
        Runs([one, replace(one, name="other", **change)])


@pytest.mark.parametrize("change, message", [
    ({"baseline": "none"}, "baseline 'none' is no arm"),
    ({"method": "none"}, "method 'none' is no arm"),
    ({"differs": "luck"}, "differs must be")])
def test_claim_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        claim(**change)


# Interrupted runs ---------------------------------------------------------------------
def test_an_interrupted_run_goes_on_from_the_seeds_that_it_kept(monkeypatch, tmp_path):
    whole = result_of(tmp_path / "whole")
    fits, stop = count_fits(monkeypatch), [3]

    def until_seed(arms):
        if seed_of_split(arms["less"].splits) in stop:
            raise KeyboardInterrupt
        return measured(0.01)(arms)

    broken = claim(measure=until_seed)
    with pytest.raises(KeyboardInterrupt):
        result_of(tmp_path / "part", broken)
    kept = sorted(p.name for p in (tmp_path / "part").iterdir())
    assert kept == ["before.json", "seed-0.json", "seed-1.json", "seed-2.json"]
    stop.clear(), fits.clear()
    again = result_of(tmp_path / "part", broken)
    assert len(fits) == 2 * 2 * 2  # two seeds, two arms, with and without the null
    assert {seed for _, seed, _ in fits} == {3, 4, -1}
    assert again.differences == whole.differences and again.null == whole.null
    assert not list((tmp_path / "part").glob("*.part"))


def test_a_published_seed_can_be_run_again(tmp_path):
    best = claim(grid=({"lr": 1e-3}, {"lr": 3e-3}))
    result = result_of(tmp_path, best)
    runs = Runs([best], result.settings["tuned"])
    for i, seed in enumerate(result.seeds):
        assert runs.figures(best, seed) == result.figures[i]
