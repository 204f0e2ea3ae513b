"""What an agent of `tests.namespaces` does: it answers the test's calls, one after another, on a socket."""

from __future__ import annotations

import ctypes
import os
import pickle
import resource
import signal
import struct
import traceback
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket

_LENGTH = struct.Struct("=Q")
_PR_SET_PDEATHSIG = 1  # include/uapi/linux/prctl.h


class AgentError(Exception):
    """The agent is gone, or did not answer in time and was killed for it."""


def serve(channel: socket.socket, parent: int) -> None:
    """Be an agent: answer calls on a socket until the other end is closed or the parent is gone."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    _raise_descriptor_limit()
    if os.getppid() != parent:  # it went before the kernel had been asked to say so
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the test's to handle, and the agent follows the test
    while (request := receive(channel)) is not None:
        send(channel, _answer(request))


def send(channel: socket.socket, message: bytes) -> None:
    """Send a message of any length."""
    channel.sendall(_LENGTH.pack(len(message)) + message)


def receive(channel: socket.socket) -> bytes | None:
    """Return the next message, None if the other end is closed."""
    head = _read(channel, _LENGTH.size)
    return None if head is None else _read(channel, _LENGTH.unpack(head)[0])


def _read(channel: socket.socket, size: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < size:
        part = channel.recv(min(size - len(parts), 1 << 20))
        if not part:
            return None
        parts += part
    return bytes(parts)


def _raise_descriptor_limit() -> None:
    """Permit as many descriptors as the hard limit does: tests hold more sockets than the 1,024 of the soft one.

    Only in agents, so that ephmon is tested with the limit that it is started with.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _answer(request: bytes) -> bytes:
    try:
        function, args, kwargs = pickle.loads(request)
        return pickle.dumps((True, function(*args, **kwargs)))
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the test that must see it
        error.add_note(f"In the agent:\n{traceback.format_exc()}")
        return _pickled_error(error)


def _pickled_error(error: Exception) -> bytes:
    try:
        answer = pickle.dumps((False, error))
        pickle.loads(answer)
    except Exception:  # noqa: BLE001 - an exception class may fail to be pickled in any way
        return pickle.dumps((False, AgentError("".join(traceback.format_exception(error)))))
    return answer
