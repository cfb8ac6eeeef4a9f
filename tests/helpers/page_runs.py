"""Runs as the page receives them, made up: a gradient that falls with depth without a norm, a drift that rises."""

import math
from typing import Any

import numpy as np

from normzoo.page.packing import packed

Run = dict[str, Any]

GROWTH = {"NoNorm": 3.0, "LayerNorm": 1.8}  # per layer; 1 with BatchNorm


def page_run(
    norm: str = "BatchNorm", seed: int = 0, depth: int = 8, steps: int = 12, experiment: str = "digits"
) -> Run:
    """A run of a network `depth` layers deep, with `steps` samples, one every 10 steps."""
    names = [f"net.hidden.{i}" for i in range(depth)]
    grown = [GROWTH.get(norm, 1.0) ** i for i in range(depth)]
    wave = [[1 + 0.1 * math.sin(step + 3 * seed + i) for i in range(depth)] for step in range(steps)]
    at = [10 * step for step in range(steps)]

    def metric(values: list[float]) -> list[list[float]]:
        return [[a * b for a, b in zip(row, values, strict=True)] for row in wave]

    def table(suffix: str, **metrics: list[list[float]]) -> dict[str, Any]:
        columns = list(metrics.values())
        return {
            "steps": at,
            "layers": [name + suffix for name in names],
            "metrics": list(metrics),
            "units": [f"unit of {name}" for name in metrics],
            "values": [[[rounded(c[s][i]) for c in columns] for i in range(depth)] for s in range(steps)],
        }

    last = max(grown)
    flow = metric([g / last for g in grown])
    level = metric([0.05] * depth)
    evaluated = [row if s % 5 == 4 else [math.nan] * depth for s, row in enumerate(level)]
    floors = [[0.1 if not math.isnan(value) else math.nan for value in row] for row in evaluated]
    ones = metric([1.0] * depth)
    from_input = metric([0.0, *grown[1:]])
    run: Run = {
        "name": f"{experiment}/{norm}-{seed}/000",
        "norm": norm,
        "seed": seed,
        "experiment": experiment,
        "folder": f"lightning_logs/{experiment}/{norm}-{seed}/000",
        "steps": at[-1] + 1,
        "last_step": at[-1],
        "finished": True,
        "network": [
            {"name": name + suffix, "type": kind, "role": role, "shape": [32, 16]}
            for name in names
            for suffix, kind, role in (
                (".layer", "Linear", "weighted"),
                (".norm", norm, "norm"),
                (".activation", "ReLU", "activation"),
            )
            if not (norm == "NoNorm" and role == "norm")
        ],
        "verdicts": [],
        "tables": {
            "CovariateShift": table(
                ".layer",
                drift_w2=metric(grown),
                step_w2=metric(grown),
                block_w2=ones,
                depth_w2=from_input,
                val_w2=evaluated,
                val_w2_floor=floors,
                test_w2=evaluated,
                test_w2_floor=floors,
            ),
            "GradientFlow": table(".layer", flow_norm=flow, grad_norm=flow),
            "ActivationPercentiles": table(
                ".activation", input_p15=metric([-1.0] * depth), input_p50=level, input_p85=ones, input_width=ones
            ),
            "InternalCovariateShift": table(".layer", ics_relative=metric(grown), ics_cosine=level),
        },
        "histograms": {
            "ActivationPercentiles": {
                "steps": at,
                "layers": [f"{name}.activation" for name in names],
                "low": [[-2.0] * depth] * steps,
                "high": [[2.0] * depth] * steps,
                "counts": [[[1, 4, 9, 4, 1]] * depth] * steps,
            }
        },
        "channels": {},
        "landscape": {
            "steps": at,
            "eta": [0.1, 0.2, 0.4],
            "loss": [[1.0, 0.9, 1.2]] * steps,
            "gradient_change": [[0.1, 0.2, 0.4]] * steps,
        },
        "scalars": {"val/accuracy": {"steps": at, "values": [rounded(s / steps) for s in range(steps)]}},
    }
    if norm == "NoNorm":
        run["verdicts"] = [
            {
                "rule": "vanishing",
                "layer": "net.hidden.0.layer",
                "step": 20,
                "value": 1e-4,
                "threshold": 1e-3,
                "text": "The gradient vanishes: net.hidden.0.layer receives 1e-4 at step 20.",
                "remedy": "Put a norm before each activation.",
            }
        ]
        return run
    scale = {"gamma_mean": ones, "gamma_std": level, "beta_mean": level, "beta_std": level}
    running = {"running_gap": level} if norm == "BatchNorm" else {}
    run["tables"]["RunningStatistics"] = table(".norm", **running, **scale)
    if norm == "BatchNorm":
        metrics = ["batch_mean", "batch_var", "running_mean", "running_var", "gamma", "beta"]
        channels = [[0.1 * c, 1.0, 0.1 * c + 0.02, 1.1, 1.0, 0.0] for c in range(6)]
        run["channels"] = {
            f"{name}.norm": {
                "steps": at[::4],
                "metrics": metrics,
                "units": metrics,
                "values": [channels] * len(at[::4]),
            }
            for name in names
        }
    return run


def rounded(value: float) -> float | None:
    """The nearest number of 11 bits, which a report keeps as it is; None for NaN."""
    if math.isnan(value):
        return None
    mantissa, exponent = math.frexp(value)
    return math.ldexp(round(mantissa * 2**11), exponent - 11)


ARRAYS = ("values", "low", "high", "counts", "loss", "gradient_change")


def as_file(run: Run) -> bytes:
    """A run as a report holds it."""

    def arrays(part: Any, key: str = "") -> Any:
        if key in ARRAYS and isinstance(part, list):
            return np.array(part, dtype=float)
        return {name: arrays(one, name) for name, one in part.items()} if isinstance(part, dict) else part

    return packed(arrays(run))
