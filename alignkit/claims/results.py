"""Results on disk: one JSON a claim, read back, checked for staleness, and shown."""

import ast
import hashlib
import io
import json
import os
import sys
import tokenize
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path

from alignkit.data import Pairs
from alignkit.stats import HOLDS, NOT_RESOLVED, OPPOSITE

FOLDER = Path(__file__).parent / "results"
PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True)
class Result:
    """All that was measured for one claim; `figures` and `differences` are in the order
    of `seeds`, `interval` and `prediction` are {mean, low, high, n, sd}."""

    slug: str
    claim: str
    sentence: str
    scale: str
    figure: str
    baseline: str
    method: str
    differs: str
    seeds: list[int]
    figures: list[dict[str, float]]
    differences: list[float]
    interval: dict
    prediction: dict
    margin: float
    verdict: str
    detectable: float
    null: dict
    pilot: dict
    paper: dict | None
    settings: dict
    data: dict
    versions: dict
    code: str
    seconds: float
    peak_memory_mb: int

    def save(self, folder: Path) -> Path:
        """Write `<slug>.<claim>.json` in `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.slug}.{self.claim}.json"
        part = path.with_suffix(".part")
        part.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n",
                        "utf-8")
        os.replace(part, path)
        return path

    def mean(self, arm: str) -> float:
        """Mean figure of an arm over the seeds."""
        return sum(row[arm] for row in self.figures) / len(self.figures)

    def agrees(self, difference: float) -> bool:
        """Does a new seed's difference lie in the stored prediction interval?"""
        return self.prediction["low"] <= difference <= self.prediction["high"]

    def __str__(self) -> str:
        i, null = self.interval, self.null
        arms = (f"{self.baseline} {self.mean(self.baseline):.3f}, "
                f"{self.method} {self.mean(self.method):.3f}"
                if {self.baseline, self.method} <= set(self.figures[0]) else "")
        return "\n".join([
            f"{self.slug} · {self.claim}: {self.verdict.upper()}",
            f"  claim       {self.sentence}",
            f"  {self.figure:11} {arms}",
            f"  difference  {i['mean']:+.3f}, 95 % interval [{i['low']:+.3f}, "
            f"{i['high']:+.3f}] over {i['n']} paired seeds; margin {self.margin:g}; "
            f"could have seen {self.detectable:.3f}",
            f"  null        {null['name']}: {null['interval']['mean']:+.3f} "
            f"[{null['interval']['low']:+.3f}, {null['interval']['high']:+.3f}], "
            f"{'passed' if null['passed'] else 'NOT PASSED'} "
            f"(inside {null['expected']:g} ± {null['margin']:g})",
            f"  condition   {self.pilot['condition']}: {self.pilot['value']:.3g}, "
            f"{'present' if self.pilot['present'] else 'ABSENT'}",
            *([f"  paper       {paper['baseline']:g} -> {paper['method']:g}: {paper['source']}"]
              if (paper := self.paper) else []),
            f"  data        {self.data['name']} ({self.data['kind']}), scale {self.scale}",
            f"  cost        {self.seconds:.0f} s, peak {self.peak_memory_mb} MB",
        ])


def load(path: Path) -> Result:
    """Read a result. Raises ValueError if fields are missing or unknown."""
    raw = json.loads(path.read_text("utf-8"))
    names = {f.name for f in fields(Result)}
    if set(raw) != names:
        raise ValueError(f"{path}: not a result of this version (fields that differ: "
                         f"{sorted(set(raw) ^ names)})")
    return Result(**raw)


def stored(slug: str | None = None, folder: Path = FOLDER) -> list[Result]:
    """The published results, of one paper or of all, in the order of their names."""
    return [load(p) for p in sorted(folder.glob(f"{slug or '*'}.*.json"))]


def code_hash(slug: str) -> str:
    """sha256 over the code of the paper's method and claim files: a result of other code
    is stale. Words may be mended: docstrings, comments and empty lines do not count."""
    sha, name = hashlib.sha256(), slug.replace("-", "_") + ".py"
    for part in ("methods", "claims"):
        path = PACKAGE / part / name
        if path.is_file():
            sha.update(_code(path.read_text("utf-8")).encode())
    return sha.hexdigest()


def _code(source: str) -> str:
    """Python source without docstrings, comments, empty lines and trailing spaces."""
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(source)):
        if (isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
                and ast.get_docstring(node, clean=False) is not None):
            text = node.body[0]
            lines[text.lineno - 1:text.end_lineno] = [""] * (
                text.end_lineno - text.lineno + 1)
    return "\n".join(line.rstrip() for line in lines if line.strip())


def package_hash() -> str:
    """sha256 over the whole package: half-done runs of other code are not gone on with."""
    sha = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        sha.update(path.read_bytes())
    return sha.hexdigest()


def data_facts(pairs: Pairs) -> dict:
    """What the result says of its data."""
    p = pairs.provenance
    return {"name": p.name, "kind": p.kind, "licence": p.licence, "recipe": p.recipe,
            "hash": p.hash, "rows": len(pairs)}


def versions() -> dict:
    """Versions that can change a figure."""
    return {"python": sys.version.split()[0],
            **{name: version(name) for name in ("alignkit", "torch", "numpy", "timm",
                                                "transformers", "accelerate")}}


def peak_memory_mb() -> int:
    """Peak resident memory of this process, in MB."""
    if sys.platform == "win32":
        import psutil  # comes with accelerate

        return round(psutil.Process().memory_info().peak_wset / 1e6)
    import resource  # not there on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1e6 if sys.platform == "darwin" else 1e3))


def scoreboard(folder: Path = FOLDER) -> str:
    """The verdicts as a Markdown table."""
    lines = ["| paper | claim | data | difference [95 % interval] | seeds | null | verdict |",
             "|---|---|---|---|---|---|---|"]
    for r in stored(folder=folder):
        i, why = r.interval, ""
        if r.verdict == NOT_RESOLVED:
            why = f" ({i['n']} seeds could have seen {r.detectable:.3f})"
        if not r.pilot["present"]:
            why += (f" (its condition is absent: {r.pilot['condition']} "
                    f"{r.pilot['value']:.3g}, wanted in {r.pilot['wanted']})")
        lines.append(
            f"| {r.slug} | {r.sentence} | {r.data['name']} ({r.data['kind']}) | "
            f"{i['mean']:+.3f} [{i['low']:+.3f}, "
            f"{i['high']:+.3f}] {r.figure} | {i['n']} | "
            f"{'passed' if r.null['passed'] else 'not passed'} | **{r.verdict}**{why} |")
    return "\n".join(lines)


def verdicts(folder: Path = FOLDER) -> str:
    """The names of the claims by paper and verdict, as a Markdown table; a star: the null
    control was not passed; a dagger: the condition was not in the data."""
    found: dict[str, dict[str, list[str]]] = {}
    for r in stored(folder=folder):
        marks = "*" * (not r.null["passed"]) + "†" * (not r.pilot["present"])
        found.setdefault(r.slug, {}).setdefault(r.verdict, []).append(r.claim + marks)
    lines = ["| paper | holds | opposite | not resolved at this scale |", "|---|---|---|---|"]
    for slug, by in found.items():
        cells = (", ".join(by.get(v, ())) for v in (HOLDS, OPPOSITE, NOT_RESOLVED))
        lines.append(f"| {slug} | {' | '.join(cells)} |")
    return "\n".join(lines)
