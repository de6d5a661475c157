"""`alignkit notebook`, the card's line from the result file, and a paper's claims in its
notebook."""

import shutil
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
from fake_claims import claim, data, result_of
from nbformat import v4

from alignkit import claims
from alignkit.claims.registered import unseen
from alignkit.course import authoring, card, study
from alignkit.course.notebook import _write, build, read, script

SOURCE = """# %% [markdown]
# # A title
#
# **The paper says.** One.
#
# **Here.** It holds.

# %% tags=["parameters"]
seeds = [0]

# %%
print(len(seeds))
"""


# The card -----------------------------------------------------------------------------
def result(**changes):
    said = {"sentence": "More is more.", "headline": True, "when": "", "verdict": "holds",
            "figure": "hit@10", "margin": 0.02,
            "interval": {"mean": 0.0312, "low": -0.001, "high": 0.0634, "n": 8},
            "says": lambda: "not resolved, null not passed"}
    return SimpleNamespace(**{**said, **changes})


def test_the_line_says_sentence_verdict_doubts_and_interval():
    assert card.here(result()) == (
        "**Here.** More is more. **Not resolved, null not passed**: hit@10 +0.031 "
        "[-0.001, +0.063], 8 paired seeds, margin 0.02.")
    assert card.here(None) == card.here_of("no-such-paper") == "**Here.** Not run yet."


def test_a_comparison_has_its_verdicts_counted(monkeypatch):
    monkeypatch.setattr(claims, "slugs", lambda: ["all"])
    some = [result(headline=False, verdict=v) for v in ("no gain", "holds", "no gain")]
    monkeypatch.setattr(claims, "stored", lambda slug: some)
    assert card.here_of("all") == "**Here.** 3 claims: no gain 2, holds 1."


def test_only_the_line_is_brought_up_to_date(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "slugs", lambda: ["slug"])
    monkeypatch.setattr(claims, "stored", lambda slug: [result()])
    (tmp_path / "s.py").write_text(SOURCE, "utf-8")
    path = build(tmp_path / "s.py", tmp_path / "01-slug.ipynb")
    assert card.refresh(path) and not card.refresh(path)
    script(path, tmp_path / "back.py")
    new, old = (p.read_text("utf-8").splitlines() for p in (tmp_path / "back.py",
                                                          tmp_path / "s.py"))
    assert [i for i, (a, b) in enumerate(zip(new, old)) if a != b] == [5]
    assert new[5] == "# " + card.here(result())
    assert card.with_here("# T\n\nno line", "slug") == "# T\n\nno line"
    assert card.with_here(SOURCE, "slug").splitlines()[5] == new[5]


# Notebook and script ------------------------------------------------------------------
@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A course of one notebook without a script; executing is copying."""
    (tmp_path / "1-a").mkdir()
    (tmp_path / "s.py").write_text(SOURCE, "utf-8")
    build(tmp_path / "s.py", tmp_path / "1-a" / "01-slug.ipynb")
    monkeypatch.setattr(authoring, "execute",
                        lambda path, out, cwd: shutil.copyfile(path, out))
    return tmp_path


def edit(path, old, new):
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new), "utf-8")


def test_edits_go_from_the_side_that_was_edited_to_the_other(folder, capsys):
    path = folder / "1-a" / "01-slug.ipynb"
    source = path.with_suffix(".py")

    def last():
        problems = authoring.notebook("slug", folder=folder)
        assert any("no section 'Play'" in p for p in problems)
        return capsys.readouterr().out.partition(";")[0]

    assert last() == "script written from 01-slug.ipynb"
    assert "**Here.** Not run yet." in read(path).cells[0].source
    assert last() == "notebook and script agree"
    edit(source, "len(seeds)", "len(seeds) + 1")
    assert last() == "built from 01-slug.py"
    assert read(path).cells[2].source == "print(len(seeds) + 1)"
    edit(path, "len(seeds) + 1", "len(seeds) + 2")
    edit(path, "Not run yet", "It holds")  # the result file's line is nobody's edit
    assert last() == "the edits in 01-slug.ipynb taken into the script"
    assert "print(len(seeds) + 2)" in source.read_text("utf-8")
    path.unlink()
    assert last() == "built from 01-slug.py"


def test_where_both_were_edited_one_must_be_chosen(folder, capsys):
    path = folder / "1-a" / "01-slug.ipynb"
    source = path.with_suffix(".py")
    authoring.notebook("slug", folder=folder)
    for keep, wanted in (("notebook", 7), ("script", 8)):
        edit(path, "(seeds)", "(seeds) + 7 ")
        edit(source, "(seeds)", "(seeds) + 8 ")
        before = path.read_bytes(), source.read_bytes()
        with pytest.raises(ValueError, match="both edited.*--keep notebook"):
            authoring.notebook("slug", folder=folder)
        assert (path.read_bytes(), source.read_bytes()) == before
        authoring.notebook("slug", keep, folder=folder)
        assert f"+ {wanted}" in read(path).cells[2].source
        assert f"+ {wanted}" in source.read_text("utf-8")


@pytest.fixture
def ran(folder, monkeypatch):
    """Builds the notebook; how often it was executed by then, and what its cells print."""
    path, runs = folder / "1-a" / "01-slug.ipynb", []

    def execute(path, out, cwd):
        runs.append(path)
        notebook = read(path)
        for n, cell in enumerate((c for c in notebook.cells if c.cell_type == "code"), 1):
            cell.execution_count = n
            cell.outputs = [v4.new_output("stream", text=f"run {len(runs)}, cell {n}")]
        return _write(notebook, out)

    def built(**options):
        problems = authoring.notebook("slug", folder=folder, **options)
        assert any("no section 'Play'" in p for p in problems)  # the rules are always checked
        return len(runs), [c.outputs[0].text for c in read(path).cells if "outputs" in c]

    monkeypatch.setattr(authoring, "execute", execute)
    return built


def test_texts_are_taken_in_without_a_run(folder, ran, capsys):
    path = folder / "1-a" / "01-slug.ipynb"
    source, first = path.with_suffix(".py"), (1, ["run 1, cell 1", "run 1, cell 2"])
    assert ran() == first
    edit(source, "# A title", "# Another title")
    edit(source, "# %%\nprint", "# %% [markdown]\n# A new cell.\n\n# %%\nprint")
    capsys.readouterr()
    assert ran() == first
    said = capsys.readouterr().out
    assert "outputs are kept" in said.splitlines()[0] and "running it" not in said
    assert [c.source for c in read(path).cells][::2] == [
        "# Another title\n\n**The paper says.** One.\n\n**Here.** Not run yet.", "A new cell."]
    edit(path, "A new cell", "A newer cell")  # by JupyterLab
    assert ran() == first and "A newer cell" in source.read_text("utf-8")
    assert ran(run=True) == (2, ["run 2, cell 1", "run 2, cell 2"])


def test_whatever_outputs_come_from_is_run(folder, ran, monkeypatch):
    path = folder / "1-a" / "01-slug.ipynb"
    source = path.with_suffix(".py")
    ran()
    edit(source, "len(seeds)", "len(seeds) + 1")
    assert ran()[0] == 2
    edit(source, "seeds = [0]", "seeds = [1]")  # a parameter
    assert ran()[0] == 3
    edit(path, "len(seeds) + 1", "len(seeds) + 2")  # in JupyterLab, and not run there
    assert ran()[0] == 4
    edit(path, '"execution_count": 2', '"execution_count": 9')  # run there out of order
    assert ran()[0] == 5
    edit(path, "len(seeds) + 2", "len(seeds) + 3")  # run there in order, and dropped
    assert ran(keep="script")[0] == 6
    monkeypatch.setattr(authoring, "code_hash", lambda slug: "new")  # method or claims
    assert ran()[0] == 7
    found = SimpleNamespace(verdict="holds", code="old")
    monkeypatch.setattr(authoring, "stored", lambda slug: [found])
    assert ran()[0] == 8
    found.code = "new"  # restamped: the figures are the same
    assert ran()[0] == 8
    found.verdict = "no gain"
    assert ran()[0] == 9
    notebook = read(path)
    del notebook.metadata["alignkit"]["code"]  # built before there was a stamp of code
    _write(notebook, path)
    assert ran()[0] == 10
    assert ran()[0] == 10


def test_the_stamp_of_code_knows_the_exercises(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(authoring, "__file__", str(tmp_path / "authoring.py"))
    made = read(folder / "1-a" / "01-slug.ipynb")
    stamps = [authoring._code(made, "some-slug")]
    for text in ("a = 1", "a = 2"):
        (tmp_path / "some_slug.py").write_text(text, "utf-8")
        stamps.append(authoring._code(made, "some-slug"))
    assert len({*stamps}) == 3


def test_a_failing_cell_is_named_by_its_line(folder, monkeypatch):
    monkeypatch.undo()
    path = folder / "1-a" / "01-slug.ipynb"
    path.with_suffix(".py").write_text(SOURCE + "\n# %%\n1 / 0\n", "utf-8")
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match=r"01-slug.py, the cell at line 14: ZeroDivision"):
        authoring.notebook("slug", "script", folder=folder)
    assert path.read_bytes() == before
    edit(path.with_suffix(".py"), "1 / 0", "import os\nprint(os.path.basename(os.getcwd()))")
    authoring.notebook("slug", "script", folder=folder)
    assert read(path).cells[3].outputs[0].text == "1-a\n"


def test_the_name_must_be_that_of_one_notebook(folder):
    with pytest.raises(ValueError, match="slog: 0 notebooks.*there are slug; a new one"):
        authoring.notebook("slog", folder=folder)


# A paper's claims in its notebook -------------------------------------------------------
@pytest.fixture
def made(tmp_path, monkeypatch):
    """A study of the fake paper with its result published."""
    found = result_of(tmp_path)
    monkeypatch.setattr(study, "paper", lambda slug: SimpleNamespace(
        NEEDS=("x",), data=lambda scale, own: data(0).train,
        claims=lambda pairs, scale: [claim()]))
    monkeypatch.setattr(study, "stored", lambda slug: [found])
    monkeypatch.setattr(study, "unseen", lambda *_: "")
    monkeypatch.setattr(study, "rerun", lambda slug, claims: claims_runs(claims))
    return study.Study("fake", "tiny")


def claims_runs(found):
    return claims.Runs(found, {})


def test_a_study_runs_the_claims_beside_what_was_predicted(made, capsys):
    result = made.published["fake"]
    found = made.run([0, 3])
    assert found == {"fake": [result.differences[0], result.differences[3]]}
    out = capsys.readouterr().out
    low, high = (f"{result.prediction[k]:+.3f}" for k in ("low", "high"))
    assert f"fake, seed 3: {found['fake'][1]:+.3f}, inside [{low}, {high}]" in out
    assert f"less {result.figures[0]['less']:.3f}, more " in out
    assert not made.unseen and made.train("fake", 0)["more"].method.settings.effect == 0.1
    with pytest.raises(ValueError, match="fake has no claim fike; there are fake"):
        made.run([0], "fike")


@pytest.mark.parametrize("scale, said", [
    ("tiny", "no verdict is read off scale tiny; figures are not shown"),
    ("small", "the design is not registered, so no figure is shown: alignkit register fake")])
def test_before_its_registration_and_at_tiny_a_study_shows_no_figure(
        made, capsys, monkeypatch, scale, said):
    """Arms, steps and seconds instead; what it gives back is the same."""
    shown = made.run([3])
    monkeypatch.setattr(study, "unseen", unseen)
    capsys.readouterr()
    assert study.Study("fake", scale).run([3]) == shown
    out = " ".join(capsys.readouterr().out.split())
    assert f"fake, seed 3: {said}" in out and "less 2 steps 0." in out
    figures = [*made.runs.figures(made.claims["fake"], 3).values(), *shown["fake"]]
    assert not [value for value in figures if f"{value:.3f}" in out]
    monkeypatch.setattr(study, "stored", lambda slug: [])
    study.Study("fake", scale).verdicts()
    assert "nothing is published yet: alignkit register fake" in capsys.readouterr().out


def test_of_many_figures_those_of_the_arms_are_printed(made, capsys, monkeypatch):
    first = made.claims["fake"]
    made.claims["fake"] = replace(first, measure=lambda arms: {
        **first.measure(arms), "more, time": 2.0})
    for many, shown in ((3, True), (2, False)):
        monkeypatch.setattr(study, "MANY", many)
        made.run([0])
        out = capsys.readouterr().out
        assert "less 0." in out and "more 0." in out and ("more, time 2.000" in out) == shown


def test_a_published_seed_must_agree_and_another_need_not(made, capsys, monkeypatch):
    result = made.published["fake"]
    monkeypatch.setitem(result.prediction, "low", 1.0)
    monkeypatch.setitem(result.prediction, "high", 2.0)
    made.run([0])  # its own value, whatever is predicted
    made.run([77])
    assert "OUTSIDE [+1.000, +2.000]" in capsys.readouterr().out
    result.differences[0] = 0.5
    with pytest.raises(AssertionError, match=r"seed 0: .* published \+0.5000"):
        made.run([0])
    made.compared = False
    made.run([0])
    assert "not compared" in capsys.readouterr().out


def test_the_design_says_what_is_subtracted(made, capsys):
    made.design()
    out = " ".join(capsys.readouterr().out.split())
    assert "points, more minus less; margin 0.001 (a test)" in out
    assert "null: no signal, wanted 0 ± 0.05" in out
    ((name, claim),) = made.claims.items()
    made.claims[name] = replace(claim, statistic=min, subtracts="the least of\nboth")
    made.design()
    assert "points, the least of both; margin 0.001" in " ".join(capsys.readouterr().out.split())


def test_the_verdicts_are_a_table_and_a_figure(made, capsys, monkeypatch):
    shown = []
    monkeypatch.setattr(study.plots, "show", lambda figure, alt: shown.append((figure, alt)))
    made.verdicts()
    head, row, *notes = capsys.readouterr().out.splitlines()
    i = made.published["fake"].interval
    assert row.startswith(f"fake   {i['mean']:+.3f} [{i['low']:+.3f}, {i['high']:+.3f}]  holds")
    assert row.endswith("passed") and max(map(len, (head, row, *notes))) <= 78
    assert notes[0].startswith("intervals at 95 %; ")
    assert shown[0][1].endswith("fake holds")
    both = {"verdict": "some gain", "equivalent": True}
    made.published = {"fake": made.published["fake"],
                      "other": replace(made.published["fake"], claim="other", **both)}
    made.verdicts("fake", "other")
    lines = capsys.readouterr().out.splitlines()[:3]
    assert "  some gain, equivalent same" in lines[2]
    assert len({line.rindex(" ", 0, -4) for line in lines}) == 1  # one place for the last column
    made.published = {}
    made.verdicts()
    assert "nothing is published yet" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("line, said", [
    ("print(7 // len(seeds) if scale == 'small' else 1 / 0)", "ZeroDivisionError"),
    ("assert scale == 'tiny' and 1 <= seeds[0] <= 365", None),
])
def test_a_cell_that_fails_at_tiny_is_told(tmp_path, line, said):
    cells = [v4.new_code_cell("seeds = [0]\nscale = 'small'", metadata={"tags": ["parameters"]}),
             v4.new_code_cell(line)]
    path = tmp_path / "01-slug.ipynb"
    kernel = {"name": "python3", "language": "python", "display_name": "Python 3"}
    _write(v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    problems = authoring._at_tiny(path, tmp_path)
    if said is None:
        assert problems == []
    else:
        (problem,) = problems
        assert said in problem and "at tiny, with seed" in problem and "1 / 0" in problem
