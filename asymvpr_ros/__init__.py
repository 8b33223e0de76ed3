"""ROS 2 nodes over asymvpr_core; they translate messages and hold no algorithm."""
