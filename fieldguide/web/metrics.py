"""Request metrics for Prometheus."""

from collections.abc import Sequence
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

Kind = TypeVar("Kind", Counter, Gauge, Histogram)
SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


class Metrics:
    """The metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = self._make(Counter, "http_requests", "Requests answered", ["route", "status"])
        self.seconds = self._make(Histogram, "http_request_seconds", "From parsed to answered", ["route"], buckets=SECONDS)
        self.images = self._make(Counter, "images", "Images answered", ["verdict"])
        self.refused = self._make(Counter, "images_refused", "Images that were not answered", ["code"])
        self.batches = self._make(Histogram, "batch_images", "Images per run of the network", buckets=(1, 2, 4, 8, 16, 32))
        self.places = self._make(Gauge, "images_in_server", "Images decoded, waiting or computed")
        self.reloads = self._make(Counter, "model_reloads", "New model files seen", ["outcome"])

    def _make(self, kind: type[Kind], name: str, text: str, labels: Sequence[str] = (), **settings: Any) -> Kind:
        return kind(f"fieldguide_{name}", text, labels, registry=self.registry, **settings)

    def text(self) -> bytes:
        """Prometheus' text format, version 0.0.4."""
        return generate_latest(self.registry)
