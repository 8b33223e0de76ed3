"""Start the place-recognition node, and a bag to feed it or RViz to watch it where they are asked for.

ros2 launch asymvpr_ros place_recognition.launch.py gallery_path:=/data/gallery model_path:=/data/model image:=/camera/image
ros2 launch asymvpr_ros place_recognition.launch.py stack:=nav2_amcl odom:=/odom params_file:=/data/robot.yaml
"""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, EmitEvent, OpaqueFunction, RegisterEventHandler
from launch.events import matches_action
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import LifecycleNode, Node
from launch_ros.event_handlers import OnStateTransition
from launch_ros.events.lifecycle import ChangeState
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare
from lifecycle_msgs.msg import Transition

PACKAGE = "asymvpr_ros"
ARGUMENTS = {
    "gallery_path": ("", "folder of the gallery; empty: as in params_file"),
    "model_path": ("", "folder of the exported query model; empty: as in params_file"),
    "params_file": ("", "parameter file of the robot; wins over the shipped defaults and over stack; empty: none"),
    "stack": ("", "SLAM stack whose shipped parameter file is used, a name of config/stacks; empty: none"),
    "namespace": ("", "namespace of the node and of its topics"),
    "use_sim_time": ("", "true: take the time from /clock; empty: true with a bag, otherwise as in params_file"),
    "image": ("image", "image topic of a single camera, without the transport's suffix"),
    "cameras": ("", "several cameras with their image topics: front=/front/image_raw,rear=/rear/image_raw; empty: one, as image says"),
    "transport": ("", "raw or compressed (the image topic followed by /compressed); empty: as in params_file"),
    "odom": ("odom", "odometry topic"),
    "trigger_hint": ("trigger_hint", "topic on which a localiser asks for the next match"),
    "lifecycle": ("launch", "who configures and activates the node: launch, node (itself), or none (a lifecycle manager)"),
    "log_level": ("info", "debug, info, warn, error or fatal"),
    "bag": ("", "rosbag2 to replay with /clock; empty: none"),
    "bag_rate": ("1.0", "speed of the replay"),
    "rviz": ("false", "true: start RViz with the shipped configuration"),
}
LIFECYCLES = ("launch", "node", "none")


def generate_launch_description():
    """Arguments, then the nodes that they ask for."""
    declared = [DeclareLaunchArgument(name, default_value=default, description=text) for name, (default, text) in ARGUMENTS.items()]
    return LaunchDescription([*declared, OpaqueFunction(function=start_nodes)])


def start_nodes(context):
    """The node with its lifecycle, the player of the bag, and RViz, where they are asked for."""
    given = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    if given["lifecycle"] not in LIFECYCLES:
        raise RuntimeError(f"lifecycle is '{given['lifecycle']}'; expected {', '.join(LIFECYCLES)}")
    config = PathJoinSubstitution([FindPackageShare(PACKAGE), "config"]).perform(context)
    files = [f"{config}/place_recognition.yaml"]
    files += [f"{config}/stacks/{given['stack']}.yaml"] if given["stack"] else []
    files += [given["params_file"]] if given["params_file"] else []
    node = LifecycleNode(
        package=PACKAGE,
        executable="place_recognition_node",
        name="place_recognition",
        namespace=given["namespace"],
        output="screen",
        parameters=[*files, overrides(given)],
        remappings=remappings(given),
        ros_arguments=["--log-level", given["log_level"]],
    )
    actions = [node, *(lifecycle_events(node) if given["lifecycle"] == "launch" else [])]
    if given["bag"]:
        actions.append(
            Node(
                package=PACKAGE,
                executable="bag_player",
                name="bag_player",
                output="screen",
                # The player starts when somebody subscribes; opening a large gallery takes its time.
                arguments=[given["bag"], "--rate", given["bag_rate"], "--wait-timeout-s", "60"],
            )
        )
    if given["rviz"].lower() == "true":
        arguments = ["-d", f"{config}/rviz/place_recognition.rviz"]
        actions.append(Node(package="rviz2", executable="rviz2", name="rviz2", namespace=given["namespace"], arguments=arguments))
    return actions


def lifecycle_events(node):
    """Configure at once, and activate when that has succeeded; a refused node stays and says why in /diagnostics."""

    def change(transition):
        return EmitEvent(event=ChangeState(lifecycle_node_matcher=matches_action(node), transition_id=transition))

    activate = OnStateTransition(
        target_lifecycle_node=node,
        start_state="configuring",
        goal_state="inactive",
        entities=[change(Transition.TRANSITION_ACTIVATE)],
    )
    return [RegisterEventHandler(activate), change(Transition.TRANSITION_CONFIGURE)]


def cameras(given):
    """Camera names with their image topics; the empty name where there is a single one."""
    if not given["cameras"]:
        return {"": given["image"]}
    pairs = [pair.partition("=") for pair in given["cameras"].split(",")]
    if not all(name and topic for name, _, topic in pairs):
        raise RuntimeError(f"cameras is '{given['cameras']}'; expected NAME=TOPIC, separated by commas")
    return {name.strip(): topic.strip() for name, _, topic in pairs}


def remappings(given):
    """From the names in the node to those of the robot."""
    images = [
        pair
        for name, topic in cameras(given).items()
        for image in [f"{name}/image" if name else "image"]
        for pair in ((image, topic), (f"{image}/compressed", topic + "/compressed"))
    ]
    return [*images, ("odom", given["odom"]), ("trigger_hint", given["trigger_hint"])]


def overrides(given):
    """Parameters that were given as arguments; an empty argument leaves what the parameter files say."""
    parameters = {name: ParameterValue(given[name], value_type=str) for name in ("gallery_path", "model_path", "transport") if given[name]}
    if given["cameras"]:
        parameters["camera_names"] = list(cameras(given))
    if given["lifecycle"] != "node":
        parameters["autostart"] = ParameterValue(False, value_type=bool)
    use_sim_time = given["use_sim_time"] or ("true" if given["bag"] else "")
    if use_sim_time:
        parameters["use_sim_time"] = ParameterValue(use_sim_time.lower() == "true", value_type=bool)
    return parameters
