"""The ways to a score. Every door takes the encoded bytes of one image, and raises an error of the tree where it has none."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any, Final, Protocol

from dermserve import image, labels
from dermserve.client import AsyncTritonClient, Outputs
from dermserve.errors import InferenceUnavailable, Overloaded, RequestInvalid
from dermserve.model_card import ModelCard
from dermserve.predict.outcome import Scores

_RUNTIME_S: Final = 10.0
_FULL: Final = ("diagnoses", "quality", "region")


class Door(Protocol):
    """One server, or several alike.

    Args:
        title: what people call it, as the subject of a sentence.
        models: name and version of each model that computed a score, as far as the door can know.
    """

    title: str
    models: set[str]

    async def score(self, data: bytes, sha256: str) -> Scores:
        """Score one image.

        Args:
            data: an encoded JPEG, PNG or DICOM object.
            sha256: of `data`, in hex.

        Raises:
            ImageError: the server refuses the image; it would refuse it again.
            Overloaded, RateLimited: it has no room; `retry_after` in seconds is its own word, None where it said nothing.
            Unavailable: it is away, or failed on this image.
            DermserveError: anything else is wrong with every request alike.
        """

    def nobody(self) -> str:
        """The sentence for a server that has answered nothing at all."""

    async def close(self) -> None: ...


class TritonDoor:
    """Triton's gRPC, for a trusted network. Create it inside a running event loop.

    Args:
        urls: host:port of each server.
        card: this installation's, which should be the servers'; None where there is none.
        operating_point: of the card, for the decision in JSON lines.
        full: ask for all that a result holds, and not only for what the CSV needs.
    """

    title = "Triton"

    def __init__(self, urls: Sequence[str], *, card: ModelCard | None, operating_point: str, full: bool) -> None:
        # Triton does not tell the version: the card's is what its administrator says.
        self.models = set() if card is None else {f"{card.name} {card.version}"}
        self._client = AsyncTritonClient(urls)
        self._urls = urls
        self._card = card
        self._point = operating_point
        self._full = full
        self._outputs = ["probabilities", "ood", *(_FULL if full else ())]
        self._model: tuple[float, dict[str, str]] | None = None

    async def score(self, data: bytes, sha256: str) -> Scores:
        """See `Door.score`."""
        try:
            answer = await self._client.infer([data], self._outputs, bulk=True)
        except Overloaded as error:
            error.retry_after = None  # the client's own guess from what is in flight, which is for others to be told
            raise
        ood = float(answer["ood"][0, 0])
        document = await self._document(data, sha256, answer) if self._full else None
        return Scores(answer["probabilities"][0].tolist(), ood, document=document)

    async def _document(self, data: bytes, sha256: str, answer: Outputs) -> str:
        header = image.inspect(data)
        probabilities = dict(zip(labels.COLUMNS, _plain(answer["probabilities"][0]), strict=True))
        known: dict[str, Any] = {
            "image": {"sha256": sha256, "width": header.width, "height": header.height, "format": header.format},
            "probabilities": {column.lower(): value for column, value in probabilities.items()},
            "diagnoses": dict(zip(labels.LEAVES, _plain(answer["diagnoses"][0]), strict=True)),
            "quality": {"ood": _plain(answer["ood"][0])[0]},
            "region": _plain(answer["region"][0]),
            "model": await self._served(),
        }
        if self._card is not None:
            known |= self._judged(known["quality"], answer)
        return json.dumps(known)

    def _judged(self, quality: dict[str, Any], answer: Outputs) -> dict[str, Any]:
        """What follows from the card's thresholds."""
        assert self._card is not None
        threshold = self._card.operating_point(self._point).threshold
        flags, ood = self._card.quality, self._card.ood
        if flags.measured:
            values = zip(labels.QUALITY_FLAGS, answer["quality"][0].tolist(), strict=True)
            quality["flags"] = [name for name, value in values if value >= flags.thresholds.get(name, 1.1)]
        if ood.measured:
            quality["abstained"] = bool(answer["ood"][0, 0] > ood.thresholds["ood"])
        refer = float(answer["probabilities"][0, labels.COLUMNS.index("Melanoma")]) >= threshold
        return {"decision": {"operating_point": self._point, "threshold": threshold, "refer": refer}}

    async def _served(self) -> dict[str, str]:
        if self._model is None or time.monotonic() - self._model[0] > _RUNTIME_S:
            runtime, precision = await self._client.runtime()
            self._model = (time.monotonic(), {"name": "melanoma", "precision": precision, "runtime": runtime})
        return self._model[1]

    def nobody(self) -> str:
        """See `Door.nobody`."""
        return f"No Triton answers at {', '.join(self._urls)}: start `dermserve serve`, or give --url."

    async def close(self) -> None:
        """Close every channel."""
        await self._client.close()


def _plain(values: Any) -> list[float]:
    """32-bit values with the seven digits they have."""
    return [float(f"{value:.7g}") for value in values.tolist()]


def addresses(url: str) -> tuple[str, ...]:
    """The servers that --url names for Triton.

    Raises:
        RequestInvalid: it does not name any.
    """
    parts = tuple(part.strip() for part in url.split(",") if part.strip())
    if not parts or any("/" in part or ":" not in part for part in parts):
        raise RequestInvalid(
            "--url takes Triton's gRPC addresses, host:port[,host:port…], or one https://… of the HTTP API."
        )
    return parts


def is_away(error: Exception) -> bool:
    """Whether nobody answered at all; else a server that is there failed on this image."""
    return isinstance(error, InferenceUnavailable) and error.detail == error.title
