"""Lattica: run and train models together on machines you own, without a central server.

The flat public API. Names are imported when first used, so that `import lattica` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lattica.actors.api import RuntimeContext as RuntimeContext
    from lattica.actors.api import available_resources as available_resources
    from lattica.actors.api import cancel as cancel
    from lattica.actors.api import cluster_resources as cluster_resources
    from lattica.actors.api import fetch_blocks as fetch_blocks
    from lattica.actors.api import get as get
    from lattica.actors.api import get_actor as get_actor
    from lattica.actors.api import get_runtime_context as get_runtime_context
    from lattica.actors.api import kill as kill
    from lattica.actors.api import nodes as nodes
    from lattica.actors.api import put as put
    from lattica.actors.api import put_blocks as put_blocks
    from lattica.actors.api import remove_blocks as remove_blocks
    from lattica.actors.api import wait as wait
    from lattica.actors.handles import ActorHandle as ActorHandle
    from lattica.actors.handles import ActorMethod as ActorMethod
    from lattica.actors.messages import NodeInfo as NodeInfo
    from lattica.actors.refs import ObjectRef as ObjectRef
    from lattica.actors.refs import ObjectRefGenerator as ObjectRefGenerator
    from lattica.actors.remote import ActorClass as ActorClass
    from lattica.actors.remote import RemoteFunction as RemoteFunction
    from lattica.actors.remote import remote as remote
    from lattica.config import Config as Config
    from lattica.errors import ActorDiedError as ActorDiedError
    from lattica.errors import ActorUnavailableError as ActorUnavailableError
    from lattica.errors import GetTimeoutError as GetTimeoutError
    from lattica.errors import LatticaError as LatticaError
    from lattica.errors import NameTakenError as NameTakenError
    from lattica.errors import NoPlacementError as NoPlacementError
    from lattica.errors import NoSuchActorError as NoSuchActorError
    from lattica.errors import NotInitializedError as NotInitializedError
    from lattica.errors import ObjectLostError as ObjectLostError
    from lattica.errors import SerializationError as SerializationError
    from lattica.errors import TaskCancelledError as TaskCancelledError
    from lattica.errors import TaskError as TaskError
    from lattica.errors import WorkerDiedError as WorkerDiedError
    from lattica.identity.keys import PeerId as PeerId
    from lattica.peer import Peer as Peer
    from lattica.peer import PeerOptions as PeerOptions
    from lattica.session import Session as Session
    from lattica.session import init as init
    from lattica.session import is_initialized as is_initialized
    from lattica.session import shutdown as shutdown

__version__ = "0.1.0"

_HOMES = {
    "lattica.actors.api": (
        "RuntimeContext available_resources cancel cluster_resources fetch_blocks get get_actor "
        "get_runtime_context kill nodes put put_blocks remove_blocks wait"
    ),
    "lattica.actors.handles": "ActorHandle ActorMethod",
    "lattica.actors.messages": "NodeInfo",
    "lattica.actors.refs": "ObjectRef ObjectRefGenerator",
    "lattica.actors.remote": "ActorClass RemoteFunction remote",
    "lattica.config": "Config",
    "lattica.errors": (
        "ActorDiedError ActorUnavailableError GetTimeoutError LatticaError NameTakenError "
        "NoPlacementError NoSuchActorError NotInitializedError ObjectLostError "
        "SerializationError TaskCancelledError TaskError WorkerDiedError"
    ),
    "lattica.identity.keys": "PeerId",
    "lattica.peer": "Peer PeerOptions",
    "lattica.session": "Session init is_initialized shutdown",
}
_WHERE = {name: module for module, names in _HOMES.items() for name in names.split()}

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    module = _WHERE.get(name)
    if module is None:
        raise AttributeError(f"module 'lattica' has no attribute {name!r}")
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
