"""A paper's claims inside its notebook, by the same code as `alignkit reproduce`.

    study = Study(slug, scale, pairs_folder)
    study.pairs, study.claims, study.published
    study.train("a claim", seed)     # its arms, trained: {arm: Trained}
    study.design()                   # what each claim subtracts from what
    study.run(seeds)                 # these seeds, beside what was predicted for one
    study.verdicts()                 # what was published, as a table and a figure
"""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from alignkit.claims import Claim, Result, Trained, paper, rerun, stored
from alignkit.claims.registered import unseen
from alignkit.claims.train import own_pairs
from alignkit.course import plots

COLUMNS = 78
MANY = 12  # figures of a claim; of more, those named after arms are printed
SAME = 1e-6  # a published seed gives its stored difference again, up to this


class Study:
    """The claims of one paper on one data set.

    Attributes:
        pairs: with features, from the paper's `data`.
        claims: name -> Claim.
        published: name -> Result, a follow-up among them; empty before the first publication.
        compared: whether differences are asserted against the published ones: only at
            the scale and on the data that these were measured with.
        unseen: why no figure is shown (at tiny, before the registration), or "".
    """

    def __init__(self, slug: str, scale: str = "small", own: str = ""):
        """own: a CSV or a folder of one's own pairs; "" = the paper's corpus."""
        module = paper(slug)
        mine = own_pairs(Path(own), module.NEEDS) if own else None
        self.slug, self.scale = slug, scale
        self.pairs = module.data(scale, mine)
        self.claims = {c.name: c for c in module.claims(self.pairs, scale)}
        self.published = {r.claim: r for r in stored(slug)}
        self.unseen = unseen(slug, list(self.claims.values()), scale)
        self.runs = rerun(slug, list(self.claims.values()))
        scales = {r.scale for r in self.published.values()}
        self.compared = not own and scales == {scale}

    def train(self, claim: str, seed: int) -> dict[str, Trained]:
        """The claim's arms, trained with the published tuning; each arm once a seed."""
        return self.runs.trained(self._named([claim])[0], seed)

    def design(self, *names: str) -> None:
        """Print for each claim what is subtracted from what, margin and null."""
        for claim in self._named(names):
            what = claim.subtracts or ("a statistic of the arms" if claim.statistic else
                                       f"{claim.method} minus {claim.baseline}")
            null = claim.null
            _print(f"{claim.name}: {claim.sentence}")
            _print(f"{claim.figure}, {what}; margin {claim.margin:g}"
                   f" ({claim.margin_why})", "    ")
            _print(f"null: {null.name}, wanted {null.expected:g} ± {null.margin:g}", "    ")

    def run(self, seeds: Sequence[int], *names: str) -> dict[str, list[float]]:
        """Run the claims with these seeds, by default all of them; claim -> differences.
        Where figures are `unseen`, what was run is printed in their place.

        A seed that was published must give a difference that the published ones allow;
        of other seeds one in twenty lies outside the interval by chance, so it is said.

        Raises:
            AssertionError: a published seed gives something else.
        """
        found = {}
        for claim in self._named(names):
            found[claim.name] = []
            for seed in seeds:
                figures = self.runs.figures(claim, seed)
                difference = claim.difference(figures)
                found[claim.name].append(difference)
                if self.unseen:
                    self._print_tried(claim, seed)
                    continue
                said = self._expected(claim.name, seed, difference)
                _print(f"{claim.name}, seed {seed}: {difference:+.3f}, {said}")
                if len(figures) > MANY:  # what more there is has a table of its own
                    figures = {k: figures[k] for k in claim.arms if k in figures} or figures
                _print(", ".join(f"{k} {v:.3f}" for k, v in figures.items()), "    ")
        return found

    def verdicts(self, *names: str) -> None:
        """Print the published verdicts as a table, and draw their intervals."""
        then = [r.claim for r in self.published.values() if r.when]
        results = [self.published[name] for name in names or [*self.claims, *then]
                   if name in self.published]
        if not results:
            print(f"nothing is published yet: alignkit register {self.slug}")
            return
        _table(results)
        for r in results:
            if r.when:
                _print(f"{r.claim} follows the headline, on seeds from {r.seeds[0]}. {r.when}: "
                       f"{r.sentence} {r.figure}, {subtracted(r)}; margin {r.margin:g} "
                       f"({r.margin_why})")
            if r.paper:
                _print(f"the paper, for {r.claim}: {r.paper['baseline']:g} to "
                       f"{r.paper['method']:g} ({r.paper['source']})")
        plots.show(_figure(results), "Intervals in units of each claim's margin: "
                   + "; ".join(f"{r.claim} {verdict_of(r)}" for r in results))

    def _print_tried(self, claim: Claim, seed: int) -> None:
        """Arms, steps and seconds."""
        runs = {name: arm.history for name, arm in self.runs.trained(claim, seed).items()}
        _print(f"{claim.name}, seed {seed}: {self.unseen}")
        _print(", ".join(f"{name} {len(h.steps)} steps {h.seconds:.1f} s" if h
                         else f"{name} not trained" for name, h in runs.items()), "    ")

    def _named(self, names: Sequence[str]) -> list:
        if unknown := [name for name in names if name not in self.claims]:
            raise ValueError(f"{self.slug} has no claim {', '.join(unknown)}; there are "
                             f"{', '.join(self.claims)}")
        return [self.claims[name] for name in names or self.claims]

    def _expected(self, name: str, seed: int, difference: float) -> str:
        if not self.compared or name not in self.published:
            return "not compared (nothing published for this)"
        result = self.published[name]
        low, high = result.prediction["low"], result.prediction["high"]
        known = dict(zip(result.seeds, result.differences))
        same = seed in known and abs(known[seed] - difference) <= SAME
        inside = same or result.agrees(difference)
        assert inside or seed not in known, (
            f"{name}, seed {seed}: {difference:+.4f}, published {known[seed]:+.4f}, and "
            f"outside [{low:+.4f}, {high:+.4f}]")
        return f"{'inside' if inside else 'OUTSIDE'} [{low:+.3f}, {high:+.3f}]"


def subtracted(result: Result) -> str:
    """What its differences are, read off its figures: a claim that the method is worse has a
    statistic of its own, the baseline minus the method."""
    for plus, minus in ((result.method, result.baseline), (result.baseline, result.method)):
        if all({plus, minus} <= set(row) and abs(row[plus] - row[minus] - difference) <= SAME
               for row, difference in zip(result.figures, result.differences, strict=True)):
            return f"{plus} minus {minus}"
    return "a statistic of the arms"


def verdict_of(result: Result) -> str:
    """The verdict, with "equivalent" where that is known too."""
    return result.verdict + ", equivalent" * (result.equivalent and not result.equivalence)


def _print(text: str, indent: str = "") -> None:
    print(textwrap.fill(text, COLUMNS, initial_indent=indent,
                        subsequent_indent=indent + "  ", break_on_hyphens=False))


def _table(results: Sequence[Result]) -> None:
    width = max(len(r.claim) for r in results) + 1
    wide = max(13, *(len(verdict_of(r)) for r in results))
    print(f"{'claim':{width}}  {'mean':>6} {'interval':>16}  {'verdict':{wide}} new rows  null")
    for r in results:
        mean, low, high = (r.interval[k] for k in ("mean", "low", "high"))
        print(f"{r.claim + '*' * r.headline:{width}}  {mean:+.3f} [{low:+.3f}, {high:+.3f}]  "
              f"{verdict_of(r):{wide}} {'same' if r.carries_over else 'differ':8}  "
              f"{'passed' if r.null['passed'] else 'FAILED'}")
    levels = ", ".join(f"{'*' * headline}{100 * level:g} %" for headline, level in
                       sorted({(r.headline, r.looks[-1]["level"]) for r in results}))
    _print(f"intervals at {levels}; *the headline, with two looks; new rows: what the "
           "corrected interval, which asks about other rows of this kind, says")


def _figure(results: Sequence[Result]):
    """Every bar in units of its own margin, so that claims of different figures stand
    on one axis; beyond two margins the axis is logarithmic."""
    bars = {r.claim: tuple(r.interval[k] / (r.margin or 1) for k in ("mean", "low", "high"))
            for r in results}
    figure = plots.intervals(bars, margin=1, xlabel="difference, in margins")
    axis = figure.axes[0]
    axis.axvline(-1, color=plots.COLOURS["red"], linestyle="--")
    if max(abs(x) for bar in bars.values() for x in bar) > 8:
        low, high = axis.get_xlim()
        axis.set_xscale("symlog", linthresh=2)
        ticks = [x for x in (-50, -20, -10, -5, -2, -1, 0, 1, 2, 5, 10, 20, 50)
                 if low <= x <= high]
        axis.set_xticks(ticks, [str(x) for x in ticks], minor=False)
        axis.set_xticks([], minor=True)
    return figure
