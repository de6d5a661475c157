"""A torchvision or torchaudio that was built for another torch: what stops, what goes on,
and what is said. The wrong builds are packages that fail at import as the real ones do."""

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import alignkit
from alignkit import versions
from alignkit.claims import results

WRONG = {
    "torchaudio": "Detected that PyTorch and TorchAudio were compiled with different CUDA "
                  "versions. PyTorch has CUDA version 13.2 whereas TorchAudio has 13.0",
    "torchvision": "operator torchvision::nms does not exist",
}


def test_alignkits_own_version_needs_no_metadata(monkeypatch):
    """A checkout on the path, as on a machine that is lent, has none."""
    def version(name):
        if name == "alignkit":
            raise metadata.PackageNotFoundError(name)
        return metadata.version(name)

    monkeypatch.setattr(results, "version", version)
    number = results.versions()["alignkit"]
    assert number == alignkit.__version__ and number.count(".") == 2
    citation = Path(__file__).parents[1] / "CITATION.cff"
    assert f"\nversion: {number}\n" in citation.read_text("utf-8")


@pytest.fixture
def wrong(tmp_path, monkeypatch):
    """Puts packages before the real ones that fail as a wrong build does."""
    def put(*names):
        for name in names:
            (tmp_path / name).mkdir()
            code = f"raise RuntimeError({WRONG[name]!r})"
            (tmp_path / name / "__init__.py").write_text(code, "utf-8")
            versions.problem.cache_clear()
            for module in [m for m in sys.modules if m.partition(".")[0] == name]:
                monkeypatch.delitem(sys.modules, module)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    yield put
    versions.problem.cache_clear()


def _numbers(monkeypatch, **numbers):
    versions.problem.cache_clear()
    monkeypatch.setattr(versions, "installed", numbers.get)


@pytest.mark.parametrize("name", versions.BUILT_TOGETHER)
def test_this_machine_has_no_problem(name):
    assert versions.problem(name) is None


@pytest.mark.parametrize("name", WRONG)
def test_a_package_that_fails_is_named_with_its_own_words(wrong, monkeypatch, name):
    wrong(name)
    _numbers(monkeypatch, **{"torch": "2.15.0+cu132", name: "0.9"})
    found = versions.problem(name)
    assert found.startswith(f"{name} 0.9 cannot be imported beside torch 2.15.0+cu132 "
                            f"(RuntimeError: {WRONG[name][:60]}")
    assert f"; mend it with: pip uninstall -y {name} && pip install " in found
    assert "\n" not in found


@pytest.mark.parametrize(("name", "numbers", "command"), [
    ("torchvision", {"torch": "2.15.0+cu132"}, 'pip install "torch==2.15.0" torchvision'),
    ("torchaudio", {"torch": "2.15.0"},
     'pip install "torch==2.11.*" torchvision "torchaudio==2.11.*"'),
    ("torchaudio", {"torch": "2.9.1+cpu", "torchaudio": "2.8.0"},
     "pip uninstall -y torchaudio && "
     'pip install "torch==2.9.*" torchvision "torchaudio==2.9.*"'),
    ("torch", {}, "pip install torch torchvision"),
    ("torchvision", {}, "pip install torch torchvision"),
])
def test_the_command_keeps_this_torch_where_it_can(monkeypatch, name, numbers, command):
    _numbers(monkeypatch, **numbers)
    assert versions.command(name) == command


def test_what_is_missing_is_said(monkeypatch):
    _numbers(monkeypatch, torch="2.15.0")
    assert versions.problem("torchvision") == (
        'torchvision is not installed; install it with: pip install "torch==2.15.0" '
        "torchvision")


def test_an_error_is_explained_only_where_it_comes_from_such_a_package(wrong):
    wrong("torchvision")

    def error_of(act):
        try:
            act()
        except Exception as error:
            return error

    def deep():
        try:
            import torchvision  # noqa: F401
        except RuntimeError as error:
            raise ImportError("Could not import module 'X'") from error

    assert versions.explain(error_of(deep)).startswith("torchvision ")
    assert versions.explain(error_of(lambda: int("x"))) is None
    assert versions.explain(ImportError("No module named 'torchaudio.x'")) is None  # works


CODE = """
import torch
from PIL import Image
from alignkit import load
from alignkit.course.doctor import doctor
from alignkit.course.setup import setup

setup()
for name, inputs in (("sound:yamnet", [(torch.randn(22_050), 22_050)]),
                     ("text:minilm", ["a cat"]),
                     ("image:mobilenetv2", [Image.new("RGB", (64, 64))]),
                     ("torchaudio:NO_SUCH", [])):
    try:
        print(name, tuple(load(f"random:{name}").encode(inputs)[-1].shape))
    except (ImportError, ValueError) as error:
        print(name, "stops:", error)
print(doctor())
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_build_stops_only_what_needs_it(wrong, name):
    """Beside a wrong torchaudio all but its own models goes on; transformers and timm need
    torchvision, sound at any rate and the set-up of a notebook nothing of both."""
    wrong(name)
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = {line.partition(" ")[0]: line for line in done.stdout.splitlines()}
    assert lines["sound:yamnet"] == "sound:yamnet (1, 1024)"
    optional = f"optional, for the encoders torchaudio:… alone: {name} "
    if name == "torchaudio":
        assert lines["text:minilm"] == "text:minilm (1, 384)"
        assert lines["image:mobilenetv2"] == "image:mobilenetv2 (1, 1280)"
        assert optional in done.stdout
        stopped = ["torchaudio:NO_SUCH"]
    else:
        assert done.stdout.endswith("\n1\n") and optional not in done.stdout
        stopped = ["text:minilm", "image:mobilenetv2"]
    for encoder in stopped:
        start = f"{encoder} stops: {name} {versions.installed(name)} cannot be imported "
        assert lines[encoder].startswith(f"{start}beside torch ")
        assert WRONG[name][:60] in lines[encoder] and "mend it with: pip" in lines[encoder]
