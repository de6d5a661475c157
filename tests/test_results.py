"""Results on disk, and that what is published is of this code."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
from fake_claims import claim, result_of
from history import committed

from alignkit.claims import (
    FOLLOW_UP, Reported, code_hash, followed, headline, load, measured, paper, scoreboard,
    slugs, stored, summary,
)  # fmt: skip
from alignkit.claims.hashes import _code, files_of
from alignkit.claims.registered import (
    BEFORE_THE_RULE, MOST_CLAIMS, design, registrations,
)  # fmt: skip
from alignkit.claims.results import is_stale
from alignkit.claims.scoreboard import by_chance, p_of
from alignkit.course.guide import verdict_pages
from alignkit.stats import Interval, equivalent, second_look, t_interval, verdict

ROOT = Path(__file__).parents[1]


# Results on disk ----------------------------------------------------------------------
def test_a_result_is_read_back_as_it_was(tmp_path):
    paper_says = Reported(0.1, 0.2, "table 3")
    result = result_of(tmp_path / "work", claim(paper=paper_says))
    path = result.save(tmp_path / "new" / "folder")
    assert path.name == "fake.fake.json"
    again = load(path)
    assert json.dumps(dataclasses.asdict(again)) == json.dumps(dataclasses.asdict(result))
    assert result.paper == paper_says._asdict()
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert stored(folder=path.parent) == stored("fake", path.parent) == [again]
    assert stored("fak", path.parent) == stored("other", path.parent) == []
    raw = json.loads(path.read_text("utf-8"))
    for broken in ({**raw, "extra": 1}, {k: v for k, v in raw.items() if k != "null"}):
        path.write_text(json.dumps(broken), "utf-8")
        with pytest.raises(ValueError, match="extra|null"):
            load(path)


def test_a_result_in_words(tmp_path):
    result = dataclasses.replace(result_of(tmp_path), scale="small")
    text = str(result)
    for part in ("fake · fake: HOLDS", "margin 0.001: a test", "corrected for splits", "More is more.", "less 0.", ", more 0.", "+0.1",
                 "5 paired seeds", "no signal", ", passed (inside 0 ± 0.05)",
                 "rows: 14, present", "my pairs (user), scale small", "design      not registered"):
        assert part in text, part
    tiny = str(dataclasses.replace(result, scale="tiny"))
    assert "no verdict is read off scale tiny; figures are not shown" in tiny
    assert "less 2 steps, more 2 steps; 5 paired seeds" in tiny and "my pairs (user)" in tiny
    assert "HOLDS" not in tiny and not re.search(r"\d\.\d", tiny)
    assert all(len(line) < 160 for line in text.splitlines())


def test_the_scoreboard(tmp_path):
    assert "No claim is published" in scoreboard(tmp_path / "empty")
    good = result_of(tmp_path / "work", headline=True, paper=Reported(0.1, 0.25, "table 3"))
    bad = dataclasses.replace(good, claim="worse", verdict="opposite", headline=False,
                              sentence="Less is more.", null={**good.null, "passed": False})
    for result in (good, bad):
        result.save(tmp_path)
    lines = scoreboard(tmp_path, {"fake": "[here](x.ipynb)"}).splitlines()
    i = good.interval
    shown = f"{i['mean']:+.3f} [{i['low']:+.3f}, {i['high']:+.3f}]"
    assert (f"| fake | More is more. | **holds** | {shown} | 5 | 0.1 → 0.25 (table 3) | yes | "
            "[here](x.ipynb) |") in lines
    assert (f"| fake | Less is more. | my pairs (user) | {shown} points | 0.001 | 5 | "
            "not passed | **opposite** (null not passed) |") in lines
    assert "| headlines | 1 | 0 | 0 | 0 | 0 | 1 |" in lines
    assert "| all claims | 1 | 0 | 0 | 1 | 0 | 2 |" in lines
    table = summary(tmp_path, {"fake": "notebooks/1-a/01-fake.ipynb", "other": "x/2-b/y.ipynb"})
    assert table.splitlines()[2:] == [
        "| 1-a | **holds** [fake](notebooks/1-a/01-fake.ipynb) |",
        "| 1 headlines | **holds** 1 · **some gain** 0 · **no gain** 0 · **opposite** 0 · "
        "**not resolved** 0 |",
        "| 2 claims | **holds** 1 · **some gain** 0 · **no gain** 0 · **opposite** 1 · "
        "**not resolved** 0 |"]
    condition = {**good.pilot["conditions"][0], "present": False}
    dataclasses.replace(good, pilot={**good.pilot, "present": False,
                                     "conditions": [condition]}).save(tmp_path)
    assert "**holds** (condition absent; rows 14, wanted in [10, 20])" in scoreboard(tmp_path)
    assert "| **holds** *[fake](a/b.ipynb)* |" in summary(tmp_path, {"fake": "a/b.ipynb"})


def test_what_chance_gives(tmp_path):
    """Two strong claims stay after any correction; a weak one does not after Holm's."""
    strong = result_of(tmp_path / "work", headline=True)
    weak = [0.5, 0.1, 0.6, 0.2, 0.7]  # its interval is above 0.001, by a little
    assert t_interval(weak).low > 0.001 and 0.005 < p_of(
        dataclasses.replace(strong, differences=weak)) < 0.02
    for name, values, claimed in (("a", strong.differences, strong.verdict),
                                  ("b", weak, "holds"), ("c", [0.1, -0.1, 0, 0.2, -0.2], "no gain"),
                                  ("d", [0.1, -0.1, 0, 0.2, -0.2], "no gain")):
        dataclasses.replace(strong, claim=name, differences=values, verdict=claimed).save(tmp_path)
    text = by_chance(tmp_path)
    assert text.startswith("Of 4 claims 2 hold. ") and "0.1 would hold by chance" in text
    assert "1 of the 2 stay after Holm's" in text or "2 of the 2 stay after Holm's" in text


# What is published --------------------------------------------------------------------
def test_slugs():
    assert slugs() and all(paper(slug).claims for slug in slugs())
    with pytest.raises(ValueError, match=f"slug must be one of {slugs()[0]}.*got 'nothing'"):
        paper("nothing")


NAMES = [*slugs(), *followed()]


@pytest.mark.parametrize("slug", NAMES)
def test_published_results_are_of_this_code(slug):
    results, claims_file = measured(slug), files_of(slug)[-1].relative_to(ROOT)
    if "\nDraft: " in (paper(slug).__doc__ or ""):
        assert not results, f"{claims_file}: published, so delete its line 'Draft: …'"
        pytest.skip(f"{slug} is a draft: no result is published yet")
    assert results, (f"no result of {slug}: alignkit register {slug}, commit, alignkit "
                     f"reproduce {slug}, alignkit publish {slug}; or say in the docstring of "
                     f"{claims_file} that it is a draft, in a line 'Draft: …'")
    stale = [r.claim for r in results if is_stale(r, slug)]
    assert not stale, (f"{slug}: the method or claim file changed after {stale} were "
                       f"measured; run `alignkit reproduce {slug}` again")
    for r in results:
        assert r.scale == "small" and len(set(r.seeds)) == len(r.differences) >= 8
        check_judgement(r)
    headlines = [r.claim for r in results if r.headline]
    if slug.endswith(FOLLOW_UP):
        assert len(results) == 1 and not headlines
    elif not hasattr(paper(slug), "table"):  # a comparison has a claim for each method
        assert len(headlines) == 1 and headline(slug).claim == headlines[0]
        assert len(results) <= MOST_CLAIMS


def check_judgement(r):
    """What follows from the stored differences, computed again."""
    look = r.looks[-1]
    found = (t_interval(r.differences, look["level"]) if len(r.looks) == 1
             else second_look(r.differences, r.looks[0]["seeds"], look["level"]))
    assert r.interval == look["interval"] == found._asdict()
    assert look["level"] == (0.975 if r.headline else 0.95)
    assert r.verdict == look["verdict"] == verdict(found, r.margin, r.equivalence)
    assert r.equivalent == equivalent(found, r.margin)
    carried = r.redrawn or verdict(Interval(**r.corrected), r.margin, r.equivalence)
    assert r.carries_over == (r.redrawn or carried == r.verdict)


@pytest.mark.parametrize("slug", NAMES)
def test_results_name_their_registration(slug):
    """Of the newest design, and committed after it where the history is there."""
    there = registrations(slug)
    for r in measured(slug):
        if r.registration == BEFORE_THE_RULE:
            assert not there, f"{slug}.{r.claim} was run before the registration: run it again"
            continue
        assert there and r.registration == there[-1]["hash"], (
            f"{slug}.{r.claim} is not of the newest registration: run it again")
        design = {one["claim"]: one for one in there[-1]["design"]}[r.claim]
        assert (design["margin"], design["headline"], design["sentence"]) == (
            r.margin, r.headline, r.sentence)
        order = [committed(f"alignkit/claims/{path}", r.registration)
                 for path in (f"registered/{slug}.json", f"results/{r.slug}.{r.claim}.json")]
        assert None in order or order[0] < order[1], (
            f"{slug}.{r.claim} was committed with its registration or before it")


def test_no_result_without_a_paper():
    folder = ROOT / "alignkit" / "claims" / "results"
    names = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    assert all(name.endswith(".json") and name.split(".")[0] in slugs() for name in names)


def test_code_hash_is_of_the_papers_files_and_of_what_it_compares(tmp_path, monkeypatch):
    from alignkit.claims import hashes
    for part in ("methods", "claims"):
        (tmp_path / part).mkdir()
    monkeypatch.setattr(hashes, "PACKAGE", tmp_path)
    method, claims = tmp_path / "methods" / "a_b.py", tmp_path / "claims" / "a_b.py"
    method.write_bytes(b"x = 1\n"), claims.write_bytes(b"y = 1\n")
    (tmp_path / "claims" / "other.py").write_bytes(b"z = 1\n")
    before = code_hash("a-b")
    method.write_bytes(b"x = 1\r\n")
    assert code_hash("a-b") == before  # a Windows checkout is not stale
    for path in (method, claims):
        path.write_bytes(path.read_bytes() + b"w = 1\n")
        assert code_hash("a-b") != before
        before = code_hash("a-b")
    (tmp_path / "claims" / "other.py").write_bytes(b"z = 2\n")
    (tmp_path / "methods" / "other.py").write_bytes(b"z = 1\n")
    assert code_hash("a-b") == before
    claims.write_bytes(b"from alignkit.methods.other import z\n")
    before = code_hash("a-b")
    (tmp_path / "methods" / "other.py").write_bytes(b"z = 2\n")
    assert code_hash("a-b") != before


CODE = '''
def half(x):
    if x:
        return "# no comment"
    return x / 2
'''
MENDED = '''
"""A card: x is halved."""  # new words

def half(x):  # why
    """Half of x,
    nothing else."""

    if x:
        return "# no comment"   
    # why not
    return x / 2
'''


def test_what_a_statistic_subtracts_is_words_too():
    """It changes neither the code's hash nor that of the registered design."""
    code = "claim(\n    1,\n    statistic=min)"
    said = code.replace("    stat", "    subtracts='ä '\n      'line',\n    stat")
    assert _code(said) == _code(code)
    assert _code(said.replace("'line',", "'line', units=3,")) != _code(code)
    assert _code(said.replace("subtracts", "sentence")) != _code(code)
    own = claim(statistic=min, subtracts="the least")
    assert design([own]) == design([dataclasses.replace(own, subtracts="the least of both")])


def test_words_may_be_mended_without_a_new_run():
    assert _code(CODE) == _code(MENDED) == CODE.strip()
    for other in (CODE.replace("2", "3"), CODE.replace("no comment", "none"),
                  CODE.replace("        return", "    return").replace("if x:", "if x: x"),
                  CODE + '"""not a docstring"""'):
        assert _code(other) != _code(CODE)


def test_the_scale_for_tests_may_be_changed_without_a_new_run(tmp_path):
    """No published result is of tiny: it is in the hash of kept work alone."""
    code = 'SCALES = {\n    "tiny": S(n=3,\n  m=2),\n    "small": S(),\n}\n'
    other = code.replace("m=2", "m=1")
    assert _code(code, tiny=False) == _code(other, tiny=False) != _code(code) != _code(other)
    for change in (("S()", "S(1)"), ("SCALES", "SIZES"), ("tiny", "gpu"), ("m=2),", "m=2), 1: 0,")):
        assert _code(code.replace(*change), tiny=False) != _code(code, tiny=False)
    one = result_of(tmp_path)
    codes = [code_hash("minima"), code_hash("minima", tiny=True), "other"]
    assert codes[0] != codes[1]
    assert [is_stale(dataclasses.replace(one, code=c), "minima") for c in codes] == [
        False, False, True]


def test_the_pages_show_the_verdicts():
    for page, blocks in verdict_pages().items():
        text = page.read_text("utf-8")
        for name, made in blocks.items():
            assert text.count(f"<!-- {name} -->") == text.count(f"<!-- /{name} -->") == 1
            shown = text.split(f"<!-- {name} -->")[1].split(f"<!-- /{name} -->")[0]
            assert shown.strip() == made, f"{page.name}: run alignkit scoreboard --write"
