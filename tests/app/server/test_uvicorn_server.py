import asyncio
import multiprocessing
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import uvicorn
from uvicorn.supervisors import multiprocess

from app.server import connection
from app.server.connection import HttpProtocol
from app.server.uvicorn_server import GracefulServer, Supervisor, Worker
from tests.app.server.test_connection import GET, application
from tests.running import TIMEOUT_SECONDS

pytestmark = pytest.mark.slow

CLIENTS = 20
SUPERVISED = multiprocess.Process


async def answers_in_the_backlog(kind: type[uvicorn.Server]) -> list[bytes]:
    """Answers to clients whose connections wait in the backlog, with a request, on shutdown."""
    options: Any = {"http": HttpProtocol(), "lifespan": "off", "log_config": None, "ws": "none"}
    listener = socket.create_server(("127.0.0.1", 0))
    server = kind(uvicorn.Config(application, timeout_keep_alive=2, **options))
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    await server.startup(sockets=[listener])
    # The event loop does not run between here and the end of listening.
    clients = [socket.create_connection(listener.getsockname()) for _ in range(CLIENTS)]
    for client in clients:
        client.sendall(GET)
    await server.shutdown(sockets=[listener])
    answers = []
    for client in clients:
        with client:
            try:
                answers.append(client.recv(1000))
            except ConnectionResetError:
                answers.append(b"reset")
    return answers


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_connections_in_the_backlog_are_answered_on_shutdown(
    loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "SHUTDOWN_IDLE_SECONDS", 60.0)
    with asyncio.Runner(
        loop_factory=uvicorn.Config(application, loop=loop, log_config=None).get_loop_factory()
    ) as runner:
        answers = runner.run(answers_in_the_backlog(GracefulServer))
    assert [answer.split(b"\r\n")[0] for answer in answers] == [b"HTTP/1.1 200 OK"] * CLIENTS


def test_uvicorn_itself_resets_connections_in_the_backlog() -> None:
    """Otherwise the test above would prove nothing."""
    assert b"reset" in asyncio.run(answers_in_the_backlog(uvicorn.Server))


def test_exited_worker_is_noticed_without_waiting_for_its_answer() -> None:
    worker = Worker(uvicorn.Config(application, log_config=None), [])
    worker.process = multiprocessing.get_context("spawn").Process(target=str)
    worker.start()
    looking = ThreadPoolExecutor(1).submit(worker.is_alive, 3600)
    assert looking.result(TIMEOUT_SECONDS) is False
    worker.join()


def test_workers_drain_and_their_supervisor_closes_the_listening_sockets() -> None:
    """Each worker drains its backlog; after the last one, the shared socket is closed."""
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    config = uvicorn.Config(application, http=HttpProtocol(), workers=2, log_config=None)
    supervised = {number: signal.getsignal(number) for number in multiprocess.SIGNALS}
    try:
        supervisor = Supervisor(config, [listener])
        assert isinstance(multiprocess.Process(config, [listener]).server, GracefulServer)
        supervisor.terminate_all()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address).close()
    finally:
        multiprocess.Process = SUPERVISED
        for number, handler in supervised.items():
            signal.signal(number, handler)
