"""Exercises of the notebook on MGCA: name prototypes by a few labels, a loss that takes
padding for words, and whether a cause is shown."""

import torch

from alignkit.parts.similarity import unit

from .exercises import Exercise, Mistake, random_size, unit_rows


# Exercise 1, build: name prototypes by a few labels -------------------------------------
def _votes(groups: torch.Tensor, label: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """[n], [n], [n] bool -> labelled rows of each class in each group [groups, classes]."""
    votes = torch.zeros(int(groups.max()) + 1, int(label.max()) + 1)
    return votes.index_put((groups[known], label[known]), torch.ones(int(known.sum())),
                           accumulate=True)


def _spread(groups: torch.Tensor, label: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    votes = _votes(groups, label, known)
    name = torch.where(votes.sum(1) > 0, votes.argmax(1), -1)
    return name[groups]


def _kept_own(groups: torch.Tensor, label: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    return torch.where(known, label, _spread(groups, label, known))


def _mean_number(groups: torch.Tensor, label: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    votes = _votes(groups, label, known)
    numbers = torch.arange(votes.shape[1]).float()
    mean = (votes @ numbers / votes.sum(1).clamp_min(1)).round().long()
    return torch.where(votes.sum(1) > 0, mean, -1)[groups]


def _few_known(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Groups that lean to a class, of which some have no labelled row."""
    n, k = random_size(generator, 30, 40), random_size(generator, 6, 8)
    groups = torch.randint(k, (n,), generator=generator)
    label = torch.where(torch.rand(n, generator=generator) < 0.6, groups % 4,
                        torch.randint(4, (n,), generator=generator))
    known = torch.rand(n, generator=generator) < 0.5
    known &= groups != k - 1
    groups[-1], known[-1] = k - 1, False
    # A group of its own in which the last-seen, the mean and the own class differ from the
    # most frequent one.
    groups[:5], known[:5] = k, True
    label[:5] = torch.tensor([3, 0, 0, 0, 2])
    return groups, label, known


named_by_few = Exercise(
    name="named_by_few",
    task="for each row the most frequent class among the labelled rows of its group, or -1",
    reference=_spread,
    cases=_few_known,
    mistakes={
        "all labels": Mistake(
            lambda groups, label, known: _spread(groups, label, torch.ones_like(known)),
            "count labels of rows that are not known. Only label[known] may be read.",
        ),
        "own label kept": Mistake(
            _kept_own,
            "keep a labelled row's own class. Every row of a group gets the group's class, "
            "the labelled ones too.",
        ),
        "zero for no label": Mistake(
            lambda groups, label, known: _spread(groups, label, known).clamp_min(0),
            "give class 0 to groups without a labelled row. argmax of zeros is 0: nothing "
            "is known of them, so give -1.",
        ),
        "a mean of numbers": Mistake(
            _mean_number,
            "take the mean of class numbers. Classes have no order: count them and take "
            "the most frequent.",
        ),
        "the larger number": Mistake(
            lambda groups, label, known: torch.where(
                (votes := _votes(groups, label, known)).sum(1) > 0,
                votes.shape[1] - 1 - votes.flip(1).argmax(1), -1)[groups],
            "take the larger number where two classes are equally frequent: take the smaller.",
        ),
        "by group": Mistake(
            lambda groups, label, known: torch.where(
                (votes := _votes(groups, label, known)).sum(1) > 0, votes.argmax(1), -1),
            "return one class for each group. Each row is asked for: index by groups.",
        ),
        "unlabelled rows too": Mistake(
            lambda groups, label, known: torch.where(known, _spread(groups, label, known), -1),
            "give -1 to rows that are not labelled. They are the ones that get a class "
            "from their group.",
        ),
    },
)


# Exercise 2, transfer: padding that is taken for words ----------------------------------
def _logits(words: torch.Tensor, patches: torch.Tensor, tau: float) -> torch.Tensor:
    """Words [n, t, d], patches [n, p, d], all unit -> words by attended patches [n, t, t]."""
    seen = (words @ patches.mT / tau).softmax(2) @ patches
    return words @ unit(seen).mT / tau


def _own(logits: torch.Tensor) -> torch.Tensor:
    """-log softmax of each word's own attended vector [n, t]."""
    return -logits.log_softmax(2).diagonal(dim1=1, dim2=2)


def _among_real(words, mask, patches, tau) -> torch.Tensor:
    """`_own` among the real words [n, t]; infinite where padding asks."""
    logits = _logits(words, patches, tau)
    return _own(logits.masked_fill(~mask[:, None, :], -torch.inf))


def _each_report(loss: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over a report's words, then over reports."""
    return (loss.masked_fill(~mask, 0).sum(1) / mask.sum(1)).mean()


def _mended(words, mask, patches, tau) -> torch.Tensor:
    return _each_report(_among_real(words, mask, patches, tau), mask)


def _zeros(words, mask, patches, tau) -> torch.Tensor:
    logits = _logits(words, patches, tau).masked_fill(~mask[:, None, :], 0)
    return _each_report(_own(logits), mask)


def _other_axis(words, mask, patches, tau) -> torch.Tensor:
    logits = _logits(words, patches, tau).masked_fill(~mask[:, None, :], -torch.inf)
    loss = -logits.log_softmax(1).diagonal(dim1=1, dim2=2)
    return _each_report(loss, mask)


def _reports(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]:
    """Reports of unlike lengths; padding is unit vectors too, as after a head with a bias."""
    n, t, d = random_size(generator, 3, 5), random_size(generator, 5, 7), 6
    words = unit_rows(generator, n * t, d).view(n, t, d)
    patches = unit_rows(generator, n * 8, d).view(n, 8, d)
    length = torch.randint(2, t, (n,), generator=generator)
    length[:2] = torch.tensor([2, t])
    return words, torch.arange(t) < length[:, None], patches, 0.2


unpadded = Exercise(
    name="unpadded",
    task="cross entropy of each real word with its own patches among real words alone",
    reference=_mended,
    cases=_reports,
    mistakes={
        "nothing masked": Mistake(
            lambda words, mask, patches, tau: _own(_logits(words, patches, tau)).mean(),
            "take padding for words, as the colleague does: it asks and it answers.",
        ),
        "it answers": Mistake(
            lambda words, mask, patches, tau: _each_report(
                _own(_logits(words, patches, tau)), mask),
            "leave padding among the wrong answers: it must not ask, and its columns must "
            "be -torch.inf as well.",
        ),
        "it asks": Mistake(
            lambda *case: _among_real(*case).mean(),
            "leave padded words among those that ask: their own column is -torch.inf, so "
            "their loss is infinite. Only real words count in the mean.",
        ),
        "times the mask": Mistake(
            lambda *case: (_among_real(*case) * case[1]).sum(),
            "multiply the loss of padded words by 0. It is infinite, and infinity times 0 is "
            "NaN: use masked_fill or torch.where.",
        ),
        "all words at once": Mistake(
            lambda *case: _among_real(*case)[case[1]].mean(),
            "take one mean over the words of all reports, so that a long report weighs more. "
            "Mean over a report's words first, then over reports.",
        ),
        "divided by t": Mistake(
            lambda *case: _among_real(*case).masked_fill(~case[1], 0).mean(),
            "divide by the padded length. Divide each report by its number of real words.",
        ),
        "zeros": Mistake(
            _zeros,
            "set padded columns to 0. exp(0) = 1 stays in the denominator: -torch.inf "
            "leaves them out.",
        ),
        "the other way": Mistake(
            _other_axis,
            "let attended patches ask for their word (softmax along dim=1). Here each word "
            "asks: along dim=2.",
        ),
        "a sum": Mistake(
            lambda words, mask, patches, tau: len(words) * _mended(words, mask, patches, tau),
            "sum over the reports. The loss is their mean.",
        ),
    },
)


# Exercise 3, judge: is the cause shown? -------------------------------------------------
def _above(gains: torch.Tensor, t: float, power: float = 0.5) -> torch.Tensor:
    """[n, seeds] -> [n]: whether the interval of the mean lies above 0."""
    return gains.mean(1) - t * gains.std(1) / gains.shape[1] ** power > 0


def _level(gain: torch.Tensor, cause: torch.Tensor) -> torch.Tensor:
    return gain.float() + (gain & cause).float()


def _judged(usual: torch.Tensor, without: torch.Tensor, t: float, **how) -> torch.Tensor:
    return _level(_above(usual, t, **how), _above(usual - without, t, **how))


def _one_significant(usual: torch.Tensor, without: torch.Tensor, t: float) -> torch.Tensor:
    return _level(_above(usual, t), ~_above(without, t))


def _apart(usual: torch.Tensor, without: torch.Tensor, t: float) -> torch.Tensor:
    """Intervals of both gains that do not overlap."""
    half = [t * x.std(1) / x.shape[1] ** 0.5 for x in (usual, without)]
    apart = usual.mean(1) - half[0] > without.mean(1) + half[1]
    return _level(_above(usual, t), apart)


def _means(usual: torch.Tensor, without: torch.Tensor, t: float) -> torch.Tensor:
    return _level(_above(usual, t), usual.mean(1) > without.mean(1))


def _designs(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Gains of eight paired seeds of some designs; every case once."""
    # Of each design: the mean gain, what of it is left without the cause, the deviation of
    # what both share, and of what each has alone.
    kinds = torch.tensor([[5.0, 0.2, 0.3, 0.3],  # shown
                          [3.0, 2.3, 2.4, 0.1],  # shown by pairs alone, both vary together
                          [2.0, 1.0, 0.1, 1.5],  # significant against not: nothing shown
                          [4.0, 3.9, 0.3, 0.8],  # a gain with or without
                          [0.3, -2.0, 1.2, 0.2],  # less harm is no gain
                          [0.1, 0.0, 1.0, 1.0]])
    more = torch.rand(random_size(generator, 4, 8), 4, generator=generator)
    kinds = torch.cat([kinds, more * torch.tensor([4.0, 3.0, 1.0, 1.5])])
    drawn = torch.randn(3, len(kinds), 8, generator=generator)
    mean, left, both, alone = kinds.T[:, :, None]
    return (mean + both * drawn[0] + alone * drawn[1],
            left + both * drawn[0] + alone * drawn[2], 2.365)


cause_shown = Exercise(
    name="cause_shown",
    task="2 where the gain and its cause are shown, 1 where the gain alone is, else 0",
    reference=_judged,
    cases=_designs,
    mistakes={
        "one is significant": Mistake(
            _one_significant,
            "call the cause shown where the gain without it is not above zero for sure. Not "
            "shown is not zero: ask whether the difference of the two gains is above zero.",
        ),
        "intervals apart": Mistake(
            _apart,
            "ask that the two intervals do not overlap. The seeds are paired: subtract "
            "seed by seed and take the interval of the differences.",
        ),
        "means": Mistake(
            _means,
            "compare the means. Two means always differ; ask for the interval of the "
            "difference.",
        ),
        "no root": Mistake(
            lambda usual, without, t: _judged(usual, without, t, power=0),
            "take the deviation of one seed. That of the mean is smaller by the root of "
            "the number of seeds.",
        ),
        "the other sign": Mistake(
            lambda usual, without, t: _level(_above(usual, t), _above(without - usual, t)),
            "ask for a gain that grows without the cause: it must get smaller, so subtract "
            "`without` from `usual`.",
        ),
        "cause without gain": Mistake(
            lambda usual, without, t: _above(usual, t).float()
            + _above(usual - without, t).float(),
            "count the cause where no gain is shown. Less harm without it is no gain.",
        ),
        "cause alone": Mistake(
            lambda usual, without, t: 2 * _above(usual - without, t).float(),
            "forget the gains whose cause is not shown: these get 1.",
        ),
        "the other way round": Mistake(
            lambda usual, without, t: _judged(without, usual, t),
            "exchange the two: the gain is asked of the usual design, and less is left "
            "without the cause.",
        ),
    },
)
