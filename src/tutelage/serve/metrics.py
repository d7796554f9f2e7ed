"""What a server counts, in Prometheus' text format."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The counters of one server; docs/serve.md lists them."""

    def __init__(self) -> None:
        """All start at 0."""
        registry = self._registry = CollectorRegistry()
        self.requests = Counter(
            "tutelage_requests", "Requests that were answered.", ["endpoint", "status"], registry=registry
        )
        self.seconds = Histogram(
            "tutelage_request_seconds", "Seconds of a request.", ["endpoint"], buckets=SECONDS, registry=registry
        )
        self.rows = Counter("tutelage_rows", "Rows that were answered.", ["answered_by"], registry=registry)
        self.unreadable = Counter(
            "tutelage_unreadable_answers", "Rows whose answer could not be parsed.", registry=registry
        )
        self.deferred = Counter("tutelage_deferred_rows", "Rows that were passed on to the teacher.", registry=registry)
        self.failures = Counter(
            "tutelage_teacher_failures",
            "Rows that were passed on and that the teacher did not answer.",
            registry=registry,
        )
        self.batches = Histogram(
            "tutelage_batch_rows", "Rows that were answered together.", ["model"], buckets=ROWS, registry=registry
        )
        self.inside = Gauge("tutelage_rows_in_progress", "Rows that wait or are being answered.", registry=registry)
        self.threshold = Gauge(
            "tutelage_defer_below", "Confidence below which rows go to the teacher.", registry=registry
        )

    def text(self) -> bytes:
        """All values."""
        return generate_latest(self._registry)
