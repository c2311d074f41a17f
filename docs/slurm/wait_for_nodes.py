"""Wait until a Ray cluster has so many nodes: `python docs/slurm/wait_for_nodes.py <host:port> <number>`."""

import socket
import sys
import time

import ray


def main(address: str, number: int, patience_s: float = 300) -> None:
    """Return when they are there; say so and fail where they do not come."""
    host, _, port = address.rpartition(":")
    found, end = 0, time.monotonic() + patience_s
    while found < number:
        if time.monotonic() > end:
            raise SystemExit(f"error: {found} of {number} nodes of {address} after {patience_s:.0f} s")
        time.sleep(1)
        try:
            socket.create_connection((host, int(port)), timeout=10).close()  # Ray itself would try for minutes
            ray.init(address, log_to_driver=False, ignore_reinit_error=True)
            found = sum(node["Alive"] for node in ray.nodes())
        except (OSError, RuntimeError):  # not yet
            continue


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
