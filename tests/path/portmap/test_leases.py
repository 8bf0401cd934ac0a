"""Mappings at one gateway in virtual time: granted, renewed, lost, refused, forged, removed."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest

from lattica.clock import ManualClock
from lattica.config import PortMapConfig
from lattica.path.portmap.dialects import Dialect, NatPmpDialect, PcpDialect
from lattica.path.portmap.leases import NEVER, Leases
from lattica.path.portmap.mapping import Protocol, Transport, Want
from lattica.path.scopes import Scope
from tests.path.portmap.gateway import GATEWAY, LOCAL, OUTSIDE, SERVER, Gateway

UDP, TCP = Want(Transport.UDP, 4242), Want(Transport.TCP, 4243)
CONFIG = PortMapConfig()


class Bench:
    """A gateway, leases at it, and the clock of both."""

    def __init__(
        self,
        wants: Sequence[Want] = (UDP, TCP),
        dialects: Sequence[Dialect] | None = None,
        **gateway: bool,
    ) -> None:
        self.clock = ManualClock()
        self.gateway = Gateway(self.clock.monotonic, **gateway)
        self.counters: Counter[str] = Counter()
        self.sent: list[bytes] = []
        self.leases = Leases(
            GATEWAY,
            wants,
            dialects if dialects is not None else (PcpDialect(LOCAL), NatPmpDialect()),
            self.now,
            config=CONFIG,
            counters=self.counters,
            chance=random.Random(1),
        )

    @property
    def now(self) -> float:
        return self.clock.monotonic()

    def turn(self) -> bytes | None:
        """What is sent now, unanswered yet."""
        datagram = self.leases.poll(self.now)
        if datagram is not None:
            self.sent.append(datagram)
        return datagram

    def run(self, seconds: float = 0.0) -> None:
        """Let time pass, with every answer at once."""
        end = self.now + seconds
        for _ in range(10_000):
            if self.leases.due > end:
                break
            self.clock.advance(max(self.leases.due - self.now, 0.0))
            datagram = self.turn()
            answer = self.gateway.answer(datagram) if datagram else None
            if answer is not None:
                self.leases.receive(answer, SERVER, self.now)
        else:
            pytest.fail("it never rests")
        self.clock.advance(max(end - self.now, 0.0))

    @property
    def addresses(self) -> list[str]:
        return [mapping.address for mapping in self.leases.mappings]


BOTH = pytest.mark.parametrize(
    ("pcp", "natpmp", "protocol"),
    [(True, True, Protocol.PCP), (False, True, Protocol.NAT_PMP)],
    ids=["pcp", "nat-pmp"],
)


@BOTH
def test_ports_are_mapped_at_once(pcp: bool, natpmp: bool, protocol: Protocol) -> None:
    bench = Bench(pcp=pcp, natpmp=natpmp)
    bench.run()
    assert bench.addresses == [f"{OUTSIDE}:4242", f"tcp:{OUTSIDE}:4243"]
    assert {mapping.protocol for mapping in bench.leases.mappings} == {protocol}
    assert {mapping.lifetime for mapping in bench.leases.mappings} == {3600.0}
    assert {mapping.gateway for mapping in bench.leases.mappings} == {GATEWAY}
    assert bench.gateway.mapped == {(17, 4242): 4242, (6, 4243): 4243}


def test_a_router_that_ignores_pcp_is_asked_by_nat_pmp() -> None:
    bench = Bench(pcp=False, natpmp=True)
    bench.gateway.answer = lambda data, real=bench.gateway.answer: (  # type: ignore[method-assign]
        None if data[0] == 2 else real(data)
    )
    bench.run(2.5)
    assert bench.addresses == [f"{OUTSIDE}:4242", f"tcp:{OUTSIDE}:4243"]


@BOTH
def test_another_port_may_be_given(pcp: bool, natpmp: bool, protocol: Protocol) -> None:
    bench = Bench((UDP,), pcp=pcp, natpmp=natpmp)
    bench.gateway.taken[4242] = 50_000
    bench.run()
    assert bench.addresses == [f"{OUTSIDE}:50000"]
    bench.run(10_000.0)
    assert bench.addresses == [f"{OUTSIDE}:50000"]


@BOTH
def test_mappings_are_renewed_at_half_their_lifetime(
    pcp: bool, natpmp: bool, protocol: Protocol
) -> None:
    bench = Bench((UDP,), pcp=pcp, natpmp=natpmp)
    size = 60 if pcp else 12
    bench.run(1799.0)
    assert len([data for data in bench.sent if len(data) == size]) == 1
    bench.run(2.0)
    asked = [data for data in bench.sent if len(data) == size]
    assert len(asked) == 2
    assert asked[0] == asked[1]  # the same nonce, the same port
    bench.run(24 * 3600.0)
    assert bench.addresses == [f"{OUTSIDE}:4242"]


def test_a_lifetime_of_moments_does_not_make_a_flood() -> None:
    bench = Bench((UDP,), pcp=True)
    bench.gateway.granted = 1
    bench.run(100.0)
    assert len(bench.sent) <= 100.0 / CONFIG.min_renew + 2


@BOTH
def test_a_reboot_of_the_router_is_noticed_and_mended(
    pcp: bool, natpmp: bool, protocol: Protocol
) -> None:
    bench = Bench(pcp=pcp, natpmp=natpmp)
    bench.run(300.0)
    bench.gateway.reboot()
    bench.run(CONFIG.check_every + 1.0)
    assert bench.gateway.mapped == {(17, 4242): 4242, (6, 4243): 4243}


@BOTH
def test_an_announced_reboot_is_mended_at_once(pcp: bool, natpmp: bool, protocol: Protocol) -> None:
    bench = Bench(pcp=pcp, natpmp=natpmp)
    bench.run(300.0)
    bench.gateway.reboot()
    bench.leases.hint(bench.now)
    bench.run()
    assert bench.gateway.mapped == {(17, 4242): 4242, (6, 4243): 4243}


def test_forged_announcements_cost_a_question_now_and_then() -> None:
    bench = Bench()
    bench.run(100.0)
    before = len(bench.sent)
    for _ in range(1000):
        bench.leases.hint(bench.now)
        bench.run(0.01)
    assert len(bench.sent) - before <= 10.0 / CONFIG.hint_pause + 1
    assert len(bench.addresses) == 2


def test_a_new_address_outside_is_followed() -> None:
    bench = Bench(pcp=False)
    bench.run()
    bench.gateway.outside = "5.5.5.77"
    bench.run(CONFIG.check_every + 1.0)
    assert bench.addresses == ["5.5.5.77:4242", "tcp:5.5.5.77:4243"]


def test_a_router_behind_another_translator_is_told() -> None:
    bench = Bench((UDP,))
    bench.gateway.outside = "100.64.3.4"
    bench.run()
    assert [mapping.scope for mapping in bench.leases.mappings] == [Scope.CARRIER]


@BOTH
def test_a_router_without_an_address_is_of_no_use(
    pcp: bool, natpmp: bool, protocol: Protocol
) -> None:
    bench = Bench((UDP,), pcp=pcp, natpmp=natpmp)
    bench.gateway.outside = "0.0.0.0"
    bench.run(10.0)
    assert bench.addresses == []
    assert bench.leases.failure.endswith("it has no address outside")


def test_silence_is_found_out_soon_and_kindly() -> None:
    bench = Bench()
    bench.gateway.is_silent = True
    bench.run(4.0)
    assert bench.leases.failure == "nat-pmp: no answer"
    assert len(bench.sent) == 2 * CONFIG.tries
    assert bench.leases.due == NEVER
    bench.leases.release()
    assert bench.leases.is_released  # nobody is there to be told


def test_a_router_that_falls_silent_loses_its_mapping_when_it_ran_out() -> None:
    bench = Bench((UDP,))
    bench.run(100.0)
    bench.gateway.is_silent = True
    bench.run(3400.0)
    assert bench.addresses == [f"{OUTSIDE}:4242"]  # granted until then, whatever the silence
    bench.run(200.0)
    assert bench.addresses == []
    assert bench.leases.failure
    assert len(bench.sent) < 400


def test_a_refused_port_leaves_the_other() -> None:
    bench = Bench()
    bench.gateway.refuse[6] = 8
    bench.run(400.0)
    assert bench.addresses == [f"{OUTSIDE}:4242"]
    assert sum(len(data) == 60 and data[36] == 6 for data in bench.sent) <= 3
    bench.gateway.refuse.clear()
    bench.run(400.0)
    assert bench.addresses == [f"{OUTSIDE}:4242", f"tcp:{OUTSIDE}:4243"]


def test_a_router_that_refuses_everything_is_given_up() -> None:
    bench = Bench()
    bench.gateway.refuse = {17: 2, 6: 2}
    bench.run(10.0)
    assert bench.leases.failure == "nat-pmp: not authorized"
    assert len(bench.sent) == 3


@BOTH
def test_release_removes_what_was_mapped(pcp: bool, natpmp: bool, protocol: Protocol) -> None:
    bench = Bench(pcp=pcp, natpmp=natpmp)
    bench.run(10.0)
    bench.leases.release()
    assert bench.addresses == []
    assert not bench.leases.is_released
    bench.run()
    assert bench.leases.is_released
    assert bench.gateway.mapped == {}
    assert bench.leases.due == NEVER


def test_release_removes_what_was_asked_and_not_answered_yet() -> None:
    bench = Bench((UDP,))
    datagram = bench.turn()
    assert datagram is not None
    bench.gateway.answer(datagram)  # its answer is still on its way
    bench.leases.release()
    bench.run()
    assert bench.leases.is_released
    assert bench.gateway.mapped == {}


def test_release_from_a_silent_router_ends() -> None:
    bench = Bench()
    bench.run(10.0)
    bench.gateway.is_silent = True
    bench.leases.release()
    bench.run(CONFIG.release_timeout + 0.5)
    assert bench.leases.is_released


@BOTH
def test_answers_from_elsewhere_are_dropped_and_counted(
    pcp: bool, natpmp: bool, protocol: Protocol
) -> None:
    bench = Bench((UDP,), pcp=pcp, natpmp=natpmp)
    datagram = bench.turn()
    assert datagram is not None
    answer = bench.gateway.answer(datagram)
    assert answer is not None
    for source in (("192.168.77.9", 5351), (GATEWAY, 5352)):
        bench.leases.receive(answer, source, bench.now)
    assert bench.addresses == []
    assert bench.counters["portmap:foreign"] == 2


def test_an_answer_with_another_nonce_is_dropped_and_counted() -> None:
    bench = Bench((UDP,))
    datagram = bench.turn()
    assert datagram is not None
    answer = bench.gateway.answer(datagram)
    assert answer is not None
    forged = answer[:24] + bytes(12) + answer[36:]
    bench.leases.receive(forged, SERVER, bench.now)
    assert bench.counters["portmap:unexpected"] == 1
    assert bench.addresses == []
    bench.leases.receive(answer, SERVER, bench.now)
    assert bench.addresses == [f"{OUTSIDE}:4242"]
    bench.leases.receive(answer, SERVER, bench.now)  # once more
    assert bench.counters["portmap:unexpected"] == 2


def test_answers_about_other_ports_and_garbage_are_dropped_and_counted() -> None:
    bench = Bench((UDP,), (NatPmpDialect(),))
    bench.turn()
    bench.leases.receive(b"\0\x80\0\0" + bytes(4) + bytes((5, 5, 5, 5)), SERVER, bench.now)
    bench.turn()
    other = b"\0\x81\0\0" + bytes(4) + b"\x10\x93\x10\x93\0\0\x0e\x10"
    bench.leases.receive(other, SERVER, bench.now)
    bench.leases.receive(b"\0", SERVER, bench.now)
    bench.leases.receive(b"\xff" * 1500, SERVER, bench.now)
    assert bench.addresses == []
    assert bench.counters["portmap:unexpected"] == 1
    assert bench.counters["portmap:malformed"] == 2


def test_lost_questions_are_repeated() -> None:
    bench = Bench((UDP,))
    assert bench.turn() is not None
    assert bench.turn() is None  # not yet
    bench.clock.advance(bench.leases.due - bench.now)
    again = bench.turn()
    assert again == bench.sent[0]
    assert again is not None
    answer = bench.gateway.answer(again)
    assert answer is not None
    bench.leases.receive(answer, SERVER, bench.now)
    assert bench.addresses == [f"{OUTSIDE}:4242"]
