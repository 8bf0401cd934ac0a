"""Chapters one to four: peers, work, a stranger, a document."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import anyio

import lattica
from examples.demo.machines import Machine, Machines
from examples.demo.model import MODEL_NAME
from examples.demo.story import Story
from examples.demo.work import Camera, where
from lattica.actors.host_service import HostService
from lattica.actors.messages import LeaseRequest, Requirements, TaskSpec, Value
from lattica.errors import LatticaError, PermissionDeniedError
from lattica.identity.grants import Membership
from lattica.identity.keys import Identity, PeerId
from lattica.link.endpoint import Endpoint
from lattica.path.udp import UdpPath
from lattica.rpc import Buffer, Rpc

NAMES = ("alpha", "beta", "gamma", "delta")
TASKS = 12
LAYERS_EACH = 3  # of the model's eight: three peers hold it, the fourth stands by
SETTLE = 20.0  # seconds that something eventual may take

PEERS = "four peers found each other from one ticket"
FAN_OUT = "a function fanned out over several peers"
NAMED = "the named actor ran on the one peer with a camera"
FOUND = "a second driver found it by name"
RESTARTED = "its process was killed and it came back"
STRANGER = "a stranger's pickle was refused and not run"
DOCUMENT = "the replicated document reads the same on all peers"


def start_peers(story: Story, machines: Machines, model: Path) -> tuple[str, list[Machine]]:
    """Start all four; only the first one's ticket is known to the others."""
    share = ("--listen", "127.0.0.1:0", "--cpus", "1", "--capacity", str(LAYERS_EACH))
    with story.busy("starting alpha, which holds the model's weights"):
        first = machines.start(NAMES[0], "serve", str(model), "--model-name", MODEL_NAME, *share)
        ticket = str(first.wait_for("up")["ticket"])
    with story.busy("starting beta, gamma and delta with alpha's ticket"):
        others = [
            machines.start(
                name,
                *("serve", MODEL_NAME, "--ticket", ticket, *share),
                *(("--resource", "camera=1") if name == "gamma" else ()),
            )
            for name in NAMES[1:]
        ]
        for machine in others:
            machine.wait_for("up")
    return ticket, [first, *others]


def show_peers(story: Story, machines: list[Machine]) -> None:
    """A table of who is there, as the last peer to join sees it."""
    seen: list[dict[str, Any]] = []
    with story.busy("waiting for every peer to know every other"):
        deadline = time.monotonic() + SETTLE
        while time.monotonic() < deadline:
            seen = machines[-1].ask("peers")
            names = {peer["name"] for peer in seen if peer["is_self"] or peer["rtt_ms"] is not None}
            if names >= set(NAMES):
                break
            time.sleep(0.2)
    story.table(
        ["peer", "id", "address", "rtt", "offers"],
        [
            [
                peer["name"],
                peer["peer"][:8],
                peer["address"],
                "-" if peer["rtt_ms"] is None else f"{peer['rtt_ms']:.1f} ms",
                _offers(peer["total"]),
            ]
            for peer in seen
        ],
    )
    names = {peer["name"] for peer in seen}
    story.keep(PEERS, names >= set(NAMES), f"{len(names & set(NAMES))} of 4, seen by delta")


def _offers(total: dict[str, float]) -> str:
    return ", ".join(
        f"{amount / 2**30:.1f} GiB" if name == "memory" else f"{amount:g} {name}"
        for name, amount in total.items()
        if amount
    )


def fan_out(story: Story) -> None:
    """`where.remote(i)` for some i; which peer ran what."""
    started = time.monotonic()
    results = lattica.get([where.remote(i) for i in range(TASKS)], timeout=30)
    elapsed = time.monotonic() - started
    peers = Counter(peer for _, peer in results)
    for peer, count in sorted(peers.items()):
        numbers = ", ".join(str(i) for i, (_, ran) in enumerate(results) if ran == peer)
        story.say(f"{peer:<6} ran {count} of {TASKS}: where({numbers})")
    right = [value for value, _ in results] == [i * i for i in range(TASKS)]
    story.keep(
        FAN_OUT,
        right and len(peers) >= 2,
        f"{TASKS} calls on {len(peers)} peers in {elapsed * 1000:.0f} ms",
    )


SECOND_DRIVER = """
import sys, lattica
with lattica.init(sys.argv[1], name="second-driver"):
    print(*lattica.get(lattica.get_actor("camera").whoami.remote(), timeout=20))
"""


def named_actor(story: Story, ticket: str) -> None:
    """A named actor where its resource is; found by another driver; killed; back again."""
    camera = Camera.options(  # type: ignore[attr-defined]
        name="camera", resources={"camera": 1}, num_cpus=0.1, max_restarts=1, max_task_retries=3
    ).remote()
    peer, pid = lattica.get(camera.whoami.remote(), timeout=30)
    lattica.get([camera.shoot.remote() for _ in range(3)], timeout=10)
    story.keep(NAMED, peer == "gamma", f"camera is on {peer}, process {pid}")

    second = subprocess.run(
        [sys.executable, "-c", SECOND_DRIVER, ticket],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    found = second.stdout.split()
    story.keep(
        FOUND,
        found == [peer, str(pid)],
        f"get_actor('camera') answered from {' '.join(found) or second.stderr[-200:]}",
    )

    os.kill(pid, signal.SIGKILL)
    started = time.monotonic()
    shots = lattica.get(camera.shoot.remote(), timeout=30)
    back = time.monotonic() - started
    _, new_pid = lattica.get(camera.whoami.remote(), timeout=10)
    story.keep(
        RESTARTED,
        new_pid != pid and shots == 1,
        f"process {pid} killed, {new_pid} answered after {back * 1000:.0f} ms",
    )


class _WriteFile:
    """A pickle that writes a file when it is loaded: what a grant protects from."""

    def __init__(self, target: Path) -> None:
        self._target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self._target}",)


def stranger(story: Story, first: Machine, target: Path) -> None:
    """Connect without a grant and submit a pickle; it must not be loaded."""
    up = first.wait_for("up")
    before = first.ask("status")["refused"]
    error = anyio.run(_submit_as_stranger, up, pickle.dumps(_WriteFile(target)))
    refused = first.ask("status")["refused"] - before
    story.say(f"the stranger was told: [italic]{type(error).__name__}: {error}[/]")
    story.keep(
        STRANGER,
        isinstance(error, PermissionDeniedError) and refused >= 1 and not target.exists(),
        f"{refused} refused and counted by alpha; {target.name} does not exist",
    )


async def _submit_as_stranger(up: dict[str, Any], poison: bytes) -> LatticaError | None:
    identity, alpha = Identity.generate(), PeerId.parse(up["peer"])
    task = TaskSpec(
        task=os.urandom(16),
        name="poison",
        function=Buffer(poison),
        function_hash=os.urandom(32),
        args=Value(Buffer(poison)),
        arg_refs=(),
        returns=(),
    )
    path = UdpPath.bind("127.0.0.1:0")
    nothing = Membership(PeerId.parse(up["mesh"]))  # names the mesh, shows no grant
    async with Endpoint(identity, nothing, path, name="stranger") as links, Rpc(links) as rpc:
        links.learn(alpha, up["addresses"])
        host = rpc.client(alpha, HostService, "host", timeout=10.0)
        try:
            await host.lease(LeaseRequest(Requirements(), "task", "poison"))
        except LatticaError:
            pass  # the next call does without a lease
        try:
            await host.run(os.urandom(16), task)
        except LatticaError as error:
            return error
    return None


def document(story: Story, machines: list[Machine]) -> None:
    """Every peer's copy of the roster has the same digest and the same entries."""
    digests: dict[str, str] = {}
    started = time.monotonic()
    while time.monotonic() - started < SETTLE:
        digests = {
            machine.name: machine.ask("status")["documents"].get("roster", "")
            for machine in machines
        }
        if len(set(digests.values())) == 1 and "" not in digests.values():
            break
        time.sleep(0.2)
    for name, digest in digests.items():
        story.say(f"{name:<6} roster {digest[:16] or '(not open)'}")
    same = len(set(digests.values())) == 1 and "" not in digests.values()
    story.keep(DOCUMENT, same, f"{len(digests)} copies, {len(set(digests.values()))} content")
