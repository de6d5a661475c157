"""Exercises of the notebook on geodesic mixup: uniformity, the arc, what mixing did."""

import torch
from torch.nn import functional as F

from .exercises import Exercise, Mistake, random_rows, random_size, unit_rows

SHARES = (0.15, 0.3, 0.8)


# Exercise 1, build: uniformity of both together -------------------------------------------
def _far(pictures, texts):
    """Squared distances of all rows from all rows, [2n, 2n]."""
    rows = torch.cat([pictures, texts])
    return 2 - 2 * rows @ rows.T


def _others(square):
    """All entries off the diagonal, in one row."""
    return square[~torch.eye(len(square), dtype=torch.bool)]


def _spread(pictures, texts):
    """log of the mean of exp(-2 |x - y|²) over pairs of different rows."""
    return (-2 * _others(_far(pictures, texts))).exp().mean().log()


def _pair_case(generator):
    n, d = random_size(generator, 4, 8), random_size(generator, 3, 8)
    return unit_rows(generator, n, d), unit_rows(generator, n, d)


spread = Exercise(
    name="spread",
    task="log of the mean of exp(-2 |x - y|²), x ≠ y among pictures and texts together",
    reference=_spread,
    cases=_pair_case,
    mistakes={
        "the diagonal": Mistake(
            lambda x, y: (-2 * _far(x, y)).exp().mean().log(),
            "leave the diagonal in: each row is nothing away from itself, and a small set "
            "looks packed. Take the mean over pairs of different rows.",
        ),
        "not squared": Mistake(
            lambda x, y: (-2 * _others(_far(x, y)).clamp(min=0).sqrt()).exp().mean().log(),
            "take the distance. It is squared: 2 − 2 x·y for unit rows.",
        ),
        "log inside": Mistake(
            lambda x, y: (-2 * _others(_far(x, y))).mean(),
            "take the log before the mean, which leaves a mean of distances. The mean of "
            "the exponentials comes first: near pairs weigh most.",
        ),
        "no log": Mistake(
            lambda x, y: _spread(x, y).exp(),
            "forgot the log at the end.",
        ),
        "one modality at a time": Mistake(
            lambda x, y: (_spread(x, x[:0]) + _spread(y, y[:0])) / 2,
            "look at pictures and texts apart. Two narrow cones far from each other would "
            "be judged as one: put the rows together first.",
        ),
        "pairs across": Mistake(
            lambda x, y: (-2 * (2 - 2 * x @ y.T)).exp().mean().log(),
            "compare pictures with texts alone. Pictures among themselves and texts among "
            "themselves count, too.",
        ),
        "without the two": Mistake(
            lambda x, y: (-_others(_far(x, y))).exp().mean().log(),
            "forgot the factor 2 in the exponent.",
        ),
    },
)


# Exercise 2, transfer: the arc, without NaN --------------------------------------------
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


# Exercise 3, judge: what may be put down to the mixing? ------------------------------------
def _always(change):
    """[seeds, m] -> [m]: 1 where all rise, -1 where all fall, else 0."""
    return (change > 0).all(0).float() - (change < 0).all(0).float()


def _work_of_mixing(plain, unmixed, mixed):
    return _always(mixed - unmixed)


def _arms_case(generator):
    seeds, m = random_size(generator, 3, 5), random_size(generator, 6, 10)
    noise = random_rows(generator, seeds, m)  # of the split: all arms share it
    small = random_rows(generator, 3 * seeds, m).mul(0.4).split(seeds)
    second, mixing = torch.randn(2, m, generator=generator).round()
    plain = noise + small[0]
    unmixed = noise + second + small[1]
    return plain, unmixed, unmixed + mixing + small[2]


work_of_mixing = Exercise(
    name="work_of_mixing",
    task="−1, 0 or 1 for each figure: does the mixing itself lower or raise it?",
    reference=_work_of_mixing,
    cases=_arms_case,
    mistakes={
        "against plain": Mistake(
            lambda plain, unmixed, mixed: _always(mixed - plain),
            "compare with `plain`. That difference is mixing and second temperature in one: "
            "the arm that differs in the mixing alone is `unmixed`.",
        ),
        "the temperature's": Mistake(
            lambda plain, unmixed, mixed: _always(unmixed - plain),
            "compare the two arms without mixtures. Their difference is the second "
            "temperature's work.",
        ),
        "turned round": Mistake(
            lambda plain, unmixed, mixed: _always(unmixed - mixed),
            "have the sign turned round: −1 is for a figure that the mixing lowers.",
        ),
        "the mean decides": Mistake(
            lambda plain, unmixed, mixed: (mixed - unmixed).mean(0).sign(),
            "let the mean decide. Asked is for changes with one sign in every seed.",
        ),
        "not paired": Mistake(
            lambda plain, unmixed, mixed: (
                (mixed.amin(0) > unmixed.amax(0)).float()
                - (mixed.amax(0) < unmixed.amin(0)).float()),
            "compare all seeds with all seeds. They are paired: subtract line by line, and "
            "what the split does to both arms is gone.",
        ),
    },
)
