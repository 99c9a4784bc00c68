"""The board of results and the README's table: figures, what is unlike the paper, what was not run."""

import shutil

import pytest
from conftest import ROOT
from made_results import cells, made_row, put

from paper import published
from paper.__main__ import main
from paper.board import BEGIN, END, accuracy, board, short_table, unlike
from paper.records import read_results


def shown(folder, rows, **kwargs):
    put(folder, rows, **kwargs)
    return board(read_results(folder))


def test_a_row_has_mean_and_standard_error_over_seeds_and_runs_beside_the_papers_figure(tmp_path):
    row = made_row()
    mean, error = accuracy(row)
    assert mean == pytest.approx(99.3)
    assert error == pytest.approx(0.2)  # of the seeds' 99.1 and 99.5, not of four runs as if all were independent
    line = cells(shown(tmp_path, [row]), "NoProp-DT", "paper", "one-hot")
    assert line[3:8] == ["-", "99.47", "99.30 +- 0.20", "100.20", "99.80"] and line[14] == "2"


def test_other_readouts_than_the_papers_have_columns_of_their_own(tmp_path):
    old, new = made_row(), made_row(embedding="dim20")
    for run in new["runs"]:
        run |= {"ensemble": 99.9, "block_1": 98.1}
    text = shown(tmp_path, [old, new])
    assert "| ensemble | mean-z | 1 step | block 1 |" in text
    assert cells(text, "NoProp-DT", "paper", "one-hot")[8:12] == ["-", "-", "-", "-"]
    assert cells(text, "NoProp-DT", "paper", "dim20")[8:12] == ["99.90", "-", "-", "98.10"]


def test_what_the_paper_has_and_was_not_run_is_listed(tmp_path):
    text = shown(tmp_path, [made_row()])
    left = next(line for line in text.splitlines() if line.startswith("Not run"))
    assert left.count(", ") == len(published.COMBINATIONS) - 2
    assert "NoProp-FM prototype (98.52)" in left and "NoProp-DT one-hot" not in left


def test_what_is_unlike_the_paper_stands_in_the_row(tmp_path):
    row = made_row(per_run=[(50.0, 51.0)] * 3, differences={"epochs": [20, 100], "lr_schedule": ["cosine", "constant"]})
    text = shown(tmp_path, [row], dataset="folder", paper_dataset="cifar10")
    assert "## CIFAR-10" in text and "## MNIST" not in text
    line = cells(text, "NoProp-DT", "paper", "one-hot")
    assert line[3:6] == ["epochs 20, lr-schedule cosine, 60,000 of 50,000 images", "79.25", "50.50 +- 0.00"]
    assert unlike({"paper_dataset": "mnist"}, made_row()) == "-"


def test_the_readme_has_the_best_row_of_each_method(tmp_path):
    rows = [made_row(), made_row(per_run=((99.5, 99.7),), embedding="dim20"), made_row(method="fm", embedding="dim20")]
    put(tmp_path, rows)
    text = short_table(read_results(tmp_path))
    assert cells(text, "NoProp-DT") == ["NoProp-DT", "99.60 +- 0.10 (99.49)"]
    assert len(text.splitlines()) == 2 + 2


def test_records_are_dated_and_the_newest_comes_first(tmp_path):
    rows = [made_row(), made_row(method="fm")]
    rows[1]["runs"] = rows[1]["runs"][:1]
    rows[1]["runs"][0]["date"] = "2026-03-01T00:00:00+00:00"
    text = shown(tmp_path, rows).partition("## Records")[2]
    assert [line[2:12] for line in text.splitlines()[6:]] == ["2026-03-01", "2026-01-02"]


def test_report_is_idempotent_and_follows_the_figures(tmp_path):
    results, readme = tmp_path / "results", tmp_path / "README.md"
    old = f"# Title\n\n{BEGIN}\nold\n{END}\n\n## Start\n"
    readme.write_text(old)
    report = ["report", "--results", str(results), "--readme", str(readme)]
    assert main(report) == 2 and readme.read_text() == old  # nothing was run
    put(results, [made_row()])
    assert main(report) == 0
    first = readme.read_text()
    assert main(report) == 0 and readme.read_text() == first
    assert first.startswith("# Title\n") and first.endswith("## Start\n") and "99.30 +- 0.20" in first
    put(results, [made_row(per_run=((99.0, 99.2), (99.4, 99.5)))])
    assert main(report) == 0 and "99.28 +- 0.18" in readme.read_text()
    readme.write_text("no markers")
    assert main(report) == 2


def test_board_and_readme_agree_with_the_results(tmp_path):
    readme, results = tmp_path / "README.md", tmp_path / "results"
    shutil.copy(ROOT / "README.md", readme)
    shutil.copytree(ROOT / "results", results)
    assert main(["report", "--results", str(results), "--readme", str(readme)]) == 0
    assert readme.read_text() == (ROOT / "README.md").read_text()
    assert (results / "README.md").read_text() == (ROOT / "results" / "README.md").read_text()
    assert len(short_table(read_results(results)).splitlines()) <= 2 + 12
