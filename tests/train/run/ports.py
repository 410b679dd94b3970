"""A port for processes that train together."""

from __future__ import annotations

import random
import socket


def free_port() -> int:
    """One below those that a system gives to connections, so that none takes it before it is used."""
    for port in random.Random().sample(range(20_000, 30_000), 100):
        with socket.socket() as tried:
            try:
                tried.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError("no port is free")
