"""Text encoder: multilingual-e5-small from a 4-bit file, read in plain torch."""

import re
import struct
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from alignkit.data.fetch import asset, manifest
from alignkit.encoders.encoder import Encoder, random_hash, seeded
from alignkit.encoders.text import states_of

FILE = "e5-small-q4.bin"
MAX_TOKENS = 512
PREFIX = "query: "
# The file's names of the embeddings and of a layer's parts -> transformers' names.
TABLES = {"word": "word_embeddings", "pos": "position_embeddings",
          "type": "token_type_embeddings", "ln": "LayerNorm"}
PARTS = {"q": "attention.self.query", "k": "attention.self.key",
         "v": "attention.self.value", "ao": "attention.output.dense",
         "aln": "attention.output.LayerNorm", "fi": "intermediate.dense",
         "fo": "output.dense", "oln": "output.LayerNorm"}


def e5_multilingual(seed: int | None = None) -> Encoder:
    """multilingual-e5-small (about 100 languages): layer 0 the embeddings, 1–12 the
    blocks; means over the tokens, not normalised.

    E5 was trained on texts that begin with "query: " or "passage: ". Every text gets
    "query: ", which its authors ask for where texts are compared with each other or
    used as features (Wang et al. 2024, Multilingual E5 Text Embeddings); the prefix is
    part of the means and of the tokens. With a seed: the twin of random weights.
    """

    def build():
        from transformers import BertModel

        found = _read(asset("e5-multilingual") / FILE)
        tokenizer = _tokenizer(found)
        with seeded(seed):
            model = BertModel(_config(found.sizes), add_pooling_layer=False)
        if seed is None:
            ours = model.state_dict()
            model.load_state_dict({k: x.view_as(ours[k]) for k, x in _weights(found)})
        return states_of(model, tokenizer, notes,
                         lambda t: _normal(PREFIX + t, found.replace),
                         [found.special[3], tokenizer.token_to_id("▁")])

    notes: dict[str, list] = {}
    return Encoder(
        name="random:" * (seed is not None) + "text:e5-multilingual",
        modality="text",
        widths=dict.fromkeys(range(13), 384),
        weights_hash=manifest()["e5-multilingual"]["files"][FILE]
        if seed is None else random_hash(seed, "transformers"),
        preprocessing=f"{PREFIX!r}, {MAX_TOKENS} tokens, masked mean; 1",
        build=build,
        notes=notes,
    )


class _File(NamedTuple):
    """The file's parts: sizes are those of the model, replace a table for
    `str.translate`, tensors name -> (is it in 4 bits, bytes)."""

    sizes: dict[str, int | float]
    special: tuple[int, int, int, int]  # begin, end, padding, unknown
    pieces: list[tuple[str, float]]
    replace: dict[int, str]
    tensors: dict[str, tuple[bool, bytes]]


def _read(path: Path) -> _File:
    """Header, pieces of the tokenizer, its character table, tensors (little-endian)."""
    data = memoryview(path.read_bytes())
    at = 8

    def take(form: str) -> tuple:
        nonlocal at
        values = struct.unpack_from(f"<{form}", data, at)
        at += struct.calcsize(f"<{form}")
        return values

    if data[:4] != b"E5S1":
        raise ValueError(f"{path.name} begins with {bytes(data[:4])!r}, need b'E5S1'")
    names = ("width", "layers", "heads", "inner", "words", "positions", "types")
    sizes = dict(zip(names, take("7i"), strict=True))
    sizes["epsilon"], group = take("fi")
    if group != 32:
        raise ValueError(f"{path.name}: weights in groups of {group}, need 32")
    count, *special = take("5i")
    blob_size, = take("Q")
    ends = take(f"{count + 1}I")
    scores = take(f"{count}f")
    blob, = take(f"{blob_size}s")
    pieces = [(blob[a:b].decode("utf-8", "replace"), score)
              for a, b, score in zip(ends, ends[1:], scores, strict=False)]
    entries, _ = take("iI")
    replace = {}
    for _ in range(entries):
        code, size = take("IB")
        replace[code] = "".join(map(chr, take(f"{size}I")))
    tensors = {}
    for _ in range(take("i")[0]):
        name = take(f"{take('H')[0]}s")[0].decode()
        is_packed, _, start, size = take("BIQQ")
        tensors[name] = (bool(is_packed), bytes(data[start:start + size]))
    return _File(sizes, tuple(special), pieces, replace, tensors)


def _floats(is_packed: bool, raw: bytes) -> Tensor:
    """Floats [n], given plainly or as groups of a half-precision step and 32 numbers
    −8 … 7 (the low halves of 16 bytes first, then the high ones)."""
    if not is_packed:
        return torch.frombuffer(bytearray(raw), dtype=torch.float32)
    groups = np.frombuffer(raw, dtype=[("step", "<f2"), ("pairs", "u1", 16)])
    pairs = groups["pairs"]
    numbers = np.concatenate([pairs & 15, pairs >> 4], axis=1).astype(np.float32) - 8
    numbers *= groups["step"].astype(np.float32)[:, None]
    return torch.from_numpy(numbers).flatten()


def _weights(found: _File) -> Iterator[tuple[str, Tensor]]:
    """(transformers' name, weights [n]) of every tensor."""
    for name, tensor in found.tensors.items():
        first, *rest = name.split(".")
        if first == "emb":
            place = f"embeddings.{TABLES[rest[0]]}"
        else:
            place = f"encoder.layer.{first[1:]}.{PARTS[rest[0]]}"
        kind = "bias" if rest[-1] == "b" else "weight"
        yield f"{place}.{kind}", _floats(*tensor)


def _config(sizes: dict):
    from transformers import BertConfig

    return BertConfig(
        vocab_size=sizes["words"], hidden_size=sizes["width"],
        num_hidden_layers=sizes["layers"], num_attention_heads=sizes["heads"],
        intermediate_size=sizes["inner"], max_position_embeddings=sizes["positions"],
        type_vocab_size=sizes["types"], layer_norm_eps=sizes["epsilon"])


def _tokenizer(found: _File):
    """XLM-RoBERTa's: of all ways to cut a text into pieces the likeliest."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    begin, end, padding, unknown = found.special
    tokenizer = Tokenizer(models.Unigram(found.pieces, unk_id=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    names = [found.pieces[i][0] for i in (begin, end)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[names[0], "$A", names[1]],
        special_tokens=[(names[0], begin), (names[1], end)])
    tokenizer.enable_truncation(MAX_TOKENS)
    tokenizer.enable_padding(pad_id=padding)  # to the longest of the batch
    return tokenizer


def _normal(text: str, replace: dict[int, str]) -> str:
    """XLM-RoBERTa's spelling: its table a character at a time, letters and marks
    composed, one space at a time."""
    text = unicodedata.normalize("NFC", text.translate(replace))
    return re.sub(" {2,}", " ", text)
