"""How a gateway sends: by HTTP or by DICOM. Each way knows by what its images are told apart, and where to look for them."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, Final, NamedTuple, Protocol

import httpx
import numpy as np
from pydicom.uid import JPEGBaseline8Bit
from pynetdicom import AE, build_context

from frontend.dicom.outgoing import settle
from tests.dermserve.encoded import DERMOSCOPIC_PHOTOGRAPHY, coded
from tests.frontend.node import read
from tests.system.stack import Stack

_ANSWER_S: Final = 30.0
NO_ANSWER: Final = 0


class Answer(NamedTuple):
    """`status`: 0 where none came. `told`: the four probabilities, by ways that tell them. `wait_s`: as asked for."""

    status: int
    acknowledged: bool = False
    passing: bool = True
    told: Sequence[float] | None = None
    wait_s: float = 0.0


Send = Callable[[bytes], Answer]


class Way(Protocol):
    """One of the doors. `rows` is the SQL of (key, probabilities) for everything that was stored through it."""

    rows: str

    def key(self, jpeg: bytes) -> str: ...

    def sending(self) -> contextlib.AbstractContextManager[Send]: ...


class Http:
    """`POST /v1/predictions` on a kept connection, with an API key of its own."""

    def __init__(self, stack: Stack, name: str) -> None:
        self._url = f"{stack.url}/v1/predictions"
        self._headers = {"Authorization": f"Bearer {stack.create_api_key(name)}", "Content-Type": "image/jpeg"}
        self.rows = (
            "SELECT encode(image_sha256, 'hex'), probabilities FROM predictions JOIN users ON users.id = owner_id "
            f"WHERE users.email = 'service:{name}'"
        )

    def key(self, jpeg: bytes) -> str:
        return hashlib.sha256(jpeg).hexdigest()

    @contextmanager
    def sending(self) -> Iterator[Send]:
        with httpx.Client(headers=self._headers, timeout=_ANSWER_S) as client:

            def send(jpeg: bytes) -> Answer:
                try:
                    answer = client.post(self._url, content=jpeg)
                except httpx.HTTPError:
                    return Answer(NO_ANSWER)
                if answer.status_code in (200, 201):
                    return Answer(answer.status_code, True, told=list(answer.json()["probabilities"].values()))
                hint = float(answer.headers.get("retry-after", 0))
                return Answer(answer.status_code, passing=answer.status_code in (429, 503), wait_s=hint)

            yield send


class Dicom:
    """C-STORE of the JPEG as a Dermoscopic Photography image, on one association a sender, made anew where it ended."""

    rows = "SELECT sop_instance_uid, probabilities FROM predictions JOIN instances ON prediction_id = predictions.id"

    def __init__(self, stack: Stack, _name: str) -> None:
        self._port = stack.ports["DICOM_PORT"]

    def key(self, jpeg: bytes) -> str:
        return f"2.25.{int.from_bytes(hashlib.sha256(jpeg).digest()[:15])}"

    @contextmanager
    def sending(self) -> Iterator[Send]:
        ae = AE(ae_title="GATEWAY")
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = _ANSWER_S
        contexts = [build_context(DERMOSCOPIC_PHOTOGRAPHY, JPEGBaseline8Bit)]
        open_ones: list[Any] = []

        def send(jpeg: bytes) -> Answer:
            if not (open_ones and open_ones[-1].is_established):
                open_ones.append(ae.associate("127.0.0.1", self._port, contexts=contexts, ae_title="DERMSERVE"))
            association = open_ones[-1]
            if not association.is_established:
                return Answer(NO_ANSWER)
            settle(association)
            try:
                answer = association.send_c_store(self._object(jpeg))
            except (RuntimeError, ValueError):  # it ended between the look and the sending
                return Answer(NO_ANSWER)
            status = int(getattr(answer, "Status", NO_ANSWER))
            return Answer(status, acknowledged="Status" in answer and status == 0, passing=status in (0, 0xA700))

        yield send
        for one in open_ones:
            if one.is_established:
                one.release()

    def _object(self, jpeg: bytes) -> Any:
        data = coded(
            [jpeg], JPEGBaseline8Bit, like=_blank(), PhotometricInterpretation="YBR_FULL_422",
            SOPInstanceUID=self.key(jpeg), StudyInstanceUID="2.25.1", SeriesInstanceUID="2.25.2",
        )  # fmt: skip
        return read(data)


@cache
def _blank() -> Any:
    return np.zeros((96, 96, 3), np.uint8)
