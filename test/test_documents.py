"""The documents say what is there: commands parse, tables agree with the code, links lead somewhere."""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from conftest import REPOSITORY

from asymvpr_core.cli.main import app
from asymvpr_core.pixel_formats import KNOWN_ENCODINGS

DOCUMENTS = [*(REPOSITORY / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY")), *sorted((REPOSITORY / "docs").rglob("*.md"))]
INTERFACE = REPOSITORY / "docs" / "ros_interface.md"
_FENCED = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
HELP = {"--help", "-h"}


def commands(document: Path) -> Iterator[list[str]]:
    """The words of every command in the document's bash blocks, without leading assignments."""
    for language, block in _FENCED.findall(document.read_text(encoding="utf-8")):
        if language == "bash":
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                while words and re.fullmatch(r"\w+=.*", words[0]):
                    words.pop(0)
                if words:
                    yield [Path(words[0]).name, *words[1:]]


def commands_of(name: str) -> list[list[str]]:
    """The arguments of every command called `name`, in all documents."""
    return [words[1:] for document in DOCUMENTS for words in commands(document) if words[0] == name]


def spans() -> list[str]:
    """Every piece of inline code, in all documents."""
    texts = [_FENCED.sub("", document.read_text(encoding="utf-8")) for document in DOCUMENTS]
    return [" ".join(span.split()) for text in texts for span in re.findall(r"`([^`]+)`", text)]


def section(title: str) -> str:
    """The text of ROS interface below the heading `title`, up to the next heading."""
    text = INTERFACE.read_text(encoding="utf-8")
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#+ |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"{INTERFACE.name} has no section '{title}'"
    return found.group(1)


def table(title: str, first: str) -> dict[str, list[str]]:
    """The rows of the table in section `title` whose first column is headed `first`, by the names in that column."""
    rows: dict[str, list[str]] = {}
    inside = False
    for line in section(title).splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.startswith("|"):
            inside = False
        elif inside and not cells[0].startswith("---"):
            rows |= dict.fromkeys(re.findall(r"`([^`]+)`", cells[0]), cells[1:])
        elif cells[0] == first:
            inside = True
    assert rows, f"section '{title}' has no table of '{first}'"
    return rows


def parse(words: list[str], *, whole: bool) -> None:
    """Parse the arguments of `asymvpr` without running them; not `whole`: the command and its options need to exist."""
    command, words = typer.main.get_command(app), list(words)
    while words and hasattr(command, "commands") and not words[0].startswith("-"):
        name = words.pop(0)
        assert name in command.commands, f"no command '{name}'"
        command = command.commands[name]
    options = {option for parameter in command.params for option in parameter.opts} | HELP
    assert {word.partition("=")[0] for word in words if word.startswith("--")} <= options
    if whole and not HELP & set(words):
        command.make_context("asymvpr", words)  # raises on a missing option, a surplus argument, a value of the wrong type


def test_the_readme_and_the_guides_are_there():
    names = {document.name for document in DOCUMENTS}
    assert {"README.md", "CONTRIBUTING.md", "architecture.md", "ros_interface.md", "artefacts.md", "glossary.md"} <= names
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    first = readme.splitlines()[0]
    assert all(needed in first for needed in ("Python 3.10", "venv", "make", "git", "x86-64"))
    for document in (REPOSITORY / "docs").glob("*.md"):
        assert f"(docs/{document.name})" in readme, f"the README does not lead to {document.name}"


@pytest.mark.parametrize("words", commands_of("asymvpr"), ids=" ".join)
def test_every_asymvpr_command_parses(words: list[str]):
    parse(words, whole=True)


@pytest.mark.parametrize("span", sorted({span for span in spans() if span.startswith("asymvpr ")}))
def test_every_mention_of_a_command_names_what_exists(span: str):
    words = shlex.split(span)[1:]
    parse(words, whole=any(word.startswith("--out") for word in words))


def test_the_parser_of_this_test_refuses_what_does_not_exist():
    for words in (["fly"], ["gallery", "burn"], ["train", "map", "--recpie", "small_site", "--out", "run"]):
        with pytest.raises(AssertionError):
            parse(words, whole=False)
    with pytest.raises(Exception, match="Missing parameter: out"):
        parse(["train", "map"], whole=True)


def test_the_first_steps_are_all_shown():
    shown = {" ".join(word for word in words[:2] if word.isalpha()) for words in commands_of("asymvpr")}
    for step in ("gallery build", "train", "export", "evaluate bag", "evaluate recall"):
        assert any(command.startswith(step) for command in shown), f"no document shows asymvpr {step}"


def test_the_tables_of_training_settings_are_those_of_the_classes():
    from asymvpr_core import config

    text = (REPOSITORY / "docs" / "training.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in text.splitlines() if line.startswith("| `")]
    listed = {tuple(row[:2]) for row in rows if len(row) == 3}
    for kind in ("TrainSettings", "AugmentationSettings", "CellSettings", "BaselineSettings", "ComparisonSettings"):
        for name, field in getattr(config, kind).model_fields.items():
            default = field.default
            if isinstance(default, config.Settings):
                continue
            shown = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
            assert (f"`{name}`", {"None": "", "{}": "none"}.get(shown, shown)) in listed, name


def test_every_make_target_exists():
    targets = set(re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    calls = commands_of("make") + [shlex.split(span)[1:] for span in spans() if span.startswith("make ")]
    named = {word for words in calls for word in words if "=" not in word}
    assert {"demo", "test", "setup"} <= named <= targets


def test_every_ros_argument_exists():
    fields = pytest.importorskip("asymvpr_ros.parameters", reason="needs ROS 2").fields()
    remapped = {"image", "image/compressed", "/camera/image/compressed", "__ns"}
    given = [word for name in ("place_recognition_node", "bag_player", "match_recorder") for words in commands_of(name) for word in words]
    names = [word.partition(":=")[0] for word in given if ":=" in word]
    assert "gallery_path" in names
    assert set(names) <= {*fields, "use_sim_time"} | remapped


def test_every_bag_player_command_parses(capsys: pytest.CaptureFixture[str]):
    player = pytest.importorskip("asymvpr_ros.bag_player", reason="needs ROS 2")
    shown = commands_of("bag_player")
    assert shown
    for words in shown:
        player._parse(words[: words.index("--ros-args")] if "--ros-args" in words else words)
    with pytest.raises(SystemExit):
        player._parse(["--help"])
    assert set(table("bag_player", "option")) == set(re.findall(r"^ +(--[a-z-]+)", capsys.readouterr().out, re.MULTILINE))


def launch_arguments(file: str) -> set[str]:
    """The arguments that a launch file declares."""
    tree = ast.parse((REPOSITORY / "launch" / file).read_text(encoding="utf-8"))
    (value,) = [node.value for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == "ARGUMENTS"]
    return {key.value for key in value.keys}


def test_every_launch_argument_is_described():
    assert set(table("Launch file", "argument")) == launch_arguments("place_recognition.launch.py")
    assert set(table("Mapping: record for a gallery", "argument")) == launch_arguments("mapping.launch.py")
    evaluation = section("Bag evaluation")
    assert all(f"`{name}`" in evaluation or f"{name}:=" in evaluation for name in launch_arguments("bag_evaluation.launch.py"))


def test_every_launch_command_has_arguments_that_exist():
    given = [words for words in commands_of("ros2") if words[0] == "launch"]
    assert {words[2] for words in given} == {path.name for path in (REPOSITORY / "launch").glob("*.py")}
    for words in given:
        assert {word.partition(":=")[0] for word in words[3:]} <= launch_arguments(words[2]), words


def test_the_table_of_services_is_that_of_the_node():
    pytest.importorskip("rclpy", reason="needs ROS 2")
    source = (REPOSITORY / "asymvpr_ros" / "services.py").read_text(encoding="utf-8")
    created = {name: f"`std_srvs/srv/{kind}`" for kind, name in re.findall(r'create_service\((\w+), "([^"]+)"', source)}
    assert len(created) == 5
    assert {name: cells[0] for name, cells in table("Lifecycle and services", "service").items()} == created


def test_the_table_of_parameters_is_that_of_the_settings():
    parameters = pytest.importorskip("asymvpr_ros.parameters", reason="needs ROS 2")
    rows = table("Parameters", "name")
    assert set(rows) == set(parameters.fields())
    for name, field in parameters.fields().items():
        kind, default, allowed, live, meaning = rows[name]
        assert kind == parameters.parameter_type(field).name.lower(), name
        expected = str(field.default).lower() if isinstance(field.default, bool) else str(field.default) or '""'
        if isinstance(field.default, tuple):  # an array: its default as in the parameter file, or a table of its own
            assert default in (f"`{json.dumps(list(field.default))}`", "see [Out](#out)"), name
            continue
        assert default == expected, name
        limits = [getattr(limit, bound) for limit in field.metadata for bound in ("ge", "gt", "le", "lt") if hasattr(limit, bound)]
        assert [float(number) for number in re.findall(r"(?<!\w)-?\d+(?:\.\d+)?", allowed)] == limits, name
        assert ("greater than" in allowed) == any(hasattr(limit, "gt") for limit in field.metadata), name
        choices = re.search("one of: (.*)", parameters.descriptor_of(name, field).additional_constraints)
        assert (choices is not None and allowed == choices.group(1)) or (choices is None and not re.search("[a-z], [a-z]", allowed)), name
        assert live == ("yes" if name in parameters.LIVE else ""), name
        assert meaning, name


def test_the_tables_of_topics_are_those_of_the_node():
    outputs = pytest.importorskip("asymvpr_ros.outputs", reason="needs ROS 2").OUTPUTS
    from diagnostic_msgs.msg import DiagnosticArray
    from geometry_msgs.msg import PoseWithCovarianceStamped
    from nav_msgs.msg import Odometry
    from rosgraph_msgs.msg import Clock

    from asymvpr_ros.inputs import _TRANSPORTS, ODOMETRY, TRIGGER_HINT

    def name_of(message_type: type) -> str:
        return f"`{message_type.__module__.split('.')[0]}/msg/{message_type.__name__}`"

    published = {output.topic: name_of(output.message_type) for output in outputs.values()} | {"/diagnostics": name_of(DiagnosticArray)}
    rows = table("Out", "topic")
    assert {topic: cells[0] for topic, cells in rows.items()} == published
    from asymvpr_core.config import NodeSettings

    for output in outputs.values():
        assert rows[output.topic][1].endswith(f"keep last {output.depth}")
        assert (rows[output.topic][5] == "on") == (output.topic in NodeSettings().outputs)
    heard = {topic: name_of(message_type) for topic, message_type in _TRANSPORTS.values()}
    heard |= {ODOMETRY: name_of(Odometry), TRIGGER_HINT: name_of(PoseWithCovarianceStamped), "/clock": name_of(Clock)}
    assert {topic: cells[0] for topic, cells in table("In", "topic").items()} == heard


def test_every_encoding_is_listed():
    listed = set(re.findall(r"`(\w+)`", section("In")))
    assert set(KNOWN_ENCODINGS) <= listed


def test_the_table_of_diagnostics_is_what_a_node_reports(tmp_path: Path):
    rclpy = pytest.importorskip("rclpy", reason="needs ROS 2")
    from live_ros import open_graph
    from rclpy.parameter import Parameter
    from tiny_artefacts import make_model, make_street

    from asymvpr_ros.place_recognition_node import PlaceRecognitionNode

    gallery, model = make_street(tmp_path / "gallery"), make_model(tmp_path / "model")
    values = {"gallery_path": str(gallery), "model_path": str(model), "autostart": False}
    with open_graph() as graph:
        node = PlaceRecognitionNode(parameter_overrides=[Parameter(name, value=value) for name, value in values.items()])
        try:
            node.trigger_configure()
            _, _, reported = graph.wait_for_status(
                lambda level, message, values: values["state"] == "inactive",
                "diagnostics of the configured node",
                meanwhile=lambda: rclpy.spin_once(node, timeout_sec=0.01),
            )
        finally:
            node.close()
    assert list(table("Diagnostics", "key")) == list(reported)


def heading_anchors(document: Path) -> set[str]:
    """The anchors that the headings of a document get on a repository host."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_local_link_leads_somewhere(document: Path):
    text = _FENCED.sub("", document.read_text(encoding="utf-8"))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:", link):
            path, _, anchor = link.partition("#")
            target = (document.parent / path).resolve() if path else document
            assert target.exists(), f"{document.name} leads to {link}, which is not there"
            assert not anchor or anchor in heading_anchors(target), f"{document.name} leads to {link}, which has no such heading"


def test_tests_that_documents_name_exist():
    there = set(
        re.findall(
            r"^def (test_\w+)\(", "\n".join(path.read_text(encoding="utf-8") for path in (REPOSITORY / "test").glob("test_*.py")), re.M
        )
    )
    files = {path.name for path in (REPOSITORY / "test").glob("*.py")}
    named = {span for span in spans() if span.startswith("test_")}
    assert len(named) > 30
    assert named <= there | files, named - there - files
