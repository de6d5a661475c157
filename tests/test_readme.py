"""The README's Python example, run as it stands on a table of one's own."""

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
