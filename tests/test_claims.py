"""Claims: the runner on arms whose figures are arranged."""

from dataclasses import replace

import pytest
import torch
from fake_claims import (
    BUDGET, Fake, arm, claim, measured, no_signal, result_of, seed_of_split, wobble,
)
from fake_claims import data as splits_of  # fmt: skip

from alignkit.claims import Condition, Null, Runs, runs
from alignkit.claims.runner import before
from alignkit.claims.runs import PILOT_SEEDS, TUNING_SEEDS, at_edge
from alignkit.claims.work import Work
from alignkit.stats import (
    corrected_interval, prediction_interval, second_look, smallest_detectable, stein_size,
    t_interval,
)  # fmt: skip


@pytest.fixture(autouse=True)
def starts():
    Fake.starts.clear()
    return Fake.starts


# Verdicts -----------------------------------------------------------------------------
@pytest.mark.parametrize("effect, margin, verdict", [
    (0.1, 0.02, "holds"), (-0.1, 0.02, "opposite"), (0.0, 0.001, "not resolved"),
    (0.1, 0.2, "some gain"), (-0.1, 0.2, "no gain"), (0.1, 0.1, "some gain")])
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
    assert result.pilot["conditions"] == [
        {"condition": "rows", "value": 14, "wanted": [10, 20], "present": True}]
    assert result.items == {"train": 14, "test": 4}
    assert result.corrected == corrected_interval(differences, 4, 14)._asdict()
    assert result.looks == [{"seeds": 6, "level": 0.95, "interval": result.interval,
                             "verdict": result.verdict}]
    assert result.agrees(result.prediction["low"])
    assert result.agrees(result.interval["mean"])
    assert not result.agrees(result.prediction["high"] + 1e-6)


def test_a_statistic_of_many_arms(tmp_path):
    arms = {"less": arm(0.0), "more": arm(0.1), "most": arm(0.4)}
    three = claim(noise=0.0, arms=arms, method="most", twins={"more": "less", "most": "less"},
                  subtracts="most minus more, less (more minus less)",
                  statistic=lambda f: f["most"] - 2 * f["more"] + f["less"])
    assert result_of(tmp_path, three).differences == pytest.approx([0.2] * 5)


@pytest.mark.parametrize("noise, stated, found", [
    (0.0, None, None), (0.0, 0.07, 0.07), (1e-13, 0.07, 0.07), (0.01, 0.07, "measured")])
def test_where_runs_are_equal_the_smallest_difference_is_stated_or_not_known(
        tmp_path, noise, stated, found):
    one, said = claim(noise=noise, detectable=stated), []
    p = before(Work([one], tmp_path), [one], said.append)["pilot"]["fake"]
    least = smallest_detectable(p["noise_sd"], 8) if found == "measured" else found
    assert p["smallest_detectable"] == least and least != 0
    assert said[-1].endswith("seeds can show: " + (
        "not known, runs of the baseline are equal" if found is None else f"{least:.3g}")
        + ", margin 0.001")


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
    Runs([claim()]).pilot(PILOT_SEEDS[0])
    assert {effect for effect, _ in starts} == {0.0}
    assert len(starts) == 2
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


def test_a_long_piece_goes_on_within_its_arms(tmp_path, monkeypatch, capfd):
    """Of two arms, each with its null, the second was cut off at step 25."""
    one, steps = claim(budget=replace(BUDGET, steps=40, batch_size=3)), []
    whole, = Work([one], tmp_path / "whole").seeds([0])

    def after_step(self):
        steps.append(self.settings.effect)
        if len(steps) == 40 + 25:
            raise KeyboardInterrupt

    monkeypatch.setattr(Fake, "after_step", after_step)
    folder = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        Work([one], folder, long=True).seeds([0])
    assert len(list((folder / "unfinished").iterdir())) == 2
    found, = Work([one], folder, long=True).seeds([0])
    again = steps[65:]
    assert len(again) == 0 + 20 + 40 + 40 and again[0] == 0.1  # the first was at its end
    assert found["figures"] == whole["figures"] and found["null"] == whole["null"]
    assert not (folder / "unfinished").exists()
    assert "rows/s" in capfd.readouterr().err  # a bar


def count_fits(monkeypatch) -> list:
    """What is trained from now on: (effect, seed of the split, budget)."""
    fits, fit = [], runs.fit

    def counted(method, pairs, budget, seed, **rest):
        fits.append((method.settings.effect, int(pairs["x"][0, 0]) - 1, budget))
        return fit(method, pairs, budget, seed, **rest)

    monkeypatch.setattr(runs, "fit", counted)
    return fits


def test_tuning_sees_validation_of_its_own_seed_alone(monkeypatch, tmp_path):
    fits, asked = count_fits(monkeypatch), []

    def validate(method, splits):
        asked.append(seed_of_split(splits))
        rate = fits[-1][2].lr  # what the method was just trained with
        best = 3e-3 if method.settings.effect else 1e-2
        return {"score": -abs(rate - best), "other": rate}

    tuned = claim(grid=({"lr": 1e-3}, {"lr": 3e-3}, {"lr": 1e-2}), validate=validate)
    result = result_of(tmp_path, tuned)
    assert result.settings["tuned"] == {"less": {"lr": 1e-2}, "more": {"lr": 3e-3}}
    assert result.settings["edges"] == ["less"]
    tried = [(e, b.lr) for e, seed, b in fits if seed in TUNING_SEEDS]
    assert len(tried) == 2 * 3 * 3 and len(set(tried)) == 2 * 3  # 3 points with 3 seeds
    assert set(asked) == {*TUNING_SEEDS}  # where no weights are chosen, for choosing alone
    measured_with = {(effect, b.lr) for effect, seed, b in fits if 0 <= seed < 5}
    assert measured_with == {(0.0, 1e-2), (0.1, 3e-3)}
    piloted = {(effect, b.lr) for effect, seed, b in fits if seed in PILOT_SEEDS}
    assert piloted == {(0.0, 1e-2)}  # the baseline, as tuned


def test_the_mean_over_the_tuning_seeds_decides(tmp_path):
    """The point that is best with one seed alone is not taken."""
    def validate(method, splits):
        lucky = seed_of_split(splits) == TUNING_SEEDS[0]
        return {"score": {0.0: 0.5, 1.0: 0.9 if lucky else 0.2}[float(method.effect)]}

    grid = ({"settings": {"effect": 0.0}}, {"settings": {"effect": 1.0}})
    result = result_of(tmp_path, grid=grid, validate=validate)
    assert result.settings["tuned"] == {"less": grid[0], "more": grid[0]}


def test_a_grid_may_change_settings(tmp_path):
    grid = ({"settings": {"effect": 0.0}}, {"settings": {"effect": 0.4}})
    result = result_of(tmp_path, grid=grid, noise=0.0, condition=Condition(
        "effect", lambda a: float(a.method.effect), 0.3, 0.5),
        validate=lambda method, splits: {"score": float(method.effect)})
    assert result.figures[0] == pytest.approx({"less": 0.9, "more": 0.9})
    assert result.pilot["present"]


def test_a_wider_grid_tries_its_new_points_alone(monkeypatch, tmp_path):
    fits = count_fits(monkeypatch)
    result_of(tmp_path, grid=({"lr": 1e-3}, {"lr": 3e-3}))
    fits.clear()
    result_of(tmp_path, grid=({"lr": 1e-3}, {"lr": 3e-3}, {"lr": 1e-2}))
    assert {(seed, b.lr) for _, seed, b in fits} == {(seed, 1e-2) for seed in TUNING_SEEDS}


@pytest.mark.parametrize("chosen, edge", [
    ({"lr": 1e-3}, True), ({"lr": 3e-3}, False), ({"lr": 1e-2}, True), ({}, False)])
def test_at_edge(chosen, edge):
    grid = ({"lr": 1e-3}, {"lr": 3e-3}, {"lr": 1e-2})
    assert at_edge(grid, chosen) is edge
    inside = [{"settings": {"t": t, "kind": "a"}} for t in (1, 2, 3)]
    assert at_edge(inside, inside[2]) and not at_edge(inside, inside[1])
    assert not at_edge([{"lr": 1e-3, "schedule": "constant"}], {"lr": 1e-3})


def test_budgets_by_arm(monkeypatch, tmp_path):
    fits = count_fits(monkeypatch)
    result = result_of(tmp_path, budgets={"more": {"steps": 5}}, grid=({"lr": 1e-3}, {"lr": 2e-3}))
    assert {(e, b.steps) for e, _, b in fits} == {(0.0, 2), (0.1, 5)}
    assert result.settings["budgets"] == {"more": {"steps": 5}}
    with pytest.raises(ValueError, match="'most' is no arm"):
        claim(budgets={"most": {"steps": 5}})


# Starts -------------------------------------------------------------------------------
def test_an_arm_starts_from_another(monkeypatch, starts):
    """It is trained once a seed, on its true pairs, and laid over where shapes fit."""
    fits = count_fits(monkeypatch)
    arms = {"less": arm(0.0), "more": arm(0.1, width=5, start="first"),
            "most": arm(0.4, start="first"), "first": arm(0.2)}
    runs = Runs([claim(arms=arms, twins={n: "less" for n in ("more", "most", "first")})])
    assert list(runs.in_rounds()) == [["less", "first"], ["more", "most"]]
    trained = runs.trained(runs.claims[0], 0)
    assert [e for e, *_ in fits] == [0.0, 0.2, pytest.approx(0.1), pytest.approx(0.4)]
    begun = {effect: weights for effect, weights in starts}
    first = trained["first"].method.state_dict()
    assert torch.equal(begun[0.4]["shared.weight"], first["shared.weight"])
    assert torch.equal(begun[0.1]["shared.bias"], first["shared.bias"])
    assert not torch.equal(begun[0.0]["shared.weight"], first["shared.weight"])
    assert begun[0.1]["own.weight"].shape != first["own.weight"].shape
    fits.clear()
    null = runs.trained(runs.claims[0], 0, null=True)
    assert torch.equal(starts[-2][1]["shared.weight"], first["shared.weight"])
    assert null["more"].method is not trained["more"].method


def test_an_arm_starts_from_shipped_weights(starts):
    def shipped(seed):
        return {"shared.bias": torch.full((3,), float(seed)), "other": torch.ones(2)}

    both = claim(arms={"less": arm(0.0, start=shipped), "more": arm(0.1, start=shipped)})
    Runs([both]).trained(both, 3)
    assert all(weights["shared.bias"].tolist() == [3.0] * 3 for _, weights in starts)
    wrong = claim(arms={"less": arm(0.0), "more": arm(0.1, start=lambda s: {"x": torch.ones(1)})})
    with pytest.raises(ValueError, match="no tensor of the start fits"):
        Runs([wrong]).trained(wrong, 0)


@pytest.mark.parametrize("start, message", [
    ("nobody", "starts from 'nobody', which is no arm"), ("more", "in a circle")])
def test_starts_that_cannot_be(tmp_path, start, message):
    with pytest.raises(ValueError, match=message):
        result_of(tmp_path, arms={"less": arm(0.0), "more": arm(0.1, start=start)})


# A headline's two looks ---------------------------------------------------------------
def test_a_resolved_headline_has_one_look(tmp_path):
    result = result_of(tmp_path, headline=True, margin=0.02)
    (look,) = result.looks
    assert look["level"] == 0.975 and result.verdict == "holds"
    assert result.interval == t_interval(result.differences, 0.975)._asdict()


def test_a_second_look_by_steins_rule(monkeypatch, tmp_path):
    fits = count_fits(monkeypatch)
    result = result_of(tmp_path, headline=True, effect=0.02, noise=0.02, margin=0.02)
    first, second = result.looks
    n = stein_size(result.differences[:5], 0.01, 24, 0.975)
    assert 5 < n <= 24 and second["seeds"] == n == len(result.seeds)
    assert result.seeds == list(range(n)) and first["verdict"] in ("some gain", "not resolved")
    look = second_look(result.differences, 5, 0.975)
    assert result.interval == look._asdict() and result.verdict == second["verdict"]
    assert len(result.null["differences"]) == 5
    # The seeds of the second look train the headline's arms, without the null.
    assert len([s for _, s, _ in fits if 5 <= s < n]) == 2 * (n - 5)


def test_units_limit_the_seeds(tmp_path):
    with pytest.raises(ValueError, match="has 4 independent units"):
        result_of(tmp_path, units=4)
    result = result_of(tmp_path, headline=True, effect=0.02, noise=0.05, margin=0.02, units=6)
    assert len(result.seeds) <= 6


def test_equivalence(tmp_path):
    same = result_of(tmp_path / "a", effect=0.0, margin=0.05, equivalence=True)
    assert same.verdict == "holds" and same.equivalent
    other = result_of(tmp_path / "b", effect=0.1, margin=0.05, equivalence=True)
    assert other.verdict == "opposite"


def test_redrawn_rows_need_no_correction(tmp_path):
    result = result_of(tmp_path, redrawn=True)
    assert result.corrected is None and result.carries_over


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
    ({"differs": "luck"}, "differs must be"), ({"margin": 0.0}, "margin is 0.0"),
    ({"margin_why": " "}, "margin_why is empty"),
    ({"subtracts": "most minus less"}, "without a statistic of its own it is the method"),
    ({"statistic": min}, "say in subtracts what that is"),
    ({"detectable": 0.0}, "detectable is 0.0; a smallest difference is above 0")])
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
    kept = sorted(p.stem for p in (tmp_path / "part").iterdir() if p.stem.startswith("seed"))
    assert kept == ["seed-0", "seed-1", "seed-2"]
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


def test_more_seeds_train_those_alone(monkeypatch, tmp_path):
    fits = count_fits(monkeypatch)
    few = result_of(tmp_path)
    fits.clear()
    more = result_of(tmp_path, seeds=range(8))
    assert {seed for _, seed, _ in fits} == {5, 6, 7, -1}
    assert more.differences[:5] == few.differences


def remake():
    return [claim(grid=({"lr": 1e-3}, {"lr": 3e-3}), noise=0.02)]


def test_one_point_of_a_grid_needs_nothing_to_choose_by(tmp_path):
    result = result_of(tmp_path, claim(validate=lambda method, splits: {}))
    assert result.settings["tuned"] == {"less": {}, "more": {}}


@pytest.mark.slow
def test_two_processes_give_the_same(tmp_path):
    from alignkit.claims import run
    found = [run("fake", remake(), splits_of(0).train, "tiny", seeds=range(5), work=tmp_path / str(jobs),
                 jobs=jobs, remake=remake, say=lambda _: None)[0] for jobs in (1, 2)]
    assert found[0].figures == found[1].figures and found[0].pilot == found[1].pilot
    assert found[0].null == found[1].null and found[0].settings == found[1].settings
