"""`load` an encoder by name; `add_features` of a column to pairs, through the cache."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from alignkit.data.columns import Tokens
from alignkit.data.pairs import Pairs
from alignkit.encoders import (
    bundles,
    e5,
    fbank,
    frames,
    generic,
    image,
    points,
    text,
    whisper,
    yamnet,
)
from alignkit.encoders.encoder import Encoder
from alignkit.encoders.stored import read_or_make

OFFLINE = {
    "image:efficientnet-lite0": image.efficientnet_lite0,
    "image:mobilenetv2": image.mobilenet_v2,
    "text:minilm": text.minilm,
    "text:e5-multilingual": e5.e5_multilingual,
    "sound:yamnet": yamnet.yamnet,
    "sound:whisper-tiny.en": whisper.whisper_tiny_en,
    "points:grid": points.grid,
}


def load(name: str | nn.Module, *, seed: int = 0) -> Encoder:
    """A frozen encoder by name, or your own module.

    name: `image:efficientnet-lite0`, `image:mobilenetv2`, `text:minilm`,
    `text:e5-multilingual`, `sound:yamnet`, `sound:whisper-tiny.en` (weights from
    packages, offline once fetched), `points:grid` and `fbank:32x30` (no weights; 32 log-mel
    bands, a frame every 30 ms), `timm:<model>`, `torchaudio:<bundle>`, `hf:<id or folder>`
    (of CLIP `hf:<id>#image` or `#text`), `frames:<image encoder>` for videos,
    `random:<any of these>` for the twin of random weights drawn from `seed`, or an nn.Module that maps a batch (a stacked tensor, or a
    list of texts or pictures) to [b, d].

    Raises ValueError for a name that is none of these.

    Example:
        >>> pairs = add_features(emoji(), "image", "image:efficientnet-lite0")
        >>> pairs["image_features"].shape
        torch.Size([1914, 1280])
    """
    if isinstance(name, nn.Module):
        return generic.module(name)
    plain = name.removeprefix("random:")
    kind, _, what = plain.partition(":")
    twin = seed if name.startswith("random:") else None
    if plain in OFFLINE:
        return OFFLINE[plain](twin)
    if kind == "timm" and what:
        return image.timm_model(what, twin)
    if kind == "torchaudio" and what:
        return bundles.torchaudio_bundle(what, twin)
    if kind == "hf" and what:
        return generic.hugging_face(what, twin)
    if kind == "fbank" and twin is None:
        return fbank.fbank(what)
    if kind == "frames" and what:
        inner = what if twin is None else f"random:{what}"
        return frames.frame_by_frame(load(inner, seed=seed))
    raise ValueError(
        f"name: {name!r} is no encoder; use {', '.join(OFFLINE)}, "
        "fbank:<bands>x<milliseconds>, timm:<model>, "
        "torchaudio:<bundle>, hf:<id or folder>, frames:<image encoder>, random:<one of "
        "these>, or pass an nn.Module"
    )


def add_features(
    pairs: Pairs,
    column: str,
    encoder: str | nn.Module | Encoder,
    *,
    layers: Sequence[int] | Literal["all"] = (-1,),
    tokens: bool | int = False,
) -> Pairs:
    """`pairs` with features of `column`, float32, taken from the cache where it can.

    Layer −1 becomes `<column>_features` [n, d]; a layer k ≥ 0 `<column>_layer<k>`
    ("all": every layer); tokens=True adds the last layer's `<column>_tokens`, and
    tokens=n keeps at most n a row: the means of n stretches of its tokens (`shortened`).
    Rows of equal source are encoded once. Missing rows are zeros and stay missing.

    Features are kept under all that decides them: the encoder and the rows' content, of a
    `Lazy` column the files' bytes and the code that reads them. Where that cannot be told
    (the reader holds a data base, say) they are made anew, and a warning says so.

    Raises KeyError for an unknown column, ValueError for one that cannot be encoded, or
    for tokens below 1.
    """
    if tokens is not True and tokens is not False and tokens < 1:
        raise ValueError(f"tokens must be True, False or how many a row, at least 1, got "
                         f"{tokens}")
    encoder = encoder if isinstance(encoder, Encoder) else load(encoder)
    layers = sorted(encoder.widths) if layers == "all" else list(layers)
    wanted = {f"{column}_features" if k == -1 else f"{column}_layer{k}": (k, False)
              for k in layers}
    if tokens is not False:
        wanted[f"{column}_tokens"] = (-1, tokens)
    return pairs.with_features(**read_or_make(pairs, column, encoder, wanted))


def add_tokens(pairs: Pairs, column: str, encoder: str | nn.Module | Encoder,
               layers: Sequence[int]) -> Pairs:
    """`pairs` with the tokens of several layers of `column`, in one pass and cached:
    `<column>_layer<k>_tokens`, and `<column>_tokens` for layer −1.

    Raises as `add_features`, and ValueError for an encoder without tokens.

    Example:
        >>> pairs = add_tokens(emoji(limit=20), "text", "text:minilm", layers=(2, 4))
        >>> sorted(name for name in pairs.columns if name.endswith("tokens"))
        ['text_layer2_tokens', 'text_layer4_tokens']
    """
    encoder = encoder if isinstance(encoder, Encoder) else load(encoder)
    wanted = {named(column, k, "tokens"): (k, True) for k in layers}
    return pairs.with_features(**read_or_make(pairs, column, encoder, wanted))


def named(column: str, layer: int, what: str) -> str:
    """A layer's column: `image_tokens` (−1: the last), `image_layer5_tokens`."""
    return f"{column}_{what}" if layer == -1 else f"{column}_layer{layer}_{what}"
