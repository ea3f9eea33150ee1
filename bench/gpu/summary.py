# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: RUF001 (typographic signs in the tables)
"""``summary.md`` of ``bench.gpu``: what is in its folder, the most important first.

Everything is read from the files that the steps left behind; whatever is not there is "not
measured".
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..report import results
from ..report.results import DTYPES, PROGRESS, Row, markdown, milliseconds
from ..report.targets import NOTHING, ON_A_GPU, Found
from .steps import Outcome

EVERY = "kernels.md"  # all cases; the summary has those of the paper's size
# As a video goes through them; what else there is follows.
STAGES = (
    *("decode video", "decode audio", "resize frames", "BEATs", "SigLIP", "DINOv2"),
    *("connector", "segmentation", "compressor", "prefill"),
)
TITLE = "# The kernels and the pipeline on a GPU"
REHEARSAL = "# A rehearsal on the CPU, at tiny sizes: no number here means anything"
LAUNCH_OP = "pack_context"


# ---------------------------------------------------------------- what the steps left


class Left(Found):
    """The files of one folder."""

    def __init__(self, rows: Sequence[Row], records: Mapping[str, list[dict[str, Any]]]) -> None:
        super().__init__(rows, records)
        self.launches: dict[str, int] = {}
        self.failed: dict[str, str] = {}
        self.not_reached: list[str] = []


def read(folder: Path) -> Left:
    rows = [row for file in results.read_all(folder).values() for row in file]
    records: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.json")):
        for name, entry in json.loads(path.read_text()).items():
            if isinstance(entry, dict) and "rows" in entry:
                records[name] = entry["rows"]
    found = Left(rows, records)
    path = folder / PROGRESS
    for run in json.loads(path.read_text()).values() if path.exists() else ():
        found.launches.update(run.get("launches", {}))
        found.failed.update(run.get("failed", {}))
        found.not_reached[:] = run.get("not_reached", [])  # the last run has most of the cases
    return found


def write(folder: Path, machine: str, outcomes: Sequence[Outcome], *, rehearsal: bool) -> Path:
    """The file appears whole or not at all."""
    found = read(folder)
    nothing = Left([], {})  # a rehearsal reaches and misses no target
    parts = [
        f"{REHEARSAL if rehearsal else TITLE}\n\n{machine}",
        troubles(outcomes, found),
        "## Targets\n\n" + targets(nothing if rehearsal else found),
        pipelines(found),
        compressors(found),
        kernels(found, every=False),
        "## Steps\n\n" + steps(outcomes),
    ]
    every = kernels(found, every=True)
    if every:
        results.write(folder / EVERY, every + "\n")
    path = folder / "summary.md"
    results.write(path, "\n\n".join(part for part in parts if part) + "\n")
    return path


def troubles(outcomes: Sequence[Outcome], found: Left) -> str:
    """What went wrong or was left out, before any number."""
    lines = [
        f"- **{o.name}: {o.status}**: {o.reason}{_logs(o)}"
        for o in outcomes
        if o.status in ("failed", "timed out")
    ]
    judges = [o for o in outcomes if o.judges and o.status == "not run"]
    lines += [
        f"- **{o.name}: not run**: {o.reason}. The numbers are of untested code." for o in judges
    ]
    lines += [f"- {case}: no numbers: {why}" for case, why in found.failed.items()]
    return "\n".join(lines)


def _logs(outcome: Outcome) -> str:
    return f" ({', '.join(outcome.logs)})" if outcome.logs else ""


# ---------------------------------------------------------------- tables


def targets(found: Left) -> str:
    lines = [["what", "target", *DTYPES], ["---"] * 4]
    for target in ON_A_GPU:
        cells = [target.cell(found, dtype, "reached") for dtype in DTYPES]
        lines.append([target.name, target.words, *cells])
    counts = [found.launches.get(f"{LAUNCH_OP} paper-{d}-forward") for d in DTYPES]
    said = [NOTHING if n is None else f"{n} ({_one(n)})" for n in counts]
    lines.append([f"`{LAUNCH_OP}`", "one launch", *said])
    return markdown(lines)


def _one(launches: int) -> str:
    return "reached" if launches == 1 else "missed"


def pipelines(found: Left) -> str:
    """Per run: seconds of every stage, both ways side by side; the largest model first."""
    runs = [item for item in found.records.items() if item[0].startswith("pipeline")]
    parts = []
    for name, rows in sorted(runs, key=lambda item: -item[1][0]["parameters"]):
        parts.append(f"## {name[0].upper()}{name[1:]}\n\n" + _pipeline(rows))
    return "\n\n".join(parts)


def _pipeline(rows: list[dict[str, Any]]) -> str:
    lines = [["seconds", "ours", "the authors' way", "×"], ["---"] + ["---:"] * 3]
    for row in rows:
        if "note" in row:
            lines.append([row["part"], row["note"], "", ""])
        elif "times" in row:
            times = {who: t["median_s"] for who, t in row["times"].items()}
            cells = [f"{times[w]:.3f}" if w in times else "" for w in ("ours", "release")]
            ratio = row["ratios"].get("release")
            lines.append([row["part"], *cells, "" if ratio is None else f"{ratio:.3g}"])
    staged = {r["part"].removeprefix("stages, "): r for r in rows if "stages_s" in r}
    if len(staged) == 2:
        lines += _stages(staged["ours"], staged["release"])
    facts = rows[0]
    text = (
        f"\n\n{facts['frames']} frames, {facts['prompt_tokens']} prompt tokens, "
        f"{facts['parameters'] / 1e9:.1f} · 10⁹ random weights in {facts['dtype']}; "
        f"prompts of both ways differ by {facts['prompt_error']:.1e}, "
        f"logits by {facts['logit_error']:.1e}, cuts by {facts['cuts_that_differ']}."
    )
    return markdown(lines) + text


def _stages(ours: Mapping[str, Any], release: Mapping[str, Any]) -> list[list[str]]:
    lines, spent = [], ours["stages_s"]
    known = [stage for stage in STAGES if stage in spent]
    for stage in (*known, *(stage for stage in spent if stage not in known)):
        seconds = spent[stage]
        other = release["stages_s"].get(stage)
        ratio = "" if not (other and seconds) else f"{other / seconds:.3g}"
        cells = [f"{seconds:.3f}", "" if other is None else f"{other:.3f}", ratio]
        lines.append([f"… {stage}", *cells])
    lines += [[f"… {stage}", why, why, ""] for stage, why in ours.get("notes", {}).items()]
    pairs = [(r["decoding_tokens_per_s"], r["peak_mb"]) for r in (ours, release)]
    lines.append(["decoding, tokens per second", *(f"{rate:.1f}" for rate, _ in pairs), ""])
    lines.append([f"peak memory, MB ({ours['peak_is']})", *(f"{mb}" for _, mb in pairs), ""])
    return lines


def compressors(found: Left) -> str:
    lines = [["compressor", "ours", "others", "×"], ["---", "---:", "---", "---:"]]
    for name, rows in found.records.items():
        for row in rows if name.startswith("compressor") else ():
            one = f"{row['times']['ours']['median_s']:.4f} s"
            for who, ratio in row["ratios"].items():
                other = f"{who} {row['times'][who]['median_s']:.4f} s"
                lines.append([f"{row['part']}, {row['dtype']}", one, other, f"{ratio:.3g}"])
    return "## Compressor\n\n" + markdown(lines) if len(lines) > 2 else ""


def kernels(found: Left, *, every: bool) -> str:
    """Per case (``every`` or those of the paper's size, forward): the least time that the ceilings
    allow, the time, and their ratio; the peers."""
    head = ["op", "case", "dtype", "direction", "floor, ms", "ours, ms", "ours / floor", "backend"]
    head += ["× authors", "× eager", "× compiled", "× best", "the best"]
    lines = [head, ["---"] * 4 + ["---:"] * 3 + ["---"] + ["---:"] * 4 + ["---"]]
    for key, group in found.groups.items():
        row = results.ours(group)
        usual = key[1] == "paper" and key[3] == "forward"
        if row is None or not (every or usual):
            continue
        one, share = milliseconds(row), float(row["share"])
        floor = [f"{one * share:.4g}", f"{one:.4g}", f"{1 / share:.3g}" if share else ""]
        peers = [results.peer(group, who) for who in ("release", "eager", "compiled", "best")]
        cells = ["" if p is None else f"{milliseconds(p) / one:.3g}" for p in peers]
        best = peers[-1]["provider"] if peers[-1] is not None else ""
        lines.append([f"`{key[0]}`", *key[1:], *floor, row["provider"], *cells, best])
    if len(lines) == 2:
        return ""
    first = next(iter(next(iter(found.groups.values())).values()))
    text = (
        f"\n\nCeilings, measured on this machine: {first['read_gb_s']} GB/s reading, "
        f"{first['copy_gb_s']} GB/s copying. Other sizes and gradients: `{EVERY}`."
    )
    if found.not_reached:
        text += f"\n\nNot reached: {', '.join(found.not_reached)}."
    return "## Kernels\n\n" + markdown(lines) + text


def steps(outcomes: Sequence[Outcome]) -> str:
    lines = [["step", "outcome", "seconds", "", "log"], ["---", "---", "---:", "---", "---"]]
    for o in outcomes:
        seconds = f"{o.seconds:.0f}" if o.logs else ""
        lines.append([o.name, o.status, seconds, o.reason, ", ".join(o.logs)])
    return markdown(lines)
