"""ttrpc: containerd's RPC over a byte stream. framing.py has no I/O; server.py and client.py are asyncio."""
