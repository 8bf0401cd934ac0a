"""Typed calls between peers: a control plane for messages, a data plane for bytes."""

from lattica.rpc.buffers import Buffer
from lattica.rpc.context import CallContext, caller, trace_id
from lattica.rpc.destinations import into
from lattica.rpc.methods import method
from lattica.rpc.retry import Retry
from lattica.rpc.rpc import Rpc
from lattica.rpc.statistics import MethodStats, RpcStats, SessionStats
from lattica.rpc.stubs import ItemStream

__all__ = [
    "Buffer",
    "CallContext",
    "ItemStream",
    "MethodStats",
    "Retry",
    "Rpc",
    "RpcStats",
    "SessionStats",
    "caller",
    "into",
    "method",
    "trace_id",
]
