"""Results on disk, and that what is published is of this code."""

import dataclasses
import json
from pathlib import Path

import pytest
from fake_claims import claim, result_of

from alignkit.claims import (
    Reported, code_hash, load, paper, scoreboard, slugs, stored, verdicts,
)  # fmt: skip
from alignkit.stats import t_interval

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
    text = str(result_of(tmp_path))
    for part in ("fake · fake: HOLDS", "More is more.", "less 0.", ", more 0.", "+0.1",
                 "5 paired seeds", "no signal", ", passed (inside 0 ± 0.05)",
                 "rows: 14, present", "my pairs (user), scale tiny"):
        assert part in text, part
    assert all(len(line) < 160 for line in text.splitlines())


def test_the_scoreboard_is_a_table_of_the_results(tmp_path):
    good = result_of(tmp_path / "work")
    bad = dataclasses.replace(good, claim="worse", verdict="opposite", sentence="Less is more.",
                              null={**good.null, "passed": False})
    assert len(scoreboard(tmp_path / "empty").splitlines()) == 2
    for result in (good, bad):
        result.save(tmp_path)
    lines = scoreboard(tmp_path).splitlines()
    assert len(lines) == 4 and len({line.count("|") for line in lines}) == 1
    assert "More is more." in lines[2] and "passed | **holds** |" in lines[2]
    assert "Less is more." in lines[3] and "not passed | **opposite** |" in lines[3]
    i = good.interval
    assert f"{i['mean']:+.3f} [{i['low']:+.3f}, {i['high']:+.3f}] points | 5 |" in lines[2]
    dataclasses.replace(good, claim="also").save(tmp_path)
    short = verdicts(tmp_path).splitlines()
    assert short[2:] == [f"| {good.slug} | also, {good.claim} | worse* |  |"]
    dataclasses.replace(good, pilot={**good.pilot, "present": False}).save(tmp_path)
    assert f"also, {good.claim}† |" in verdicts(tmp_path)
    assert "**holds** (its condition is absent: rows 14, wanted in [10, 20]) |" in (
        scoreboard(tmp_path))


# What is published --------------------------------------------------------------------
def test_slugs():
    assert slugs() and all(paper(slug).claims for slug in slugs())
    with pytest.raises(ValueError, match=f"slug must be one of {slugs()[0]}.*got 'nothing'"):
        paper("nothing")


@pytest.mark.parametrize("slug", slugs())
def test_published_results_are_of_this_code(slug):
    results = stored(slug)
    assert results, f"no result of {slug}: run `alignkit reproduce {slug}` and publish it"
    stale = [r.claim for r in results if r.code != code_hash(slug)]
    assert not stale, (f"{slug}: the method or claim file changed after {stale} were "
                       f"measured; run `alignkit reproduce {slug}` again")
    for r in results:
        assert r.scale == "small" and len(set(r.seeds)) == len(r.differences) >= 8
        assert r.interval == t_interval(r.differences)._asdict()


def test_no_result_without_a_paper():
    folder = ROOT / "alignkit" / "claims" / "results"
    names = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    assert all(name.endswith(".json") and name.split(".")[0] in slugs() for name in names)


def test_code_hash_is_of_the_code_in_two_files(tmp_path, monkeypatch):
    from alignkit.claims import results
    for part in ("methods", "claims"):
        (tmp_path / part).mkdir()
    monkeypatch.setattr(results, "PACKAGE", tmp_path)
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
    assert code_hash("a-b") == before


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


def test_words_may_be_mended_without_a_new_run():
    from alignkit.claims.results import _code

    assert _code(CODE) == _code(MENDED) == CODE.strip()
    for other in (CODE.replace("2", "3"), CODE.replace("no comment", "none"),
                  CODE.replace("        return", "    return").replace("if x:", "if x: x"),
                  CODE + '"""not a docstring"""'):
        assert _code(other) != _code(CODE)


@pytest.mark.parametrize("page, name, made", [
    ("README.md", "verdicts", verdicts), ("notebooks/SCOREBOARD.md", "scoreboard", scoreboard)])
def test_the_pages_show_the_verdicts(page, name, made):
    text = (ROOT / page).read_text("utf-8")
    assert text.count(f"<!-- {name} -->") == text.count(f"<!-- /{name} -->") == 1
    shown = text.split(f"<!-- {name} -->")[1].split(f"<!-- /{name} -->")[0]
    assert shown.strip() == made(), "run: alignkit scoreboard --write"
