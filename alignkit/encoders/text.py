"""Text encoder: all-MiniLM-L6-v2 from its packaged weights, and its random twin."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from alignkit.data.fetch import asset, manifest
from alignkit.encoders.encoder import (
    Encoder,
    Output,
    Run,
    as_tokens,
    device,
    masked_mean,
    random_hash,
    seeded,
)

MAX_TOKENS = 128
CUT = "longer than the encoder reads, and cut"
STRANGE = "without a piece that the encoder knows"


def minilm(seed: int | None = None) -> Encoder:
    """all-MiniLM-L6-v2: layer 0 the embeddings, 1–6 the blocks; means over the tokens.

    The features are not normalised. With a seed: the twin of random weights.
    """

    def build():
        from safetensors.torch import load_file
        from tokenizers import Tokenizer
        from transformers import BertConfig, BertModel

        folder = asset("minilm")
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.enable_truncation(MAX_TOKENS)
        tokenizer.enable_padding(pad_id=0)  # to the longest of the batch
        with seeded(seed):
            model = BertModel(BertConfig.from_json_file(folder / "config.json"))
        if seed is None:
            weights = load_file(folder / "model.safetensors")
            weights.pop("embeddings.position_ids")  # 0, 1, 2, …: no longer a weight
            model.load_state_dict(weights, strict=True)
        return states_of(model, tokenizer, notes, mute=[tokenizer.token_to_id("[UNK]")])

    notes: dict[str, list] = {}
    return Encoder(
        name="random:" * (seed is not None) + "text:minilm",
        modality="text",
        widths=dict.fromkeys(range(7), 384),
        weights_hash=manifest()["minilm"]["files"]["model.safetensors"]
        if seed is None else random_hash(seed, "transformers"),
        preprocessing=f"{MAX_TOKENS} tokens, masked mean; 1",
        build=build,
        notes=notes,
    )


def states_of(model: nn.Module, tokenizer, notes: dict[str, list],
              prepare: Callable[[str], str] = str, mute: Sequence[int | None] = ()) -> Run:
    """Every layer's tokens and their means, of a BERT-like `model` of transformers and a
    `tokenizer` of tokenizers that pads; `prepare` is applied to each text first.

    notes: `note` writes there. mute: tokens that say nothing, an unknown piece's, say.
    """
    model = model.to(device()).eval()

    def known(encoding) -> int:
        return sum(not special and token not in mute for token, special in
                   zip(encoding.ids, encoding.special_tokens_mask, strict=True))

    least = known(tokenizer.encode(prepare("")))  # of a prefix

    def run(texts: list, layers: Sequence[int]) -> dict[int, Output]:
        found = tokenizer.encode_batch([prepare(text) for text in check_texts(texts)])
        note(notes, texts, [bool(x.overflowing) for x in found],
             [known(x) <= least for x in found])
        ids = torch.tensor([x.ids for x in found], device=device())
        mask = torch.tensor([x.attention_mask for x in found], device=device())
        states = model(ids, mask, output_hidden_states=True).hidden_states
        tokens = {k: as_tokens(states[k], mask.bool()) for k in layers}
        return {k: Output(masked_mean(*t), t) for k, t in tokens.items()}

    return run


def note(notes: dict[str, list], texts: list[str], cut: list[bool],
         strange: list[bool]) -> None:
    """Count the different texts that were cut at the encoder's limit, and those without a
    piece that it knows: their features are of less than the text, or of nothing."""
    for words, which in ((CUT, cut), (STRANGE, strange)):
        if any(which):
            seen = notes.setdefault(words, [0, texts[which.index(True)][:80]])
            seen[0] += len({text for text, here in zip(texts, which, strict=True) if here})


def check_texts(texts: list) -> list[str]:
    """`texts`, or TypeError if one is no string."""
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"a text encoder needs texts, got {type(text).__name__}")
    return texts
