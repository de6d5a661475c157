"""What a shard is written of: one `Sample` an item, checked when it comes."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from alignkit.data.blobs import COLUMN, Blob, points

SPLITS = ["train", "val", "test"]


@dataclass(frozen=True)
class Sample:
    """An item to be written: `files` maps an ending ("jpg") to bytes or to a path.

    key: letters, digits, - and _. captions: a list, [] where there is none. group: what
    stays on one side of a split (default: the item alone). split: the official one,
    "train", "val" or "test". Raises TypeError naming the key and what is of a wrong type.
    """

    key: str
    files: dict[str, bytes | Path]
    captions: list[str] = field(default_factory=list)
    labels: dict[str, str | int] = field(default_factory=dict)
    group: str = ""
    split: str = ""

    def __post_init__(self):
        if isinstance(self.captions, str) or not isinstance(self.captions, list | tuple):
            raise TypeError(f"sample {self.key!r}: captions is {_short(self.captions)}; a "
                            "list of texts is needed, ['a cat'], or [] without any")
        for name in ("files", "labels"):
            if not isinstance(found := getattr(self, name), Mapping):
                raise TypeError(f"sample {self.key!r}: {name} is {_short(found)}; a dict "
                                "is needed")
        for ending, content in self.files.items():
            if not isinstance(content, bytes | bytearray | memoryview | Path):
                raise TypeError(f"sample {self.key!r}: its {ending} is {_short(content)}; "
                                "bytes or a pathlib.Path are needed")


class Skipped(NamedTuple):
    """An item that could not be had, and why."""

    key: str
    reason: str


def check(sample: Sample) -> Sample | Skipped:
    """The sample; `Skipped` where a text of it is none. Raises ValueError for a key,
    ending or split that no shard can have."""
    if not isinstance(sample.key, str) or not re.fullmatch(r"[A-Za-z0-9_-]{1,80}",
                                                           sample.key):
        raise ValueError(f"key {sample.key!r}: 1 to 80 letters, digits, - and _")
    if unknown := set(sample.files) - set(COLUMN):
        raise ValueError(f"{sample.key}: ending {min(map(str, unknown))!r} is none of "
                         f"{', '.join(COLUMN)}")
    if len({COLUMN[ending] for ending in sample.files}) < len(sample.files):
        raise ValueError(f"{sample.key}: {', '.join(sample.files)} are of one kind, and a "
                         "row has one file of each: make two samples of a group")
    if sample.split not in ("", *SPLITS):
        raise ValueError(f"{sample.key}: split {sample.split!r} is none of {SPLITS}")
    if sample.labels.get("split", "train") not in SPLITS:
        raise ValueError(f"{sample.key}: a label 'split' must be one of {SPLITS}, got "
                         f"{sample.labels['split']!r}; give it another name")
    for number, text in enumerate(sample.captions):
        if fault := text_fault(text) or not text.strip() and "is blank":
            return Skipped(sample.key, f"caption {number} {fault}")
    for what, text in {"the group": sample.group, **{
            f"label {name!r}": value for name, value in sample.labels.items()}}.items():
        is_number = isinstance(text, int | float) and math.isfinite(text)
        if not (is_number and what != "the group") and (fault := text_fault(text)):
            return Skipped(sample.key, f"{what} {fault}")
    return sample


def text_fault(text) -> str:
    """What is wrong with a text, "" if nothing is."""
    if not isinstance(text, str):
        return f"is {_short(text)}, no text"
    if writable_text(text) != text:
        return f"holds half a surrogate pair: {writable_text(text)[:80]}"
    return ""


def writable_text(text: str) -> str:
    r"""`text` for a file in UTF-8: half a surrogate pair is spelled out (\ud83d)."""
    return str(text).encode("utf-8", "backslashreplace").decode()


class Seen:
    """Keys, labels and clouds of the samples so far: a fault is told at its sample, and not
    when all have been written."""

    def __init__(self):
        self.keys, self.labels, self.cloud = set(), None, None

    def check(self, sample: Sample | Skipped) -> Sample | Skipped:
        """The sample. Raises ValueError for a second key, or labels of other names or
        types than before."""
        if isinstance(sample, Skipped):
            return sample
        if sample.key in self.keys:
            raise ValueError(f"two items have the key {sample.key!r}")
        self.keys.add(sample.key)
        if isinstance(check(sample), Skipped):
            return sample
        labels = {k: "text" if isinstance(v, str) else "number"
                  for k, v in sample.labels.items()}
        if sample.split:
            labels["split"] = "text"
        self.labels = labels if self.labels is None else self.labels
        if set(labels) != set(self.labels):
            raise ValueError(f"{sample.key}: labels {sorted(labels)}, the items before "
                             f"have {sorted(self.labels)}; each needs all")
        for name, kind in labels.items():
            if kind != self.labels[name]:
                raise ValueError(f"{sample.key}: label {name!r} is a {kind}, those before "
                                 f"are {self.labels[name]}s; write all as texts")
        return self._as_many_points(sample)

    def _as_many_points(self, sample: Sample) -> Sample | Skipped:
        """Clouds are one tensor when they are opened: all need as many points."""
        raw = sample.files.get("safetensors")
        try:
            raw = raw.read_bytes() if isinstance(raw, Path) else raw
            shape = None if raw is None else list(points(Blob("it", bytes(raw))).shape)
        except (ValueError, OSError):  # told when it is written
            return sample
        self.cloud = self.cloud or shape
        if shape in (None, self.cloud):
            return sample
        return Skipped(sample.key, f"its points are {shape}, those before {self.cloud}: "
                                   "draw as many of each")


def _short(value) -> str:
    return f"{value!r:.60} ({type(value).__name__})"
