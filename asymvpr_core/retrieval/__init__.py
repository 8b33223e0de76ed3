"""From a query descriptor to an accepted or rejected match. Runs on the robot: no torch."""
