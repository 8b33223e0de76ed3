"""Record keyframes and poses while SLAM runs; `asymvpr gallery build` makes the gallery of the bag.

ros2 launch asymvpr_ros mapping.launch.py out:=/data/map_bag image:=/camera/image transport:=compressed pose:=/odom
"""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

PACKAGE = "asymvpr_ros"
ARGUMENTS = {
    "out": (None, "folder that becomes the rosbag2 of keyframes and poses; must not exist yet"),
    "image": ("image", "image topic, without the transport's suffix"),
    "transport": ("raw", "raw or compressed (the image topic followed by /compressed)"),
    "pose": ("odom", "topic of the poses of the robot's base in the map that the gallery shall have"),
    "pose_type": ("odometry", "odometry, pose or pose_with_covariance"),
    "min_distance_m": ("1.0", "distance to the last keyframe [m] that makes a new one"),
    "min_yaw_deg": ("15.0", "turn since the last keyframe [deg] that makes a new one"),
    "namespace": ("", "namespace of the recorder and of its topics"),
    "use_sim_time": ("", "true: take the time from /clock; empty: true with a bag"),
    "bag": ("", "rosbag2 of a drive to replay with /clock; empty: none"),
    "bag_rate": ("1.0", "speed of the replay"),
}


def generate_launch_description():
    """Arguments, then the nodes that they ask for."""
    declared = [
        DeclareLaunchArgument(name, description=text, **({} if default is None else {"default_value": default}))
        for name, (default, text) in ARGUMENTS.items()
    ]
    return LaunchDescription([*declared, OpaqueFunction(function=start_nodes)])


def start_nodes(context):
    """The recorder, and the player of the bag where one is given."""
    given = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    use_sim_time = given["use_sim_time"] or ("true" if given["bag"] else "false")
    nodes = [
        Node(
            package=PACKAGE,
            executable="keyframe_recorder",
            name="keyframe_recorder",
            namespace=given["namespace"],
            output="screen",
            # Closing a large bag takes longer than the five seconds that launch grants before SIGTERM.
            sigterm_timeout="30",
            arguments=[
                "--out", given["out"], "--pose-type", given["pose_type"], "--transport", given["transport"],
                "--min-distance-m", given["min_distance_m"], "--min-yaw-deg", given["min_yaw_deg"],
            ],
            parameters=[{"use_sim_time": ParameterValue(use_sim_time.lower() == "true", value_type=bool)}],
            remappings=[("image", given["image"]), ("image/compressed", given["image"] + "/compressed"), ("pose", given["pose"])],
        )
    ]  # fmt: skip
    if given["bag"]:
        player = ["--rate", given["bag_rate"], "--wait-timeout-s", "60"]
        nodes.append(Node(package=PACKAGE, executable="bag_player", name="bag_player", output="screen", arguments=[given["bag"], *player]))
    return nodes
