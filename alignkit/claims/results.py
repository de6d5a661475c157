"""Results on disk: one JSON a claim, read back, checked for staleness, and shown."""

import ast
import hashlib
import io
import json
import os
import re
import sys
import tokenize
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path

from alignkit.data import Pairs

FOLDER = Path(__file__).parent / "results"
PACKAGE = Path(__file__).parents[1]
FOLLOW_UP = ".follow-up"  # SLUG.follow-up: the follow-up of a paper's headline
TRIED = "no verdict is read off scale tiny; figures are not shown"


@dataclass(frozen=True)
class Result:
    """All that was measured for one claim.

    figures, differences: in the order of `seeds`. looks: {seeds, level, interval, verdict}
    each; `interval` and `verdict` are the last one's, {mean, low, high, n, sd}; it speaks
    of new splits of this corpus (of new rows, where each seed has `redrawn` them).
    corrected: Nadeau and Bengio's interval for new rows of this kind (None: redrawn);
    carries_over: whether it says the same. items: in a training and in a test split.
    registration: hash of the registered design, or why there is none. seconds: of all
    the paper's claims together, summed over processes. when: see `Claim`.
    """

    slug: str
    claim: str
    sentence: str
    headline: bool
    scale: str
    figure: str
    baseline: str
    method: str
    differs: str
    equivalence: bool
    redrawn: bool
    units: int | None
    seeds: list[int]
    figures: list[dict[str, float]]
    differences: list[float]
    looks: list[dict]
    interval: dict
    prediction: dict
    margin: float
    margin_why: str
    verdict: str
    equivalent: bool
    corrected: dict | None
    carries_over: bool
    detectable: float
    null: dict
    pilot: dict
    paper: dict | None
    settings: dict
    data: dict
    items: dict
    registration: str
    versions: dict
    capability: str
    code: str
    seconds: float
    peak_memory_mb: int
    when: str = ""

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

    def says(self) -> str:
        """The verdict with its doubts, as on every page: "holds, null not passed"."""
        doubts = ["equivalent"] * (self.equivalent and not self.equivalence)
        doubts += ["for this corpus only"] * (not self.carries_over)
        doubts += ["condition absent"] * (not self.pilot["present"])
        doubts += ["null not passed"] * (not self.null["passed"])
        return ", ".join([self.verdict, *doubts])

    def place(self) -> str:
        """What it is among the paper's claims, in words: '', 'headline', or for a follow-up
        'follow-up' with the cause that it supplies or takes away."""
        return f"follow-up: {self.when}" if self.when else "headline" * self.headline

    def __str__(self) -> str:
        if self.scale == "tiny":
            return self._tried()
        i, null, look = self.interval, self.null, self.looks[-1]
        arms = (f"{self.baseline} {self.mean(self.baseline):.3f}, "
                f"{self.method} {self.mean(self.method):.3f}"
                if {self.baseline, self.method} <= set(self.figures[0]) else "")
        looks = "after a second look " if len(self.looks) > 1 else ""
        c = self.corrected
        return "\n".join([
            f"{self.slug} · {self.claim}{f' ({self.place()})' * bool(self.place())}: "
            f"{self.says().upper()}",
            f"  claim       {self.sentence}",
            f"  {self.figure:11} {arms}",
            f"  difference  {i['mean']:+.3f}, {100 * look['level']:g} % interval "
            f"[{i['low']:+.3f}, {i['high']:+.3f}] {looks}over {i['n']} paired seeds; margin "
            f"{self.margin:g}: {self.margin_why}",
            f"  new rows    [{c['low']:+.3f}, {c['high']:+.3f}] (corrected for splits of one "
            "pool)" if c else "  new rows    each seed has rows of its own",
            f"  null        {null['name']}: {null['interval']['mean']:+.3f} "
            f"[{null['interval']['low']:+.3f}, {null['interval']['high']:+.3f}], "
            f"{'passed' if null['passed'] else 'NOT PASSED'} "
            f"(inside {null['expected']:g} ± {null['margin']:g})",
            *(f"  condition   {c['condition']}: {c['value']:.3g}, "
              f"{'present' if c['present'] else 'ABSENT'}"
              for c in self.pilot["conditions"]),
            *([f"  paper       {paper['baseline']:g} -> {paper['method']:g}: {paper['source']}"]
              if (paper := self.paper) else []),
            f"  data        {self.data['name']} ({self.data['kind']}), scale {self.scale}",
            f"  design      {self.registration or 'not registered'}",
            f"  cost        {self.seconds:.0f} s for all claims of the paper, peak "
            f"{self.peak_memory_mb} MB",
        ])

    def _tried(self) -> str:
        """At tiny the file keeps the figures and nobody is shown them."""
        budgets, steps = self.settings["budgets"], self.settings["budget"]["steps"]
        arms = ", ".join(f"{name} {budgets.get(name, {}).get('steps', steps)} steps"
                         for name in self.settings["tuned"])
        return "\n".join([
            f"{self.slug} · {self.claim}{f' ({self.place()})' * bool(self.place())}: {TRIED}",
            f"  claim       {self.sentence}",
            f"  arms        {arms}; {len(self.seeds)} paired seeds",
            f"  data        {self.data['name']} ({self.data['kind']}), scale {self.scale}",
            f"  cost        {self.seconds:.0f} s for all claims of the paper, peak "
            f"{self.peak_memory_mb} MB",
        ])


def load(path: Path) -> Result:
    """Read a result. Raises ValueError if fields are missing or unknown."""
    raw = {"when": ""} | json.loads(path.read_text("utf-8"))
    names = {f.name for f in fields(Result)}
    if set(raw) != names:
        raise ValueError(f"{path}: not a result of this version (fields that differ: "
                         f"{sorted(set(raw) ^ names)})")
    return Result(**raw)


def stored(slug: str | None = None, folder: Path = FOLDER) -> list[Result]:
    """The published results, of one paper with its follow-up or of all, in the order of
    their names."""
    return [load(p) for p in sorted(folder.glob(f"{slug or '*'}.*.json"))]


def measured(name: str, folder: Path = FOLDER) -> list[Result]:
    """The published results of a paper's claims, or of SLUG.follow-up: of that alone."""
    slug, _, kind = name.partition(".")
    return [r for r in stored(slug, folder) if bool(r.when) == bool(kind)]


def headline(slug: str, folder: Path = FOLDER) -> Result | None:
    """The published result of a paper's headline, None if there is none."""
    return next((result for result in stored(slug, folder) if result.headline), None)


def files_of(name: str) -> list[Path]:
    """The claims file of a paper; of SLUG.follow-up that and the follow-up's own."""
    slug, _, kind = name.partition(".")
    folders = ("claims", "claims/follow_ups") if kind else ("claims",)
    return [PACKAGE / folder / f"{slug.replace('-', '_')}.py" for folder in folders]


def code_hash(name: str) -> str:
    """sha256 over the code of the paper's method and claim files, and of the methods of
    other papers that its claims compare: a result of other code is stale. Words may be
    mended: docstrings, comments and empty lines do not count. name: a paper's, or
    SLUG.follow-up: then of its own file too, which the paper's other results do not know."""
    sha, claims = hashlib.sha256(), [path for path in files_of(name) if path.is_file()]
    method = PACKAGE / "methods" / files_of(name)[0].name
    compared = [other for path in claims for other in re.findall(
        r"(?m)^from alignkit\.methods\.(\w+) import", path.read_text("utf-8"))]
    others = sorted({f"{other}.py" for other in compared} - {method.name})
    for path in (method, *claims, *(PACKAGE / "methods" / other for other in others)):
        if path.is_file():
            sha.update(_code(path.read_text("utf-8")).encode())
    return sha.hexdigest()


def _code(source: str) -> str:
    """Python source without docstrings, comments, empty lines and trailing spaces, and
    without a claim's `subtracts`, words for readers, where it has lines of its own."""
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.keyword) and node.arg == "subtracts":
            first, last = node.value.lineno - 1, node.value.end_lineno
            after = lines[last - 1].encode()[node.value.end_col_offset:].strip()
            if lines[first].lstrip().startswith("subtracts=") and after == b",":
                lines[first:last] = [""] * (last - first)
        if (isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
                and ast.get_docstring(node, clean=False) is not None):
            text = node.body[0]
            lines[text.lineno - 1:text.end_lineno] = [""] * (
                text.end_lineno - text.lineno + 1)
    return "\n".join(line.rstrip() for line in lines if line.strip())


def values_hash(name: str) -> str:
    """sha256 over all code that decides a paper's figures, or those of SLUG.follow-up: its
    claims file, the runner, and whatever they import, words apart. Kept work of other code
    is not gone on with."""
    sha = hashlib.sha256()
    for path in sorted(_imported([files_of(name)[-1], PACKAGE / "claims/work.py"])):
        sha.update(f"{path.relative_to(PACKAGE)}\n{_code(path.read_text('utf-8'))}".encode())
    return sha.hexdigest()


def _imported(paths: list[Path]) -> set[Path]:
    """The files of the package that these import, directly or not, and they themselves."""
    found, left = set(), list(paths)
    while left:
        path = left.pop()
        if path in found:
            continue
        found.add(path)
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            for name in _modules(node, path):
                file = PACKAGE.joinpath(*name.split(".")[1:])
                left += [f for f in (file.with_suffix(".py"), file / "__init__.py")
                         if f.is_file()]
    return found


def _modules(node: ast.AST, path: Path) -> list[str]:
    """The package's modules that an import statement may mean."""
    if isinstance(node, ast.Import):
        return [a.name for a in node.names if a.name.startswith("alignkit.")]
    if not isinstance(node, ast.ImportFrom):
        return []
    module = node.module or ""
    if node.level:
        here = ("alignkit", *path.relative_to(PACKAGE).parts[:-1])
        module = ".".join([*here[:len(here) - node.level + 1], *filter(None, [module])])
    if module.split(".")[0] != "alignkit":
        return []
    return [module, *(f"{module}.{a.name}" for a in node.names)]


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
