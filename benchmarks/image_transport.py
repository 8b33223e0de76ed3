"""How many best-effort raw images arrive from one process in another, with and without the shipped Fast DDS profile.

    python benchmarks/image_transport.py

Needs rclpy on Fast DDS. Prints a Markdown table: images that arrived of those that were sent.
"""

from __future__ import annotations

import array
import os
import subprocess
import sys
import time
from pathlib import Path

PROFILE = Path(__file__).resolve().parents[1] / "config" / "fastdds_shm.xml"
STREAMS = ((640, 480, 30.0, 60), (1920, 1080, 15.0, 30))  # width, height, rate [Hz], images
DISCOVERY_S = 10.0


def qos():
    """One image, best effort, as a camera driver and the node have it."""
    from rclpy.qos import QoSProfile, ReliabilityPolicy

    return QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)


def publish(width: int, height: int, rate_hz: float, count: int) -> None:
    """Send `count` images, each with its number as the stamp, once a subscriber is there."""
    import rclpy
    from sensor_msgs.msg import Image

    rclpy.init()
    publisher = rclpy.create_node("camera").create_publisher(Image, "image", qos())
    deadline = time.monotonic() + DISCOVERY_S
    while publisher.get_subscription_count() == 0 and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1.0)  # the subscriber's side of the discovery
    data = array.array("B")
    data.frombytes(bytes(width * height * 3))
    image = Image(height=height, width=width, encoding="rgb8", step=width * 3, data=data)
    for number in range(count):
        begin = time.monotonic()
        image.header.stamp.sec = number
        publisher.publish(image)
        time.sleep(max(0.0, 1 / rate_hz - (time.monotonic() - begin)))
    rclpy.shutdown()


def receive(rate_hz: float, count: int) -> int:
    """Number of different images that arrive."""
    import rclpy
    from sensor_msgs.msg import Image

    rclpy.init()
    node, arrived = rclpy.create_node("listener"), set()
    node.create_subscription(Image, "image", lambda image: arrived.add(image.header.stamp.sec), qos())
    deadline = time.monotonic() + DISCOVERY_S + 2 * count / rate_hz
    while time.monotonic() < deadline and len(arrived) < count:
        rclpy.spin_once(node, timeout_sec=0.1)
    rclpy.shutdown()
    return len(arrived)


def measure(stream: tuple[int, int, float, int], profile: Path | None) -> int:
    """Images of one stream that arrived, in two fresh processes of a private domain."""
    environment = os.environ | {
        "ROS_DOMAIN_ID": str(1 + os.getpid() % 100),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "RMW_IMPLEMENTATION": "rmw_fastrtps_cpp",
    }
    if profile is not None:
        environment["FASTDDS_DEFAULT_PROFILES_FILE"] = str(profile)
    words = [sys.executable, __file__, *map(str, stream)]
    camera = subprocess.Popen([*words, "camera"], env=environment)
    try:
        listener = subprocess.run([*words, "listener"], env=environment, check=True, capture_output=True, text=True)
    finally:
        camera.wait(timeout=60)
    return int(listener.stdout.split()[-1])


def main() -> int:
    """Print the table, or be one of its processes."""
    if len(sys.argv) == 6:
        width, height, rate_hz, count = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
        if sys.argv[5] == "camera":
            publish(width, height, rate_hz, count)
        else:
            print(receive(rate_hz, count))
        return 0
    print("| raw images, best effort | Fast DDS's defaults | with config/fastdds_shm.xml |\n|---|---|---|")
    for stream in STREAMS:
        cells = [f"{measure(stream, profile)} of {stream[3]}" for profile in (None, PROFILE)]
        print(f"| {stream[0]}x{stream[1]} at {stream[2]:g} Hz | {' | '.join(cells)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
