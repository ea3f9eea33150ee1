# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: RUF001 (typographic signs in the tables)
"""The results file, and what is made of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench.report import plots, results, table

SIZES = [("paper", "forward"), ("paper", "forward+backward"), ("small", "forward")]


def rows(op: str, release: float = 30.0, ours: float = 2.0, gpu: str = "") -> list[dict]:
    """Three cases in both dtypes: ours, eager and the authors', whose bf16 is left out."""
    found = []
    for case, direction in SIZES:
        for dtype in results.DTYPES:
            times = {"release": release, "eager": 6.0, "native": ours}
            for provider, ms in times.items():
                row = dict.fromkeys(results.COLUMNS, "") | {
                    "op": op,
                    "case": case,
                    "dtype": dtype,
                    "direction": direction,
                    "provider": provider,
                    "automatic": "yes" if provider == "native" else "",
                    "bytes": 1000,
                    "flops": 500,
                    "gb_s": 3,
                    "read_gb_s": 12,
                    "copy_gb_s": 10,
                    "matmul_gflop_s": 100,
                    "gpu": gpu,
                    "load": 0.1,
                    "threads": 2,
                    "machine": "cpu",
                    "commit": "abc",
                    "date": "2026-01-01",
                }
                if (provider, dtype) == ("release", "bfloat16"):
                    found.append(row | {"note": "too large"})
                    continue
                share = f"{1.8 / ms:.5g}"
                found.append(
                    row | {"median_ms": ms, "p20_ms": ms * 0.9, "p80_ms": ms * 1.2, "share": share}
                )
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for op in ("frame_similarity", "pack_context"):
        results.replace(tmp_path / "some-cpu.csv", op, rows(op))
    return tmp_path


def test_an_op_replaces_its_rows_alone(folder: Path) -> None:
    path = folder / "some-cpu.csv"
    before = results.read(path)
    assert [row["op"] for row in before] == ["frame_similarity"] * 18 + ["pack_context"] * 18
    results.replace(path, "frame_similarity", rows("frame_similarity", ours=1.0)[:3])
    after = results.read(path)
    assert [row for row in after if row["op"] == "pack_context"] == before[18:]
    ours = [row for row in after if row["op"] == "frame_similarity"]
    assert [row["median_ms"] for row in ours] == ["30.0", "6.0", "1.0"]
    assert list(after[0]) == list(results.COLUMNS)
    assert path.stat().st_mode & 0o777 == 0o644


def test_the_file_is_written_whole_or_not_at_all(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "some-cpu.csv"
    before = path.read_text()

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        results.replace(path, "frame_similarity", rows("frame_similarity", ours=1.0))
    monkeypatch.undo()
    assert path.read_text() == before
    assert os.listdir(folder) == ["some-cpu.csv"]


def test_an_unknown_column_is_an_error_and_changes_nothing(folder: Path) -> None:
    path = folder / "some-cpu.csv"
    before = path.read_text()
    with pytest.raises(ValueError, match="surprise"):
        results.replace(path, "frame_similarity", [{"op": "frame_similarity", "surprise": 1}])
    assert path.read_text() == before


def test_targets_and_ratios(folder: Path) -> None:
    files = results.read_all(folder)
    lines = table.targets(files).splitlines()
    assert "GPU, float32" in lines[0]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]
    found = {(cell[0], cell[1].split()[1]): cell[2:] for cell in cells[:5]}
    nothing = ["not measured"] * 2
    assert found["`frame_similarity`", "10×"] == ["15×", "not measured", *nothing]
    assert found["`frame_similarity`", "80"] == ["90%", "90%", *nothing]
    assert found["`segment_scenes`", "10×"] == nothing * 2
    text = table.ratios(files["some-cpu"])
    first = "| `frame_similarity` | paper | float32 | forward | 2 ms | native | 15 | 3 | – |"
    assert text.splitlines()[2].startswith(first)
    assert "bfloat16 forward, release: too large" in table.skipped(files["some-cpu"])


def test_a_missed_target_says_so(tmp_path: Path) -> None:
    results.replace(
        tmp_path / "cpu.csv", "frame_similarity", rows("frame_similarity", release=10, ours=8)
    )
    text = table.targets(results.read_all(tmp_path))
    assert "| 1.25× (missed) |" in text and "| 0.75× (missed) |" in text


def test_gpu_rows_fill_the_gpu_columns(folder: Path) -> None:
    results.replace(folder / "a-gpu.csv", "frame_similarity", rows("frame_similarity", gpu="A GPU"))
    files = results.read_all(folder)
    assert list(files) == ["some-cpu", "a-gpu"]
    assert table.targets(files).splitlines()[0].endswith("| a-gpu, float32 | a-gpu, bfloat16 |")


def test_the_table_goes_between_the_markers() -> None:
    page = f"before\n{table.START}\nold\n{table.STOP}\nafter\n"
    new = f"before\n{table.START}\n\nnew\n\n{table.STOP}\nafter\n"
    assert table.insert(page, "new") == new == table.insert(new, "new")
    with pytest.raises(ValueError, match="markers"):
        table.insert("no markers", "new")
    assert table.START in table.PAGE.read_text() and table.STOP in table.PAGE.read_text()


def test_plots_come_from_the_csv_alone(folder: Path) -> None:
    out = folder / "pictures"
    plots.main(["--results", str(folder), "--out", str(out)])
    names = [f"some-cpu-{what}.png" for what in ("frame_similarity", "pack_context", "roofline")]
    assert sorted(p.name for p in out.iterdir()) == names
    assert all(1000 < p.stat().st_size < 100_000 for p in out.iterdir())


def test_bars_are_speed_ups_over_the_authors(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: figures.append(figure))
    plots.speedups("cpu", results.read_all(folder)["some-cpu"], folder)
    float32, bfloat16 = figures[0].axes[:2]
    assert [bar.get_width() for bar in float32.patches] == [1, 5, 15]
    assert [bar.get_width() for bar in bfloat16.patches] == [1, 3]  # over eager, and it says so
    assert bfloat16.get_title() == "paper, bfloat16, forward; 1 = eager"
    assert [t.get_text() for t in float32.get_yticklabels()][2] == "native (automatic)"


def test_no_results_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as exit:
        plots.main(["--results", str(tmp_path)])
    assert exit.value.code == 1
    assert capsys.readouterr().err.count("\n") == 1
