"""Sources of images and poses: folders, csv tables, rosbags."""
