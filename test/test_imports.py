"""What may import what: the core without ROS, the robot without the training's packages."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import asymvpr_core

REPOSITORY = Path(__file__).resolve().parents[1]
ROS_PACKAGES = (
    "ament_index_python", "asymvpr_ros", "builtin_interfaces", "cv_bridge", "diagnostic_msgs", "geometry_msgs", "launch", "launch_ros",
    "lifecycle_msgs", "nav_msgs", "rcl_interfaces", "rclpy", "rosbag2_py", "rosgraph_msgs", "sensor_msgs", "std_msgs", "std_srvs",
    "tf2_msgs", "visualization_msgs",
)  # fmt: skip
TRAINING_PACKAGES = ("lightning", "matplotlib", "onnx", "pytorch_lightning", "tensorboard", "timm", "torch", "torchvision")
ROBOT_MODULES = (
    "asymvpr_core.deploy.runtime", "asymvpr_core.pixel_formats", "asymvpr_core.retrieval.index", "asymvpr_core.retrieval.matcher",
    "asymvpr_core.retrieval.recogniser", "asymvpr_core.datasets.bags",
)  # fmt: skip
NODE_MODULES = (
    "asymvpr_ros.place_recognition_node",
    "asymvpr_ros.bag_player",
    "asymvpr_ros.match_recorder",
    "asymvpr_ros.keyframe_recorder",
)

# A name set to None in sys.modules makes its import fail, as if the package were not installed.
BLOCKED_IMPORT = """
import importlib, sys
blocked, modules = {blocked!r}, {modules!r}
sys.modules.update(dict.fromkeys(blocked))
for name in modules:
    importlib.import_module(name)
loaded = sorted(name for name in blocked if sys.modules[name] is not None)
assert not loaded, loaded
print("imported", len(modules))
"""


def import_without(blocked: tuple[str, ...], modules: tuple[str, ...]) -> None:
    code = BLOCKED_IMPORT.format(blocked=blocked, modules=modules)
    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["imported", str(len(modules))]


def core_modules() -> tuple[str, ...]:
    found = pkgutil.walk_packages(asymvpr_core.__path__, "asymvpr_core.")
    return tuple(module.name for module in found if module.name != "asymvpr_core.__main__")


def test_all_of_the_core_imports_without_ros():
    modules = core_modules()
    assert len(modules) > 30
    import_without(ROS_PACKAGES, modules)


def test_the_block_works():
    with pytest.raises(AssertionError, match="numpy"):
        import_without(("numpy",), ("asymvpr_core.types",))


def test_the_robots_core_imports_without_training_packages():
    import_without(TRAINING_PACKAGES, ROBOT_MODULES)


def test_the_nodes_import_without_training_packages():
    pytest.importorskip("rclpy", reason="needs ROS 2")
    import_without(TRAINING_PACKAGES, NODE_MODULES)


def test_the_command_line_imports_nothing_heavy():
    import_without((*TRAINING_PACKAGES, "cv2", "faiss", "numpy", "onnxruntime", "rosbags", "scipy"), ("asymvpr_core.cli.main",))


def test_import_contracts():
    pytest.importorskip("importlinter", reason="needs import-linter")
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()", "--no-cache"]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 broken" in result.stdout
