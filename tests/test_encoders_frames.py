"""Videos through a picture encoder, a frame at a time."""

import numpy as np
import pytest
import torch
from test_encoders import picture

from alignkit.data import Lazy, Pairs
from alignkit.encoders import add_features, load

NAME = "random:frames:timm:test_vit"


def video(*numbers: int) -> torch.Tensor:
    """Frames [t, 60, 80, 3] uint8."""
    return torch.stack([torch.from_numpy(np.array(picture(i, (80, 60))))
                        for i in numbers])


def test_a_video_is_its_frames():
    encoder, inner = load(NAME, seed=3), load("random:timm:test_vit", seed=3)
    assert encoder.name == NAME and encoder.modality == "video"
    assert encoder.widths == inner.widths and encoder.weights_hash == inner.weights_hash
    for k in (0, -1):
        seen = inner.encode([picture(i, (80, 60)) for i in range(4)], layers=[k])[k]
        pooled = encoder.encode([video(2, 0, 3), video(1)], layers=[k])[k]
        tokens = encoder.encode([video(2, 0, 3), video(1)], layers=[k], tokens=True)[k]
        close = torch.testing.assert_close
        close(tokens.values[0], seen[[2, 0, 3]], atol=1e-4, rtol=1e-3)
        close(tokens.values[1, 0], seen[1], atol=1e-4, rtol=1e-3)
        assert tokens.mask.tolist() == [[True] * 3, [True, False, False]]
        assert (tokens.values[1, 1:] == 0).all()
        close(pooled[0], seen[[2, 0, 3]].mean(0), atol=1e-4, rtol=1e-3)


def test_the_order_is_in_the_tokens_alone():
    encoder, there = load(NAME), video(0, 1, 2, 3)
    tokens = encoder.encode([there, there.flip(0)], tokens=True)[-1].values
    assert torch.equal(tokens[0], tokens[1].flip(0))
    assert (tokens[0] - tokens[1]).abs().max() > 0.01
    there, back = encoder.encode([there, there.flip(0)])[-1]
    torch.testing.assert_close(there, back)


def test_forms_of_a_video():
    frames = [picture(i, (80, 60)) for i in (0, 1)]
    forms = [frames, tuple(frames), video(0, 1), video(0, 1).numpy(), [*video(0, 1)]]
    found = load(NAME).encode(forms)[-1]
    assert all(torch.equal(row, found[0]) for row in found)


def test_equal_frames_are_encoded_once(monkeypatch):
    inner = load("random:timm:test_vit")
    outputs, seen = type(inner).outputs, []

    def count(self, inputs, *rest):
        seen.append(len(inputs)) if self.modality == "image" else None
        return outputs(self, inputs, *rest)

    monkeypatch.setattr(type(inner), "outputs", count)
    load(NAME).encode([video(0, 1, 0), video(1, 0), video(2)])
    assert seen == [3]


@pytest.mark.parametrize("bad, message", [
    (torch.zeros(0, 8, 8, 3, dtype=torch.uint8), "at least one frame, got none"),
    ([], "at least one frame"), ("clip.mp4", "frames .t, h, w, 3..*got str"),
    (torch.zeros(2, 8, 8, 3), r"uint8 .*got float32 \(8, 8, 3\)"),
    (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), r"got uint8 \(3, 8, 8\)")])
def test_what_is_no_video_is_refused(bad, message):
    with pytest.raises((TypeError, ValueError), match=message):
        load(NAME).encode([bad])


def test_videos_of_a_column(tmp_path, monkeypatch):
    monkeypatch.setattr("alignkit.encoders.cache.cache_dir", lambda: tmp_path)
    sources = [(0, 1), (2, 3), (0, 1)]
    lazy = Pairs.make({"clip": Lazy(sources, lambda s: video(*s), kind="video")})
    plain = Pairs.make({"clip": torch.stack([video(*s) for s in sources])})
    found, other = (add_features(pairs, "clip", NAME, layers=(-1, 0), tokens=True)
                    for pairs in (lazy, plain))
    assert found["clip_tokens"].values.shape[:2] == (3, 2)
    for column in ("clip_features", "clip_layer0"):
        torch.testing.assert_close(found[column], other[column])
    with pytest.raises(ValueError, match="'clip' holds video; random:timm:test_vit"):
        add_features(lazy, "clip", "random:timm:test_vit")


def test_frames_need_a_picture_encoder():
    with pytest.raises(ValueError, match="random:text:minilm encodes text"):
        load("random:frames:text:minilm")
    one, other = load("frames:random:timm:test_vit", seed=2), load(NAME, seed=2)
    assert (one.name, one.weights_hash) == (other.name, other.weights_hash)
    assert other.weights_hash != load(NAME, seed=3).weights_hash
