"""What a measurement was made with: commit, hardware, versions; and the memory of this process."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path


def describe(*packages: str) -> dict[str, object]:
    """Commit, processor, cores, memory, load of the machine, and the versions of `packages`, as JSON values."""
    repository = Path(__file__).resolve().parents[1]
    git = ["git", "-C", str(repository)]
    commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True).stdout.strip() != ""
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    names = [line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name")]
    flags = next((line.split() for line in info.splitlines() if line.startswith("flags")), [])
    return {
        "commit": commit + ("+changes" if changed else ""),
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "processor_features": [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags],
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
    }


def resident_bytes(pid: int | None = None) -> int:
    """Memory of a process now; None: of this one."""
    return _status("VmRSS", pid)


def memory_bytes() -> tuple[int, int]:
    """(private, all) memory of this process now: private is what it allocated itself, all adds the pages of mapped files."""
    return _status("RssAnon"), _status("VmRSS")


def reset_peak() -> None:
    """Let `peak_bytes` count from now on."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """Most memory that this process had since `reset_peak`, or since its start."""
    return _status("VmHWM")


def _status(name: str, pid: int | None = None) -> int:
    lines = Path(f"/proc/{pid or 'self'}/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(name + ":")))
