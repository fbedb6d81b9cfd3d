"""The ceiling: a process that reads as many bytes as a request has, and answers as many as an answer has.

`python -m benchmarks.serving_echo REQUEST_BYTES ANSWER_BYTES [SOCKET]`: on a Unix socket, or a port that it prints.
"""

from __future__ import annotations

import selectors
import socket
import sys


def main() -> None:
    """Answer until ended."""
    wanted, answer = int(sys.argv[1]), bytes(int(sys.argv[2]))
    if len(sys.argv) > 3:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(sys.argv[3])
        listener.listen(64)
        print("listening", flush=True)
    else:
        listener = socket.create_server(("127.0.0.1", 0))
        print(listener.getsockname()[1], flush=True)
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    got: dict[socket.socket, int] = {}
    while True:
        for key, _ in selector.select():
            client = key.fileobj
            assert isinstance(client, socket.socket)
            if client is listener:
                accepted, _ = listener.accept()
                if accepted.family == socket.AF_INET:
                    accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                got[accepted] = 0
                selector.register(accepted, selectors.EVENT_READ)
                continue
            try:
                count = len(client.recv(1 << 18))
                got[client] += count
                if got[client] >= wanted:
                    got[client] -= wanted
                    client.sendall(answer)
            except (ConnectionResetError, BrokenPipeError):
                count = 0
            if not count:
                selector.unregister(client)
                client.close()


if __name__ == "__main__":
    main()
