"""The README: its Python example, run as it stands on a table of one's own; its length."""

import re
from pathlib import Path

from test_commands import table

README = Path(__file__).parents[1] / "README.md"


def test_the_example_runs(tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    table(tmp_path, 20, captions=2)
    monkeypatch.chdir(tmp_path)
    exec(compile(code.replace("steps=200", "steps=5"), "README.md", "exec"), {})
    assert "hit@10" in capsys.readouterr().out


def test_it_stays_a_screen_and_a_half():
    """Beside its table at most 60 lines; what is longer has a page in notebooks/."""
    text = re.sub(r"(?s)<!-- verdicts -->.*<!-- /verdicts -->", "", README.read_text("utf-8"))
    assert len(text.splitlines()) <= 60
