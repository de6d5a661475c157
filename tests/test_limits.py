"""Texts at an encoder's limits: the smallest limit holds, and what was cut or not
understood is counted and said, with features out of the cache too."""

import json
import subprocess
import sys
import textwrap
import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from needs import examples

from alignkit.data import Pairs
from alignkit.encoders import add_features, load
from alignkit.encoders.cache import Store
from alignkit.encoders.text import CUT, STRANGE

KINDS = {  # positions that each kind has for tokens, of a table of 20 places
    "BertModel": ("BertConfig", {}, 20), "RobertaModel": ("RobertaConfig", {"pad_token_id": 1}, 18),
    "XLMRobertaModel": ("XLMRobertaConfig", {"pad_token_id": 1}, 18),
    "MPNetModel": ("MPNetConfig", {"pad_token_id": 1}, 18),
    "DistilBertModel": ("DistilBertConfig", {}, 20), "GPT2Model": ("GPT2Config", {}, 20),
}  # fmt: skip


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    (tmp_path / "cache").mkdir()
    from alignkit.data.fetch import cache_dir

    (tmp_path / "cache" / "assets").symlink_to(cache_dir() / "assets")
    monkeypatch.setenv("ALIGNKIT_CACHE", str(tmp_path / "cache"))


def model_folder(folder, kind: str, limit: int | None):
    """A tiny model of 20 places and a tokenizer whose own limit is `limit` (or none)."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    config, more, _ = KINDS[kind]
    words = {"[UNK]": 0, "[PAD]": 1, "[CLS]": 2, "[SEP]": 3, "dog": 4, "red": 5}
    plain = Tokenizer(models.WordLevel(words, "[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    plain.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", **({"model_max_length": limit} if limit else {}),
        model_input_names=["input_ids", "attention_mask"]).save_pretrained(folder)
    small = {"vocab_size": 6, "max_position_embeddings": 20, "hidden_size": 8,
             "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    if kind == "DistilBertModel":
        small = {"vocab_size": 6, "max_position_embeddings": 20, "dim": 8, "n_layers": 1,
                 "n_heads": 2, "hidden_dim": 8}
    torch.manual_seed(0)
    getattr(transformers, kind)(getattr(transformers, config)(**small | more)
                                ).save_pretrained(folder)
    return f"hf:{folder}"


@pytest.mark.parametrize("limit", [None, 10, 1000])
@pytest.mark.parametrize("kind", KINDS)
def test_the_smallest_limit_of_tokenizer_and_model_holds(tmp_path, kind, limit):
    encoder = load(model_folder(tmp_path / "m", kind, limit))
    most = min(limit or 10**9, KINDS[kind][2])
    assert encoder.preprocessing.startswith(f"{most} tokens")
    tokens = encoder.encode(["dog " * 200, "dog"], tokens=True)[-1]
    assert tokens.mask.sum(1).tolist() == [most, 3]


def test_a_tower_with_a_tokenizer_without_a_limit(tmp_path):
    """CLIP's text tower has 77 places, whatever the tokenizer's file forgets to say."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    model_folder(tmp_path, "BertModel", None)
    CLIPImageProcessor().save_pretrained(tmp_path)
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
             "intermediate_size": 8}
    CLIPModel(CLIPConfig(
        text_config={**small, "vocab_size": 6, "max_position_embeddings": 9, "eos_token_id": 3},
        vision_config={**small, "image_size": 32, "patch_size": 2}, projection_dim=8,
    )).save_pretrained(tmp_path)  # fmt: skip
    encoder = load(f"hf:{tmp_path}#text")
    assert encoder.preprocessing.startswith("9 tokens")  # and not the pictures' 257
    assert encoder.encode(["dog " * 50], tokens=True)[-1].mask.sum() == 9
    pairs = Pairs.make({"text": ["dog " * 7, "dog " * 8]})
    with pytest.warns(UserWarning, match="1 of 2 distinct rows of 'text' are longer"):
        add_features(pairs, "text", encoder)


def test_another_vocabulary_or_setting_of_the_same_weights_is_another_encoder(tmp_path):
    """Their features must not come out of one cache."""
    import json

    name = model_folder(tmp_path, "BertModel", None)
    pairs, kept = Pairs.make({"text": ["dog", "red dog"]}), []

    def features():
        return add_features(pairs, "text", name)["text_features"]

    kept.append(features())
    path = tmp_path / "tokenizer.json"
    path.write_text(path.read_text().replace('"dog": 4', '"dog": 5').replace(
        '"red": 5', '"red": 4', 1))
    kept.append(features())
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"hidden_act": "relu"}))
    kept.append(features())
    assert len({x[0].sum().item() for x in kept}) == 3
    assert torch.equal(features(), kept[2])  # nothing changed


def test_one_text_is_not_taken_for_its_letters():
    encoder = load("random:text:minilm")
    for call in (encoder.encode, encoder.outputs):
        with pytest.raises(TypeError, match=r"got the text 'a cat': write \['a cat'\]"):
            call("a cat")


def test_texts_that_are_cut_or_unknown_are_counted_and_said(tmp_path):
    name = model_folder(tmp_path / "m", "BertModel", None)
    texts = ["dog", "dog " * 18, "dog " * 19, "red " * 30, "猫", "qwx zz", "", "red qwx"]
    pairs = Pairs.make({"text": texts * 40})
    for _ in range(2):  # from the model, and from the cache
        with pytest.warns(UserWarning) as said:
            add_features(pairs, "text", name)
        cut, strange = (str(w.message) for w in said)
        assert f"2 of {len(texts)} distinct rows of 'text' are longer than" in cut
        assert "such as 'dog dog" in cut and cut.startswith(name)
        assert f"3 of {len(texts)} distinct rows of 'text' are without a piece" in strange
        assert "such as '猫'" in strange


def test_texts_without_any_token_are_zeros_alone_too(tmp_path):
    """GPT's tokenizer puts no mark around a text: of "" nothing is left."""
    name = model_folder(tmp_path / "m", "GPT2Model", None)
    path = tmp_path / "m" / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"post_processor": None}))
    encoder = load(name)
    mixed = encoder.encode(["dog", "", " "])[-1]
    assert (mixed[1:] == 0).all() and mixed[0].abs().sum() > 1
    for texts in ([""], ["", " "]):
        assert (encoder.encode(texts)[-1] == 0).all()
        assert not encoder.encode(texts, tokens=True)[-1].mask.any()


@pytest.mark.slow
def test_blocks_add_up_and_nothing_is_said_of_plain_texts(tmp_path):
    name = model_folder(tmp_path / "m", "BertModel", None)
    texts = [f"{'red ' * (k % 17)}dog{' red' * (k // 17)}" for k in range(300)]
    long = sum(len(text.split()) > 18 for text in texts)
    with pytest.warns(UserWarning, match=f"{long} of 300 distinct rows"):
        add_features(Pairs.make({"text": texts}), "text", name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        add_features(Pairs.make({"text": ["dog", "red dog"]}), "text", name)
        add_features(Pairs.make({"text": ["a cat", "ein Löwe"]}), "text", "text:minilm")
        add_features(Pairs.make({"text": ["a cat", "獅子"]}), "text", "text:e5-multilingual")


@settings(max_examples=examples(20), deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.lists(st.sampled_from(["dog", "red", "qwx", "猫", "Dog", ""]), max_size=25),
                min_size=1, max_size=12, unique_by=tuple))
def test_any_texts_are_counted(tiny, texts):
    """Cut: over 18 words beside the two marks; without a piece: no word that it knows."""
    said = {" ".join(words) for words in texts}
    cut = sum(len(text.split()) > 18 for text in said)
    strange = sum(not {"dog", "red"} & set(text.split()) for text in said)
    tiny.notes.clear()
    tokens = tiny.encode(sorted(said), tokens=True)[-1]
    assert tokens.mask.sum(1).tolist() == [
        min(20, 2 + len(text.split())) for text in sorted(said)]
    counts = {words: count for words, (count, _) in tiny.notes.items()}
    assert counts == {words: n for words, n in ((CUT, cut), (STRANGE, strange)) if n}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return load(model_folder(tmp_path_factory.mktemp("tiny"), "BertModel", None))


@pytest.mark.parametrize("name, long, unknown", [
    ("text:minilm", "a cat " * 64, "𓂀𓃠"),
    pytest.param("text:e5-multilingual", "a cat " * 300, "𓂀", marks=pytest.mark.slow)])
def test_the_packaged_encoders_say_it_too(name, long, unknown):
    with pytest.warns(UserWarning) as said:
        add_features(Pairs.make({"text": ["a cat", long, unknown, " "]}), "text", name)
    words = " ".join(str(w.message) for w in said)
    assert f"{name}: 1 of 4 distinct rows of 'text' are longer" in words
    assert "2 of 4 distinct rows of 'text' are without a piece" in words


@pytest.mark.slow
def test_an_index_of_an_earlier_version_is_read():
    """It has no notes; its features stay."""
    pairs = Pairs.make({"text": ["a cat"]})
    before = add_features(pairs, "text", "text:minilm")["text_features"]
    (path,) = Store({}, 0).folder.parent.glob("*/index.json")
    text = path.read_text()
    assert '"notes": {}' in text
    path.write_text(text.replace(',\n "notes": {}', ""))
    assert torch.equal(add_features(pairs, "text", "text:minilm")["text_features"], before)
    code = textwrap.dedent("""
        import sys
        from alignkit.data import Pairs
        from alignkit.encoders import add_features
        add_features(Pairs.make({"text": ["a cat"]}), "text", "text:minilm")
        assert "transformers" not in sys.modules
    """)
    subprocess.run([sys.executable, "-c", code], check=True)
