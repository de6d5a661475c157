"""A transformer over frames and places in turns: what it is on a still, and a slow loop."""

import pytest
import torch

from alignkit.data import Tokens
from alignkit.parts.space_time import SpaceTimeEncoder


def made(frames: int = 3) -> SpaceTimeEncoder:
    torch.manual_seed(0)
    return SpaceTimeEncoder(8, frames, layers=2, heads=2).double().eval()


def test_on_a_still_it_begins_as_the_encoder_of_pictures():
    encoder = made()
    whole, still = (torch.randn(*shape, dtype=torch.double) for shape in ((4, 8), (4, 1, 5, 8)))
    found = encoder(whole, still.expand(4, 3, 5, 8))
    x = torch.cat([whole[:, None], still[:, 0]], 1)
    picture = encoder.space(Tokens(x, torch.ones(4, 6) > 0)).values
    torch.testing.assert_close(found, picture)
    other = torch.randn(4, 3, 5, 8, dtype=torch.double)
    assert not torch.allclose(encoder(whole, other), found)


def test_the_order_of_frames_counts_when_times_have_been_learned():
    encoder = made()
    whole, x = torch.randn(2, 8, dtype=torch.double), torch.randn(2, 3, 5, 8, dtype=torch.double)
    torch.testing.assert_close(encoder(whole, x), encoder(whole, x.flip(1)))
    torch.nn.init.normal_(encoder.times)
    assert not torch.allclose(encoder(whole, x), encoder(whole, x.flip(1)))


def test_a_layer_is_what_a_loop_over_places_and_frames_gives():
    encoder = made()
    for after in encoder.after:
        torch.nn.init.normal_(after.weight)
    torch.nn.init.normal_(encoder.times)
    cls, x = torch.randn(8, dtype=torch.double), torch.randn(3, 5, 8, dtype=torch.double)
    fast = encoder(cls[None], x[None])[0]

    def attended(attention, rows):
        return attention(rows[None], rows[None], rows[None])[0][0]

    def mlp(layer, row):
        return row + layer.linear2(torch.nn.functional.gelu(layer.linear1(layer.norm2(row))))

    x = torch.stack([x[t] + encoder.times[t] for t in range(3)])
    for layer, norm, over, after in zip(encoder.space.layers, encoder.norms, encoder.over_time,
                                        encoder.after):
        x = torch.stack([x[:, place] + after(attended(over, norm(x[:, place])))
                         for place in range(5)], 1)
        found = [attended(layer.self_attn, layer.norm1(torch.cat([cls[None], x[t]])))
                 for t in range(3)]
        cls = mlp(layer, cls + sum(f[0] for f in found) / 3)
        x = torch.stack([mlp(layer, x[t] + found[t][1:]) for t in range(3)])
    torch.testing.assert_close(fast[0], encoder.space.norm(cls))
    torch.testing.assert_close(fast[1:], encoder.space.norm(x).mean(0))


def test_another_number_of_frames_is_named():
    with pytest.raises(ValueError, match="frames are 2, the encoder was made for 3"):
        made()(torch.zeros(1, 8).double(), torch.zeros(1, 2, 5, 8).double())
