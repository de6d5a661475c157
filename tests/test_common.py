"""What papers' claims share: corpora, conditions, statistics of two gains, shipped models."""

from types import SimpleNamespace

import pytest
import torch

from alignkit.claims import common
from alignkit.claims.claim import Trained
from alignkit.claims.follow_ups import FIRST as FOLLOW_UPS
from alignkit.claims.runs import PILOT_SEEDS, TUNING_SEEDS
from alignkit.data import Pairs, Splits
from alignkit.parts import DualEncoder, Settings


def pairs_of(n: int = 12) -> Pairs:
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(0))
    return Pairs.make({"text": [f"caption {i}" for i in range(n)],
                       "image_features": x, "text_features": x + 0.01})


def trained(pairs: Pairs) -> Trained:
    """Heads that leave features as they are: all pairs are found."""
    method = DualEncoder(Settings(width=4), pairs)
    with torch.no_grad():
        for head in method.heads.values():
            head.weight.copy_(torch.eye(4))
            head.bias.zero_()
    return Trained(method, Splits(pairs, pairs, pairs), None)


def test_a_difference_of_gains_and_its_twins():
    found = common.gains(("plain", "new"), ("plain-one", "new-one"))
    assert found["subtracts"] == "new minus plain, less new-one minus plain-one"
    figures = {"plain": 0.25, "new": 0.75, "plain-one": 0.5, "new-one": 0.625}
    assert found["statistic"](figures) == 0.5 - 0.125
    assert found["twins"] == {"new": "plain", "new-one": "plain-one"}


def test_figures_by_arm_and_room():
    arm = trained(pairs_of())
    assert common.by_arm(lambda t: len(t.splits.test))({"a": arm, "b": arm}) == {
        "a": 12, "b": 12}
    measure = common.on_test(lambda method, rows: len(rows) * (method is arm.method))
    assert measure({"a": arm}) == {"a": 12}
    room = common.leaves_room("room above", 0.1, 0.9, "hit@1")
    assert (room.name, room.low, room.high) == ("room above", 0.1, 0.9)
    assert room.measure(arm) == 1.0  # there is none


def test_a_baseline_has_learned_and_leaves_room():
    """The prior is a number, or asked of the arm's own rows."""
    arm = Trained("a method", "splits", None)
    for prior in (0.075, lambda asked: 0.075 if asked is arm else 1 / 0):
        found = {}
        for figure in (0.07, 0.09, 0.1, 0.9, 0.95):
            both = common.learned_with_room("accuracy", lambda arm, x=figure: x, prior)
            found[figure] = [c.low <= c.measure(arm) <= c.high for c in both]
        assert found == {0.07: [False, True], 0.09: [False, True], 0.1: [True, True],
                         0.9: [True, True], 0.95: [True, False]}
    assert [c.name for c in both] == ["the baseline's accuracy less what the prior gets",
                                      "the baseline's accuracy leaves room"]
    for least, high in ((0.0, 0.9), (0.02, 0.09)):
        with pytest.raises(ValueError, match="cannot be"):
            common.learned_with_room("accuracy", len, 0.075, least, high)


def test_a_figure_that_is_asked_twice_is_computed_once():
    asked, arm, other = [], trained(pairs_of()), trained(pairs_of())

    @common.once
    def figure(arm):
        """Of an arm."""
        asked.append(arm)
        return len(asked)

    assert [figure(arm), figure(other), figure(arm), figure(arm)] == [1, 2, 1, 1]
    assert len(asked) == 2 and figure.__doc__ == "Of an arm."
    del other, asked[1]
    assert figure(arm) == 1 and figure(trained(pairs_of())) == 2  # not that of a freed one


def test_every_paired_seed_has_a_shipped_model_of_its_own():
    models = [3, 5, 8]
    assert [common.model_of(100 + k, models, first=100) for k in range(3)] == models
    for seeds in (TUNING_SEEDS, PILOT_SEEDS[:3]):
        assert {common.model_of(seed, models, first=100) for seed in seeds} == {*models}
    assert [common.model_of(FOLLOW_UPS + k, models, first=100) for k in range(3)] == models
    for seed in (99, 103, FOLLOW_UPS + 3):
        with pytest.raises(ValueError, match=f"seed {seed} has no model.*100 to 102"):
            common.model_of(seed, models, first=100)


def test_a_null_gives_rows_the_answers_of_others():
    parts = Splits(*(Pairs.make({"text": ["a"] * n}, labels={
        "answer": torch.arange(n), "kind": torch.arange(n)}) for n in (20, 9, 7)))
    found = common.shuffled_labels("answer")(parts, 3)
    assert found.test is parts.test
    for part, mixed in zip(parts[:2], found[:2]):
        assert sorted(mixed.labels["answer"].tolist()) == part.labels["answer"].tolist()
        assert not torch.equal(mixed.labels["answer"], part.labels["answer"])
        assert torch.equal(mixed.labels["kind"], part.labels["kind"])


def test_labels_that_lack_are_asked_for():
    common.need_labels(SimpleNamespace(labels={"class": 0}), ["class"], "give a class")
    with pytest.raises(ValueError, match=r"no labels \['class'\]: give a class, with label"):
        common.need_labels(pairs_of(), ["class"], "give a class")


def test_nothing_is_paired_in_any_split():
    pairs = pairs_of()
    for before, after in zip(Splits(pairs, pairs, pairs),
                             common.nothing_paired(Splits(pairs, pairs, pairs), 3)):
        assert sorted(after["text"]) == sorted(before["text"])
        assert all(a != b for a, b in zip(after["text"], before["text"]))


def test_the_usual_settings():
    assert common.rates(1e-3, 1e-2) == ({"lr": 1e-3}, {"lr": 1e-2})
    scale = common.Encoders(**common.GPU)
    assert scale.image.startswith("timm:") and scale.text.startswith("hf:")
    null = common.UNPAIRED
    assert (null.expected, null.margin) == (0.0, 0.02)
    assert null.transform is common.shuffled_training


def test_what_chooses_weights_is_shuffled_too():
    parts = Splits(*(pairs_of(n) for n in (12, 8, 9)))
    null = common.UNLEARNED
    assert (null.expected, null.margin) == (0.0, 0.02)
    found = null.transform(parts, 3)
    for part, mixed in zip((parts.train, parts.val), (found.train, found.val)):
        assert sorted(mixed["text"]) == sorted(part["text"])
        assert all(a != b for a, b in zip(mixed["text"], part["text"]))
        assert torch.equal(mixed["image_features"], part["image_features"])
    assert found.test is parts.test


def test_a_corpus_is_ours_or_the_users():
    ours, theirs = pairs_of(60), pairs_of(70)
    assert common.corpus("small", None, lambda: ours) is ours
    assert common.corpus("full", theirs, lambda: ours) is theirs
    for scale in ("gpu", "full"):
        with pytest.raises(ValueError, match=f"'{scale}' needs pairs of your own .--pairs TABLE"):
            common.corpus(scale, None, lambda: ours, "TABLE")
    with pytest.raises(ValueError, match="pairs has 59 different items.*at least 60"):
        common.corpus("tiny", None, lambda: pairs_of(59))
