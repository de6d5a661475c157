"""Registrations: what is written down before a run, and what is refused."""

import json
from dataclasses import replace

import pytest
from fake_claims import arm, claim, result_of
from fake_claims import data as splits_of

from alignkit.claims import Condition, command, current, hashes, register, run
from alignkit.claims.hashes import values_hash
from alignkit.claims.registered import (
    changed, decides, design, design_hash, registrations, unseen,
)  # fmt: skip
from alignkit.claims.runner import before
from alignkit.claims.runs import _falls
from alignkit.claims.work import Work
from alignkit.training import History

GRID = ({"lr": 1e-4}, {"lr": 1e-3}, {"lr": 1e-2})


def middle(method, splits):
    return {"score": 1.0}


def opened_of(claims, folder) -> dict:
    return before(Work(claims, folder), claims, say=lambda _: None)


@pytest.fixture
def one():
    return claim(headline=True, margin=0.02)


def test_a_registration_is_kept_with_its_reason(tmp_path, one, monkeypatch):
    opened = opened_of([one], tmp_path / "work")
    monkeypatch.setattr("alignkit.claims.registered.code_hash", lambda slug: "code")
    register("fake", [one], opened, folder=tmp_path)
    (first,) = registrations("fake", tmp_path)
    assert current("fake", [one], tmp_path) == first
    assert first["hash"] == design_hash([one], {}) and first["design"] == json.loads(
        json.dumps(design([one])))
    assert first["pilot"]["fake"]["present"] and first["tuned"] == {}
    changed = replace(one, margin=0.03)
    assert current("fake", [changed], tmp_path) is None
    with pytest.raises(ValueError, match="the design has changed: say why with --reason"):
        register("fake", [changed], opened, folder=tmp_path)
    register("fake", [changed], opened, reason="three is needed", folder=tmp_path)
    assert [r["reason"] for r in registrations("fake", tmp_path)] == ["", "three is needed"]
    assert current("fake", [one], tmp_path) is None  # the old one stays listed, no more
    register("fake", [changed], opened, reason="another corpus", folder=tmp_path)
    hashes = [r["hash"] for r in registrations("fake", tmp_path)]
    assert len({*hashes}) == 3  # a result names one of them, though the claims are the same
    assert current("fake", [changed], tmp_path)["hash"] == hashes[2]


def test_first_seed_settings_and_data_are_of_the_design(tmp_path, one, monkeypatch):
    """And what an older registration did not write down is not asked of it."""
    opened = opened_of([one], tmp_path / "work")
    monkeypatch.setattr("alignkit.claims.registered.code_hash", lambda slug: "code")
    now = {"first seed": "0", "small.rows": "30"}
    monkeypatch.setattr("alignkit.claims.registered.decides",
                        lambda slug, data="": now | {"data": data})
    register("fake", [one], opened, folder=tmp_path, data="abc")
    there = registrations("fake", tmp_path)
    assert there[0]["decides"] == now | {"data": "abc"}
    assert current("fake", [one], tmp_path) and current("fake", [one], tmp_path, "abc")
    assert changed("fake", [one], there, "abd") == ["data (abc -> abd)"]
    assert current("fake", [one], tmp_path, "abd") is None
    now |= {"small.width": "8"}  # a setting that came later
    assert current("fake", [one], tmp_path)
    now["first seed"] = "300"
    assert changed("fake", [one], there) == ["first seed (0 -> 300)"]
    with pytest.raises(ValueError, match=r"with --reason \(first seed \(0 -> 300\)\)"):
        register("fake", [one], opened, folder=tmp_path)
    older = [{"hash": design_hash([one])}]
    assert changed("fake", [one], older, "abc") == []
    assert changed("fake", [replace(one, margin=0.03)], older) == ["the claims"]


def test_what_decides_is_read_from_the_claims_file():
    found = decides("one-map", "abc")
    assert (found["first seed"], found["data"]) == ("300", "abc")
    assert found["small.width"] == "64" and "small.budget" not in found
    assert decides("one-map.follow-up") == {} and decides("xbind.follow-up")["first seed"] == "200"


def test_no_figure_before_the_registration_nor_at_tiny(tmp_path, one, monkeypatch):
    opened = opened_of([one], tmp_path / "work")
    monkeypatch.setattr("alignkit.claims.registered.code_hash", lambda slug: "code")
    changed = replace(one, margin=0.03)
    before_it = [unseen("fake", [one], scale, tmp_path) for scale in ("tiny", "small", "gpu")]
    assert all("not shown" in said or "no figure is shown" in said for said in before_it)
    assert "alignkit register fake, commit it" in before_it[1]
    register("fake", [one], opened, folder=tmp_path)
    assert [bool(unseen("fake", [one], scale, tmp_path)) for scale in ("tiny", "small", "gpu")] == [
        True, False, False]
    assert unseen("fake", [changed], "small", tmp_path)
    # Papers of before the rule have results and no registration.
    assert not unseen("filip", [one], "small") and unseen("filip", [one], "tiny")


def test_nothing_is_measured_at_small_before_the_registration(monkeypatch, tmp_path, one):
    """Refused, with what to do; at tiny, and with results of before the rule, it runs."""
    ran = []
    monkeypatch.setattr(command, "_opened", lambda *_: (splits_of(0).train, [one], {}))
    monkeypatch.setattr(command, "run", lambda *_, **__: ran.append(1) or [])
    monkeypatch.setattr(command, "paper", lambda slug: None)
    for scale in ("small", "gpu"):
        with pytest.raises(ValueError, match="register fake, commit it.*--scale tiny"):
            command.reproduce("fake", scale)
    assert not ran
    with pytest.raises(ValueError, match="alignkit register minima"):  # of another design
        command.reproduce("minima")
    command.reproduce("fake", "tiny")
    command.reproduce("filip", say=lambda said: ran.append(said))
    assert ran == [1, "not registered: first run before the rule", 1]


@pytest.mark.parametrize("change", [
    {"margin": 0.03}, {"sentence": "Less is more."}, {"grid": GRID}, {"headline": False},
    {"budgets": {"more": {"steps": 5}}}, {"choose_by": "other"}, {"equivalence": True},
    {"margin_why": "another"}, {"units": 8}])
def test_what_a_design_is(one, change):
    assert design_hash([replace(one, **change)]) != design_hash([one])
    assert design_hash([claim(headline=True, margin=0.02)]) == design_hash([one])


def test_what_is_refused(tmp_path, one):
    opened = opened_of([one], tmp_path)

    def refused(claims, message, **change):
        with pytest.raises(ValueError, match=message):
            register("fake", claims, opened | change, folder=tmp_path)
        assert not registrations("fake", tmp_path)

    refused([replace(one, headline=False)], "one claim must be the headline, there are \\[\\]")
    refused([one, replace(one, name="b")], "there are \\['fake', 'b'\\]")
    refused([one, *(replace(one, name=str(i), headline=False) for i in range(6))], "7 claims")
    refused([one], "the training loss does not fall.*'more'",
            falls={"less": [True], "more": [False, False]})
    refused([one], "'less'.*chose an edge of the grid", edges=["less"])
    refused([one], "the condition of \\['fake'\\] is absent",
            pilot={"fake": {"present": False, "smallest_detectable": None}})
    refused([one], r"below what eight seeds can show: fake \(0.02 < 0.03\)",
            pilot={"fake": {"present": True, "smallest_detectable": 0.03}})


def test_what_needs_no_training_is_refused_before_any(monkeypatch, one):
    """Nobody waits minutes to hear that there is no headline."""
    rows = splits_of(0).train
    monkeypatch.setattr(command, "before", lambda *_: 1 / 0)
    for claims, message in (
            ([replace(one, headline=False)], "fake is not registered: one claim must be the head"),
            ([one, *(replace(one, name=str(i), headline=False) for i in range(6))], "7 claims")):
        rest = {"work": None, "jobs": 1, "remake": None}
        monkeypatch.setattr(command, "_opened", lambda *_, found=claims: (rows, found, rest))
        with pytest.raises(ValueError, match=message):
            command.write_down("fake")
    monkeypatch.setattr(command, "_opened", lambda *_: (rows, [one], rest))
    with pytest.raises(ValueError, match="minima is not registered: the design has changed"):
        command.write_down("minima")
    with pytest.raises(ZeroDivisionError):  # and what does need it is left to it
        command.write_down("fake")


def test_the_pilot_hides_a_baseline_that_is_another_claims_method(tmp_path):
    one = claim(headline=True, margin=0.02, noise=0.0, effect=0.2468)
    arms = {**one.arms, "most": arm(0.5)}
    other = replace(one, name="other", headline=False, arms=arms, baseline="more",
                    method="most", condition=[Condition("room", lambda a: 0.7777, 0.5, 1.0),
                                              Condition("less of it", lambda a: 0.1, 0.5, 1.0)])
    said = []
    opened = before(Work([one, other], tmp_path), [one, other], said.append)
    first, second = (text for text in said if text.startswith("pilot "))
    assert "rows = 14, wanted" in first and first.endswith(", margin 0.02")
    assert "room not shown (more is another claim's method), wanted in [0.5, 1.0]" in second
    assert "less of it not shown" in second and "ABSENT" in second and "0.7" not in second
    assert opened["pilot"]["other"]["conditions"][0]["value"] == pytest.approx(0.7777)


def test_whether_the_loss_falls_is_asked_of_every_arm_and_point(tmp_path):
    opened = opened_of([claim(grid=GRID)], tmp_path)
    assert opened["falls"] == {"less": [True] * 3, "more": [True] * 3}

    def curve(*losses):
        return History(steps=[{"loss": loss} for loss in losses])

    assert _falls(curve(3.0, 2.0)) and not _falls(curve(2.0, 3.0))
    assert _falls(curve(*[5.0] * 2, *[9.0] * 16, *[4.0] * 2))  # a tenth at either end
    assert _falls(curve()) is None


def test_before_the_registration_nobody_is_told_a_figure_of_the_method(tmp_path):
    """Tuning: the choice and whether losses fall; the pilot: of the baseline alone."""
    one = claim(noise=0.0, effect=0.2468, grid=GRID,
                validate=lambda method, splits: {"score": 0.4321 + float(method.effect)})
    said = []
    before(Work([one], tmp_path), [one], said.append)
    assert "the training loss of every arm falls" in said
    told = " ".join(said)
    assert "less" in told and "pilot fake: rows = 14" in told
    for figure in ("0.43", "0.67", "0.68", "0.74", "0.75"):  # scores, and what more measures
        assert figure not in told, (figure, told)


def test_a_run_takes_the_registered_tuning_and_pilot(tmp_path, one):
    free = replace(one, grid=GRID, validate=middle)
    opened = opened_of([free], tmp_path / "work") | {"hash": "registered", "tuned": {
        "less": {"lr": 1e-3}, "more": {"lr": 1e-3}}}
    (result,) = run("fake", [free], splits_of(0).train, "tiny", seeds=range(5),
                    work=tmp_path / "run", registration=opened, say=lambda _: None)
    assert result.registration == "registered"
    assert result.settings["tuned"] == opened["tuned"]
    assert not list((tmp_path / "run").glob("tuning*"))
    assert result_of(tmp_path / "free", free).registration == ""


def test_kept_work_is_of_all_code_that_decides_and_of_no_other(tmp_path, monkeypatch):
    files = {"claims/__init__.py": "", "claims/a.py": "from alignkit.parts import x\n",
             "claims/b.py": "", "claims/work.py": "from .runs import y\n", "claims/runs.py": "",
             "parts/__init__.py": "from .x import z\n", "parts/x.py": "z = 1\n", "cli.py": ""}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(hashes, "PACKAGE", tmp_path)
    first = values_hash("a")
    for name in ("cli.py", "claims/b.py"):
        (tmp_path / name).write_text("changed = 1\n")
        assert values_hash("a") == first
    (tmp_path / "parts/x.py").write_text('"""Words."""\nz = 1  # more words\n')
    assert values_hash("a") == first
    for name in ("claims/runs.py", "parts/x.py", "claims/a.py"):
        before_it = values_hash("a")
        (tmp_path / name).write_text(files[name] + "changed = 1\n")
        assert values_hash("a") != before_it
