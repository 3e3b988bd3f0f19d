"""Locust users: a hospital that streams images with an API key, and a clinician at the web pages.

    locust -f benchmarks/locustfile.py --host http://127.0.0.1:8000 --headless -u 8 -t 60s Hospital

`dermserve bench load` runs this file and sums up its figures. A run is bounded in time and in images, and refuses
any host but this machine unless told otherwise.
"""

from __future__ import annotations

import json
import random
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
from locust import FastHttpUser, HttpUser, between, constant_throughput, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.exception import StopUser

from benchmarks import target
from benchmarks.forms import Form, password_form, token
from benchmarks.images import endless, pictures
from dermserve.errors import DermserveError

_LONGEST_PAUSE_S = 5.0
_pictures: Iterator[bytes] | None = None
_measured: list[dict[str, Any]] = []


@events.init_command_line_parser.add_listener
def _options(parser: LocustArgumentParser) -> None:
    parser.add_argument(
        "--api-key", env_var="DERMSERVE_BENCH_API_KEY", default="", is_secret=True, help="What a hospital sends with."
    )
    parser.add_argument("--rate", type=float, default=0.0, help="Images/s of one hospital; 0: as fast as answers come.")
    parser.add_argument("--max-requests", type=int, default=100_000, help="End the run after so many requests.")
    parser.add_argument("--max-seconds", type=float, default=3600.0, help="End the run after so many seconds.")
    parser.add_argument("--allow-remote", action="store_true", help="Send to another machine, too.")
    parser.add_argument("--images", default="", help="Folder of JPEG files to send.")
    parser.add_argument("--samples", default="", help="Write every request's name, time and fault here, one per line.")


@events.init.add_listener
def _admit(environment: Environment, **_: Any) -> None:
    options = environment.parsed_options
    if options is None or environment.host is None:
        return  # the web interface asks for the host; `test_start` comes by here again
    try:
        target.check(environment.host, allow_remote=options.allow_remote)
        _load(options.images)
    except DermserveError as error:
        sys.exit(f"locust: {error.detail}")  # an ordinary exception in a listener is only logged


def _load(folder: str) -> None:
    """Once for all users, and before the run's clock starts."""
    global _pictures  # noqa: PLW0603
    _pictures = _pictures or endless(pictures(Path(folder) if folder else None).files)


def _next() -> bytes:
    assert _pictures is not None
    return next(_pictures)


@events.test_start.add_listener
def _begin(environment: Environment, **_: Any) -> None:
    _admit(environment)
    _measured.clear()

    def end() -> None:
        if environment.runner is not None:
            environment.runner.quit()

    gevent.spawn_later(environment.parsed_options.max_seconds, end)


@events.request.add_listener
def _note(
    name: str,
    start_time: float,
    response_time: float,
    exception: BaseException | None,
    context: dict[str, Any],
    **_: Any,
) -> None:
    fault = str(exception) if exception else None
    _measured.append({"name": name, "start": start_time, "ms": response_time, "fault": fault})
    environment: Environment | None = context.get("environment")
    if environment is not None and len(_measured) == environment.parsed_options.max_requests and environment.runner:
        gevent.spawn(environment.runner.quit)


@events.quitting.add_listener
def _write(environment: Environment, **_: Any) -> None:
    if environment.parsed_options.samples:
        lines = "".join(json.dumps(one) + "\n" for one in _measured)
        Path(environment.parsed_options.samples).write_text(lines)


class Hospital(FastHttpUser):
    """A gateway that sends one image after the other as raw bytes, and checks every answer."""

    weight = 3

    def context(self) -> dict[str, Any]:
        return {"environment": self.environment}

    def wait_time(self) -> float:
        rate = self.environment.parsed_options.rate
        return float(constant_throughput(rate)(self)) if rate > 0 else 0.0

    @task
    def send(self) -> None:
        picture = _next()
        headers = {
            "Content-Type": "image/jpeg",
            "Authorization": f"Bearer {self.environment.parsed_options.api_key}",
        }
        with self.client.post(
            "/v1/predictions", data=picture, headers=headers, catch_response=True, name="hospital: image"
        ) as response:
            wrong = target.fault(response.status_code, response.content, picture)
            if wrong is None:
                response.success()
                return
            response.failure(wrong)
            pause = (response.headers or {}).get("Retry-After", "")
        if response.status_code in (401, 403):
            raise StopUser  # the same key will be refused again
        if response.status_code in (0, 429, 503):
            gevent.sleep(min(float(pause) if pause.isdigit() else 1.0, _LONGEST_PAUSE_S))


class Clinician(HttpUser):
    """A person: registers, logs in, uploads an image now and then, looks at it and at the history."""

    weight = 1
    wait_time = between(1, 5)

    def context(self) -> dict[str, Any]:
        return {"environment": self.environment}

    def on_start(self) -> None:
        self._account = {"email": f"load-{secrets.token_hex(8)}@example.org", "password": secrets.token_urlsafe(18)}
        self._results: list[str] = []
        self._submit("/register")
        self.client.cookies.clear()  # a new browser: the login has to work, too
        self._submit("/login")

    @task(3)
    def upload(self) -> None:
        page = self.client.get("/upload", name="clinician: upload page")
        csrf = token(page.text)
        picture = _next()
        with self.client.post(
            "/v1/predictions",
            files={"file": ("lesion.jpg", picture, "image/jpeg")},
            headers={"X-CSRF-Token": csrf or ""},
            catch_response=True,
            name="clinician: image",
        ) as response:
            wrong = target.fault(response.status_code, response.content, picture)
            if wrong is not None:
                response.failure(wrong)
                return
            self._results.append(response.json()["id"])
        self.client.get(f"/predictions/{self._results[-1]}/fragment", name="clinician: result")

    @task(2)
    def history(self) -> None:
        with self.client.get("/history", catch_response=True, name="clinician: history") as response:
            if response.status_code == 200 and self._results and self._results[-1] not in response.text:
                response.failure("the newest result is missing from the history")

    @task(1)
    def look_again(self) -> None:
        if self._results:
            self.client.get(f"/predictions/{random.choice(self._results)}", name="clinician: result page")  # noqa: S311

    def _submit(self, path: str) -> None:
        page = self.client.get(path, name=f"clinician: GET {path}")
        form: Form | None = password_form(page.text)
        with self.client.post(
            form.action or path if form else path,
            data=form.filled(self._account) if form else {},
            allow_redirects=False,
            catch_response=True,
            name=f"clinician: POST {path}",
        ) as response:
            if form is None:
                response.failure(f"{path} holds no form with a password")
            elif response.status_code not in (302, 303):
                response.failure(f"{response.status_code} instead of a redirect")
            else:
                response.success()
