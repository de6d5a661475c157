"""Hugging Face models of text, pictures and sound, and any module of the user's."""

import hashlib
import json
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from alignkit.data.pictures import to_rgb
from alignkit.data.keys import Key
from alignkit.encoders.encoder import (
    Encoder,
    Output,
    as_tokens,
    device,
    hash_weights,
    masked_mean,
    one_thread,
    seeded,
)
from alignkit.encoders.sound import one_step, to_waves, together
from alignkit.encoders.text import check_texts, note
from alignkit.versions import explained

MAX_TOKENS = 512
# What transformers calls the tower of a modality, and what gives its common space.
TOWERS = {"image": "vision", "sound": "audio", "text": "text"}
POOLS = {"image": "get_image_features", "sound": "get_audio_features",
         "text": "get_text_features"}


@explained()
def hugging_face(source: str, seed: int | None = None) -> Encoder:
    """A model of text, pictures or sound by id or folder, through AutoModel
    (safetensors only).

    Layer 0 is the embeddings, k the k-th block's states; every layer is pooled by the
    mean over its tokens. Of a model with two towers (CLIP, SigLIP, CLAP) name one,
    `<id>#image`, `<id>#sound` or `<id>#text`: its last layer is pooled into the common
    space. Of Whisper the encoder is taken. Sounds go through the model one at a time,
    so that none is padded for another; CLAP hears the first 10 s.
    With a seed: random weights of the same configuration.
    Raises ValueError for a model of none of the three.
    """
    from transformers import AutoConfig, AutoModel

    folder, _, tower = source.partition("#")
    config = AutoConfig.from_pretrained(folder)
    modality = _modality(folder, tower, config)
    if seed is None:
        model = AutoModel.from_pretrained(folder, use_safetensors=True)
    else:
        with seeded(seed):
            model = AutoModel.from_config(config)
    model = model.float().to(device()).eval()
    core, pool, notes = model, None, {}
    if tower:
        core = getattr(model, f"{TOWERS[tower]}_model")
        pool = getattr(model, POOLS[tower])
    elif modality == "sound" and config.is_encoder_decoder:
        core = model.get_encoder()
    read = {"text": _texts, "image": _pictures, "sound": _sounds}[modality]
    prepare, how = read(folder, config, core, notes)

    def layers_of(inputs: list) -> list[Output]:
        if modality == "sound" and len(inputs) > 1:
            alone = [layers_of([sound]) for sound in inputs]
            return [together(outputs) for outputs in zip(*alone, strict=True)]
        batch = {k: v.to(device()) for k, v in prepare(inputs).items()}
        mask = batch.get("attention_mask")
        if _sees_padding(config):
            batch.pop("attention_mask", None)
        if tower:  # a tokenizer may count segments, a tower of texts knows none
            batch.pop("token_type_ids", None)
        found = core(**batch, output_hidden_states=True)
        # The last state is taken after the final norm, where the model has one.
        states = [*found.hidden_states[:-1], found.last_hidden_state]
        if mask is not None:  # of frames, where a token stands for several
            mask = mask[:, ::max(1, mask.shape[1] // states[-1].shape[1])].bool()
        tokens = [as_tokens(x, mask) for x in states]
        layers = [Output(masked_mean(*t), t) for t in tokens]
        if pool is not None:
            common = pool(**batch)  # a tensor before transformers 5
            layers[-1] = Output(getattr(common, "pooler_output", common), tokens[-1])
        return layers

    def run(inputs: list, layers: Sequence[int]) -> dict[int, Output]:
        return {k: out for k, out in enumerate(layers_of(inputs)) if k in layers}

    with torch.inference_mode():
        first = {"text": "a", "image": _white(), "sound": _second()}[modality]
        probe = layers_of([first])
    notes.clear()
    return Encoder(
        name="random:" * (seed is not None) + f"hf:{source}",
        modality=modality,
        widths={k: output.pooled.shape[1] for k, output in enumerate(probe)},
        weights_hash=hash_weights(model),
        preprocessing=f"{how}; {_told(config)}; 1",
        # A sound alone is too short for several threads to give the same bits.
        build=lambda: one_thread()(run) if modality == "sound" else run,
        notes=notes, fills=modality != "sound",
    )


def module(model: nn.Module) -> Encoder:
    """Any module: model(batch) -> [b, d], batch a stacked tensor or a list of inputs.

    It runs where its weights are, in eval mode, and gets its own mode back. The cache
    tells modules apart by all that their code reaches: weights, attributes, methods, the
    functions that they call; what cannot be told is named, and then nothing is kept.
    """
    key = Key()
    key.value(model)

    def run(inputs: list, layers: Sequence[int]) -> dict[int, Output]:
        batch = inputs
        if all(isinstance(x, Tensor) for x in inputs):
            weights = [*model.parameters(), *model.buffers()]
            batch = torch.stack(inputs).to(weights[0].device if weights else "cpu")
        modes = [(m, m.training) for m in model.modules()]
        try:
            out = model.eval()(batch)
        finally:
            for m, mode in modes:
                m.training = mode
        if not isinstance(out, Tensor) or out.dim() != 2 or len(out) != len(inputs):
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ValueError(f"{type(model).__name__} must return a tensor [n, d] "
                             f"for n inputs, got {got} for {len(inputs)} (fewer are filled "
                             "up with copies)")
        return {0: Output(out, None)}

    return Encoder(
        name=f"module:{type(model).__qualname__}",
        modality="any",
        widths={0: None},
        weights_hash=key.sha.hexdigest(),
        preprocessing="the module's own",
        build=lambda: run,
        untold=key.untold,
    )


def _told(config) -> str:
    """A hash of a model's settings: with the same weights, others give other features."""
    plain = {k: v for k, v in config.to_dict().items()
             if k not in ("_name_or_path", "transformers_version")}
    text = json.dumps(plain, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _modality(source: str, tower: str, config) -> str:
    towers = [t for t, name in TOWERS.items() if hasattr(config, f"{name}_config")]
    two = len(towers) == 2
    if two != (tower in towers) or (tower and not two):
        raise ValueError(
            f"hf:{source} is a {config.model_type!r} model with "
            + (f"two towers: name hf:{source}#{towers[0]} or hf:{source}#text" if two
               else f"one tower: write hf:{source} without #{tower}"))
    if two:
        return tower
    # Wav2Vec2's kin convolve the waveform; Whisper and others hear mel bands.
    if hasattr(config, "conv_dim") or hasattr(config, "num_mel_bins"):
        return "sound"
    if hasattr(config, "num_channels") or hasattr(config, "image_size"):
        return "image"
    if hasattr(config, "vocab_size"):
        return "text"
    raise ValueError(f"hf:{source}: a {config.model_type!r} model is neither a text, a "
                     "picture nor a sound model; wrap it in a module and pass that to "
                     "load")


def _sees_padding(config) -> bool:
    """SigLIP was trained on texts padded to their full length, without a mask, and
    pools the last place, be it padding (transformers says so in its docstrings)."""
    return config.model_type.startswith("siglip")


def places(core: nn.Module, config) -> int:
    """How many tokens a text model has places for: its settings say so, and the length of
    its table, in which the kin of RoBERTa leave out those up to the padding's."""
    settings = getattr(config, "text_config", config)
    told = getattr(settings, "max_position_embeddings", None)
    tables = [m for name, m in core.named_modules() if isinstance(m, nn.Embedding)
              and "position" in name.rpartition(".")[2]]
    skipped = max((m.padding_idx + 1 for m in tables if m.padding_idx is not None),
                  default=0)
    # -1: as many as there are (XLNet), as with models that say nothing (T5).
    return told - skipped if told and told > 0 else MAX_TOKENS


def _texts(source: str, config, core: nn.Module, notes: dict[str, list]):
    from transformers import AutoTokenizer

    most = places(core, config)

    tokenizer = AutoTokenizer.from_pretrained(source)
    # Some tokenizers know no limit (10**30), some another than the model.
    longest, padding = min(tokenizer.model_max_length, MAX_TOKENS, most), "longest"
    if _sees_padding(config):
        padding, longest = "max_length", most
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"

    # Another vocabulary gives the same weights other pieces.
    fast = getattr(tokenizer, "backend_tokenizer", None)
    spelled = fast.to_str() if fast else repr(sorted(tokenizer.get_vocab().items()))
    told = hashlib.sha256(f"{type(tokenizer).__name__} {spelled}".encode()).hexdigest()
    room = longest - tokenizer.num_special_tokens_to_add()
    dumb = {None, tokenizer.unk_token_id, *tokenizer.all_special_ids}

    def prepare(texts: list) -> dict[str, Tensor]:
        pieces = tokenizer(check_texts(texts), add_special_tokens=False,
                           verbose=False)["input_ids"]
        note(notes, texts, [len(found) > room for found in pieces],
             [dumb.issuperset(found) for found in pieces])
        found = tokenizer(texts, padding=padding, truncation=True, max_length=longest,
                          return_attention_mask=True, return_tensors="pt")
        if found["input_ids"].shape[1]:
            return found
        blank = torch.zeros(len(texts), 1, dtype=torch.long)  # of none is there a token
        return {"input_ids": blank + tokenizer.pad_token_id, "attention_mask": blank}

    return prepare, f"{longest} tokens" + ", all padded" * (padding != "longest") + f" of {told}"


def _pictures(source: str, *_):
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(source)
    # The short side is made to fit, the middle cut out: a picture of 1 x 2000 pixels would
    # become one of 224 x 448,000 in between.
    cuts = getattr(processor, "do_center_crop", False)

    def prepare(pictures: list) -> dict[str, Tensor]:
        seen = [to_rgb(p) for p in pictures]
        return processor([middle(p) for p in seen] if cuts else seen, return_tensors="pt")

    return prepare, processor.to_json_string()


def middle(picture, most: int = 20):
    """The middle of a picture that is over `most` times as long as wide; else itself."""
    width, height = picture.size
    side = most * min(width, height)
    left, top = max(0, width - side) // 2, max(0, height - side) // 2
    return picture.crop((left, top, width - left, height - top)) if left or top else picture


def _sounds(source: str, config, *_):
    from transformers import AutoFeatureExtractor

    extractor = AutoFeatureExtractor.from_pretrained(source)
    rate = extractor.sampling_rate
    # Longer sounds are cut here: CLAP's extractor would take a part at random.
    longest = getattr(extractor, "nb_max_samples", None)
    # Whisper's fills up to 30 s, and only its mask tells what is sound.
    mask = {"return_attention_mask": True} if hasattr(extractor, "chunk_length") else {}
    # The others need a window of 25 ms, or a step of the model's own, and refuse less.
    least = max(0 if longest or mask else rate // 40,
                one_step(getattr(config, "conv_kernel", ()), getattr(config, "conv_stride", ())))

    def prepare(sounds: list) -> dict[str, Tensor]:
        waves = [wave[:longest].numpy() for wave in to_waves(sounds, rate, least)]
        return extractor(waves, sampling_rate=rate, return_tensors="pt", **mask)

    return prepare, f"{extractor.to_json_string()}; 2"


def _second():
    return torch.sin(torch.arange(16_000) / 10), 16_000


def _white():
    from PIL import Image

    return Image.new("RGB", (64, 64), "white")
