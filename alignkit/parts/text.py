"""A word-piece tokenizer trained on a corpus, and masking for language models."""

import re
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from alignkit.data import Tokens

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD, UNKNOWN, START, END, MASK = range(len(SPECIAL))
IGNORED = -100  # what torch's cross entropy leaves out


class WordPieces:
    """Texts to ids of word pieces and back (Wu et al. 2016; lower case, as BERT).

    Training joins the pair of pieces that occurs most often, again and again; a word
    is then cut into the longest known pieces from its left. `vocabulary` holds the
    pieces in the order of their ids; it begins with `SPECIAL`, and a piece within a
    word begins with `##`. It is all there is to store.
    """

    def __init__(self, vocabulary: Sequence[str]):
        from tokenizers import Tokenizer, models
        if tuple(vocabulary[: len(SPECIAL)]) != SPECIAL:
            raise ValueError(f"vocabulary must begin with {SPECIAL}, got "
                             f"{tuple(vocabulary[:len(SPECIAL)])}")
        self.vocabulary = list(vocabulary)
        ids = {piece: i for i, piece in enumerate(self.vocabulary)}
        self._tokenizer = _lower_case(
            Tokenizer(models.WordPiece(vocab=ids, unk_token=SPECIAL[UNKNOWN])))

    def __len__(self) -> int:
        return len(self.vocabulary)

    @classmethod
    def train(cls, texts: Sequence[str], size: int = 2000) -> "WordPieces":
        """At most `size` pieces of `texts`; the same texts always give the same ones.

        Raises:
            ValueError: size does not hold every letter, alone and within a word.
        """
        from tokenizers import Tokenizer, models, trainers
        tokenizer = _lower_case(Tokenizer(models.WordPiece(unk_token=SPECIAL[UNKNOWN])))
        words = {word for text in texts for word, _ in tokenizer.pre_tokenizer
                 .pre_tokenize_str(tokenizer.normalizer.normalize_str(text))}
        letters = sorted(set("".join(words)))
        # Given as special, these get ids before the trainer walks through its hash map,
        # whose order differs from run to run and would decide between equal counts.
        inside = [f"##{letter}" for letter in sorted({c for w in words for c in w[1:]})]
        least = len(SPECIAL) + len(letters) + len(inside)
        if size < least or not letters:
            raise ValueError(f"size is {size}; the {len(letters)} letters of these "
                             f"texts need at least {least}, and there must be some")
        tokenizer.train_from_iterator(texts, trainers.WordPieceTrainer(
            vocab_size=size, special_tokens=[*SPECIAL, *inside], show_progress=False))
        ids = tokenizer.get_vocab()
        return cls(sorted(ids, key=ids.__getitem__))

    def __call__(self, texts: Sequence[str], longest: int = 64) -> Tokens:
        """Ids [n, t] with t ≤ longest: [CLS], the pieces, [SEP], then padding.

        What is too long is cut before [SEP]; an empty text is [CLS] [SEP].
        """
        if longest < 2:
            raise ValueError(f"longest is {longest}; [CLS] and [SEP] need 2")
        rows = [[START, *found.ids[: longest - 2], END]
                for found in self._tokenizer.encode_batch(list(texts))]
        values = torch.full((len(rows), max(map(len, rows), default=0)), PAD)
        for i, row in enumerate(rows):
            values[i, : len(row)] = torch.tensor(row)
        return Tokens(values, values != PAD)

    def decode(self, ids: Tensor) -> list[str]:
        """Texts of ids [n, t], read up to the first [SEP], special pieces left out."""
        texts = []
        for row in ids.tolist():
            row = row[: row.index(END)] if END in row else row
            pieces = [self.vocabulary[i] for i in row
                      if i >= len(SPECIAL) or i == UNKNOWN]
            texts.append(" ".join(pieces).replace(" ##", ""))
        return texts


def _lower_case(tokenizer):
    """BERT's cleaning (lower case, no accents), cut at spaces and punctuation."""
    from tokenizers import normalizers, pre_tokenizers
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def mask_words(tokens: Tokens, n_ids: int, generator: torch.Generator,
               share: float = 0.15) -> tuple[Tokens, Tensor]:
    """Tokens with some pieces hidden, and the hidden pieces as targets.

    Each real piece that is not special is chosen with probability `share`; of the
    chosen 80 % become [MASK], 10 % a random piece and 10 % stay (Devlin et al. 2019,
    section 3.1). A row in which chance chose none gets one, if it has any, so that
    no row is idle.

    Args:
        tokens: ids [n, t] as `WordPieces` gives them; n_ids: number of ids in all.
        generator: the only source of chance.
    Returns:
        tokens with the same mask; targets [n, t] long, `IGNORED` where none is asked.
    """
    ids, real = tokens
    if not 0 < share <= 1 or n_ids <= len(SPECIAL):
        raise ValueError(f"share is {share} and n_ids {n_ids}; share must lie in "
                         f"(0, 1] and n_ids be above {len(SPECIAL)}")
    draw, kind = torch.rand(2, *ids.shape, generator=generator)
    other = torch.randint(len(SPECIAL), n_ids, ids.shape, generator=generator)
    ready = real & (ids >= len(SPECIAL))
    draw = draw.masked_fill(~ready, 2)  # above every share
    chosen = draw < share
    lowest = draw == draw.amin(1, keepdim=True)
    chosen |= lowest & ready & ~chosen.any(1, keepdim=True)
    hidden = torch.where(kind < 0.8, MASK, torch.where(kind < 0.9, other, ids))
    return (Tokens(torch.where(chosen, hidden, ids), real),
            torch.where(chosen, ids, IGNORED))


def alter_words(tokens: Tokens, n_ids: int, generator: torch.Generator, share: float) -> Tokens:
    """Tokens in which each real piece that is not special is altered with probability `share`:
    five in ten become [MASK], one a random piece, four are left out and the rest moves up
    (as in the code of Diao et al. 2023). tokens: ids [n, t] as `WordPieces` gives them; n_ids:
    number of ids in all; generator: the only source of chance."""
    values, real = tokens
    draw, kind = torch.rand(2, *values.shape, generator=generator)
    other = torch.randint(len(SPECIAL), n_ids, values.shape, generator=generator)
    chosen = real & (values >= len(SPECIAL)) & (draw < share)
    values = torch.where(chosen & (kind < 0.6), torch.where(kind < 0.5, MASK, other), values)
    keep = real & ~(chosen & (kind >= 0.6))
    order = keep.int().argsort(dim=1, descending=True, stable=True)
    return Tokens((values * keep).gather(1, order), keep.gather(1, order))


def frequent_words(texts: Sequence[str], most: int, shortest: int = 4) -> list[str]:
    """The words of a to z that occur most often, of `shortest` letters or more, at most so
    many; of equally frequent ones the one that comes first."""
    found = Counter(word for text in texts for word in re.findall("[a-z]+", text.lower())
                    if len(word) >= shortest)
    return [word for word, _ in found.most_common(most)]
