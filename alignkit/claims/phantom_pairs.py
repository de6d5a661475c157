"""What claims on generated chest pictures share: tokens, whole words, and which words and
cells belong to a finding."""

from dataclasses import replace

import torch
from torch import Tensor

from alignkit.claims.common import image_text
from alignkit.data import Pairs, Tokens
from alignkit.data.fetch import asset
from alignkit.data.phantoms import phantoms
from alignkit.data.reports import PHRASES
from alignkit.encoders import add_features
from alignkit.parts import leading_directions

MINILM = "text:minilm"


def phantom_tokens(scale: str, pairs: Pairs | None, s) -> Pairs:
    """The user's `pairs`, or `s.phantoms` generated ones, with features and tokens of both
    encoders; MiniLM's word pieces are put together to words, and table `findings` says
    which words [m, t] name each finding. s: a scale with `phantoms`, encoders, and
    `leading`: the width to which pictures are brought (None: as they come).

    Raises ValueError as `image_text` does.
    """
    if pairs is None and scale in ("tiny", "small"):
        pairs = phantoms(s.phantoms)
    pairs = image_text(scale, pairs)
    pairs = add_features(pairs, "image", s.image, tokens=True)
    pairs = add_features(pairs, "text", s.text, tokens=True)
    if s.leading:
        seen = pairs["image_tokens"]
        onto = leading_directions(seen, s.leading)
        pairs = pairs.with_features(image_features=pairs["image_features"] @ onto,
                                    image_tokens=Tokens(seen.values @ onto, seen.mask))
    if s.text == MINILM:
        pairs = pairs.with_features(
            text_tokens=whole_words(pairs["text_tokens"], pairs["text"]))
        if "findings" in pairs.tables:
            told = {**pairs.tables["findings"], "words": naming_words(pairs)}
            pairs = replace(pairs, tables={**pairs.tables, "findings": told})
    return pairs


def words_of(texts: list[str]) -> list[list[tuple[int, int, int]]]:
    """For each text MiniLM's pieces as (word, first character, end); word −1 for [CLS] and
    [SEP]."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(asset("minilm") / "tokenizer.json"))
    tokenizer.no_padding()
    return [[(-1 if word is None else word, *ends)
             for word, ends in zip(found.word_ids, found.offsets)]
            for found in tokenizer.encode_batch(texts)]


def whole_words(tokens: Tokens, texts: list[str]) -> Tokens:
    """Tokens [n, t, d] of MiniLM's word pieces -> of words: the sum of a word's pieces, as
    the authors of GLoRIA and MGCA put them together; [CLS] and [SEP] are left out.

    Raises ValueError for a text without a word.
    """
    n, t, d = tokens.values.shape
    word = torch.full((n, t), -1)
    for row, pieces in enumerate(words_of(texts)):
        pieces = pieces[:t]
        word[row, :len(pieces)] = torch.tensor([w for w, *_ in pieces])
    count = word.amax(1) + 1
    if not count.all():
        raise ValueError(f"text: row {int(count.argmin())} has no word")
    width = int(count.max())
    place = torch.where(word < 0, width, word)[..., None].expand(n, t, d)
    values = tokens.values.new_zeros(n, width + 1, d).scatter_add(1, place, tokens.values)
    return Tokens(values[:, :width], torch.arange(width) < count[:, None])


def naming_words(pairs: Pairs) -> Tensor:
    """Bool [m, t]: of each row of table `findings` the words of its report that name the
    finding ("pleural", "effusion")."""
    table, names = pairs.tables["findings"], pairs.tables["names"]["finding"]
    row_of = {item: row for row, item in enumerate(pairs.item.tolist())}
    pieces = words_of(pairs["text"])
    found = torch.zeros(len(table["item"]), pairs["text_tokens"].mask.shape[1],
                        dtype=torch.bool)
    for k, (item, finding) in enumerate(zip(*(table[x].tolist()
                                              for x in ("item", "finding")))):
        text = pairs["text"][row_of[item]]
        phrase = next(p for p in (p.removeprefix("a ") for p in PHRASES[names[finding]])
                      if p in text)  # what is absent is never present too
        start = text.index(phrase)
        for word, low, high in pieces[row_of[item]]:
            if word >= 0 and start <= low and high <= start + len(phrase):
                found[k, word] = True
    return found


def touched_cells(boxes: Tensor, size: int, side: int) -> Tensor:
    """Bool [m, side · side]: which cells of a picture of size × size pixels, cut into
    side × side, a box [m, 4] (x0, y0, x1, y1) touches."""
    low = torch.arange(side) * size / side
    x0, y0, x1, y1 = (edge[:, None] for edge in boxes.unbind(1))
    across = (x0 < low + size / side) & (low < x1)
    down = (y0 < low + size / side) & (low < y1)
    return (down[:, :, None] & across[:, None, :]).flatten(1)
