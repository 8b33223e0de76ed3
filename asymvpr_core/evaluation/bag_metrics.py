"""The numbers of a recorded run, with the protocol that they were counted by."""

from __future__ import annotations

from typing import Any

import numpy as np

from asymvpr_core.config import EvaluationSettings, MatcherSettings
from asymvpr_core.evaluation.encoded_run import EncodedRun, would_drop
from asymvpr_core.evaluation.loop_closure import PrecisionRecall
from asymvpr_core.evaluation.outcomes import FrameOutcome, Outcome, detection_delay
from asymvpr_core.evaluation.protocol import correct_match_rule, encoder_identity, gallery_identity, median, percentiles
from asymvpr_core.evaluation.retrieval_metrics import recall_at_k
from asymvpr_core.retrieval.joint import PriorGallery


def bag_metrics(
    run: EncodedRun,
    gallery: PriorGallery,
    matcher: MatcherSettings,
    frames: list[FrameOutcome],
    sweep: PrecisionRecall,
    agreed: PrecisionRecall,
    evaluation: EvaluationSettings,
) -> dict[str, Any]:
    """Contents of a run's `metrics.json`; `sweep` is over single frames, `agreed` over those that agreement lets through."""
    dataset = run.dataset
    accepted = [frame for frame in frames if frame.outcome in (Outcome.TRUE, Outcome.FALSE)]
    n_true = sum(frame.outcome is Outcome.TRUE for frame in accepted)
    opportunities = [frame for frame in frames if frame.is_opportunity]
    ks = [k for k in evaluation.k if k <= matcher.top_k] or [1]
    ranked = np.full((len(opportunities), matcher.top_k), -1, dtype=np.int64)
    for row, frame in zip(ranked, opportunities, strict=True):
        row[: len(frame.result.candidates)] = [candidate.keyframe_index for candidate in frame.result.candidates]
    recall = recall_at_k(ranked, [frame.positives for frame in opportunities], ks) if opportunities else {}
    delay = detection_delay(frames)
    position_errors = np.array([frame.position_error_m for frame in accepted])
    heading_errors = np.array([frame.heading_error_deg for frame in accepted])
    latency_ms = np.array([frame.latency_ms for frame in frames])
    return {
        "protocol": {
            "task": "bag",
            "correct_match": correct_match_rule(evaluation),
            "radius_m": evaluation.radius_m,
            "max_yaw_deg": evaluation.max_yaw_deg,
            "ignore_ring_m": evaluation.ignore_ring_m,
            "exclude_time_s": matcher.exclude_time_s,
            "opportunity": "a frame with a correct keyframe that is not excluded by time",
            "k": ks,
            "recall_at_k": f"over the opportunities, before threshold and vote; K beyond the matcher's top_k, {matcher.top_k}, is left out",
            "average_precision": "over the best candidate of every frame, unthresholded scores, recall over the opportunities",
            "precision_of_accepted": "true matches / accepted matches, with the matcher's threshold and agreement",
            "recall_of_accepted": "true matches / opportunities, with the matcher's threshold and agreement",
            "with_agreement": "what the matcher accepts at one threshold after another (quantiles of the best scores), "
            "agreement and verification included; the best candidate alone where both are off",
            "errors": "horizontal distance and heading difference between frame and matched keyframe, over all accepted matches",
            "latency_ms": "one frame through pre-processing, query network, search and matcher; decoding not included",
            "n_would_drop": "frames that a one-slot worker of this latency would not have seen, had they come in live",
            "frames": "every frame with ground truth, none dropped; frames without ground truth are skipped and counted apart",
            "matcher": matcher.model_dump(mode="json"),
        },
        "n_frames": len(frames),
        "n_skipped": getattr(dataset, "skipped", 0),
        "skipped": getattr(dataset, "skipped_summary", ""),
        "n_opportunities": len(opportunities),
        "n_without_positive": len(frames) - len(opportunities),
        "n_accepted": len(accepted),
        "n_true": n_true,
        "n_false": len(accepted) - n_true,
        "n_ignored": sum(frame.outcome is Outcome.IGNORED for frame in frames),
        "n_missed": sum(frame.outcome is Outcome.MISSED for frame in frames),
        "precision_of_accepted": n_true / len(accepted) if accepted else None,
        "recall_of_accepted": n_true / len(opportunities) if opportunities else None,
        "recall_at_k": {str(k): value for k, value in recall.items()},
        "average_precision": sweep.average_precision,
        "max_f1": sweep.max_f1,
        "max_f1_threshold": sweep.max_f1_threshold,
        "recall_at_full_precision": sweep.recall_at_full_precision,
        "full_precision_threshold": sweep.full_precision_threshold,
        "with_agreement": {
            "average_precision": agreed.average_precision,
            "recall_at_full_precision": agreed.recall_at_full_precision,
            "full_precision_threshold": agreed.full_precision_threshold,
            "recall_at_99_precision": agreed.recall_at_precision(0.99)[0],
        },
        "position_error_m": {"median": median(position_errors), **percentiles(position_errors, 95)},
        "heading_error_deg": {"median": median(heading_errors), **percentiles(heading_errors, 95)},
        "latency_ms": percentiles(latency_ms, 50, 95, 99),
        "n_would_drop": would_drop(run.stamps_ns, latency_ms),
        "detection_delay_s": {
            "median": median(np.array(delay.delays_s)),
            "max": max(delay.delays_s, default=None),
            "n_stretches": delay.n_stretches,
            "n_found": len(delay.delays_s),
        },
        "gallery": gallery_identity(gallery),
        "encoder": encoder_identity(run.model, gallery),
        "source": {"path": str(dataset.root), "layout": dataset.layout, "map_frame": dataset.map_frame},
    }
