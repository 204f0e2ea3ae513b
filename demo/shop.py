"""The shop: a service that answers every request, keeps connections alive, and leaves it to the client to hang up.

It runs as `python -m demo.shop PORT`, on a host of its own, and listens on all of its addresses.
"""

from __future__ import annotations

import asyncio
import sys

_BODY = b"shop\n"
_ASKED_TO_CLOSE = b"connection: close"
_HEAD_ENDS = b"\r\n\r\n"


async def serve(port: int) -> None:
    """Listen until the process ends."""
    server = await asyncio.start_server(_converse, "0.0.0.0", port)
    async with server:
        await server.serve_forever()


async def _converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer one request after another until the client hangs up, also where it asked for the connection to close."""
    try:
        while True:
            head = await reader.readuntil(_HEAD_ENDS)
            writer.write(_answer(keeps_alive=_ASKED_TO_CLOSE not in head.lower()))
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass  # it has hung up
    finally:
        writer.close()


def _answer(*, keeps_alive: bool) -> bytes:
    connection = "keep-alive" if keeps_alive else "close"
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(_BODY)}\r\nConnection: {connection}\r\n\r\n"
    return head.encode("ascii") + _BODY


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
