"""A place-recognition node in a process of its own, on a private domain, for the benchmarks that talk to it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PROFILE = REPOSITORY / "config" / "fastdds_shm.xml"
STOP_S = 20.0


def private_domain(profile: Path | None = PROFILE) -> dict[str, str]:
    """Environment variables of ROS processes that see one another and nobody else; `profile` is Fast DDS's, None its defaults."""
    environment = os.environ | {
        "ROS_DOMAIN_ID": str(1 + os.getpid() % 100),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "RMW_IMPLEMENTATION": "rmw_fastrtps_cpp",
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]),
    }
    return environment if profile is None else environment | {"FASTDDS_DEFAULT_PROFILES_FILE": str(profile)}


@contextmanager
def running(words: list[str], environment: Mapping[str, str], log: Path | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """The process of `python *words`, which ends with the block: by SIGINT, and killed where it does not listen."""
    with open(log or os.devnull, "wb") as output:
        process = subprocess.Popen([sys.executable, *words], env=dict(environment), stdout=output, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            try:
                process.wait(timeout=STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def node_words(parameters: Mapping[str, object]) -> list[str]:
    """Arguments of python that start the node with these parameters."""
    words = ["-m", "asymvpr_ros.place_recognition_node", "--ros-args"]
    return words + [word for name, value in parameters.items() for word in ("-p", f"{name}:={value}")]


def cpu_s(pid: int) -> float:
    """CPU time of a process so far, user and system [s]."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def footprint(pid: int) -> dict[str, int]:
    """What a process holds now: `private_kb` and `resident_kb` of memory, `threads`, `files`."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    values = {name: value.split()[0] for name, _, value in (line.partition(":") for line in lines) if value.split()}
    return {
        "private_kb": int(values["RssAnon"]),
        "resident_kb": int(values["VmRSS"]),
        "threads": int(values["Threads"]),
        "files": len(os.listdir(f"/proc/{pid}/fd")),
    }
