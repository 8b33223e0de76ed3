"""What a query model was opened with and why: for the log, for diagnostics and for `asymvpr model info`."""

from __future__ import annotations

from dataclasses import dataclass, field

from asymvpr_core.deploy.session import Choice


@dataclass(frozen=True)
class Measured:
    """One way to run the model, measured on this machine: median latency, and smallest cosine to the trained network.

    The cosine is None where the model has no self-test.
    """

    choice: Choice
    latency_ms: float
    cosine: float | None


@dataclass(frozen=True)
class RuntimeReport:
    """What runs, and what does not.

    Args:
        choice: what the model is run with.
        version: name and version of the runtime.
        latency_ms: median of the measurement behind `runtime: auto`; None where nothing was measured.
        cosine: to the trained network over the self-test, as far as it was run; None without one.
        measured: everything that `runtime: auto` compared, the fastest first.
        notes: what was not considered or is out of the ordinary, each with its reason.
        remembered_in: the file that the measurement was read from or written to; "" without one.
    """

    choice: Choice
    version: str
    latency_ms: float | None = None
    cosine: float | None = None
    measured: tuple[Measured, ...] = ()
    notes: tuple[str, ...] = ()
    remembered_in: str = ""

    @property
    def summary(self) -> str:
        """One sentence: what runs, how fast it was measured to be, and every note."""
        text = f"{self.version} ({self.choice.provider}), {self.choice.precision}, {self.choice.threads} thread(s)"
        if self.latency_ms is not None:
            text += f", {self.latency_ms:.1f} ms an image when measured"
        return "; ".join((text, *self.notes))

    def as_diagnostics(self) -> dict[str, str]:
        """Keys and values for a diagnostics message."""
        return {
            "runtime": self.version,
            "runtime_provider": self.choice.provider,
            "runtime_precision": self.choice.precision,
            "runtime_threads": str(self.choice.threads),
            "runtime_measured_ms": "" if self.latency_ms is None else f"{self.latency_ms:.2f}",
            "runtime_cosine": "" if self.cosine is None else f"{self.cosine:.6f}",
            "runtime_notes": "; ".join(self.notes),
        }


@dataclass
class Notes:
    """Reasons that are collected while a model is opened, each once."""

    lines: list[str] = field(default_factory=list)

    def add(self, line: str) -> None:
        """Keep a reason."""
        if line not in self.lines:
            self.lines.append(line)
