"""A logger for tests."""

from typing import Any

from lightning.pytorch.loggers import Logger


class Memory(Logger):
    """Keeps what is logged: tag -> step -> value."""

    name = "memory"
    version = 0

    def __init__(self) -> None:
        self.values: dict[str, dict[int, float]] = {}

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        for tag, value in metrics.items():
            assert step is not None
            self.values.setdefault(tag, {})[step] = value

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass
