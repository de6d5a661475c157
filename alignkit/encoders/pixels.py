"""Frozen encoders with a gradient to their input: for attacks on pixels, which features
from the cache cannot serve."""

import torch
from torch import Tensor, nn

from alignkit.data import Tokens

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of CLIP's pixels, and OpenCLIP's
DEVIATION = (0.26862954, 0.26130258, 0.27577711)


class ClipTowers(nn.Module):
    """Both towers of a CLIP of transformers, frozen and in eval mode, with the functions
    of `parts.two_towers`: `image` takes pixels from 0 to 1, so that a bound on a change of
    them means what it says; mean and deviation come behind it.

    Example:
        >>> towers = ClipTowers.load("openai/clip-vit-base-patch32")
        >>> prompts = towers.text(towers.tokens(["a photo of a dog"]))
    """

    def __init__(self, model: nn.Module, tokenizer):
        super().__init__()
        self.model, self.tokenizer = model.requires_grad_(False).eval(), tokenizer
        for name, value in (("mean", MEAN), ("deviation", DEVIATION)):
            self.register_buffer(name, torch.tensor(value)[:, None, None], persistent=False)

    @classmethod
    def load(cls, name: str) -> "ClipTowers":
        """A model of Hugging Face by name, fetched if it is not there."""
        from transformers import AutoTokenizer, CLIPModel

        return cls(CLIPModel.from_pretrained(name), AutoTokenizer.from_pretrained(name))

    def temperature(self) -> Tensor:
        """The factor on cosines, 1 / temperature, as `TwoTowers.temperature()` gives it."""
        return self.model.logit_scale.exp()

    def tokens(self, texts: list[str]) -> Tokens:
        """Ids [n, t] and which are real."""
        found = self.tokenizer(list(texts), padding=True, truncation=True,
                               return_tensors="pt")
        return Tokens(found["input_ids"], found["attention_mask"].bool())

    def text(self, tokens: Tokens) -> Tensor:
        """Ids -> unit rows [n, d]."""
        pooled = self.model.text_model(tokens.values, tokens.mask.long()).pooler_output
        return nn.functional.normalize(self.model.text_projection(pooled), dim=1)

    def image(self, pixels: Tensor) -> Tensor:
        """Pixels [n, 3, side, side] from 0 to 1 -> unit rows [n, d]."""
        seen = (pixels - self.mean) / self.deviation
        pooled = self.model.vision_model(seen).pooler_output
        return nn.functional.normalize(self.model.visual_projection(pooled), dim=1)
