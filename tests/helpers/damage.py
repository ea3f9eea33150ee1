# SPDX-License-Identifier: Apache-2.0
"""Damages checkpoints in every way files get damaged, and says what came of it.

``python damage.py convert|load FOLDER FIRST COUNT`` works on copies of FOLDER within limits of
memory, and prints a JSON line for every number that ended in anything but success or one line."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import struct
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tdc.checkpoints.convert import convert_release
from tdc.checkpoints.load import load_model
from tdc.errors import InputError

VALUES: list[Any] = [
    *(None, True, -1, 0, 1, 3, 10**9, 10**30, 1e300, float("nan"), 2.5),
    *("", "x", "../../x", "/etc/passwd", [], {}, [1, 2], [[]], {"x": 1}, [10**9], "bfloat16"),
]
Damage = Callable[[Path, random.Random], None]


class Code:
    """Leaves a trace if a pickle is run."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.trace),)


# ---------------------------------------------------------------- JSON


def jsons(folder: Path) -> list[Path]:
    files = sorted(f for f in folder.rglob("*.json") if f.is_file())
    return files + [f for f in files if f.name == "config.json"] * 5


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Containers and keys of everything inside."""
    keys = value.keys() if isinstance(value, dict) else range(len(value))
    for key in list(keys)[:60]:
        yield value, key
        if isinstance(value[key], dict | list):
            yield from places(value[key])


def another_value(folder: Path, rng: random.Random) -> None:
    file = rng.choice(jsons(folder))
    content = json.loads(file.read_text())
    container, key = rng.choice([*places(content)])
    how = rng.randrange(4)
    if how == 0 and isinstance(container, dict):
        del container[key]
    elif how == 1 and isinstance(container, dict):
        container[f"{key}_"] = container.pop(key)
    else:
        container[key] = rng.choice(VALUES)
    file.write_text(json.dumps(content))


def another_text(folder: Path, rng: random.Random) -> None:
    file = rng.choice(jsons(folder))
    text = file.read_text()
    at = rng.randrange(len(text))
    changed = (
        text[:at],
        text[:at] + chr(rng.randrange(0x250)) + text[at + 1 :],
        text.replace("{", '{"model_type": "tdc", "model_type": "x", ', 1),
        "[" * 100_000,
        "[]",
        "null",
        '"x"',
        "",
        text + text,
    )
    file.write_text(rng.choice(changed), encoding=rng.choice(["utf-8", "utf-16"]))


# ---------------------------------------------------------------- weights


def weights(folder: Path) -> list[Path]:
    kinds = (".safetensors", ".bin", ".pt")
    return [f for f in sorted(folder.rglob("*")) if f.suffix in kinds and f.is_file()]


def safe(folder: Path) -> list[Path]:
    files = weights(folder)
    return [f for f in files if f.suffix == ".safetensors"] or files


def flipped(folder: Path, rng: random.Random) -> None:
    file = rng.choice(weights(folder))
    content = bytearray(file.read_bytes())
    end = 8 + int.from_bytes(content[:8], "little") if file.suffix == ".safetensors" else 4000
    for _ in range(rng.choice((1, 1, 3, 50))):
        content[rng.randrange(min(end, len(content)))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def cut_off(folder: Path, rng: random.Random) -> None:
    file = rng.choice(weights(folder))
    os.truncate(file, rng.choice((0, 4, 8, 100, rng.randrange(file.stat().st_size))))


def grown(folder: Path, rng: random.Random) -> None:
    file = rng.choice(weights(folder))
    with file.open("ab") as out:
        out.write(bytes(rng.choice((1, 8, 4096))))


def header_length(folder: Path, rng: random.Random) -> None:
    file = rng.choice(safe(folder))
    length = rng.choice((0, 1, 2**31, 2**40, 2**63, 2**64 - 1))
    file.write_bytes(struct.pack("<Q", length) + file.read_bytes()[8:])


def header(folder: Path, rng: random.Random) -> None:
    """Offsets, shapes and types that say something else."""
    file = rng.choice(safe(folder))
    content = file.read_bytes()
    size = int.from_bytes(content[:8], "little")
    if file.suffix != ".safetensors":
        return
    table = json.loads(content[8 : 8 + size])
    entry = table[rng.choice([name for name in table if name != "__metadata__"])]
    key = rng.choice(list(entry))
    entry[key] = rng.choice([*VALUES, [0, 2**62], [8, 4], [-4, 4], "I8", "F8_E4M3", "F64"])
    text = json.dumps(table).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])


def other_tensors(folder: Path, rng: random.Random) -> None:
    file = rng.choice(weights(folder))
    if file.suffix == ".safetensors":
        whole: Any = load_file(file)
    else:
        whole = torch.load(file, weights_only=True)
    state = whole.get("model", whole)
    name = rng.choice(sorted(n for n in state if isinstance(state[n], torch.Tensor)))
    x = state.pop(name)
    made: list[Any] = [
        *(x.long(), x.bool(), x.double(), x.half(), x.flatten(), x[:0], x[None], x.repeat(2)),
        *(x * float("nan"), x * float("inf"), torch.zeros(()), torch.zeros(3, 1, 4)),
    ]
    how = rng.randrange(len(made) + 3)
    if how < len(made):
        state[name] = made[how].clone().contiguous()
    elif how == len(made):
        state[name + "_"] = x
    elif how == len(made) + 1:
        state |= {name: x, "extra.weight": torch.zeros(2)}
    if file.suffix == ".safetensors":
        save_file(state, file, metadata={"format": "pt"})
    else:
        torch.save(whole, file)


def other_pickles(folder: Path, rng: random.Random) -> None:
    trace = folder.parent / "ran"
    file = rng.choice(weights(folder))
    if file.suffix == ".safetensors":
        file.unlink()
        file = file.with_name("pytorch_model.bin")
    things: list[Any] = [Code(trace), {"x": Code(trace)}, [1], {"x": 1}, {1: torch.zeros(1)}, {}]
    things += [{"cfg": {}, "model": Code(trace)}, {"cfg": 1, "model": {}}, {"cfg": {}, "model": 1}]
    how = rng.randrange(3)
    if how == 0:
        file.write_bytes(pickle.dumps(rng.choice(things)))
    else:
        torch.save(rng.choice(things), file)
    if how == 2:
        deflated(file)


def deflated(file: Path) -> None:
    """The same file, compressed; and 4 MB of zeros where its pickle was."""
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, bytes(4 * 2**20) if name.endswith("data.pkl") else content)


# ---------------------------------------------------------------- folders


def index(folder: Path, rng: random.Random) -> None:
    """Two shards and an index that is wrong in one entry."""
    file = folder / "model.safetensors"
    if not file.is_file():
        return
    state, names = load_file(file), ["model-00001-of-00002.safetensors"]
    names.append(names[0].replace("00001-of", "00002-of"))
    half = sorted(state)[::2]
    parts = [{n: x for n, x in state.items() if (n in half) == first} for first in (True, False)]
    for name, part in zip(names, parts, strict=True):
        save_file(part, folder / name, metadata={"format": "pt"})
    shutil.copy(file, folder.parent / "outside.safetensors")
    file.unlink()
    table: Any = {n: names[n not in half] for n in state}
    wrong = ["../outside.safetensors", str(folder.parent / "outside.safetensors"), "/dev/zero"]
    wrong += ["no.safetensors", *names, f"./{names[0]}", f"x/../{names[0]}", *VALUES]
    table[rng.choice(half)] = rng.choice(wrong)
    content = rng.choice([{"weight_map": table, "metadata": {}}] * 5 + [{}, [], {"weight_map": 1}])
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))
    if rng.random() < 0.2:
        (folder / rng.choice(names)).unlink()


def other_files(folder: Path, rng: random.Random) -> None:
    file = rng.choice([f for f in sorted(folder.rglob("*")) if f.is_file()])
    copy = file.with_name(f"copy-{file.name}")
    how = rng.randrange(8)
    if how == 7:
        shutil.copy(file, copy)
        return
    file.rename(copy)
    if how == 0:
        file.mkdir()
    elif how == 1:
        file.symlink_to(file.name)
    elif how == 2:
        file.symlink_to("/dev/zero")
    elif how == 3:
        os.mkfifo(file)
    elif how == 4:
        file.touch()
    elif how == 5:
        copy.rename(folder.parent / file.name)
        file.symlink_to(folder.parent / file.name)  # as the hub's cache does: right
    if how != 5:
        copy.unlink()


DAMAGES: list[Damage] = [another_value] * 4 + [
    *(another_text, flipped, cut_off, grown, header_length, header, header, other_tensors),
    *(other_tensors, other_pickles, index, index, other_files, other_files),
]


# ---------------------------------------------------------------- the result


def damaged(source: Path, place: Path, number: int) -> tuple[Path, str]:
    """A copy of ``source`` below ``place`` with one or two damages."""
    rng = random.Random(number)
    folder = place / "in"
    shutil.copytree(source, folder)
    chosen = rng.choices(DAMAGES, k=rng.choice((1, 1, 1, 2)))
    for damage in chosen:
        try:
            damage(folder, rng)
        except (OSError, ValueError, RuntimeError, pickle.UnpicklingError, AttributeError):
            continue  # the first damage left nothing for the second
        except Exception as error:
            if "afetensor" not in type(error).__name__ and not isinstance(error, LookupError):
                raise
    return folder, "+".join(damage.__name__ for damage in chosen)


def outcome(what: str, folder: Path) -> str:
    """ "whole", or the one line that was said. Anything else is raised."""
    out = folder.parent / "out"
    try:
        if what == "load":
            load_model(folder, "cpu")
        else:
            outside = {name: folder / name for name in ("siglip", "dinov2", "beats.pt")}
            parts = {n.split(".")[0]: str(p) for n, p in outside.items() if os.path.lexists(p)}
            convert_release(folder, out, **parts)  # type: ignore[arg-type]
    except InputError as error:
        message = str(error)
        assert "\n" not in message and 20 < len(message) < 3000, message
        assert not out.exists(), "half an output folder"
    else:
        message = "whole"
        assert what == "load" or (out / "processor_config.json").exists()
    left = {path.name for path in folder.parent.iterdir()}
    assert not {n for n in left if n == "ran" or n.startswith(".out")}, f"left behind: {left}"
    return message


def main(what: str, source: str, first: str, count: str) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (12 * 2**30, 12 * 2**30))
    for number in range(int(first), int(first) + int(count)):
        place = Path(source).parent / f"case-{number}"
        place.mkdir()
        folder, name = damaged(Path(source), place, number)
        began = time.monotonic()
        print(json.dumps({"began": number, "damage": name}), file=sys.stderr, flush=True)
        try:
            found = outcome(what, folder)
        except BaseException as error:
            found = f"{type(error).__name__}: {str(error)[:500]}"
            print(json.dumps({"number": number, "damage": name, "found": found}), flush=True)
        seconds = time.monotonic() - began
        if seconds > 20:
            print(json.dumps({"number": number, "damage": name, "seconds": seconds}), flush=True)
        if os.environ.get("DAMAGE_VERBOSE"):
            print(f"{number} {name} {seconds:.1f}s {found[:160]}", file=sys.stderr, flush=True)
        shutil.rmtree(place)


if __name__ == "__main__":
    main(*sys.argv[1:])
