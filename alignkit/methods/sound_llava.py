"""A sound in the place of a picture: raw or projected audio tokens for LLaVA.

Paper: Can Sound Replace Vision in LLaVA With Token Substitution? Vosoughi, Bi, Liu, Tang,
Xu, 2025, arXiv 2506.10416 (its newest version: Projected audio tokens gain retrieval and
lose grounded generation in multimodal LLMs).

Claim: an MLP trained with InfoNCE on sounds and the pictures beside them makes the token of
a sound find its picture, and takes from it what the picture does not show: captions lose
the sources that are heard and not seen. The gain and the loss come together.

Use it when: a sound must find a picture, or a picture a sound, and nothing else is asked
of the token. For finding alone try one matrix first: with few pairs it found more here.
Where the token must tell what is heard and not seen, keep the raw features beside it, or
train on pictures that show it.

Equations, a [n, d_a] the frozen features of sounds, v [n, d] those of the pictures:
    raw(a) = a, filled with zeros to width d, or cut to it
    p = W₃ gelu(norm(W₂ gelu(norm(W₁ a))))               (norm: layer norm)
    loss = ½ [CE(rows of p̂ v̂ᵀ / τ) + CE(columns)],  p̂, v̂ the unit rows, τ learned
    rebuilt: + λ · mean((W₄ p − (a − mean) / deviation)²)
    substituted = [p, the k of the picture's patches with the largest cosine to p]
which goes where LLaVA expects its class token and 576 patches.

Frozen: both encoders and LLaVA; v has no head. Trained: the projector and τ.
Exact property: a raw token's cosines are those of the feature (zeros change none; cutting
does); substitution does not see the token's length; with k of all patches it keeps the set.
Deviations: the public repository holds a project page and no training code, so nothing
could be run beside this. Patches and class token: a CNN's 49 places and their mean at small
scale (LLaVA: CLIP's 576 patches and its class token). WhisperCLIP, which fuses Whisper's
layers before the projector, is not built: how it fuses is not said anywhere. `rebuilt` is
not the paper's: it asks whether the loss can be bought back. Sounds of one picture in a
batch are right answers for each other (they would be wrong ones in plain InfoNCE); in the
composed corpus each picture has one sound.
Reconstructed: hidden widths, τ (0.07, learned), rate, batch and steps, the layer of CLIP
that is the target, and where norm and GELU stand between the three linear layers: the page
names them and no more. The authors withdrew several statements of earlier versions (a law
for the trade-off, that the encoder's lineage decides, 1.9 million parameters, 'well-aligned'
pairs as ground truth): none is taken over.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from alignkit.data import Pairs
from alignkit.parts import Method, Settings, Temperature, info_nce, positives_of, unit


@dataclass(frozen=True)
class SoundSettings(Settings):
    """towers: picture and sound -> their frozen features. head: 'mlp', 'linear' or 'raw'.
    hidden: width of the MLP's two hidden layers. rebuild: λ. `width` is not used: a token
    is as wide as a picture's feature."""

    towers: Mapping[str, str] = field(default_factory=lambda: {
        "image": "image_features", "sound": "speech_features"})
    head: str = "mlp"
    hidden: int = 1024
    rebuild: float = 0.0
    temperature: float = 0.07
    learn_temperature: bool = True

    def __post_init__(self):
        if self.head not in ("mlp", "linear", "raw"):
            raise ValueError(f"head must be 'mlp', 'linear' or 'raw', got {self.head!r}")


def raw_token(a: Tensor, width: int) -> Tensor:
    """Features [n, d_a] -> [n, width]: filled with zeros, or cut."""
    return F.pad(a, (0, width - a.shape[-1]))


def mlp(d_in: int, hidden: int, d_out: int) -> nn.Sequential:
    """Three linear layers with layer norm and GELU between them."""
    return nn.Sequential(nn.Linear(d_in, hidden), nn.LayerNorm(hidden), nn.GELU(),
                         nn.Linear(hidden, hidden), nn.LayerNorm(hidden), nn.GELU(),
                         nn.Linear(hidden, d_out))


class SoundToken(Method):
    """A sound's token in the space of a picture's class token."""

    settings: SoundSettings

    def build(self, settings: SoundSettings, pairs: Pairs) -> None:
        image, sound = (pairs[settings.towers[name]] for name in ("image", "sound"))
        self.width = image.shape[-1]
        if settings.head != "raw":
            self.head = (nn.Linear(sound.shape[-1], self.width) if settings.head == "linear"
                         else mlp(sound.shape[-1], settings.hidden, self.width))
        if settings.rebuild:
            self.back = nn.Linear(self.width, sound.shape[-1])
            for name, value in (("mean", sound.mean(0)),
                                ("deviation", sound.std(0).clamp(min=1e-6))):
                self.register_buffer(name, torch.zeros(len(value)))  # on the meta device, too
                self.get_buffer(name).copy_(value)
        self.temperature = Temperature(settings.temperature, settings.learn_temperature)

    def token(self, a: Tensor) -> Tensor:
        """Features of sounds [n, d_a] -> tokens [n, d], not of unit length."""
        return raw_token(a, self.width) if self.settings.head == "raw" else self.head(a)

    def encode(self, batch: dict) -> dict[str, Tensor]:
        """`image`: its own feature; `sound`: the token. Rows [b, d] as LLaVA gets them."""
        image, sound = (self.settings.towers[name] for name in ("image", "sound"))
        outputs = {"image": batch[image]} if image in batch else {}
        return outputs | ({"sound": self.token(batch[sound])} if sound in batch else {})

    def losses(self, outputs: dict, batch: dict, progress: float) -> dict[str, Tensor]:
        found = {"contrastive_loss": info_nce(
            unit(outputs["sound"]), unit(outputs["image"]), self.temperature(),
            positives_of(batch["item"]))}
        if self.settings.rebuild:
            wanted = (batch[self.settings.towers["sound"]] - self.mean) / self.deviation
            error = (self.back(outputs["sound"]) - wanted).square().mean()
            found["rebuilding_loss"] = self.settings.rebuild * error
        return found


class Untrained(SoundToken):
    """A raw token, or a projector with its initial weights: nothing is trained."""

    traits = frozenset({"untrained"})

    def stages(self) -> list:
        return []


def substitute(token: Tensor, patches: Tensor, k: int) -> Tensor:
    """What LLaVA gets in place of class token and patches: [n, 1 + k, d].

    token [n, d]; patches [n, p, d]: the k with the largest cosine to the token stand behind
    it, the nearest first.

    Raises ValueError if the widths differ or k is not between 0 and p.
    """
    n, p, d = patches.shape
    if token.shape != (n, d) or not 0 <= k <= p:
        raise ValueError(f"token must be {(n, d)} and k between 0 and {p}, got "
                         f"{tuple(token.shape)} and {k}")
    cosines = torch.einsum("nd,npd->np", unit(token), unit(patches))
    chosen = cosines.topk(k).indices[..., None].expand(-1, -1, d)
    return torch.cat([token[:, None], patches.gather(1, chosen)], 1)


@torch.no_grad()
def caption(llava: nn.Module, tokens: Tensor, prompt: Tensor, **options) -> Tensor:
    """Ids that a frozen LLaVA of transformers writes, [n, t].

    tokens [n, 1 + k, d]: go through LLaVA's own projector to the place of the image token
    of `prompt` [s] (ids, one of them the image token's). options: of `generate`.

    Raises ValueError if the prompt has not one image token.
    """
    place = (prompt == llava.config.image_token_index).nonzero().flatten()
    if len(place) != 1:
        raise ValueError(f"prompt has {len(place)} image tokens, it needs one")
    words = llava.get_input_embeddings()(prompt).expand(len(tokens), -1, -1)
    seen = llava.model.multi_modal_projector(tokens.to(words.dtype))
    at = int(place)
    inputs = torch.cat([words[:, :at], seen, words[:, at + 1:]], 1)
    return llava.generate(inputs_embeds=inputs, **options)
