"""What becomes of builds that are killed: SIGKILL at random moments, a look at what is there, the same command again.

    nice python benchmarks/kill_artefacts.py --kills 60 --out out/kills.json
    nice python benchmarks/kill_artefacts.py --stages index session --kills 100

Small made-up artefacts of five stages: `gallery build` (of a bag), `bank build`, `export` (ONNX), `index build` (in a gallery
that has another index) and saving a session. Every other kill comes at a moment drawn from 0 to 1.05 times the duration of an
undisturbed run, the others before a file operation (opening for writing, renaming, removing) drawn from all of them, so that
the last steps are hit as often as they are many. A run is killed one to three times before the command is left alone. After
every kill the artefact is opened with all its checksums and compared with the undisturbed one.
Training has a script of its own, kill_training.py. Exit code 1 where anything wrong was found.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # a process with a pool of threads must not be forked; read when numpy and torch are imported
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from artefact_stages import Stage, ask, content, left_over, make_stages, wanted
from killing import count_operations, finish, killed_after, killed_before, start
from record import Record


class Killer:
    """Kills one stage again and again, and keeps what came out."""

    def __init__(self, stage: Stage, folder: Path, rng: np.random.Generator):
        self.stage, self.folder, self.rng = stage, folder, rng
        self.outcomes: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.kills = self.runs = self.resumed = self.refused = self.cleared = 0
        out = self._new("undisturbed")
        begin = time.perf_counter()
        finish(start(lambda: stage.command(out)))
        self.usual_s = time.perf_counter() - begin
        self.expected, refusal = ask(lambda: content(stage, out))
        if refusal:
            raise SystemExit(f"{stage.name}: {refusal}")
        self.before = None if stage.before is None else ask(lambda: content(stage, self._new("before")))[0]
        counted = self._new("counted")
        self.operations = count_operations(lambda: stage.command(counted), counted.parent)

    def run(self) -> None:
        """One run: one to three kills, and then the command undisturbed."""
        out = self._new(f"run_{self.runs}")
        self.runs += 1
        killed = False
        for _ in range(int(self.rng.integers(1, 4))):
            if not self._kill(out):
                break
            killed = True
            self.kills += 1
            if not self._look(out):
                break
        if not killed:
            shutil.rmtree(out.parent)
            return
        remains = left_over(out.parent, out) != []
        _, refusal = ask(lambda: self.stage.command(out) and None)
        if refusal and "exists already" not in refusal:
            self.wrong.append(f"run {self.runs}: the next command was refused: {refusal}")
        self.refused, self.resumed = self.refused + bool(refusal), self.resumed + (not refusal)
        found, refusal = ask(lambda: content(self.stage, out))
        if found != self.expected:
            names = [name for name in {*(found or {}), *self.expected} if (found or {}).get(name) != self.expected.get(name)]
            self.wrong.append(f"run {self.runs}: the result differs in {names} {refusal}")
        left = left_over(out.parent, out)
        if left:
            self.wrong.append(f"run {self.runs}: {left} is left after the next command")
        self.cleared += remains and not left
        shutil.rmtree(out.parent)

    def _kill(self, out: Path) -> bool:
        if self.rng.random() < 0.5:
            child = start(lambda: self.stage.command(out))
            return killed_after(child, float(self.rng.uniform(0.0, 1.05 * self.usual_s)))
        return killed_before(lambda: self.stage.command(out), out.parent, int(self.rng.integers(1, self.operations + 1)))

    def _look(self, out: Path) -> bool:
        """Note what a kill left under the final name; whether the command still has something to do."""
        found, refusal = ask(lambda: content(self.stage, out))
        if found == self.expected:
            self.outcomes["the new one, whole"] += 1
            return self.before is not None
        if found is not None and found == self.before:
            self.outcomes["the one before, whole"] += 1
        elif found is None and not out.exists():
            self.outcomes["nothing"] += 1
        else:
            self.outcomes["WRONG"] += 1
            self.wrong.append(f"run {self.runs}: a kill left what {f'is refused: {refusal}' if refusal else 'opens and differs'}")
        return True

    def _new(self, name: str) -> Path:
        """The path of a new artefact, alone in a folder of its own."""
        out = self.folder / name / "artefact"
        out.parent.mkdir(parents=True)
        if self.stage.before is not None:
            self.stage.before(out)
        return out


def main() -> int:
    """Kill, compare and print the table; `--out` keeps every value."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60, help="of each stage (default 60)")
    parser.add_argument("--stages", nargs="+", default=[], metavar="WORD", help="only those that have one of these words in their names")
    parser.add_argument("--precisions", nargs="+", default=["fp32"], help="of the export (default fp32)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--folder", type=Path, help="where the artefacts are written for the time of the measurement", metavar="DIR")
    parser.add_argument("--out", type=Path, help="JSON file with every value", metavar="FILE")
    options = parser.parse_args()
    record = Record("kill_artefacts", "Kills", __doc__.partition("\n\n")[2].partition("\n\n")[2], "torch", "faiss-cpu", "onnxruntime")
    rows, wrong, values = [], [], {}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name).resolve()
        for stage in make_stages(folder, options.precisions):
            if not wanted(stage, options.stages or ["build", "export", "save"]):
                continue
            killer = Killer(stage, folder / stage.name.replace(" ", "_"), np.random.default_rng(options.seed))
            while killer.kills < options.kills:
                killer.run()
            seen = [killer.outcomes[outcome] for outcome in ("nothing", "the one before, whole", "the new one, whole", "WRONG")]
            rows.append([stage.name, killer.kills, *seen, killer.runs, killer.resumed, killer.refused, killer.cleared, len(killer.wrong)])
            print(f"{stage.name}: {killer.kills} kills, {len(killer.wrong)} wrong", file=sys.stderr, flush=True)
            wrong += [f"{stage.name}: {what}" for what in killer.wrong]
            values[stage.name] = {
                "undisturbed_s": killer.usual_s, "file_operations": killer.operations, "outcomes": dict(killer.outcomes),
                "wrong": killer.wrong, "kills": killer.kills, "runs": killer.runs,
            }  # fmt: skip
    columns = ["stage", "kills", "left: nothing", "the one before", "the new one", "anything wrong", "runs", "next command finished it",
               "next command: exists already", "remains cleared", "differences"]  # fmt: skip
    record.table("What a kill left under the final name, and what the next command made of it", columns, rows)
    record.values(stages=values)
    record.finish(options.out)
    for line in wrong:
        print(f"WRONG: {line}", file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
