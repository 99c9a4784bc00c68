"""The README's section and the tables of results/: figures, budgets, notes, what was not run."""

import json
import shutil

import pytest
from conftest import ROOT
from made_results import cells, made_row, put

from readout import mean_and_error
from reproduce import main
from reproduction import paper
from reproduction.report import BEGIN, END, accuracy, results_section, write_readme


def test_mean_and_standard_error_are_over_seeds_and_runs(tmp_path):
    row = made_row()
    mean, error, count = accuracy(row)
    assert mean == pytest.approx(99.3) and count == 4
    assert error == pytest.approx(((0.09 + 0.01 + 0.01 + 0.09) / 3 / 4) ** 0.5)
    assert mean_and_error([3.0]) == (3.0, 0.0)
    put(tmp_path, [row])
    text = results_section(tmp_path, "results")
    line = ["NoProp-DT", "one-hot", "100", "99.47", "99.30 +- 0.13 (4 runs)", "-0.17", "100.20 +- 0.50"]
    assert cells(text, "NoProp-DT", "one-hot") == [*line, "99.80 +- 0.00", "99.90 +- 0.00"]
    assert "Unlike the paper, in every row: seeds 2 instead of 3.\n" in text


def test_what_the_paper_has_and_was_not_run_is_listed(tmp_path):
    put(tmp_path, [made_row()])
    text = results_section(tmp_path, "results")
    assert text.count("| not run |") == len(paper.COMBINATIONS) - 1
    for (method, embedding), value in paper.TABLE1["mnist"].items():
        if (method, embedding) != ("dt", "one-hot"):
            title = {"backprop": "back-propagation", "adjoint": "neural ODE (adjoint)"}.get(
                method, f"NoProp-{method.upper()}"
            )
            assert cells(text, title, embedding)[2:5] == ["-", f"{value:.2f}", "not run"]


def test_images_of_the_paper_stand_in_the_budget_of_a_folder(tmp_path):
    row = made_row(per_run=[(50.0, 51.0)] * 3)
    put(tmp_path, [row], dataset="folder", paper_dataset="cifar10")
    text = results_section(tmp_path, "results")
    assert "on images of CIFAR-10 (Table 1" in text
    assert "training images 60,000 instead of 50,000" in text and "test images" not in cells(
        text, "NoProp-DT", "one-hot"
    )
    assert cells(text, "NoProp-DT", "one-hot")[3:6] == ["79.25", "50.50 +- 0.22 (6 runs)", "-28.75"]


def test_notes_are_shown_beside_their_row(tmp_path):
    put(tmp_path, [made_row(), made_row(differences={"epochs": [20, 100]})])
    notes = {"dt one-hot": "few seeds", "dt one-hot, epochs 20 instead of 100, seeds 2 instead of 3": "few epochs"}
    (tmp_path / "notes.json").write_text(json.dumps({"table1_mnist": notes}))
    text = results_section(tmp_path, "results")
    assert [cells(text, "NoProp-DT", "one-hot", epochs)[-1] for epochs in ("100", "20")] == ["1", "2"]
    assert "\n1. dt one-hot: few seeds.\n2. dt one-hot (epochs 20 instead of 100): few epochs.\n" in text


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
    assert first.startswith("# Title\n") and first.endswith("## Start\n") and "99.30 +- 0.13" in first
    put(results, [made_row(per_run=((99.0, 99.2), (99.4, 99.5)))])
    assert main(report) == 0 and "99.28 +- 0.11" in readme.read_text()
    readme.write_text("no markers")
    assert main(report) == 2


def test_a_readme_that_could_not_link_to_the_results_is_left_alone(tmp_path, capsys):
    put(tmp_path / "results", [made_row()])
    (tmp_path / "elsewhere").mkdir()
    for place, code in (("elsewhere", 2), (".", 0)):
        readme = tmp_path / place / "README.md"
        readme.write_text(f"{BEGIN}\n{END}\n")
        assert main(["report", "--results", str(tmp_path / "results"), "--readme", str(readme)]) == code
        assert (BEGIN + "\n" + END in readme.read_text()) == (code == 2)
    assert "--readme" in capsys.readouterr().err


def test_rows_of_other_rates_are_told_apart(tmp_path):
    put(tmp_path, [made_row(), made_row(differences={"lr_schedule": ["cosine", "constant"]})])
    text = results_section(tmp_path, "results")
    rates = [line.split("|")[4].strip() for line in text.splitlines() if line.startswith("| NoProp-DT | one-hot")]
    assert rates == ["constant", "cosine"]


def test_the_readme_shows_one_table_and_one_figure_and_links_the_rest(tmp_path):
    for what in ("table1", "table2", "figure2", "figure3"):
        rows = [made_row()] if what != "table2" else []
        put(tmp_path, rows, what=what)
        put(tmp_path, rows, what=what, dataset="folder", paper_dataset="cifar10")
    text = results_section(tmp_path, "results")
    assert text.count("| method |") == text.count("![") == 1
    assert text.index("on MNIST (Table 1") < text.index("](results/figure3_mnist.png)")
    links = [line for line in text.splitlines() if line.startswith("- [")]
    assert [link.rpartition("/")[2][:-4] for link in links] == [
        "table1_folder",
        "figure3_folder",
        "table2_mnist",
        "table2_folder",
        "figure2_mnist",
        "figure2_folder",
    ]


def test_the_readme_agrees_with_the_results(tmp_path):
    readme, results = tmp_path / "README.md", tmp_path / "results"
    shutil.copy(ROOT / "README.md", readme)
    shutil.copytree(ROOT / "results", results)
    assert main(["report", "--results", str(results), "--readme", str(readme)]) == 0
    assert readme.read_text() == (ROOT / "README.md").read_text()
    for path in results.glob("*.md"):
        assert path.read_text() == (ROOT / "results" / path.name).read_text()


def test_write_readme_changes_nothing_but_the_section(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"a\n{BEGIN}\n{END}\nb {END[:5]}\n")
    put(tmp_path / "results", [made_row()])
    write_readme(readme, tmp_path / "results")
    before, _, rest = readme.read_text().partition(BEGIN)
    assert before == "a\n" and rest.partition(END)[2] == f"\nb {END[:5]}\n"
