"""The package as ROS 2 and pip see it: package.xml, setup.py and the tree agree."""

from __future__ import annotations

import importlib
import re
import runpy
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
import yaml

import asymvpr_core

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def setup_arguments() -> dict[str, Any]:
    """The arguments that setup.py gives to setuptools."""
    import setuptools

    captured: dict[str, Any] = {}
    patch = pytest.MonkeyPatch()
    patch.setattr(setuptools, "setup", lambda **arguments: captured.update(arguments))
    patch.chdir(REPOSITORY)
    try:
        runpy.run_path(str(REPOSITORY / "setup.py"))
    finally:
        patch.undo()
    return captured


@pytest.fixture(scope="module")
def package_xml() -> ElementTree.Element:
    return ElementTree.parse(REPOSITORY / "package.xml").getroot()


def text_of(root: ElementTree.Element, path: str) -> str:
    element = root.find(path)
    assert element is not None and element.text, f"package.xml has no {path}"
    return element.text.strip()


def dependencies(root: ElementTree.Element) -> set[str]:
    return {str(element.text) for tag in ("depend", "exec_depend") for element in root.findall(tag)}


def test_package_xml_is_an_ament_python_package_of_format_3(package_xml: ElementTree.Element):
    assert package_xml.get("format") == "3"
    assert text_of(package_xml, "export/build_type") == "ament_python"
    # colcon takes a package with an invalid address for plain Python, without a word.
    maintainer = package_xml.find("maintainer")
    assert maintainer is not None
    assert re.fullmatch(r"[\w.+-]+@[\w-]+\.[a-z]+", maintainer.get("email", ""))


def test_package_xml_passes_catkin_pkg():
    package_module = pytest.importorskip("catkin_pkg.package", reason="comes with colcon")
    warnings: list[str] = []
    package = package_module.parse_package(str(REPOSITORY), warnings=warnings)
    package.validate(warnings=warnings)
    assert warnings == []
    assert package.get_build_type() == "ament_python"


def test_package_xml_and_setup_agree(package_xml: ElementTree.Element, setup_arguments: dict[str, Any]):
    assert text_of(package_xml, "name") == setup_arguments["name"] == "asymvpr_ros"
    assert text_of(package_xml, "version") == setup_arguments["version"] == asymvpr_core.__version__
    assert text_of(package_xml, "license") == setup_arguments["license"] == "Apache-2.0"
    maintainer = package_xml.find("maintainer")
    assert maintainer is not None and maintainer.get("email") == setup_arguments["maintainer_email"]


def test_the_changelog_has_the_version(setup_arguments: dict[str, Any]):
    changelog = (REPOSITORY / "CHANGELOG.rst").read_text(encoding="utf-8")
    assert re.search(rf"^{re.escape(setup_arguments['version'])} ", changelog, re.MULTILINE)


def test_every_package_of_the_tree_is_installed(setup_arguments: dict[str, Any]):
    folders = {
        path.parent.relative_to(REPOSITORY).as_posix().replace("/", ".")
        for name in ("asymvpr_core", "asymvpr_ros")
        for path in (REPOSITORY / name).rglob("*.py")
    }
    assert folders == set(setup_arguments["packages"]), "a folder without __init__.py is not installed"


def test_files_beside_the_code_are_installed(setup_arguments: dict[str, Any]):
    core = REPOSITORY / "asymvpr_core"
    patterns = [
        (REPOSITORY / package.replace(".", "/")).glob(pattern)
        for package, package_patterns in setup_arguments["package_data"].items()
        for pattern in package_patterns
    ]
    installed = {path for paths in patterns for path in paths}
    there = {path for path in core.rglob("*") if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts}
    assert there == installed
    assert core / "py.typed" in installed


@pytest.mark.parametrize("folder", ["launch", "config", "examples"])
def test_launch_config_and_examples_are_installed(setup_arguments: dict[str, Any], folder: str):
    installed = {name: target for target, names in setup_arguments["data_files"] for name in names}
    there = [path for path in (REPOSITORY / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert there
    for path in there:
        relative = path.relative_to(REPOSITORY)
        assert installed.get(str(relative)) == f"share/asymvpr_ros/{relative.parent.as_posix()}", f"{relative} is not installed"


def test_resource_index(setup_arguments: dict[str, Any]):
    data_files = dict(setup_arguments["data_files"])
    assert data_files["share/ament_index/resource_index/packages"] == ["resource/asymvpr_ros"]
    assert data_files["share/asymvpr_ros"] == ["package.xml"]
    assert (REPOSITORY / "resource" / "asymvpr_ros").is_file()


def test_entry_points_can_be_imported(setup_arguments: dict[str, Any]):
    scripts = dict(entry.split(" = ") for entry in setup_arguments["entry_points"]["console_scripts"])
    assert set(scripts) == {"asymvpr", "bag_player", "keyframe_recorder", "match_recorder", "place_recognition_node"}
    for target in scripts.values():
        module, _, function = target.partition(":")
        if module.startswith("asymvpr_ros"):
            pytest.importorskip("rclpy", reason="needs ROS 2")
        assert callable(getattr(importlib.import_module(module), function))


def test_executables_go_where_ros2_run_looks():
    text = (REPOSITORY / "setup.cfg").read_text()
    assert "script_dir=$base/lib/asymvpr_ros" in text
    assert "install_scripts=$base/lib/asymvpr_ros" in text


def imported_packages(folder: str) -> set[str]:
    """Top-level names that the code of `folder` imports, wherever in a file."""
    pattern = re.compile(r"^\s*(?:from|import) (\w+)", re.MULTILINE)
    return {name for path in (REPOSITORY / folder).rglob("*.py") for name in pattern.findall(path.read_text(encoding="utf-8"))}


def test_ros_packages_that_are_imported_are_declared(package_xml: ElementTree.Element):
    imported = {
        name
        for folder in ("asymvpr_ros", "launch", "examples")
        for name in imported_packages(folder)
        if name.endswith(("_msgs", "_interfaces", "_srvs")) or name in ("rclpy", "cv_bridge", "launch", "launch_ros", "ament_index_python")
    }
    assert imported <= dependencies(package_xml)
    assert "cv_bridge" in dependencies(package_xml)


def test_no_dependency_is_stated_twice(setup_arguments: dict[str, Any]):
    def names(lines: list[str]) -> list[str]:
        return [re.split(r"[<>=\[ ]", line)[0].lower() for line in lines if line and not line.startswith("#")]

    tools = names((REPOSITORY / "requirements" / "dev.txt").read_text().splitlines())
    assert len(tools) == len(set(tools))
    extras = setup_arguments["extras_require"]
    packages = names(setup_arguments["install_requires"] + extras["all"] + extras["test"])
    assert len(packages) == len(set(packages))
    assert set(tools).isdisjoint(packages)


def test_colcon_will_run_pytest(setup_arguments: dict[str, Any]):
    # Without this extra, colcon test runs unittest, finds nothing and succeeds.
    assert "pytest" in setup_arguments["extras_require"]["test"]


def test_ros_wheels_stay_out_of_setup(setup_arguments: dict[str, Any]):
    # With ROS 2 installed, its own rclpy counts; a second one from the package registry breaks it.
    everything = setup_arguments["install_requires"] + [name for extra in setup_arguments["extras_require"].values() for name in extra]
    assert not [name for name in everything if name.startswith("ros-")]


def test_yaml_files_are_well_formed():
    for path in (REPOSITORY / "config").rglob("*.yaml"):
        assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict), path


def test_the_licence_is_complete():
    text = (REPOSITORY / "LICENSE").read_text()
    assert "Apache License" in text and "END OF TERMS AND CONDITIONS" in text
