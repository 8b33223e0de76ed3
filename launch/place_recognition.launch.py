"""Start the place-recognition node, and a bag to feed it if one is given.

ros2 launch asymvpr_ros place_recognition.launch.py gallery_path:=/data/gallery model_path:=/data/model image:=/camera/image
"""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

PACKAGE = "asymvpr_ros"
ARGUMENTS = {
    "gallery_path": ("", "folder of the gallery; empty: as in params_file"),
    "model_path": ("", "folder of the exported query model; empty: as in params_file"),
    "params_file": (
        PathJoinSubstitution([FindPackageShare(PACKAGE), "config", "place_recognition.yaml"]),
        "parameter file of the node; the other arguments win over it",
    ),
    "namespace": ("", "namespace of the node and of its topics"),
    "use_sim_time": ("", "true: take the time from /clock; empty: true with a bag, otherwise as in params_file"),
    "image": ("image", "image topic, without the transport's suffix"),
    "transport": ("", "raw or compressed (the image topic followed by /compressed); empty: as in params_file"),
    "log_level": ("info", "debug, info, warn, error or fatal"),
    "bag": ("", "rosbag2 to replay with /clock; empty: none"),
    "bag_rate": ("1.0", "speed of the replay"),
}


def generate_launch_description():
    """Arguments, then the nodes that they ask for."""
    declared = [DeclareLaunchArgument(name, default_value=default, description=text) for name, (default, text) in ARGUMENTS.items()]
    return LaunchDescription([*declared, OpaqueFunction(function=start_nodes)])


def start_nodes(context):
    """The node, and the player of the bag where one is given."""
    given = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    nodes = [
        Node(
            package=PACKAGE,
            executable="place_recognition_node",
            name="place_recognition",
            namespace=given["namespace"],
            output="screen",
            parameters=[given["params_file"], overrides(given)],
            remappings=[("image", given["image"]), ("image/compressed", given["image"] + "/compressed")],
            ros_arguments=["--log-level", given["log_level"]],
        )
    ]
    if given["bag"]:
        nodes.append(
            Node(
                package=PACKAGE,
                executable="bag_player",
                name="bag_player",
                output="screen",
                # The player starts when somebody subscribes; opening a large gallery takes its time.
                arguments=[given["bag"], "--rate", given["bag_rate"], "--wait-timeout-s", "60"],
            )
        )
    return nodes


def overrides(given):
    """Parameters that were given as arguments; an empty argument leaves what the parameter file says."""
    strings = {name: ParameterValue(given[name], value_type=str) for name in ("gallery_path", "model_path", "transport") if given[name]}
    use_sim_time = given["use_sim_time"] or ("true" if given["bag"] else "")
    flags = {"use_sim_time": ParameterValue(use_sim_time.lower() == "true", value_type=bool)} if use_sim_time else {}
    return {**strings, **flags}
