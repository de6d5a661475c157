"""Exercises of the notebook on two encoders and one space."""

import torch
from torch.nn.functional import normalize

from .exercises import Exercise, Mistake, random_rows, random_size


# Exercise 1: cosine similarity ------------------------------------------------------
def _cosine(images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
    """[n, d], [m, d] -> [n, m]"""
    return normalize(images) @ normalize(texts).T


def _cosine_cases(generator):
    n, d = random_size(generator, 3, 7), random_size(generator, 3, 9)
    return random_rows(generator, n, d), random_rows(generator, n + 2, d)


cosine = Exercise(
    name="cosine",
    task="the cosine of every image row with every text row, [n, m]",
    reference=_cosine,
    cases=_cosine_cases,
    mistakes={
        "not normalised": Mistake(
            lambda images, texts: images @ texts.T,
            "took inner products of rows that are not normalised: long rows win. "
            "Divide each row by its length first.",
        ),
        "normalised over the batch": Mistake(
            lambda images, texts: normalize(images, dim=0) @ normalize(texts, dim=0).T,
            "normalise over dim=0. That scales each coordinate over the batch; the "
            "length of a ROW is its norm over dim=1.",
        ),
        "transposed": Mistake(
            lambda images, texts: normalize(texts) @ normalize(images).T,
            "return texts × images. Rows of the result stand for images, columns for "
            "texts.",
        ),
    },
)


# Exercise 2: hit@1, ties against the model ------------------------------------------
def _rivals(scores: torch.Tensor, dim: int, ties: bool) -> torch.Tensor:
    """How many wrong answers stand before the right one, [n]."""
    right = scores.diagonal().unsqueeze(dim)
    before = scores >= right if ties else scores > right
    return before.clone().fill_diagonal_(False).sum(dim)


def _hit_at_1(scores: torch.Tensor) -> torch.Tensor:
    """[n, n], right answer on the diagonal -> share of rows where it comes first."""
    return (_rivals(scores, 1, ties=True) == 0).float().mean()


def _by_argmax(scores):
    return (scores.argmax(1) == torch.arange(len(scores))).float().mean()


def _hit_cases(generator):
    """Few different values, so that there are ties; one case in four collapsed."""
    n = random_size(generator, 8, 16)
    if random_size(generator, 0, 4) == 0:
        return (torch.full((n, n), 0.5),)
    scores = torch.randint(0, 4, (n, n), generator=generator)
    liked = torch.randint(0, 3, (n,), generator=generator)  # a column's, by all rows
    return ((scores + liked).float() + 3 * torch.eye(n),)


hit_at_1 = Exercise(
    name="hit_at_1",
    task="share of rows whose diagonal entry is larger than all others, ties lost",
    reference=_hit_at_1,
    cases=_hit_cases,
    mistakes={
        "ties won": Mistake(
            lambda scores: (_rivals(scores, 1, ties=False) == 0).float().mean(),
            "count only rivals that score strictly more. A collapsed model, which "
            "gives every pair the same score, would then get hit@1 = 1: ties must "
            "count against the model (>=).",
        ),
        "argmax": Mistake(
            _by_argmax,
            "use argmax, which gives a tie to the column that comes first. The order "
            "of the gallery must not decide: count rivals with >=.",
        ),
        "other direction": Mistake(
            lambda scores: (_rivals(scores, 0, ties=True) == 0).float().mean(),
            "rank within columns, which asks the other direction. A query is a ROW: "
            "compare along dim=1.",
        ),
    },
)


# Exercise 3: the modality gap -------------------------------------------------------
def _modality_gap(images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
    """Distance between the two centroids of unit rows."""
    return (normalize(images).mean(0) - normalize(texts).mean(0)).norm()


def _gap_cases(generator):
    n, d = random_size(generator, 5, 12), random_size(generator, 3, 9)
    return random_rows(generator, n, d), random_rows(generator, n, d)


modality_gap = Exercise(
    name="modality_gap",
    task="the distance between the mean unit image row and the mean unit text row",
    reference=_modality_gap,
    cases=_gap_cases,
    mistakes={
        "rows not normalised": Mistake(
            lambda images, texts: (images.mean(0) - texts.mean(0)).norm(),
            "take centroids of rows that are not normalised. Cosine lives on the unit "
            "sphere: normalise each row, then average.",
        ),
        "centroids normalised": Mistake(
            lambda images, texts: (
                normalize(images.mean(0), dim=0) - normalize(texts.mean(0), dim=0)
            ).norm(),
            "normalise the centroids instead of the rows. Normalise each row, average, "
            "and leave the averages as they are.",
        ),
        "mean of distances": Mistake(
            lambda images, texts: (
                (normalize(images) - normalize(texts)).norm(dim=1).mean()
            ),
            "average the distances of the pairs. The gap is the distance of the two "
            "averages, which no pairing changes.",
        ),
    },
)
