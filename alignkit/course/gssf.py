"""Exercises of the notebook on GSSF: blocks without training, a text that asks, which
structure to register."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .exercises import Exercise, Mistake, random_rows, random_size


# Exercise 1, build: blocks without training -------------------------------------------
def _standard(rows: Tensor, correction: int = 0) -> Tensor:
    return (rows - rows.mean(0)) / rows.std(0, correction=correction)


def _blocks_of(table: Tensor, b: int) -> Tensor:
    """The squares along the diagonal of [d, d]: [d / b, b, b]."""
    groups = len(table) // b
    return table.view(groups, b, groups, b).diagonal(dim1=0, dim2=2).permute(2, 0, 1)


def _found_blocks(x: Tensor, y: Tensor, b: int) -> Tensor:
    """Correlations of image and text channels inside each group."""
    return _blocks_of(_standard(x).T @ _standard(y) / len(x), b)


def _interleaved(x, y, b):
    order = torch.arange(x.shape[1]).view(b, -1).T.flatten()
    return _found_blocks(x[:, order], y[:, order], b)


def _pairs_case(generator):
    n, d = random_size(generator, 20, 40), random_size(generator, 3, 5)
    groups = random_size(generator, 2, 4)
    x = random_rows(generator, n, groups * d)
    y = x @ torch.randn(groups * d, groups * d, generator=generator)
    return x, y + random_rows(generator, n, groups * d), d


found_blocks = Exercise(
    name="found_blocks",
    task="correlations of image and text channels inside each group: [d / b, b, b]",
    reference=_found_blocks,
    cases=_pairs_case,
    mistakes={
        "texts first": Mistake(
            lambda x, y, b: _found_blocks(y, x, b),
            "give text channels the rows. W_g has image channels as rows and text "
            "channels as columns, or s compares each with the wrong one.",
        ),
        "interleaved": Mistake(
            _interleaved,
            "take channels that lie apart as a group. Groups are consecutive: the "
            "squares along the diagonal of the whole table.",
        ),
        "not centred": Mistake(
            lambda x, y, b: _blocks_of(normalize(x, dim=0).T @ normalize(y, dim=0), b),
            "forget to subtract each channel's mean. Two channels that are always "
            "positive would seem to belong together.",
        ),
        "covariance": Mistake(
            lambda x, y, b: _blocks_of((x - x.mean(0)).T @ (y - y.mean(0)) / len(x), b),
            "leave the covariance undivided. A correlation is divided by both standard "
            "deviations, or large channels speak loudest.",
        ),
        "n and n − 1": Mistake(
            lambda x, y, b: _blocks_of(
                _standard(x, 1).T @ _standard(y, 1) / len(x), b),
            "divide the products by n and the squares by n − 1 (`std` does, unless told "
            "correction=0). A channel would not correlate fully with itself.",
        ),
    },
)


# Exercise 2, transfer: a text asks ----------------------------------------------------
def _matrix(w: Tensor, blocks: Tensor) -> Tensor:
    return torch.diag(w) + torch.block_diag(*blocks)


def _asking_texts(texts, w, blocks):
    """M y as rows, [m, d]."""
    return texts @ _matrix(w, blocks).T


def _asking_case(generator):
    groups, b = random_size(generator, 2, 5), random_size(generator, 2, 5)
    texts = normalize(random_rows(generator, random_size(generator, 3, 8), groups * b))
    return (texts, torch.randn(groups * b, generator=generator),
            torch.randn(groups, b, b, generator=generator))


asking_texts = Exercise(
    name="asking_texts",
    task="the rows q_j = M y_j [m, d], so that q_j · x_i is s(x_i, y_j)",
    reference=_asking_texts,
    cases=_asking_case,
    mistakes={
        "as images ask": Mistake(
            lambda texts, w, blocks: texts @ _matrix(w, blocks),
            "still turn the texts as the images. That is another score, and nothing "
            "warns you: texts need the transpose of each block.",
        ),
        "unit": Mistake(
            lambda texts, w, blocks: normalize(_asking_texts(texts, w, blocks)),
            "still make the turned rows unit. The order of the hits stays, but the "
            "scores are other ones than those of x asking y.",
        ),
        "unchanged": Mistake(
            lambda texts, w, blocks: normalize(texts @ _matrix(w, blocks)),
            "have changed nothing yet: the rows are still unit, and turned as images are.",
        ),
        "no diagonal": Mistake(
            lambda texts, w, blocks: texts @ torch.block_diag(*blocks).T,
            "forget w. M is the sum of the diagonal and the blocks.",
        ),
        "no blocks": Mistake(
            lambda texts, w, blocks: texts * w,
            "forget the blocks. M is the sum of the diagonal and the blocks.",
        ),
    },
)


# Exercise 3, judge: which structure ---------------------------------------------------
def _kinds(partner: Tensor, b: int, enough: float = 0.9) -> Tensor:
    """partner [k, d], the channel that each goes with -> 0, 1 or 2."""
    place = torch.arange(partner.shape[1])
    own, near = (1.0 * (partner == place)), 1.0 * (partner // b == place // b)
    reached = torch.stack([x.mean(1) >= enough for x in (own, near)])
    return 2 - reached.float().sum(0)


def _structures(correlations: Tensor, b: int) -> Tensor:
    return _kinds(correlations.abs().argmax(2), b)


def _spaces_case(generator):
    """Spaces of each kind: partners in place, one of them out of it, in the group, many
    to one in the group, one out of the group, three out of it, anywhere."""
    b = 5
    d, more = b * random_size(generator, 3, 5), random_size(generator, 1, 5)
    place = torch.arange(d)
    inside, far, many = (place + 1) % b + place // b * b, (place + b) % d, place // b * b
    lost, three = place == 3, (place % b == 3) & (place < 3 * b)
    partner = torch.stack([
        place, torch.where(lost, far, place), inside, many,
        torch.where(lost, far, inside), torch.where(three, far, place), far])
    again = torch.randint(len(partner), (more,), generator=generator)
    partner = torch.cat([partner, partner[again]])
    partner = partner[torch.randperm(len(partner), generator=generator)]
    noise = 0.5 * torch.rand(len(partner), d, d, generator=generator) - 0.25
    size = 0.5 + 0.4 * torch.rand(len(partner), d, 1, generator=generator)
    sign = 1.0 - 2.0 * (torch.rand(len(partner), d, 1, generator=generator) < 0.4)
    return noise.scatter(2, partner[:, :, None], size * sign), b


structures = Exercise(
    name="structures",
    task="for each space the cheapest that reaches enough: 0 Diag, 1 blocks, 2 full; [k]",
    reference=_structures,
    cases=_spaces_case,
    mistakes={
        "every partner": Mistake(
            lambda c, b: _kinds(c.abs().argmax(2), b, 1.0),
            "ask for every partner. Nine in ten are enough: one channel out of place "
            "does not pay for d² weights.",
        ),
        "more than half": Mistake(
            lambda c, b: _kinds(c.abs().argmax(2), b, 0.5),
            "are content with half of the partners. At least nine in ten must be reached.",
        ),
        "signed": Mistake(
            lambda c, b: _kinds(c.argmax(2), b),
            "look for the largest correlation with its sign. A weight may be negative: "
            "the partner is the channel with the largest absolute value.",
        ),
        "texts' partners": Mistake(
            lambda c, b: _kinds(c.abs().argmax(1), b),
            "look for the partner of each text channel. Image channels are the rows: "
            "the maximum runs over the columns.",
        ),
        "blocks at least": Mistake(
            lambda c, b: _structures(c, b).clamp(min=1.0),
            "take blocks where the diagonal would do. The cheapest that reaches enough: "
            "0 for Diag.",
        ),
    },
)
