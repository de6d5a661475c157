"""Several findings a row: how well they are told apart, and how well reports name them."""

from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from alignkit.evaluation.checks import matrix
from alignkit.evaluation.classify import fit_logistic, standardised
from alignkit.evaluation.detection import auroc


def probe_auroc(
    train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor, l2: float = 1.0
) -> dict[str, object]:
    """AUROC of a linear probe for classes of which a row can have none or several.

    A logistic regression a class, fitted as by :func:`linear_probe`: Σ binary cross
    entropy + l2/2 · |W|² (bias free), float64, standardised by the training rows.
    A class that the training rows never or always have scores 1/2: nothing is learned.

    Args:
        train_x: [n, d]. train_y: bool [n, c]. test_x: [m, d]. test_y: bool [m, c].
        l2: strength of the penalty, above 0.

    Returns:
        macro_auroc, the mean over classes; auroc, a list of c; n_train, n_test.

    Raises:
        ValueError: shapes do not fit, or a class that the test rows never or always have.
    """
    train_x, test_x = (matrix(train_x, "train_x", least=2).double(),
                       matrix(test_x, "test_x").double())
    for name, x, y in (("train_y", train_x, train_y), ("test_y", test_x, test_y)):
        if y.dtype != torch.bool or y.ndim != 2 or len(y) != len(x) \
                or y.shape[1] != test_y.shape[1]:
            raise ValueError(f"{name} is {y.dtype} {tuple(y.shape)}; it must be bool "
                             f"[{len(x)}, classes], with one number of classes")
    if train_x.shape[1] != test_x.shape[1] or not l2 > 0:
        raise ValueError(f"train_x has width {train_x.shape[1]}, test_x {test_x.shape[1]}, "
                         f"l2 is {l2}; the widths must agree and l2 be above 0")
    one_sided = test_y.all(0) | ~test_y.any(0)
    if one_sided.any():
        raise ValueError(f"test_y: classes {one_sided.nonzero()[:, 0].tolist()} are present "
                         "in all rows or in none; no curve can be drawn")
    train_x, test_x = standardised(train_x, test_x)
    target, known = train_y.double(), train_y.any(0) & ~train_y.all(0)
    found = [0.5] * test_y.shape[1]
    if known.any():
        weight, bias = fit_logistic(
            train_x, int(known.sum()), l2,
            lambda logits: F.binary_cross_entropy_with_logits(
                logits, target[:, known], reduction="sum") / len(logits))
        scores = test_x @ weight + bias
        for column, k in enumerate(known.nonzero()[:, 0].tolist()):
            present = test_y[:, k].to(scores.device)
            found[k] = auroc(scores[present, column], scores[~present, column])
    return {"macro_auroc": sum(found) / len(found), "auroc": found,
            "n_train": len(train_x), "n_test": len(test_x)}


def few_labelled(y: Tensor, n: int, seed: int) -> Tensor:
    """Numbers [n] of rows to learn a probe from, in which no class is missing.

    Classes from the rarest on: where no row that is taken has it, the first that does, in
    an order drawn from ``seed``; then the rows of that order, until there are n. So rows
    with several classes are somewhat more frequent than in ``y``.

    Args:
        y: bool [m, c]. n: at most m.

    Raises:
        ValueError: n is out of range or too few to have all classes, or a class that no
            row has.
    """
    if y.dtype != torch.bool or y.ndim != 2 or not 1 <= n <= len(y) or not y.any(0).all():
        raise ValueError(f"y is {y.dtype} {tuple(y.shape)} and n {n}; y must be bool [m, c] "
                         "in which every class occurs, n from 1 to m")
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    rows: list[int] = []
    for k in y.sum(0).argsort(stable=True).tolist():
        if not y[rows, k].any():
            rows.append(int(order[y[order, k].int().argmax()]))
    if len(rows) > n:
        raise ValueError(f"n is {n}; with this seed {len(rows)} rows are needed to have all "
                         f"{y.shape[1]} classes")
    rows += [row for row in order.tolist() if row not in rows][:n - len(rows)]
    return torch.tensor(rows)


def finding_f1(
    found: Sequence[Collection], true: Sequence[Collection]
) -> dict[str, float]:
    """Micro-averaged precision, recall and F1 of findings that reports name.

    Row i names the set ``found[i]``; right are those that stand in ``true[i]`` as well.
    Findings are anything that can be compared: names alone, or names with side and degree.
    Precision is 1 if nothing is named, recall 1 if there was nothing to name, and F1 =
    2 · right / (named + true), 1 where both are empty.

    Raises:
        ValueError: no rows, or not as many of ``found`` as of ``true``.
    """
    if len(found) != len(true) or not len(true):
        raise ValueError(f"found has {len(found)} rows and true {len(true)}; one set a "
                         "report is needed, and one report at least")
    sets = [(set(a), set(b)) for a, b in zip(found, true)]
    right = sum(len(a & b) for a, b in sets)
    named, there = sum(len(a) for a, _ in sets), sum(len(b) for _, b in sets)
    return {"precision": right / named if named else 1.0,
            "recall": right / there if there else 1.0,
            "f1": 2 * right / (named + there) if named + there else 1.0}
