"""Collectives over TCP, one connection between any two ranks.

Every collective is one exchange, in which each rank has a message for each other one; sends and receives go on at the
same time, so that no order of the ranks can lock up. Sums are made in the order of the ranks: all ranks get the same.
"""

from __future__ import annotations

import json
import selectors
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

import torch

from drivetrain_plugins.contract.backend import RankInfo
from drivetrain_plugins.contract.communicator import Communicator
from drivetrain_plugins.errors import CommunicatorError

_T = TypeVar("_T")

LENGTH_BYTES = 8
MAX_MESSAGE_BYTES = 1 << 32
CHUNK_BYTES = 1 << 20


class SocketCommunicator(Communicator):
    """A group of ranks that meet at rank 0's address and then talk to each other directly."""

    def __init__(self, info: RankInfo) -> None:
        self.rank = info.rank
        self.world = info.world
        self._timeout_s = info.timeout_s
        self._peers: dict[int, socket.socket] = self._guard(f"joining {info.init_method}", lambda: self._meet(info))

    def all_reduce(self, inout: torch.Tensor) -> torch.Tensor:
        everyone = self._gather("all_reduce", inout)
        total = everyone[0].clone()
        for part in everyone[1:]:
            total += part
        return inout.copy_(total)

    def all_gather(self, x: torch.Tensor, dim: int = -1) -> torch.Tensor:
        return torch.cat(self._gather("all_gather", x), dim=dim)

    def reduce_scatter(self, x: torch.Tensor, dim: int = 0) -> torch.Tensor:
        if x.shape[dim] % self.world:
            raise ValueError(f"reduce_scatter of {x.shape[dim]} elements among {self.world} ranks: not divisible")
        mine = self._all_to_all("reduce_scatter", x.chunk(self.world, dim=dim))
        total = mine[0].clone()
        for part in mine[1:]:
            total += part
        return total

    def all_to_all(self, parts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        if len(parts) != self.world:
            raise ValueError(f"all_to_all needs {self.world} parts, one a rank; got {len(parts)}")
        return self._all_to_all("all_to_all", parts)

    def broadcast(self, inout: torch.Tensor, source: int) -> torch.Tensor:
        if self.rank == source:
            self._exchange("broadcast", dict.fromkeys(self._peers, _encode(inout)), receive=())
            return inout
        received = self._exchange(f"broadcast from rank {source}", {}, receive=(source,))
        return inout.copy_(_decode(received[source]))

    def send(self, x: torch.Tensor, destination: int) -> None:
        self._exchange(f"send to rank {destination}", {destination: _encode(x)}, receive=())

    def recv(self, out: torch.Tensor, source: int) -> torch.Tensor:
        return out.copy_(_decode(self._exchange(f"recv from rank {source}", {}, receive=(source,))[source]))

    def barrier(self) -> None:
        self._exchange("barrier", dict.fromkeys(self._peers, b""), receive=self._peers)

    def close(self) -> None:
        for connection in self._peers.values():
            connection.close()
        self._peers.clear()

    def _gather(self, operation: str, x: torch.Tensor) -> list[torch.Tensor]:
        """Every rank's tensor, by rank."""
        return self._all_to_all(operation, [x] * self.world)

    def _all_to_all(self, operation: str, parts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        messages = {peer: _encode(parts[peer]) for peer in self._peers}
        received = self._exchange(operation, messages, receive=self._peers)
        return [parts[peer] if peer == self.rank else _decode(received[peer]) for peer in range(self.world)]

    def _exchange(
        self, operation: str, messages: Mapping[int, bytes], receive: Sequence[int] | Mapping[int, object]
    ) -> dict[int, bytearray]:
        """Send a message to some ranks while receiving one from some; gives the received ones."""
        return self._guard(operation, lambda: _Exchange(self._peers, messages, receive).run(self._timeout_s))

    def _meet(self, info: RankInfo) -> dict[int, socket.socket]:
        """Connect every two ranks: addresses are told by rank 0, then the higher rank calls the lower one."""
        meeting = _address(info.init_method)
        deadline = time.monotonic() + info.timeout_s
        if info.rank == 0:
            with socket.create_server(meeting, backlog=info.world) as door:
                peers = _accept(door, info.world - 1, deadline)
            addresses = {rank: json.loads(_receive(peer, deadline)) for rank, peer in peers.items()}
            for peer in peers.values():
                _send(peer, json.dumps(addresses).encode())
            return peers
        first = _call(meeting, info.rank, deadline)
        own_host = first.getsockname()[0]  # reached rank 0, so the others reach it, and nobody else need
        with socket.create_server((own_host, 0), backlog=info.world) as door:
            _send(first, json.dumps(door.getsockname()[:2]).encode())
            addresses = json.loads(_receive(first, deadline))
            peers = {0: first}
            for lower in range(1, info.rank):
                lower_host, lower_port = addresses[str(lower)]
                peers[lower] = _call((lower_host, lower_port), info.rank, deadline)
            return peers | _accept(door, info.world - 1 - info.rank, deadline)

    def _guard(self, operation: str, call: Callable[[], _T]) -> _T:
        try:
            return call()
        except (OSError, EOFError, ValueError) as error:
            raise CommunicatorError(
                f"{operation} failed on rank {self.rank} of {self.world} (time limit {self._timeout_s:g} s): {error}; "
                "look for the rank that ended first"
            ) from error


class _Exchange:
    """Messages under way between this rank and others."""

    def __init__(
        self,
        peers: Mapping[int, socket.socket],
        messages: Mapping[int, bytes],
        receive: Sequence[int] | Mapping[int, object],
    ) -> None:
        self._peers = peers
        self._leaving = {
            peer: memoryview(len(content).to_bytes(LENGTH_BYTES, "little") + content)
            for peer, content in messages.items()
        }
        self._coming = {peer: bytearray() for peer in receive}
        self._open = set(receive)

    def run(self, timeout_s: float) -> dict[int, bytearray]:
        """Go on until everything has been sent and received.

        Raises:
            OSError, EOFError: a rank is gone, or the time is up.
        """
        deadline = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            for peer in self._leaving.keys() | self._open:
                self._peers[peer].setblocking(False)
                selector.register(self._peers[peer], self._events(peer), peer)
            while self._leaving or self._open:
                left = deadline - time.monotonic()
                ready = selector.select(left) if left > 0 else []
                if not ready:
                    raise TimeoutError(f"no word from rank {sorted(self._open | self._leaving.keys())} in time")
                for key, events in ready:
                    self._go_on(key.data, events)
                    if self._events(key.data):
                        selector.modify(key.fileobj, self._events(key.data), key.data)
                    else:
                        selector.unregister(key.fileobj)
        return {peer: content[LENGTH_BYTES:] for peer, content in self._coming.items()}

    def _events(self, peer: int) -> int:
        return (selectors.EVENT_WRITE if peer in self._leaving else 0) | (
            selectors.EVENT_READ if peer in self._open else 0
        )

    def _go_on(self, peer: int, events: int) -> None:
        if events & selectors.EVENT_WRITE and peer in self._leaving:
            sent = self._peers[peer].send(self._leaving[peer][:CHUNK_BYTES])
            self._leaving[peer] = self._leaving[peer][sent:]
            if not self._leaving[peer]:
                del self._leaving[peer]
        if events & selectors.EVENT_READ and peer in self._open:
            coming = self._coming[peer]
            # Not a byte beyond this message: the next one belongs to the next call.
            chunk = self._peers[peer].recv(min(CHUNK_BYTES, _missing(coming)))
            if not chunk:
                raise EOFError(f"rank {peer} closed its connection")
            coming += chunk
            if not _missing(coming):
                self._open.discard(peer)


def _missing(coming: bytearray) -> int:
    """Bytes that a message still lacks, as far as is known."""
    if len(coming) < LENGTH_BYTES:
        return LENGTH_BYTES - len(coming)
    length = int.from_bytes(coming[:LENGTH_BYTES], "little")
    if length > MAX_MESSAGE_BYTES:
        raise ValueError(f"a message of {length:,} bytes was announced, expected at most {MAX_MESSAGE_BYTES:,}")
    return LENGTH_BYTES + length - len(coming)


def _encode(x: torch.Tensor) -> bytes:
    """Type, shape and elements."""
    head = json.dumps([str(x.dtype).removeprefix("torch."), list(x.shape)]).encode()
    content = x.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes() if x.numel() else b""
    return len(head).to_bytes(LENGTH_BYTES, "little") + head + content


def _decode(message: bytearray) -> torch.Tensor:
    """What `_encode` made.

    Raises:
        ValueError: it is no such message.
    """
    end = LENGTH_BYTES + int.from_bytes(message[:LENGTH_BYTES], "little")
    name, shape = json.loads(message[LENGTH_BYTES:end])
    dtype: Any = getattr(torch, str(name), None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"a rank sent elements of type {name!r}, which torch has not")
    if len(message) == end:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(message, dtype=torch.uint8, offset=end).view(dtype).view(shape)


def _address(init_method: str) -> tuple[str, int]:
    url = urlsplit(init_method)
    if url.scheme != "tcp" or not url.hostname or not url.port:
        raise ValueError(f"init_method: got {init_method!r}, expected tcp://HOST:PORT")
    return url.hostname, url.port


def _call(address: tuple[str, int], rank: int, deadline: float) -> socket.socket:
    """Connect and say who calls; waits for the other side to listen."""
    while True:
        try:
            connection = socket.create_connection(address, timeout=max(0.01, deadline - time.monotonic()))
            break
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    _send(connection, str(rank).encode())
    return connection


def _accept(door: socket.socket, count: int, deadline: float) -> dict[int, socket.socket]:
    """Wait for so many callers; gives them by rank."""
    callers: dict[int, socket.socket] = {}
    while len(callers) < count:
        door.settimeout(max(0.01, deadline - time.monotonic()))
        connection, _ = door.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        callers[int(_receive(connection, deadline))] = connection
    return callers


def _send(connection: socket.socket, content: bytes) -> None:
    connection.sendall(len(content).to_bytes(LENGTH_BYTES, "little") + content)


def _receive(connection: socket.socket, deadline: float) -> bytes:
    """One message while the ranks meet."""
    coming = bytearray()
    while missing := _missing(coming):
        connection.settimeout(max(0.01, deadline - time.monotonic()))
        chunk = connection.recv(min(missing, CHUNK_BYTES))
        if not chunk:
            raise EOFError("a rank closed its connection")
        coming += chunk
    return bytes(coming[LENGTH_BYTES:])
