"""`lattica serve` and `lattica gateway`. Loaded by `lattica.cli` when one of them is used.

Importing this module imports torch: that takes seconds and must not happen on the event
loop of a peer that others expect heartbeats from.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from lattica.cli.daemon import guest_options, run_peer
from lattica.cli.options import add_peer
from lattica.cli.output import console, print_json
from lattica.peer import Peer
from serving.client import Client
from serving.config import ServingConfig
from serving.errors import ModelDirError, SpanError
from serving.gateway import Gateway
from serving.http import bind, serving
from serving.loading import ModelFolder, warm
from serving.messages import StageInfo
from serving.span import Span
from serving.volunteer import Layers, Volunteer

DEFAULT_PORT = 8000
log = logging.getLogger("serving.cli")


def register(name: str, parser: argparse.ArgumentParser) -> None:
    """Fill in the parser of the command `name`, "serve" or "gateway"."""
    {"serve": register_serve, "gateway": register_gateway}[name](parser)


def register_serve(parser: argparse.ArgumentParser) -> None:
    """`lattica serve MODEL`."""
    parser.add_argument(
        "model", help="a model folder, its id (b3-…), or the name of a model that the mesh serves"
    )
    parser.add_argument(
        "--layers",
        type=layers,
        default="auto",
        metavar="A:B|auto|standby",
        help="which layers to hold: a span, the widest gap (auto), or none yet (standby)",
    )
    parser.add_argument(
        "--model-name", default=None, metavar="NAME", help="default: the folder's name"
    )
    parser.add_argument("--capacity", type=int, default=None, metavar="LAYERS")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16, float16 or auto")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads for torch")
    parser.add_argument("--kv-tokens", type=int, default=65_536, help="cache budget in tokens")
    _add_mesh(parser)
    parser.set_defaults(run=run_serve)


def register_gateway(parser: argparse.ArgumentParser) -> None:
    """`lattica gateway`."""
    parser.add_argument("--host", default="127.0.0.1", help="TCP address to listen at")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="TCP port (0: any free one)")
    _add_mesh(parser)
    parser.set_defaults(run=run_gateway)


async def run_serve(args: argparse.Namespace) -> None:
    """Run a peer that volunteers, until told to stop."""
    await anyio.to_thread.run_sync(_check_model, args.model)  # before anything is started
    await anyio.to_thread.run_sync(warm)

    async def work(peer: Peer) -> None:
        await serve(args, peer)

    await run_peer(await guest_options(args, "serve"), as_json=args.json, work=work)


async def run_gateway(args: argparse.Namespace) -> None:
    """Run a peer with the HTTP endpoint, until told to stop."""
    listener = bind(args.host, args.port)  # a port in use is told before the peer starts
    await anyio.to_thread.run_sync(warm)

    async def work(peer: Peer) -> None:
        await gateway(args, peer, listener)

    try:
        options = await guest_options(args, "gateway")
        await run_peer(options, as_json=args.json, work=work)
    finally:
        listener.close()


async def serve(args: argparse.Namespace, peer: Peer) -> None:
    """Volunteer with an open peer until cancelled.

    Raises:
        ModelDirError, WeightsError, UnknownModelError, SpanError: see `Volunteer`.
    """
    config = ServingConfig(dtype=args.dtype, threads=args.threads, kv_tokens=args.kv_tokens)
    async with Volunteer(
        peer,
        args.model,
        layers=args.layers,
        name=args.model_name,
        capacity=args.capacity,
        config=config,
        on_change=lambda info: _tell(info, as_json=args.json),
    ) as volunteer:
        _tell_fetched(volunteer, as_json=args.json)
        await anyio.sleep_forever()


async def gateway(args: argparse.Namespace, peer: Peer, listener: Any = None) -> None:
    """Answer HTTP with an open peer until cancelled.

    Raises:
        GatewayPortError: the port cannot be used.
    """
    listener = listener or bind(args.host, args.port)
    client = await Client.open(peer)
    app = (await Gateway.open(peer, client)).app()
    async with serving(app, listener) as url:
        if args.json:
            print_json({"event": "gateway", "url": f"{url}/v1"})
        else:
            console().print(f"OpenAI-compatible endpoint: {url}/v1 (health: {url}/healthz)")
        await anyio.sleep_forever()


def layers(text: str) -> Layers:
    """Read `A:B`, `auto` or `standby`."""
    if text == "auto":
        return "auto"
    if text == "standby":
        return "standby"
    try:
        return Span.parse(text)
    except SpanError as error:
        raise argparse.ArgumentTypeError(f"{error}, auto or standby") from None


def _add_mesh(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ticket", default=None, help="join the mesh of this ticket (needed once per home)"
    )
    add_peer(parser)


def _check_model(model: str) -> None:
    """Tell a bad folder before a peer is started for it."""
    path = Path(model)
    if path.is_dir():
        ModelFolder(path).weight_files()
    elif "/" in model:
        raise ModelDirError(
            f"there is no model directory {path}; give the path of a folder with config.json "
            "and *.safetensors, or the name of a model that the mesh serves"
        )


def _tell(info: StageInfo, *, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "event": info.state,
                "model": info.model,
                "manifest": info.manifest,
                "layers": info.layers,
                "span": str(info.span) if info.span else None,
            }
        )
    elif info.state == "serving":
        console().print(f"{info.name} serves layers {info.span} of {info.model}")
    elif info.state == "standby":
        console().print(f"{info.name} stands by for {info.model} (0:{info.layers})")


def _tell_fetched(volunteer: Volunteer, *, as_json: bool) -> None:
    if as_json:
        print_json({"event": "fetched", "bytes_by_provider": volunteer.provided})
        return
    for provider, count in volunteer.provided.items():
        console().print(f"fetched {count / 1e6:.2f} MB from {provider[:8]}")
