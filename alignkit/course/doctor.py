"""What is installed, what is cached, what is missing, and the one command that mends it."""

import platform
from importlib.metadata import requires

from alignkit.data.fetch import cache_dir, manifest, state
from alignkit.versions import command, installed, problem

INSTALL = 'pip install -e ".[course]" -c constraints.txt'


def doctor() -> int:
    """Print the state of this machine; 0 if all is well, 1 with the mending command."""
    mend = []
    print(f"python {platform.python_version()} on {platform.platform()}")

    wanted = [line.partition(";") for line in requires("alignkit") or []]
    for part in ("", "course", "test"):
        names = [_name(spec) for spec, _, marker in wanted
                 if (f'extra == "{part}"' in marker if part else not marker)]
        have = {name: installed(name) for name in names}
        print(f"{part or 'core'}: " + ", ".join(f"{n} {v or 'MISSING'}"
                                                for n, v in have.items()))
        if part != "test" and None in have.values():
            mend.append(INSTALL)
    for name in ("torch", "torchvision"):
        if found := problem(name):
            print(found)
            mend.append(command(name))
    if installed("torchaudio") and (found := problem("torchaudio")):
        print(f"optional, for the encoders torchaudio:… alone: {found}")

    print(f"cache: {cache_dir()}")
    optional = {name for name, entry in manifest().items() if entry.get("optional")}
    for name, what, size in state(rehash=True):
        is_spare = name in optional and what == "missing"
        print(f"  {name:20} {what:8} {size / 1e6:7.1f} MB"
              + ("  optional: fetched when it is asked for" if is_spare else ""))
        if what == "broken" and name in optional:
            mend.append('python -c "from alignkit.data.fetch import asset; '
                        f"asset('{name}')\"")
        elif what != "cached" and not is_spare:
            mend.append("alignkit features")
    sizes = [p.stat().st_size for p in (cache_dir() / "features").rglob("*.safetensors")]
    print(f"  {'features':20} {len(sizes)} files {sum(sizes) / 1e6:9.1f} MB")
    if not sizes:
        mend.append("alignkit features")
    print("all is well" if not mend else f"mend it with: {mend[0]}")
    return 1 if mend else 0


def _name(spec: str) -> str:
    return spec.split(">")[0].split("=")[0].split("<")[0].split("[")[0].strip()
