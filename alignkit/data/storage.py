"""`Pairs` on disk: tensors in safetensors, the rest in JSON, pictures as PNG files,
sounds as WAV files of 32-bit floats and videos as a safetensors file each, so that what
comes back is what was saved. A folder is written under a temporary name and renamed
when whole."""

import json
import os
import shutil
import uuid
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from alignkit.data.columns import Lazy, Tokens
from alignkit.data import sounds
from alignkit.data.links import LeadsOut, inside
from alignkit.data.pictures import open_picture, to_rgb

FORMAT = 1


def save(folder: Path, columns: dict, rest: dict) -> None:
    """Write `columns` and `rest` (tensors, tokens, JSON values, dicts of them)."""
    if folder.exists():
        raise FileExistsError(f"{folder} exists: name a new folder")
    part = folder.parent / f".{folder.name}-{uuid.uuid4().hex}"
    part.mkdir(parents=True)
    try:
        tensors: dict[str, Tensor] = {}
        tree = {
            "format": FORMAT,
            "columns": {name: _lazy_files(part, name, c) if isinstance(c, Lazy)
                        else _pack(c, f"columns/{name}", tensors)
                        for name, c in columns.items()},
            "rest": _pack(rest, "rest", tensors),
        }
        save_file(tensors, part / "pairs.safetensors")
        (part / "pairs.json").write_text(json.dumps(tree, ensure_ascii=False), "utf-8")
        try:
            os.replace(part, folder)
        except OSError:
            if not folder.exists():
                raise
            raise FileExistsError(f"{folder}: another process has written it meanwhile: "
                                  "name a new folder") from None
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def load(folder: Path) -> tuple[dict, dict]:
    """(columns, rest) as `save` took them."""
    if not (folder / "pairs.json").is_file():
        raise FileNotFoundError(f"{folder} holds no pairs.json: not written by save")
    try:
        tree = json.loads((folder / "pairs.json").read_text("utf-8"))
        if tree["format"] == FORMAT:
            tensors = load_file(folder / "pairs.safetensors")
            columns = {name: _unpack(c, tensors, folder)
                       for name, c in tree["columns"].items()}
            return columns, _unpack(tree["rest"], tensors, folder)
    except LeadsOut as error:
        raise ValueError(f"{folder}: {error}") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError,
            SafetensorError) as error:  # whatever a changed file may lead to
        raise ValueError(f"{folder} is damaged ({type(error).__name__}: {error}); save "
                         "it again") from None
    raise ValueError(f"{folder}: format {tree['format']!r}, this version reads {FORMAT}")


def read_sound(path: Path) -> tuple[Tensor, int]:
    """(waveform [t] float32, rate in Hz) of a sound file, channels averaged.

    Raises ValueError for what is no sound, or one that is cut off.
    """
    return sounds.decode(Path(path).read_bytes(), str(path))


def read_video(path: Path) -> Tensor:
    """The frames [t, h, w, 3] (uint8) of a file that `save` wrote."""
    return load_file(path)["frames"]


def _lazy_files(folder: Path, name: str, column: Lazy) -> dict:
    """Write each row's file; a row without a source (a missing modality) has none."""
    from scipy.io import wavfile  # FLAC and 16 bits would cut what lies outside [-1, 1]

    (folder / name).mkdir()
    ending = {"picture": "png", "sound": "wav", "video": "safetensors"}[column.kind]
    files = [None if source is None else f"{name}/{row:07d}.{ending}"
             for row, source in enumerate(column.sources)]
    for row, file in enumerate(files):
        if file and column.kind == "picture":
            to_rgb(column[row]).save(folder / file)
        elif file and column.kind == "video":
            save_file({"frames": column[row].contiguous()}, folder / file)
        elif file:
            wave, rate = sounds.as_wave(column[row])
            if not isinstance(rate, int):
                raise ValueError(f"{name}: row {row} has {rate} Hz, a WAV file needs a "
                                 "whole number: resample it first")
            wavfile.write(folder / file, rate, wave.numpy())
    return {"lazy": column.kind, "files": files}


def _pack(value, key: str, tensors: dict):
    """JSON for `value`; its tensors go to `tensors`, named after `key`."""
    if isinstance(value, Tensor):
        name = f"{len(tensors):04d} {key}"  # keys may repeat: {1: …, "1": …}
        tensors[name] = value.detach().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, Tokens):
        parts = [_pack(v, f"{key}.{i}", tensors) for i, v in enumerate(value)]
        return {"tokens": parts}
    if isinstance(value, dict):
        entries = [[k, _pack(v, f"{key}/{k}", tensors)] for k, v in value.items()]
        return {"dict": entries}
    try:
        json.dumps(value, ensure_ascii=False).encode()
        return {"json": json.loads(json.dumps(value))}
    except UnicodeEncodeError as error:
        raise ValueError(f"{key} holds half a surrogate pair, which no file can hold: "
                         f"{error.object[max(0, error.start - 20):error.end]!a}"
                         ) from None
    except TypeError:
        raise TypeError(f"{key} holds a {type(value).__name__}: only tensors, tokens, "
                        "dicts and JSON values can be saved") from None


def _unpack(packed: dict, tensors: dict, folder: Path):
    if "lazy" in packed:
        paths = [file and inside(folder, file) for file in packed["files"]]
        read = {"picture": open_picture, "sound": read_sound,
                "video": read_video}[packed["lazy"]]
        return Lazy(paths, read, packed["lazy"])
    if "tensor" in packed:
        return tensors[packed["tensor"]]
    if "tokens" in packed:
        return Tokens(*(_unpack(v, tensors, folder) for v in packed["tokens"]))
    if "dict" in packed:
        return {k: _unpack(v, tensors, folder) for k, v in packed["dict"]}
    return packed["json"]
