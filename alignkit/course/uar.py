"""Exercises of the notebook on UAR: a step of beam search, a mask that is added in the wrong
place, and whether reports say more than a template."""

import torch

from .exercises import Exercise, Mistake, random_size


# Exercise 1, build: a step of beam search -----------------------------------------------
def _kept(scores: torch.Tensor, logits: torch.Tensor, k: int) -> torch.Tensor:
    """[b], [b, words] -> [k, 2]: beam and word of the k best texts that are one word longer."""
    total = scores[:, None] + logits.log_softmax(dim=1)
    return _places(total, k)


def _places(total: torch.Tensor, k: int) -> torch.Tensor:
    order = total.flatten().topk(k).indices
    return torch.stack([order // total.shape[1], order % total.shape[1]], dim=1)


def _each_beam(scores: torch.Tensor, logits: torch.Tensor, k: int) -> torch.Tensor:
    total, words = (scores[:, None] + logits.log_softmax(dim=1)).max(dim=1)
    order = total.argsort(descending=True)[:k]
    return torch.stack([order, words[order]], dim=1)


def _first_beam(scores: torch.Tensor, logits: torch.Tensor, k: int) -> torch.Tensor:
    best = int(scores.argmax())
    words = logits[best].topk(k).indices
    return torch.stack([torch.full((k,), best), words], dim=1)


def _steps(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Beams as many as are kept, of unlike scores and of logits of unlike size."""
    k, words = random_size(generator, 3, 4), random_size(generator, 7, 9)
    scores = -2 * torch.rand(k, generator=generator)
    logits = 2 * torch.randn(k, words, generator=generator)
    logits = logits + 6 * torch.randn(k, 1, generator=generator)
    scores[0], logits[0] = 0.0, torch.linspace(0, 0.3, words)  # many words nearly alike
    return scores, logits, k


beam_step = Exercise(
    name="beam_step",
    task="beam and word of the k best texts that are one word longer, best first",
    reference=_kept,
    cases=_steps,
    mistakes={
        "words alone": Mistake(
            lambda scores, logits, k: _places(logits.log_softmax(dim=1), k),
            "forget what the texts cost so far: add each beam's score to the log-probabilities "
            "of its words.",
        ),
        "logits": Mistake(
            lambda scores, logits, k: _places(scores[:, None] + logits, k),
            "add up logits. Logits of two beams have no common zero: take log_softmax over the "
            "words first.",
        ),
        "probabilities": Mistake(
            lambda scores, logits, k: _places(scores[:, None] + logits.softmax(dim=1), k),
            "add probabilities to log-probabilities. Scores are sums of logarithms: use "
            "log_softmax.",
        ),
        "one a beam": Mistake(
            _each_beam,
            "go on with one word for each beam. Two of the best texts may come from the same "
            "beam: choose among all beams and words at once.",
        ),
        "the best beam": Mistake(
            _first_beam,
            "go on with the best beam alone. A beam that is behind may have the better word.",
        ),
        "over beams": Mistake(
            lambda scores, logits, k: _places(scores[:, None] + logits.log_softmax(dim=0), k),
            "take the softmax over beams. Each beam has probabilities of its own words: "
            "dim=1.",
        ),
        "word first": Mistake(
            lambda *case: _kept(*case).flip(1),
            "put the word before the beam. The columns are beam, word.",
        ),
        "worst first": Mistake(
            lambda *case: _kept(*case).flip(0),
            "put the worst of the k first. The best comes first.",
        ),
    },
)


# Exercise 2, transfer: a mask that is added in the wrong place --------------------------
def _weights(q, k, mask, strength, real, *, scale=True, inside=True, hide=True):
    scores, d = q @ k.mT, q.shape[-1] ** 0.5
    added = strength * torch.sigmoid(mask)
    scores = (scores + added) / d if inside else scores / d + added
    if not scale:
        scores = scores * d
    return scores.masked_fill(~real[None], -torch.inf).softmax(1) if hide else scores.softmax(1)


def _filled_with_zero(q, k, v, mask, strength, real):
    scores = (q @ k.mT + strength * torch.sigmoid(mask)) / q.shape[-1] ** 0.5
    return scores.masked_fill(~real[None], 0.0).softmax(1) @ v


def _after(q, k, v, mask, strength, real):
    return (_weights(q, k, mask, 0.0, real) + strength * torch.sigmoid(mask)) @ v


def _times(q, k, v, mask, strength, real):
    scores = (q @ k.mT * strength * torch.sigmoid(mask)) / q.shape[-1] ** 0.5
    return scores.masked_fill(~real[None], -torch.inf).softmax(1) @ v


def _looks(generator: torch.Generator) -> tuple:
    t, cells, d = random_size(generator, 3, 5), random_size(generator, 6, 8), 4
    q = torch.randn(t, d, generator=generator)
    k, v = torch.randn(2, cells, d, generator=generator)
    mask = torch.randn(t, cells, generator=generator)
    real = torch.arange(cells) < cells - 2
    k[~real] = 3 * k[~real]
    return q, k, v, mask, 5.0, real


masked_look = Exercise(
    name="masked_look",
    task="softmax of (content plus strength times sigmoid of the mask) over the root of the "
         "width, among real cells, times the values",
    reference=lambda q, k, v, mask, strength, real:
        _weights(q, k, mask, strength, real) @ v,
    cases=_looks,
    mistakes={
        "after the root": Mistake(
            lambda q, k, v, mask, strength, real:
                _weights(q, k, mask, strength, real, inside=False) @ v,
            "add the mask after the division, as the colleague does: it weighs as many times "
            "too much as the root of the width.",
        ),
        "after the softmax": Mistake(
            _after,
            "add the mask after the softmax. Weights must sum to 1: it belongs to the scores.",
        ),
        "times": Mistake(
            _times,
            "multiply the scores by the mask. It is added: a cell of negative score would get "
            "less the more open it is.",
        ),
        "no sigmoid": Mistake(
            lambda q, k, v, mask, strength, real: ((q @ k.mT + strength * mask)
                                                   / q.shape[-1] ** 0.5).masked_fill(
                ~real[None], -torch.inf).softmax(1) @ v,
            "leave out the sigmoid: strength times sigmoid(mask) is added.",
        ),
        "padding": Mistake(
            lambda q, k, v, mask, strength, real:
                _weights(q, k, mask, strength, real, hide=False) @ v,
            "let words look at padding: those cells get -torch.inf before the softmax.",
        ),
        "zeroed": Mistake(
            lambda q, k, v, mask, strength, real:
                (_weights(q, k, mask, strength, real, hide=False) * real) @ v,
            "take padding off after the softmax. The weights left do not sum to 1: give it "
            "-torch.inf before.",
        ),
        "filled with zero": Mistake(
            _filled_with_zero,
            "give padding a score of zero. Its exponential is one, so it still gets a weight: "
            "give it -torch.inf.",
        ),
        "no root": Mistake(
            lambda q, k, v, mask, strength, real:
                _weights(q, k, mask, strength, real, scale=False) @ v,
            "leave out the root of the width: all of it is divided, content and mask.",
        ),
        "over words": Mistake(
            lambda q, k, v, mask, strength, real: ((q @ k.mT + strength * torch.sigmoid(mask))
                                                   / q.shape[-1] ** 0.5).softmax(0) @ v,
            "take the softmax over words. Each word shares its weight out among cells: dim=1.",
        ),
    },
)


# Exercise 3, judge: more than a template? -----------------------------------------------
def _f1(found: torch.Tensor, true: torch.Tensor) -> float:
    """Micro-averaged F1 of bool [n, c]."""
    return float(2 * (found & true).sum() / (found.sum() + true.sum()).clamp(min=1))


def _templates(true: torch.Tensor) -> list[float]:
    """F1 of writing one row's report for all rows."""
    return [_f1(row.expand_as(true), true) for row in true]


def _above(runs: torch.Tensor, true: torch.Tensor, score=_f1, bar=None) -> torch.Tensor:
    if bar is None:  # of the same score
        bar = max(score(row.expand_as(true), true) for row in true)
    return torch.tensor([score(found, true) > bar for found in runs])


def _row_mean(found: torch.Tensor, true: torch.Tensor) -> float:
    return float((2 * (found & true).sum(1) / (found.sum(1) + true.sum(1)).clamp(min=1)).mean())


def _accuracy(found: torch.Tensor, true: torch.Tensor) -> float:
    return float((found == true).float().mean())


def _recall(found: torch.Tensor, true: torch.Tensor) -> float:
    return float((found & true).sum() / true.sum())


def _precision(found: torch.Tensor, true: torch.Tensor) -> float:
    return float((found & true).sum() / found.sum().clamp(min=1))


def _ties_pass(runs: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    bar = max(_templates(true))
    return torch.tensor([_f1(found, true) >= bar for found in runs])


def _reports(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Runs that know, guess, repeat a report, name all or nothing; one finding is common."""
    n, c = random_size(generator, 30, 40), 6
    share = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.1, 0.1])
    true = torch.rand(n, c, generator=generator) < share
    true[0] = torch.tensor([True, False, False, False, False, False])
    true[1] = False  # a normal report
    runs = [true[0].expand(n, c), torch.zeros(n, c).bool(), torch.ones(n, c).bool(),
            true[torch.randperm(n, generator=generator)]]
    drawn = torch.rand(random_size(generator, 6, 14), 2, generator=generator)
    usual = ((0.9, 0.02), (0.6, 0.05), (0.35, 0.01), (0.2, 0.0), (0.5, 0.1), (0.8, 0.3))
    for keep, more in (*usual, *(drawn * torch.tensor([1.0, 0.3])).tolist()):
        kept = torch.rand(n, c, generator=generator) < keep
        made = torch.rand(n, c, generator=generator) < more
        runs.append(true & kept | made)
    rare = true.clone()
    rare[:, 0] = False  # says nothing of the common one
    return torch.stack([*runs, rare]), true


more_than_a_template = Exercise(
    name="more_than_a_template",
    task="whether each run's micro-averaged score is above that of the best report "
         "written for all rows",
    reference=_above,
    cases=_reports,
    mistakes={
        "above nothing": Mistake(
            lambda runs, true: _above(runs, true, bar=0.0),
            "call every score above zero a success. A report that is the same for all rows has "
            "one too.",
        ),
        "the usual report": Mistake(
            lambda runs, true: _above(runs, true,
                                      bar=sum(_templates(true)) / len(true)),
            "take a report like any other, or their mean, for the template. The best one must "
            "be beaten: try each row's report.",
        ),
        "accuracy": Mistake(
            lambda runs, true: _above(runs, true, _accuracy),
            "count what is rightly not named. Most findings are absent in most rows, so silence "
            "would score well: F1 counts what is named and what is there.",
        ),
        "recall": Mistake(
            lambda runs, true: _above(runs, true, _recall),
            "take recall alone. Whoever names everything has all of it.",
        ),
        "precision": Mistake(
            lambda runs, true: _above(runs, true, _precision),
            "take precision alone. Whoever names one sure finding has all of it.",
        ),
        "mean over rows": Mistake(
            lambda runs, true: _above(runs, true, _row_mean),
            "take the mean over rows. Micro-averaged: add up over rows what is right, named "
            "and there, then divide once.",
        ),
        "at least": Mistake(
            _ties_pass,
            "let a tie pass. The template itself has the template's score: ask for more.",
        ),
    },
)
