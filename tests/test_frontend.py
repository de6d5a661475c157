"""What people meet in a live notebook: widgets, printed lines, parameters."""

import os
import subprocess
import sys

import nbformat
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nbformat import v4
from needs import examples

from alignkit.course import frontend, plots, widgets
from alignkit.course.frontend import fold
from alignkit.course.parameters import check_parameters
from alignkit.course.setup import setup

# Starts of a widget ---------------------------------------------------------------------


@given(st.lists(st.one_of(st.integers(), st.floats(allow_nan=False), st.text(), st.booleans(),
                          st.tuples(st.integers(), st.text()), st.none()),
                min_size=1, max_size=5), st.data())
@settings(max_examples=examples(100), deadline=None)
def test_a_start_is_found_whatever_it_is(options, data):
    start = data.draw(st.sampled_from(options))
    place = widgets._place(start, options)
    assert options[place] is start or options[place] == start
    assert len(widgets._label(start)) <= 60 and "\n" not in widgets._label(start)


def test_a_start_that_is_an_array():
    arrays = [np.zeros(2), np.zeros(3), torch.zeros(2)]
    assert widgets._place(np.zeros(3), arrays) == 1
    assert widgets._place(arrays[2], arrays) == 2
    with pytest.raises(ValueError, match="start.'x'. = array.* is none of"):
        widgets._place(np.ones(3), arrays, "x")


# Printed lines ---------------------------------------------------------------------------


@given(st.lists(st.text("ab-· é", max_size=30), max_size=30).map(" ".join), st.integers(20, 90))
@settings(max_examples=examples(100), deadline=None)
def test_folding_keeps_every_word_whole(text, width):
    folded = fold(text, width)
    assert folded.split() == text.split()
    for line in folded.split("\n"):
        assert len(line) <= width or len(line.split()) == 1


def test_folding_sets_in_what_goes_on():
    text = "  claim       " + "word " * 20 + "end\nnext"
    first, second, third = fold(text, 78).split("\n")
    assert first.startswith("  claim       word") and third == "next"
    assert second.startswith("      word") and second.endswith("end")
    assert fold("") == "" and fold("a\n\nb") == "a\n\nb"


# Parameters ------------------------------------------------------------------------------


def notebook(parameters: str, tail: str = "setup(seed=seeds[0])") -> nbformat.NotebookNode:
    cells = [v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}),
             v4.new_code_cell(f"from alignkit.course.setup import setup\n{tail}")]
    return v4.new_notebook(cells=cells, metadata={"kernelspec": {
        "name": "python3", "display_name": "Python 3", "language": "python"}})


@pytest.mark.slow
@pytest.mark.parametrize("options, message", [
    (["-p", "seeds", "[1]"], "parameter seeds must be a list of whole numbers, such as "
                             "[0]; got '[1]'. papermill's -p hands over a text: write -y "
                             '"seeds: [1]"'),
    (["-y", "seeds: [1]"], ""),
])  # fmt: skip
def test_papermills_own_command(tmp_path, options, message):
    nbformat.write(notebook('seeds = [0]\nscale = "small"'), tmp_path / "in.ipynb")
    done = subprocess.run(
        [sys.executable, "-m", "papermill", "--no-progress-bar", "in.ipynb", "out.ipynb",
         *options], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode != 0) == bool(message)
    assert message in done.stderr


class Shell:
    def __init__(self, *cells):
        self.user_ns = {"In": ["", *cells, "setup()"]}


OWN = 'seeds = [0]\nscale = "small"\nrate = 0.1\nsteps = 5\nquick = False\npairs = None'


@pytest.mark.parametrize("given_, message", [
    ('scale = 3', "scale must be a text, such as 'small'; got 3$"),
    ('rate = "0.1"', "rate must be a number, such as 0.1; got '0.1'$"),
    ('steps = 2.5', "steps must be a whole number.*got 2.5"),
    ('steps = True', "steps must be a whole number.*got True"),
    ('quick = 1', "quick must be True or False"), ('seeds = 1', "seeds must be a list of"),
    ('seeds = ["1"]', r"seeds must be a list of whole numbers.*got \['1'\]"),
    ('seeds = "1"', "write -y"),
])  # fmt: skip
def test_a_parameter_of_another_kind_is_named(given_, message):
    with pytest.raises(TypeError, match=message):
        check_parameters(Shell(OWN, f"# Parameters\n{given_}\n"))


@pytest.mark.parametrize("cells", [
    (OWN, '# Parameters\nseeds = [1, 2]\nscale = "tiny"\nrate = 1\nsteps = 2\n'
          'quick = True\npairs = "a.csv"\n'),
    (OWN, "# Parameters\nseeds = []\nother = 3\nrate = float('inf')\n"),
    (OWN, 'seeds = "1"'), (OWN,), (), ("%pip list", "# Parameters\nseeds = 1\n"),
])  # fmt: skip
def test_parameters_of_the_right_kind_pass(cells):
    check_parameters(Shell(*cells))
    check_parameters(None)


@pytest.mark.parametrize("seed, message", [
    ("[", "seed must be a whole number or a list of them, got '\\['"), (0.5, "got 0.5"),
    ([1, "2"], "got '2'"), (True, "got True"), (None, "got None"),
])  # fmt: skip
def test_a_seed_of_another_kind_is_named(seed, message):
    with pytest.raises(TypeError, match=message):
        setup(seed)


@pytest.mark.parametrize("seed, message", [
    ([], "list of seeds is empty"), (-1, "got -1"), (2**32, "got 4294967296")])
def test_a_seed_out_of_range_is_named(seed, message):
    with pytest.raises(ValueError, match=message):
        setup(seed)


# Figures ---------------------------------------------------------------------------------


def test_bars_are_seen_however_short_they_are():
    names = {f"name {k}": 0.004 - 0.0001 * k for k in range(8)}
    figure = plots.bars(names, marked=["name 2"], picture=np.zeros((4, 4, 3)), xlabel="p")
    axis = figure.axes[-1]
    low, high = axis.get_xlim()
    assert low == 0 and 0.004 < high < 0.006
    widths = [bar.get_width() for bar in axis.patches]
    assert widths == list(names.values())
    assert [text.get_text() for text in axis.texts][:2] == ["0.004", "0.0039"]
    colours = [bar.get_facecolor() for bar in axis.patches]
    assert colours[2] != colours[0] == colours[1]
    with pytest.raises(ValueError, match="at least one"):
        plots.bars({})


def test_nothing_is_shown_where_nobody_watches(monkeypatch):
    monkeypatch.setattr(frontend, "interactive", lambda: False)
    monkeypatch.setattr("IPython.display.publish_display_data", lambda *_: 1 / 0)
    frontend.break_between_words()


# Last: the kernel's seconds count where it ends, and that is a test marked slow.
# A widget in a live kernel ---------------------------------------------------------------


class Live:
    """A kernel with a front end attached: it can move a control and sees what is shown."""

    def __init__(self):
        from jupyter_client.manager import start_new_kernel

        env = {**os.environ, "JPY_SESSION_NAME": "x.ipynb"}
        env.pop("ALIGNKIT_STATIC", None)
        self.manager, self.client = start_new_kernel(
            kernel_name="python3", env=env,
            extra_arguments=["--IPKernelApp.log_level=ERROR"])
        self.controls = {}

    def close(self):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)

    def _shown(self, request: str) -> list[str]:
        """Texts, errors and kinds of figures until the kernel is idle again."""
        shown = []
        while True:
            message = self.client.get_iopub_msg(timeout=60)
            kind, content = message["msg_type"], message["content"]
            if kind == "comm_open":
                state = content["data"].get("state", {})
                if state.get("description"):
                    self.controls[state["description"]] = (content["comm_id"], state)
            shown += {"stream": lambda c: [c["text"].strip()],
                      "error": lambda c: [f"{c['ename']}: {c['evalue']}"],
                      "display_data": lambda c: sorted(c["data"])}.get(
                          kind, lambda c: [])(content)
            if (kind == "status" and content["execution_state"] == "idle"
                    and message["parent_header"].get("msg_id") == request):
                return shown

    def run(self, code: str) -> list[str]:
        return self._shown(self.client.execute(code))

    def move(self, control: str, index: int) -> list[str]:
        data = {"method": "update", "state": {"index": index}, "buffer_paths": []}
        message = self.client.session.msg(
            "comm_msg", {"comm_id": self.controls[control][0], "data": data})
        self.client.shell_channel.send(message)
        return self._shown(message["header"]["msg_id"])


@pytest.fixture(scope="module")
def live():
    kernel = Live()
    yield kernel
    kernel.close()


START = """
import numpy as np, torch
from alignkit.course import plots
from alignkit.course.widgets import explore

def draw(**chosen):
    # One write: the kernel may send a print's pieces as two messages.
    print(" ".join(f"{k}={v!r}" for k, v in chosen.items()) + chr(10), end="")
    return plots.paired([1], [2])
"""


@pytest.mark.parametrize("values, shown", [
    ("[(224, 224), (300, 300)]", ["(224, 224)", "(300, 300)"]),
    ("[('a', 1), ('b', 2)]", ["('a', 1)", "('b', 2)"]),
    ("[0.02, 0.5]", ["0.02", "0.5"]), ("[True, False]", ["True", "False"]),
    ("['a cat', 'a dog']", ["'a cat'", "'a dog'"]), ("[None, 3]", ["None", "3"]),
    ("[np.zeros(2), np.ones(3)]", ["array([0., 0.])", "array([1., 1., 1.])"]),
    ("[torch.zeros(2), torch.ones(2)]", ["tensor([0., 0.])", "tensor([1., 1.])"]),
    ("[{'a': 1}, [1, 2]]", ["{'a': 1}", "[1, 2]"]), ("range(3)", ["0", "1"]),
    ("[np.float64(0.5), np.int64(2)]", ["np.float64(0.5)", "np.int64(2)"]),
])  # fmt: skip
@pytest.mark.slow
def test_a_control_of_any_kind_follows_the_hand(live, values, shown):
    first, second = shown
    found = live.run(START + f"explore(draw, 'alt', size={values}, other=[1, 2])")
    assert f"size={first} other=1" in found and "image/png" in found
    assert not any("Error" in text for text in found)
    assert f"size={second} other=1" in live.move("size", 1)
    assert f"size={second} other=2" in live.move("other", 1)
    assert f"size={first} other=2" in live.move("size", 0)


@pytest.mark.slow
def test_a_name_of_a_control_is_not_cut_and_its_text_is_short(live):
    live.run(START + "explore(draw, 'alt', temperature_of_the_loss=[1, 2],\n"
             "        word=['a ' * 99, 'b\\nc'])")
    _, slider = live.controls["temperature_of_the_loss"]
    styles = {state["_model_name"] for _, state in live.controls.values()}
    assert styles == {"SelectionSliderModel", "DropdownModel"}
    assert not slider["continuous_update"]
    labels = live.controls["word"][1]["_options_labels"]
    assert len(labels[0]) == 60 and labels[0].endswith("…") and labels[1] == "b c"
    live.run("import ipywidgets")
    found = live.run("print([w.style.description_width for w in "
                     "ipywidgets.widgets.widget._instances.values()"
                     " if isinstance(w, ipywidgets.SelectionSlider)][-1])")
    assert found == ["initial"]


@pytest.mark.slow
def test_set_up_has_a_live_notebook_break_lines_between_words(live):
    found = live.run("from alignkit.course.setup import setup\nsetup([3, 4])")
    assert found[0] == "text/html" and found[1].startswith("Python 3.")
    assert all(len(line) <= 78 for line in found[1].split("\n"))
    assert live.run("import torch; print(torch.initial_seed())") == ["3"]
