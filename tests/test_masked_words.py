"""Masked language models behind one form."""

import pytest
import torch

from alignkit.data import Tokens
from alignkit.parts.fusion import load_fusion
from alignkit.parts.masked_words import HIDDEN, FusedWords, HubWords, last_hidden
from alignkit.parts.text import MASK

SENTENCES = [f"a {HIDDEN} dog on a {HIDDEN} disc", f"a {HIDDEN} elephant", f"{HIDDEN} unheard"]


def split(texts: list[str]) -> list[list[str]]:
    return [text.split() for text in texts]


def test_the_fused_model_is_asked_without_a_picture():
    model = load_fusion(0)
    found = FusedWords(model)(split(SENTENCES))
    assert found.shape == (3, len(model.pieces)) and torch.allclose(found.sum(1), torch.ones(3))
    ids = model.tokens(["a dog on a disc"]).values[0].tolist()
    ids[2:2], ids[6:6] = [MASK], [MASK]
    one = torch.ones(1, 1, dtype=torch.bool)
    fused = model(Tokens(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.bool)),
                  Tokens(model.region_mean[None, None], one),
                  Tokens(torch.tensor([[[0.0, 0, 1, 1]]]), one))
    want = model.word_logits(fused)[0, 6].softmax(0)
    torch.testing.assert_close(found[0], want, rtol=0, atol=1e-6)
    colours = ["red", "orange", "yellow", "green", "blue", "purple"]
    places = [model.pieces.vocabulary.index(colour) for colour in colours]
    assert float(want[places].sum()) > 0.9
    few = FusedWords(model, colours)(split(SENTENCES[:1]))
    torch.testing.assert_close(few[0], want[places], rtol=0, atol=1e-6)


def test_what_cannot_be_asked_is_refused():
    words = FusedWords(load_fusion(0))
    with pytest.raises(ValueError, match="no word of 'a dog'"):
        words(split(["a dog"]))
    with pytest.raises(ValueError, match="23 pieces, the model reads 20"):
        words([["dog"] * 20 + [HIDDEN]])
    assert words([]).shape == (0, len(words.vocabulary))
    assert last_hidden(["a", HIDDEN, HIDDEN, "b"]) == 2


def test_a_model_of_transformers_gives_the_same_form(tmp_path):
    from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "on", "disc", "elephant"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizerFast(str(tmp_path / "vocab.txt"))
    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32))
    hub = HubWords(model, tokenizer)
    assert hub.vocabulary == words
    found = hub(split(SENTENCES))
    ids = torch.tensor([[2, 5, 4, 6, 7, 5, 4, 8, 3]])
    torch.testing.assert_close(found[0], model(ids).logits[0, 6].softmax(0), rtol=0, atol=1e-5)
    assert found.shape == (3, 10) and hub([]).shape == (0, 10)
