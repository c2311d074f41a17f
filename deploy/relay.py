"""A relay in front of a TCP port that counts the bytes of all connections, both ways."""

import socket
import threading


class CountingRelay:
    """Forwards all bytes from one loopback port to another.

    Args:
        target: the port to forward to.

    Attributes:
        port: the port on which it listens.
        up_bytes, down_bytes: bytes forwarded to the target and back so far, in all connections.
    """

    def __init__(self, target: int) -> None:
        self.target, self.up_bytes, self.down_bytes = target, 0, 0
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            try:
                server = socket.create_connection(("127.0.0.1", self.target))
            except OSError:  # not there yet, or no longer
                client.close()
                continue
            for name, source, sink in (("up_bytes", client, server), ("down_bytes", server, client)):
                threading.Thread(target=self._carry, args=(name, source, sink), daemon=True).start()

    def _carry(self, name: str, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                with self._lock:
                    setattr(self, name, getattr(self, name) + len(data))
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:  # the other end is gone
            source.close()
