"""Results on disk: one JSON a claim, read back, checked for staleness, and shown."""

import json
import os
import sys
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path

from alignkit.claims.hashes import code_hash
from alignkit.data import Pairs
from alignkit.versions import __version__

FOLDER = Path(__file__).parent / "results"
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


def is_stale(result: Result, name: str) -> bool:
    """Was it measured with other code than today's? Results from before November 28 may
    still carry the hash that counts 'tiny'."""
    return result.code != code_hash(name) and result.code != code_hash(name, tiny=True)


def data_facts(pairs: Pairs) -> dict:
    """What the result says of its data."""
    p = pairs.provenance
    return {"name": p.name, "kind": p.kind, "licence": p.licence, "recipe": p.recipe,
            "hash": p.hash, "rows": len(pairs)}


def versions() -> dict:
    """Versions that can change a figure."""
    return {"python": sys.version.split()[0],
            "alignkit": __version__,
            **{name: version(name) for name in ("torch", "numpy", "timm", "transformers",
                                                "accelerate")}}


def peak_memory_mb() -> int:
    """Peak resident memory of this process, in MB."""
    if sys.platform == "win32":
        import psutil  # comes with accelerate

        return round(psutil.Process().memory_info().peak_wset / 1e6)
    import resource  # not there on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1e6 if sys.platform == "darwin" else 1e3))
