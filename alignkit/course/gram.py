"""Exercises of the notebook on GRAM: a volume of any number of vectors, a ranking that a
short base does not win, and which figures may be subtracted."""

import torch

from .exercises import Exercise, Mistake, random_size, unit_rows


# Exercise 1: the volume of k vectors from their products -----------------------------
def _volume(products):
    """√det, 0 where rounding leaves a determinant below zero; [n]."""
    return torch.linalg.det(products).clamp(min=0).sqrt()


def _products(generator):
    n, k = random_size(generator, 4, 8), random_size(generator, 2, 5)
    rows = torch.stack([unit_rows(generator, n, 6) for _ in range(k)], 1)
    products = rows @ rows.mT
    # Equal vectors, as half precision would round their products: a determinant just
    # below zero.
    products[-1] = torch.eye(k)
    products[-1, 0, 1] = products[-1, 1, 0] = 1.001
    return (products,)


volume = Exercise(
    name="volume",
    task="√det of each k × k matrix of products, 0 where det is below 0; [n]",
    reference=_volume,
    cases=_products,
    mistakes={
        "no clamp": Mistake(
            lambda products: torch.linalg.det(products).sqrt(),
            "take the root of negative numbers. Rounding makes a determinant of 0 a "
            "little negative, and its root NaN: clamp(min=0) first.",
        ),
        "absolute value": Mistake(
            lambda products: torch.linalg.det(products).abs().sqrt(),
            "take the absolute value, as the official code does. A determinant just "
            "below zero is a zero with a rounding error: clamp it at 0.",
        ),
        "no root": Mistake(
            lambda products: torch.linalg.det(products).clamp(min=0),
            "return the determinant. That is the squared volume: take its root.",
        ),
        "no triple product": Mistake(
            lambda products: (1 - (products.square().sum((1, 2)) - products.shape[1]) / 2
                              ).clamp(min=0).sqrt(),
            "subtract the squares of the products alone. For three vectors the "
            "determinant has + 2 (tv)(ta)(va) too: torch.linalg.det knows all terms.",
        ),
    },
)


# Exercise 2: how far a text is from the plane of picture and sound --------------------
def _squared(t, v, a):
    tv, ta, va = t @ v.T, t @ a.T, (v * a).sum(1)
    return (1 + 2 * tv * ta * va - tv**2 - ta**2 - va**2).clamp(min=0), va


def _distances(t, v, a):
    """[n, n], texts down, rows of (v, a) across."""
    squared, va = _squared(t, v, a)
    return (squared / (1 - va**2)).sqrt()


def _texts_base(t, v, a):
    squared, va = _squared(t, v, a)
    return (squared / (1 - va**2)[:, None]).sqrt()


def _all_with_all(t, v, a):
    tv, ta, va = t @ v.T, t @ a.T, v @ a.T
    squared = (1 + 2 * tv * ta * va - tv**2 - ta**2 - va**2).clamp(min=0)
    return (squared / (1 - va**2)).sqrt()


def _case(generator):
    n, d = random_size(generator, 3, 7), random_size(generator, 4, 9)
    # In double precision: a text near the plane leaves little but rounding.
    return tuple(unit_rows(generator, n, d).double() for _ in range(3))


distances = Exercise(
    name="distances",
    task="distance of text i from the plane of picture j and sound j: volume / base",
    reference=_distances,
    cases=_case,
    mistakes={
        "the volume": Mistake(
            lambda t, v, a: _squared(t, v, a)[0].sqrt(),
            "return the volume: a short base still makes a row near to every text. "
            "Divide by the base, √(1 − (va)²).",
        ),
        "the squared base": Mistake(
            lambda t, v, a: _squared(t, v, a)[0].sqrt() / (1 - _squared(t, v, a)[1]**2),
            "divide by the squared base. The base is √(1 − (va)²).",
        ),
        "the text's base": Mistake(
            _texts_base,
            "divide each line by the base of the text's own row. Picture and sound are "
            "of row j: one base a column.",
        ),
        "v with every a": Mistake(
            _all_with_all,
            "let picture i meet sound j in v·a. Picture j always stands with sound j; "
            "only the text is exchanged.",
        ),
        "turned": Mistake(
            lambda t, v, a: _distances(t, v, a).T,
            "return rows of (v, a) down and texts across. Texts are the rows.",
        ),
    },
)


# Exercise 3: which figures may be subtracted ------------------------------------------
def _leads(table, own):
    """[m, r], LongTensor [m] -> [m, m]: by its own ranking, line minus column."""
    score = table[torch.arange(len(table)), own]
    return score[:, None] - score[None, :]


def _between(score):
    return score[:, None] - score[None, :]


def _tables(generator):
    m = random_size(generator, 3, 6)
    own = torch.randint(3, (m,), generator=generator)
    own[:2] = torch.tensor([1, 2])
    return torch.rand(m, 3, generator=generator), own


leads = Exercise(
    name="leads",
    task="[i, j]: figure of training i minus that of j, each by its own ranking",
    reference=_leads,
    cases=_tables,
    mistakes={
        "one ranking for all": Mistake(
            lambda table, own: _between(table[:, 0]),
            "rank all by the first ranking. A training that never saw it then loses by "
            "the ranking, not by what it learned.",
        ),
        "the best ranking": Mistake(
            lambda table, own: _between(table.amax(1)),
            "give every training its best ranking. That is chosen on the very rows that "
            "are reported; the own one was fixed before.",
        ),
        "arms swapped": Mistake(
            lambda table, own: -_leads(table, own),
            "subtract line from column. [i, j] is training i minus training j.",
        ),
        "the mean of rankings": Mistake(
            lambda table, own: _between(table.mean(1)),
            "take the mean over rankings: nobody would use such a model.",
        ),
    },
)
