"""On what a training runs: CPU or GPU, one process or several."""

from __future__ import annotations

import os
from typing import Any

import torch
from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy

from asymvpr_core.config import TrainSettings
from asymvpr_core.errors import TrainingError

# Buffers are the bank, which no step changes, and the queue, of which every process has its own.
_UNSHARED: dict[str, Any] = {"broadcast_buffers": False}


def accelerator(settings: TrainSettings) -> str:
    """What Lightning calls the hardware: gpu or cpu.

    Raises:
        TrainingError: a GPU is asked for, or needed by a setting, where there is none or not enough.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if settings.accelerator == "gpu" and gpus == 0:
        raise TrainingError("a GPU is asked for and torch sees none", expected="a CUDA device", remedy="give --accelerator cpu or auto")
    chosen = "cpu" if settings.accelerator == "cpu" or gpus == 0 else "gpu"
    if chosen == "cpu" and settings.precision == "16-mixed":
        raise TrainingError(
            "precision is 16-mixed on a CPU",
            expected="a GPU",
            remedy="give --precision bf16-mixed or 32",
        )
    if chosen == "gpu" and settings.devices > gpus:
        raise TrainingError(f"{settings.devices} devices are asked for and torch sees {gpus}", expected=f"at most {gpus}")
    return chosen


def device(settings: TrainSettings) -> torch.device:
    """Where this process computes outside Lightning, for the alignment."""
    return torch.device("cpu" if accelerator(settings) == "cpu" else f"cuda:{os.environ.get('LOCAL_RANK', 0)}")


def started_from_outside() -> bool:
    """Whether torchrun or SLURM started one process for each device."""
    return bool(TorchElasticEnvironment.detect() or SLURMEnvironment.detect())


def rank() -> int:
    """The number of this process among those that torchrun or SLURM started; 0 otherwise."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0))) if started_from_outside() else 0


def strategy(settings: TrainSettings) -> Any:
    """Lightning's strategy: data-parallel over several processes where there are several, by themselves or from outside.

    Raises:
        TrainingError: several nodes without a launcher that starts the command on each.
    """
    if settings.devices * settings.num_nodes == 1:
        return "auto"
    if started_from_outside():
        return DDPStrategy(**_UNSHARED)
    if settings.num_nodes > 1:
        raise TrainingError(
            f"{settings.num_nodes} nodes and no launcher", expected="one process for each device, started by torchrun or SLURM",
            remedy="see 'Several GPUs, several nodes' in docs/training.md",
        )  # fmt: skip
    # Spawned, not started as new commands: those would find the run's work folder locked by this one.
    return DDPStrategy(start_method="spawn", **_UNSHARED)
