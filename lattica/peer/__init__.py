"""A peer: one identity, its sockets, and every layer on top of it."""

from lattica.peer.options import PeerOptions as PeerOptions
from lattica.peer.peer import Peer as Peer
from lattica.peer.sockets import everywhere as everywhere
