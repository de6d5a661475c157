"""The page 'From your table to a verdict', done as it says in an empty folder."""

import json
import re
import shlex
from pathlib import Path

import pytest
from test_commands import table

from alignkit.claims import paper
from alignkit.claims.train import own_pairs
from alignkit.cli import _parser

PAGE = (Path(__file__).parents[1] / "notebooks" / "YOUR-PAIRS.md").read_text("utf-8")
SHORTER = {"steps=200": "steps=10", "validate_every=20": "validate_every=5",
           "range(100, 108)": "range(100, 105)",
           "grid=rates(3e-4, 1e-3, 3e-3, 1e-2, 3e-2)": "grid=({},)",
           "opened, folder": 'opened, "few rows", folder',
           "0.1, 0.9": "0.0, 1.0", "headline=True": "headline=True, units=5"}


@pytest.mark.usefixtures("first_step")
@pytest.mark.slow
def test_its_python_runs_from_top_to_end(tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    code = "\n".join(blocks)
    assert len(blocks) == 6 and all(old in code for old in SHORTER)
    for old, new in SHORTER.items():
        code = code.replace(old, new)
    table(tmp_path, 60)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "YOUR-PAIRS.md", "exec"), {})
    said = capsys.readouterr().out
    assert "60 rows" in said and "hit@10" in said and "On my pairs, heads" in said
    assert re.search(r"pairs: CKA -?\d.*\nshuffled: CKA -?\d", said)
    (design,) = json.loads(Path("registered/my-question.json").read_text())["registrations"]
    (path,) = Path("results").glob("my-question.*.json")
    result = json.loads(path.read_text())
    assert result["registration"] == design["hash"] and len(result["seeds"]) == 5
    assert result["verdict"] in ("holds", "some gain", "no gain", "opposite", "not resolved")


def test_its_commands_are_commands_and_take_the_table(tmp_path):
    lines = [shlex.split(line)[1:] for block in re.findall(r"\n\n```\n(.*?)```", PAGE, re.DOTALL)
             for line in block.splitlines() if line.startswith("alignkit ")]
    assert [line[0] for line in lines] == ["list", "reproduce"]
    args = _parser().parse_args(lines[1])
    assert args.pairs == Path("my.csv") and len(own_pairs(
        table(tmp_path, 60), paper(args.slug).NEEDS)) == 60
