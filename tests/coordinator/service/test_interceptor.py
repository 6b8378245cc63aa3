"""Streams that a client abandons: whatever the handler held is let go of at once."""

import threading
from collections.abc import AsyncIterator

import grpc
from tests.loopback import serving


class Endless:
    """A method that streams for ever, and knows when it was closed."""

    def __init__(self) -> None:
        self.closed = threading.Event()
        self.kept: list[AsyncIterator[bytes]] = []

    def stream(self, request: bytes, context: object) -> AsyncIterator[bytes]:
        self.kept.append(self._blocks())  # so that no collector closes it
        return self.kept[-1]

    async def _blocks(self) -> AsyncIterator[bytes]:
        try:
            while True:
                yield bytes(1024)
        finally:
            self.closed.set()

    def register(self, server: grpc.aio.Server) -> None:
        handlers = {"Stream": grpc.unary_stream_rpc_method_handler(self.stream)}
        handler = grpc.method_handlers_generic_handler("test.Endless", handlers)
        server.add_generic_rpc_handlers((handler,))


def test_an_abandoned_stream_is_closed_and_not_left_to_the_collector() -> None:
    endless = Endless()
    with serving(endless.register) as loopback, loopback.channel("anna") as channel:
        stream = channel.unary_stream("/test.Endless/Stream")(b"", timeout=60)
        assert next(iter(stream)) == bytes(1024)
        stream.cancel()
        assert endless.closed.wait(10)
