"""kademlia over the mesh: peer, provider and service records."""

from lattica.dht.claiming import Holding
from lattica.dht.dht import Dht
from lattica.dht.keys import dht_key, node_id
from lattica.dht.messages import PeerAddresses
from lattica.dht.records import Found, Kinds, Record

__all__ = ["Dht", "Found", "Holding", "Kinds", "PeerAddresses", "Record", "dht_key", "node_id"]
