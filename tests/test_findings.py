"""Several findings a row: the probe against scikit-learn, F1 against a count by hand."""

import numpy as np
import pytest
import torch

from alignkit.evaluation import few_labelled, finding_f1, probe_auroc


def drawn(n: int, d: int, seed: int):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=g)
    y = x[:, :3] + 0.7 * torch.randn(n, 3, generator=g) > torch.tensor([0.0, 0.5, 1.0])
    return x, y


@pytest.mark.parametrize("d", [8, 90])  # narrower and wider than the training rows
def test_the_probe_is_scikit_learns(d):
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    (x, y), (test_x, test_y) = drawn(60, d, 0), drawn(200, d, 1)
    found = probe_auroc(x, y, test_x, test_y, l2=5.0)
    mean, scale = x.double().mean(0), x.double().std(0)
    a, b = ((z.double() - mean) / scale for z in (x, test_x))
    for k in range(3):
        fitted = LogisticRegression(C=1 / 5.0, tol=1e-8, max_iter=5000).fit(
            a.numpy(), y[:, k].numpy())
        wanted = roc_auc_score(test_y[:, k].numpy(), fitted.decision_function(b.numpy()))
        assert found["auroc"][k] == pytest.approx(wanted, abs=1e-3)
    assert found["macro_auroc"] == pytest.approx(np.mean(found["auroc"]))
    assert (found["n_train"], found["n_test"]) == (60, 200)
    assert min(found["auroc"]) > 0.6


def test_what_was_never_shown_is_not_learned():
    (x, y), (test_x, test_y) = drawn(60, 8, 0), drawn(200, 8, 1)
    both = probe_auroc(x, y, test_x, test_y)
    y[:, 1] = False
    one = probe_auroc(x, y, test_x, test_y)
    assert one["auroc"][1] == 0.5
    assert one["auroc"][::2] == pytest.approx(both["auroc"][::2], abs=1e-4)
    assert probe_auroc(x, torch.ones_like(y), test_x, test_y)["macro_auroc"] == 0.5


def test_the_probe_refuses():
    (x, y), (test_x, test_y) = drawn(60, 8, 0), drawn(200, 8, 1)
    with pytest.raises(ValueError, match="must be bool"):
        probe_auroc(x, y.long(), test_x, test_y)
    with pytest.raises(ValueError, match="must be bool"):
        probe_auroc(x, y[:, :2], test_x, test_y)
    with pytest.raises(ValueError, match="widths must agree"):
        probe_auroc(x, y, test_x[:, :4], test_y)
    with pytest.raises(ValueError, match=r"classes \[2\]"):
        test_y[:, 2] = True
        probe_auroc(x, y, test_x, test_y)


def test_a_few_labels_miss_no_class():
    y = torch.rand(200, 6, generator=torch.Generator().manual_seed(0)) < 0.1
    drawn_twice = few_labelled(y, 9, 3), few_labelled(y, 9, 3)
    assert torch.equal(*drawn_twice) and not torch.equal(drawn_twice[0], few_labelled(y, 9, 4))
    for seed in range(5):
        rows = few_labelled(y, 9, seed)
        assert len({*rows.tolist()}) == len(rows) == 9 and y[rows].any(0).all()
    assert few_labelled(y, 200, 0).sort().values.tolist() == list(range(200))
    one_each = torch.eye(4).bool()
    assert few_labelled(one_each, 4, 0).sort().values.tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="4 rows are needed"):
        few_labelled(one_each, 3, 0)
    for wrong in ((y, 0), (y, 201), (y & False, 9), (y.long(), 9)):
        with pytest.raises(ValueError, match="every class occurs"):
            few_labelled(*wrong, 0)


def test_f1_counts_findings_of_all_reports():
    found = [{"nodule", "edema"}, set(), {"cavity"}, {"edema"}]
    true = [{"nodule"}, set(), {"cavity", "edema"}, {"cavity"}]
    # Right: nodule, cavity. Named 4, there 4.
    assert finding_f1(found, true) == {"precision": 2 / 4, "recall": 2 / 4, "f1": 2 * 2 / 8}
    assert finding_f1([{"a"}], [{"a", "b"}]) == {"precision": 1.0, "recall": 0.5,
                                                 "f1": 2 / 3}
    assert finding_f1([[]], [[]]) == {"precision": 1.0, "recall": 1.0, "f1": 1.0}
    assert finding_f1([[]], [["a"]]) == {"precision": 1.0, "recall": 0.0, "f1": 0.0}
    assert finding_f1([["a", "a"]], [["a"]])["f1"] == 1.0  # said twice is said
    for wrong in (([], []), ([{"a"}], [])):
        with pytest.raises(ValueError, match="one set a report"):
            finding_f1(*wrong)
