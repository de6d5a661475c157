"""Classification without training (zero-shot, neighbours) and by a linear probe."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from alignkit.evaluation.checks import class_labels, matrix, unit_rows
from alignkit.evaluation.retrieval import TIE, ranks


def class_embeddings(prompts: Sequence[Tensor]) -> Tensor:
    """One unit row a class from the embeddings of its prompts (prompt ensembling).

    Radford et al. 2021: unit rows, their mean, and unit length again.

    Args:
        prompts: for each class a tensor [n_prompts, d]; the numbers may differ.

    Returns:
        [n_classes, d].
    """
    means = [
        unit_rows(rows, f"prompts[{i}]").mean(0) for i, rows in enumerate(prompts)
    ]
    if not means or len({len(mean) for mean in means}) != 1:
        raise ValueError(
            f"prompts give widths {[len(mean) for mean in means]}; "
            "at least one class, and one width for all, are needed"
        )
    return unit_rows(torch.stack(means), "the mean of the prompts")


def balanced(correct: Tensor, labels: Tensor) -> float:
    """Mean over the classes that occur of the share of correct samples."""
    counts = labels.bincount()
    right = labels.bincount(weights=correct.double())
    return float((right[counts > 0] / counts[counts > 0]).mean())


def zero_shot(image_z: Tensor, class_z: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy of the class with the largest cosine; ties count against the model.

    ``top5_accuracy`` is 1 by definition with five classes or fewer.
    ``balanced_accuracy`` is the mean accuracy of the classes that occur in ``labels``.

    Args:
        image_z: [n, d]. class_z: [n_classes, d], as by :func:`class_embeddings`.
        labels: LongTensor [n], row numbers of ``class_z``.

    Returns:
        accuracy, top5_accuracy, balanced_accuracy, n, n_classes.
    """
    image_z, class_z = unit_rows(image_z, "image_z"), unit_rows(class_z, "class_z")
    if image_z.shape[1] != class_z.shape[1]:
        raise ValueError(
            f"image_z has width {image_z.shape[1]} and class_z {class_z.shape[1]}; "
            "both must lie in one space"
        )
    n, n_classes = len(image_z), len(class_z)
    labels = class_labels(labels, "labels", n, n_classes).to(image_z.device)
    relevant = F.one_hot(labels, n_classes).bool()
    rank = ranks(image_z @ class_z.to(image_z).T, relevant, tie=TIE)
    return {
        "accuracy": float((rank == 1).double().mean()),
        "top5_accuracy": float((rank <= 5).double().mean()),
        "balanced_accuracy": balanced(rank == 1, labels),
        "n": n,
        "n_classes": n_classes,
    }


def knn_probe(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    k: int = 20,
    chunk: int = 1024,
) -> dict[str, float]:
    """Test accuracy of a vote among the k nearest training rows by cosine.

    Each neighbour has one vote (Cover & Hart 1967). Rows that tie for the last places
    share them, and a class that ties with the right one counts against the model, so
    the order of rows and classes never decides. A collapsed space gives the share of
    the largest training class.

    Args:
        train_x: [n, d]. train_y: LongTensor [n].
        test_x: [m, d]. test_y: LongTensor [m]. k: 1 to n.
        chunk: test rows at a time; chunk * n cosines exist at once.

    Returns:
        accuracy, balanced_accuracy, k, n_train, n_test, n_classes.
    """
    train_x, test_x = unit_rows(train_x, "train_x"), unit_rows(test_x, "test_x")
    if train_x.shape[1] != test_x.shape[1]:
        raise ValueError(
            f"train_x has width {train_x.shape[1]} and test_x {test_x.shape[1]}; "
            "both must lie in one space"
        )
    if not 1 <= k <= len(train_x) or chunk < 1:
        raise ValueError(
            f"k is {k} and chunk {chunk}; k must lie between 1 and {len(train_x)}, "
            "the number of training rows, and chunk be above 0"
        )
    train_y = class_labels(train_y, "train_y", len(train_x)).to(train_x.device)
    test_y = class_labels(test_y, "test_y", len(test_x)).to(train_x.device)
    n_classes = int(max(train_y.max(), test_y.max())) + 1
    labels = F.one_hot(train_y, n_classes).to(train_x)
    rank = []
    for x, y in zip(test_x.to(train_x).split(chunk), test_y.split(chunk), strict=True):
        cosines = x @ train_x.T
        kth = cosines.topk(k, dim=1).values[:, -1:]
        nearer = cosines > kth + TIE
        tied = ~nearer & (cosines >= kth - TIE)
        left = k - nearer.sum(1, keepdim=True)
        votes = (nearer + tied * (left / tied.sum(1, keepdim=True))).to(labels) @ labels
        rank.append(ranks(votes, F.one_hot(y, n_classes).bool(), tie=1e-5))
    right = torch.cat(rank) == 1
    return {
        "accuracy": float(right.double().mean()),
        "balanced_accuracy": balanced(right, test_y),
        "k": k,
        "n_train": len(train_x),
        "n_test": len(test_x),
        "n_classes": len(train_y.unique()),
    }


def linear_probe(
    train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor, l2: float = 1.0
) -> dict[str, float]:
    """Test accuracy of multinomial logistic regression on frozen features.

    Features are standardised with the mean and deviation of the training rows. The
    objective is Σ cross entropy + l2/2 · |W|² (bias free; scikit-learn's C = 1/l2),
    minimised by L-BFGS in float64, so the answer does not depend on a seed. A test
    label that never occurs in training counts as an error.

    Args:
        train_x: [n, d]. train_y: LongTensor [n].
        test_x: [m, d]. test_y: LongTensor [m].
        l2: strength of the penalty, above 0 (choose it on validation).

    Returns:
        accuracy, balanced_accuracy, train_accuracy, n_train, n_test, n_classes.
    """
    train_x = matrix(train_x, "train_x", least=2).double()
    test_x = matrix(test_x, "test_x").double()
    if train_x.shape[1] != test_x.shape[1] or not l2 > 0:
        raise ValueError(
            f"train_x has width {train_x.shape[1]}, test_x {test_x.shape[1]}, l2 is "
            f"{l2}; the widths must agree and l2 must be above 0"
        )
    train_y = class_labels(train_y, "train_y", len(train_x)).to(train_x.device)
    test_y = class_labels(test_y, "test_y", len(test_x)).to(test_x.device)
    classes, target = train_y.unique(return_inverse=True)
    if len(classes) < 2:
        raise ValueError("train_y holds one class; a probe needs at least two")
    train_x, test_x = standardised(train_x, test_x)
    weight, bias = fit_logistic(train_x, len(classes), l2,
                                lambda logits: F.cross_entropy(logits, target))
    found = [classes[(x @ weight + bias).argmax(1)] for x in (train_x, test_x)]
    return {
        "accuracy": float((found[1] == test_y).double().mean()),
        "balanced_accuracy": balanced(found[1] == test_y, test_y),
        "train_accuracy": float((found[0] == train_y).double().mean()),
        "n_train": len(train_x),
        "n_test": len(test_x),
        "n_classes": len(classes),
    }


def best_probe(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    fold: Tensor,
    l2s: Sequence[float] = (0.01, 0.1, 1.0, 10.0, 100.0),
) -> dict[str, float]:
    """:func:`linear_probe` with the penalty that does best on training rows left out.

    Each fold is left out once and scored by a probe of the others; the penalty with the
    most right answers in all (the first of equal ones) fits all training rows. So every
    representation gets the penalty that suits it, and the test rows choose nothing.

    Args:
        fold: [n], rows of equal value are left out together (a voice, say); two at least.

    Returns:
        what :func:`linear_probe` returns, and l2.
    """
    if fold.shape != train_y.shape or len(fold.unique()) < 2 or not len(l2s):
        raise ValueError(
            f"fold has shape {tuple(fold.shape)} and {len(fold.unique())} values, l2s "
            f"{len(l2s)} entries; one fold a training row, two different ones, and a "
            "penalty are needed"
        )
    right = dict.fromkeys(l2s, 0.0)
    for out in fold.unique():
        kept, left = fold != out, fold == out
        rows = train_x[kept], train_y[kept], train_x[left], train_y[left]
        for l2 in l2s:
            right[l2] += linear_probe(*rows, l2=l2)["accuracy"] * int(left.sum())
    best = max(l2s, key=right.get)
    return linear_probe(train_x, train_y, test_x, test_y, l2=best) | {"l2": best}


def standardised(train_x: Tensor, test_x: Tensor) -> tuple[Tensor, Tensor]:
    """Both with the mean and deviation of the training rows; features that are wider than
    the training rows are many are turned into their span, where the best weights lie."""
    mean, scale = train_x.mean(0), train_x.std(0)
    scale = torch.where(scale > 1e-12 * mean.abs().clamp_min(1e-300), scale, 1.0)
    train_x, test_x = (train_x - mean) / scale, (test_x - mean) / scale
    if train_x.shape[1] > len(train_x):
        span = torch.linalg.svd(train_x, full_matrices=False).Vh.T
        train_x, test_x = train_x @ span, test_x @ span
    return train_x, test_x


def fit_logistic(
    x: Tensor, width: int, l2: float, loss_of: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Weights [d, width] and bias [width] at the minimum (convex, so one) of n times
    ``loss_of(logits)``, a mean over the n rows, plus l2/2 · |W|²."""
    weight = x.new_zeros(x.shape[1], width, requires_grad=True)
    bias = x.new_zeros(width, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [weight, bias],
        max_iter=1000,
        tolerance_grad=1e-7,
        tolerance_change=1e-12,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        penalty = l2 / (2 * len(x)) * weight.square().sum()
        loss = loss_of(x @ weight + bias) + penalty
        loss.backward()
        return loss

    optimiser.step(closure)  # L-BFGS turns gradients on, also under no_grad
    return weight.detach(), bias.detach()
