"""The claims of the notebook on measuring on pairs whose answer is known, and its
exercises against the package."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import one_hot

from alignkit.claims import measuring
from alignkit.course import measuring as exercises
from alignkit.data import Pairs
from alignkit.evaluation import retrieval
from alignkit.parts import DualEncoder, Settings
from alignkit.stats import second_look, t_interval, verdict


def known(n: int = 90) -> Pairs:
    """Three groups of two subgroups; the name of group 0 stands in the place of 1."""
    subgroup = torch.arange(n) % 6
    group = subgroup // 2
    z = one_hot(subgroup, 6).float()
    prompts = [z[:6][[2 * g, 2 * g + 1]] for g in range(3)]
    return Pairs.make(
        {"image": ["x"] * n, "text": ["y"] * n, "image_features": z, "text_features": z},
        labels={"group": group, "subgroup": subgroup},
        label_names={"group": ["A & b", "C", "d"],
                     "subgroup": ["a-one", "a-two", "c", "c-x", "e", "f"]},
        tables={"class_name": [prompts[1], prompts[0], prompts[2]],
                "class_prompts": prompts})


def reader(by: str, pairs: Pairs) -> DualEncoder:
    method = DualEncoder(measuring.ReadBy(width=6, by=by), pairs)
    with torch.no_grad():
        for head in method.heads.values():
            head.weight.copy_(torch.eye(6)), head.bias.zero_()
    return method


@pytest.mark.parametrize("by, right", [("name", 1 / 3), ("prompts", 1), ("probe", 1)])
def test_each_way_of_reading(by, right):
    splits = known().split(0)
    assert measuring.read(reader(by, splits.train), splits) == pytest.approx(right)


def test_the_probe_reads_labels_of_training_rows_alone():
    splits = known().split(0)
    other = splits.train.labels["group"].roll(1)
    turned = splits._replace(train=replace(splits.train, labels={
        "group": (splits.train.labels["group"] + 1) % 3, "subgroup": other}))
    assert measuring.read(reader("probe", splits.train), turned) == 0
    assert measuring.read(reader("prompts", splits.train), turned) == 1


def test_what_stands_for_a_group():
    texts = measuring.class_texts(known())
    assert texts["name"] == [["a and b"], ["c"], ["d"]]
    assert texts["prompts"] == [["a one", "a two"], ["c", "c x"], ["e", "f"]]


def test_shuffled_labels_are_the_same_labels_in_another_order():
    splits = known().split(0)
    mixed, again = (measuring.shuffled_labels(splits, 3) for _ in range(2))
    for before, after, same in zip(splits, mixed, again):
        y, other = before.labels["group"], after.labels["group"]
        assert torch.equal(other, same.labels["group"]) and not torch.equal(y, other)
        assert torch.equal(y.bincount(), other.bincount())
        assert torch.equal(before["image_features"], after["image_features"])


def test_pairs_without_classes_are_refused():
    plain = Pairs.make({"image": ["x"] * 80, "text": ["y"] * 80})
    with pytest.raises(ValueError, match=r"no labels \['group', 'subgroup'\]"):
        measuring.data("small", plain)


def test_arms_start_and_train_alike():
    claims = measuring.claims(known(), "tiny")
    assert [c.differs for c in claims] == ["inference"] * 2
    assert {type(arm.build(arm.data(0))) for c in claims for arm in c.arms.values()} == {
        DualEncoder}
    assert all(isinstance(arm.build(arm.data(0)).settings, Settings)
               for c in claims for arm in c.arms.values())


# The exercises teach what the package computes ----------------------------------------
def test_second_interval_and_judged_are_the_package():
    def looked(first, more, t):
        both = torch.cat([first, more]).double().tolist()
        return torch.tensor(second_look(both, len(first), 0.975)[1:3])

    def judged(d, margin, t):
        order = ("holds", "some gain", "no gain", "opposite", "not resolved")
        return order.index(verdict(t_interval(d.double().tolist()), margin))

    assert exercises.second_interval.grade(looked) and exercises.judged.grade(judged)


def test_recall_at_k_is_the_package():
    """Items make the right answers; scores come from a product with the unit matrix."""
    generator = torch.Generator().manual_seed(5)
    item = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 3])
    scores = torch.stack([torch.randperm(9, generator=generator) for _ in range(4)]).float()
    relevant = torch.arange(4)[:, None] == item
    for k in (1, 2, 4):
        found = retrieval(scores, torch.eye(9), torch.arange(4), item, ks=(k,))
        ours = exercises.recall_at_k.reference(scores, relevant, k)
        assert ours.item() == pytest.approx(found[f"recall@{k}"])
    tied = torch.ones(4, 9)
    assert exercises.recall_at_k.reference(tied, relevant, 5) == 0
