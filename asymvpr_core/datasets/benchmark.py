"""A benchmark: database, queries, and the rule by which its authors say what is a correct match."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from asymvpr_core.config import BenchmarkSettings
from asymvpr_core.datasets.dataset import Dataset
from asymvpr_core.datasets.match_rules import MatchRule, WithinRadius
from asymvpr_core.datasets.positives import Positives
from asymvpr_core.errors import DatasetError

DEFAULT_RADIUS_M = 25.0  # of the benchmarks that test positions


@dataclass(frozen=True)
class PublishedCounts:
    """How many queries and database images the authors of a benchmark report."""

    queries: int
    database: int


@dataclass(frozen=True)
class Benchmark:
    """Two sides and a rule.

    Args:
        name: of the benchmark ("pitts30k", "msls"); of its folder where the layout serves many.
        layout: name of the layout it was read by.
        version: which of several published versions or rules; empty where there is one.
        split: "train", "val" or "test"; empty where there is none.
        rule: None where no ground truth is known: predictions only.
        published: counts to compare with, where they are known.

    Raises:
        DatasetError: no queries, or an empty database.
    """

    name: str
    layout: str
    database: Dataset
    queries: Dataset
    rule: MatchRule | None
    version: str = ""
    split: str = ""
    published: PublishedCounts | None = None

    def __post_init__(self) -> None:
        for role, side in (("queries", self.queries), ("database images", self.database)):
            if not side.records:
                raise DatasetError(f"{self.title} has no {role} in {side.root}", expected="at least one", remedy="check the path")

    @property
    def title(self) -> str:
        """Name, split and version, for results: "msls val (740)"."""
        return " ".join(part for part in (self.name, self.split, f"({self.version})" if self.version else "") if part)

    @property
    def rule_text(self) -> str:
        """The rule in words, or that there is none."""
        return "no ground truth: predictions only" if self.rule is None else self.rule.text

    @property
    def missing(self) -> tuple[str, ...]:
        """Images that an index of the benchmark lists and that are not on disk."""
        return tuple(name for side in (self.database, self.queries) for name in getattr(side, "missing", ()))

    @cached_property
    def positives(self) -> Positives:
        """For each query the database images that are correct by the rule; computed once.

        Raises:
            DatasetError: there is no ground truth, or an image lacks the position or heading that the rule needs.
        """
        if self.rule is None:
            raise DatasetError(
                f"{self.title} has no ground truth, so no query can be judged",
                remedy="give positions in a csv (docs/datasets.md), or ask for predictions only",
            )
        return self.rule.positives(self.queries.records, self.database.records)


@dataclass(frozen=True)
class Layout:
    """How one kind of benchmark lies on disk.

    Args:
        name: what --layout takes.
        summary: one line for lists: the folders that it reads.
        recognises: whether a path holds it; must be quick, must not raise, and be true for no other layout's folders.
        open: reads it; raises DatasetError where something is wrong.
        versions: names of the published versions or rules, the default first; empty where there is one.
    """

    name: str
    summary: str
    recognises: Callable[[Path], bool]
    open: Callable[[Path, BenchmarkSettings], Benchmark]
    versions: tuple[str, ...] = ()

    def version(self, settings: BenchmarkSettings) -> str:
        """The version asked for, or the default.

        Raises:
            DatasetError: a version that the layout does not know.
        """
        wanted = settings.version or self.versions[0]
        if wanted not in self.versions:
            raise DatasetError(f"layout {self.name} has no version '{wanted}'", expected=f"one of {', '.join(self.versions)}")
        return wanted


def radius_rule(settings: BenchmarkSettings) -> WithinRadius:
    """Within 25 m, or by the radius and yaw limit of the settings."""
    return WithinRadius(settings.radius_m or DEFAULT_RADIUS_M, settings.max_yaw_deg)


def refuse_settings(settings: BenchmarkSettings, layout: str, names: Sequence[str], reason: str) -> None:
    """Refuse settings that a layout has no use for, instead of ignoring them.

    Raises:
        DatasetError: one of `names` is set.
    """
    for name in names:
        if getattr(settings, name) is not None:
            flag = "--" + name.replace("_", "-")
            raise DatasetError(
                f"layout {layout} takes no {name}, '{getattr(settings, name)}' was given: {reason}", remedy=f"leave {flag} out"
            )
