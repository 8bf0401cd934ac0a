"""Valid inputs of each target, made by the code that sends them: where fuzzing starts from."""

from __future__ import annotations

from collections import Counter

import msgspec
import pycrdt

from lattica.dht.keys import node_id
from lattica.dht.messages import Claim, PeerAddresses
from lattica.dht.records import Record, seal
from lattica.identity import grants, tickets, wire
from lattica.identity.keys import Identity
from lattica.identity.signed import Signed
from lattica.link import beat, retry
from lattica.link.proof import Proof, Role
from lattica.path.probes import ProbeKeys, Prober
from lattica.reach.messages import News, Order
from lattica.reach.nat import Filtering, Mapping, NatReport, Ports
from lattica.reach.plan import plan
from lattica.rpc import messages as m
from lattica.rpc.framing import frame
from lattica.store.blocks.manifest import BlockRef, FileEntry, Manifest
from lattica.store.blocks.tree import Root
from lattica.store.chains.messages import Exchange, Head, Presence, Ruling, Update
from lattica.store.chains.notices import rule
from lattica.store.crdt.values import encode_value
from lattica.store.swarm.messages import Have, Want
from tests.fuzz.session import CONTROL, step
from tests.fuzz.targets import BINDING, ENDING, ONE, OTHER, RELAYED
from tests.store import raw

pack = msgspec.msgpack.encode
ITEMS = msgspec.msgpack.Ext(1, b"")  # where the items stand among the arguments


def seeds() -> dict[str, list[bytes]]:
    """By the target's name. Targets without any begin from nothing."""
    grant = grants.issue(
        ONE, mesh=ONE.peer_id, subject=OTHER.peer_id, scopes=grants.MEMBER, expires=2000.0
    )
    chain = grants.Membership(ONE.peer_id, (grant,))
    ticket = tickets.issue(ONE, [tickets.Contact(OTHER.peer_id, ("a:1",))], now=0.0)
    record = Record(
        node_id(ONE.peer_id), "peer", 1, 1500.0, wire.encode(PeerAddresses(("host:1",)))
    )
    manifest = Manifest((FileEntry("a/b", 3, (BlockRef(bytes(32), 3),)), FileEntry("c", 0, ())))
    prober = Prober(ProbeKeys.derive(bytes(31) + b"x", is_dialer=False), Counter())
    return {
        "link_header": [
            b"\xc0\0\0\0\1\x08" + b"d" * 8 + b"\x08" + b"s" * 8 + b"\x03tok" + bytes(20),
            b"\x40" + b"d" * 8 + bytes(30),
        ],
        "beats_and_tokens": [
            beat.Beats(bytes(31) + b"\1", is_dialer=True).make(beat.Kind.ASK),
            retry.RetryTokens().issue("a:1", b"original", b"chosen", 0.0),
        ],
        "path_probes": [prober.probe(100)[1][9:]],
        "relay_frames": [_relayed((0, RELAYED), (1, RELAYED), (2, ENDING), (3, RELAYED))],
        "proof": [_hello(role) for role in Role],
        "close_reasons": [b"\0\1because", b"\0\2" + "é".encode()],
        "frames": [frame(b"one") + frame(b"two"), b"\0\0\0\x64" + bytes(100)],
        "tcp_frames": [b"\0\3one\0\3two", b"\x40\0" + bytes(300)],
        "control_messages": [pack([message]) for message in _control()] + [pack(_control())],
        "session_of_a_caller": _caller(),
        "session_of_a_server": _server(),
        "signed": [wire.encode(grant)],
        "membership": [wire.encode(chain)],
        "grant_in_a_chain": [grant.payload],
        "ticket": [ticket.encode().encode(), wire.encode(ticket)],
        "dht_replies": [wire.encode((seal(ONE, record),))],
        "dht_record": [wire.encode(record)],
        "dht_claim": [wire.encode(Claim(bytes(20), 10**9, length)) for length in (30.0, 0.0)],
        "reach_news": _orders(),
        "store_update": _updates(),
        "store_state": list(raw.FITTING.values()),
        "store_value": [encode_value({"a": [1, 2.5, None, b"x", "y"], "b": True})],
        "store_manifest": [manifest.encode(), Root(9, (BlockRef(bytes(32), 9),)).encode()],
        "store_swarm": _swarm(),
        "store_exchange": _exchanges(grant),
        "store_presence": [_presence()],
        "store_notice": _notices(),
    }


def _swarm() -> list[bytes]:
    said = [
        Have(b"\xff\xff\x07", (), (), (), False),
        Have(b"", (19,), (3, 4), (OTHER.peer_id,), True),
    ]
    heard = [frame(b"\0" + wire.encode(have)) for have in said]
    wants = [frame(b"\1" + wire.encode(Want((1, 2, 3), (2,))))]
    given = [frame(b"\2" + pack([number, b"x"])) for number in (0, 1, 2)]
    lacks = frame(b"\2" + pack([3, None]))
    return [b"".join(heard), b"".join(wants), b"".join([heard[0], *given, lacks, heard[1]])]


def _orders() -> list[bytes]:
    public = ("192.0.2.7:4000", "192.0.2.7:4100")
    mapping, opened = Mapping.DEPENDENT, Filtering.OPEN
    reports = [
        NatReport(mapping, ports, opened, True, 30, True, public, 4000, 4000, 4100)
        for ports in Ports
    ]
    other = NatReport(Mapping.INDEPENDENT, public=("192.0.2.8:4000",))
    return [
        wire.encode(
            Order(plan(each, other), News(("192.0.2.7:1", "tcp:192.0.2.7:1"), (), (), each))
        )
        for each in reports
    ]


def _relayed(*frames: tuple[int, bytes]) -> bytes:
    return b"".join(
        bytes((source, len(session) + 30)) + session + b"\x40" + bytes(29)
        for source, session in frames
    )


def _hello(role: Role) -> bytes:
    other = Identity(b"third".ljust(32))
    chain = grants.Membership(
        ONE.peer_id,
        (
            grants.issue(
                ONE, mesh=ONE.peer_id, subject=other.peer_id, scopes=["call"], expires=2000.0
            ),
        ),
    )
    end = Proof(other, chain, "third", role=role.other, binding=BINDING, expected=ONE.peer_id)
    return end.hello()


def _call(call: int, method: str, args: object, **more: object) -> m.Call:
    return m.Call(call, "service", method, 5.0, msgspec.Raw(pack(args)), **more)  # type: ignore[arg-type]


def _control() -> list[object]:
    return [
        m.Hello(m.VERSION, 65536, 16),
        _call(0, "add", [1, 2]),
        _call(1, "keep", [{"a": [1.5, None]}]),
        _call(2, "echo", [b"small"]),
        m.Result(0, msgspec.Raw(pack(3))),
        m.Failure(3, "builtins.ValueError", "no", "Traceback", 0.5),
        m.Cancel(1),
        m.Credit(2, 100_000),
        m.Taken(6),
        m.Ack(0),
    ]


def _said(*messages: object) -> bytes:
    return step(CONTROL, frame(pack(list(messages))))


def _caller() -> list[bytes]:
    hello = _said(m.Hello(m.VERSION, 65536, 16))
    body = frame(pack(m.Body(0, False)))
    items = frame(pack(m.Items(0, False)))
    item = frame(pack(m.Item(msgspec.Raw(pack(1)))))
    batch = frame(pack(m.Batch(msgspec.Raw(pack([2, 3, 4])))))
    end = frame(pack(m.End()))
    broken = frame(pack(m.Broken(m.Failure(0, "builtins.ValueError", "no"))))
    return [
        hello + _said(_call(0, "add", [1, 2]), _call(1, "fail", ["x"]), _call(2, "none", [])),
        hello + _said(_call(0, "count", [5]), m.Credit(3, 70_000)) + _said(m.Cancel(0)),
        hello
        + _said(_call(0, "echo", [0], sizes=(300,)))
        + step(1, body + bytes(100))
        + step(1, bytes(200), end=True),
        hello + step(1, body + bytes(10), end=True) + _said(_call(0, "echo", [0], sizes=(10,))),
        hello + _said(_call(0, "echo", [0], sizes=(9,))) + step(1, body) + step(9, b""),
        hello + _said(_call(0, "take", [ITEMS])) + step(1, items + item + batch + end, end=True),
        hello + step(1, items + item) + _said(_call(0, "mirror", [ITEMS])) + step(1, end, end=True),
        hello + _said(_call(0, "take", [ITEMS])) + step(1, items + item) + step(1, broken),
        hello + _said(_call(0, "mirror", [ITEMS])) + step(1, items + batch) + step(9, b""),
    ]


def _server() -> list[bytes]:
    hello = _said(m.Hello(m.VERSION, 65536, 16))
    item = frame(pack(m.Item(msgspec.Raw(pack(1)))))
    end = frame(pack(m.End()))
    broken = frame(pack(m.Broken(m.Failure(2, "builtins.ValueError", "no"))))
    items = frame(pack(m.Items(2)))
    result = m.Result(1, msgspec.Raw(pack(0)), (50,))
    return [
        hello + _said(m.Result(0, msgspec.Raw(pack(3))), m.Failure(3, "builtins.ValueError", "x")),
        hello + step(1, items + item + item + end, end=True),
        hello + step(1, items + item) + step(1, broken, end=True),
        hello + _said(result) + step(2, frame(pack(m.Body(1, True))) + bytes(50), end=True),
        hello + step(1, items + item) + step(9, b""),
        hello + _said(m.Credit(2, 70_000), m.Taken(2), m.Ack(0)),
        hello + _said(m.Credit(6, 70_000), m.Result(4, msgspec.Raw(pack(6)))),
    ]


def _updates() -> list[bytes]:
    updates: list[bytes] = []
    doc = pycrdt.Doc(client_id=7)
    doc.observe(lambda event: updates.append(event.update))
    root = doc.get("map:m", type=pycrdt.Map)
    root["a"] = encode_value(1)
    root["a"] = encode_value([1, 2, 3])
    root["b"] = encode_value("x")
    del root["b"]
    return updates


def _presence() -> bytes:
    step = grants.issue(
        ONE, mesh=ONE.peer_id, subject=ONE.peer_id, scopes=grants.MEMBER, expires=2000.0
    )
    shown = grants.Membership(ONE.peer_id, (step,))
    return wire.encode(Presence(ONE.peer_id, "notes", 10**9, encode_value({"at": 3}), shown))


def _notices() -> list[bytes]:
    updates = [
        wire.encode(Update(ONE.peer_id, "notes", 2, bytes(32), 1.0, body)) for body in (b"1", b"2")
    ]
    ruling = wire.encode(Ruling(ONE.peer_id, "notes", OTHER.peer_id, 3))
    notice = rule(ONE, "notes", OTHER.peer_id, upto=3)
    return [b"".join(updates), ruling, wire.encode(notice)]


def _exchanges(envelope: Signed) -> list[bytes]:
    head = Head(ONE.peer_id, 1, bytes(32))
    update = Update(ONE.peer_id, "notes", 1, bytes(32), 1.0, b"\0\0")
    return [wire.encode(Exchange((head,), (envelope,), True)), wire.encode(update)]
