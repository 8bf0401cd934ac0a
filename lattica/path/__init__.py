"""Which way packets go: sockets, physical paths and the virtual addresses above them."""
