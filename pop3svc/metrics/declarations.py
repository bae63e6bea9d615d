"""
Declare every metric once.  Keep numbers by metric and labels, and combine the numbers of several
processes.

A L{Numbers} is a dictionary, so that a worker can send it to its parent as JSON.  A key consists of
the name of a metric and the values of its labels, with tabulators between them.  The value is a
number.  For a histogram the value is a list: the count of each bucket, the count above the last
bucket, and the sum of the observed values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

__all__ = ["BY_NAME", "CALL_BUCKETS", "METRICS", "Metric", "Numbers", "addUp", "key", "merge"]

Numbers = dict[str, "float | list[float]"]


@dataclass(frozen=True)
class Metric:
    """
    The declaration of a metric.

    @ivar name: the name in the text that Prometheus reads.
    @ivar help: a text that explains the metric to the operator.
    @ivar labels: the names of the labels.
    @ivar buckets: for a histogram, the upper bounds of the buckets in seconds.
    @ivar together: how the numbers of several processes are combined.  C{sum} adds them, C{least}
        takes the least number, and C{most} takes the greatest.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    together: Literal["sum", "least", "most"] = "sum"


# Upper bounds in seconds.  The least is the time of a command that needs no disk.  The greatest is
# a quarter of the default of answerTimeout, which limits the time of a call.
CALL_BUCKETS = (0.0001, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
# Upper bounds in seconds.  The least is 5 ms, because timers are a millisecond late even without
# any load.
_DELAY_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)

METRICS = (
    Metric(
        "pop3svc_info", "gauge", "The version; the value is the number of processes.", ("version",)
    ),
    Metric("pop3svc_connections_total", "counter", "Connections that were accepted."),
    Metric(
        "pop3svc_connections_refused_total",
        "counter",
        "Connections that were refused, by reason: limit, or network (old-tls-from does not name "
        "the client's network).",
        ("reason",),
    ),
    Metric("pop3svc_sessions", "gauge", "Sessions now: login, awake or asleep.", ("state",)),
    Metric(
        "pop3svc_logins_total",
        "counter",
        "Logins by mechanism and result: ok, refused (wrong credentials), busy (a limit, a locked "
        "mailbox), fault, or abandoned by the client.",
        ("mechanism", "result"),
    ),
    Metric(
        "pop3svc_command_seconds",
        "histogram",
        "Seconds from a command to the beginning of its reply; each line of AUTH counts.  Of a "
        "command that runs more than 200 times in a second, one run of 11 is measured, and counts "
        "11 times.",
        ("command",),
        CALL_BUCKETS,
    ),
    Metric("pop3svc_messages_sent_total", "counter", "Messages that were sent completely."),
    Metric(
        "pop3svc_message_octets_total",
        "counter",
        "Octets of the messages that were sent completely.",
    ),
    Metric("pop3svc_messages_deleted_total", "counter", "Messages that clients have deleted."),
    Metric("pop3svc_octets_sent_total", "counter", "Octets of all replies."),
    Metric(
        "pop3svc_wakes_total",
        "counter",
        "WAKE commands by result: new (ACTIVITY/NEW), none (ACTIVITY/NONE) or refused.",
        ("activity",),
    ),
    Metric("pop3svc_bans", "gauge", "Networks that are banned now."),
    Metric(
        "pop3svc_provider_call_seconds",
        "histogram",
        "Seconds that calls of the store and of the accounts take, by method.  A call that returns "
        "at once, in less than a millisecond, does not count.",
        ("call",),
        CALL_BUCKETS,
    ),
    Metric(
        "pop3svc_provider_faults_total",
        "counter",
        "Calls of the store and of the accounts that failed or did not answer in time.",
        ("call",),
    ),
    Metric(
        "pop3svc_server_available",
        "gauge",
        "1 if a database or a server that the service uses has worked at its last use, else 0.",
        ("server",),
        together="least",
    ),
    Metric(
        "pop3svc_server_faults_total",
        "counter",
        "How often a database or a server did not work.",
        ("server",),
    ),
    Metric(
        "pop3svc_servers_failing",
        "gauge",
        "Databases and servers that have failed within the last 30 seconds, and not worked since.",
        together="most",
    ),
    Metric(
        "pop3svc_queue_length",
        "gauge",
        "Work that runs in threads or waits for them: disk, longWork or passwords.",
        ("queue",),
    ),
    Metric(
        "pop3svc_reactor_delay_seconds",
        "histogram",
        "Seconds by which a timer that is due each second was late.",
        (),
        _DELAY_BUCKETS,
    ),
    Metric("pop3svc_cpu_seconds_total", "counter", "CPU time of the processes that serve."),
    Metric("pop3svc_open_file_descriptors", "gauge", "Open file descriptors."),
    Metric("pop3svc_max_file_descriptors", "gauge", "The limit of open file descriptors."),
    Metric(
        "pop3svc_certificate_end_timestamp_seconds",
        "gauge",
        "Time when a certificate or its chain expires, in seconds since the epoch.",
        ("certificate",),
        together="least",
    ),
    Metric(
        "pop3svc_draining", "gauge", "1 while the service admits no more logins.", together="most"
    ),
    Metric("pop3svc_workers", "gauge", "Processes that serve."),
    Metric(
        "pop3svc_worker_restarts_total",
        "counter",
        "Workers that were started again because they had failed.",
    ),
)

BY_NAME: Mapping[str, Metric] = {each.name: each for each in METRICS}


def key(name: str, *labels: str) -> str:
    """
    @param labels: the values of the labels, in the order of L{Metric.labels}.
    @return: the key of a number in L{Numbers}.
    """
    # A tabulator or a line end in a label would change the key.
    return "\t".join((name, *(" ".join(each.split()) for each in labels)))


def merge(total: Numbers, numbers: Mapping[str, float | list[float]]) -> None:
    """
    Add the numbers of a process to those of other processes.
    """
    for each, value in numbers.items():
        metric = BY_NAME.get(each.partition("\t")[0])
        if metric is None:
            # A worker with another version of the code has sent this number, so its metric is
            # unknown here.
            continue
        before = total.get(each)
        if before is None:
            total[each] = list(value) if isinstance(value, list) else value
        elif isinstance(before, list):
            assert isinstance(value, list)
            total[each] = [a + b for a, b in zip(before, value, strict=True)]
        else:
            assert not isinstance(value, list)
            if metric.together == "sum":
                total[each] = before + value
            else:
                total[each] = (min if metric.together == "least" else max)(before, value)


def addUp(all: Iterable[Mapping[str, float | list[float]]]) -> Numbers:
    """
    @return: the combined numbers of several processes.
    """
    total: Numbers = {}
    for each in all:
        merge(total, each)
    return total
