"""
Write numbers in the text format of Prometheus, with the library prometheus-client.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Any

from pop3svc.metrics.declarations import METRICS, Metric

__all__ = ["CONTENT_TYPE", "expose", "requireLibrary"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def requireLibrary() -> None:
    """
    Import prometheus-client at the start of the service, so that no request has to wait for the
    import.

    @raise ValueError: prometheus-client is not installed.  The text is one sentence.
    """
    try:
        import prometheus_client  # noqa: F401
    except ImportError:
        raise ValueError("needs prometheus-client: pip install 'pop3svc[metrics]'")


class _Registry:
    """
    Gives prometheus-client the numbers in the form that it expects from a registry.
    """

    def __init__(self, numbers: Mapping[str, float | list[float]]) -> None:
        self._values: dict[str, list[tuple[list[str], Any]]] = defaultdict(list)
        for key, value in numbers.items():
            name, *labels = key.split("\t")
            self._values[name].append((labels, value))

    def collect(self) -> Iterator[Any]:
        for metric in METRICS:
            values = self._values.get(metric.name)
            if values:
                yield self._family(metric, values)

    @staticmethod
    def _family(metric: Metric, values: list[tuple[list[str], Any]]) -> Any:
        from prometheus_client.core import (
            CounterMetricFamily,
            GaugeMetricFamily,
            HistogramMetricFamily,
        )

        kinds: dict[str, Any] = {
            "counter": CounterMetricFamily,
            "gauge": GaugeMetricFamily,
            "histogram": HistogramMetricFamily,
        }
        family = kinds[metric.kind](metric.name, metric.help, labels=metric.labels)
        for labels, value in sorted(values):
            if metric.kind == "histogram":
                *counts, total = value
                bounds = [*(str(float(each)) for each in metric.buckets), "+Inf"]
                buckets = list(zip(bounds, accumulate(counts), strict=True))
                family.add_metric(labels, buckets=buckets, sum_value=total)
            else:
                family.add_metric(labels, value)
        return family


def expose(numbers: Mapping[str, float | list[float]]) -> bytes:
    """
    @return: the text of C{/metrics}, whose media type is L{CONTENT_TYPE}.
    """
    from prometheus_client import generate_latest

    registry: Any = _Registry(numbers)
    return generate_latest(registry)
