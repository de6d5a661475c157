"""Measures: worked by hand as fractions, against other libraries, and properties."""

import math
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score
from sklearn.neighbors import NearestNeighbors
from torch import nn
from torch.nn.functional import normalize, one_hot, softmax
from torchmetrics.classification import MulticlassCalibrationError
from torchmetrics.retrieval import RetrievalHitRate, RetrievalMRR, RetrievalRecall

from alignkit.data import Pairs
from alignkit.evaluation import (
    alignment,
    cka,
    cka_debiased,
    class_embeddings,
    effective_rank,
    encode_pairs,
    evaluate_retrieval,
    expected_calibration_error,
    linear_probe,
    modality_gap,
    mutual_knn,
    mutual_knn_grid,
    ranks,
    retrieval,
    rice_k,
    uniformity,
    zero_shot,
)

torch.set_num_threads(1)
QUICK = settings(max_examples=60, deadline=None, derandomize=True)


def randn(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype)


def by_scores(scores):
    """Queries and gallery as row numbers, so that a test can choose the scores."""
    query, gallery = torch.arange(scores.shape[0]), torch.arange(scores.shape[1])
    return query, gallery, lambda q, g: scores[q][:, g]


# ---------------------------------------------------------------- ranks and retrieval

# Items of the gallery: a a b b c. Scores of three queries, of items a, b, c:
SCORES = torch.tensor(
    [
        [0.9, 0.1, 0.5, 0.2, 0.0],  # a: places 1 and 4 (0.5 and 0.2 are above 0.1)
        [0.7, 0.6, 0.6, 0.1, 0.2],  # b: 0.6 ties with an a, so place 3; 0.1 place 5
        [0.3, 0.3, 0.3, 0.3, 0.3],  # c: all equal, so the last place, 5
    ]
)
QUERY_ITEM, GALLERY_ITEM = torch.tensor([0, 1, 2]), torch.tensor([0, 0, 1, 1, 2])
GOLDEN = {
    "hit@1": Fraction(1, 3),
    "hit@3": Fraction(2, 3),
    "hit@4": Fraction(2, 3),
    "hit@5": Fraction(1),
    "recall@1": Fraction(1, 3) * (Fraction(1, 2) + 0 + 0),
    "recall@3": Fraction(1, 3) * (Fraction(1, 2) + Fraction(1, 2) + 0),
    "recall@4": Fraction(1, 3) * (1 + Fraction(1, 2) + 0),
    "recall@5": Fraction(1),
    "mrr": Fraction(1, 3) * (1 + Fraction(1, 3) + Fraction(1, 5)),
    "median_rank": Fraction(3),
    "n_query": Fraction(3),
    "n_gallery": Fraction(5),
}


@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
def test_retrieval_worked_by_hand(chunk):
    query, gallery, score = by_scores(SCORES)
    found = retrieval(
        query, gallery, QUERY_ITEM, GALLERY_ITEM,
        score=score, ks=(1, 3, 4, 5), chunk=chunk,
    )
    assert found == pytest.approx({k: float(v) for k, v in GOLDEN.items()}, abs=1e-12)


def test_ranks_worked_by_hand_and_ties_count_against_the_model():
    relevant = QUERY_ITEM[:, None] == GALLERY_ITEM[None]
    assert ranks(SCORES, relevant).tolist() == [1, 3, 5]
    # Two relevant rows that tie with each other do not push each other down.
    assert ranks(torch.ones(1, 2), torch.ones(1, 2, dtype=torch.bool)).tolist() == [1]
    near = torch.tensor([[1.0, 1.0 - 1e-4]])
    first = torch.tensor([[True, False]])
    assert ranks(near, first).tolist() == [1]
    assert ranks(near, first, tie=1e-3).tolist() == [2]


def slow_retrieval(scores, query_item, gallery_item, k):
    """The definitions as loops: sort with the wrong rows first among equals."""
    hits, recalls, mrr = [], [], []
    for row, item in zip(scores.tolist(), query_item.tolist(), strict=True):
        right = [other == item for other in gallery_item.tolist()]
        order = sorted(zip(row, right, strict=True), key=lambda p: (-p[0], p[1]))
        places = [at for at, (_, good) in enumerate(order, 1) if good]
        hits.append(places[0] <= k)
        recalls.append(sum(place <= k for place in places) / len(places))
        mrr.append(1 / places[0])
    return {
        f"hit@{k}": np.mean(hits), f"recall@{k}": np.mean(recalls), "mrr": np.mean(mrr)
    }


def tied_scores(seed, n_query=7, n_gallery=11, n_items=4):
    """Small whole scores, so that ties abound; every item occurs in the gallery."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(-3, 4, (n_query, n_gallery), generator=generator).float()
    query_item = torch.randint(0, n_items, (n_query,), generator=generator)
    rest = torch.randint(0, n_items, (n_gallery - n_items,), generator=generator)
    return scores, query_item, torch.cat([torch.arange(n_items), rest])


@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 12))
@QUICK
def test_retrieval_is_the_slow_loop_for_any_ties_cut_off_and_chunk(seed, k, chunk):
    scores, query_item, gallery_item = tied_scores(seed)
    query, gallery, score = by_scores(scores)
    found = retrieval(
        query, gallery, query_item, gallery_item,
        score=score, ks=(k,), chunk=chunk, tie=0.0,
    )
    for name, value in slow_retrieval(scores, query_item, gallery_item, k).items():
        assert found[name] == pytest.approx(value, abs=1e-12)


@given(st.integers(0, 10**6))
@QUICK
def test_retrieval_does_not_see_row_order_nor_monotone_changes(seed):
    scores, query_item, gallery_item = tied_scores(seed)
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(query_item), generator=generator)
    columns = torch.randperm(len(gallery_item), generator=generator)

    def measure(scores, query_item, gallery_item):
        query, gallery, score = by_scores(scores)
        return retrieval(
            query, gallery, query_item, gallery_item, score=score, ks=(1, 3), chunk=4
        )

    plain = measure(scores, query_item, gallery_item)
    moved = measure(scores[rows][:, columns], query_item[rows], gallery_item[columns])
    bent = measure(scores.exp(), query_item, gallery_item)
    assert moved == pytest.approx(plain, abs=1e-12)
    assert bent == plain


@given(st.integers(0, 10**6))
@QUICK
def test_ranks_are_bounded_and_unchanged_by_monotone_scores(seed):
    scores, query_item, gallery_item = tied_scores(seed)
    relevant = query_item[:, None] == gallery_item[None]
    found = ranks(scores, relevant)
    assert (found >= 1).all() and (found <= 1 + (~relevant).sum(1)).all()
    assert torch.equal(found, ranks(scores**3 + 2 * scores - 5, relevant))


def test_retrieval_agrees_with_torchmetrics():
    n_query, n_gallery, n_items = 40, 90, 25
    scores, query_item, gallery_item = tied_scores(3, n_query, n_gallery, n_items)
    scores = torch.rand(scores.shape, generator=torch.Generator().manual_seed(1))
    query, gallery, score = by_scores(scores)
    found = retrieval(
        query, gallery, query_item, gallery_item, score=score, ks=(1, 5, 10), chunk=32
    )
    target = (query_item[:, None] == gallery_item[None]).flatten()
    indexes = torch.arange(n_query).repeat_interleave(n_gallery)
    theirs = {"mrr": RetrievalMRR()}
    for k in (1, 5, 10):
        theirs |= {f"recall@{k}": RetrievalRecall(top_k=k)}
        theirs |= {f"hit@{k}": RetrievalHitRate(top_k=k)}
    for name, metric in theirs.items():
        value = float(metric(scores.flatten(), target, indexes=indexes))
        assert found[name] == pytest.approx(value, abs=1e-6), name


@pytest.mark.parametrize("seed", range(20))
def test_a_collapsed_model_scores_nothing(seed):
    # Equal rows need not give bit-equal float32 products: hence the tie width.
    d = 3 + 37 * seed
    row = normalize(randn(1, d, seed=seed), dim=1)
    n = 2 + 13 * seed
    z, item = row.repeat(n, 1), torch.arange(n)
    found = retrieval(z, z.clone(), item, item, ks=(1,), chunk=64)
    assert found["hit@1"] == 0 and found["recall@1"] == 0
    assert found["mrr"] == pytest.approx(1 / n) and found["median_rank"] == n


def test_scores_are_made_in_blocks_and_relevant_blocks_at_most_twice():
    n, chunk, shapes = 500, 50, []
    z, item = normalize(randn(n, 8), dim=1), torch.arange(n)
    mixed = torch.randperm(n, generator=torch.Generator().manual_seed(0))

    def score(query, gallery):
        shapes.append((len(query), len(gallery)))
        return query @ gallery.T

    found = retrieval(z[mixed], z, mixed, item, score=score, ks=(1,), chunk=chunk)
    assert found["hit@1"] == 1
    assert max(max(shape) for shape in shapes) <= chunk
    # 10 x 10 blocks, and those on the diagonal again, but for the first query rows,
    # whose relevant block is the one scored last: nothing older is held.
    assert len(shapes) == 100 + 9
    shapes.clear()
    retrieval(z, z, item, item, score=score, ks=(1,), chunk=n)
    assert shapes == [(n, n)]


class Bag(NamedTuple):
    values: torch.Tensor
    mask: torch.Tensor


def late(query, gallery):
    """Sum over query tokens of the best gallery token (as FILIP and ColBERT do)."""
    cross = torch.einsum("qtd,gsd->qgts", query.values, gallery.values)
    cross = cross.masked_fill(~gallery.mask[None, :, None], -10.0)
    return (cross.amax(3) * query.mask[:, None]).sum(2)


def test_retrieval_takes_tuples_and_dicts_of_tensors():
    values, item = normalize(randn(9, 4, 5), dim=2), torch.arange(9)
    bag = Bag(values, torch.ones(9, 4, dtype=torch.bool))
    as_dict = {"a": values[:, 0], "b": values[:, 1]}

    def both(query, gallery):
        return query["a"] @ gallery["a"].T + query["b"] @ gallery["b"].T

    for outputs, score in ((bag, late), (as_dict, both)):
        found = retrieval(outputs, outputs, item, item, score=score, ks=(1,), chunk=4)
        assert found["hit@1"] == 1
    with pytest.raises(TypeError, match="pass score="):
        retrieval(bag, bag, item, item)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gallery_item": torch.tensor([0, 0, 1, 1, 1])}, "1 queries have no relevant"),
        ({"query_item": torch.tensor([0, 1])}, "query has"),
        ({"ks": (0, 1)}, "must be 1 or more"),
        ({"score": lambda q, g: torch.zeros(2, 2)}, r"shape \(2, 2\)"),
        ({"score": lambda q, g: torch.full((3, 5), math.nan)}, "15 of 15 scores"),
    ],
)
def test_retrieval_refuses(change, message):
    query, gallery, score = by_scores(SCORES)
    right = {"query_item": QUERY_ITEM, "gallery_item": GALLERY_ITEM, "score": score}
    with pytest.raises(ValueError, match=message):
        retrieval(query, gallery, **(right | change))


def test_ranks_refuses():
    yes = torch.ones(1, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="1 of 2 scores are NaN"):
        ranks(torch.tensor([[0.0, math.nan]]), yes)
    with pytest.raises(ValueError, match="no relevant row"):
        ranks(torch.zeros(1, 2), ~yes)
    with pytest.raises(ValueError, match="n_query, n_gallery"):
        ranks(torch.zeros(2, 2), yes)


# -------------------------------------------------------------- a method, on pairs


class Toy(nn.Module):
    """A method that passes features through, with dropout that eval must silence."""

    def __init__(self, collapsed=False):
        super().__init__()
        self.dropout, self.frozen = nn.Dropout(0.9), nn.Dropout(0.9)
        self.scale = nn.Parameter(torch.ones(()))
        self.collapsed, self.seen = collapsed, []

    def collate(self, rows, generator):
        return rows.batch()

    def encode(self, batch):
        self.seen.append((len(batch["image"]), torch.is_grad_enabled()))
        names = ("image", "text")
        out = {n: self.frozen(self.dropout(batch[n])) * self.scale for n in names}
        out = {n: torch.ones_like(z) for n, z in out.items()} if self.collapsed else out
        return {name: normalize(z, dim=1) for name, z in out.items()}

    def score(self, query, gallery):
        return query @ gallery.T


def captioned(n_items=4, captions=3):
    """Item i: one picture, e_i, on every row; captions near e_i except the last one's
    of item 0, which lies on e_1."""
    item = torch.arange(n_items).repeat_interleave(captions)
    image = torch.eye(n_items)[item]
    text = image.clone()
    text[captions - 1] = torch.eye(n_items)[1]
    return Pairs.make({"image": image, "text": text}, item=item)


@pytest.mark.parametrize("chunk", [1, 5, 100])
def test_evaluate_retrieval_with_many_captions_an_item(chunk):
    found = evaluate_retrieval(Toy(), captioned(), ks=(1, 3), chunk=chunk)
    there, back = found["image->text"], found["text->image"]
    assert (there["n_query"], there["n_gallery"]) == (4, 12)
    assert (back["n_query"], back["n_gallery"]) == (12, 4)
    # Pictures: each finds a caption first, except picture 1: its three captions tie
    # with the stray one, which stands before them: places 2, 3, 4.
    assert there["hit@1"] == pytest.approx(float(Fraction(3, 4)))
    # In the top 3: item 0 has 2 of 3 (its third ties at 0 with the rest), item 1 has
    # 2 of 3, items 2 and 3 all.
    share = Fraction(1, 4) * (Fraction(2, 3) + Fraction(2, 3) + 1 + 1)
    assert there["recall@3"] == pytest.approx(float(share))
    # Captions: 11 of 12 find their picture; the stray one ranks it last (4 of 4).
    assert back["hit@1"] == pytest.approx(float(Fraction(11, 12)))
    mrr = Fraction(1, 12) * (11 + Fraction(1, 4))
    assert back["mrr"] == pytest.approx(float(mrr))
    mean = (Fraction(3, 4) + Fraction(11, 12)) / 2
    assert found["mean"]["hit@1"] == pytest.approx(float(mean))
    assert found["protocol"] == {
        "ties": "against the model (within 1e-06)",
        "image": "first row of each item: 4 of 12",
        "text": "every row: 12 of 12",
    }


def test_without_once_every_copy_of_a_picture_stands_in_the_gallery():
    found = evaluate_retrieval(Toy(), captioned(), once=())
    assert found["text->image"]["n_gallery"] == 12
    assert found["image->text"]["n_query"] == 12


def test_a_collapsed_method_finds_nothing():
    found = evaluate_retrieval(Toy(collapsed=True), captioned(captions=1), ks=(1,))
    assert found["mean"]["hit@1"] == 0 and found["mean"]["mrr"] == pytest.approx(1 / 4)


def test_encoding_is_in_chunks_without_gradient_and_leaves_the_modes_alone():
    method = Toy()
    method.frozen.eval()
    outputs = encode_pairs(method, captioned(), ("image", "text"), chunk=5)
    assert method.seen == [(5, False), (5, False), (2, False)]
    assert torch.equal(outputs["image"], captioned()["image"])  # dropout was silent
    assert method.training and method.dropout.training and not method.frozen.training
    method.encode = lambda batch: 1 / 0
    with pytest.raises(ZeroDivisionError):
        encode_pairs(method, captioned(), ("image",))
    assert method.training and not method.frozen.training


def test_encoding_pads_masked_tokens_and_widens_half_precision():
    class Ragged(Toy):
        def encode(self, batch):
            longest = int(batch["length"].max())  # as a tokenizer pads a batch
            mask = torch.arange(longest) < batch["length"][:, None]
            values = batch["image"][:, None].repeat(1, longest, 1).half()
            return {"image": Bag(values, mask)}

    pairs = Pairs.make({"image": torch.eye(4), "length": torch.tensor([1, 2, 3, 1])})
    bag = encode_pairs(Ragged(), pairs, ("image",), chunk=2)["image"]
    assert bag.values.dtype == torch.float32 and bag.values.shape == (4, 3, 4)
    assert bag.mask.sum(1).tolist() == [1, 2, 3, 1]
    assert torch.equal(bag.values[0, :, 0], torch.tensor([1.0, 1.0, 0.0]))


def test_missing_rows_neither_ask_nor_answer():
    pairs = captioned(captions=1)
    pairs = pairs.with_present("image", torch.tensor([True, True, False, True]))
    found = evaluate_retrieval(Toy(), pairs, ks=(1,))
    there, back = found["image->text"], found["text->image"]
    assert (there["n_query"], there["n_gallery"]) == (3, 4)
    assert (back["n_query"], back["n_gallery"]) == (3, 3)
    assert found["protocol"]["image"] == "first row of each item: 3 of 4"


def test_evaluate_retrieval_refuses():
    with pytest.raises(KeyError, match="not 'sound'"):
        evaluate_retrieval(Toy(), captioned(), gallery="sound")
    with pytest.raises(ValueError, match="two different columns"):
        evaluate_retrieval(Toy(), captioned(), gallery="image")
    with pytest.raises(ValueError, match="once"):
        evaluate_retrieval(Toy(), captioned(), once=("sound",))
    nothing = captioned().with_present("image", torch.zeros(12, dtype=torch.bool))
    with pytest.raises(ValueError, match="no item of the pairs has both"):
        evaluate_retrieval(Toy(), nothing)


# ------------------------------------------------------------------ classification


def test_class_embeddings_worked_by_hand():
    # (1,0) and (0,3): unit rows e1, e2; their mean (1/2, 1/2) is (1, 1)/sqrt 2 in
    # unit length, whatever the lengths of the prompts.
    prompts = [torch.tensor([[1.0, 0.0], [0.0, 3.0]]), torch.tensor([[0.0, -2.0]])]
    half = math.sqrt(0.5)
    expected = torch.tensor([[half, half], [0.0, -1.0]])
    torch.testing.assert_close(class_embeddings(prompts), expected)


def test_zero_shot_worked_by_hand():
    # Classes e1, e2, e3. Right: rows 0, 1, 3. Row 2 is e1 but labelled 2. Row 4 ties
    # between e2 and e3, so it is wrong. Classes: 2 of 2, 1 of 2, 0 of 1.
    rows = [[1, 0, 0], [2, 1, 0], [1, 0, 0], [0, 1, 0], [0, 1, 1]]
    labels = torch.tensor([0, 0, 2, 1, 1])
    found = zero_shot(torch.tensor(rows).float(), torch.eye(3), labels)
    assert found["accuracy"] == pytest.approx(float(Fraction(3, 5)))
    balanced = Fraction(1, 3) * (1 + Fraction(1, 2) + 0)
    assert found["balanced_accuracy"] == pytest.approx(float(balanced))
    assert (found["top5_accuracy"], found["n"], found["n_classes"]) == (1, 5, 3)


def test_zero_shot_agrees_with_scikit_learn():
    image, classes = randn(300, 16), randn(12, 16, seed=1)
    labels = torch.randint(0, 12, (300,), generator=torch.Generator().manual_seed(2))
    image = image + 0.7 * classes[labels]
    found = zero_shot(image, classes, labels)
    scores = (normalize(image, dim=1) @ normalize(classes, dim=1).T).numpy()
    best = scores.argmax(1)
    assert found["accuracy"] == pytest.approx((best == labels.numpy()).mean())
    theirs = balanced_accuracy_score(labels.numpy(), best)
    assert found["balanced_accuracy"] == pytest.approx(theirs)
    top5 = top_k_accuracy_score(labels.numpy(), scores, k=5)
    assert found["top5_accuracy"] == pytest.approx(top5)


def test_zero_shot_of_a_collapsed_space_is_zero():
    image_z, class_z = randn(1, 4).repeat(6, 1), randn(1, 4, seed=1).repeat(2, 1)
    found = zero_shot(image_z, class_z, torch.arange(6) % 2)
    assert found["accuracy"] == 0


@pytest.mark.parametrize("l2", [0.1, 1.0, 50.0])
def test_linear_probe_agrees_with_scikit_learn(l2):
    centres = randn(4, 10, seed=1)
    labels = torch.arange(400) % 4
    x = randn(400, 10) * 3 + centres[labels] * 2 + 5
    x[:, 0] = 7  # a constant feature must not divide by zero
    found = linear_probe(x[:200], labels[:200], x[200:], labels[200:], l2)
    train, test = x[:200].double().numpy(), x[200:].double().numpy()
    scale = train.std(0, ddof=1)
    scale[0] = 1
    train, test = (train - train.mean(0)) / scale, (test - train.mean(0)) / scale
    model = LogisticRegression(C=1 / l2, tol=1e-10, max_iter=5000)
    model.fit(train, labels[:200].numpy())
    theirs = model.score(test, labels[200:].numpy())
    assert 0.4 < theirs < 0.99 and found["accuracy"] == pytest.approx(theirs)
    assert found["train_accuracy"] == pytest.approx(
        model.score(train, labels[:200].numpy())
    )
    balanced = balanced_accuracy_score(labels[200:].numpy(), model.predict(test))
    assert found["balanced_accuracy"] == pytest.approx(balanced)


def test_linear_probe_finds_the_minimum_that_scikit_learn_finds():
    from alignkit.evaluation.classify import fit_logistic

    x, y = randn(60, 5, dtype=torch.float64), torch.arange(60) % 3
    weight, bias = fit_logistic(
        x, 3, 2.0, lambda logits: torch.nn.functional.cross_entropy(logits, y))
    model = LogisticRegression(C=0.5, tol=1e-12, max_iter=9999)
    model.fit(x.numpy(), y.numpy())
    np.testing.assert_allclose(weight.T.numpy(), model.coef_, atol=1e-5)
    theirs = model.intercept_ - model.intercept_.mean()  # only differences matter
    np.testing.assert_allclose((bias - bias.mean()).numpy(), theirs, atol=1e-5)


def test_linear_probe_with_gaps_in_the_labels_and_an_unseen_class():
    x = torch.tensor([[-1.0], [-2.0], [1.0], [2.0]])
    found = linear_probe(
        x, torch.tensor([3, 3, 7, 7]), x[[0, 2, 3]], torch.tensor([3, 7, 9])
    )
    assert found["accuracy"] == pytest.approx(float(Fraction(2, 3)))
    assert found["balanced_accuracy"] == pytest.approx(float(Fraction(2, 3)))
    assert (found["n_classes"], found["train_accuracy"]) == (2, 1)
    with torch.no_grad():  # measured inside an evaluation
        y = torch.tensor([0, 0, 1, 1])
        assert linear_probe(x, y, x, y)["accuracy"] == 1


# ------------------------------------------------------------------------ geometry


def test_cka_worked_by_hand():
    # Centred already. X'X = 4, Y'Y = 4, X'Y = 0 for the first pair, so 0.
    x = torch.tensor([[1.0], [1.0], [-1.0], [-1.0]])
    y = torch.tensor([[1.0], [-1.0], [1.0], [-1.0]])
    assert cka(x, y) == pytest.approx(0, abs=1e-12)
    # [x y] against x: |(4, 0)|^2 / (|4 I| 4) = 16 / (4 sqrt 2 * 4) = 1/sqrt 2.
    assert cka(torch.cat([x, y], 1), x) == pytest.approx(math.sqrt(1 / 2))


def slow_hsic(k, l):
    n = len(k)
    k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))
    one = np.ones(n)
    total = np.trace(k @ l) + (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2))
    return total - 2 / (n - 2) * (one @ k @ l @ one)


def test_both_cka_agree_with_the_formula_on_gram_matrices():
    x = randn(30, 50).double() + 3
    y = (x @ randn(50, 7, seed=1).double() + randn(30, 7, seed=2)).double()
    n = len(x)
    k, l = (x @ x.T).numpy(), (y @ y.T).numpy()
    centre = np.eye(n) - 1 / n
    kc, lc = centre @ k @ centre, centre @ l @ centre
    plain = (kc * lc).sum() / np.sqrt((kc * kc).sum() * (lc * lc).sum())
    assert cka(x, y) == pytest.approx(plain, rel=1e-9)
    debiased = slow_hsic(k, l) / np.sqrt(slow_hsic(k, k) * slow_hsic(l, l))
    assert cka_debiased(x, y) == pytest.approx(debiased, rel=1e-7)


def test_debiased_cka_of_unrelated_rows_is_near_zero_where_cka_is_not():
    rows = [randn(40, 100, seed=seed) for seed in range(60)]
    draws = list(zip(rows[:30], rows[30:], strict=True))
    assert min(cka(x, y) for x, y in draws) > 0.6
    debiased = [cka_debiased(x, y) for x, y in draws]
    # Mean of 30 within four standard errors of 0.
    assert abs(np.mean(debiased)) < 4 * np.std(debiased, ddof=1) / math.sqrt(30)
    assert abs(np.mean(debiased)) < 0.02


def test_cka_ignores_rotation_scale_shift_and_row_order():
    x, y = randn(25, 6), randn(25, 4, seed=1)
    rotation = torch.linalg.qr(randn(6, 6, seed=2)).Q
    order = torch.randperm(25, generator=torch.Generator().manual_seed(3))
    for measure in (cka, cka_debiased):
        assert measure(x, 3 * x @ rotation - 2) == pytest.approx(1, abs=1e-5)
        assert measure(x[order], y[order]) == pytest.approx(measure(x, y), abs=1e-9)
        assert measure(x, y) == pytest.approx(measure(y, x), abs=1e-9)


def circle(*degrees):
    angle = torch.tensor(degrees).double().deg2rad()
    return torch.stack([angle.cos(), angle.sin()], dim=1)


def test_mutual_knn_worked_by_hand():
    # First space: neighbours (k = 1) of 0, 10, 90, 105 degrees: 1, 0, 3, 2.
    # Second: 0, 90, 12, 100: neighbours 2, 3, 0, 1: nothing shared. Third: 0, 10, 180,
    # 20: neighbours 1, then a tie of 0 and 3 for row 1, row 3 for row 2, row 1 for 3.
    first, second = circle(0, 10, 90, 105), circle(0, 90, 12, 100)
    third = circle(0, 10, 180, 20)
    assert mutual_knn(first, first, 1) == 1
    assert mutual_knn(first, second, 1) == 0
    # Row 0 agrees, row 1 half (0 is drawn half the time), row 2 agrees, row 3 not.
    expected = Fraction(1, 4) * (1 + Fraction(1, 2) + 1 + 0)
    assert mutual_knn(first, third, 1) == pytest.approx(float(expected))


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_mutual_knn_agrees_with_scikit_learn(chunk):
    x, y, k = randn(60, 8), randn(60, 5, seed=1), 6
    y[:, :3] += 2 * x[:, :3]
    near = [
        NearestNeighbors(n_neighbors=k, metric="cosine").fit(z).kneighbors()[1]
        for z in (x.numpy(), y.numpy())
    ]
    shared = [len({*a} & {*b}) / k for a, b in zip(*near, strict=True)]
    assert mutual_knn(x, y, k, chunk=chunk) == pytest.approx(np.mean(shared), abs=1e-6)
    grid = mutual_knn_grid([x, y], [y, x, x], k, chunk=chunk)
    agree = np.mean(shared)
    expected = torch.tensor([[agree, 1, 1], [1, agree, agree]], dtype=torch.float64)
    torch.testing.assert_close(grid, expected, atol=1e-6, rtol=0)


def test_mutual_knn_of_collapsed_spaces_is_chance_and_not_one():
    x, y = torch.ones(20, 3), torch.ones(20, 5)
    assert mutual_knn(x, y, 5) == pytest.approx(float(Fraction(5, 19)))
    assert mutual_knn(x, randn(20, 4), 5) == pytest.approx(float(Fraction(5, 19)))


@given(st.integers(0, 10**6))
@QUICK
def test_mutual_knn_does_not_see_row_order_scale_or_rotation(seed):
    x, y = randn(15, 4, seed=seed).double(), randn(15, 4, seed=seed + 1).double()
    order = torch.randperm(15, generator=torch.Generator().manual_seed(seed))
    rotation = torch.linalg.qr(randn(4, 4, seed=seed + 2, dtype=torch.float64)).Q
    plain = mutual_knn(x, y, 3)
    assert mutual_knn(x[order], y[order], 3) == pytest.approx(plain, abs=1e-9)
    assert mutual_knn(5 * x @ rotation, y, 3) == pytest.approx(plain, abs=1e-6)


def test_rice_k_is_the_ceiling_in_whole_numbers():
    known = {1: 2, 8: 4, 27: 6, 28: 7, 125: 10, 1000: 20, 1001: 21, 5000: 35}
    assert {n: rice_k(n) for n in known} == known
    for n in range(1, 3000):
        k = rice_k(n)
        assert (k - 1) ** 3 < 8 * n <= k**3


def test_gap_alignment_and_uniformity_worked_by_hand():
    x = torch.tensor([[2.0, 0.0], [0.0, 1.0]])  # unit rows e1, e2
    y = torch.tensor([[0.0, 3.0], [0.0, 1.0]])  # e2, e2
    # Centroids (1/2, 1/2) and (0, 1): distance sqrt(1/4 + 1/4).
    assert modality_gap(x, y) == pytest.approx(math.sqrt(1 / 2))
    assert modality_gap(x, y[:1]) == pytest.approx(math.sqrt(1 / 2))
    # Distances sqrt 2 and 0: mean of squares 1, mean of distances sqrt(2)/2.
    assert alignment(x, y) == pytest.approx(1)
    assert alignment(x, y, alpha=1) == pytest.approx(math.sqrt(2) / 2)
    # One pair at squared distance 2: log exp(-2 * 2) = -4.
    assert uniformity(x) == pytest.approx(-4)
    assert uniformity(y) == pytest.approx(0)
    assert uniformity(x, t=500) == pytest.approx(-1000)  # exp underflows, the log not


@pytest.mark.parametrize("chunk", [1, 9, 1000])
def test_uniformity_agrees_with_all_pairs(chunk):
    x = randn(40, 6).double()
    pairs = torch.pdist(normalize(x, dim=1)).square()
    expected = float((-2 * pairs).exp().mean().log())
    assert uniformity(x, chunk=chunk) == pytest.approx(expected)


def test_effective_rank_counts_equal_directions():
    for rank in (1, 2, 5):
        basis = torch.linalg.qr(randn(12, rank)).Q @ torch.linalg.qr(randn(8, rank)).Q.T
        assert effective_rank(7 * basis) == pytest.approx(rank, rel=1e-5)
    x = randn(20, 6)
    values = np.linalg.svd(x.numpy().astype(float), compute_uv=False)
    expected = math.exp(scipy_stats.entropy(values))
    assert effective_rank(x) == pytest.approx(expected)


# --------------------------------------------------------------------- calibration


def test_probabilities_of_half_precision_are_probabilities():
    """Their rows sum to 1 as far as the type can hold; logits are still told apart."""
    logits = 3 * torch.randn(512, 5, generator=torch.Generator().manual_seed(0))
    labels = logits.argmax(1)
    wide = expected_calibration_error(logits.softmax(1), labels)
    for kind in (torch.bfloat16, torch.float16):
        soft = logits.to(kind).softmax(1)
        assert (soft.float().sum(1) - 1).abs().max() > (1e-3 if kind == torch.bfloat16 else 0)
        assert expected_calibration_error(soft, labels) == pytest.approx(wide, abs=0.01)
        with pytest.raises(ValueError, match="apply softmax first"):
            expected_calibration_error(logits.to(kind), labels)
        with pytest.raises(ValueError, match="apply softmax first"):
            expected_calibration_error(1.02 * soft, labels)


def test_expected_calibration_error_worked_by_hand():
    # Two bins, the first (0, 1/2]. Confidence 1/2 (right), 1/2 (wrong): in the first
    # bin accuracy 1/2, gap 0. 3/4 (wrong), 1 (right): accuracy 1/2, confidence 7/8, gap
    # 3/8. Error: 2/4 * 0 + 2/4 * 3/8 = 3/16.
    rows = [[0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.25, 0.75, 0.0], [0.0, 0.0, 1.0]]
    labels = torch.tensor([0, 0, 0, 2])
    found = expected_calibration_error(torch.tensor(rows), labels, bins=2)
    assert found == pytest.approx(float(Fraction(3, 16)))
    # One bin: accuracy 2/4, mean confidence 11/16, gap 3/16.
    one = expected_calibration_error(torch.tensor(rows), labels, bins=1)
    assert one == pytest.approx(float(Fraction(11, 16) - Fraction(1, 2)))


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_expected_calibration_error_agrees_with_torchmetrics(bins):
    probabilities = softmax(2 * randn(500, 6), dim=1)
    labels = torch.randint(0, 6, (500,), generator=torch.Generator().manual_seed(1))
    theirs = MulticlassCalibrationError(num_classes=6, n_bins=bins, norm="l1")
    found = expected_calibration_error(probabilities, labels, bins)
    assert found == pytest.approx(float(theirs(probabilities, labels)), abs=1e-6)


def test_certain_and_right_is_calibrated_certain_and_wrong_is_not():
    labels = torch.arange(6) % 3
    certain = one_hot(labels, 3).float()
    assert expected_calibration_error(certain, labels) == 0
    assert expected_calibration_error(certain, (labels + 1) % 3) == 1


# ------------------------------------------------------------------------ refusals

BAD = torch.tensor([[0.0, 1.0], [math.nan, 1.0]])
OK = torch.eye(2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cka(OK, torch.eye(3)), "x has 2 rows and y 3"),
        (lambda: cka(BAD, OK), r"x holds NaN .* row 1"),
        (lambda: cka(OK, torch.ones(2, 2)), "every row of y is the same"),
        (lambda: cka(torch.ones(3), OK), r"shape \(3,\)"),
        (lambda: cka_debiased(OK, OK), "at least 4 rows"),
        (lambda: mutual_knn(OK, OK, 2), "k is 2"),
        (lambda: mutual_knn(OK, torch.zeros(2, 2), 1), r"ys\[0\] has 2 rows of zeros"),
        (lambda: mutual_knn_grid([], [OK], 1), "at least one tensor"),
        (lambda: modality_gap(OK, torch.eye(3)), "one space"),
        (lambda: alignment(OK, torch.ones(3, 2)), "x has 2 rows and y 3"),
        (lambda: uniformity(OK[:1]), "at least 2 rows"),
        (lambda: effective_rank(torch.zeros(2, 2)), "all zeros"),
        (lambda: rice_k(0), "n is 0"),
        (lambda: zero_shot(OK, OK, torch.tensor([0, 2])), "0 or more below 2"),
        (lambda: zero_shot(OK, OK, torch.tensor([0.0, 1.0])), "2 integers"),
        (lambda: zero_shot(OK, torch.eye(3), torch.tensor([0, 1])), "one space"),
        (lambda: class_embeddings([OK, torch.eye(3)]), r"widths \[2, 3\]"),
        (lambda: class_embeddings([torch.cat([OK, -OK])]), "mean of the prompts"),
        (lambda: linear_probe(OK, torch.ones(2).long(), OK, torch.arange(2)), "two"),
        (lambda: linear_probe(OK, torch.arange(2), OK, torch.arange(2), 0), "l2 is 0"),
        (lambda: expected_calibration_error(3 * OK, torch.arange(2)), "softmax first"),
        (lambda: expected_calibration_error(OK, torch.arange(2), 0), "bins is 0"),
    ],
)
def test_refusals_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_an_array_is_no_tensor():
    with pytest.raises(TypeError, match="x is a ndarray; give a torch tensor"):
        cka(OK.numpy(), OK)
