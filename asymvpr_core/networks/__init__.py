"""Gallery and query networks by name. Needs torch and timm: never imported on the robot."""
