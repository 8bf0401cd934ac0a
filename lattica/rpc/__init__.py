"""Typed calls between peers: a control plane for messages, a data plane for bytes."""

from lattica.rpc.buffers import Buffer
from lattica.rpc.context import CallContext, caller, trace_id
from lattica.rpc.methods import method
from lattica.rpc.retry import Retry
from lattica.rpc.rpc import Rpc
from lattica.rpc.stubs import ItemStream

__all__ = ["Buffer", "CallContext", "ItemStream", "Retry", "Rpc", "caller", "method", "trace_id"]
