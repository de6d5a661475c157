"""The comparison of the objectives: every arm on the same ground, and its table."""

from types import SimpleNamespace

import pytest
import torch

from alignkit import cli
from alignkit.claims import Runs
from alignkit.claims import side_by_side as claims
from alignkit.data import Pairs, Tokens
from alignkit.methods.irra import sdm_loss
from alignkit.parts import unit


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    """70 pairs with tokens, whose means are the features."""
    drawn = torch.Generator().manual_seed(0)
    columns = {"text": [f"row {i}" for i in range(70)]}
    for side, width in (("image", 12), ("text", 10)):
        values = torch.randn(70, 4, width, generator=drawn)
        columns[f"{side}_tokens"] = Tokens(values, torch.ones(70, 4, dtype=torch.bool))
        columns[f"{side}_features"] = values.mean(1)
    return Pairs.make(columns)


@pytest.fixture(scope="module")
def made(pairs):
    found = claims.claims(pairs, "tiny")
    return {claim.name: claim for claim in found}, Runs(found)


def test_the_arms_are_ten_and_share_data_budget_grid_and_baseline(made):
    named, _ = made
    assert len(named) == 10
    base = {claim.arms["infonce"] for claim in named.values()}
    assert len(base) == 1 and {len(claim.arms) for claim in named.values()} == {2}
    assert len({claim.budget for claim in named.values()}) == 1
    assert len({str(claim.grid) for claim in named.values()}) == 1
    assert len({arm.data for c in named.values() for arm in c.arms.values()}) == 1


@pytest.mark.parametrize("name", ["cwcl", "tcl", "filip", "fdt", "geodesic-mixup", "gram",
                                  "gssf", "irra", "ood-cma", "structure"])
def test_every_objective_is_measured(made, name):
    named, runs = made
    figures = runs.figures(named[name], 0)
    assert set(figures) == {f"{arm}, {k}" for arm in ("infonce", name)
                            for k in claims.FIGURES if k != "hit@10"} | {"infonce", name}
    assert figures["infonce, time"] == figures["infonce, memory"] == 1
    hits = [figures[f"{name}, hit@1"], figures[f"{name}, hit@5"], figures[name]]
    assert 0 <= hits[0] <= hits[1] <= hits[2] <= 1
    # Of unit rows: the square of a mean is at most the mean of the squares.
    assert figures[f"{name}, gap"] ** 2 <= figures[f"{name}, alignment"] <= 4
    assert figures[f"{name}, uniformity"] <= 0


def test_arms_differ_in_what_they_learn(made):
    """Same starting heads, other weights after training: no arm is another one renamed."""
    named, runs = made
    weights = {}
    for name, claim in named.items():
        for arm, trained in runs.trained(claim, 0).items():
            weights[arm] = torch.cat([p.flatten() for p in trained.method.parameters()])
    found = [w for w in weights.values()]
    assert not any(torch.equal(a, b) for i, a in enumerate(found) for b in found[:i])


def test_the_control_trains_on_wrong_pairs(made):
    named, runs = made
    claim = named["gram"]
    right, wrong = (runs.build(claim, "gram", 0, null)[1] for null in (False, True))
    assert torch.equal(right.train["image_tokens"].values, wrong.train["image_tokens"].values)
    moved = (right.train["text_features"] != wrong.train["text_features"]).any(1)
    assert moved.all() and torch.equal(right.test["text_features"],
                                       wrong.test["text_features"])
    assert set(runs.figures(claim, 0, null=True)) == set(runs.figures(claim, 0))


def test_heads_of_sdm(pairs, made):
    named, _ = made
    method = named["irra"].arms["irra"].build(pairs.split(0))
    rows = pairs.select(torch.arange(6))
    found = method(method.collate(rows, torch.Generator()))["match_loss"]
    z = [unit(method.heads[side](rows[f"{side}_features"])) for side in ("image", "text")]
    assert torch.allclose(found, sdm_loss(*z, 50.0, torch.eye(6).bool()))


def test_rows_of_any_output():
    x = torch.arange(12.0).view(2, 3, 2)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    assert torch.allclose(claims._row(Tokens(x, mask))[0], x[0, :2].mean(0))
    assert torch.equal(claims._row({"row": x[0], "asking": 0 * x[0]}), x[0])
    assert torch.equal(claims._row(x[0]), x[0])


def results() -> list:
    """Two claims of two seeds, as `run` gives them."""
    def row(arm, value):
        return {arm if k == "hit@10" else f"{arm}, {k}": value for k in claims.FIGURES}

    return [SimpleNamespace(baseline="infonce", method=name, figures=[
        row("infonce", 1.0) | row(name, value), row("infonce", 3.0) | row(name, value)])
        for name, value in (("gram", 0.25), ("tcl", 0.5))]


def test_the_table_has_means_and_half_intervals():
    lines = claims.table(results()).split("\n")[2:]
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| infonce", "| gram", "| tcl"]
    # t quantile of one degree of freedom 12.706; sd / sqrt(2) = 1
    assert lines[2].count("2.00 ± 12.71") == len(claims.FIGURES)
    assert lines[3].count("0.25 ± 0.00") == len(claims.FIGURES)


def test_the_command_runs_these_claims_and_prints_the_table(monkeypatch, capsys, tmp_path):
    seen = []
    found = [SimpleNamespace(**vars(r), save=lambda folder: folder) for r in results()]
    monkeypatch.setattr("alignkit.claims.command.run", lambda slug, *rest, seeds, **more: (
        seen.append((slug, len(seeds))) or found))
    data = SimpleNamespace(provenance=SimpleNamespace(hash="data"))
    monkeypatch.setattr("alignkit.claims.command._opened", lambda *_: (data, [], {}))
    for scale, shown in (("small", True), ("tiny", False)):
        assert cli.main(["compare", "--scale", scale, "--seeds", "5", "--out",
                         str(tmp_path)]) == 0
        assert ("| gram | 0.25 ± 0.00" in capsys.readouterr().out) == shown
    assert seen == [("side-by-side", 5)] * 2
