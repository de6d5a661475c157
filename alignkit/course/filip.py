"""Exercises of the notebook on FILIP: the two scores and their loss."""

import torch
from torch.nn import functional as F

from .exercises import Exercise, Mistake, random_rows, random_size


def _products(patches: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    """[n, a, d], [m, c, d] -> every patch against every word [n, m, a, c]."""
    return torch.einsum("nad,mcd->nmac", patches, words)


def _case(generator):
    n, m, d = (random_size(generator, low, low + 4) for low in (2, 3, 3))
    a, c = random_size(generator, 3, 7), random_size(generator, 4, 8)
    patches = F.normalize(random_rows(generator, n * a, d).view(n, a, d), dim=2)
    words = F.normalize(random_rows(generator, m * c, d).view(m, c, d), dim=2)
    real = torch.arange(c) < torch.randint(1, c, (m, 1), generator=generator)
    return patches, words, real


# Exercise 1: pictures ask -----------------------------------------------------------
def _patches_ask(patches, words, real):
    """Mean over patches of the best real word, [n, m]."""
    products = _products(patches, words).masked_fill(~real[:, None], -torch.inf)
    return products.amax(3).mean(2)


def _padding_wins(patches, words, real):
    return _products(patches, words).amax(3).mean(2)


def _zero_wins(patches, words, real):
    return (_products(patches, words) * real[:, None]).amax(3).mean(2)


def _mean_for_max(patches, words, real):
    share = real / real.sum(1, keepdim=True)
    return (_products(patches, words) * share[:, None]).sum(3).mean(2)


def _one_pair_of_tokens(patches, words, real):
    products = _products(patches, words).masked_fill(~real[:, None], -torch.inf)
    return products.amax((2, 3))


patches_ask = Exercise(
    name="patches_ask",
    task="for every patch its best real word (padding to −∞ first), mean over patches",
    reference=_patches_ask,
    cases=_case,
    mistakes={
        "no mask": Mistake(
            _padding_wins,
            "let padded words take part in the maximum. They stand for nothing, yet "
            "they can win: fill them with −∞ before the maximum.",
        ),
        "padding is zero": Mistake(
            _zero_wins,
            "set padded words to zero. Cosines can be negative, and then zero wins "
            "the maximum: fill with −∞.",
        ),
        "mean for max": Mistake(
            _mean_for_max,
            "take the mean over words. That is the product of two means, a score of "
            "pooled features; each patch must choose its best word.",
        ),
        "one best pair": Mistake(
            _one_pair_of_tokens,
            "take the maximum over patches too. One good patch would then speak for "
            "the whole picture: every patch chooses, then take the mean.",
        ),
    },
)


# Exercise 2: texts ask --------------------------------------------------------------
def _words_ask(patches, words, real):
    """Mean over real words of the best patch, [n, m]."""
    best = _products(patches, words).amax(2)
    return (best * real).sum(2) / real.sum(1)


def _all_words_counted(patches, words, real):
    return _products(patches, words).amax(2).mean(2)


def _padding_divides(patches, words, real):
    return (_products(patches, words).amax(2) * real).mean(2)


words_ask = Exercise(
    name="words_ask",
    task="for every real word its best patch, mean over the real words alone; [n, m]",
    reference=_words_ask,
    cases=_case,
    mistakes={
        "padding in the mean": Mistake(
            _all_words_counted,
            "count padded words in the mean. Leave them out after the maximum, or "
            "short captions are judged by their padding.",
        ),
        "divided by the length": Mistake(
            _padding_divides,
            "divide by the padded length. Divide by the number of real words, or "
            "short captions get small scores.",
        ),
        "−∞ in the mean": Mistake(
            lambda patches, words, real: _products(patches, words)
            .amax(2)
            .masked_fill(~real, -torch.inf)
            .mean(2),
            "fill padded words with −∞ before a mean. −∞ is for a maximum; a mean leaves "
            "them out by a factor 0, and divides by the number of real words.",
        ),
        "the other score": Mistake(
            _patches_ask,
            "let the patches ask again. The two scores differ: here every word "
            "looks for its best patch.",
        ),
        "turned": Mistake(
            lambda patches, words, real: _words_ask(patches, words, real).T,
            "return texts as rows, [m, n]. Keep pictures as rows; the loss takes the "
            "columns.",
        ),
    },
)


# Exercise 3: the loss ---------------------------------------------------------------
def _both_ways(s_image, s_text, scale):
    """Rows of the first, columns of the second, halved."""
    right = torch.arange(len(s_image))
    return (F.cross_entropy(scale * s_image, right)
            + F.cross_entropy(scale * s_text.T, right)) / 2


def _score_case(generator):
    n = random_size(generator, 3, 8)
    s_image, s_text = torch.rand(2, n, n, generator=generator) * 2 - 1
    return s_image, s_text, (2.0, 5.0, 14.0)[random_size(generator, 0, 3)]


both_ways = Exercise(
    name="both_ways",
    task="½ [cross entropy of the rows of s_image + of the columns of s_text], scaled",
    reference=_both_ways,
    cases=_score_case,
    mistakes={
        "one score for both": Mistake(
            lambda s_image, s_text, scale: _both_ways(s_image, s_image, scale),
            "use s_image for both directions. That trains one of the two scores and "
            "leaves the other to itself, without any error message.",
        ),
        "rows of both": Mistake(
            lambda s_image, s_text, scale: _both_ways(s_image, s_text.T, scale),
            "take the rows of s_text. A text looks for its picture among all "
            "pictures: these stand in its column.",
        ),
        "the scores exchanged": Mistake(
            lambda s_image, s_text, scale: _both_ways(s_text, s_image, scale),
            "exchange the two scores. Pictures rank texts by s_image, texts rank "
            "pictures by s_text.",
        ),
        "divided by the scale": Mistake(
            lambda s_image, s_text, scale: _both_ways(s_image, s_text, 1 / scale),
            "divide by the scale. It is 1 / temperature: multiply.",
        ),
        "not halved": Mistake(
            lambda s_image, s_text, scale: 2 * _both_ways(s_image, s_text, scale),
            "add the two directions without the factor one half.",
        ),
    },
)
