"""Attention over frames and over places, in turns: a picture's transformer made one of videos
(Bertasius et al. 2021, arXiv 2102.05095, 'divided space-time'; as ALPRO has it, 2112.09583)."""

import torch
from torch import Tensor, nn

from alignkit.parts.attention import TransformerEncoder


class SpaceTimeEncoder(nn.Module):
    """In each layer a patch looks at its own place in all frames, then each frame, with a copy
    of the class token, at itself; what the copies found is averaged. After the last layer the
    patches are averaged over the frames.

    What comes of the frames goes through a matrix that begins at 0, as do the embeddings of
    time: at first it is `space`, the encoder of pictures, on every frame.
    """

    def __init__(self, width: int, frames: int, layers: int = 2, heads: int = 4):
        super().__init__()
        self.space = TransformerEncoder(width, layers, heads)
        self.times = nn.Parameter(torch.zeros(frames, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.over_time = nn.ModuleList(nn.MultiheadAttention(width, heads, batch_first=True)
                                       for _ in range(layers))
        self.after = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        for parameter in self.after.parameters():
            nn.init.zeros_(parameter)

    def forward(self, whole: Tensor, frames: Tensor) -> Tensor:
        """Class token [n, width] and patches [n, t, k, width], places added -> [n, 1 + k,
        width]. Raises ValueError for another number of frames than it was made for."""
        n, t, k, _ = frames.shape
        if t != len(self.times):
            raise ValueError(f"frames are {t}, the encoder was made for {len(self.times)}")
        x = frames + self.times[:, None]
        for layer, norm, over, after in zip(self.space.layers, self.norms, self.over_time,
                                            self.after, strict=True):
            places = norm(x).transpose(1, 2).flatten(0, 1)  # [n · k, t, width]
            found = over(places, places, places, need_weights=False)[0]
            x = x + after(found).unflatten(0, (n, k)).transpose(1, 2)
            each = torch.cat([whole[:, None, None].expand(-1, t, 1, -1), x], 2).flatten(0, 1)
            seen = layer.norm1(each)
            seen = layer.self_attn(seen, seen, seen, need_weights=False)[0].unflatten(0, (n, t))
            whole, x = whole + seen[:, :, 0].mean(1), x + seen[:, :, 1:]
            whole, x = (y + layer.linear2(layer.activation(layer.linear1(layer.norm2(y))))
                        for y in (whole, x))
        return torch.cat([self.space.norm(whole)[:, None], self.space.norm(x).mean(1)], 1)
