"""Findings of a generated chest picture in sentences, and sentences back into findings.

Every sentence a report can hold is written out once (`SAID`), so that a report, or one that
a model has generated, is read without any doubt: a sentence is known or it says nothing.
"""

import random
from collections.abc import Sequence
from typing import NamedTuple

SIDES = ("left", "right")  # the patient's, who faces the reader: left is drawn on the right
DEGREES = ("slight", "moderate", "marked")
PHRASES = {  # finding: two ways to call it, with an article where one counts them
    "cardiomegaly": ("cardiomegaly", "enlargement of the heart"),
    "effusion": ("a pleural effusion", "pleural fluid"),
    "pneumothorax": ("a pneumothorax", "free pleural air"),
    "consolidation": ("consolidation", "airspace opacity"),
    "nodule": ("a nodule", "a round density"),
    "atelectasis": ("atelectasis", "loss of volume"),
    "edema": ("edema", "vascular congestion"),
    "fibrosis": ("fibrosis", "a reticular pattern"),
    "emphysema": ("emphysema", "hyperinflation"),
    "cavity": ("a cavity", "a hollow lesion"),
    "calcification": ("calcification", "calcified foci"),
    "elevation": ("elevation of the diaphragm", "raised diaphragm"),
}
FINDINGS = tuple(PHRASES)
BOTH_SIDES = ("cardiomegaly", "edema", "fibrosis", "emphysema")  # they have no side
NORMAL = ("normal chest", "the lungs are clear and the heart is normal")


class Finding(NamedTuple):
    """One of `FINDINGS` as a report tells it; side: '' for one of `BOTH_SIDES`."""

    name: str
    side: str
    degree: str


def sentences(finding: Finding) -> list[str]:
    """All ways to say that a finding is there, without the full stop."""
    found = []
    for phrase in PHRASES[finding.name]:
        article, what = _parts(phrase)
        said = " ".join(w for w in (article, finding.degree, finding.side, what) if w)
        found += [f"there is {said}", f"{said} is seen"]
        if finding.side:
            apart = " ".join(w for w in (article, finding.degree, what) if w)
            found.append(f"{apart} on the {finding.side}")
    return found


def denials(name: str) -> list[str]:
    """All ways to say that a finding of this name is not there."""
    return [f"{start} {_parts(phrase)[1]}" for phrase in PHRASES[name]
            for start in ("no", "there is no")]


def report(findings: Sequence[Finding], absent: Sequence[str], draw: random.Random) -> str:
    """A sentence a finding, or one of `NORMAL` if there is none, then that each of the
    names `absent` is not there; wordings are drawn from `draw`."""
    said = [draw.choice(sentences(finding)) for finding in findings] or [draw.choice(NORMAL)]
    said += [draw.choice(denials(name)) for name in absent]
    return " ".join(f"{sentence}." for sentence in said)


def said(report: str) -> list[tuple[str, Finding | None]]:
    """(sentence, the finding it tells of) of a report, in order; None for one that tells of
    no finding, and for one that no report can hold. Case and spaces do not matter."""
    found = (" ".join(part.lower().split()) for part in report.split("."))
    return [(sentence, SAID.get(sentence)) for sentence in found if sentence]


def findings_of(report: str) -> frozenset[Finding]:
    """The findings that a report tells of; a sentence that no report can hold tells of none.

    Example:
        >>> findings_of("There is a marked left nodule. No edema.")
        frozenset({Finding(name='nodule', side='left', degree='marked')})
    """
    return frozenset(finding for _, finding in said(report) if finding)


def every_finding() -> list[Finding]:
    """Each finding on each side it can have, in each degree."""
    return [Finding(name, side, degree) for name in FINDINGS
            for side in (("",) if name in BOTH_SIDES else SIDES) for degree in DEGREES]


def _parts(phrase: str) -> tuple[str, str]:
    """("a", "nodule"), or ("", "edema")."""
    return ("a", phrase[2:]) if phrase.startswith("a ") else ("", phrase)


SAID = {sentence: finding for finding in every_finding() for sentence in sentences(finding)}
