"""Exercises of the notebook on robust calibration: a step of an attack, what restarts are
for, and which defence to believe."""

import torch

from .exercises import Exercise, Mistake, random_rows, random_size


# Exercise 1, build: one step of PGD ----------------------------------------------------
def _stepped(now, x, gradient, eps, size):
    """[n, d] three times, two numbers -> [n, d]"""
    return (now + size * gradient.sign()).clamp(x - eps, x + eps).clamp(0, 1)


def _step_cases(generator):
    n, d = random_size(generator, 3, 6), random_size(generator, 6, 10)
    x = torch.rand(n, d, generator=generator)
    x[0, :2], x[1, :2] = 0.0, 1.0  # at the rim of what is valid
    now = (x + 0.1 * (2 * torch.rand(n, d, generator=generator) - 1)).clamp(0, 1)
    return now, x, random_rows(generator, n, d), 0.1, 0.15  # a step may be longer than eps


stepped = Exercise(
    name="stepped",
    task="now + size · sign(gradient), put back within eps of x and between 0 and 1",
    reference=_stepped,
    cases=_step_cases,
    mistakes={
        "no ball": Mistake(
            lambda now, x, g, eps, size: (now + size * g.sign()).clamp(0, 1),
            "never come back to within eps of x: after enough steps any picture is reached.",
        ),
        "ball around the point": Mistake(
            lambda now, x, g, eps, size: (now + size * g.sign()).clamp(
                now - eps, now + eps).clamp(0, 1),
            "keep within eps of the present point. The ball stands around x: otherwise each "
            "step moves it on.",
        ),
        "no range": Mistake(
            lambda now, x, g, eps, size: (now + size * g.sign()).clamp(x - eps, x + eps),
            "leave the range from 0 to 1: such numbers are no pixels.",
        ),
        "downhill": Mistake(
            lambda now, x, g, eps, size: _stepped(now, x, -g, eps, size),
            "go downhill. The attacker raises the shortfall: add, do not subtract.",
        ),
        "no sign": Mistake(
            lambda now, x, g, eps, size: (now + size * g).clamp(x - eps, x + eps).clamp(0, 1),
            "step along the gradient itself. Where it is small nothing moves: each number "
            "moves by `size`, in the direction of its sign.",
        ),
        "from x": Mistake(
            lambda now, x, g, eps, size: _stepped(x, x, g, eps, size),
            "step from x again. A path goes on from the present point; x is only the middle "
            "of the ball.",
        ),
        "eps as the step": Mistake(
            lambda now, x, g, eps, size: _stepped(now, x, g, eps, eps),
            "step by eps. A step moves each number by `size`; eps says how far from x it may "
            "end.",
        ),
        "the change alone": Mistake(
            lambda now, x, g, eps, size: (now + size * g.sign() - x).clamp(-eps, eps),
            "give the change alone. Add x again, and keep between 0 and 1.",
        ),
    },
)


# Exercise 2, transfer: restarts ---------------------------------------------------------
def _robust(shortfalls):
    """[r, n] -> the share of inputs that stand every start."""
    return (shortfalls < 0).all(0).float().mean()


def _restart_cases(generator):
    r, n = random_size(generator, 3, 6), random_size(generator, 8, 15)
    shortfalls = torch.randn(r, n, generator=generator) - 1.2
    shortfalls[:, 0] = -1.0  # stands all
    shortfalls[:, 1], shortfalls[0, 1] = -1.0, 0.0  # a tie with one start
    shortfalls[:, 2], shortfalls[0, 2] = -0.1, 3.0  # one start fells it, even on average
    return (shortfalls,)


robust = Exercise(
    name="robust",
    task="the share of the n inputs with a shortfall below 0 for every one of the r starts",
    reference=_robust,
    cases=_restart_cases,
    mistakes={
        "a mean over starts": Mistake(
            lambda s: (s < 0).float().mean(),
            "average over the starts. An input that falls once has fallen: it must stand all "
            "of them.",
        ),
        "any start": Mistake(
            lambda s: (s < 0).any(0).float().mean(),
            "count an input that stands any start. It must stand all of them.",
        ),
        "ties are right": Mistake(
            lambda s: (s <= 0).all(0).float().mean(),
            "count a shortfall of 0 as right. There a wrong class has the same score.",
        ),
        "starts and inputs": Mistake(
            lambda s: (s < 0).all(1).float().mean(),
            "ask which starts beat every input. Ask of each input (a column) whether it "
            "stands all starts.",
        ),
        "the share that falls": Mistake(
            lambda s: 1 - _robust(s),
            "give the share that falls. Robust accuracy is the share that stands.",
        ),
        "the colleague's": Mistake(
            lambda s: (s <= 0).float().mean(),
            "give the colleague's answer. Mend two things: each input must stand *all* its "
            "starts, and a shortfall of 0 is wrong.",
        ),
        "the best start": Mistake(
            lambda s: (s < 0).float().mean(1).min(),
            "take the start that fells most inputs. Another start may fell others: ask of "
            "each input whether it stands all of them.",
        ),
        "mean shortfall": Mistake(
            lambda s: (s.mean(0) < 0).float().mean(),
            "average the shortfalls over the starts. One start of 0 or more is enough: take "
            "the worst, not the mean.",
        ),
    },
)


# Exercise 3, judge: which defence to believe --------------------------------------------
def _left(undefended, other, adaptive):
    return (adaptive - undefended >= (other - undefended) / 2).float()


def _believed(table, slack):
    """[n, 4] -> 0 masked, 1 little is left, 2 at least half of the gain is left."""
    undefended, other, adaptive, square = table.T
    return (1 + _left(undefended, other, adaptive)) * (square >= adaptive - slack).float()


def _defences(generator):
    """Every case first, then some at random."""
    n = random_size(generator, 8, 12)
    undefended = 0.05 + 0.2 * torch.rand(n, generator=generator)
    other = undefended + 0.2 + 0.3 * torch.rand(n, generator=generator)
    left = torch.rand(n, generator=generator)
    left[:6] = torch.tensor([0.2, 0.8, 0.2, 0.8, 0.35, 0.65])
    adaptive = undefended + left * (other - undefended)
    undefended[4], other[4], adaptive[4] = 0.25, 0.45, 0.32  # above half of all, not of gain
    square = adaptive + 0.2 * torch.rand(n, generator=generator)
    square[2:4] = adaptive[2:4] - 0.1  # masked
    square[5] = adaptive[5] - 0.01  # within the slack
    return torch.stack([undefended, other, adaptive, square], 1), 0.03


believed = Exercise(
    name="believed",
    task="0 where Square < adaptive − slack; else 2 where adaptive − undefended is at least "
         "half of (not adaptive − undefended); else 1",
    reference=_believed,
    cases=_defences,
    mistakes={
        "masking overlooked": Mistake(
            lambda t, slack: 1 + _left(*t.T[:3]),
            "trust every row. Where an attack without gradients finds more than the one with "
            "them the gradients are masked: 0.",
        ),
        "half of the accuracy": Mistake(
            lambda t, slack: (1 + (t[:, 2] >= t[:, 1] / 2).float())
            * (t[:, 3] >= t[:, 2] - slack).float(),
            "ask for half of the accuracy. Half of the gain over the undefended encoder must "
            "be left: subtract its accuracy first.",
        ),
        "no slack": Mistake(
            lambda t, slack: _believed(t, 0.0),
            "forget the slack. Both attacks are searches, and a hundredth between them is "
            "chance.",
        ),
        "the wrong way": Mistake(
            lambda t, slack: (1 + _left(*t.T[:3])) * (t[:, 3] <= t[:, 2] + slack).float(),
            "take a weaker Square for masking. It is the *stronger* one that tells: its "
            "accuracy lies below that of the adaptive attack.",
        ),
        "against the other attack": Mistake(
            lambda t, slack: (1 + _left(*t.T[:3])) * (t[:, 3] >= t[:, 1] - slack).float(),
            "compare Square with the attack on the encoder alone. Compare it with the "
            "adaptive one: both of these attack the same model.",
        ),
        "a difference either way": Mistake(
            lambda t, slack: (1 + _left(*t.T[:3]))
            * ((t[:, 3] - t[:, 2]).abs() <= slack).float(),
            "take any difference between Square and the adaptive attack for masking. Only a "
            "*stronger* Square tells; a weaker one is what one expects.",
        ),
        "slack added": Mistake(
            lambda t, slack: _believed(t, -slack),
            "add the slack. Square's accuracy must lie below the adaptive one by *more* than "
            "slack.",
        ),
        "1 and 2 swapped": Mistake(
            lambda t, slack: (2 - _left(*t.T[:3])) * (t[:, 3] >= t[:, 2] - slack).float(),
            "swap 1 and 2. 2 is where at least half of the gain is left.",
        ),
        "the gain of one side": Mistake(
            lambda t, slack: (1 + (t[:, 2] - t[:, 0] >= t[:, 1] / 2).float())
            * (t[:, 3] >= t[:, 2] - slack).float(),
            "subtract the undefended accuracy on one side only. Both the gain that was and "
            "the gain that is left are counted from there.",
        ),
        "masking asked last": Mistake(
            lambda t, slack: torch.where(_left(*t.T[:3]) > 0, 2.0, _believed(t, slack)),
            "ask about masking last. Of masked gradients no number is trusted, a large gain "
            "neither: 0 comes first.",
        ),
    },
)
