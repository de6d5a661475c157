"""Generated chest pictures: what is drawn, boxed, said and read back is the same."""

import random
from collections import Counter

import numpy as np
import pytest
import torch

from alignkit.data.phantoms import MARK, Body, Shown, _box, draw_phantom, marked, phantoms
from alignkit.data.reports import (
    BOTH_SIDES, DEGREES, FINDINGS, NORMAL, SAID, SIDES, Finding, denials, every_finding,
    findings_of, report, said, sentences,
)  # fmt: skip


@pytest.fixture(scope="module")
def pairs():
    return phantoms(1200)


def told(pairs) -> list[set[Finding]]:
    """The findings of each row as the table has them."""
    table, found = pairs.tables["findings"], [set() for _ in pairs.ids]
    for item, name, side, degree in zip(*(table[k].tolist() for k in
                                          ("item", "finding", "side", "degree"))):
        found[item].add(Finding(FINDINGS[name], SIDES[side] if side >= 0 else "",
                                DEGREES[degree]))
    return found


def test_a_report_reads_back_into_its_findings(pairs):
    for text, there, drawn in zip(pairs["text"], told(pairs), pairs["image"].sources):
        assert findings_of(text) == there == {finding for finding, _ in drawn[1]}
        assert findings_of("  " + text.upper().replace(" ", "\n ")) == there
    assert max(map(len, told(pairs))) == 4 and min(map(len, told(pairs))) == 0


def test_no_two_findings_share_a_sentence():
    every = every_finding()
    assert len(every) == len({*every}) == (4 + 2 * 8) * 3
    assert len(SAID) == sum(len(sentences(finding)) for finding in every)
    silent = {*NORMAL, *(d for name in FINDINGS for d in denials(name))}
    assert not silent & SAID.keys() and len(silent) == len(NORMAL) + 12 * 4
    assert not any("." in sentence for sentence in {*silent, *SAID})
    one = Finding("nodule", "left", "marked")
    assert set(sentences(one)) == {
        "there is a marked left nodule", "a marked left nodule is seen",
        "a marked nodule on the left", "there is a marked left round density",
        "a marked left round density is seen", "a marked round density on the left"}
    assert "there is slight edema" in sentences(Finding("edema", "", "slight"))


def test_what_no_report_can_hold_says_nothing():
    one = Finding("nodule", "left", "marked")
    text = report([one], ["edema"], random.Random(0))
    assert [found for _, found in said(text)] == [one, None]
    for wrong in ("", "no nodule.", "a marked nodule.", "a left marked nodule is seen.",
                  "a marked left nodule is seen a marked left nodule is seen.", "nodule."):
        assert findings_of(wrong) == frozenset()
    assert findings_of("nodule nodule. a marked left nodule is seen") == {one}


def test_labels_say_what_the_table_says(pairs):
    for row, there in enumerate(told(pairs)):
        names = {finding.name for finding in there}
        assert {name for name in FINDINGS if pairs.labels[name][row]} == names
    sets = [frozenset(f.name for f in there) for there in told(pairs)]
    for label, values in (("findings", sets), ("report", pairs["text"])):
        number = pairs.labels[label].tolist()
        assert len({*number}) == len({*values}) == len({*zip(number, values)})
    assert all(0.07 < pairs.labels[name].float().mean() < 0.14 for name in FINDINGS)


def test_repeated_reports_are_there_as_the_plan_wants_them(pairs):
    count = Counter(pairs["text"])
    twins = sum(n for n in count.values() if n > 1) / len(pairs)
    label = pairs.labels["findings"]
    same = float(((label[:, None] == label).sum(1) - 1).float().mean()) / (len(pairs) - 1)
    assert 0.13 < twins < 0.23 and 0.13 < same < 0.17


@pytest.mark.parametrize("name", FINDINGS)
def test_a_finding_changes_the_picture_in_its_box_and_not_elsewhere(name):
    changes = []
    for k, degree in enumerate(DEGREES):
        body = Body(0.015, -0.01, 0.95, 0.09, 0.0, 1.0, 3)
        finding = Finding(name, "" if name in BOTH_SIDES else SIDES[k % 2], degree)
        box = _box(finding, body, random.Random(0))
        source = (tuple(body), ((tuple(finding), box),))
        with_, without = (np.asarray(draw_phantom((body, shown), 224, noise=False), float)
                          for shown in (source[1], ()))
        change = np.abs(with_ - without)[..., 0]
        x0, x1 = (round(224 * (0.5 + body.x + body.zoom * x)) for x in box[::2])
        y0, y1 = (round(224 * (0.5 + body.y + body.zoom * y)) for y in box[1::2])
        inside = change[max(y0 - 1, 0):y1 + 1, max(x0 - 1, 0):x1 + 1]
        assert 0 <= x0 < x1 <= 224 and 0 <= y0 < y1 <= 224
        assert inside.max() > 6 and inside.sum() > 0.999 * change.sum()
        if finding.side:  # the patient's left is on the right of the picture
            assert ((x0 + x1) / 2 > 115) == (finding.side == "left")
        changes.append(change.sum())
    assert changes == sorted(changes)  # the marked one changes most


def test_boxes_of_the_table_are_pixels_of_the_picture(pairs):
    table = pairs.tables["findings"]
    box, small = table["box"], phantoms(60, size=112).tables["findings"]
    assert (box[:, :2] < box[:, 2:]).all() and box.min() >= 0 and box.max() <= 224
    assert torch.allclose(small["box"] * 2, box[:len(small["box"])], atol=1e-3)
    lower = table["finding"] == FINDINGS.index("effusion")
    assert (box[lower, 1] > 112).all()
    assert (table["side"] == -1).sum() == sum(
        int(pairs.labels[name].sum()) for name in BOTH_SIDES)


def test_rows_stay_and_differ_by_corpus_seed(pairs):
    few, other = phantoms(20), phantoms(20, corpus_seed=1)
    assert few["text"] == pairs["text"][:20] and other["text"] != few["text"]
    assert few["image"][3].tobytes() == pairs["image"][3].tobytes()
    assert few["image"][3].tobytes() != other["image"][3].tobytes()
    every = few, other, pairs, phantoms(20, size=112), phantoms(20, absent=0)
    assert len({p.provenance.hash for p in every}) == len(every)
    picture = few["image"][0]
    assert picture.mode == "RGB" and picture.size == (224, 224)
    assert np.ptp(np.asarray(picture), axis=2).max() == 0  # grey


def test_shorter_reports_and_fewer_findings():
    short = phantoms(200, most=1, absent=0)
    assert max(len(text.split()) for text in short["text"]) <= 10
    assert max(map(len, told(short))) == 1
    kept = phantoms(200)
    assert [len(a) for a in told(short)] == [min(len(a), 1) for a in told(kept)]


def test_all_says_that_it_is_generated(pairs):
    assert pairs.provenance.kind == "generated" and "no patient" in pairs.provenance.source
    assert "generated" in MARK and "generated" in pairs.describe()
    picture = pairs["image"][0]
    mark = marked(picture)
    assert mark.size == picture.size and picture.tobytes() == pairs["image"][0].tobytes()
    strip = np.asarray(mark)[-13:]
    assert (strip == 0).any() and (strip > 150).any()  # letters on black
    assert np.array_equal(np.asarray(mark)[:-14], np.asarray(picture)[:-14])


def test_phantoms_refuses():
    for wrong in ({"n": 0}, {"size": 8}, {"most": 0}, {"most": 5}, {"absent": -1}):
        with pytest.raises(ValueError, match="n must be at least 1"):
            phantoms(**wrong)
