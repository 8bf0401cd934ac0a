"""What runs on routers: a real `miniupnpd` for port mapping, and a proxy that lets TCP out."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

from tests.netlab.lab import LabSite
from tests.netlab.processes import LabError, LabProcess
from tests.netlab.requirements import OPTIONAL, find

PROXY_PORT = 3128
# miniupnpd maps no ports of addresses that are reserved, as the lab's are: this one is from a
# block that is not announced in the real internet, and nothing leaves the lab anyway.
UNRESERVED = "25.198.0."
_READY = 10.0  # seconds
_CONFIGURATION = """
ext_ifname=wan
listening_ip=lan
port=5000
enable_upnp={upnp}
{pcp_option}={pcp}
secure_mode=yes
system_uptime=yes
min_lifetime=2
max_lifetime=86400
upnp_table_name=lattica_upnp
upnp_nat_table_name=lattica_upnp
upnp_forward_chain=forwarded
upnp_nat_chain=mapped
upnp_nat_postrouting_chain=mapped_back
uuid=6f0c7a0e-3d44-4a7e-9f43-3f1f0c1d9a01
serial=1
model_number=1
allow 1024-65535 0.0.0.0/0 1024-65535
deny 0-65535 0.0.0.0/0 0-65535
"""
_RULES = """
table inet lattica_upnp {
  chain forwarded { }
  chain mapped { }
  chain mapped_back { }
  chain forward { type filter hook forward priority 0; policy accept; jump forwarded; }
  chain in { type nat hook prerouting priority -100; policy accept; jump mapped; }
  chain out { type nat hook postrouting priority 90; policy accept; jump mapped_back; }
}
"""
_ONLY_BY_PROXY = """
table inet lattica_proxy {
  chain through { type filter hook forward priority -1; policy accept; iifname "lan" drop; }
}
"""


def cannot_map_ports() -> str | None:
    """Why there is no `miniupnpd` here; None where there is one."""
    if find("miniupnpd") is None:
        return f"not installed: apt-get install {OPTIONAL['miniupnpd']}"
    return None


async def with_miniupnpd(site: LabSite, *, upnp: bool = True, pcp: bool = True) -> LabProcess:
    """Have a site's router map ports: UPnP-IGD, and PCP with NAT-PMP.

    The site must be one whose NAT the kernel plays. It gets another outside address.

    Raises:
        LabError: it does not start; the message is its log.
    """
    if not site.by_kernel or site.address is None:
        raise LabError("miniupnpd maps ports of the kernel: the site's NAT is not the kernel's")
    folder = site.lab.folder
    await site.reboot(f"{UNRESERVED}{site.number}")
    await site.nft(_RULES)
    configuration = folder / f"miniupnpd-{site.number}.conf"
    answers = {"upnp": "yes" if upnp else "no", "pcp": "yes" if pcp else "no"}
    configuration.write_text(_CONFIGURATION.format(pcp_option=_pcp_option(), **answers))
    log = configuration.with_suffix(".log")
    started = f"exec {find('miniupnpd')} -d -f {configuration} -P {log}.pid >{log} 2>&1"
    process = await site.run_on_router(["sh", "-c", started])
    deadline = time.monotonic() + _READY
    wanted = "Listening for NAT-PMP/PCP" if pcp else "HTTP listening"
    while not log.exists() or wanted not in log.read_text():
        if process.returncode is not None or time.monotonic() > deadline:
            raise LabError(f"miniupnpd: {log.read_text()}")
        await asyncio.sleep(0.02)
    return process


def _pcp_option() -> str:
    """The option's name, which newer versions have changed."""
    newer = "enable_pcp_pmp"
    return (
        newer if newer.encode() in Path(find("miniupnpd") or "").read_bytes() else "enable_natpmp"
    )


async def with_proxy(
    site: LabSite, *, only: bool = False, credentials: str | None = None
) -> tuple[str, int]:
    """An HTTP CONNECT proxy on a site's router; returns its address inside.

    `only`: nothing else gets out. `credentials`: `user:password` that it asks for.
    """
    if site.router is None:
        raise LabError("a public site has no router")
    command = [sys.executable, "-m", "tests.netlab.http_proxy", site.router, str(PROXY_PORT)]
    process = await site.run_on_router([*command, *([credentials] if credentials else [])])
    ready = await asyncio.wait_for(process.stdout.readline(), _READY)
    if ready != b"ready\n":
        raise LabError(f"the proxy does not start: {(await process.stderr.read()).decode()}")
    if only:
        await site.nft(_ONLY_BY_PROXY)
    return site.router, PROXY_PORT
