"""What becomes of builds on a full disk, in a folder that cannot be written, and of two builds of one artefact at once.

    nice python benchmarks/disk_faults.py --out out/disk.json
    unshare -rm nice python benchmarks/disk_faults.py --tmpfs --out out/disk_tmpfs.json

The made-up artefacts of kill_artefacts.py. A full disk is a limit on the size of a file (`RLIMIT_FSIZE`), from nothing to
one at which the command succeeds, four times as much each time; with `--tmpfs`, for which the script has to be allowed to mount,
it is a small file system instead, where also what is written through a memory map finds no room. Every refusal has to be one of
asymvpr's own errors; then the artefact must not be there, or be the one before, and the same command with room must give what an
undisturbed one gives. Exit code 1 where anything else happened.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ["OMP_NUM_THREADS"] = "1"  # a process with a pool of threads must not be forked; read when torch and FAISS are imported

from artefact_stages import Stage, ask, content, left_over, make_stages, wanted
from killing import count_operations, finish, start, stopped_before
from record import Record

NOBODY = 65534
SMALLEST, LARGEST = 256, 64 << 20  # bytes


class Faults:
    """Tries the faults on one stage; `wrong` collects what must not happen."""

    def __init__(self, stage: Stage, folder: Path):
        self.stage, self.folder = stage, folder
        self.wrong: list[str] = []
        folder.mkdir()
        folder.chmod(0o755)
        out = self._new("undisturbed")
        finish(start(lambda: stage.command(out)))
        self.expected = ask(lambda: content(stage, out))[0]
        self.before = None if stage.before is None else ask(lambda: content(stage, self._new("before")))[0]

    def full_disk(self, *, tmpfs: bool) -> tuple[int, str]:
        """(how often it was refused, the last reason)."""
        refusals, last, size = 0, "", SMALLEST
        while size <= LARGEST:
            name = f"full_{size}"
            refusal = self._on_small_disk(name, size) if tmpfs else self._limited(name, size)
            if not refusal:
                return refusals, last
            refusals, last, size = refusals + 1, refusal, 4 * size
        self.wrong.append(f"not even {LARGEST >> 20} MiB are enough")
        return refusals, last

    def read_only(self) -> str:
        """Why a folder that may not be written is refused."""
        out = self._new("read_only")
        closed = [out.parent, *(path for path in (out, *out.rglob("*")) if path.is_dir())]

        def command() -> object:
            if os.geteuid() == 0:
                os.seteuid(NOBODY)  # permissions mean nothing to root
            return self.stage.command(out)

        for path in closed:
            path.chmod(0o555)
        _, refusal = ask(lambda: command() and None)
        for path in closed:
            path.chmod(0o755)
        self._check("a read-only folder", out, refusal)
        return refusal

    def two_at_once(self) -> str:
        """Why the second is refused while the first is in the midst of its work; the first then has to finish."""
        counted, out = self._new("counted"), self._new("two")
        operations = count_operations(lambda: self.stage.command(counted), counted.parent)
        first = stopped_before(lambda: self.stage.command(out), out.parent, 2 + operations // 2)
        try:
            _, refusal = ask(lambda: self.stage.command(out) and None)
        finally:
            os.kill(first, signal.SIGCONT)
        finish(first)
        if not refusal:
            self.wrong.append("two at once: the second was let in")
        self._compare("two at once", out)
        return refusal

    def _limited(self, name: str, size: int) -> str:
        out = self._new(name)

        def command() -> object:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
            try:
                return self.stage.command(out)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

        _, refusal = ask(lambda: command() and None)
        self._check(f"files of {size} bytes at most", out, refusal)
        return refusal

    def _on_small_disk(self, name: str, size: int) -> str:
        disk = self.folder / name
        disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={LARGEST}", "none", str(disk)]
        subprocess.run(mount, check=True)
        try:
            out = disk / "artefact"
            if self.stage.before is not None:
                self.stage.before(out)
            used = sum(path.stat().st_blocks * 512 for path in disk.rglob("*"))
            subprocess.run([*mount[:4], f"remount,size={used + size}", *mount[5:]], check=True)
            _, refusal = ask(lambda: self.stage.command(out) and None)
            subprocess.run([*mount[:4], f"remount,size={LARGEST}", *mount[5:]], check=True)
            self._check(f"a disk with {size} bytes free", out, refusal)
            return refusal
        finally:
            subprocess.run(["umount", "-l", str(disk)], check=True)

    def _check(self, fault: str, out: Path, refusal: str) -> None:
        """After a fault: nothing new under the final name, and the same command finishes once the fault is gone."""
        if refusal:
            found, _ = ask(lambda: content(self.stage, out))
            if found != self.before or (found is None and out.exists()):
                self.wrong.append(f"{fault}: refused, and something new is there")
            if "cannot be written" not in refusal:
                self.wrong.append(f"{fault}: refused for another reason: {refusal}")
            _, again = ask(lambda: self.stage.command(out) and None)
            if again:
                self.wrong.append(f"{fault}: the command without the fault is refused: {again}")
        self._compare(fault, out)

    def _compare(self, fault: str, out: Path) -> None:
        found, refusal = ask(lambda: content(self.stage, out))
        if found != self.expected:
            self.wrong.append(f"{fault}: the result differs in the end {refusal}")
        left = left_over(out.parent, out)
        if left:
            self.wrong.append(f"{fault}: {left} is left")

    def _new(self, name: str) -> Path:
        """The path of a new artefact, alone in a folder of its own."""
        out = self.folder / name / "artefact"
        out.parent.mkdir(parents=True)
        if self.stage.before is not None:
            self.stage.before(out)
        return out


def attempt(faults: Faults, name: str, fault: Callable[[], object]) -> object:
    """What a fault gave; a command that ended otherwise than by an error of ours (a signal, a traceback) is noted."""
    try:
        return fault()
    except SystemExit as error:
        faults.wrong.append(f"{name}: {error}")
        return "WRONG"


def main() -> int:
    """Try every fault on every stage and print the table; `--out` keeps it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tmpfs", action="store_true", help="mount small file systems for the full disk, and try nothing else")
    parser.add_argument("--stages", nargs="+", default=[], metavar="WORD", help="only those that have one of these words in their names")
    parser.add_argument("--folder", type=Path, help="where the artefacts are written for the time of the measurement", metavar="DIR")
    parser.add_argument("--out", type=Path, help="JSON file with every value", metavar="FILE")
    options = parser.parse_args()
    record = Record("disk_faults", "Disk faults", __doc__.partition("\n\n")[2].partition("\n\n")[2], "torch", "faiss-cpu", "onnxruntime")
    rows, wrong, reasons = [], [], {}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name).resolve()
        folder.chmod(0o755)
        for stage in make_stages(folder, ["fp32"]):
            if not wanted(stage, options.stages):
                continue
            faults = Faults(stage, folder / stage.name.replace(" ", "_"))
            full = attempt(faults, "full disk", lambda faults=faults: faults.full_disk(tmpfs=options.tmpfs))  # type: ignore[misc]
            closed = None if options.tmpfs else attempt(faults, "read-only folder", faults.read_only)
            second = None if options.tmpfs else attempt(faults, "two at once", faults.two_at_once)
            count = full[0] if isinstance(full, tuple) else "WRONG"
            words = [None if options.tmpfs else "refused" if reason else "WRONG" for reason in (closed, second)]
            rows.append([stage.name, count, *words, len(faults.wrong)])
            reasons[stage.name] = {"full disk": full, "read-only folder": closed, "second at once": second, "wrong": faults.wrong}
            print(f"{stage.name}: {len(faults.wrong)} wrong", file=sys.stderr, flush=True)
            wrong += [f"{stage.name}: {what}" for what in faults.wrong]
            shutil.rmtree(faults.folder)
    record.table("Faults of the disk", ["stage", "full disk: refusals", "read-only folder", "second at once", "anything wrong"], rows)
    record.values(reasons=reasons)
    record.finish(options.out)
    for line in wrong:
        print(f"WRONG: {line}", file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
