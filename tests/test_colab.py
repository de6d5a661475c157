"""Colab keeps its torch: the install command of every notebook's set-up cell, where the
oldest torch we take, or a newer build, is installed while a newer one is to be had.

pip itself resolves (`--dry-run`); the checkout stands for the address in the command,
as a wheel of its metadata alone. Nothing is fetched: the only packages to be had are
newer torches, made here, so a command that upgrades cannot hide. What else alignkit
needs must be installed where the tests run; otherwise pip says what is missing.
"""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import alignkit
from alignkit.course.notebook import read, tags_of

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*/[0-9]*.ipynb"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
ADDRESS = "git+https://github.com/alignkit/alignkit"
# As Colab builds them; torchvision fits its torch alone. The oldest stand at our lower
# bounds; torchaudio ended with 2.11, so that the newest have none or one that does not fit.
OLDEST = {
    "torch": "2.9.1+cu128",
    "torchvision": "0.24.1+cu128",
    "torchaudio": "2.9.1+cu128",
}
NEWEST = {"torch": "2.15.0+cu132", "torchvision": "0.29.2+cu132"}
MACHINES = {
    "oldest": OLDEST,
    "newest": NEWEST,
    "newest, old torchaudio": NEWEST | {"torchaudio": "2.11.0+cu130"},
}
NEWER = {"torch": "99.0", "torchvision": "99.0", "torchaudio": "99.0"}


def install_command(setup: str) -> list[str]:
    """What the cell would run where alignkit is missing: its `if` block, in earnest but
    for the call itself."""
    ran = []

    class Missing:
        class util:
            find_spec = staticmethod(lambda name: None)

    class Recorder:
        check_call = staticmethod(ran.append)

    (block,) = [n for n in ast.parse(setup).body if isinstance(n, ast.If)]
    code = compile(ast.Module([block], []), "setup", "exec")
    exec(code, {"importlib": Missing, "subprocess": Recorder, "sys": sys})
    (command,) = ran
    return command


COMMANDS = {
    path.stem: install_command(
        next(cell.source for cell in read(path).cells if "setup" in tags_of(cell))
    )
    for path in NOTEBOOKS
}


def metadata(name: str, number: str, needs: list[str] = ()) -> str:
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {number}"]
    lines += [f"Requires-Dist: {need}" for need in needs]
    return "\n".join(lines) + "\n"


def own_needs(name: str, torch: str) -> list[str]:
    """What the package asks of torch: its own release, as torchvision does."""
    return [f"torch=={torch.partition('+')[0]}"] if name == "torchvision" else []


def installed(folder: Path, packages: dict[str, str]) -> None:
    """Let pip believe that these stand in `folder`."""
    for name, number in packages.items():
        info = folder / f"{name}-{number}.dist-info"
        info.mkdir(parents=True)
        needs = own_needs(name, packages["torch"])
        (info / "METADATA").write_text(metadata(name, number, needs))
        (info / "RECORD").write_text("")
        (info / "INSTALLER").write_text("pip\n")


def wheel(folder: Path, name: str, number: str, needs: list[str], extras=()) -> Path:
    folder.mkdir(exist_ok=True)
    path, info = (
        folder / f"{name}-{number}-py3-none-any.whl",
        f"{name}-{number}.dist-info",
    )
    text = metadata(name, number, needs) + "".join(
        f"Provides-Extra: {e}\n" for e in extras
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{info}/METADATA", text)
        archive.writestr(
            f"{info}/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


def would_change(
    folder: Path,
    command: list[str],
    dependencies: list[str] | None = None,
    colabs: dict[str, str] = OLDEST,
) -> dict[str, str]:
    """Package -> version that the command would install on such a machine."""
    pytest.importorskip("pip")  # uv's environments have none
    installed(folder / "site", colabs)
    for name, number in NEWER.items():
        wheel(folder / "offer", name, number, own_needs(name, NEWER["torch"]))
    needs = list(PROJECT["dependencies"] if dependencies is None else dependencies)
    extras = PROJECT["optional-dependencies"]
    for extra, lines in extras.items():
        for line in lines:
            need, _, marker = line.partition(";")
            also = f" and ({marker.strip()})" if marker else ""
            needs.append(f'{need.strip()}; extra == "{extra}"{also}')
    ours = wheel(folder / "ours", "alignkit", alignkit.__version__, needs, extras)
    done = subprocess.run(
        [
            *(part.replace(ADDRESS, ours.as_uri()) for part in command),
            "--dry-run",
            "--report",
            str(folder / "report.json"),
            "--no-index",
            "--find-links",
            str(folder / "offer"),
            "--disable-pip-version-check",
        ],
        env={
            **os.environ,
            "PYTHONPATH": str(folder / "site"),
            "PIP_CONFIG_FILE": os.devnull,
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, f"pip could not resolve, offline:\n{done.stderr}"
    report = json.loads((folder / "report.json").read_text("utf-8"))
    found = [entry["metadata"] for entry in report["install"]]
    return {entry["name"]: entry["version"] for entry in found}


def test_all_notebooks_install_in_one_way():
    """So that one run of pip speaks for all of them."""
    assert len(COMMANDS) == len(NOTEBOOKS) > 0
    for command in COMMANDS.values():
        assert command == [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-q",
            f"alignkit[course] @ {ADDRESS}",
        ]


@pytest.mark.slow
@pytest.mark.parametrize("machine", MACHINES)
def test_a_colab_keeps_its_torch(tmp_path, machine):
    command = next(iter(COMMANDS.values()))
    found = would_change(tmp_path, command, colabs=MACHINES[machine])
    assert found == {"alignkit": alignkit.__version__}


def test_the_lower_bounds_are_those_of_the_machine_above():
    bounds = dict(
        re.match(r"(\w+)>=(\S+)$", line).groups()
        for line in PROJECT["dependencies"]
        if line.startswith("torch")
    )
    assert {name: OLDEST[name].partition("+")[0] for name in bounds} == bounds
    assert set(bounds) == {"torch", "torchvision"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "change", ["a newer bound", "an upper bound", "an upgrade", "an older machine"]
)
def test_the_check_sees_a_torch_that_would_change(tmp_path, change):
    command, colabs = next(iter(COMMANDS.values())), OLDEST
    dependencies = list(PROJECT["dependencies"])
    if change == "a newer bound":
        dependencies.append("torchvision>=0.25")
    elif change == "an upper bound":
        dependencies.append("torch<2.12")
        colabs = NEWEST
        wheel(tmp_path / "offer", "torch", "2.11.0", [])
        wheel(tmp_path / "offer", "torchvision", "0.26.0", ["torch==2.11.0"])
    elif change == "an upgrade":
        command = [*command, "--upgrade", *NEWER]
    else:
        colabs = OLDEST | {"torchvision": "0.23.0+cu126"}
    found = would_change(tmp_path, command, dependencies, colabs)
    assert set(NEWER) & set(found), found


def test_what_is_missing_is_said(tmp_path):
    command = next(iter(COMMANDS.values()))
    with pytest.raises(
        AssertionError, match="No matching distribution found for nothing-9"
    ):
        would_change(tmp_path, command, [*PROJECT["dependencies"], "nothing-9"])
