"""What every test needs before its first import: the repository on the path, and a private ROS 2."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))  # the tests run without an installation too

# Read by rclpy and Fast DDS when they are first imported, and inherited by the nodes that tests start.
# A domain of this process's own: nothing else on the machine or network may answer.
os.environ["ROS_DOMAIN_ID"] = str(1 + os.getpid() % 100)
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
os.environ["RMW_IMPLEMENTATION"] = "rmw_fastrtps_cpp"
os.environ["FASTDDS_DEFAULT_PROFILES_FILE"] = str(REPOSITORY / "config" / "fastdds_shm.xml")
os.environ["ROS_PYTHON_CHECK_FIELDS"] = "1"
os.environ["ROS_LOG_DIR"] = tempfile.mkdtemp(prefix="asymvpr_test_ros_log_")
atexit.register(shutil.rmtree, os.environ["ROS_LOG_DIR"], ignore_errors=True)
# Evaluations keep descriptors there: a test must neither find what another run left nor leave anything.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="asymvpr_test_cache_")
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)
# The ROS 2 wheels of the package registry do not announce themselves to ament_index.
os.environ.setdefault("AMENT_PREFIX_PATH", sys.prefix)

# Fuzz tests: in the suite the same few cases each time; with --hypothesis-profile=long so many new ones for each test
# (docs/reliability.md). No deadlines: no test depends on how fast the machine is.
_FUZZ = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large], "print_blob": True}
settings.register_profile("suite", derandomize=True, max_examples=12, database=None, **_FUZZ)
settings.register_profile("long", max_examples=int(os.environ.get("ASYMVPR_FUZZ_CASES", "1000")), **_FUZZ)
settings.load_profile("suite")
