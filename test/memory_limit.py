"""Run Python in a process that may not take more than so much memory: what is refused must be refused before it is allocated."""

from __future__ import annotations

import os
import subprocess
import sys

from conftest import REPOSITORY

_BEGIN = """
import resource, sys
{imports}
def limit(megabytes):
    size = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize")) << 10
    resource.setrlimit(resource.RLIMIT_AS, (size + (megabytes << 20), resource.RLIM_INFINITY))
limit({megabytes})
from asymvpr_core.errors import AsymvprError
try:
    {call}
except AsymvprError as error:
    print(error)
else:
    sys.exit("nothing was refused")
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) << 10
begin = {begin}
assert peak - begin < {megabytes} << 20, (peak, begin)
"""


def refusal_within(megabytes: int, imports: str, call: str) -> str:
    """The message with which `call` is refused, in a process that has `megabytes` more than its imports took.

    Both are held to it: the address space, which the system then denies, and the memory that was touched.
    """
    peak = 'next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) << 10'
    code = _BEGIN.format(imports=f"{imports}\nBEGIN = {peak}", megabytes=megabytes, call=call, begin="BEGIN")
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'test'}", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    return result.stdout.strip()
