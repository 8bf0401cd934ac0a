"""What limits a link, in words: judged from what was seen while a figure was taken."""

from __future__ import annotations

from lattica.cli.reports import SpeedReport

BUSY = 0.85  # of a core: the event loop has one
LOSSY = 0.005  # share of packets
FULL = 0.6  # of what window and round trip allow
QUEUED = 3.0  # times the shortest round trip
ETHERNET = 1500  # bytes
SHORTEST_TOLD = 1.0  # milliseconds: engines take no round trip to be shorter


def of_latency(report: SpeedReport) -> str:
    """What a small call waits for."""
    own = report.value - report.link.rtt_min_ms
    if report.link.rtt_min_ms == SHORTEST_TOLD and own < SHORTEST_TOLD:
        path = min(report.value, SHORTEST_TOLD)
        return (
            f"the work of both ends, and a path of at most {path:.2g} ms "
            "(shorter ones are not told apart)"
        )
    if report.link.rtt_min_ms >= report.value / 2:
        return (
            f"the round trip: the path itself takes {report.link.rtt_min_ms:.2g} ms, "
            f"both ends' work {max(own, 0):.2g} ms"
        )
    return f"the work of both ends: {own:.2g} ms, against {report.link.rtt_min_ms:.2g} ms of path"


def of_calls(report: SpeedReport, in_flight: int) -> str:
    """What bounds small calls with so many in flight."""
    is_told = report.link.rtt_min_ms > SHORTEST_TOLD
    bound = in_flight / (report.link.rtt_min_ms / 1000) if is_told else 0.0
    if _lost(report) > LOSSY:
        return _loss(report)
    if report.cpu >= BUSY:
        return _cpu(report)
    if bound and report.value >= FULL * bound:
        return (
            f"the round trip: {in_flight} in flight over {report.link.rtt_min_ms:.2g} ms give at "
            f"most {bound:,.0f} calls/s; more in flight would give more"
        )
    return f"the other end's CPU, or its event loop: this end used {report.cpu:.0%} of a core"


def of_upload(report: SpeedReport) -> str:
    """What bounds what this end sends."""
    link = report.link
    if _lost(report) > LOSSY:
        return _loss(report)
    if report.cpu >= BUSY:
        return _cpu(report)
    bound = link.window / (link.rtt_ms / 1000) / 1e6 if link.rtt_ms else 0.0
    if bound and report.value >= FULL * bound:
        return (
            f"the congestion window: {link.window / 1024:,.0f} KiB each round trip of "
            f"{link.rtt_ms:.2g} ms allow {bound:,.0f} MB/s"
        )
    if link.rtt_min_ms and link.rtt_ms > QUEUED * link.rtt_min_ms:
        return (
            f"the path's rate: packets queue, the round trip grew from {link.rtt_min_ms:.2g} "
            f"to {link.rtt_ms:.2g} ms"
        )
    return f"the other end: this end used {report.cpu:.0%} of a core and lost no packets"


def of_download(report: SpeedReport) -> str:
    """What bounds what this end takes in; the sender's window is not known here."""
    link = report.link
    if report.cpu >= BUSY:
        return _cpu(report)
    if link.rtt_min_ms and link.rtt_ms > QUEUED * link.rtt_min_ms:
        return (
            f"the path's rate or the other end: packets queue, the round trip grew from "
            f"{link.rtt_min_ms:.2g} to {link.rtt_ms:.2g} ms"
        )
    return f"the other end or the path: this end used {report.cpu:.0%} of a core"


def _lost(report: SpeedReport) -> float:
    return report.lost / report.sent if report.sent else 0.0


def _loss(report: SpeedReport) -> str:
    return f"loss: {_lost(report):.1%} of {report.sent:,} packets had to be sent again"


def _cpu(report: SpeedReport) -> str:
    text = f"this end's CPU: the peer used {report.cpu:.0%} of a core"
    if report.link.datagram <= ETHERNET:
        text += f"; the cost is per packet, and this path takes {report.link.datagram} B each"
    return text
