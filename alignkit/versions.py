"""Do torch, torchvision and torchaudio belong together?

The three are built against one another: a torchvision or torchaudio of another
torch release stops at import with a message about missing operators. This module
names the cause instead. It imports nothing of alignkit, and nothing heavy unless
the version numbers look wrong.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

# torchvision 0.(N + 15) is built for torch 2.N; torchaudio carries torch's number.
VISION_OFFSET = 15
# torchaudio has had no release after 2.11, so a newer torch has no partner.
LAST_AUDIO = 11


def installed(name: str) -> str | None:
    """The installed version of a package, None where there is none."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def loads(name: str) -> bool:
    """Whether the package can be imported here (the last word on a mismatch)."""
    try:
        import_module(name)
    except Exception:  # a wrong build fails with OSError, RuntimeError, ImportError …
        return False
    return True


def _minor(number: str) -> int:
    return int(number.split("+")[0].split(".")[1])


def _build(number: str) -> str:
    """The build after the plus sign: 'cu128', 'cpu', or '' where it is not given."""
    return number.partition("+")[2]


def _partners(torch: str, vision: str, audio: str) -> list[str]:
    """Names whose version number or build is not the one made for this torch."""
    expected = {
        "torchvision": (vision, "0", _minor(torch) + VISION_OFFSET),
        "torchaudio": (audio, "2", _minor(torch)),
    }
    wrong = []
    for name, (found, major, minor) in expected.items():
        same_release = found.split(".")[0] == major and _minor(found) == minor
        if not same_release or _build(found) != _build(torch):
            wrong.append(name)
    return wrong


def mismatch() -> str | None:
    """One sentence naming versions that do not fit and the pip command that mends it.

    None means that all three are installed and fit. Numbers that look wrong are
    forgiven where the package imports all the same.
    """
    found = {name: installed(name) for name in ("torch", "torchvision", "torchaudio")}
    missing = [name for name, number in found.items() if number is None]
    if missing:
        wrong, what = missing, f"{' and '.join(missing)} not installed"
    else:
        wrong = [name for name in _partners(*found.values()) if not loads(name)]
        what = "that are not builds of one release"
    if not wrong:
        return None
    torch = found["torch"] or f"2.{LAST_AUDIO}.0"
    minor = min(_minor(torch), LAST_AUDIO)
    have = ", ".join(f"{name} {number}" for name, number in found.items() if number)
    return (
        f"torchvision and torchaudio import only beside the torch that they were "
        f"built for, and here are {have or 'none of the three'}: {what}; mend it with: "
        f'pip install "torch==2.{minor}.*" "torchvision==0.{minor + VISION_OFFSET}.*" '
        f'"torchaudio==2.{minor}.*"'
    )
