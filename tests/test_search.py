"""Retrieval at scale: both directions in blocks, and the nearest rows of a gallery."""

import math
import sys
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode
from torchmetrics.retrieval import RetrievalHitRate, RetrievalMRR, RetrievalRecall

from alignkit.data import Pairs
from alignkit.evaluation import evaluate_retrieval, retrieval, retrieve, search
from alignkit.parts import DualEncoder, Settings, cosine

torch.set_num_threads(1)
QUICK = settings(max_examples=60, deadline=None, derandomize=True)
WAYS = ("query->gallery", "gallery->query")
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def unit_rows(n, d, seed=0):
    return normalize(torch.randn(n, d, generator=rng(seed)), dim=1)


def whole_rows(n, d, seed):
    """Rows of small whole numbers: every product is exact, and ties abound."""
    return torch.randint(-2, 3, (n, d), generator=rng(seed)).float()


class Watch(TorchDispatchMode):
    """Notes every tensor that is made, and the shapes of the products."""

    def __init__(self):
        super().__init__()
        self.largest, self.products = 0, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        made = out if isinstance(out, (tuple, list)) else [out]
        sizes = [x.numel() for x in made if isinstance(x, torch.Tensor)]
        self.largest = max([self.largest, *sizes])
        if function.name() in ("aten::mm", "mkldnn::_linear_pointwise"):
            self.products.append(tuple(out.shape))
        return out


# ------------------------------------------------- both directions, against the loops

# Items of the rows: queries a b b, gallery a a b c. In the margin: the places of the
# relevant rows, irrelevant ones first among equals.
SCORES = torch.tensor(
    [
        [5.0, 1.0, 3.0, 0.0],  # a: 1 and 3 (the 3 of b stands before the 1)
        [2.0, 2.0, 2.0, 1.0],  # b: 3 (two a with the same score)
        [0.0, 0.0, 4.0, 4.0],  # b: 2 (c ties)
    ]
)  # columns: a: 1; a: 2 (the 2 of b before the 1); b: 1 and 3 (4, then 3 of a, then 2)
QUERY_ITEM, GALLERY_ITEM = torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1, 2])
GOLDEN = {
    "query->gallery": {
        "hit@1": Fraction(1, 3), "hit@2": Fraction(2, 3), "hit@3": Fraction(1),
        "recall@1": Fraction(1, 3) * Fraction(1, 2),
        "recall@2": Fraction(1, 3) * (Fraction(1, 2) + 0 + 1),
        "recall@3": Fraction(1),
        "mrr": Fraction(1, 3) * (1 + Fraction(1, 3) + Fraction(1, 2)),
        "median_rank": Fraction(2), "n_query": Fraction(3), "n_gallery": Fraction(4),
    },
    "gallery->query": {  # c asks nothing
        "hit@1": Fraction(2, 3), "hit@2": Fraction(1), "hit@3": Fraction(1),
        "recall@1": Fraction(1, 3) * (1 + 0 + Fraction(1, 2)),
        "recall@2": Fraction(1, 3) * (1 + 1 + Fraction(1, 2)),
        "recall@3": Fraction(1),
        "mrr": Fraction(1, 3) * (1 + Fraction(1, 2) + 1),
        "median_rank": Fraction(1), "n_query": Fraction(3), "n_gallery": Fraction(3),
    },
}  # fmt: skip


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
def test_retrieve_worked_by_hand(chunk, dtype, device):
    query, gallery = SCORES.to(device, dtype), torch.eye(4).to(device, dtype)
    found = retrieve(
        query, gallery, QUERY_ITEM, GALLERY_ITEM,
        ks=(1, 2, 3), chunk=chunk, distractors=True,
    )  # fmt: skip
    for way in WAYS:
        wanted = {name: float(value) for name, value in GOLDEN[way].items()}
        assert found[way] == pytest.approx(wanted, abs=1e-12), way


def slow(scores, query_item, gallery_item, ks):
    """The definitions as loops: sort with the wrong rows first among equals."""
    places = []
    for row, item in zip(scores.tolist(), query_item.tolist(), strict=True):
        right = [other == item for other in gallery_item.tolist()]
        order = sorted(zip(row, right, strict=True), key=lambda p: (-p[0], p[1]))
        found = [at for at, (_, good) in enumerate(order, 1) if good]
        places += [found] if found else []
    n, first = len(places), sorted(found[0] for found in places)
    return {
        **{f"hit@{k}": sum(p[0] <= k for p in places) / n for k in ks},
        **{f"recall@{k}": sum(sum(x <= k for x in p) / len(p) for p in places) / n
           for k in ks},
        "mrr": sum(1 / p[0] for p in places) / n,
        "median_rank": (first[(n - 1) // 2] + first[n // 2]) / 2,
        "n_query": n,
        "n_gallery": len(gallery_item),
    }  # fmt: skip


def random_case(seed):
    """Rows with ties, many on either side of an item, and some without a partner."""
    n, m, items = (int(x) for x in torch.randint(1, 14, (3,), generator=rng(seed)))
    query_item = torch.randint(0, items, (n,), generator=rng(seed + 1))
    gallery_item = torch.randint(0, items, (m,), generator=rng(seed + 2))
    gallery_item[0] = query_item[0]
    return whole_rows(n, 3, seed), whole_rows(m, 3, seed + 9), query_item, gallery_item


@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 15))
@QUICK
def test_retrieve_is_the_slow_loop_both_ways_for_any_ties_and_chunk(seed, k, chunk):
    query, gallery, query_item, gallery_item = random_case(seed)
    scores, ks = query @ gallery.T, (k, 1)
    wanted = (slow(scores, query_item, gallery_item, ks),
              slow(scores.T, gallery_item, query_item, ks))  # fmt: skip
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        found = retrieve(
            query.to(dtype), gallery.to(dtype), query_item, gallery_item,
            ks=ks, chunk=chunk, tie=0.0, distractors=True,
        )  # fmt: skip
        for way, slowly in zip(WAYS, wanted, strict=True):
            assert found[way] == pytest.approx(slowly, abs=1e-12)


@given(st.integers(0, 10**6), st.integers(1, 15))
@QUICK
def test_retrieve_sees_no_row_order_and_swaps_with_its_sides(seed, chunk):
    query, gallery, query_item, gallery_item = random_case(seed)
    plain = retrieve(query, gallery, query_item, gallery_item, distractors=True)
    rows = torch.randperm(len(query), generator=rng(seed))
    columns = torch.randperm(len(gallery), generator=rng(seed))
    moved = retrieve(
        query[rows], gallery[columns], query_item[rows], gallery_item[columns],
        chunk=chunk, distractors=True,
    )  # fmt: skip
    swapped = retrieve(
        gallery, query, gallery_item, query_item, chunk=chunk, distractors=True
    )
    for way, other in zip(WAYS, WAYS[::-1], strict=True):
        assert moved[way] == pytest.approx(plain[way], abs=1e-12)
        assert swapped[other] == pytest.approx(plain[way], abs=1e-12)


@pytest.mark.parametrize("chunk", [37, 64, 1000])
@pytest.mark.parametrize("d", [3, 64, 777])
def test_a_copy_of_the_right_row_ties_in_whatever_block_it_lies(chunk, d):
    n = 150
    z = unit_rows(n, d)
    item = torch.randperm(n, generator=rng(1))
    found = retrieve(
        z, torch.cat([z, z]), item, torch.cat([item, item + n]),
        ks=(1, 2), chunk=chunk, distractors=True,
    )["query->gallery"]  # fmt: skip
    assert (found["hit@1"], found["hit@2"], found["mrr"]) == (0, 1, 0.5)


def test_a_collapsed_model_is_last_both_ways():
    z, item = unit_rows(1, 100).repeat(90, 1), torch.arange(90)
    for found in retrieve(z, z.clone(), item, item, ks=(1,), chunk=32).values():
        assert (found["hit@1"], found["median_rank"]) == (0, 90)


def test_float64_tells_apart_what_float32_does_not():
    z = torch.tensor([[1.0, 0.0], [1 - 1e-10, 0.0]], dtype=torch.float64)
    item = torch.arange(2)
    found = retrieve(z[:1], z, item[:1], item, ks=(1,), tie=0.0, distractors=True)
    assert found["query->gallery"]["hit@1"] == 1
    other = z - 1e-10  # now the wrong row is the larger: 1 - 1e-10 to 1 - 2e-10
    found = retrieve(z[:1], other.flip(0), item[:1], item, tie=0.0, distractors=True)
    assert found["query->gallery"]["hit@1"] == 0
    z = z.float()
    found = retrieve(z[:1], z, item[:1], item, ks=(1,), tie=0.0, distractors=True)
    assert found["query->gallery"]["hit@1"] == 0


def test_half_precision_is_widened_also_under_autocast():
    a, b, item = unit_rows(200, 32), unit_rows(200, 32, seed=1), torch.arange(200)
    a, b = a.bfloat16(), (a + 2 * b).bfloat16()
    wide = retrieve(a.float(), b.float(), item, item, chunk=64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert retrieve(a, b, item, item, chunk=64) == wide
    half = retrieval(a, b, item, item)  # products rounded to 8 bits: many more ties
    assert half["mrr"] < wide["query->gallery"]["mrr"]


def test_retrieve_makes_each_block_once_and_never_the_matrix():
    n, chunk, d = 500, 50, 8
    z, item = unit_rows(n, d), torch.randperm(n, generator=rng())
    with Watch() as watch:
        found = retrieve(z, z.clone(), item, item, ks=(1,), chunk=chunk)
    assert all(found[way]["hit@1"] == 1 for way in WAYS)
    # 10 x 10 blocks; those of the diagonal again, but for the last, which still stands.
    assert watch.products == [(chunk, chunk)] * (100 + 9)
    # A block beside the best so far, or the rows themselves; the matrix has n * n.
    assert watch.largest == max(chunk * (chunk + 1), n * d) < n * n / 20


def test_retrieve_agrees_with_torchmetrics():
    n, m = 60, 90
    query_item = torch.randint(0, 25, (n,), generator=rng())
    gallery_item = torch.cat([torch.arange(25), query_item[:1].repeat(m - 25)])
    query, gallery = unit_rows(n, 16), unit_rows(m, 16, seed=1)
    found = retrieve(query, gallery, query_item, gallery_item, chunk=32,
                     distractors=True)  # fmt: skip
    # torchmetrics 1.9 misplaces rows with a negative score: so 1 + cosine.
    scores, target = 1 + query @ gallery.T, query_item[:, None] == gallery_item
    sides = ((scores, target), (scores.T, target.T))
    for way, (score, right) in zip(WAYS, sides, strict=True):
        score, right = score[right.any(1)], right[right.any(1)]
        indexes = torch.arange(len(score)).repeat_interleave(score.shape[1])
        theirs = {"mrr": RetrievalMRR()}
        for k in (1, 5, 10):
            theirs |= {f"recall@{k}": RetrievalRecall(top_k=k)}
            theirs |= {f"hit@{k}": RetrievalHitRate(top_k=k)}
        for name, metric in theirs.items():
            value = metric(score.flatten(), right.flatten(), indexes=indexes)
            assert found[way][name] == pytest.approx(float(value), abs=1e-6), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query_item": torch.tensor([0, 3, 3])}, "2 queries have no relevant row"),
        ({"gallery_item": torch.tensor([0, 0, 1, 2])}, "1 gallery rows .*distractors"),
        ({"query_item": torch.tensor([7] * 3), "distractors": True}, "3 queries have"),
        ({"query_item": torch.tensor([0, 1])}, "query has .* one item a row"),
        ({"query": SCORES[:, :3]}, "query has width 3 and gallery 4"),
        ({"query": SCORES * math.inf}, "query holds NaN or infinite values"),
        ({"query": SCORES * 1e30, "gallery": torch.eye(4) * 1e30}, "give unit rows"),
        ({"ks": (0, 1)}, "must be 1 or more"),
        ({"ks": ()}, "must be 1 or more"),
        ({"chunk": 0}, "chunk is 0"),
    ],
)
def test_retrieve_refuses(change, message):
    right = {"query": SCORES, "gallery": torch.eye(4), "query_item": QUERY_ITEM,
             "gallery_item": torch.tensor([0, 0, 1, 1])}  # fmt: skip
    with pytest.raises(ValueError, match=message):
        retrieve(**(right | change))


# ------------------------------------------------------------------ a method, on pairs


class OwnScore(DualEncoder):
    """The same scores as the default, from a function that could be any other."""

    def score(self, query, gallery):
        self.shapes.append((len(query), len(gallery)))
        return cosine(query, gallery)


def captioned(seed):
    """Pictures with up to four captions; some rows lack one of the two."""
    item = torch.randint(0, 40, (120,), generator=rng(seed)).sort().values
    columns = {f"{name}_features": torch.randn(120, 16, generator=rng(seed + at))
               for at, name in enumerate(("image", "text"))}  # fmt: skip
    columns["text_features"] += 2 * columns["image_features"]
    pairs = Pairs.make(columns, item=item)
    for at, name in enumerate(columns):
        there = torch.rand(120, generator=rng(seed + 5 + at)) < 0.8
        pairs = pairs.with_present(name, there)
    return pairs


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("once", [None, (), ("image", "text")])
def test_the_default_score_gives_the_report_of_score_blocks(seed, once, monkeypatch):
    pairs = captioned(seed)
    plain, own = (kind(Settings(width=8), pairs) for kind in (DualEncoder, OwnScore))
    own.load_state_dict(plain.state_dict())
    own.shapes = []
    slowly = evaluate_retrieval(own, pairs, chunk=32, once=once)
    assert max(max(shape) for shape in own.shapes) <= 32  # bounded for any score
    monkeypatch.setattr("alignkit.evaluation.evaluate.retrieval", None)  # not used now
    found = evaluate_retrieval(plain, pairs, chunk=32, once=once)
    assert found.keys() == slowly.keys() and found["protocol"] == slowly["protocol"]
    for way in ("image->text", "text->image", "mean"):
        assert found[way] == pytest.approx(slowly[way], abs=1e-12)
    assert 0 < found["mean"]["mrr"] < 1


# ---------------------------------------------------------------- the k nearest rows


def test_search_worked_by_hand():
    scores, places, recall = search(SCORES[:, :3], torch.eye(3), k=2, chunk=2)
    assert scores.tolist() == [[5, 3], [2, 2], [4, 0]] and recall == 1
    assert places[0].tolist() == [0, 2] and places[2, 0] == 2
    assert len(set(places[1].tolist())) == 2  # any two of three equal rows


@pytest.mark.parametrize("device", DEVICES)
@given(st.integers(0, 10**6), st.integers(1, 20), st.data())
@QUICK
def test_exact_search_is_a_sort_for_any_ties_and_chunk(device, seed, chunk, data):
    query, gallery, *_ = random_case(seed)
    k = data.draw(st.integers(1, len(gallery)))
    found = search(query.to(device), gallery.to(device), k, chunk=chunk)
    products = query @ gallery.T
    wanted = products.sort(1, descending=True).values[:, :k]
    assert torch.equal(found.scores.cpu(), wanted)
    assert torch.equal(products.gather(1, found.places.cpu()), wanted)
    assert all(len(set(row)) == k for row in found.places.tolist())


def test_exact_search_keeps_types_and_never_makes_the_matrix():
    query, gallery = unit_rows(300, 8), unit_rows(500, 8, seed=1)
    with Watch() as watch:
        search(query, gallery, 5, chunk=50)
    assert watch.largest == max(50 * 50, 500 * 8)
    assert search(query.double(), gallery, 5).scores.dtype == torch.float64
    assert search(query.half(), gallery.half()).scores.dtype == torch.float32
    plain = search(query, gallery)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(search(query, gallery).scores, plain.scores)


@pytest.mark.parametrize("index", ["hnsw", "ivf"])
def test_an_index_with_enough_effort_is_exact_and_says_its_recall(index):
    query, gallery = unit_rows(300, 16), unit_rows(1000, 16, seed=1)
    exact = search(query, gallery, 10)
    found = search(query, gallery, 10, index=index, effort=1000)
    torch.testing.assert_close(found.scores, exact.scores)
    assert found.recall == 1 and found.places.dtype == torch.long
    hasty = search(query, gallery, 10, index=index, effort=2, sample=300)
    overlap = [
        len({*a} & {*b}) / 10
        for a, b in zip(hasty.places.tolist(), exact.places.tolist(), strict=True)
    ]
    assert hasty.recall == pytest.approx(sum(overlap) / 300) and hasty.recall < 0.95
    some = search(query, gallery, 10, index=index, effort=2, sample=3)
    assert some.recall == pytest.approx(sum(overlap[::100]) / 3)
    real = (hasty.places >= 0).nonzero(as_tuple=True)
    products = (query @ gallery.T)[real[0], hasty.places[real]]
    torch.testing.assert_close(hasty.scores[real], products)


def test_places_that_an_index_leaves_empty_are_misses():
    gallery = torch.eye(8)
    found = search(gallery, gallery, 8, index="ivf", effort=1)  # a cluster a row
    assert found.places[:, 0].tolist() == list(range(8))
    assert (found.places[:, 1:] == -1).all() and found.scores[:, 1:].isneginf().all()
    assert found.recall == 1 / 8


def test_equal_rows_are_all_right_answers():
    query, gallery = torch.ones(3, 4), torch.ones(50, 4)
    assert search(query, gallery, 5, index="hnsw").recall == 1


def test_without_faiss_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    rows = unit_rows(5, 3)
    with pytest.raises(ImportError, match="pip install faiss-cpu"):
        search(rows, rows, 2, index="hnsw")
    assert search(rows, rows, 1).places.flatten().tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k is 0; it must lie between 1 and 4"),
        ({"k": 5}, "k is 5"),
        ({"index": "flat"}, "index must be one of .'exact', 'hnsw', 'ivf'"),
        ({"chunk": 0}, "chunk 0"),
        ({"query": torch.ones(3, 2)}, "query has width 2 and gallery 4"),
        ({"query": SCORES / 0}, "query holds NaN"),
    ],
)
def test_search_refuses(change, message):
    right = {"query": SCORES, "gallery": torch.eye(4), "k": 2}
    with pytest.raises(ValueError, match=message):
        search(**(right | change))
