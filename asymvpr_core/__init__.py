"""asymvpr: asymmetric visual place recognition, heavy offline, light on the robot. Knows no ROS."""

__version__ = "0.1.0"
