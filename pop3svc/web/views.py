"""
Make the parts of the operator's page from the answers of admin operations.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from pop3svc.metrics.declarations import key
from pop3svc.web.charts import barChart
from pop3svc.web.history import Minute
from pop3svc.web.markup import Child, Markup, joined, tag

__all__ = [
    "duration",
    "showActivity",
    "showBans",
    "showCertificates",
    "showCharts",
    "showServers",
    "showSessions",
    "showSummary",
    "showWorkers",
    "timeOf",
]

# The page warns when a certificate has fewer days left than this number.
_SOON = 21


def duration(seconds: float) -> str:
    """
    @return: a time such as C{3 d 4 h}, C{2 h 5 min}, C{3 min} or C{8 s}.
    """
    left = max(0, int(seconds))
    for unit, size, smaller, smallerSize in (
        ("d", 86400, "h", 3600),
        ("h", 3600, "min", 60),
        ("min", 60, "", 1),
    ):
        if left >= size:
            rest = left % size // smallerSize if smaller else 0
            return f"{left // size} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{left} s"


def timeOf(seconds: float) -> Markup:
    """
    @param seconds: a time in seconds since the epoch.
    @return: the time of day in UTC.
    """
    when = datetime.fromtimestamp(seconds, UTC)
    return tag("time", when.strftime("%H:%M:%S"), datetime=when.isoformat(timespec="seconds"))


def _empty(sentence: str) -> Markup:
    return tag("p", sentence, class_="empty")


def _table(
    caption: str, columns: Sequence[str], rows: Iterable[tuple[str, Sequence[Child]]]
) -> Markup:
    """
    @param rows: for each row, its id and its cells.
    """
    head = tag("tr", *(tag("th", each, scope="col") for each in columns))
    body = [
        tag(
            "tr",
            *(
                tag("td", cell, data_label=column or None)
                for column, cell in zip(columns, cells, strict=True)
            ),
            id=id,
        )
        for id, cells in rows
    ]
    return tag(
        "table",
        tag("caption", caption),
        tag("thead", head),
        tag("tbody", *body),
    )


def _badge(kind: str, words: Child) -> Markup:
    return tag("span", words, class_=f"badge {kind}")


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


# --- the whole service ----------------------------------------------------------------


def showSummary(status: Mapping[str, Any], numbers: Mapping[str, Any]) -> Markup:
    """
    @return: the part with the state of the service and the number of its sessions.
    """

    def number(name: str, *labels: str) -> str:
        return f"{int(numbers.get(key(name, *labels), 0)):,}"

    state = _badge("warn", "draining") if status["isDraining"] else _badge("good", "serving")
    facts: list[tuple[str, Child]] = [
        ("State", state),
        ("Since", duration(status["seconds"])),
        ("Awake", number("pop3svc_sessions", "awake")),
        ("Asleep", number("pop3svc_sessions", "asleep")),
        ("Not logged in", number("pop3svc_sessions", "login")),
        ("Messages sent", number("pop3svc_messages_sent_total")),
        ("Connections so far", number("pop3svc_connections_total")),
    ]
    return tag(
        "dl",
        *(tag("div", tag("dt", name), tag("dd", value)) for name, value in facts),
        class_="cards",
    )


_STATES = {"login": "idle", "awake": "good", "asleep": "sleep", "closing": "idle"}


def showSessions(sessions: Sequence[Mapping[str, Any]], isMore: bool) -> Markup:
    """
    @param sessions: the results of L{pop3svc.admin.sessions.describe} for the sessions to show.
    @param isMore: whether there are further sessions.
    """
    if not sessions:
        return _empty("Nobody is connected.")
    rows = []
    for each in sorted(sessions, key=lambda each: _orderOf(each["session"])):
        name = each["session"]
        kick = tag(
            "a",
            "Kick",
            href=f"kick?session={quote(name)}",
            class_="action",
            id=f"kick-{name}",
            aria_label=f"Kick session {name}",
        )
        cells: list[Child] = [
            name,
            tag("span", "-", class_="empty") if each["user"] is None else each["user"],
            each["address"] or "this machine",
            each["tls"] or "no TLS",
            _badge(_STATES[each["state"]], each["state"]),
            duration(each["seconds"]),
            f"{each['messages']:,}",
            each["waitsFor"],
            kick,
        ]
        rows.append((f"session-{name}", cells))
    columns = ("Session", "User", "Address", "TLS", "State", "Since", "Sent", "Waits for", "")
    more = _empty(f"Only {len(sessions)} sessions are shown here.") if isMore else None
    return joined(_table("Sessions", columns, rows), more)


def _orderOf(name: str) -> tuple[int, ...]:
    return tuple(int(each) for each in name.split("."))


_WORDS = {
    "login": ("good", "logged in"),
    "refused": ("bad", "refused"),
    "sleep": ("sleep", "fell asleep"),
    "wake": ("good", "woke up"),
    "end": ("idle", "ended"),
}
_DETAILS = {"ACTIVITY/NEW": "new mail", "ACTIVITY/NONE": "no new mail"}


def showActivity(events: Sequence[Mapping[str, Any]]) -> Markup:
    """
    @param events: the events of L{pop3svc.admin.activity.Activity}, the latest first.
    """
    if not events:
        return _empty("Logins, sleepers and wakes appear here as they happen.")
    return tag("ol", *(tag("li", _event(each)) for each in events), class_="events")


def _event(event: Mapping[str, Any]) -> Markup:
    if event["what"] == "more":
        return joined(f"... and {_counted(event['count'], 'more event')}")
    kind, words = _WORDS[event["what"]]
    who = event["user"] or "somebody"
    detail = _DETAILS.get(event["detail"], event["detail"])
    return joined(
        timeOf(event["time"]),
        " ",
        _badge(kind, words),
        " ",
        tag("b", who),
        f" from {event['address'] or 'this machine'}, session {event['session']}",
        f": {detail}" if detail else None,
    )


def showCharts(minutes: Sequence[Minute]) -> Markup:
    """
    @param minutes: the minutes of the last hour, the oldest first.
    """
    figures = []
    for name, css, counts in (
        ("Logins", "good", [each.logins for each in minutes]),
        ("Refusals", "bad", [each.refused for each in minutes]),
        ("Other failed logins", "warn", [each.failed for each in minutes]),
        ("Wakes", "sleep", [each.wakes for each in minutes]),
    ):
        caption = tag("figcaption", name, " ", tag("b", f"{sum(counts):,}"))
        axis = tag("p", tag("span", "60 min ago"), tag("span", "now"), class_="axis")
        figures.append(tag("figure", caption, barChart(counts, name, css), axis))
    return tag("div", *figures, class_="charts")


# --- parts of the service ---------------------------------------------------------------


def showBans(bans: Sequence[Mapping[str, Any]], isMore: bool) -> Markup:
    """
    @return: the part with the bans.  Each ban has a button of the form C{lift}.
    """
    if not bans:
        return _empty("Nobody is banned.")
    rows = []
    for each in bans:
        network = each["network"]
        button = tag(
            "button",
            "Lift",
            form="lift",
            name="target",
            value=network,
            class_="action",
            id=f"lift-{network}",
            aria_label=f"Lift the ban of {network}",
        )
        by = "the operator" if each["isByOperator"] else "failed logins"
        cells = [network, duration(each["seconds"]), f"{each['refused']:,}", by, button]
        rows.append((f"ban-{network}", cells))
    columns = ("Network", "Ends in", "Refused", "By", "")
    more = _empty(f"Only {len(bans)} bans are shown here.") if isMore else None
    return joined(_table("Bans", columns, rows), more)


def showCertificates(status: Mapping[str, Any], now: float) -> Markup:
    """
    @param now: the present time in seconds since the epoch.
    """
    if not status["certificates"]:
        return _empty("The service has no certificate.")
    rows: list[tuple[str, Sequence[Child]]] = []
    for each in status["certificates"]:
        days = int((each["end"] - now) // 86400)
        kind = "good" if days >= _SOON else "warn" if days >= 0 else "bad"
        words = _counted(days, "day") + " left" if days >= 0 else "expired"
        end = datetime.fromtimestamp(each["end"], UTC)
        rows.append(
            (
                f"certificate-{len(rows)}",
                [each["path"], tag("time", f"{end:%Y-%m-%d}"), _badge(kind, words)],
            )
        )
    return _table("Certificates", ("File", "Ends on", "Left"), rows)


def showServers(status: Mapping[str, Any]) -> Markup:
    """
    @return: the part with the databases and the other servers that the stores and the accounts use.
    """
    # For each server, show the worst state in any worker.
    found: dict[str, str] = {}
    for where in [status, *status.get("workers", [])]:
        for each in where.get("servers", []):
            reason = "" if each["isAvailable"] else each["reason"] or "not available"
            found[each["name"]] = found.get(each["name"], "") or reason
    if not found:
        return _empty("The stores and the accounts use no database and no other server.")
    rows = [
        (
            f"server-{place}",
            [name, _badge("bad", "down") if reason else _badge("good", "up"), reason],
        )
        for place, (name, reason) in enumerate(sorted(found.items()))
    ]
    return _table("Stores and sources of accounts", ("Name", "State", "Reason"), rows)


def showWorkers(status: Mapping[str, Any]) -> Markup:
    """
    @return: the part with the processes and the ports.
    """
    rows = []
    for each in status.get("workers") or [{**status, "worker": "-", "serves": True}]:
        sessions = sum(each.get("sessions", {}).values())
        queues = ", ".join(f"{name} {count}" for name, count in each.get("queues", {}).items())
        state = _badge("good", "serves") if each["serves"] else _badge("bad", "does not answer")
        rows.append(
            (
                f"worker-{each['worker']}",
                [each["worker"], each["pid"], state, f"{sessions:,}", queues],
            )
        )
    columns = ("Worker", "Process", "State", "Sessions", "Work under way")
    ports = tag("ul", *(tag("li", each) for each in status["listeners"]), class_="plain")
    return joined(
        _table("Workers", columns, rows),
        tag("h3", "Listens on") if status["listeners"] else None,
        ports if status["listeners"] else None,
    )
