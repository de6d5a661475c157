"""What a fused model (`parts.fusion`) makes of words with a picture, its own or another."""

from collections.abc import Iterator

import torch
from torch import Tensor

from alignkit.data import Tokens
from alignkit.evaluation.classify import balanced
from alignkit.parts.fusion import Fused, FusionModel
from alignkit.parts.fusion_tasks import kinds_of
from alignkit.parts.text import MASK

ROWS = 512  # that go through the model together


@torch.no_grad()
def fill_in_accuracy(model: FusionModel, words: Tokens, regions: Tokens, boxes: Tokens,
                     asked: Tensor) -> float:
    """Masked one at a time, how many of the words at the places `asked` [n, t] (bool) the
    model names, among all words it knows.

    Raises ValueError if no place is asked.
    """
    row, place = asked.nonzero(as_tuple=True)
    if not len(row):
        raise ValueError("asked is True nowhere: no word to fill in")
    ids = words.values[row]
    right = ids[torch.arange(len(row)), place].clone()
    ids[torch.arange(len(row)), place] = MASK
    found = torch.cat([
        model.word_logits(fused)[torch.arange(len(at)), place[at]].argmax(1)
        for at, fused in _fused(model, Tokens(ids, words.mask[row]), _rows(regions, row),
                                _rows(boxes, row))])
    return (found == right).float().mean().item()


@torch.no_grad()
def kind_accuracy(model: FusionModel, words: Tokens, regions: Tokens, boxes: Tokens,
                  asked: Tensor) -> float:
    """The features of one region hidden at a time (the mean of all in their place, its box is
    seen), of how many of the regions `asked` [n, r] (bool) the model names the kind.

    Raises ValueError if no region is asked.
    """
    row, place = asked.nonzero(as_tuple=True)
    if not len(row):
        raise ValueError("asked is True nowhere: no region to hide")
    values, each = regions.values[row], torch.arange(len(row))
    right = kinds_of(model, values)[each, place]
    values[each, place] = model.region_mean
    found = torch.cat([
        model.kind_logits(fused)[torch.arange(len(at)), place[at]].argmax(1)
        for at, fused in _fused(model, _rows(words, row), Tokens(values, regions.mask[row]),
                                _rows(boxes, row))])
    return (found == right).float().mean().item()


@torch.no_grad()
def answers_of(model: FusionModel, words: Tokens, regions: Tokens, boxes: Tokens) -> Tensor:
    """The number of the answer that the model gives to each question [n], long."""
    return torch.cat([model.answer_logits(fused).argmax(1)
                      for _, fused in _fused(model, words, regions, boxes)])


def answer_accuracy(model: FusionModel, words: Tokens, regions: Tokens, boxes: Tokens,
                    answer: Tensor) -> float:
    """Balanced accuracy of the answers [n]: the mean, over the answers that occur, of how
    many questions with that answer are answered rightly."""
    return balanced(answers_of(model, words, regions, boxes) == answer, answer)


@torch.no_grad()
def matched(model: FusionModel, words: Tokens, regions: Tokens, boxes: Tokens) -> Tensor:
    """The logit that words and picture of a row belong together, less that they do not
    [n]."""
    return torch.cat([model.match_logits(fused) @ torch.tensor([-1.0, 1.0])
                      for _, fused in _fused(model, words, regions, boxes)])


def _rows(tokens: Tokens, rows: Tensor) -> Tokens:
    return Tokens(tokens.values[rows], tokens.mask[rows])


def _fused(model: FusionModel, words: Tokens, regions: Tokens,
           boxes: Tokens) -> Iterator[tuple[Tensor, Fused]]:
    for at in torch.arange(len(words.values)).split(ROWS):
        yield at, model(_rows(words, at), _rows(regions, at), _rows(boxes, at))
