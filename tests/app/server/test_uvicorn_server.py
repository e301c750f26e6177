import asyncio
import signal
import socket
from typing import Any

import pytest
import uvicorn
from uvicorn.supervisors import multiprocess

from app.server.connection import HttpProtocol
from app.server.supervisor import Workers
from app.server.uvicorn_server import LastCallServer
from tests.app.server.test_connection import GET, application

CALLERS = 20
SUPERVISED = multiprocess.Process


async def answers_of_the_unaccepted(kind: type[uvicorn.Server]) -> list[bytes]:
    """Of callers whose connection the system has made, and who have asked, when the server ends."""
    options: Any = {"http": HttpProtocol(), "lifespan": "off", "log_level": "critical", "ws": "none"}
    listener = socket.create_server(("127.0.0.1", 0))
    server = kind(uvicorn.Config(application, timeout_keep_alive=2, **options))
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    await server.startup(sockets=[listener])
    # Not a turn of the loop from here to the end of listening.
    callers = [socket.create_connection(listener.getsockname()) for _ in range(CALLERS)]
    for caller in callers:
        caller.sendall(GET)
    await server.shutdown(sockets=[listener])
    answers = []
    for caller in callers:
        with caller:
            try:
                answers.append(caller.recv(1000))
            except ConnectionResetError:
                answers.append(b"reset")
    return answers


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_callers_whom_the_server_has_not_seen_yet_are_answered(loop: str) -> None:
    with asyncio.Runner(loop_factory=uvicorn.Config(application, loop=loop).get_loop_factory()) as runner:
        answers = runner.run(answers_of_the_unaccepted(LastCallServer))
    assert [answer.split(b"\r\n")[0] for answer in answers] == [b"HTTP/1.1 200 OK"] * CALLERS


def test_they_would_be_lost_otherwise() -> None:
    """Or the test above shows nothing."""
    assert b"reset" in asyncio.run(answers_of_the_unaccepted(uvicorn.Server))


def test_workers_are_such_servers_and_their_supervisor_keeps_no_queue_of_its_own() -> None:
    """Each takes in what it can see; with the last of them, the queue they shared is gone."""
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    config = uvicorn.Config(application, http=HttpProtocol(), workers=2)
    supervised = {number: signal.getsignal(number) for number in multiprocess.SIGNALS}
    try:
        workers = Workers(config, [listener])
        assert isinstance(multiprocess.Process(config, [listener]).server, LastCallServer)
        workers.terminate_all()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address).close()
    finally:
        multiprocess.Process = SUPERVISED
        for number, handler in supervised.items():
            signal.signal(number, handler)
