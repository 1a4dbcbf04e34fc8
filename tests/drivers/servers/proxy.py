"""A line between a driver and a peer that others wrote, which fails as a test demands."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
from types import TracebackType


class Proxy:
    """Hands on what both say, TCP and UDP, until ``fault`` says otherwise.

    Parameters
    ----------
    port : int
        Of the peer, on this computer.
    """

    def __init__(self, port: int) -> None:
        self._peer = ("127.0.0.1", port)
        self.fault = ""
        """What becomes of the peer's answers: "stalled", "truncated", "garbage"; "" for nothing."""
        self._listener: socket.socket | None = None
        self._lines: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.port = 0
        self.begin()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()

    def begin(self) -> None:
        """Be there, at the same port as before."""
        self.fault = ""
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = int(self._listener.getsockname()[1])
        datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        datagrams.bind(("127.0.0.1", self.port))
        self._lines.append(datagrams)
        self._start(self._accept, self._listener)
        self._start(self._hand_on_datagrams, datagrams)

    def end(self) -> None:
        """Be gone: every connection breaks, and there is nothing at the port."""
        lines = [*self._lines, *([self._listener] if self._listener else [])]
        self._lines, self._listener = [], None
        for line in lines:
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
            line.close()
        for thread in self._threads:
            thread.join()
        self._threads = []

    def _start(self, work: object, *lines: object) -> None:
        thread = threading.Thread(target=work, args=lines, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                here, _ = listener.accept()
                there = socket.create_connection(self._peer)
                self._lines += [here, there]
                self._start(self._hand_on, here, there, False)
                self._start(self._hand_on, there, here, True)

    def _hand_on(self, source: socket.socket, target: socket.socket, is_answer: bool) -> None:
        noise = random.Random(1)
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if is_answer and self.fault == "stalled":
                    continue
                if is_answer and self.fault == "garbage":
                    data = noise.randbytes(len(data))
                if is_answer and self.fault == "truncated":
                    target.sendall(data[: len(data) // 2])
                    break
                target.sendall(data)
        for line in (source, target):
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)

    def _hand_on_datagrams(self, line: socket.socket) -> None:
        with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            peer.settimeout(1.0)
            while True:
                # A shutdown does not wake who waits for a datagram.
                line.settimeout(0.1)
                with contextlib.suppress(TimeoutError):
                    data, sender = line.recvfrom(4096)
                    peer.sendto(data, self._peer)
                    line.sendto(peer.recv(4096), sender)
