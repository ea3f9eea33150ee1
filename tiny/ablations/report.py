# SPDX-License-Identifier: Apache-2.0
"""Tables and plots of the ablations from existing results; nothing is run."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tdc.cli.terminal import count
from tdc.errors import InputError
from tdc.files import whole_file

from .measures import NEEDS, SETS
from .sweep import RESULT, Variant
from .table import ABLATIONS, Ablation, Setting

NOT_RUN = "not run"
DPI = 80
COLORS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7")  # color-blind safe
Result = Mapping[str, Any]
Read = Callable[[Result], float | None]


def read(out: Path) -> dict[tuple[str, str], list[Result]]:
    """Results by (ablation, setting), where there are any, in the order of seeds."""
    found: dict[tuple[str, str], list[Result]] = {}
    for ablation in ABLATIONS.values():
        for setting in ablation.settings:
            folder = Variant(ablation, setting, 0).folder(out).parent
            there = folder.glob(f"seed-*/{RESULT}")
            paths = sorted(there, key=lambda p: int(p.parent.name.rpartition("-")[2]))
            if paths:
                found[ablation.name, setting.name] = [json.loads(p.read_text()) for p in paths]
    return found


def mean_and_spread(values: Sequence[float | None], digits: int = 2) -> str:
    """``0.61 ± 0.02``: the mean over seeds, and half of their range where there are several."""
    known = [value for value in values if value is not None]
    if not known:
        return NOT_RUN
    text = f"{sum(known) / len(known):.{digits}f}"
    return text + (f" ± {(max(known) - min(known)) / 2:.{digits}f}" if len(known) > 1 else "")


def _right(kind: str) -> Read:
    return lambda result: result["sets"][kind]["right"]


def _needing(need: str, share: str = "right") -> Read:
    """Share over all clips but the long ones; over those if there are no others."""

    def value(result: Result) -> float | None:
        sets = result["sets"]
        found = [sets[kind]["needs"][need] for kind in sets if kind != "long" or len(sets) == 1]
        known = [part for part in found if part[share] is not None]
        asked = sum(part["questions"] for part in known)
        return sum(part[share] * part["questions"] for part in known) / asked if asked else None

    return value


def _measure(kind: str, name: str) -> Read:
    return lambda result: result["sets"][kind][name]


def _look_ups(result: Result) -> float:
    return result["look_ups"]


def columns(ablation: Ablation) -> list[tuple[str, Read, int]]:
    """Columns: heading, reader of a result, digits."""
    needs = [(f"need {need}", _needing(need), 2) for need in NEEDS]
    if not ablation.trains:
        return [("long", _right("long"), 2), *needs, ("seconds", _measure("long", "seconds"), 2)]
    return [
        *((kind, _right(kind), 2) for kind in SETS),
        *needs,
        ("tokens", _measure("standard", "tokens"), 0),
        ("cuts F1", _measure("standard", "cuts_f1"), 2),
        ("look-ups", _look_ups, 2),
    ]


def table(ablation: Ablation, found: Mapping[tuple[str, str], list[Result]]) -> str:
    """Markdown table: a row per setting, and one of the best constant answers."""
    heads = columns(ablation)
    rows = [[ablation.name, *(head for head, _, _ in heads), "seeds"]]
    rows.append(["---", *["---:"] * (len(heads) + 1)])
    for setting in ablation.settings:
        results = found.get((ablation.name, setting.name), [])
        cells = [mean_and_spread([value(r) for r in results], digits) for _, value, digits in heads]
        rows.append([_label(setting), *cells, str(len(results))])
    some = next((found[k] for k in found if k[0] == ablation.name), None)
    if some is not None:
        rows.append(["best constant", *_constants(ablation, some), ""])
    text = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"{text}\n\n{conditions(ablation, found)}".rstrip()


def _label(setting: Setting) -> str:
    reason = setting.lacking()
    return f"{setting.name} ({reason})" if reason else setting.name


def _constants(ablation: Ablation, results: Sequence[Result]) -> list[str]:
    kinds = SETS if ablation.trains else ("long",)
    cells = [mean_and_spread([r["sets"][kind]["constant"] for r in results]) for kind in kinds]
    needs = [mean_and_spread([_needing(need, "constant")(r) for r in results]) for need in NEEDS]
    return [*cells, *needs, *[""] * (len(columns(ablation)) - len(cells) - len(needs))]


def conditions(ablation: Ablation, found: Mapping[tuple[str, str], list[Result]]) -> str:
    """A line on the conditions: examples, clips, machine, versions, training time."""
    results = [r for key, group in found.items() if key[0] == ablation.name for r in group]
    if not results:
        return ""
    first = results[0]
    asked = f"{first['clips']} clips of each kind, {first['questions']} questions each"
    trained = f"{first['examples']:,} examples, batches of {first['batch']}; "
    where = sorted({_machine(r) for r in results})
    minutes = [r["training_seconds"] / 60 for r in results if r["training_seconds"] is not None]
    time = f" Training: {min(minutes):.1f} to {max(minutes):.1f} min." if minutes else ""
    versions = ", ".join(sorted({r["torch"] for r in results}))
    start = trained if ablation.trains else ""
    return f"{start}{asked}; {'; '.join(where)}; torch {versions}.{time}"


def _machine(result: Result) -> str:
    return f"{count(result['threads'], 'thread')}, {result['machine']}"


# --- pictures ------------------------------------------------------------------------------------


def picture(
    ablation: Ablation, found: Mapping[tuple[str, str], list[Result]], folder: Path
) -> Path | None:
    """Plot of right answers per setting, a line per kind of clip; None without results."""
    settings = [s for s in ablation.settings if (ablation.name, s.name) in found]
    if not settings:
        return None
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    groups = [found[ablation.name, s.name] for s in settings]
    figure, axis = plt.subplots(figsize=(6.5, 3.8))
    kinds = SETS if ablation.trains else ("long",)
    for color, kind in zip(COLORS, kinds, strict=False):
        _curve(axis, groups, _right(kind), kind, color)
    if ablation.trains:
        _curve(axis, groups, _look_ups, "look-ups", "#999999")
    axis.set_xticks(range(len(settings)), [s.name for s in settings])
    axis.set_xlabel(ablation.term)
    axis.set_ylabel("right answers")
    axis.legend(fontsize=7, loc="lower left", bbox_to_anchor=(0, 1), ncols=6, frameon=False)
    if not ablation.trains:
        clock = axis.twinx()
        _curve(clock, groups, _measure("long", "seconds"), "seconds an answer", "#999999")
        clock.set_ylabel("seconds an answer (grey)")
        clock.set_ylim(bottom=0)
    figure.tight_layout()
    path = _save(figure, folder / f"{ablation.name}.png")
    plt.close(figure)
    return path


def _curve(axis: Any, groups: Sequence[list[Result]], value: Read, name: str, color: str) -> None:
    points = [[v for v in map(value, group) if v is not None] for group in groups]
    there = [(place, group) for place, group in enumerate(points) if group]
    means = [sum(group) / len(group) for _, group in there]
    below = [mean - min(group) for mean, (_, group) in zip(means, there, strict=True)]
    above = [max(group) - mean for mean, (_, group) in zip(means, there, strict=True)]
    places = [place for place, _ in there]
    axis.errorbar(
        places, means, yerr=[below, above], marker="o", capsize=3, color=color, label=name
    )


def _save(figure: Any, path: Path) -> Path:
    """Save as a palette PNG: half the size, no date or version inside."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = io.BytesIO()
    figure.savefig(pixels, dpi=DPI)
    flat = Image.open(pixels).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE)
    with whole_file(path) as part:
        flat.save(part, optimize=True)
    return path


# --- the report ----------------------------------------------------------------------------------


def report(out: Path, names: Sequence[Ablation]) -> list[Path]:
    """Write ``report/ablations.md`` and its plots into ``out``; returns the paths."""
    found = read(out)
    folder = out / "report"
    folder.mkdir(parents=True, exist_ok=True)
    pictures = [picture(ablation, found, folder) for ablation in names]
    parts = ["# Ablations"]
    for ablation, path in zip(names, pictures, strict=True):
        parts.append(f"## {ablation.name}\n\n{ablation.term}. Changed: {ablation.what}.")
        parts.append(_block(ablation, found, path, ""))
    with whole_file(folder / "ablations.md") as part:
        part.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return [folder / "ablations.md", *(path for path in pictures if path)]


def fill_page(out: Path, page: Path, names: Sequence[Ablation]) -> list[Path]:
    """Fill the tables between the markers of a page, with plots in a folder beside it.

    Raises:
        InputError: no such page, or one without a marker.
    """
    try:
        text = page.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read {page}: {error.strerror}") from None
    for ablation in names:
        _between(text, ablation, page)  # check all markers before a plot is written
    found = read(out)
    written = [page]
    for ablation in names:
        path = picture(ablation, found, page.parent / page.stem)
        start, stop = _between(text, ablation, page)
        text = f"{text[:start]}\n\n{_block(ablation, found, path, page.stem)}\n\n{text[stop:]}"
        written += [path] if path else []
    with whole_file(page) as part:
        part.write_text(text, encoding="utf-8")
    return written


def _between(text: str, ablation: Ablation, page: Path) -> tuple[int, int]:
    marks = f"<!-- ablation: {ablation.name} -->", f"<!-- end of {ablation.name} -->"
    start, stop = text.find(marks[0]), text.find(marks[1])
    if not 0 <= start < stop:
        raise InputError(f"{page} lacks a place for {ablation.name}: {marks[0]} … {marks[1]}")
    return start + len(marks[0]), stop


def _block(
    ablation: Ablation,
    found: Mapping[tuple[str, str], list[Result]],
    path: Path | None,
    folder: str,
) -> str:
    text = table(ablation, found)
    if path is None:
        return text
    return f"{text}\n\n![{ablation.name}]({folder + '/' if folder else ''}{path.name})"
