"""The published verdicts as Markdown: a line a paper, a line a claim, and counts."""

from collections import Counter
from math import fsum
from pathlib import Path

from alignkit.claims.results import FOLDER, Result, stored
from alignkit.stats import HOLDS, VERDICTS, p_above, p_equivalent, survivors


def headlines(folder: Path = FOLDER, notebooks: dict[str, str] | None = None) -> str:
    """One line a paper: its headline. notebooks: slug -> link."""
    lines = ["| paper | headline | verdict | difference [interval] | seeds | the paper's own |"
             " new rows say the same | notebook |", "|---|---|---|---|---|---|---|---|"]
    for r in (found := stored(folder=folder)):
        if r.headline:
            own = (f"{r.paper['baseline']:g} → {r.paper['method']:g} ({r.paper['source']})"
                   if r.paper else "none stated")
            link = (notebooks or {}).get(r.slug, "")
            lines.append(f"| {r.slug} | {r.sentence} | {_verdict(r)}{_then(r, found)} | "
                         f"{_interval(r)} | {r.interval['n']} | {own} | "
                         f"{'yes' if r.carries_over else 'no'} | {link} |")
    return "\n".join(lines)


def all_claims(folder: Path = FOLDER) -> str:
    """One line a claim."""
    lines = ["| paper | claim | data | difference [interval] | margin | seeds | null | "
             "verdict |", "|---|---|---|---|---|---|---|---|"]
    for r in stored(folder=folder):
        lines.append(
            f"| {r.slug} | {_place(r, '**')}{r.sentence} | {r.data['name']} "
            f"({r.data['kind']}) | {_interval(r)} {r.figure} | {r.margin:g} | "
            f"{r.interval['n']} | {'passed' if r.null['passed'] else 'not passed'} | "
            f"{_verdict(r)} |")
    return "\n".join(lines)


def counts(folder: Path = FOLDER) -> str:
    """The verdicts counted, headlines and all claims."""
    found = stored(folder=folder)
    by = {"headlines": Counter(r.verdict for r in found if r.headline),
          "all claims": Counter(r.verdict for r in found)}
    lines = [f"| | {' | '.join(VERDICTS)} | in all |", "|---|" + "---|" * (len(VERDICTS) + 1)]
    for name, count in by.items():
        cells = " | ".join(str(count[v]) for v in VERDICTS)
        lines.append(f"| {name} | {cells} | {count.total()} |")
    return "\n".join(lines)


def by_chance(folder: Path = FOLDER) -> str:
    """How many 'holds' chance alone could give, and how many stay when all claims are
    tested together."""
    found = stored(folder=folder)
    if not found:
        return "No claim is published."
    ps = [p_of(r) for r in found]
    holds = sum(r.verdict == HOLDS for r in found)
    kept = {method: sum(stays and r.verdict == HOLDS for stays, r in
                        zip(survivors(ps, method), found)) for method in ("holm", "fdr_bh")}
    # fsum: Python 3.12 adds floats otherwise than 3.11, and the page must not change.
    expected = fsum(1 - r.looks[0]["level"] if r.headline else (1 - r.looks[0]["level"]) / 2
                    for r in found)
    return (f"Of {len(found)} claims {holds} hold. If every true difference stood exactly at "
            f"its margin, {expected:.1f} would hold by chance. Tested together, "
            f"{kept['holm']} of the {holds} stay after Holm's correction (5 % for any wrong "
            f"one among them) and {kept['fdr_bh']} after Benjamini and Hochberg's (5 % of "
            "them wrong).")


def p_of(r: Result) -> float:
    """p value of 'the difference is not above the margin' (not inside ± margin for a
    claim of equivalence)."""
    if r.equivalence:
        return p_equivalent(r.differences, r.margin)
    return p_above(r.differences, r.margin, r.looks[0]["seeds"])


def scoreboard(folder: Path = FOLDER, notebooks: dict[str, str] | None = None) -> str:
    """The whole page."""
    return "\n\n".join([
        counts(folder), by_chance(folder), "## Headlines", headlines(folder, notebooks),
        "## All claims", all_claims(folder)])


def summary(folder: Path = FOLDER, notebooks: dict[str, str] | None = None) -> str:
    """The README's table: the headlines of each part of the course by verdict, and counts.
    In italics what something makes weaker. notebooks: slug -> path, in the order of reading."""
    found, rows = stored(folder=folder), {}
    for slug, path in (notebooks or {}).items():
        for r in found:
            if r.headline and r.slug == slug:
                mark = "*" if _doubts(r) else ""
                then = "".join(f" (then {f.verdict})" for f in found if f.when and f.slug == slug)
                part = rows.setdefault(path.split("/")[-2], {v: [] for v in VERDICTS})
                part[r.verdict].append(f"{mark}[{slug}]({path}){mark}{then}")
    said = {part: {v: ", ".join(each) for v, each in row.items()} for part, row in rows.items()}
    for name, few in (("headlines", [r for r in found if r.headline]), ("claims", found)):
        count = Counter(r.verdict for r in few)
        said[f"{len(few)} {name}"] = {v: str(count[v]) for v in VERDICTS}
    return "\n".join(["| | verdicts |", "|---|---|", *(
        f"| {name} | {' · '.join(f'**{v}** {text}' for v, text in row.items() if text)} |"
        for name, row in said.items())])


def of_paper(slug: str, folder: Path = FOLDER) -> str:
    """One item a claim of a paper, the headline first and then its follow-up: verdict,
    sentence, interval, margin and its reason."""
    return "\n".join(
        f"- **{r.says().capitalize()}.** {_place(r, '*')}{r.sentence} "
        f"{r.figure} {_interval(r)}, {r.interval['n']} seeds, margin {r.margin:g} "
        f"({r.margin_why})"
        for r in sorted(stored(slug, folder=folder), key=lambda r: (not r.headline, not r.when)))


def _place(r: Result, mark: str) -> str:
    said = r.place().capitalize()
    return f"{mark}{said}.{mark} " if said else ""


def _verdict(r: Result) -> str:
    return f"**{r.verdict}**{_doubts(r)}"


def _then(headline: Result, found: list[Result]) -> str:
    """What the headline's follow-up said, behind its verdict."""
    return "".join(f"; {r.when[0].lower()}{r.when[1:]}: {_verdict(r)} {_interval(r)}"
                   for r in found if r.when and r.slug == headline.slug)


def _interval(r: Result) -> str:
    i = r.interval
    return f"{i['mean']:+.3f} [{i['low']:+.3f}, {i['high']:+.3f}]"


def _doubts(r: Result) -> str:
    rest = r.says().partition(", ")[2]
    absent = [f"{c['condition']} {c['value']:.3g}, wanted in {c['wanted']}"
              for c in r.pilot["conditions"] if not c["present"]]
    return f" ({'; '.join([rest, *absent])})" if rest else ""
