"""Small random data for the tests that go through all papers.

The claims of most papers run on pictures with captions. A paper that needs more says so
in its own test file, tests/test_<slug>.py, by one or both of

    toy_features(pairs) -> Pairs    `random_pairs` with the further columns, labels or
                                    tables that its claims find after `data`
    toy_pairs(pairs) -> Pairs       pairs as a user would bring them (`NEEDS`, `LABELS`),
                                    made from drawn pictures with captions: some 70
                                    different pictures, two captions each or three

Such a file must not import test_methods or test_commands, which import it.
"""

from importlib import import_module
from pathlib import Path

import torch
from PIL import Image

from alignkit.data import Lazy, Pairs, Tokens


def given(pairs: Pairs, slug: str, name: str) -> Pairs:
    """The pairs with what the paper's own test file adds in its function `name`."""
    path = Path(__file__).with_name(f"test_{slug.replace('-', '_')}.py")
    if not path.is_file() or f"\ndef {name}(" not in path.read_text("utf-8"):
        return pairs  # nothing to import
    return getattr(import_module(path.stem), name)(pairs)


def random_pairs(slug: str, n: int = 120, widths=(5, 6, 7)) -> Pairs:
    """Pictures and captions with features of every name that claims look for: pooled, of
    random twins, by layer, and tokens; and what the paper's `toy_features` adds."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(n, 4, generator=generator)
    columns = {"image": Lazy(range(n), lambda i: Image.new("RGB", (4, 4), (i % 256, 0, 0))),
               "text": [f"caption {i}" for i in range(n)]}
    for modality in ("image", "text"):
        names = ["features", "random", *(f"layer{i}" for i in range(len(widths)))]
        for name, width in zip(names, [widths[-1], widths[-1], *widths]):
            view = hidden @ torch.randn(4, width, generator=generator)
            noise = torch.randn(n, width, generator=generator)
            columns[f"{modality}_{name}"] = view + 0.3 * noise
        columns[f"{modality}_tokens"] = random_tokens(hidden, widths[-1], generator)
    return given(Pairs.make(columns), slug, "toy_features")


def random_tokens(hidden: torch.Tensor, width: int, generator) -> Tokens:
    """Two to four real tokens a row, different views of its hidden state; the rest pad."""
    views = torch.randn(4, hidden.shape[1], width, generator=generator)
    values = torch.einsum("nh,thw->ntw", hidden, views)
    values += 0.3 * torch.randn(values.shape, generator=generator)
    real = torch.randint(2, 5, (len(hidden), 1), generator=generator)
    mask = torch.arange(4) < real
    return Tokens(values * mask[..., None], mask)


def with_tones(pairs: Pairs) -> Pairs:
    """`toy_pairs` of a paper of sounds: `speech`, a tone of its own for each row."""
    def tone(row: int) -> tuple[torch.Tensor, int]:
        return torch.sin(torch.arange(4000) * (0.05 + 0.001 * row)), 16_000

    return pairs.with_columns(speech=Lazy(range(len(pairs)), tone, "sound", version="tones"))
