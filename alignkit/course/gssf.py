"""Exercises of the notebook on GSSF: Diag, Block-Diag, and a text that asks."""

import torch
from torch.nn import functional as F

from .exercises import Exercise, Mistake, random_rows, random_size


def _rows(generator, n, d):
    return F.normalize(random_rows(generator, n, d), dim=1)


# Exercise 1: a weight for each channel ----------------------------------------------
def _diag_scores(images, texts, w):
    """Sum over channels of w x y, [n, m]."""
    return images * w @ texts.T


def _diag_case(generator):
    n, m, d = (random_size(generator, low, low + 4) for low in (2, 3, 4))
    w = torch.randn(d, generator=generator)
    return _rows(generator, n, d), _rows(generator, m, d), w


diag_scores = Exercise(
    name="diag_scores",
    task="sum over the channels m of w_m x_m y_m, for every image and text [n, m]",
    reference=_diag_scores,
    cases=_diag_case,
    mistakes={
        "both sides": Mistake(
            lambda images, texts, w: (images * w) @ (texts * w).T,
            "weigh both sides. Then w counts twice: the weight of a channel is its "
            "square, never negative, and the gallery must be made anew.",
        ),
        "unit again": Mistake(
            lambda images, texts, w: F.normalize(images * w, dim=1) @ texts.T,
            "make the turned rows unit again. The score would no longer be linear in "
            "the image, and texts that ask would get another one.",
        ),
        "added": Mistake(
            lambda images, texts, w: images @ texts.T + w.sum(),
            "add the weights instead of multiplying them.",
        ),
        "the cosine": Mistake(
            lambda images, texts, w: images @ texts.T,
            "leave the weights out: that is the cosine.",
        ),
    },
)


# Exercise 2: full forms inside groups -----------------------------------------------
def _block_scores(images, texts, blocks):
    """Sum over groups of x_g W_g y_g, [n, m]."""
    return images @ torch.block_diag(*blocks) @ texts.T


def _interleaved(images, texts, blocks):
    groups, b, _ = blocks.shape
    x = images.view(len(images), b, groups).transpose(1, 2)
    turned = torch.einsum("ngb,gbc->ngc", x, blocks).transpose(1, 2)
    return turned.reshape(images.shape) @ texts.T


def _block_case(generator):
    n, m = random_size(generator, 2, 6), random_size(generator, 3, 7)
    groups, b = random_size(generator, 2, 5), random_size(generator, 2, 5)
    blocks = torch.randn(groups, b, b, generator=generator)
    return _rows(generator, n, groups * b), _rows(generator, m, groups * b), blocks


block_scores = Exercise(
    name="block_scores",
    task="sum over the groups g of consecutive channels of x_g · W_g · y_g, [n, m]",
    reference=_block_scores,
    cases=_block_case,
    mistakes={
        "turned blocks": Mistake(
            lambda images, texts, blocks: _block_scores(
                images, texts, blocks.transpose(1, 2)
            ),
            "use the transposed blocks. Image channels are the rows of W_g, text "
            "channels its columns.",
        ),
        "one block for all": Mistake(
            lambda images, texts, blocks: _block_scores(
                images, texts, blocks[:1].expand_as(blocks)
            ),
            "use the first block for every group. Each group has its own.",
        ),
        "channels interleaved": Mistake(
            _interleaved,
            "take channels that lie apart as a group. Groups are consecutive: "
            "view as [n, groups, block], in this order.",
        ),
        "diagonal only": Mistake(
            lambda images, texts, blocks: (
                images * blocks.diagonal(dim1=1, dim2=2).reshape(-1) @ texts.T
            ),
            "use the diagonals of the blocks alone. That is Diag; the channels of a "
            "group must meet each other.",
        ),
    },
)


# Exercise 3: a text asks ------------------------------------------------------------
def _asking_texts(texts, w, blocks):
    """M y as rows, [m, d]."""
    return texts @ (torch.diag(w) + torch.block_diag(*blocks)).T


def _asking_case(generator):
    _, texts, blocks = _block_case(generator)
    return texts, torch.randn(texts.shape[1], generator=generator), blocks


asking_texts = Exercise(
    name="asking_texts",
    task="the rows q_j = M y_j [m, d], so that q_j · x_i is s(x_i, y_j)",
    reference=_asking_texts,
    cases=_asking_case,
    mistakes={
        "as images ask": Mistake(
            lambda texts, w, blocks: (
                texts @ (torch.diag(w) + torch.block_diag(*blocks))
            ),
            "turn the texts as the images. That is another score, and nothing "
            "warns you: texts need the transpose of M.",
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
