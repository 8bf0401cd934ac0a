"""How peers reach each other when the network is in the way: relays, and what leads past them."""
