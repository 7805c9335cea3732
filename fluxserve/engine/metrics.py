"""The figures of `/metrics`, in Prometheus' format. Label values come from fixed sets, never from a client's text.

At every scrape: requests_accepted_total = requests_answered_total + requests_cancelled_total + requests_in_flight.
Accepted: past admission, or joined to a job. Answered: the last byte was handed to the transport, whatever the status.
Cancelled: the client was gone first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
LAG_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)
PAGE_BYTES = 4096


class Metrics:
    """One set of figures with a registry of its own, so that several servers can live in one process."""

    content_type = CONTENT_TYPE_PLAIN_0_0_4

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        name = "fluxserve_{}".format
        self.request_duration = Histogram(
            "gen_ai_server_request_duration_seconds",
            "From the request's head to the answer's last byte.",
            ("gen_ai_operation_name", "gen_ai_request_model", "error_type"),
            buckets=SECONDS,
            registry=registry,
        )
        self.accepted = Counter(name("requests_accepted"), "Requests past admission, or joined.", registry=registry)
        self.answered = Counter(name("requests_answered"), "Accepted requests with an answer.", registry=registry)
        self.cancelled = Counter(name("requests_cancelled"), "Accepted requests whose client left.", registry=registry)
        self.in_flight = Gauge(name("requests_in_flight"), "Accepted requests without an answer.", registry=registry)
        self.rejected = Counter(name("requests_rejected"), "Requests refused, by code.", ("code",), registry=registry)
        self.joined = Counter(name("requests_joined"), "Requests joined to a running job.", registry=registry)
        self.jobs = Counter(name("jobs"), "Jobs that ended, by outcome.", ("outcome",), registry=registry)
        self.queue_depth = Gauge(name("queue_depth"), "Jobs that wait for their start.", registry=registry)
        self.queue_wait = Histogram(
            name("queue_wait_seconds"), "From submission to start.", buckets=SECONDS, registry=registry
        )
        self.denoise_step = Histogram(
            name("denoise_step_seconds"), "One denoise step of one batch.", buckets=SECONDS, registry=registry
        )
        self.stage = Histogram(
            name("stage_seconds"), "One run of a stage.", ("stage",), buckets=SECONDS, registry=registry
        )
        self.restarts = Counter(name("worker_restarts"), "Workers lost, by reason.", ("reason",), registry=registry)
        self.worker_up = Gauge(name("worker_up"), "Workers that take jobs.", registry=registry)
        self.loads = Counter(name("model_loads"), "Models loaded.", registry=registry)
        self.unloads = Counter(name("model_unloads"), "Models unloaded, by reason.", ("reason",), registry=registry)
        self.rss = Gauge(name("rss_bytes"), "Resident memory.", ("process",), registry=registry)
        self.store_bytes = Gauge(name("store_bytes"), "Bytes of stored images.", registry=registry)
        self.store_up = Gauge(name("store_up"), "1 while images can be stored.", registry=registry)
        self.loop_lag = Histogram(
            name("event_loop_lag_seconds"),
            "How late the front's event loop wakes up.",
            buckets=LAG_SECONDS,
            registry=registry,
        )

    def request_accepted(self) -> None:
        """A request has passed admission or joined a job; exactly one of the next two follows."""
        self.accepted.inc()
        self.in_flight.inc()

    def request_answered(self) -> None:
        self.answered.inc()
        self.in_flight.dec()

    def request_cancelled(self) -> None:
        self.cancelled.inc()
        self.in_flight.dec()

    def watch_memory(self, process: str, pids_of: Callable[[], Iterable[int]]) -> None:
        """Reads the processes' memory at every scrape; 0 where there are none, or no /proc."""
        self.rss.labels(process).set_function(lambda: sum(map(_rss_bytes, pids_of())))

    def text(self) -> bytes:
        """The answer of `/metrics`, in `content_type`."""
        return generate_latest(self.registry)


def _rss_bytes(pid: int) -> float:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES
    except OSError:
        return 0.0
