"""The bench: contestants do the work they are named for, figures are read back right."""

import json
import time
from dataclasses import replace

import pytest
import torch

from alignkit import bench
from alignkit.bench import child, feeds
from alignkit.bench.contest import Contest, seeded
from alignkit.bench.contests import CONTESTS
from alignkit.parts import info_nce, sigmoid_loss, unit
from alignkit.versions import installed

PRESENT = [(name, who) for name, contest in CONTESTS.items() for who in contest.contestants
           if who not in contest.gpu
           and (who not in contest.needs or installed(contest.needs[who]))]


@pytest.mark.slow
@pytest.mark.parametrize("name, who", [x for x in PRESENT if x[0] != "features"])
def test_every_contestant_works(name, who):
    figures = child.measure(name, who, CONTESTS[name].warm)
    assert 0 < figures["seconds"] < 30 and figures["peak"] >= 0
    json.dumps(figures)  # as the process tells them


@pytest.mark.parametrize("name", ["loss", "loss-sigmoid", "loss-large"])
def test_the_losses_of_a_contest_are_one_loss(name):
    """Every contestant leaves the gradient of the whole loss, peers included."""
    a, b = (unit(x).requires_grad_() for x in seeded(2, 64, 512))
    whole = sigmoid_loss(a, b, 10.0, -10.0) if "sigmoid" in name else info_nce(a, b, 20.0)
    within = 0.05 if name == "loss-large" else 1e-3  # its rows have 8 bits of precision
    right, = torch.autograd.grad(whole, a)
    for who in (who for contest, who in PRESENT if contest == name):
        work = CONTESTS[name].contestants[who](64)
        work()
        inputs = dict(zip(work.__code__.co_freevars, work.__closure__, strict=True))
        found = inputs["a"].cell_contents.grad
        assert torch.allclose(found.float(), right, rtol=within,
                              atol=within * right.abs().max().item())


@pytest.mark.parametrize("name", ["loop", "loop-wide"])
def test_fit_and_the_loop_by_hand_are_one_training(name):
    """The same weights to rounding; without clipping and rates they are others."""
    ours, same, other = (list(make(12)().parameters())
                         for make in CONTESTS[name].contestants.values())
    for a, b, c in zip(ours, same, other, strict=True):
        assert (a - b).abs().mean() < 1e-7 < 1e-4 < (a - c).abs().mean()


def test_peak_memory_is_seen(monkeypatch):
    def make(n):
        return lambda: torch.ones(n, 2**18).sum()  # n MB that are given back

    contest = Contest("ones", 64, 1, {"ones": make})
    monkeypatch.setitem(CONTESTS, "ones", contest)
    peak = child.measure("ones", "ones", 64)["peak"]
    if child.STATUS.exists():
        assert 50 * 2**20 < peak < 90 * 2**20


def test_a_machine_without_a_gpu_is_not_given_what_only_a_gpu_does():
    assert ("loss-large" in bench.usual()) == torch.cuda.is_available()
    assert set(bench.usual()) <= set(CONTESTS)


def test_rounds_medians_and_ratios(monkeypatch, tmp_path):
    runs = iter([1.0, 3.0, 8.0, 2.0, 4.0, 4.0])  # a b, then b a, then a b
    order = []

    def one(contest, who, size, threads, limit):
        order.append(who)
        return {"seconds": next(runs), "peak": 2**20 * (1 + len(who))}

    monkeypatch.setattr(bench, "_child", one)
    monkeypatch.setitem(CONTESTS, "two", Contest("two {n}", 5, 1, {"a": None, "bb": None,
                                                                  "c": None},
                                                {"c": "no-such-package"}))
    found = bench.bench(["two"], rounds=3)
    assert order == ["a", "bb", "bb", "a", "a", "bb"]
    contest = found["contests"]["two"]
    assert contest["missing"] == ["c"] and contest["what"] == "two 5"
    a, b = contest["rows"]
    assert a["seconds"] == 2.0 and b["seconds"] == 4.0  # of 1, 2, 4 and of 3, 8, 4
    assert a["times_the_time"] == 1 and b["times_the_time"] == 3.0  # of 3, 4, 1
    assert b["times_the_memory"] == 1.5
    json.dumps(found)
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- bench -->\nold\n<!-- /bench -->\nafter\n", "utf-8")
    bench.write_readme(found, readme)
    text = readme.read_text("utf-8")
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "| bb | 4.00 s | 3.00 | 3 MB | 1.5 |" in text
    readme.write_text("no markers", "utf-8")
    with pytest.raises(ValueError, match="<!-- bench -->"):
        bench.write_readme(found, readme)


def test_a_contest_that_stops_costs_no_other(monkeypatch, tmp_path, capsys):
    from alignkit.cli import main

    def one(contest, *_):
        if contest == "bad":
            raise RuntimeError("bench bad: a took over 5 s")
        return {"seconds": 0.25, "peak": 2**20}

    monkeypatch.setattr(bench, "_child", one)
    for name in ("good", "bad", "last"):
        monkeypatch.setitem(CONTESTS, name, Contest(name, 5, 1, {"a": None}))
    assert main(["bench", "good", "bad", "last", "--rounds", "1",
                 "--out", str(tmp_path / "b.json")]) == 1
    said = capsys.readouterr()
    assert said.out.count("| a | 0.250 s | 1.00 | 1 MB | 1.0 |") == 2
    assert said.out.count("| time |") == 1 and "one round" in said.out
    assert "a took over 5 s" in said.err and "could not measure bad" in said.err
    assert [*json.loads((tmp_path / "b.json").read_text())["contests"]] == ["good", "last"]


def test_a_contestant_that_takes_too_long_is_ended():
    with pytest.raises(RuntimeError, match="bench loss: alignkit, in tiles took over 0.01 s"):
        bench.bench(["loss"], rounds=1, size=256, limit=0.01)


def test_short_work_is_done_again_for_some_seconds(monkeypatch):
    done = []
    child._again(lambda: done.append(1))
    monkeypatch.setattr(child, "AGAIN", 0.01)
    child._again(lambda: done.append(time.sleep(0.02)))
    assert done == [1] * 5 + [None]


@pytest.mark.slow
@pytest.mark.parametrize("make", [feeds.ours(0), feeds.by_hand(False)])
def test_a_feed_ends_with_its_seconds(monkeypatch, make):
    monkeypatch.setattr(feeds, "SECONDS", 0.2)
    found = make(10_000)()
    assert 2 <= found["steps"] < 1000 and 0 < found["seconds"] < 5


@pytest.mark.slow
def test_what_is_wrong_is_said(monkeypatch):
    with pytest.raises(ValueError, match="bench has loss.*got speed"):
        bench.bench(["speed"])
    with pytest.raises(ValueError, match="rounds.*0"):
        bench.bench(["loss"], rounds=0)
    monkeypatch.setitem(CONTESTS, "loss", replace(CONTESTS["loss"], contestants={
        "nobody": None}))
    with pytest.raises(RuntimeError, match="nobody stopped"):  # the child knows no nobody
        bench.bench(["loss"], rounds=1)


def test_the_command(monkeypatch, tmp_path, capsys):
    from alignkit.cli import main

    contest = Contest("ones", 4, 1, {"ones": None, "gone": None}, {"gone": "no-such-thing"})
    monkeypatch.setitem(CONTESTS, "ones", contest)
    monkeypatch.setattr(bench, "_child", lambda *_: {"seconds": 2.0, "peak": 2**20})
    assert main(["bench", "ones", "--rounds", "2", "--out", str(tmp_path / "b.json")]) == 0
    said = capsys.readouterr()
    assert "| ones | 2.00 s | 1.00 | 1 MB | 1.0 |" in said.out
    assert "not measured: gone" in said.err  # the table has no line in its midst
    kept = json.loads((tmp_path / "b.json").read_text())
    assert kept["rounds"] == 2 and kept["contests"]["ones"]["size"] == 4
    assert main(["bench", "tones"]) == 1 and "tones" in capsys.readouterr().err
