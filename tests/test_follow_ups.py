"""Follow-ups of headlines: registered alone, on seeds of their own, and shown beside the
headline."""

import math
from dataclasses import replace

import pytest
import torch
from fake_claims import claim, result_of, two_steps
from history import committed

from alignkit.claims import (
    FOLLOW_UP, Runs, code_hash, followed, measured, paper, register, slugs, stored,
)  # fmt: skip
from alignkit.claims import registered as registered_module
from alignkit.claims.follow_ups import FIRST
from alignkit.claims.registered import design_hash, registrations
from alignkit.claims.runner import before
from alignkit.claims.scoreboard import of_paper, scoreboard, summary
from alignkit.claims.work import Work
from alignkit.course import study as study_module
from alignkit.course.card import here
from alignkit.course.study import Study
from alignkit.data import Pairs

WHEN = "Where there is more"


def opened_of(claims, folder) -> dict:
    return before(Work(claims, folder), claims, say=lambda _: None)


@pytest.fixture
def two(tmp_path):
    """A headline that did not hold, and its follow-up that did."""
    good = replace(result_of(tmp_path), headline=False, claim="after", when=WHEN)
    bad = replace(good, claim="first", headline=True, when="", verdict="no gain",
                  registration="first's")
    for result in (bad, good):
        result.save(tmp_path / "results")
    return bad, good


# The rules ------------------------------------------------------------------------------
def test_it_is_no_headline():
    with pytest.raises(ValueError, match="follows a headline and is none"):
        claim(headline=True, when=WHEN)


def test_it_is_registered_alone_and_names_what_it_follows(tmp_path, two, monkeypatch):
    bad, _ = two
    main, then = claim(headline=True, margin=0.02), claim(name="after", when=WHEN, margin=0.02)
    opened = opened_of([then], tmp_path / "work")
    monkeypatch.setattr(registered_module, "code_hash", lambda name: name)
    asked = []
    monkeypatch.setattr(registered_module, "headline", lambda slug: asked.append(slug) or bad)
    register("fake", [main], opened_of([main], tmp_path / "main"), folder=tmp_path)
    alone = registrations("fake", tmp_path)
    path = register("fake.follow-up", [then], opened, folder=tmp_path)
    assert path.name == "fake.follow-up.json" and {*asked} == {"fake"}
    assert registrations("fake", tmp_path) == alone
    (found,) = registrations("fake.follow-up", tmp_path)
    assert found["follows"] == {"claim": "first", "says": bad.says(), "seeds": bad.seeds,
                                "registration": "first's"}
    assert found["design"][0]["when"] == WHEN and found["code"] == "fake.follow-up"
    assert found["hash"] == design_hash([then], found["decides"])
    assert design_hash([then]) != design_hash([replace(then, when="Else")])

    def refused(claims, message):
        with pytest.raises(ValueError, match=message):
            register("other.follow-up", claims, opened, folder=tmp_path)

    refused([main], "a follow-up is one claim that says `when`")
    refused([then, replace(then, name="b")], "a follow-up is one claim that says `when`")
    monkeypatch.setattr(registered_module, "headline", lambda slug: replace(bad, verdict="holds"))
    refused([then], "the headline holds: name with --reason the reason, another than")
    register("other.follow-up", [then], opened, "it held for its length", folder=tmp_path)
    monkeypatch.setattr(registered_module, "headline", lambda slug: None)
    refused([then], "no published headline to follow")


def test_an_unknown_one_is_told_which_there_are():
    with pytest.raises(ValueError, match="there is no measuring.follow-up"):
        paper("measuring.follow-up")


def test_its_file_is_in_its_own_hash_alone(tmp_path, monkeypatch):
    from alignkit.claims import hashes

    monkeypatch.setattr(hashes, "PACKAGE", tmp_path)
    for folder in ("methods", "claims", "claims/follow_ups"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a_b.py").write_text("x = 1\n")
    papers, own = code_hash("a-b"), code_hash("a-b.follow-up")
    assert papers != own
    (tmp_path / "claims/follow_ups/a_b.py").write_text("x = 2\n")
    assert code_hash("a-b") == papers and code_hash("a-b.follow-up") != own
    own = code_hash("a-b.follow-up")
    (tmp_path / "claims/a_b.py").write_text("x = 2\n")
    assert code_hash("a-b") != papers and code_hash("a-b.follow-up") != own


# What shows it --------------------------------------------------------------------------
def test_it_stands_beside_its_headline(tmp_path, two, monkeypatch, capsys):
    bad, good = two
    folder, i = tmp_path / "results", good.interval
    shown = f"{i['mean']:+.3f} [{i['low']:+.3f}, {i['high']:+.3f}]"
    assert [r.claim for r in stored("fake", folder)] == ["after", "first"]
    assert [r.claim for r in measured("fake", folder)] == ["first"]
    assert [r.claim for r in measured("fake.follow-up", folder)] == ["after"]
    assert f"| **no gain**; where there is more: **holds** {shown} |" in scoreboard(folder)
    table = summary(folder, {"fake": "a/b.ipynb"})
    assert "[fake](a/b.ipynb) (then holds)" in table.replace("*", "")
    assert "| **Follow-up: where there is more.** More is more." in scoreboard(folder)
    first, second = of_paper("fake", folder).splitlines()
    assert first.startswith("- **No gain.** *Headline.* More is more.")
    assert second.startswith("- **Holds.** *Follow-up: where there is more.* More is more.")
    assert here(bad, good).endswith(f"margin 0.001. {WHEN}: **holds**, {shown}.")
    assert f"fake · after (follow-up: {WHEN}): " in str(good) and "(headline)" in str(bad)

    study = Study.__new__(Study)
    study.slug, study.claims = "fake", {"first": claim(name="first")}
    study.published = {r.claim: r for r in (good, bad)}
    monkeypatch.setattr(study_module.plots, "show", lambda figure, alt: print(alt))
    study.verdicts()
    out = capsys.readouterr().out
    assert "after follows the headline, on seeds from 0. Where there is more: More is" in out
    assert "points, more minus less" in " ".join(out.split()) and "after holds" in out
    # Whose statistic is another: the figures tell which way it subtracts, or that it does not.
    for times, said in ((-1, "less minus more"), (0.5, "a statistic of the arms")):
        other = replace(good, differences=[times * d for d in good.differences])
        study.published = {"after": other}
        study.verdicts("after")
        assert f"points, {said}; margin" in " ".join(capsys.readouterr().out.split())
    study.published = {r.claim: r for r in (good, bad)}
    study.verdicts("first")
    assert "after" not in capsys.readouterr().out


# The published ones -----------------------------------------------------------------------
@pytest.mark.parametrize("name", followed())
def test_it_was_made_for_a_result_that_was_there(name):
    """Beside six claims at most, of a headline that was published when it was registered, and
    on seeds that the headline has not seen."""
    slug = name.removesuffix(FOLLOW_UP)
    assert slug in slugs() and paper(name).FIRST == FIRST
    there = registrations(name)
    assert there, f"alignkit register {name}"
    for one in there:
        follows = one["follows"]
        order = [committed(f"alignkit/claims/{path}", text) for path, text in (
            (f"results/{slug}.{follows['claim']}.json", follows["registration"]),
            (f"registered/{name}.json", one["hash"]))]
        assert None in order or order[0] < order[1], f"{name} was registered before the headline"
    for r in measured(name):
        assert r.seeds[0] == FIRST and not set(r.seeds) & set(there[-1]["follows"]["seeds"])


@pytest.mark.parametrize("name", followed())
@pytest.mark.usefixtures("first_step")
@pytest.mark.slow
def test_it_can_be_measured(name):
    """All arms after two steps: figures, null, conditions and the figures for choosing."""
    (one,) = map(two_steps, paper(name).claims(paper(name).data("tiny"), "tiny"))
    runs = Runs([one])
    for null in (False, True):
        assert math.isfinite(one.difference(runs.figures(one, FIRST, null)))
    base = runs.trained(one, FIRST)[one.baseline]
    assert all(math.isfinite(c.measure(base)) for c in one.conditions)
    if len(one.grid) > 1:
        assert math.isfinite(one.validate(base.method, base.splits)[one.choose_by])


# What they change ------------------------------------------------------------------------
def test_whitened_weighs_directions_by_their_correlations():
    """Without a ridge that is what least squares finds."""
    from alignkit.claims.follow_ups.platos_cave_3d import Whitened
    from alignkit.methods.platos_cave_3d import PlatosCave3d, PlatosCave3dSettings

    z, noise = torch.randn(40, 6), torch.randn(2, 40, 9)
    rows = Pairs.from_features({"points_features": z @ torch.randn(6, 9) + noise[0],
                                "text_features": z @ torch.randn(6, 7) + noise[1, :, :7]})
    settings = PlatosCave3dSettings(k=7, ridge=0.0)
    every, paper_s = (kind(settings, rows) for kind in (Whitened, PlatosCave3d))
    for method in (every, paper_s):
        method.solve(rows)
    torch.testing.assert_close(every.R, paper_s.R)
    assert every.R.diagonal().diff().max() < 0 and torch.equal(every.R, every.R.diag().diag())


def test_the_slow_score_moves_a_tenth_as_far():
    from alignkit.claims.follow_ups.gssf import SlowGssf
    from alignkit.methods.gssf import Gssf, GssfSettings

    rows = Pairs.from_features({f"{side}_features": torch.randn(8, 5)
                                for side in ("image", "text")})
    slow, usual = (kind(GssfSettings(width=8, block=4), rows) for kind in (SlowGssf, Gssf))
    assert torch.equal(slow.matrix(), torch.eye(8))
    with torch.no_grad():
        for method, step in ((slow, 1.0), (usual, 0.1)):
            method.change += step
            method.blocks -= step
    torch.testing.assert_close(slow.matrix(), usual.matrix())
