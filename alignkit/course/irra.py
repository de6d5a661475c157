"""Exercises of the notebook on IRRA: hidden words, identities known in part, and which
comparison may be read as the effect of one part."""

import torch

from .exercises import Exercise, Mistake, random_size

MASK, SPECIAL = 4, 5  # the id of [MASK]; ids below SPECIAL are no words
UNKNOWN = -1  # the identity of a row of which none is known


# Exercise 1: masking ----------------------------------------------------------------
def _hide(ids, draw, share):
    """[MASK] where draw < share and the piece is a word; a new tensor."""
    return torch.where((draw < share) & (ids >= SPECIAL), MASK, ids)


def _ids_case(generator):
    n, t = random_size(generator, 3, 6), random_size(generator, 6, 10)
    ids = torch.randint(SPECIAL, 40, (n, t), generator=generator)
    ids[:, 0], ids[:, -1], ids[0, -2:] = 2, 3, torch.tensor([3, 0])
    return ids, torch.rand(n, t, generator=generator), 0.4


hide = Exercise(
    name="hide",
    task="a NEW tensor: 4 where draw < share and id ≥ 5, else the id; ids stays",
    reference=_hide,
    cases=_ids_case,
    mistakes={
        "special pieces too": Mistake(
            lambda ids, draw, share: torch.where(draw < share, MASK, ids),
            "mask [CLS], [SEP] and padding too (ids below 5). They are no words.",
        ),
        "the others": Mistake(
            lambda ids, draw, share: torch.where((draw >= share) & (ids >= SPECIAL),
                                                 MASK, ids),
            "hide what should stay: draw < share is hidden.",
        ),
        "zeros": Mistake(
            lambda ids, draw, share: torch.where((draw < share) & (ids >= SPECIAL), 0,
                                                 ids),
            "write 0, which is padding. [MASK] has the id 4.",
        ),
    },
)


# Exercise 2: targets where some rows have no identity --------------------------------
def _partly_known(identity):
    """[n] -> [n, n], float32: rows of one known identity share; others stand alone."""
    same = identity[:, None] == identity
    same = same & (identity != UNKNOWN) | torch.eye(len(identity), dtype=torch.bool)
    return same / same.sum(1, keepdim=True)


def _all_alike(identity):
    same = (identity[:, None] == identity).float()
    return same / same.sum(1, keepdim=True)


def _unknown_have_none(identity):
    same = (identity[:, None] == identity) & (identity != UNKNOWN)
    return same / same.sum(1, keepdim=True).clamp(min=1)


def _counted(identity):
    same = identity[:, None] == identity
    return (same & (identity != UNKNOWN) | torch.eye(len(identity), dtype=torch.bool))


def _identities(generator):
    n = random_size(generator, 6, 12)
    identity = torch.randint(3, (n,), generator=generator) * 7
    unknown = torch.randperm(n, generator=generator)[:3]
    return (identity.index_fill(0, unknown, UNKNOWN),)


partly_known = Exercise(
    name="partly_known",
    task="q [n, n], float32, rows sum to one; a row with identity −1 has itself alone",
    reference=_partly_known,
    cases=_identities,
    mistakes={
        "all unknown alike": Mistake(
            _all_alike,
            "take −1 for an identity: all rows of which nothing is known became right "
            "answers to each other.",
        ),
        "unknown without an answer": Mistake(
            _unknown_have_none,
            "leave rows without an identity with no right answer at all. Their own "
            "partner, on the diagonal, is right.",
        ),
        "not divided": Mistake(
            lambda identity: _counted(identity).float(),
            "leave the rows as they are. A distribution sums to one: divide each row "
            "by the number of its right answers.",
        ),
        "a table of truths": Mistake(
            _counted,
            "return True and False. A distribution needs floats that sum to one a row.",
        ),
        "whole numbers": Mistake(
            lambda identity: _counted(identity).long(),
            "return whole numbers. A distribution needs floats that sum to one a row.",
        ),
        "one right answer": Mistake(
            lambda identity: torch.eye(len(identity)),
            "give every row one right answer. Rows of one known identity are right "
            "answers to each other.",
        ),
    },
)


# Exercise 3: which comparisons isolate a part -----------------------------------------
def _isolates(parts, k):
    """[m, p] of 0 and 1, a part -> [m, m], float32."""
    differ = parts[:, None, :] != parts[None, :, :]
    return (differ[:, :, k] & (differ.sum(2) == 1)).float()


def _whole_gain(parts, k):
    return (parts[:, None, k] != parts[None, :, k]).float()


def _one_difference(parts, k):
    return ((parts[:, None, :] != parts[None, :, :]).sum(2) == 1).float()


def _one_sided(parts, k):
    return _isolates(parts, k) * (parts[:, None, k] > parts[None, :, k])


def _arms(generator):
    m = random_size(generator, 4, 8)
    parts = torch.randint(2, (m, 3), generator=generator)
    k = random_size(generator, 0, 3)
    # Two arms that differ in part k alone, two in another alone, two in all.
    parts[1], parts[2], parts[3] = parts[0], parts[0], 1 - parts[0]
    parts[1, k], parts[2, k - 1] = 1 - parts[0, k], 1 - parts[0, k - 1]
    return parts, k


isolates = Exercise(
    name="isolates",
    task="1 where two arms differ in part k and in no other, else 0: float32 [m, m]",
    reference=_isolates,
    cases=_arms,
    mistakes={
        "any difference in k": Mistake(
            _whole_gain,
            "accept arms that differ in other parts too. Their difference may be the "
            "work of any of them: that is how SDM would get what the identities did.",
        ),
        "one difference, any": Mistake(
            _one_difference,
            "accept any two arms that differ in a single part. It must be part k.",
        ),
        "one side": Mistake(
            _one_sided,
            "fill one side alone. If i against j isolates the part, so does j against "
            "i: the table is symmetric.",
        ),
        "a table of truths": Mistake(
            lambda parts, k: _isolates(parts, k).bool(),
            "return True and False. The task asks for ones and zeros as float32.",
        ),
    },
)
