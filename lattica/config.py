"""Every default in one place. What needs configuration takes it as an argument."""

from __future__ import annotations

import msgspec

KIB = 1024
MIB = 1024 * KIB


class LinkConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Timing and size limits of links. Times in seconds, sizes in bytes."""

    heartbeat: float = 0.75  # a silent link is asked for a sign of life this often
    brisk: float = 0.2  # the same, while calls are in flight to a peer on this machine
    dead_after: float = 1.8  # nothing heard for so long: the link is lost
    far_heartbeat: float = 12.0  # a link to another machine, while nothing is in flight on it
    far_dead_after: float = 12.0  # its path may be cut for a while; it is suspect long before
    connect_timeout: float = 5.0
    handshake_timeout: float = 5.0
    backoff_base: float = 0.2  # the longest pause after the first failed dial; doubles
    backoff_max: float = 5.0
    backoff_patience: float = 1.0  # a dial that would have to wait longer fails at once
    stable_after: float = 5.0  # a link that ended sooner counts as a failed dial
    drain_timeout: float = 1.0  # what is in flight at the end is waited for so long
    qlog: str | None = None  # directory for traces of connections; None: what LATTICA_QLOG says
    max_links: int = 4096
    max_links_per_source: int = 512  # dialled from one IPv4 address, IPv6 /56 or relay
    max_pending: int = 256  # handshakes in progress
    max_pending_per_source: int = 64
    retry_above: int = 64  # handshakes in progress; dialers then show first where they are
    handshake_rate: float = 20.0  # a second, sustained, from one source: IPv4 address or IPv6 /56
    handshake_burst: float = 100.0
    socket_buffer: int = 4 * MIB
    datagram: int = 1452  # largest sent by an engine that cannot enlarge it, path unknown
    max_datagram: int = 61_440  # none larger is ever sent, whatever the path takes
    proxy: str = ""  # for TCP and TLS: http://[USER:PASSWORD@]HOST:PORT; "": LATTICA_PROXY's
    engine: str = "auto"  # or "aioquic", "qh3"; "auto" heeds the variable LATTICA_QUIC


class PortMapConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Ports kept open on the home's router. Times in seconds, sizes in bytes."""

    protocols: tuple[str, ...] = ("pcp", "nat-pmp", "upnp")  # tried in this order; (): none
    lifetime: int = 3600  # asked for; renewed at half of what is granted
    max_lifetime: float = 24 * 3600.0  # a mapping is renewed as if it were granted for no longer
    min_renew: float = 5.0  # between two renewals, whatever is granted
    check_every: float = 60.0  # is the gateway's state still there?
    gateway_port: int = 5351  # PCP and NAT-PMP
    tries: int = 3  # of a question that stays unanswered
    tries_leaving: int = 2
    first_retry: float = 0.25  # before a question is repeated; doubles
    hint_pause: float = 5.0  # between checks made because of announcements
    min_refusal: float = 30.0  # after a refusal the same is not asked for sooner,
    max_refusal: float = 1800.0  # nor, whatever the gateway says, later
    watch_every: float = 2.0  # between looks at this machine's addresses and routes
    retry_after: float = 30.0  # nobody maps ports here: look again; doubles
    retry_max: float = 3600.0
    release_timeout: float = 1.5  # at the end, for removing what was mapped
    upnp_timeout: float = 3.0  # for a search, and for each answer of a gateway
    max_document: int = 256 * KIB  # one answer of a gateway by UPnP
    max_requests: int = 48  # made to find out what a gateway can do


class LanConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Peers on the same local network. Times in seconds."""

    max_interfaces: int = 8
    max_asking: int = 32  # announcements that are being read
    answer_timeout: float = 3.0  # for what goes by a name
    watch_every: float = 5.0  # between looks at this machine's addresses
    spread: float = 60.0  # new names, once an hour, are not taken by all at once
    retry_after: float = 60.0
    leave_timeout: float = 1.5


class RelayConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What a relay does for others. Times in seconds, sizes in bytes, rates in bytes/s.

    Frames are counted whole, once: each is received and sent.
    """

    max_sessions: int = 1024
    max_sessions_per_peer: int = 64  # that it asked for, or was asked for
    max_sessions_per_pair: int = 8  # so that nobody can take all of another's
    max_reservations: int = 512
    reservation: float = 120.0
    idle: float = 60.0  # a session without frames for so long is closed
    rate: float = 12.5e6  # of all frames together
    rate_per_peer: float = 6.25e6  # of all sessions that one peer asked for, both ways
    allowance: int = 32 * 1024 * MIB  # of all sessions that one peer asked for, in a period
    allowance_period: float = 24 * 3600.0
    burst: int = 2 * MIB  # above the rate, all together,
    min_burst: int = 32 * KIB  # and so much for each direction of a pair
    small_frame: int = 256  # below it, a frame is taken for a sign of life, and may
    small_reserve: int = 4 * KIB  # use so much of what its pair gets next
    orphan_frames: int = 32  # of sessions not known yet, from one peer,
    max_orphans: int = 1024  # from all together,
    max_orphan_bytes: int = 1 * MIB
    orphan_wait: float = 0.5
    grace: float = 5.0  # a peer's sessions survive the loss of its link for so long
    retry_after: float = 5.0  # what a peer is told that finds no room


class NatConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What a peer remembers to find out about its own NAT. Times in seconds."""

    observation_ttl: float = 300.0  # how long a peer's word counts about where it saw us
    confirm_every: float = 60.0  # between looks at which of them still have a link here
    max_observers: int = 64
    max_per_party: int = 4  # of them, at one IPv4 address or IPv6 /56
    max_public: int = 4  # of the newest addresses in a report, where each peer sees another
    contact_ttl: float = 600.0  # filters forget sooner: RFC 4787, REQ-5 asks for two minutes
    max_contacts: int = 2048  # hosts that were sent to
    max_contact_ports: int = 16  # of one host; of more only their being many is known
    finding_ttl: float = 3600.0  # who was let in or kept out


class PunchConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What one attempt to get through two NATs may cost. Times in seconds.

    Small routers keep one or a few thousand connections, and an unanswered one for 30 s: so 256
    sockets fill a quarter of the smallest, and guesses at 100 a second never more than 3,000 lines.
    """

    sockets_sequential: int = 8  # opened by a side whose ports rise in order,
    sockets_block: int = 16  # whose ports are from a block (a carrier's subscriber may have 64),
    sockets_random: int = 256  # or follow no order
    open_rate: float = 100.0  # sockets opened a second
    repeat_every: float = 8.0  # each of them sends again, for what was lost
    guess_rate: float = 100.0  # a second; 83 bytes each with IPv4
    likely_rate: float = 300.0  # a second, for the ports that most likely are right
    likely: int = 600  # so many of them
    max_packets: int = 3000  # guesses of one attempt
    max_steps: int = 200  # guesses ahead of a sequential allocator
    patience: float = 30.0  # for the whole attempt
    guess_after: float = 0.5  # the usual packets may get through first,
    guess_after_open: float = 2.0  # and will, where a filter lets them in
    again_after: float = 600.0  # before one side guesses at the same peer again


class ReachConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How peers find ways to each other. Times in seconds."""

    publish_lan: bool = True  # tell others the addresses of this machine inside its home
    relays: int = 2  # kept ready
    relay_tries: int = 8  # peers asked to relay, in one look for relays
    seek_every: float = 5.0  # between looks for relays while some are missing
    renew_check: float = 15.0  # and while none is
    min_reservation: float = 20.0  # renewed no more often than at half of it
    unwilling_for: float = 60.0  # a peer that does not relay is not asked again
    call_timeout: float = 5.0  # of one question to another peer
    punch_time: float = 3.0  # one attempt, where both ends know where to send
    guesses_at_once: int = 2  # attempts that guess or open sockets: see PunchConfig
    upgrade_first: float = 5.0  # after a failed attempt, until the next; triples
    upgrade_max: float = 600.0
    knock_every: float = 300.0  # a relay is asked to knock, while the filter is not known
    knock_pause: float = 30.0  # and does not do so more often for the same peer
    knock_patience: float = 1.5  # until what has not come in is taken to be kept out
    silences: tuple[float, ...] = (12.0, 20.0, 40.0, 80.0, 120.0, 180.0)  # tried on a router
    silence_pause: float = 10.0  # between two; a relay calls the same peer no more often
    silence_again: float = 3600.0  # from the last to the first
    ask_pause: float = 1.0  # between questions to all relays whether they are still there
    rescue_patience: float = 5.0  # a relay is tried so long for a link that lost its way


class RpcConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of the RPC layer. Times in seconds, sizes in bytes."""

    default_timeout: float = 30.0
    drain_timeout: float = 0.5  # calls in flight at the end are waited for so long
    max_frame: int = 256 * KIB  # one control message
    inline_limit: int = 16 * KIB  # larger buffers take a data stream
    stream_window: int = 1 * MIB  # bytes a sender may be ahead of its receiver
    max_body: int = 4 * 1024 * MIB
    max_calls_per_peer: int = 16_384  # in flight, from one peer: running, waiting or arriving
    max_running: int = 16_384  # calls that run here at a time, of all peers together,
    max_running_per_peer: int = 8_192  # of one peer,
    max_concurrency: int = 16_384  # and of one method that does not say
    max_queue: int = 8_192  # calls that wait for a place, for one method that does not say
    max_queue_bytes: int = 64 * MIB  # of their arguments, for each method
    max_threads: int = 32  # calls of methods that run in threads
    max_processes: int = 0  # calls of methods that run in processes; 0: as many as CPUs
    block_warning: float = 0.25  # a handler that keeps the loop for so long is told in the log
    max_streams_per_peer: int = 1_024


class DhtConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Kademlia's constants. Times in seconds, sizes in bytes."""

    k: int = 20
    paths: int = 2  # that a look-up takes, which share no peer
    alpha: int = 6  # queries in progress; more bring little sooner, and ask more peers
    query_timeout: float = 2.0
    replicas: int = 8  # copies of a record, with the peers closest to its key
    record_ttl: float = 600.0
    republish_every: float = 200.0
    place_every: float = 300.0  # whether peers have come that are closer to a record's key
    look_up_every: float = 3600.0  # the same, by asking everybody
    reunite_every: float = 40.0  # lost peers are tried again
    max_record: int = 16 * KIB
    max_records_per_author: int = 256
    max_records_per_key: int = 2048
    max_records: int = 20_000  # kept for everybody together
    max_bytes: int = 64 * MIB  # kept for everybody together
    max_reply: int = 4 * MIB  # records in one answer
    max_ttl: float = 3600.0
    max_skew: float = 60.0  # how far an author's clock may be ahead
    stores_per_second: float = 64.0  # from one author, sustained
    store_burst: int = 512
    lookup_timeout: float = 15.0
    greet_timeout: float = 8.0  # for a peer that this one joins through; it may be starting
    slow_query: float = 0.3  # an unanswered query then frees its place among the alpha
    suspect_for: float = 5.0  # a peer that did not answer is not asked again for so long
    refresh_every: float = 600.0
    doubt_after: float = 60.0  # the oldest of a full bucket is asked if it lives, if so long silent
    maintain_every: float = 5.0
    save_every: float = 60.0  # what is kept for others is written to disk, if it changed
    max_sponsored: int = 1024  # records of others that one peer may hand over to this one,
    max_sponsored_bytes: int = 8 * MIB  # and that are kept of all who do so,
    max_sponsored_per_key: int = 64
    rekeep_every: float = 120.0  # what its author no longer renews is given to who has come,
    rekeep_bytes: int = 64 * KIB  # so much of it at a time
    max_transfer: int = 256 * KIB  # and so many bytes of them in one call
    watch_for: float = 30.0  # a question for changes is answered after so long, changed or not
    watches: int = 3  # peers that are asked to tell of changes under a key
    watches_per_peer: int = 1024
    max_watches: int = 8192
    lease: float = 30.0  # a name is held so long after its holder was last granted it
    lease_replicas: int = 20  # the peers closest to a name that are asked to grant it
    max_lease: float = 60.0
    max_leases: int = 4096  # granted to everybody together
    leases_per_peer: int = 256
    leases_per_root: int = 1024  # to all who joined by one ticket
    claim_timeout: float = 6.0  # claimants of one name sort themselves out within it
    max_probes: int = 64  # pings in progress to peers that are not in the table


class StoreConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Documents and blocks. Times in seconds, sizes in bytes."""

    block: int = 1 * MIB
    sync_every: float = 5.0
    max_update: int = 1 * MIB  # one transaction
    max_author_log: int = 64 * MIB  # one author's envelopes in one document
    max_waiting: int = 1024  # envelopes of a document that wait for an earlier one
    max_waiting_bytes: int = 16 * MIB
    sync_batch: int = 1 * MIB  # envelopes in one message
    fsync: bool = True  # of documents; without it a power cut, not a crash, loses the last writes
    snapshot_every: int = 1024  # updates of a document, at least, between two snapshots on disk
    presence_every: float = 10.0  # a peer says so often that it is still there
    presence_timeout: float = 30.0  # and is forgotten when it has not for so long
    presence_pace: float = 0.1  # between two messages about presence to one peer
    max_presence: int = 4096  # what one peer may say of itself
    call_timeout: float = 10.0
    open_timeout: float = 2.0  # how long opening a document waits for peers that have it
    max_fetch_parallel: int = 16  # peers asked at a time
    per_provider: int = 16  # blocks asked of one of them ahead, at most
    block_timeout: float = 20.0
    max_serving: int = 16  # blocks read for others at a time
    max_manifest: int = 16 * MIB


class ActorsConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Workers, leases and objects. Times in seconds, sizes in bytes."""

    lease_ttl: float = 10.0
    worker_start_timeout: float = 20.0
    worker_idle: float = 60.0
    object_lease: float = 60.0
    place_timeout: float = 20.0
    preload: tuple[str, ...] = ()  # modules that every worker finds loaded
    worker_env: tuple[str, ...] = ()  # names passed on to workers besides the harmless ones
    worker_log: int = 1 * MIB  # of one worker's output, kept twice at most
    idle_workers: int = 8
    pipe_frame: int = 4 * 1024 * MIB  # largest message between host and worker
    stream_window: int = 16  # items a generator may be ahead of its consumer
    stop_grace: float = 1.0  # between asking a worker to end and killing it
    suspect_patience: float = 3.0  # work goes elsewhere when its host has been suspect for so long


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """All of it."""

    link: LinkConfig = LinkConfig()
    port_map: PortMapConfig = PortMapConfig()
    lan: LanConfig = LanConfig()
    relay: RelayConfig = RelayConfig()
    nat: NatConfig = NatConfig()
    punch: PunchConfig = PunchConfig()
    reach: ReachConfig = ReachConfig()
    rpc: RpcConfig = RpcConfig()
    dht: DhtConfig = DhtConfig()
    store: StoreConfig = StoreConfig()
    actors: ActorsConfig = ActorsConfig()
