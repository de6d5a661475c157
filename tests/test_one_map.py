"""One map: who is dealt to what, who meets whom, and the share of the nearest tenth."""

from itertools import combinations

import pytest
import torch
from toys import with_tones

from alignkit.claims import Runs
from alignkit.claims import one_map as claims
from alignkit.data import Pairs
from alignkit.data.dealing import split_shared, unpaired
from alignkit.data.stacked import bare_name
from alignkit.evaluation.cells import luck, nearest_tenth
from alignkit.parts import info_nce, unit
from alignkit.parts.hub import Hub, HubSettings


# For the tests of all papers (toys.py).
def toy_pairs(pairs: Pairs) -> Pairs:
    """A tone of its own for each row."""
    return with_tones(pairs)


def toy_features(pairs: Pairs) -> Pairs:
    """And features of it that know something of the picture's."""
    image = pairs["image_features"]
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(1))
    return toy_pairs(pairs).with_columns(speech_features=image.flip(1) + noise)


WIDTHS = {"text": 6, "image": 9, "speech": 7, "sound": 8, "points": 5}


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    """Two places of 60 rows: drawn ones with speech, made ones with points, of which some
    have sounds; ten things stand in both."""
    drawn = torch.Generator().manual_seed(0)
    hidden = torch.randn(120, 4, generator=drawn)
    columns = {f"{kind}_features": hidden @ torch.randn(4, width, generator=drawn)
               for kind, width in WIDTHS.items()}
    item = [*range(60), *range(10), *range(60, 110)]
    row = torch.arange(120)
    here = {"speech": row < 60, "points": row >= 60, "sound": (row >= 60) & (row < 90)}
    return Pairs.make(
        {"text": [f"thing {k}" for k in item], **columns}, item=item,
        group=[max(k - k % 2, 0) if k < 60 else k for k in item],
        labels={"part": (row >= 60).long()}, label_names={"part": ["drawn", "made"]},
        present={f"{kind}_features": mask for kind, mask in here.items()})


def test_things_of_two_places_are_never_trained(pairs):
    for seed in range(3):
        parts = split_shared(pairs, seed)
        shared = set(range(10))
        assert shared <= set(parts.test.item.tolist())
        assert not shared & set(torch.cat([parts.train.item, parts.val.item]).tolist())
        assert not {*parts.train.group.tolist()} & {*parts.test.group.tolist()}


def test_of_scarce_kinds_a_quarter_chooses(pairs):
    """20 groups of things that stand in one place have a sound: 13, 5 and 2."""
    for seed in range(3):
        parts = split_shared(pairs, seed, scarce=["sound_features"])
        count = [len(part.group[part.present["sound_features"]].unique()) for part in parts]
        assert count == [13, 5, 2 + 5]
        assert sorted(i for part in parts for i in part.ids) == sorted(pairs.ids)
        for a, b in combinations(parts, 2):
            assert not {*a.group.tolist()} & {*b.group.tolist()}
    few = pairs.select((pairs.labels["part"] == 0) | (pairs.item < 69))  # nine such groups
    for a, b in zip(split_shared(few, 1), split_shared(few, 1, scarce=["sound_features"])):
        assert a.ids == b.ids


def test_one_thing_is_one_item_whatever_it_is_called():
    pairs = claims.data("tiny")
    said = [bare_name(text) for text in pairs["text"]]
    item = dict(zip(said, pairs.item.tolist()))
    for a, b in (("lip stick", "lipstick"), ("bike", "bicycle"), ("badger", "beaver"),
                 ("mountaingoat", "ram"), ("tv", "television"), ("keys", "key")):
        assert item[a] == item[b]
    assert item["bicycle"] != item["motorcycle"]
    sound = pairs["sound_features"]
    rows = pairs.present["sound_features"].nonzero()[:, 0]
    equal = (sound[rows][:, None] == sound[rows]).all(2)
    same = pairs.item[rows][:, None] == pairs.item[rows]
    assert (same | ~equal).all()
    parts = claims.split(pairs, 1)
    for a, b in combinations(parts, 2):
        assert not {*a.item.tolist()} & {*b.item.tolist()}


@pytest.mark.parametrize("hub", ["text", "image"])
def test_a_training_thing_is_for_one_kind_beside_the_hub(pairs, hub):
    train = claims.dealt(split_shared(pairs, 1), 1, hub).train
    others = [kind for kind in claims.kinds_of(pairs) if kind != hub]
    here = {kind: train.present[f"{kind}_features"] for kind in others}
    assert torch.stack([*here.values()]).sum(0).eq(1).all()
    assert train.present[f"{hub}_features"].all()
    for a, b in combinations(others, 2):
        assert not {*train.group[here[a]].tolist()} & {*train.group[here[b]].tolist()}
    assert all(mask.any() for mask in here.values())


def test_scarce_kinds_take_the_groups_that_have_them(pairs):
    parts = split_shared(pairs, 1)
    train = claims.dealt(parts, 1).train
    assert torch.equal(train.item[train.present["sound_features"]],
                       parts.train.item[parts.train.present["sound_features"]])


def test_broken_rows_keep_nothing_of_their_own_and_nobody_else_gets_any(pairs):
    wrong = unpaired(pairs, 3, claims._leaves(pairs))
    for kind in claims.kinds_of(pairs):
        name = f"{kind}_features"
        assert torch.equal(wrong.present[name], pairs.present[name])
        same = (wrong[name] == pairs[name]).all(1)
        here = pairs.present[name]
        assert same.all() if kind == "text" else torch.equal(same, ~here)
        rows = {tuple(row) for row in pairs[name][here].tolist()}
        assert {tuple(row) for row in wrong[name][here].tolist()} == rows


def test_the_loss_is_the_mean_over_the_kinds_that_meet(pairs):
    columns = {kind: f"{kind}_features" for kind in WIDTHS}
    meets = [("text", "speech"), ("text", "sound"), ("image", "points")]
    torch.manual_seed(0)
    method = Hub(HubSettings(towers=columns, width=4, meets=meets), pairs)
    rows = pairs.select(torch.arange(40, 100))
    found = method(method.collate(rows, torch.Generator()))["contrastive_loss"]
    each = []
    for a, b in meets:
        both = rows.select(rows.present[columns[a]] & rows.present[columns[b]])
        x, y = (unit(method.heads[kind](both[columns[kind]])) for kind in (a, b))
        each.append(info_nce(x, y, method.temperature(),
                             both.item[:, None] == both.item))
    assert torch.allclose(found, sum(each) / 3)


def test_kinds_that_do_not_meet_send_each_other_nothing(pairs):
    """With words for a hub the picture's head has the same gradient whatever the sounds."""
    columns = {kind: f"{kind}_features" for kind in WIDTHS}
    meets = [("text", kind) for kind in WIDTHS if kind != "text"]
    torch.manual_seed(0)
    method = Hub(HubSettings(towers=columns, width=4, meets=meets), pairs)
    found = []
    for rows in (pairs, pairs.with_columns(sound_features=torch.randn(120, 8))):
        loss = method(rows.batch() | {"present": pairs.present})["contrastive_loss"]
        found.append(torch.autograd.grad(loss, method.heads["image"].weight)[0])
    assert torch.equal(*found)


def test_a_batch_in_which_nobody_meets_is_refused(pairs):
    columns = {kind: f"{kind}_features" for kind in ("speech", "points")}
    method = Hub(HubSettings(towers=columns, width=4), pairs)
    with pytest.raises(ValueError, match="look at `present`"):
        method(pairs.batch())


def test_the_nearest_tenth_by_a_plain_loop(pairs):
    columns = {kind: f"{kind}_features" for kind in WIDTHS}
    torch.manual_seed(0)
    method = Hub(HubSettings(towers=columns, width=4), pairs)
    cell = "speech", "points"
    found = nearest_tenth(method, pairs, [cell])[cell]
    shares = []
    for ask, asked in (cell, cell[::-1]):
        z = {kind: unit(method.heads[kind](pairs[columns[kind]])).detach()
             for kind in cell}
        q, g = (pairs.present[columns[kind]].nonzero()[:, 0].tolist() for kind in (ask, asked))
        hits = []
        for row in q:
            right = [k for k in g if pairs.item[k] == pairs.item[row]]
            if right:
                cosine = {k: float(z[ask][row] @ z[asked][k]) for k in g}
                best = max(cosine[k] for k in right)
                hits.append(sum(v >= best for k, v in cosine.items() if k not in right)
                            < round(len(g) / 10))
        assert len(hits) == 10
        shares.append(sum(hits) / len(hits))
    assert found == pytest.approx(sum(shares) / 2)


def test_luck_is_a_tenth_for_things_with_one_row_and_more_for_two():
    """Of twenty rows two are shown; a thing with two rows is missed by 18/20 * 17/19."""
    here = {"sound": torch.tensor([0, 1, 2]), "points": torch.arange(3, 23)}
    item = torch.tensor([0, 1, 99, 0, 1, 1, *range(2, 19)])  # 99 is not there: does not ask
    assert luck(here, item, "sound", "points") == pytest.approx(
        (2 / 20 + 1 - 18 / 20 * 17 / 19) / 2)


def test_a_cell_without_enough_things_is_left_out(pairs):
    columns = {kind: f"{kind}_features" for kind in WIDTHS}
    method = Hub(HubSettings(towers=columns, width=4), pairs)
    few = pairs.select((pairs.labels["part"] == 1) | (pairs.item > 6))
    cells = [("speech", "points"), ("text", "points")]
    assert list(nearest_tenth(method, few, cells)) == cells[1:]
    with pytest.raises(ValueError, match="bring more rows"):
        nearest_tenth(method, few, cells[:1])


def test_codes_are_one_a_thing_and_say_nothing(pairs):
    codes = claims.with_codes(pairs)["text_codes"]
    same = pairs.item[:, None] == pairs.item
    assert torch.equal((codes[:, None] == codes).all(2), same)
    assert codes.shape == pairs["text_features"].shape


def test_arms_and_cells_of_the_claims(pairs):
    listed = {claim.name: claim for claim in claims.claims(pairs, "tiny")}
    assert [*listed] == ["emergent", "direct", "meaning", "hub"]
    arms = {name: arm for claim in listed.values() for name, arm in claim.arms.items()}
    built = {name: arm.build(arm.data(0)).settings for name, arm in arms.items()}
    words = {("text", kind) for kind in ("image", "speech", "sound", "points")}
    for name in ("broken", "words", "anchored", "codes"):
        assert {*built[name].meets} == words
    assert {b for a, b in built["pictures"].meets if a == "image"} == {
        "text", "speech", "sound", "points"}
    assert {*built["met"].meets} == words | {
        ("image", "speech"), ("image", "sound"), ("image", "points"), ("sound", "points")}
    assert built["codes"].towers["text"] == "text_codes"
    assert not any("text" in cell for cell in built["codes"].checked)
    assert torch.equal(arms["words"].data(0).test["image_features"],
                       arms["broken"].data(0).test["image_features"])


def test_every_claim_gives_its_cells(pairs):
    listed = claims.claims(pairs, "tiny")
    runs = Runs(listed)
    for claim in listed:
        for null in (False, True):
            figures = runs.figures(claim, 0, null=null)
            assert all(0 <= value <= 1 for value in figures.values())
            mine = [v for k, v in figures.items() if k.startswith(f"{claim.method}, ")]
            assert min(mine) <= figures[claim.method] <= max(mine)
    assert "words, text-image" in runs.figures(listed[0], 0)


def test_claims_without_a_third_kind_beside_pictures(pairs):
    few = pairs.only("text", "text_features", "image_features", "speech_features")
    assert "hub" not in [claim.name for claim in claims.claims(few, "tiny")]
