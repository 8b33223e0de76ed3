"""Evaluate a recorded drive against a gallery: the matcher of the live node, without ROS in between; then the report.

ros2 launch asymvpr_ros bag_evaluation.launch.py bag:=/data/drive gallery_path:=/data/gallery model_path:=/data/model \
    ground_truth:=/ground_truth/pose out:=/data/report
"""

import shlex

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, ExecuteProcess, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.substitutions import ExecutableInPackage

PACKAGE = "asymvpr_ros"
ARGUMENTS = {
    "bag": (None, "rosbag2 of the drive"),
    "gallery_path": (None, "folder of the gallery"),
    "model_path": (None, "folder of the exported query model"),
    "ground_truth": (None, "pose topic of the bag, or TUM file, in the gallery's frame"),
    "out": (None, "folder that becomes the result; must not exist yet"),
    "image": ("", "image topic; empty: the only one in the bag"),
    "settings": ("", "YAML file of settings (sections matcher, evaluation, …); empty: defaults"),
    "options": ("", "further options of 'asymvpr evaluate bag', as on its command line"),
}


def generate_launch_description():
    """Arguments, then the command that they make."""
    declared = [
        DeclareLaunchArgument(name, description=text, **({} if default is None else {"default_value": default}))
        for name, (default, text) in ARGUMENTS.items()
    ]
    return LaunchDescription([*declared, OpaqueFunction(function=evaluate)])


def evaluate(context):
    """`asymvpr evaluate bag` with the arguments."""
    given = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    flags = {
        "--gallery": given["gallery_path"],
        "--model": given["model_path"],
        "--ground-truth": given["ground_truth"],
        "--out": given["out"],
        "--image-topic": given["image"],
        "--config": given["settings"],
    }
    words = [word for flag, value in flags.items() if value for word in (flag, value)]
    command = [ExecutableInPackage("asymvpr", PACKAGE), "evaluate", "bag", given["bag"], *words, *shlex.split(given["options"])]
    return [ExecuteProcess(cmd=command, output="screen")]
