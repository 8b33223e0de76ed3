"""What was measured when an index was chosen, as a table."""

from __future__ import annotations

from asymvpr_core.retrieval.gallery_index import IndexManifest, Trial


def trial_table(manifest: IndexManifest) -> str:
    """A Markdown table with one line for each kind and set of search parameters, the chosen one marked."""
    k = manifest.settings.get("k", 10)
    lines = [
        f"| | kind | search parameters | memory MB | bytes a vector | ms a query | recall@1 | recall@{k} | build s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for trial in manifest.trials:
        mark = "*" if is_chosen(trial, manifest) else " "
        lines.append(
            f"| {mark} | {trial.kind} | {describe_parameters(trial)} | {trial.memory_bytes / 1e6:.1f} "
            f"| {trial.bytes_per_vector:.0f} | {trial.milliseconds:.2f} | {trial.recall_at_1:.3f} | {trial.recall_at_k:.3f} "
            f"| {trial.build_seconds:.1f} |"
        )
    return "\n".join(lines)


def is_chosen(trial: Trial, manifest: IndexManifest) -> bool:
    """Whether this is what the gallery's index is."""
    return (trial.kind, trial.parameters) == (manifest.kind, manifest.parameters)


def describe_parameters(trial: Trial) -> str:
    """The search parameters in one cell."""
    return " ".join(f"{name}={value}" for name, value in trial.parameters.items()) or "-"
