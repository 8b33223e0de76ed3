"""From a trained query network to a descriptor on the robot."""
