"""Exercises of the notebook on IRRA: the targets, the divergence, the masking."""

import torch

from .exercises import Exercise, Mistake, random_size

EPS = 1e-8
MASK, SPECIAL = 4, 5  # the id of [MASK]; ids below SPECIAL are no words


# Exercise 1: the targets ------------------------------------------------------------
def _targets(identity):
    """[n] -> [n, n], each row shared by the rows of its identity."""
    same = (identity[:, None] == identity[None]).float()
    return same / same.sum(1, keepdim=True)


def _identities(generator):
    n = random_size(generator, 5, 10)
    return (torch.randint(3, (n,), generator=generator) * 7,)


def _over_columns(identity):
    # What the other axis gives where counts differ; the matrix itself is symmetric.
    same = (identity[:, None] == identity[None]).float()
    return same / same.sum()


targets = Exercise(
    name="targets",
    task="q [n, n]: 1 where two rows share an identity, every row divided by its sum",
    reference=_targets,
    cases=_identities,
    mistakes={
        "not divided": Mistake(
            lambda identity: (identity[:, None] == identity[None]).float(),
            "leave the rows as they are. A distribution sums to one: divide each row "
            "by the number of its right answers.",
        ),
        "divided by all": Mistake(
            _over_columns,
            "divide by the sum of the whole matrix. Each row is a distribution.",
        ),
        "the diagonal": Mistake(
            lambda identity: torch.eye(len(identity)),
            "give every row one right answer. Rows of the same identity are right "
            "answers too.",
        ),
        "softmax": Mistake(
            lambda identity: (identity[:, None] == identity[None]).float().softmax(1),
            "take a softmax of zeros and ones. It leaves mass on wrong rows: divide "
            "by the sum.",
        ),
    },
)


# Exercise 2: one direction of the loss ----------------------------------------------
def _match(logits, q, eps=EPS):
    """mean over rows of Σ p (log p − log(q + eps))"""
    log_p = logits.log_softmax(1)
    return (log_p.exp() * (log_p - (q + eps).log())).sum(1).mean()


def _forward(logits, q):
    log_p = logits.log_softmax(1)
    return (q * ((q + EPS).log() - log_p)).sum(1).mean()


def _logits_case(generator):
    (identity,) = _identities(generator)
    n = len(identity)
    return 3 * torch.randn(n, n, generator=generator), _targets(identity)


match = Exercise(
    name="match",
    task="mean over rows of Σ_j p (log p − log(q + ε)), p = softmax of the logits, "
         "ε = 10⁻⁸",
    reference=_match,
    cases=_logits_case,
    mistakes={
        "the other divergence": Mistake(
            _forward,
            "put the target first. That is cross entropy but for a constant; here the "
            "prediction p weighs the logarithms.",
        ),
        "cross entropy": Mistake(
            lambda logits, q: -(q * logits.log_softmax(1)).sum(1).mean(),
            "take the cross entropy. Here p stands in front, and its entropy counts.",
        ),
        "no entropy": Mistake(
            lambda logits, q: -(logits.softmax(1) * (q + EPS).log()).sum(1).mean(),
            "leave out Σ p log p. Without it nothing keeps right answers apart from "
            "one that takes all.",
        ),
        "no ε": Mistake(
            lambda logits, q: _match(logits, q, 0.0),
            "leave ε out. Most targets are 0, and the logarithm of 0 is −∞: "
            "log(q + 1e-8).",
        ),
        **{
            f"ε = {eps:g}": Mistake(
                lambda logits, q, eps=eps: _match(logits, q, eps),
                f"add {eps:g} to the target. It decides how much a wrong row costs: "
                "here it is 1e-8.",
            )
            for eps in (1e-12, 1e-10, 1e-7, 1e-6, 1e-5)
        },
        "mean of all": Mistake(
            lambda logits, q: _match(logits, q) / len(logits),
            "take the mean over rows and columns. Sum over a row, then take the mean.",
        ),
        "columns": Mistake(
            lambda logits, q: _match(logits.T, q.T),
            "normalise over columns. One row is one query: softmax over dim 1.",
        ),
    },
)


# Exercise 3: masking ----------------------------------------------------------------
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
