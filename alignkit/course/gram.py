"""Exercises of the notebook on GRAM: a volume, all volumes of a batch, their loss."""

import torch
from torch.nn import functional as F

from .exercises import Exercise, Mistake, random_size, unit_rows


def _case(generator):
    """In float64, some rows in a plane: rounding makes about half of these
    determinants negative, and the volumes 0."""
    n, d = random_size(generator, 6, 10), random_size(generator, 4, 9)
    t, v, a = (unit_rows(generator, n, d).double() for _ in range(3))
    t, v, a = (F.normalize(rows, dim=1) for rows in (t, v, a))
    v[:2], a[2:4] = t[:2], t[2:4]
    return t, v, a


# Exercise 1: the volume of a row ----------------------------------------------------
def _products(t, v, a):
    return (t * v).sum(1), (t * a).sum(1), (v * a).sum(1)


def _volume(t, v, a):
    """√(1 + 2 tv ta va − tv² − ta² − va²), [n]."""
    tv, ta, va = _products(t, v, a)
    return (1 + 2 * tv * ta * va - tv**2 - ta**2 - va**2).clamp(min=0).sqrt()


def _squared(t, v, a):
    return _volume(t, v, a) ** 2


def _no_clamp(t, v, a):
    tv, ta, va = _products(t, v, a)
    return (1 + 2 * tv * ta * va - tv**2 - ta**2 - va**2).sqrt()


def _no_triple(t, v, a):
    tv, ta, va = _products(t, v, a)
    return (1 - tv**2 - ta**2 - va**2).clamp(min=0).sqrt()


def _triple_once(t, v, a):
    tv, ta, va = _products(t, v, a)
    return (1 + tv * ta * va - tv**2 - ta**2 - va**2).clamp(min=0).sqrt()


def _anchored_only(t, v, a):
    tv, ta, _ = _products(t, v, a)
    return (1 - tv**2 - ta**2).clamp(min=0).sqrt()


volume = Exercise(
    name="volume",
    task="the volume of three unit vectors a row: √det of their products, [n]",
    reference=_volume,
    cases=_case,
    mistakes={
        "no root": Mistake(
            _squared,
            "return the determinant. That is the squared volume: take its root.",
        ),
        "no clamp": Mistake(
            _no_clamp,
            "take the root of negative numbers. Rounding makes a determinant of 0 a "
            "little negative, and its root NaN: clamp(min=0) first.",
        ),
        "no triple product": Mistake(
            _no_triple,
            "leave out + 2 (tv)(ta)(va). Three vectors that agree would then be "
            "further than volume 0.",
        ),
        "triple product once": Mistake(
            _triple_once,
            "count (tv)(ta)(va) once. The determinant of a 3 × 3 matrix has it twice.",
        ),
        "only the anchor": Mistake(
            _anchored_only,
            "leave out v·a. That is what the anchored baseline never looks at, and "
            "what the volume is for.",
        ),
    },
)


# Exercise 2: every text with every row ----------------------------------------------
def _volumes(t, v, a):
    """[n, n], texts down, rows of (v, a) across."""
    tv, ta, va = t @ v.T, t @ a.T, (v * a).sum(1)[None, :]
    squared = 1 + 2 * tv * ta * va - tv**2 - ta**2 - va**2
    return squared.clamp(min=0).sqrt()


def _all_no_clamp(t, v, a):
    tv, ta, va = t @ v.T, t @ a.T, (v * a).sum(1)[None, :]
    return (1 + 2 * tv * ta * va - tv**2 - ta**2 - va**2).sqrt()


def _texts_own(t, v, a):
    tv, ta, va = t @ v.T, t @ a.T, (v * a).sum(1)[:, None]
    squared = 1 + 2 * tv * ta * va - tv**2 - ta**2 - va**2
    return squared.clamp(min=0).sqrt()


def _all_with_all(t, v, a):
    tv, ta, va = t @ v.T, t @ a.T, v @ a.T
    squared = 1 + 2 * tv * ta * va - tv**2 - ta**2 - va**2
    return squared.clamp(min=0).sqrt()


volumes = Exercise(
    name="volumes",
    task="volume [i, j] of text i with picture j and sound j, for all i and j",
    reference=_volumes,
    cases=_case,
    mistakes={
        "no clamp": Mistake(
            _all_no_clamp,
            "take the root of negative numbers. Rounding makes a determinant of 0 a "
            "little negative, and its root NaN: clamp(min=0) first.",
        ),
        "the text's own": Mistake(
            _texts_own,
            "take v·a from the row of the text. Picture and sound are of row j: the "
            "same number for every text, a row vector to broadcast.",
        ),
        "v with every a": Mistake(
            _all_with_all,
            "let the text's row meet the sounds in v·a. Picture j always stands with "
            "sound j; only the text is exchanged.",
        ),
        "turned": Mistake(
            lambda t, v, a: _volumes(t, v, a).T,
            "return rows of (v, a) down and texts across. Texts are the rows.",
        ),
        "one volume a row": Mistake(
            lambda t, v, a: _volume(t, v, a),
            "return the volumes of the true rows alone. The loss needs the wrong "
            "ones too, [n, n].",
        ),
    },
)


# Exercise 3: the loss ---------------------------------------------------------------
def _gram_loss(volumes, temperature, smoothing):
    """½ [cross entropy of rows and of columns of −volumes / temperature]."""
    logits, right = -volumes / temperature, torch.arange(len(volumes))
    return (
        sum(
            F.cross_entropy(x, right, label_smoothing=smoothing)
            for x in (logits, logits.T)
        )
        / 2
    )


def _volume_case(generator):
    n = random_size(generator, 3, 8)
    volumes = torch.rand(n, n, generator=generator)
    return volumes, (0.07, 0.2, 0.5)[random_size(generator, 0, 3)], 0.1


gram_loss = Exercise(
    name="gram_loss",
    task="½ [cross entropy of rows and columns of −volumes / temperature], smoothed",
    reference=_gram_loss,
    cases=_volume_case,
    mistakes={
        "no minus": Mistake(
            lambda volumes, temperature, smoothing: _gram_loss(
                -volumes, temperature, smoothing
            ),
            "give large volumes large logits. A true row has a small volume: the "
            "logit is minus the volume.",
        ),
        "no smoothing": Mistake(
            lambda volumes, temperature, smoothing: _gram_loss(
                volumes, temperature, 0.0
            ),
            "leave out the smoothing of the labels (label_smoothing=).",
        ),
        "times the temperature": Mistake(
            lambda volumes, temperature, smoothing: _gram_loss(
                volumes, 1 / temperature, smoothing
            ),
            "multiply by the temperature: divide.",
        ),
        "rows alone": Mistake(
            lambda volumes, temperature, smoothing: F.cross_entropy(
                -volumes / temperature,
                torch.arange(len(volumes)),
                label_smoothing=smoothing,
            ),
            "take the rows alone: a text looks for its row. A row must find its text, "
            "too: columns, and half of each.",
        ),
    },
)
