"""What a user installs: pins for every Python, and a wheel of the package alone."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from alignkit.versions import __version__

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
PYTHONS = {"3.11": "3.11.7", "3.12": "3.12.1", "3.13": "3.13.0"}


def pins(python: str) -> dict[str, str]:
    """Package -> version that constraints.txt gives it on Linux on that Python."""
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pinned = [Requirement(line) for line in lines if line and not line.startswith("#")]
    here = {"python_version": python, "python_full_version": PYTHONS[python]}
    return {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==")
            for pin in pinned if not pin.marker or pin.marker.evaluate(here)}


def needed(python: str) -> set[str]:
    """All that alignkit with its extras asks for on that Python, by the metadata of what is
    installed here (what only another Python takes has none here, and ends the walk)."""
    lines = [Requirement(line) for line in PROJECT["dependencies"]]
    extras = PROJECT["optional-dependencies"].values()
    lines += [Requirement(line) for extra in extras for line in extra]
    found, names = {}, set()
    while lines:
        need = lines.pop()
        name = canonicalize_name(need.name)
        extras = need.extras | {""}
        if name == "alignkit" or extras <= found.get(name, set()):
            continue
        found[name] = found.get(name, set()) | extras
        names.add(name)
        try:
            further = map(Requirement, requires(name) or [])
        except PackageNotFoundError:
            continue
        for line in further:
            heres = [{"python_version": python, "python_full_version": PYTHONS[python],
                      "extra": extra} for extra in extras]
            if not line.marker or any(line.marker.evaluate(here) for here in heres):
                lines.append(line)
    return names


@pytest.mark.parametrize("python", PYTHONS)
def test_the_constraints_leave_nothing_free(python):
    if sys.platform != "linux":
        pytest.skip("the constraints are those of Linux")
    if version("torch").partition("+")[0] != pins(python)["torch"]:
        pytest.skip("another set is installed here, which asks for other packages")
    assert needed(python) - set(pins(python)) == set()
    # What is asked of one Python alone is seen, though it may not be installed here.
    assert ("aiohttp" in needed(python)) == (python == "3.12")


def test_the_pins_keep_our_bounds():
    for extra in [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]:
        for need in map(Requirement, extra):
            if need.name != "alignkit":
                assert need.specifier.contains(pins("3.11")[canonicalize_name(need.name)])


def test_the_workflow_installs_the_lowest_bounds_too():
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8")
    assert "--resolution lowest-direct" in text


@pytest.mark.slow
def test_the_wheel_holds_the_package_alone(tmp_path):
    """Even from a checkout in which the tour and others have left their folders."""
    # The build's own bound. Not imported here: it wants to come before distutils.
    if int(version("setuptools").partition(".")[0]) < 77:
        pytest.skip("setuptools is older than 77")
    pytest.importorskip("pip")  # uv's environments have none
    source = tmp_path / "checkout"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "alignkit", source / "alignkit",
                    ignore=shutil.ignore_patterns("__pycache__"))
    for left in ("alignkit-tour", "alignkit-results", "alignkit_old", "alignkit-tour/deep"):
        (source / left).mkdir()
        (source / left / "__init__.py").touch()
        (source / left / "results.json").touch()
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps",
                    "--no-build-isolation", "-w", str(tmp_path), str(source)],
                   check=True, capture_output=True, text=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    number = __version__
    assert {name.split("/")[0] for name in names} == {
        "alignkit", f"alignkit-{number}.dist-info"}
    code = {p.relative_to(ROOT).as_posix() for p in (ROOT / "alignkit").rglob("*")
            if p.is_file() and "__pycache__" not in p.parts}
    assert {n for n in names if n.startswith("alignkit/")} == code
    assert any(re.fullmatch(r"alignkit/claims/results/.*\.json", n) for n in names)
