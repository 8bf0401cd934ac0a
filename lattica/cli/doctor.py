"""`lattica doctor`: what this machine's network is, what works, what would make it better."""

from __future__ import annotations

import argparse
from enum import Enum

import msgspec
from rich.text import Text

from lattica.cli import control
from lattica.cli.advice import Finding, Network, advise
from lattica.cli.options import add_home, home_of
from lattica.cli.output import console, print_json

COLOURS = {"ok": "green", "better": "yellow", "bad": "red"}


def register_doctor(parser: argparse.ArgumentParser) -> None:
    """`lattica doctor`."""
    add_home(parser)
    parser.set_defaults(run=_doctor)


async def _doctor(args: argparse.Namespace) -> None:
    network: Network = await control.ask(home_of(args).directory, control.Ask("network"), Network)
    findings = advise(network)
    if args.json:
        report = {
            name: value.value if isinstance(value, Enum) else value
            for name, value in msgspec.structs.asdict(network.report).items()
        }
        told = msgspec.structs.asdict(network) | {"report": report}
        print_json({"network": told, "findings": findings})
        return
    for finding in findings:
        _tell(finding)


def _tell(finding: Finding) -> None:
    out = console()
    out.print(Text(f"{finding.level:6}", COLOURS[finding.level]), f" {finding.what}")
    if finding.cure:
        out.print(f"          → {finding.cure}")
