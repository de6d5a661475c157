"""What a masked language model proposes for a hidden word.

Two models behind one form: the fused model that comes with the package, without a picture,
and any masked language model of transformers. Sentences are lists of words, some of which
are `HIDDEN`; asked is the last hidden one.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

from alignkit.data import Tokens
from alignkit.parts.fusion import FusionModel
from alignkit.parts.text import END, MASK, PAD, SPECIAL, START

HIDDEN = SPECIAL[MASK]
ROWS = 512  # that go through a model together


def last_hidden(sentence: Sequence[str]) -> int:
    """The place of the last hidden word.

    Raises ValueError if none is hidden.
    """
    hidden = [place for place, word in enumerate(sentence) if word == HIDDEN]
    if not hidden:
        raise ValueError(f"sentence: no word of {' '.join(sentence)!r} is {HIDDEN}")
    return hidden[-1]


class FusedWords(nn.Module):
    """A fused model as a language model: of the picture it sees one region, as large as the
    whole, with the mean of all regions' features. Words in small letters.

    only: the words that it may propose (default: all that it knows)."""

    def __init__(self, model: FusionModel, only: Sequence[str] | None = None):
        super().__init__()
        known = model.pieces.vocabulary
        self.model, self.vocabulary = model, list(only or known)
        self._places = torch.tensor([known.index(word) for word in self.vocabulary])
        self._ids = lru_cache(maxsize=None)(
            lambda word: model.pieces([word]).values[0, 1:-1].tolist())

    @torch.no_grad()
    def forward(self, sentences: Sequence[Sequence[str]]) -> Tensor:
        """Chances [n, vocabulary] of the words at each sentence's last hidden place.

        Raises ValueError for a sentence without a hidden word, or longer than it reads.
        """
        model, rows, asked = self.model, [], []
        for sentence in sentences:
            place, row = last_hidden(sentence), [START]
            for at, word in enumerate(sentence):
                if at == place:
                    asked.append(len(row))
                row += [MASK] if word == HIDDEN else self._ids(word)
            rows.append([*row, END])
            if len(rows[-1]) > model.settings.longest:
                raise ValueError(f"sentences: {' '.join(sentence)!r} is {len(rows[-1])} pieces, "
                                 f"the model reads {model.settings.longest}")
        ids = torch.full((len(rows), max(map(len, rows), default=0)), PAD)
        for i, row in enumerate(rows):
            ids[i, :len(row)] = torch.tensor(row)
        found = [self._logits(ids[at])[torch.arange(len(at)), torch.tensor(asked)[at]]
                 for at in torch.arange(len(rows)).split(ROWS) if len(at)]
        found = found or [torch.zeros(0, len(model.pieces))]
        return torch.cat(found).softmax(1)[:, self._places]

    def _logits(self, ids: Tensor) -> Tensor:
        model, one = self.model, torch.ones(len(ids), 1, dtype=torch.bool)
        regions = Tokens(model.region_mean.expand(len(ids), 1, -1), one)
        whole = Tokens(torch.tensor([0.0, 0, 1, 1]).expand(len(ids), 1, 4), one)
        return model.word_logits(model(Tokens(ids, ids != PAD), regions, whole))


class HubWords(nn.Module):
    """A masked language model of transformers, such as `google-bert/bert-base-cased`."""

    def __init__(self, model: nn.Module, tokenizer):
        super().__init__()
        self.model, self.tokenizer = model.requires_grad_(False).eval(), tokenizer
        self.vocabulary = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))

    @classmethod
    def load(cls, name: str) -> "HubWords":
        """A model of Hugging Face by name, fetched if it is not there."""
        from transformers import AutoModelForMaskedLM, AutoTokenizer

        return cls(AutoModelForMaskedLM.from_pretrained(name),
                   AutoTokenizer.from_pretrained(name))

    @torch.no_grad()
    def forward(self, sentences: Sequence[Sequence[str]]) -> Tensor:
        """As that of `FusedWords`."""
        found, device = [], next(self.model.parameters()).device
        hidden = self.tokenizer.mask_token
        for at in torch.arange(len(sentences)).split(ROWS):
            texts = [" ".join(hidden if word == HIDDEN else word for word in sentences[i])
                     for i in at.tolist() if last_hidden(sentences[i]) >= 0]
            if not texts:
                continue
            batch = self.tokenizer(texts, padding=True, return_tensors="pt").to(device)
            masked = batch["input_ids"] == self.tokenizer.mask_token_id
            places = torch.arange(masked.shape[1], device=device)
            last = (masked * places).amax(1)
            logits = self.model(**batch).logits
            found.append(logits[torch.arange(len(texts)), last].float().softmax(1).cpu())
        return torch.cat(found or [torch.zeros(0, len(self.vocabulary))])
