"""The benchmark suite: results on disk, the page that is made of them, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import REPOSITORY
from typer.testing import CliRunner

from asymvpr_core.bench.report import write_page
from asymvpr_core.bench.results import Aim, BenchmarkResult, Curves, Table, read_result, to_markdown
from asymvpr_core.bench.suite import SUITE, Benchmark, benchmarks_folder, choose, run_benchmark
from asymvpr_core.cli.main import app
from asymvpr_core.errors import EvaluationError

MADE_WITH = {"commit": "abc1234", "processor": "a processor", "cores": 2, "load_average": [0.5, 0.0, 0.0], "versions": {"numpy": "2"}}


def make_result(**changes: object) -> BenchmarkResult:
    values = {
        "name": "search", "title": "Search", "protocol": "One round.", "command": "python benchmarks/search.py", "made_with": MADE_WITH,
        "tables": [Table(title="Times", columns=["index", "ms"], rows=[["flat", "1.5"]])],
        "aims": [
            Aim(what="ours / flat", value=0.25, limit=0.3, at_most=True), Aim(what="recall", value=0.98, limit=0.99, at_most=False),
            Aim(what="through the node", value=None, limit=1.15, at_most=True),
        ],
        "curves": [Curves(title="Time, by size", x="rows", y="ms", series={"flat": [(1000, 1.0), (100, 0.1)]})],
    }  # fmt: skip
    return BenchmarkResult.model_validate(values | changes)


def test_an_aim_is_met_up_to_and_from_its_limit_on():
    assert Aim(what="", value=0.3, limit=0.3, at_most=True).met is True
    assert Aim(what="", value=0.31, limit=0.3, at_most=True).met is False
    assert Aim(what="", value=15.0, limit=15.0, at_most=False).met is True
    assert Aim(what="", value=14.9, limit=15.0, at_most=False).met is False
    assert Aim(what="", value=None, limit=15.0, at_most=False).met is None


def test_the_text_says_what_was_measured_with_what_and_what_was_missed():
    text = to_markdown(make_result())
    for line in (
        "## Search", "    python benchmarks/search.py", "| flat | 1.5 |", "| ours / flat | 0.25 | ≤ 0.3 | yes |",
        "| recall | 0.98 | ≥ 0.99 | **no** |", "| through the node | – | ≤ 1.15 | not measured |",
        "Commit abc1234; a processor, 2 cores, load 0.5 at the end; numpy 2.",
    ):  # fmt: skip
        assert line in text.splitlines()


def test_the_page_has_all_aims_the_remarks_and_links_to_its_plots(tmp_path: Path):
    other = make_result(name="frame", title="Frames", curves=[], aims=[Aim(what="frame", value=1.0, limit=1.05, at_most=True)])
    page = write_page([make_result(), other], tmp_path / "docs" / "performance.md", tmp_path / "docs" / "images", remarks="A remark.")
    text = page.read_text()
    assert "| frame | 1 | ≤ 1.05 | yes | `frame` |" in text and "A remark." in text
    assert text.index("## Aims") < text.index("A remark.") < text.index("## Search") < text.index("## Frames")
    assert "![Time, by size](images/performance_search_time_by_size.png)" in text
    assert (tmp_path / "docs" / "images" / "performance_search_time_by_size.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("content", [None, "not json", "{}", '{"name": "x", "unknown": 1}'])
def test_a_file_that_is_no_result_is_refused_by_name(tmp_path: Path, content: str | None):
    path = tmp_path / "search.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(EvaluationError, match=r"search\.json is no result"):
        read_result(path)


def test_every_benchmark_of_the_suite_is_a_script_that_explains_itself():
    for benchmark in SUITE:
        script = benchmarks_folder() / f"{benchmark.name}.py"
        assert f"python benchmarks/{benchmark.name}.py" in script.read_text(encoding="utf-8"), script
    assert benchmarks_folder() == REPOSITORY / "benchmarks"


def test_names_choose_in_the_order_of_the_suite():
    assert [benchmark.name for benchmark in choose(["loss_step", "encode"])] == ["encode", "loss_step"]
    assert choose([]) == list(SUITE)
    with pytest.raises(EvaluationError, match="no benchmark 'speed'.*encode"):
        choose(["speed"])


def test_a_benchmark_that_fails_is_named_with_its_last_words(tmp_path: Path):
    wrong = Benchmark("preprocess", "", quick=("--rounds", "many"))
    with pytest.raises(EvaluationError, match="preprocess ended with code 2.*invalid int value") as caught:
        run_benchmark(wrong, tmp_path, quick=True)
    assert str(tmp_path / "preprocess.log") in str(caught.value)
    assert not (tmp_path / "preprocess.json").exists()


@pytest.mark.slow
def test_the_command_runs_reports_and_keeps_what_is_there(tmp_path: Path):
    out = tmp_path / "bench"
    out.mkdir()
    (out / "search.json").write_text(make_result().model_dump_json())
    (out / "remarks.md").write_text("Missed, because.")
    result = CliRunner().invoke(app, ["bench", "preprocess", "--quick", "--out", str(out), "--document", str(tmp_path / "performance.md")])
    assert result.exit_code == 0, result.output
    assert json.loads((out / "preprocess.json").read_text())["name"] == "preprocess"
    text = (tmp_path / "performance.md").read_text()
    assert "| ours / flat |" in text and "decode JPEG" in text and "Missed, because." in text


def test_the_command_lists_and_refuses(tmp_path: Path):
    listed = CliRunner().invoke(app, ["bench", "--list"]).output.splitlines()
    assert [line.split()[0] for line in listed] == [benchmark.name for benchmark in SUITE]
    result = CliRunner().invoke(app, ["bench", "--report-only", "--out", str(tmp_path)])
    assert result.exit_code == 1 and "holds no results" in result.output
