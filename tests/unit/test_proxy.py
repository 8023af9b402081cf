"""The proxy that tests of the link use: each of its behaviours is what it says."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.pair.proxy import Proxy

PATIENCE = 20.0


@pytest.fixture
def echo() -> Iterator[tuple[str, int]]:
    """A server that sends back whatever comes, and ends when its peer does."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer(line: socket.socket) -> None:
            with line:
                try:
                    while data := line.recv(1 << 16):
                        line.sendall(data)
                except OSError:
                    pass

        def serve() -> None:
            while True:
                try:
                    line, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=answer, args=(line,), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()
        server.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def proxy(echo: tuple[str, int]) -> Iterator[Proxy]:
    proxy = Proxy(echo)
    try:
        yield proxy
    finally:
        proxy.close()


@contextmanager
def line_to(proxy: Proxy) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE) as line:
        line.sendall(b"hello")
        assert exactly(line, 5) == b"hello"
        yield line


def exactly(line: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = line.recv(count - len(data))
        assert part, f"ended after {len(data)} of {count} bytes"
        data += part
    return data


def is_silent(line: socket.socket) -> bool:
    line.settimeout(0.3)
    try:
        line.recv(1)
    except TimeoutError:
        return True
    finally:
        line.settimeout(PATIENCE)
    return False


def test_everything_passes_in_both_directions(proxy: Proxy) -> None:
    content = bytes(range(256)) * 8192
    with line_to(proxy) as line:
        sender = threading.Thread(target=line.sendall, args=(content,))
        sender.start()
        back = exactly(line, len(content))
        sender.join()
        assert back == content
        line.shutdown(socket.SHUT_WR)
        assert line.recv(1) == b""


def test_one_direction_is_held_and_nothing_is_lost(proxy: Proxy) -> None:
    with line_to(proxy) as line:
        passed = proxy.up.passed
        proxy.hold(proxy.down)
        line.sendall(b"world")
        assert is_silent(line)
        assert proxy.up.passed == passed + 5
        proxy.release()
        assert exactly(line, 5) == b"world"


def test_both_directions_are_held(proxy: Proxy) -> None:
    with line_to(proxy) as line:
        passed = proxy.up.passed
        proxy.hold()
        line.sendall(b"world")
        assert is_silent(line)
        assert proxy.up.passed == passed
        proxy.release()
        assert exactly(line, 5) == b"world"


def test_connection_is_cut_after_so_many_bytes(proxy: Proxy) -> None:
    with line_to(proxy) as line:
        passed = proxy.up.passed
        proxy.up.cut_after = 3
        line.sendall(b"world")
        with pytest.raises(ConnectionResetError):
            while line.recv(5):
                pass
        assert proxy.up.passed == passed + 3
    with line_to(proxy):
        pass


def test_reset_ends_all_and_new_ones_are_taken(proxy: Proxy) -> None:
    with line_to(proxy) as one, line_to(proxy) as other:
        proxy.reset()
        for line in (one, other):
            with pytest.raises(ConnectionResetError):
                line.recv(1)
    with line_to(proxy):
        pass


def test_refused_connections_are_reset(proxy: Proxy) -> None:
    proxy.refusing = True
    with pytest.raises((ConnectionResetError, BrokenPipeError)), line_to(proxy):
        pass
    proxy.refusing = False
    with line_to(proxy):
        pass


def test_one_bit_is_changed(proxy: Proxy) -> None:
    with line_to(proxy) as line:
        proxy.up.flip_after = 2
        line.sendall(bytes(5))
        assert exactly(line, 5) == b"\0\0\1\0\0"
        line.sendall(bytes(5))
        assert exactly(line, 5) == bytes(5)


def test_forgotten_end_is_silent_and_new_connections_work(proxy: Proxy) -> None:
    with line_to(proxy) as line:
        proxy.forget()
        line.sendall(b"world")
        assert is_silent(line)
        with line_to(proxy):
            pass


def test_bytes_come_one_at_a_time(proxy: Proxy) -> None:
    content = bytes(range(256))
    proxy.down.piece = 1
    with line_to(proxy) as line:
        line.sendall(content)
        assert exactly(line, 256) == content


def test_delay_is_kept_and_does_not_limit_what_is_under_way(proxy: Proxy) -> None:
    with line_to(proxy) as line:
        proxy.up.delay = 0.3
        begun = time.monotonic()
        for _ in range(10):
            line.sendall(b"x" * 100)
        assert exactly(line, 1000) == b"x" * 1000
        assert time.monotonic() - begun >= 0.3


def test_slow_reader_holds_the_sender_up(echo: tuple[str, int]) -> None:
    proxy = Proxy(echo, buffer=4096)
    try:
        with line_to(proxy) as line:
            proxy.up.window, proxy.up.rate = 0, 1.0
            line.setblocking(False)
            sent = 0
            try:
                while sent < 64 << 20:
                    sent += line.send(bytes(1 << 16))
            except BlockingIOError:
                pass
            assert sent < 64 << 20
    finally:
        proxy.close()


def test_one_connection_is_held_and_another_is_not(proxy: Proxy) -> None:
    with line_to(proxy) as held, line_to(proxy) as free:
        proxy.connections[0].held = True
        held.sendall(b"world")
        free.sendall(b"world")
        assert exactly(free, 5) == b"world"
        assert is_silent(held)
        proxy.connections[0].held = False
        assert exactly(held, 5) == b"world"
