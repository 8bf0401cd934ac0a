"""Every error Lattica raises, under one root.

Foreign errors (aioquic, msgspec, pycrdt, sqlite3, OSError) are mapped to these
where they enter; they never leak. A message says what happened and names the cure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lattica.identity.keys import PeerId


class LatticaError(Exception):
    """The root of every error raised by Lattica."""


# ---------------------------------------------------------------- identity


class IdentityError(LatticaError):
    """A key, signature, grant or ticket is not what it should be."""


class KeyFileError(IdentityError):
    """The key file is missing, malformed, or readable by others."""


class SignatureError(IdentityError):
    """A signed envelope does not verify, or was signed for another purpose."""


class GrantError(IdentityError):
    """The peer holds no valid grant for what it asked."""


class TicketError(IdentityError):
    """A ticket cannot be used."""


class TicketMangledError(TicketError):
    """The ticket was mistyped or cut: its checksum does not match."""


class TicketExpiredError(TicketError):
    """The ticket's grant has expired."""


class TicketForeignError(TicketError):
    """The ticket belongs to another mesh than this peer."""


class HomeError(LatticaError):
    """A peer's directory cannot be read or written."""


class HomeInUseError(HomeError):
    """Another process runs the peer of this directory."""


class ControlError(LatticaError):
    """The running peer of this machine could not be asked."""


# -------------------------------------------------------------- path and link


class PathError(LatticaError):
    """The socket or an address cannot be used."""


class PortInUseError(PathError):
    """Another process holds the UDP port."""


class AddressError(PathError):
    """An address is not of the form host:port."""


class PortMapError(PathError):
    """The home's router maps no port. The peer works on without."""


class NatReportError(PathError, ValueError):
    """What a peer says about its network cannot be so. Its report is not used."""


class LinkError(LatticaError):
    """A link could not be made, or was lost."""


class EngineError(LinkError):
    """The QUIC engine asked for does not exist, or is not installed."""


class UnreachableError(LinkError):
    """No address of the peer answered."""


class UnknownPeerError(UnreachableError):
    """No address is known for the peer."""


class BackoffError(UnreachableError):
    """The last dials have failed, and the next attempt is not due yet.

    Attributes:
        retry_after: seconds until it is.
    """

    retry_after: float = 0.0


class LinkRefusedError(LinkError):
    """The other end refused the link and said why."""


class WrongPeerError(LinkError):
    """The other end proved another PeerId than the one dialled."""


class ProofError(LinkError):
    """The other end's proof of its key does not hold for this session."""


class SelfDialError(LinkError):
    """A peer dialled itself."""


class CrossMeshError(LinkError):
    """The other end belongs to another mesh."""


class VersionError(LinkError):
    """The other end speaks another version of the protocol."""


class RelayError(LinkError):
    """A relay does not do what it was asked."""


class NoReservationError(RelayError):
    """The peer has not asked the relay to take sessions for it, or has no link to it."""


class RelayBusyError(RelayError):
    """The relay has no room now.

    Attributes:
        retry_after: seconds after which it is worth trying again.
    """

    retry_after: float = 0.0


class LinkLostError(LinkError):
    """The link ended: closed, silent for too long, or broken by a protocol error."""


# ----------------------------------------------------------------------- rpc


class RpcError(LatticaError):
    """A call did not return a value."""


class CallLostError(RpcError):
    """The link ended before the call's outcome was known.

    Attributes:
        may_have_run: whether the handler may have run at the other end.
    """

    def __init__(self, message: str, *, may_have_run: bool) -> None:
        super().__init__(message)
        self.may_have_run = may_have_run


class DeadlineError(RpcError, TimeoutError):
    """The call's deadline passed before its outcome was known."""


class CallCancelledError(RpcError):
    """The call was cancelled at the other end."""


class BusyError(RpcError):
    """The other end has no room for the call now.

    Attributes:
        retry_after: seconds after which it is worth trying again.
    """

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class HandlerDiedError(RpcError):
    """The process that ran the handler ended before it did; the call may have run."""


class UnknownMethodError(RpcError):
    """The peer serves no such service or method."""


class BadArgumentsError(RpcError):
    """The arguments do not fit the method's annotations."""


class BadResultError(RpcError):
    """The result does not fit the method's annotations."""


class PermissionDeniedError(RpcError):
    """The calling peer holds no grant for this method."""


class FrameError(RpcError):
    """The other end sent bytes that are not a valid frame."""


class StreamTruncatedError(RpcError):
    """An item stream or a body ended before its end was announced."""


class RemoteError(RpcError):
    """The handler raised at the other end.

    Attributes:
        peer: the peer's name, as people read it.
        type_name: qualified name of the remote exception's class.
        remote_message: the remote exception's text.
        remote_traceback: the remote traceback as text; may be empty.
    """

    def __init__(self, peer: str, type_name: str, message: str, traceback: str = "") -> None:
        super().__init__(f"{type_name} on {peer}: {message}")
        self.peer = peer
        self.type_name = type_name
        self.remote_message = message
        self.remote_traceback = traceback


# ----------------------------------------------------------------- dht, store


class DhtError(LatticaError):
    """The DHT could not store or find a record."""


class RecordError(DhtError):
    """A record is malformed, oversized, expired, stale or not its author's."""


class NameTakenError(DhtError):
    """Somebody else holds the name.

    Attributes:
        holder: the peer that does; None where the error comes from another process.
    """

    holder: PeerId | None = None  # no argument: an error that takes more than text does not travel


class StoreError(LatticaError):
    """A document or block could not be stored or read."""


class DocumentError(StoreError):
    """An update of a document is malformed, forged or not allowed."""


class BlockMissingError(StoreError):
    """No provider has the block or manifest."""


class BlockCorruptError(StoreError):
    """Bytes do not match their address."""


# -------------------------------------------------------------------- actors


class ActorsError(LatticaError):
    """A task, actor or object could not be handled.

    Attributes, where they are known:
        peer, peer_name: where it happened; the name is as people read it.
        remote_traceback: the remote traceback as text.
        may_have_run: whether user code may have run before it failed.
        cause: the user's own exception, for a TaskError.
    """

    peer: PeerId | None = None
    peer_name: str = ""
    remote_traceback: str = ""
    may_have_run: bool = True
    cause: BaseException | None = None


class NotInitializedError(ActorsError):
    """`lattica.init()` has not been called, or `shutdown()` has."""


class SerializationError(ActorsError, TypeError):
    """A value cannot be pickled; the message names it."""


class NoPlacementError(ActorsError):
    """No peer of the mesh offers what was asked for."""


class LeaseRefusedError(ActorsError):
    """The host declined the lease."""


class GetTimeoutError(ActorsError, TimeoutError):
    """The value was not ready in time."""


class ObjectLostError(ActorsError):
    """The value's owner or holder is gone."""


class TaskCancelledError(ActorsError):
    """The task was cancelled."""


class TaskError(ActorsError):
    """User code raised at the other end.

    An error raised by `lattica.get` is an instance of both this class and the
    user's exception class where that class allows it.
    """


class WorkerDiedError(ActorsError):
    """The worker process of a task ended before the task did."""


class ActorDiedError(ActorsError):
    """The actor is gone for good: killed, crashed too often, or its host is gone."""


class ActorUnavailableError(ActorsError):
    """The actor is restarting, and the call may have run."""


class NoSuchActorError(ActorsError, ValueError):
    """No live actor has the name."""
