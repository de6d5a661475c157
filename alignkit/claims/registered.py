"""Registered designs: what is claimed, with which margins, before the full run.

One JSON a paper in `registered/`, the newest registration last. Its hash is of the design
(sentences, arms, figures, budgets, grids, margins, nulls, conditions), of what else decides
values (`decides`: the first paired seed, the settings of scale small, the data), and of the
registration before it; not of code, which may be mended. A changed design is a new
registration with its reason. Those without `decides` are older: their hash is of the claims
alone. A headline's follow-up is registered alone, as SLUG.follow-up, and says which result
it was made for.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from importlib import import_module
from pathlib import Path

from alignkit.claims.claim import Claim
from alignkit.claims.hashes import code_hash, files_of
from alignkit.claims.results import FOLLOW_UP, TRIED, headline, measured, versions
from alignkit.training import Budget

FOLDER = Path(__file__).parent / "registered"
BEFORE_THE_RULE = "not registered: first run before the rule"
MOST_CLAIMS = 6  # one headline and five more; a follow-up of the headline beside them


def design(claims: Sequence[Claim]) -> list[dict]:
    """What is registered of each claim."""
    return [{
        "claim": c.name, "sentence": c.sentence, "headline": c.headline,
        "arms": list(c.arms), "starts": {
            name: arm.start if isinstance(arm.start, str) else "shipped weights"
            for name, arm in c.arms.items() if arm.start},
        "baseline": c.baseline, "method": c.method, "differs": c.differs,
        "figure": c.figure, "choose_by": c.choose_by,
        "own statistic": c.statistic is not None, "equivalence": c.equivalence,
        "margin": c.margin, "margin_why": c.margin_why,
        "units": c.units, "redrawn": c.redrawn,
        "budget": asdict(c.budget) | {"betas": list(c.budget.betas)},
        "budgets": {name: dict(change) for name, change in c.budgets.items()},
        "grid": [dict(point) for point in c.grid],
        "null": [c.null.name, c.null.expected, c.null.margin],
        "conditions": [[k.name, k.low, k.high] for k in c.conditions],
        **({"when": c.when} if c.when else {}),
    } for c in claims]


def decides(slug: str, data: str = "") -> dict[str, str]:
    """What decides values beside the claims: the first paired seed, each setting of scale
    small (budgets are in the claims), and the hash of the data's provenance. Empty where
    there is no claims file."""
    path = files_of(slug)[-1]
    if not path.is_file():
        return {}
    folder = "follow_ups." * (path.parent.name == "follow_ups")
    module = import_module(f"alignkit.claims.{folder}{path.stem}")
    small = getattr(module, "SCALES", {}).get("small")
    settings = vars(small) if small else {}
    return {"first seed": str(getattr(module, "FIRST", 0)), "data": data,
            **{f"small.{name}": repr(value) for name, value in settings.items()
               if not isinstance(value, Budget)}}


def design_hash(claims: Sequence[Claim], decided: dict | None = None, after: str = "") -> str:
    """sha256 of the design; with what else was decided, also of that and of the hash of the
    registration `after` which it comes: no two registrations have one hash."""
    alone = decided is None or not (decided or after)
    made = design(claims) if alone else [design(claims), decided, after]
    text = json.dumps(made, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def changed(slug: str, claims: Sequence[Claim], there: Sequence[dict], data: str = "",
            ) -> list[str]:
    """What is not as in the newest of the registrations `there`, in words. data: the hash of
    the data's provenance, if it is known. A setting that came later is none of it."""
    old, after = there[-1].get("decides"), there[-2]["hash"] if len(there) > 1 else ""
    said = [] if there[-1]["hash"] == design_hash(claims, old, after) else ["the claims"]
    now = decides(slug, data or (old or {}).get("data", ""))
    return said + [f"{name} ({value[:60]} -> {now.get(name, 'gone')[:60]})"
                   for name, value in (old or {}).items() if now.get(name) != value]


def registrations(slug: str, folder: Path = FOLDER) -> list[dict]:
    """All registrations of a paper (or of SLUG.follow-up), the newest last."""
    path = folder / f"{slug}.json"
    return json.loads(path.read_text("utf-8"))["registrations"] if path.is_file() else []


def current(slug: str, claims: Sequence[Claim], folder: Path = FOLDER, data: str = "",
            ) -> dict | None:
    """The newest registration, if it is of these claims (and of this `data`); else None."""
    there = registrations(slug, folder)
    return there[-1] if there and not changed(slug, claims, there, data) else None


def unseen(slug: str, claims: Sequence[Claim], scale: str, folder: Path = FOLDER) -> str:
    """Why no figure of an arm is shown: at tiny, and of a paper without results before its
    design is registered, for who has seen one does not choose a margin freely any more.
    Empty where figures are shown."""
    if scale == "tiny":
        return TRIED
    there = registrations(slug, folder)
    if scale == "small":
        there = current(slug, claims, folder)
    if there or measured(slug):
        return ""
    return (f"the design is not registered, so no figure is shown: alignkit register {slug}, "
            f"commit it, then alignkit reproduce {slug}")


def refuse_early(slug: str, claims: Sequence[Claim], reason: str = "",
                 folder: Path = FOLDER, data: str = "") -> None:
    """Raises ValueError for what `register` refuses and no training is needed to know: no
    headline or several, more than six claims, a changed design without its `reason`; of
    SLUG.follow-up more than one claim or one without `when`, a headline that is not
    published, and without a `reason` one that holds."""
    there, follows = registrations(slug, folder), slug.endswith(FOLLOW_UP)
    headlines = [c.name for c in claims if c.headline]
    other = changed(slug, claims, there, data) if there else []
    first = headline(slug.removesuffix(FOLLOW_UP)) if follows else None
    _refuse(slug, {
        f"one claim must be the headline, there are {headlines}":
            not follows and len(headlines) != 1,
        "a follow-up is one claim that says `when`":
            follows and [bool(c.when) for c in claims] != [True],
        "there is no published headline to follow": follows and first is None,
        "the headline holds: name with --reason the reason, another than the paper's, that the "
        "follow-up takes away": first is not None and first.verdict == "holds" and not reason,
        f"{len(claims)} claims, at most {MOST_CLAIMS}": len(claims) > MOST_CLAIMS,
        f"the design has changed: say why with --reason ({'; '.join(other)})":
            other and not reason,
    })


def register(slug: str, claims: Sequence[Claim], opened: dict, reason: str = "",
             edge: str = "", folder: Path = FOLDER, data: str = "") -> Path:
    """Write the design with its tuning and pilot (`runner.before`). data: the hash of the
    data's provenance.

    Raises ValueError as `refuse_early`, and for an arm whose training loss does not fall or a
    choice at an edge of the grid without a word on it (`edge`); without a `reason` for a
    condition that is absent, or a margin below the smallest difference that the pilot's
    noise lets eight seeds show.
    """
    refuse_early(slug, claims, reason, folder, data)
    pilot = opened["pilot"]
    stuck = [name for name, points in opened["falls"].items()
             if points and all(fell is False for fell in points)]
    absent = [name for name, p in pilot.items() if not p["present"]]
    below = [f"{c.name} ({c.margin:g} < {least:.2g})" for c in claims
             if (least := pilot[c.name]["smallest_detectable"]) and c.margin < least]
    _refuse(slug, {
        f"the training loss does not fall at any point of the grid: {stuck}": stuck,
        f"{opened['edges']} chose an edge of the grid: widen the grid for all arms, or say "
        "with --edge why it ends there": opened["edges"] and not edge,
        f"the condition of {absent} is absent: change the corpus, the start or the design, "
        "or say with --reason why it is published so": absent and not reason,
        f"the margin is below what eight seeds can show: {', '.join(below)}: take a larger "
        "test split, a steadier figure or a larger margin, or say with --reason why it is "
        "measured so": below and not reason,
    })
    there, decided = registrations(slug, folder), decides(slug, data)
    new = {"date": date.today().isoformat(), "reason": reason, "edge": edge,
           "hash": design_hash(claims, decided, there[-1]["hash"] if there else ""),
           "code": code_hash(slug), "versions": versions(), "decides": decided,
           **opened, "design": design(claims)}
    if slug.endswith(FOLLOW_UP):
        first = headline(slug.removesuffix(FOLLOW_UP))
        new["follows"] = {"claim": first.claim, "says": first.says(), "seeds": first.seeds,
                          "registration": first.registration}
    folder.mkdir(exist_ok=True)
    path = folder / f"{slug}.json"
    part = path.with_suffix(".part")
    part.write_text(json.dumps({"slug": slug, "registrations": [*there, new]}, indent=1,
                               ensure_ascii=False) + "\n", "utf-8")
    os.replace(part, path)
    return path


def _refuse(slug: str, problems: dict[str, object]) -> None:
    """Raises ValueError with all that is wrong at once; problem -> whether it is there."""
    if found := [text for text, wrong in problems.items() if wrong]:
        raise ValueError(f"{slug} is not registered: " + "; ".join(found))
