"""Picture encoders: EfficientNet-Lite0 and MobileNetV2 from their packaged weights, any
timm model, and their twins with random weights."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from alignkit.data.fetch import asset, manifest
from alignkit.data.pictures import to_rgb
from alignkit.encoders.encoder import (
    Encoder,
    Output,
    as_tokens,
    device,
    hash_weights,
    one_thread,
    random_hash,
    seeded,
)
from alignkit.versions import explained


def efficientnet_lite0(seed: int | None = None) -> Encoder:
    """EfficientNet-Lite0 (ImageNet): layers 0–6 are its stages, 7 the head (1280-d).

    With a seed: the twin of random weights, for which nothing is downloaded.
    """
    return _packaged(
        "efficientnet-lite0", "efficientnet-lite0.pth", seed,
        build=lambda: _create("tf_efficientnet_lite0", seed),
        widths=[16, 24, 40, 80, 112, 192, 320, 1280], mean=127.0, std=128.0,
        preprocessing="whole picture, bicubic 224, (x-127)/128; 1")


def mobilenet_v2(seed: int | None = None) -> Encoder:
    """MobileNetV2 1.0 (ImageNet): layers 0–6 are its stages, 7 the head (1280-d).

    Trained by other people, with other code and another architecture than
    EfficientNet-Lite0: a second opinion on pictures. With a seed: the twin of random
    weights, for which nothing is downloaded.
    """
    mean, std = (255 * torch.tensor(v).view(3, 1, 1)
                 for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    return _packaged(
        "mobilenetv2", "mobilenetv2.pt", seed,
        build=lambda: _create("mobilenetv2_100", seed, num_classes=0),
        widths=[16, 24, 32, 64, 96, 160, 320, 1280], mean=mean, std=std,
        preprocessing="whole picture, bicubic 224, ImageNet mean and deviation; 1")


def _packaged(
    name: str, file: str, seed: int | None, *, build: Callable[[], nn.Module],
    widths: list[int], mean, std, preprocessing: str,
) -> Encoder:
    """A timm CNN of seven stages whose weights are the asset `name`'s `file`."""

    def start():
        model = build()
        if seed is None:
            _load_packaged(model, asset(name) / file)
        else:
            calibrate_norms(model, (224, 224))
        model = model.to(device()).eval()

        def run(pictures: list, layers: Sequence[int]) -> dict[int, Output]:
            x = to_batch(pictures, (224, 224), mean, std).to(device())
            return {k: _pool_map(x) for k, x in _stages(model, x) if k in layers}

        return run

    return Encoder(
        name="random:" * (seed is not None) + f"image:{name}",
        modality="image",
        widths=dict(enumerate(widths)),
        weights_hash=manifest()[name]["files"][file]
        if seed is None else random_hash(seed, "timm") + ", calibrated by one thread",
        preprocessing=preprocessing,
        build=start,
    )


@explained()
def timm_model(model_name: str, seed: int | None = None) -> Encoder:
    """Any timm model: pretrained (from timm's hub), or random weights with a seed.

    The last layer is what timm's classifier would see; the layers before it are the
    means of the feature maps of `forward_intermediates`, where the model has it.
    Raises ValueError for a name that timm does not know.
    """
    import timm

    if not timm.is_model(model_name):
        near = timm.list_models(f"*{model_name.split('_')[0].split('.')[0]}*")[:5]
        raise ValueError(f"timm:{model_name}: timm {timm.__version__} has no such "
                         f"model; near it: {', '.join(near) or 'none'}")
    model = _create(model_name, seed, pretrained=seed is None)
    config = timm.data.resolve_model_data_config(model)
    size = tuple(config["input_size"][1:])
    mean, std = (255 * torch.tensor(config[k]).view(3, 1, 1) for k in ("mean", "std"))
    if seed is not None:
        calibrate_norms(model, size)
    model = model.to(device()).eval()

    def run(pictures: list, layers: Sequence[int]) -> dict[int, Output]:
        x = to_batch(pictures, size, mean, std).to(device())
        return {k: out for k, out in enumerate(_timm_layers(model, x)) if k in layers}

    with torch.inference_mode():
        probe = _timm_layers(model, torch.zeros(1, 3, *size, device=device()))
    return Encoder(
        name="random:" * (seed is not None) + f"timm:{model_name}",
        modality="image",
        widths={k: output.pooled.shape[1] for k, output in enumerate(probe)},
        weights_hash=hash_weights(model),
        preprocessing=f"whole picture, bicubic {size}, {config['mean']}, "
                      f"{config['std']}; 1",
        build=lambda: run,
    )


def to_batch(pictures: list, size: tuple[int, int], mean, std) -> Tensor:
    """PIL pictures -> [b, 3, h, w] float, (x − mean) / std with x in 0 … 255.

    The whole picture is resized (bicubic, no crop, so that nothing a caption names is
    cut away).
    """
    from PIL.Image import Resampling

    resized = [to_rgb(p).resize(size[::-1], Resampling.BICUBIC) for p in pictures]
    x = torch.from_numpy(np.stack([np.asarray(p) for p in resized]))
    return (x.permute(0, 3, 1, 2).float() - mean) / std


@one_thread()
def calibrate_norms(model: nn.Module, size: tuple[int, int]) -> None:
    """Set the batch-norm statistics of a random network, once, from fixed pictures.

    Untrained running statistics (0 and 1) leave the activations of a deep network to
    grow and saturate, so that its features say little about the input. 16 smooth
    random pictures (a fixed seed, power falling with frequency as in photographs) are
    sent through once with batch statistics, which are then kept. So the twin depends
    on its seed alone, never on the data or their order.
    """
    batch_norm = nn.modules.batchnorm._BatchNorm
    norms = [m for m in model.modules() if isinstance(m, batch_norm)]
    if not norms:
        return
    generator = torch.Generator().manual_seed(0)
    pictures = torch.zeros(16, 3, *size)
    for cells in (1, 2, 4, 8, 16, 32, 64):
        noise = torch.randn(16, 3, cells, cells, generator=generator)
        pictures += nn.functional.interpolate(noise, size, mode="bilinear") / cells**0.5
    model.eval()
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0  # keep this batch's statistics alone
    with torch.no_grad():
        model(pictures.clamp(-2, 2) / 2)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()


def _create(name: str, seed: int | None, **options) -> nn.Module:
    import timm

    with seeded(seed):
        return timm.create_model(name, **options)


def _load_packaged(model: nn.Module, path: Path) -> None:
    """The packaged weights under timm's names: both list the same layers in order."""
    packaged = torch.load(path, map_location="cpu", weights_only=True)
    ours = model.state_dict()
    for name, other in zip(ours, packaged, strict=True):
        same_leaf = name.split(".")[-1] == other.split(".")[-1]
        if not same_leaf or ours[name].shape != packaged[other].shape:
            raise ValueError(f"{path.name}: {other} does not fit timm's {name}")
    renamed = dict(zip(ours, packaged.values(), strict=True))
    model.load_state_dict(renamed, strict=True)


def _stages(model: nn.Module, x: Tensor) -> Iterator[tuple[int, Tensor]]:
    x = model.bn1(model.conv_stem(x))
    for k, stage in enumerate(model.blocks):
        x = stage(x)
        yield k, x
    yield len(model.blocks), model.bn2(model.conv_head(x))


def _timm_layers(model: nn.Module, x: Tensor) -> list[Output]:
    maps, last = [], None
    if hasattr(model, "forward_intermediates"):
        last, maps = model.forward_intermediates(x)  # maps: [b, d, h, w]
    else:
        last = model.forward_features(x)
    pooled = model.forward_head(last, pre_logits=True)
    if last.dim() == 4 and getattr(model, "output_fmt", "NCHW") == "NHWC":
        last = last.permute(0, 3, 1, 2)
    if last.dim() == 3:  # class and register tokens are no places of the picture
        last = last[:, getattr(model, "num_prefix_tokens", 0):]
    return [_pool_map(m) for m in maps] + [Output(pooled, as_tokens(last))]


def _pool_map(x: Tensor) -> Output:
    return Output(x.mean((2, 3)), as_tokens(x))
