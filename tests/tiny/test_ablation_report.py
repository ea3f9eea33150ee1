# SPDX-License-Identifier: Apache-2.0
"""What ``python -m tiny.ablations`` says: the report of a sweep, its list and its refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tdc.errors import InputError
from tiny.ablations import measures
from tiny.ablations.__main__ import main
from tiny.ablations.report import NOT_RUN, columns, fill_page, mean_and_spread, read, report, table
from tiny.ablations.sweep import RESULT
from tiny.ablations.table import ABLATIONS, BASELINE, chosen

PAGE = Path(__file__).parents[2] / "docs" / "ablations.md"


def test_mean_and_spread():
    assert mean_and_spread([0.5, 0.7, 0.9]) == "0.70 ± 0.20"
    assert mean_and_spread([0.5, None]) == "0.50"
    assert mean_and_spread([]) == mean_and_spread([None]) == NOT_RUN
    assert mean_and_spread([10.2, 12.2], 0) == "11 ± 1"


def share(right: float | None) -> dict:
    return {"questions": 4, "right": right, "constant": 0.25}


def write_result(out: Path, *place: str, right: float) -> None:
    needs = {need: share(right / 2) for need in measures.NEEDS}
    found = {**share(right), "needs": needs, "tokens": 90, "cuts_f1": 1.0, "seconds": 1.5}
    facts = {
        **{"examples": 32, "batch": 8, "clips": 2, "questions": 2, "threads": 1},
        **{"machine": "x86", "torch": "2", "training_seconds": 60.0, "look_ups": 0.7},
    }
    path = out.joinpath(*place, RESULT)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({**facts, "sets": dict.fromkeys(measures.SETS, found)}))


def rows(text: str) -> dict[str, list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: row[1:] for row in cells}


def test_table_of_what_is_there(tmp_path):
    write_result(tmp_path, "tokens", "8", "seed-0", right=0.4)
    write_result(tmp_path, "tokens", "8", "seed-1", right=0.6)
    write_result(tmp_path, *BASELINE, "seed-0", right=0.3)
    found = rows(table(ABLATIONS["tokens"], read(tmp_path)))
    assert found["tokens"][:5] == list(measures.SETS)
    assert found["8"] == ["0.50 ± 0.10"] * 5 + ["0.25 ± 0.05"] * 4 + [
        *("90 ± 0", "1.00 ± 0.00", "0.70 ± 0.00", "2")
    ]
    assert found["4"][0] == "0.30" and found["4"][-1] == "1"  # the baseline, by another name
    assert found["16"] == [NOT_RUN] * 12 + ["0"]
    assert found["best constant"][0] == "0.25"
    assert rows(table(ABLATIONS["depth"], read(tmp_path)))["2"][0] == "0.30"


def test_needs_are_of_all_questions_about_clips_like_those_of_the_training(tmp_path):
    def asked(questions, right):
        needs = {need: {"questions": questions, "right": right} for need in measures.NEEDS}
        return {"right": None, "needs": needs}

    short = {"standard": asked(4, 0.5), "slow": asked(0, None), "motion": asked(12, 1.0)}
    long = {"long": asked(100, 0.25)}
    value = {name: read for name, read, _ in columns(ABLATIONS["tokens"])}["need order"]
    assert value({"sets": {**short, **long}}) == (2 + 12) / 16
    assert value({"sets": long}) == 0.25
    assert value({"sets": {"slow": asked(0, None)}}) is None


def test_report(tmp_path):
    write_result(tmp_path, "lvcot", "3", "seed-0", right=0.4)
    paths = report(tmp_path, chosen(None))
    assert [p.name for p in paths] == ["ablations.md", "lvcot.png"]
    text = paths[0].read_text()
    found = rows(text[text.index("## lvcot") :])
    assert found["3"] == ["0.40", *["0.20"] * 4, "1.50", "1"]
    assert found["10"] == [*[NOT_RUN] * 6, "0"]
    assert "![lvcot](lvcot.png)" in text and "![tokens]" not in text
    assert not list(tmp_path.rglob(".*"))


def test_the_page_has_a_place_for_each_table(tmp_path):
    page = tmp_path / "ablations.md"
    page.write_text(PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    write_result(tmp_path, "static", "off", "seed-0", right=0.125)
    paths = fill_page(tmp_path, page, chosen(None))
    assert paths == [page, tmp_path / "ablations" / "static.png"]
    assert (
        "| off | 0.12 |" in page.read_text()
        and "![static](ablations/static.png)" in page.read_text()
    )
    again = page.read_text()
    fill_page(tmp_path, page, chosen(None))
    assert page.read_text() == again
    page.write_text("# Ablations\n")
    with pytest.raises(InputError, match="lacks a place for tokens"):
        fill_page(tmp_path, page, chosen(None))
    assert page.read_text() == "# Ablations\n"


# --- the command ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--only", "tokns"], "did you mean tokens?"),
        (["--only", "colour", "--report"], "expected tokens, scenes"),
        (["--report"], "expected one that python -m tiny.ablations wrote"),
        (["--page", "x.md"], "--page goes with --report"),
        (["--model", "nowhere"], "no such folder: nowhere"),
    ],
)
def test_refusals(capsys, tmp_path, arguments, says):
    out = tmp_path / "out"
    assert main([str(out), *arguments]) == 2
    caught = capsys.readouterr()
    assert caught.out == "" and caught.err.count("\n") == 1 and says in caught.err
    assert caught.err.startswith("python -m tiny.ablations: ") and not out.exists()


def test_list(capsys, tmp_path):
    write_result(tmp_path, *BASELINE, "seed-0", right=0.3)
    assert main([str(tmp_path), "--list", "--only", "static", "lvcot"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(
        "static_frames=True" in line and "1 of 3 done (the baseline)" in line for line in lines
    )
    assert any("static_frames=False" in line and "0 of 3 done" in line for line in lines)
    assert any("num_segments=10" in line and "0 of 3 done" in line for line in lines)
