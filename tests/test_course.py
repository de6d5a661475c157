"""The course floor: set-up, figures, widgets, and the tools on notebooks."""

import base64
import io
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from alignkit.course import frontend, plots, widgets
from alignkit.course.clouds import clouds
from alignkit.course.notebook import build, execute, read, run_cells, script, student

# frontend, figures, widgets --------------------------------------------------------


class Shell:
    """Stands for a kernel; keeps what is displayed."""

    def __init__(self):
        self.user_ns, self.shown = {}, []


@pytest.fixture
def shell(monkeypatch):
    kernel = Shell()
    for name in ("ALIGNKIT_STATIC", "JPY_SESSION_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(frontend, "kernel", lambda: kernel)
    monkeypatch.setattr(plots, "kernel", lambda: kernel)
    monkeypatch.setattr(
        "IPython.display.publish_display_data",
        lambda data, metadata: kernel.shown.append((data, metadata)),
    )
    return kernel


def test_a_front_end_needs_a_positive_mark(shell, monkeypatch):
    assert not frontend.interactive()
    shell.user_ns["__vsc_ipynb_file__"] = "x.ipynb"
    assert frontend.interactive()
    del shell.user_ns["__vsc_ipynb_file__"]
    monkeypatch.setenv("JPY_SESSION_NAME", "x.ipynb")
    assert frontend.interactive()
    monkeypatch.setenv("ALIGNKIT_STATIC", "1")
    assert not frontend.interactive()


def _figures() -> dict:
    picture = Image.new("RGB", (20, 20), "red")
    band = ([1, 2], [0, 1], [2, 3])
    return {
        "gallery": plots.gallery([picture] * 7, ["a red square"] * 7),
        "clouds": clouds([np.eye(3)] * 7, ["a table"] * 7, marked=[1]),
        "retrieved": plots.retrieved(["red"], [[picture, "text"]], [[True, False]]),
        "intervals": plots.intervals(
            {"hit@1": (0.1, 0.0, 0.2)}, margin=0.05, xlabel="difference"
        ),
        "paired": plots.paired([1, 2], [2, 1], ("without", "with")),
        "heat": plots.heat(np.eye(2), "ab", "cd", "identity"),
        "lines": plots.lines([1, 2], {"a": band, "b": band}, log_x=True),
    }


@pytest.mark.parametrize("name", _figures())
def test_show_displays_a_small_png_with_alt_text(shell, name):
    plots.show(_figures()[name], f"the figure {name}", note="composed data")
    ((data, metadata),) = shell.shown
    assert metadata == {"image/png": {"alt": f"the figure {name}"}}
    assert set(data) == {"image/png"}
    raw = base64.b64decode(data["image/png"])
    picture = Image.open(io.BytesIO(raw))
    assert picture.width == 700 and picture.getextrema() != (0, 0)
    assert len(raw) < 25_000


def test_show_closes_keeps_licences_and_wants_alt(shell):
    import matplotlib.pyplot as plt

    plots.show(plt.figure(), "alt")
    assert plt.get_fignums() == []
    plots.show(plt.figure(), "a stamp", keep=False)
    assert list(shell.shown[-1][0]) == ["text/plain"]
    with pytest.raises(ValueError, match="alt is empty"):
        plots.show(plt.figure(), " ")
    plt.close("all")


def test_show_in_plain_python_is_quiet():
    code = "from alignkit.course import plots; plots.show(plots.paired([1], [2]), 'a')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_colours_are_different_and_style_is_set():
    import matplotlib

    plots.style()
    assert matplotlib.rcParams["figure.figsize"] == [plots.WIDTH, plots.HEIGHT]
    assert len(set(plots.COLOURS.values())) == len(plots.COLOURS) == len(plots.MARKERS)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: plots.gallery([], []),
        lambda: plots.paired([1, 2], [1]),
        lambda: clouds([np.eye(3)], []),
        lambda: plots.heat(np.eye(2), "abc", "de"),
        lambda: plots.lines([1], {"a": ([1], [1, 2], [1])}),
        lambda: plots.lines([1], {str(i): ([1], [1], [1]) for i in range(8)}),
    ],
)
def test_figures_refuse_what_does_not_fit(wrong):
    with pytest.raises(ValueError, match=r"\d"):
        wrong()


def test_explore_draws_once_at_its_start(shell):
    seen = []

    def draw(scale, word):
        seen.append((scale, word))
        return plots.paired([1], [scale])

    widgets.explore(draw, "a line", start={"scale": 3}, scale=[1, 3], word=["x", "y"])
    assert seen == [(3, "x")]
    assert shell.shown[0][1]["image/png"]["alt"] == "a line (scale = 3, word = x)"
    for wrong in ({"start": {"size": 1}}, {"start": {"scale": 2}}, {"word": []}):
        with pytest.raises(ValueError, match="start|no values"):
            widgets.explore(draw, "a", **({"scale": [1], "word": ["x"]} | wrong))


def test_explore_is_live_where_a_front_end_is(shell, monkeypatch):
    import ipywidgets

    monkeypatch.setenv("JPY_SESSION_NAME", "x.ipynb")
    made = []
    monkeypatch.setattr(ipywidgets, "interact", lambda f, **made_: made.append(made_))
    widgets.explore(lambda **_: None, "a", start={"t": 2}, t=[1, 2], word=["x"])
    (controls,) = made
    assert isinstance(controls["t"], ipywidgets.SelectionSlider)
    assert isinstance(controls["word"], ipywidgets.Dropdown)
    assert (controls["t"].label, controls["word"].label) == ("2", "x")
    assert shell.shown == []


def test_listen_says_what_is_heard(shell, capsys):
    widgets.listen(np.zeros((2, 8000)), 4000, "a cow")
    assert capsys.readouterr().out == "sound, 2 s: a cow\n"


# notebooks -------------------------------------------------------------------------

SMALL = """
# %% [markdown]
# # A small notebook
#
# text

# %% tags=["parameters"]
seed, count = 0, 3

# %% tags=["setup", "nbval-ignore-output"]
import warnings

import torch
from tqdm.auto import tqdm

from alignkit.course import plots
from alignkit.course import shared_space as exercises
from alignkit.course.setup import setup
from alignkit.course.widgets import explore

setup(seed)

# %%
for _ in tqdm(range(count)):
    pass
warnings.warn("Glyph 128512 (x) missing from font(s) DejaVu Sans.")
print(count, torch.get_num_threads(), torch.randint(99, ()).item() >= 0)

# %%
def draw(scale):
    return plots.paired([1, 2], [scale, 2])


explore(draw, "two lines", scale=[1, 2])

# %% tags=["exercise"]
def cosine(images, texts):
    \"\"\"[n, d], [m, d] -> [n, m]\"\"\"
    ...


exercises.cosine.check(cosine)

# %% tags=["solution"]
def cosine(images, texts):
    unit = torch.nn.functional.normalize
    return unit(images) @ unit(texts).T


exercises.cosine.check(cosine)
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    (folder / "small.py").write_text(SMALL)
    build(folder / "small.py", folder / "built.ipynb")
    return execute(folder / "built.ipynb", folder / "small.ipynb")


@pytest.mark.slow
def test_build_is_repeatable_and_script_goes_back(small):
    built = small.parent / "built.ipynb"
    first = built.read_bytes()
    back = script(small, small.parent / "back.py")
    assert build(back, built).read_bytes() == first
    ids = [cell.id for cell in read(small).cells]
    assert len(set(ids)) == len(ids) == 7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n# %%\n", "line 1: text before the first cell"),
        ("# %% markdown\n", "line 1: .* is not"),
        ('# %% tags=["by hand"]\n', "unknown tag"),
        ("# %% [markdown]\ntext\n", "line 2: text lines start with"),
    ],
)
def test_build_names_the_line_that_is_wrong(tmp_path, text, message):
    (tmp_path / "a.py").write_text(text)
    with pytest.raises(ValueError, match=message):
        build(tmp_path / "a.py", tmp_path / "a.ipynb")


@pytest.mark.slow
def test_execute_keeps_clean_outputs(small):
    cells = [cell for cell in read(small).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == [1, 2, 3, 4, 5, 6]
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [o for o in outputs if o.get("name") == "stderr"]
    assert cells[1].outputs[0].text.count("\n") == 2
    assert "1 thread" in cells[1].outputs[0].text
    assert cells[2].outputs[0].text == "3 1 True\n"
    (figure,) = cells[3].outputs
    assert figure.metadata["image/png"]["alt"] == "two lines (scale = 1)"
    assert set(figure.data) == {"image/png"}
    assert cells[4].outputs[0].text.startswith("not filled in yet: cosine")
    assert cells[5].outputs[0].text.startswith("cosine: right on")
    assert "papermill" not in small.read_text()


@pytest.mark.slow
def test_nbval_agrees_without_being_told_to_be_static(small):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    environment.pop("ALIGNKIT_STATIC", None)
    command = [sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env", "-q"]
    command += ["-p", "no:cacheprovider", "-o", "addopts=", "small.ipynb"]
    done = subprocess.run(
        command, cwd=small.parent, env=environment, capture_output=True, text=True
    )
    assert "6 passed" in done.stdout, done.stdout


def test_execute_takes_known_parameters_only(tmp_path):
    source = '# %% tags=["parameters"]\ncount = 3\n# %%\nprint(2 * count)\n'
    (tmp_path / "a.py").write_text(source)
    built, out = build(tmp_path / "a.py", tmp_path / "a.ipynb"), tmp_path / "b.ipynb"
    with pytest.raises(ValueError, match=r"no parameter \['cuont'\]; it has"):
        execute(built, out, {"cuont": 5})
    assert not out.exists()
    assert read(execute(built, out, {"count": 5})).cells[-1].outputs[0].text == "10\n"


def test_a_failing_notebook_is_not_written(tmp_path):
    (tmp_path / "a.py").write_text('# %% tags=["parameters"]\na = 1\n# %%\n1 / 0\n')
    build(tmp_path / "a.py", tmp_path / "a.ipynb")
    with pytest.raises(Exception, match="ZeroDivisionError"):
        execute(tmp_path / "a.ipynb", tmp_path / "b.ipynb")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.ipynb", "a.py"]


@pytest.mark.slow
def test_run_cells_tries_stub_and_answers(small):
    link = "cosine = exercises.cosine."
    wrong = f"{link}mistakes['not normalised'].function"
    ran = run_cells(small, answers={"cosine": [f"{link}reference", wrong]})
    assert [run.name for run in ran] == ["", "", "cosine", "cosine", "cosine"]
    assert ran[2].text.startswith("not filled in yet: cosine") and not ran[2].error
    assert ran[3].text.startswith("cosine: right on") and not ran[3].error
    assert ran[4].error.startswith("ExerciseError: cosine: it looks as if you took")


@pytest.mark.slow
def test_the_student_version_has_no_solutions_and_no_outputs(small):
    mine = read(student(small, small.parent / "student" / "small.ipynb"))
    assert len(mine.cells) == len(read(small).cells) - 1
    assert sum("def cosine" in cell.source for cell in mine.cells) == 1
    assert not any(cell.get("outputs") for cell in mine.cells)
    assert {cell.get("execution_count") for cell in mine.cells} == {None}
