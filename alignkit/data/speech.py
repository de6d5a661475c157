"""Spoken language with its text: Tux Paint's sentences read by people in 11 languages,
and the names of emoji read by espeak-ng in 13."""

import ctypes
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Literal

import torch
from torch import Tensor

from alignkit.data.columns import BY_PROVENANCE, Lazy
from alignkit.data.corpora import choose, hear, some_groups, together
from alignkit.data.emoji import LANGUAGES, emoji, sources_hash
from alignkit.data.fetch import asset, machine, manifest
from alignkit.data.pairs import Pairs, Provenance
from alignkit.data.stamps import SPOKEN, draw, folder_labels, groups, read_stamps

RECIPE = "speech 1"
ENGINE = "espeak-ng 1.52.0"
# espeak-ng reads a Chinese character in Japanese as "Chinese letter": left out.
READ = tuple(code for code in LANGUAGES if code != "ja")
VOICES = {"zh": "cmn"}  # the name of a voice where it is not the code
_ONE_AT_A_TIME = Lock()


def speech(language: str | Sequence[str] | None = None, *,
           kind: Literal["real", "generated"] = "real", size: int = 224,
           limit: int | None = None) -> Pairs:
    """A row a recording: the sound, its text in the same language, and a picture.

    Columns: `speech` (Lazy sounds), `text`, `text_en` (in English), `image` (Lazy, RGB
    of size × size). Label `language`, and `folder`, `subfolder` of the stamp or
    `group`, `subgroup` of the emoji. Rows of the same language and text are one item; a
    thing is in one group in every language, with those that share a text with it in
    English or a language asked for.

    Args:
        language: of `SPOKEN` (real) or `READ` (generated), one or several; None: all.
        kind: "real": 7,267 sentences of Tux Paint's stamps read by people, at the
            rates they were recorded at. "generated": espeak-ng reads the 1,914 names of
            `emoji`, at 22,050 Hz; the same text gives the same sound.
        size: side of the pictures in pixels.
        limit: only so many groups, the same at each call (for tests and small runs).

    Raises: ValueError for an unknown kind or language or a number out of range;
        FetchError, which says what to install or bring, where the source is not here.
    """
    if size < 8:
        raise ValueError(f"size must be at least 8 pixels, got {size}")
    if kind == "real":
        asked = choose(SPOKEN if language is None else language, SPOKEN)
        return _read_by_people(asked, size, limit)
    if kind == "generated":
        asked = choose(READ if language is None else language, READ)
        return _read_by_espeak(asked, size, limit)
    raise ValueError(f"kind must be 'real' or 'generated', got {kind!r}")


def _read_by_people(languages: list[str], size: int, limit: int | None) -> Pairs:
    found = read_stamps()
    group = groups(languages)
    kept = some_groups(group, [stamp.name for stamp in found], limit)
    rows = [(code, row, found[row]) for code in languages for row in kept
            if code in found[row].spoken and code in found[row].sentences]
    if not rows:
        raise ValueError(f"limit={limit}: none of these groups has a recording in "
                         f"{', '.join(languages)}; raise it")
    labels, label_names = folder_labels([stamp.name for _, _, stamp in rows])
    text = [stamp.sentences[code] for code, _, stamp in rows]
    return Pairs.make(
        {
            "speech": Lazy([s.spoken[code] for code, _, s in rows], hear, "sound",
                           BY_PROVENANCE),
            "text": text,
            "text_en": [s.sentences["en"] for _, _, s in rows],
            "image": Lazy([s.picture for _, _, s in rows], partial(draw, size=size),
                          version=BY_PROVENANCE),
        },
        ids=[f"{stamp.name} {code}" for code, _, stamp in rows],
        item=together([[(row[0], said)] for row, said in zip(rows, text, strict=True)]),
        group=[group[row] for _, row, _ in rows],
        labels=labels | _language_label([code for code, _, _ in rows], languages),
        label_names=label_names | {"language": languages},
        provenance=Provenance(
            "speech", "real", "GPL-2 (Tux Paint)",
            "tuxpaint-stamps-default 2022.06.04 (Debian)", RECIPE,
            sources_hash(["stamps"], f"{RECIPE} {languages} {size} {limit}"),
        ),
    )  # fmt: skip


def _read_by_espeak(languages: list[str], size: int, limit: int | None) -> Pairs:
    engine_folder()  # says now, and not at the first sound, if it cannot be had
    asked = list(dict.fromkeys([*languages, "en"]))  # English is told in `text_en`
    base = emoji(asked, size=size, limit=limit)
    rows, text, spoken = [], [], []
    for code in languages:
        name = "text" if code == asked[0] else f"text_{code}"
        here = base.present[name].nonzero()[:, 0].tolist()
        rows += here
        text += [base[name][row] for row in here]
        spoken += [code] * len(here)
    things = base.select(rows)
    return Pairs.make(
        {
            "speech": Lazy(list(zip(spoken, text, strict=True)), say, "sound",
                           BY_PROVENANCE),
            "text": text,
            "text_en": things["text" if asked[0] == "en" else "text_en"],
            "image": things["image"],
        },
        ids=[f"{base.ids[row]} {code}" for row, code in zip(rows, spoken, strict=True)],
        item=together([[pair] for pair in zip(spoken, text, strict=True)]),
        group=_groups_of_names(base, languages, rows),
        labels=things.labels | _language_label(spoken, languages),
        label_names=things.label_names | {"language": languages},
        provenance=Provenance(
            "speech", "generated", things.provenance.licence,
            f"{ENGINE} reading the names of {things.provenance.source}", RECIPE,
            sources_hash(["openmoji", "emoji-names", "emoji-groups"],
                         f"{RECIPE} {ENGINE} {languages} {size} {limit}"),
        ),
    )  # fmt: skip


def _groups_of_names(base: Pairs, languages: list[str], rows: list[int]) -> list[int]:
    """The emoji's groups, joined where two things have one name in a language."""
    names = ["text", *(f"text_{code}" for code in languages[1:])]
    group = together([[f"group {base.group[row]}", *((name, base[name][row])
                      for name in names if base.present[name][row])]
                      for row in range(len(base))])
    return [group[row] for row in rows]


def _language_label(codes: list[str], languages: list[str]) -> dict[str, Tensor]:
    return {"language": torch.tensor([languages.index(code) for code in codes])}


# --- the synthesiser ---------------------------------------------------------------


def engine_folder() -> Path:
    """Folder of espeak-ng for this machine.

    Raises FetchError where it is neither here nor to be had, ValueError where there is
    none for this kind of machine.
    """
    name = f"espeak-{machine()}"
    if name not in manifest():
        has = [entry["machine"] for entry in manifest().values() if "machine" in entry]
        raise ValueError(f"espeak-ng is packaged for {', '.join(has)}, this machine is "
                         f"{machine()}: use kind='real'")
    return asset(name)


def say(source: tuple[str, str]) -> tuple[Tensor, int]:
    """(waveform [t] float32, rate in Hz) of a (language, text) read by espeak-ng.

    The library is loaded afresh each time, because an utterance depends on what was
    said before: otherwise equal texts would give other sounds.

    Raises: ValueError for a language without a voice; FetchError as `engine_folder`.
    """
    language, text = source
    folder = engine_folder()
    file = next(p for p in folder.iterdir() if p.suffix in (".so", ".dylib", ".dll"))
    voice = VOICES.get(language, language)
    with _ONE_AT_A_TIME:
        library = ctypes.CDLL(str(file))
        try:
            return _synthesise(library, str(folder), voice, text)
        finally:
            library.espeak_Terminate()
            _unload(library)


def _synthesise(library, folder: str, voice: str, text: str) -> tuple[Tensor, int]:
    """Source: espeak-ng's speak_lib.h (synchronous retrieval, UTF-8)."""
    heard = bytearray()
    receiver = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short),
                                ctypes.c_int, ctypes.c_void_p)

    def receive(wave, samples, _events) -> int:
        if wave and samples > 0:
            heard.extend(ctypes.string_at(wave, 2 * samples))
        return 0  # go on

    rate = library.espeak_Initialize(2, 0, folder.encode(), 0)
    if rate < 0:
        raise OSError(f"espeak-ng does not start with its data in {folder}")
    callback = receiver(receive)  # kept by this name as long as the library calls it
    library.espeak_SetSynthCallback(callback)
    if library.espeak_SetVoiceByName(voice.encode()) != 0:
        raise ValueError(f"espeak-ng has no voice {voice!r}")
    raw = text.encode()
    library.espeak_Synth(raw, ctypes.c_size_t(len(raw) + 1), 0, 0, 0, 1, None, None)
    library.espeak_Synchronize()
    return torch.frombuffer(heard, dtype=torch.int16).float() / 2**15, rate


def _unload(library: ctypes.CDLL) -> None:
    import _ctypes

    if sys.platform == "win32":
        _ctypes.FreeLibrary(library._handle)
    else:
        _ctypes.dlclose(library._handle)
