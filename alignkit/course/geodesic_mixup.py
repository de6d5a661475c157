"""Exercises of the notebook on geodesic mixup: the arc, its negatives, the fading."""

import torch
from torch.nn import functional as F

from .exercises import Exercise, Mistake, random_size, unit_rows

SHARES = (0.15, 0.3, 0.8)


# Exercise 1: the arc ----------------------------------------------------------------
def _slerp(a, b, share):
    """share 1 is a, share 0 is b; rows equal to their partner stay."""
    cosine = (a * b).sum(1, keepdim=True)
    angle = cosine.clamp(-1 + 1e-6, 1 - 1e-6).arccos()
    curved = (share * angle).sin() * a + ((1 - share) * angle).sin() * b
    straight = share * a + (1 - share) * b
    return torch.where(cosine > 1 - 1e-6, straight, curved / angle.sin())


def _no_guard(a, b, share):
    # The cosine of equal rows, as it may come out after rounding.
    cosine = (a * b).sum(1, keepdim=True)
    cosine = torch.where(cosine > 1 - 1e-6, torch.ones_like(cosine), cosine)
    angle = cosine.arccos()
    curved = (share * angle).sin() * a + ((1 - share) * angle).sin() * b
    return curved / angle.sin()


def _case(generator):
    n, d = random_size(generator, 4, 8), random_size(generator, 3, 8)
    a, b = unit_rows(generator, n, d), unit_rows(generator, n, d)
    b = torch.cat([a[:1], b[1:]])  # the first row is its own partner
    return a, b, SHARES[random_size(generator, 0, 3)]


slerp = Exercise(
    name="slerp",
    task="[sin(share θ) a + sin((1 − share) θ) b] / sin θ by row; a itself where a = b",
    reference=_slerp,
    cases=_case,
    mistakes={
        "a straight line": Mistake(
            lambda a, b, share: share * a + (1 - share) * b,
            "mix on the straight line. It cuts through the ball: the result is "
            "shorter than one.",
        ),
        "straight, then unit": Mistake(
            lambda a, b, share: F.normalize(share * a + (1 - share) * b, dim=1),
            "mix on the straight line and scale to length one. That is on the "
            "sphere, but for a share that is not one half at another angle.",
        ),
        "ends exchanged": Mistake(
            lambda a, b, share: _slerp(b, a, share),
            "exchange the ends: share 1 is a, share 0 is b.",
        ),
    },
)


# Exercise 2: the logits of an image ---------------------------------------------------
def _harder_negatives(images, texts, mixed):
    """Own text on the diagonal, the mixtures of all others beside it, [n, n]."""
    own = torch.eye(len(images), dtype=torch.bool)
    return torch.where(own, images @ texts.T, images @ mixed.T)


def _mixed_case(generator):
    n, d = random_size(generator, 3, 8), random_size(generator, 3, 8)
    a, b = unit_rows(generator, n, d), unit_rows(generator, n, d)
    return a, b, F.normalize(a + b, dim=1)


harder_negatives = Exercise(
    name="harder_negatives",
    task="cosines of each image with its own text (diagonal) and others' mixtures",
    reference=_harder_negatives,
    cases=_mixed_case,
    mistakes={
        "positives mixed": Mistake(
            lambda images, texts, mixed: images @ mixed.T,
            "use the mixture for the right answer too. It lies nearer to the image "
            "than its text does, and the pair is never pulled together.",
        ),
        "negatives real": Mistake(
            lambda images, texts, mixed: images @ texts.T,
            "leave the negatives as they are. Only the diagonal takes the texts.",
        ),
        "exchanged": Mistake(
            lambda images, texts, mixed: torch.where(
                torch.eye(len(images), dtype=torch.bool),
                images @ mixed.T,
                images @ texts.T,
            ),
            "put the mixtures on the diagonal and the texts beside it: the reverse.",
        ),
        "turned": Mistake(
            lambda images, texts, mixed: _harder_negatives(images, texts, mixed).T,
            "return mixtures down and images across. Rows are images.",
        ),
    },
)


# Exercise 3: the fading ---------------------------------------------------------------
def _fading(step, steps, epochs):
    """1 / (e + 1), e = ⌊epochs · step / steps⌋."""
    return torch.tensor(1 / (epochs * step // steps + 1))


def _fading_case(generator):
    epochs = random_size(generator, 3, 12)
    steps = epochs * random_size(generator, 4, 20)
    return random_size(generator, steps // 3, steps), steps, epochs


fading = Exercise(
    name="fading",
    task="1 / (e + 1) at `step` of `steps`, e = the epoch, counted from 0",
    reference=_fading,
    cases=_fading_case,
    mistakes={
        "steps for epochs": Mistake(
            lambda step, steps, epochs: torch.tensor(1 / (step + 1)),
            "divide by the number of steps. The term would be gone in the first "
            "epoch: it fades once an epoch.",
        ),
        "smooth": Mistake(
            lambda step, steps, epochs: torch.tensor(1 / (epochs * step / steps + 1)),
            "fade within an epoch. The epoch is a whole number: round down.",
        ),
        "from one": Mistake(
            lambda step, steps, epochs: torch.tensor(1 / (epochs * step // steps + 2)),
            "count epochs from one and add one again. In the first epoch the "
            "weight is whole.",
        ),
        "linear": Mistake(
            lambda step, steps, epochs: torch.tensor(
                1 - (epochs * step // steps) / epochs
            ),
            "fade linearly. The weights are 1, 1/2, 1/3, …",
        ),
    },
)
