"""One destination: makes the reports that it wants, sends them, and says what came of it."""

from __future__ import annotations

import asyncio
import ssl
from typing import Final

from dermserve.errors import StartupError
from dermserve.settings import Settings
from frontend.delivery.node import Node
from frontend.delivery.outcomes import RefusedError, TryLaterError
from frontend.delivery.patients import PatientUnreadableError, patient_of
from frontend.delivery.web import Web
from frontend.destinations import PURPOSE
from frontend.models import Destination
from frontend.networks import networks_of
from frontend.outbox import Kind, Parcel
from frontend.reports import fhir, identity, structured, webhook
from frontend.reports.facts import Card, Facts
from frontend.vault import Vault

AT_ONCE: Final = 4
"""Deliveries under way to one destination, in one process."""


class Couriers:
    """What all destinations share: keys, certificates, the model card, and which networks are sent to.

    Raises:
        StartupError: a file that the settings name cannot be used.
    """

    def __init__(self, settings: Settings, vault: Vault) -> None:
        self.vault = vault
        self.networks = networks_of(settings)
        self.ae_title = settings.dicom_ae_title
        self.card = Card.read(settings.model_repository)
        self.trust = _trust(settings)

    def to(self, destination: Destination) -> Courier:
        """The one that goes to a destination; opens no connection yet."""
        return Courier(self, destination)


class Courier:
    """Sends to one destination, until `close`."""

    def __init__(self, shared: Couriers, destination: Destination) -> None:
        self._shared = shared
        self._address = destination.address
        self._kind = destination.kind
        self._sealed = destination.secret
        self._web = Web(shared.networks, shared.trust)
        self._node = Node(shared.networks, shared.trust, ae_title=shared.ae_title, at_once=AT_ONCE)

    async def close(self) -> None:
        await self._web.close()
        await self._node.close()

    async def send(self, parcel: Parcel) -> None:
        """Return once the destination says that it has the report.

        Raises:
            TryLaterError, RefusedError: it does not.
        """
        try:
            facts = self._facts(parcel)
        except PatientUnreadableError as error:
            raise RefusedError("what was kept of the patient is sealed with another key") from error
        if self._kind in (Kind.WEBHOOK, Kind.FHIR):
            as_fhir = self._kind == Kind.FHIR
            await self._web.send_message(
                self._address,
                webhook.fhir_body(facts) if as_fhir else webhook.body(facts),
                content_type=fhir.CONTENT_TYPE if as_fhir else webhook.CONTENT_TYPE,
                secret=self._secret() or "",
                message_id=identity.message_id(parcel.destination_id, parcel.prediction.id),
            )
            return
        if facts.instance is None or facts.patient is None:
            raise RefusedError("there is no DICOM image to refer to")
        report = await asyncio.to_thread(structured.document, facts, facts.instance, facts.patient)
        if self._kind == Kind.STOW:
            await self._web.store(self._address, structured.encode(report), token=self._secret())
        elif self._kind == Kind.C_STORE:
            await self._node.store(self._address, report)
        else:  # of a newer version, which shares this database
            raise TryLaterError("this version knows no such kind of destination")

    def _facts(self, parcel: Parcel) -> Facts:
        image = parcel.instance
        patient = patient_of(image, self._shared.vault) if image is not None else None
        return Facts(parcel.prediction, self._shared.card, image, patient)

    def _secret(self) -> str | None:
        if self._sealed is None:
            return None
        secret = self._shared.vault.open(self._sealed, PURPOSE)
        if secret is None:
            raise RefusedError("its secret is sealed with another key")
        return secret.decode()


def _trust(settings: Settings) -> ssl.SSLContext:
    context = ssl.create_default_context()
    try:
        if settings.delivery_ca is not None:
            context.load_verify_locations(settings.delivery_ca)
        if settings.dicom_tls_certificate is not None:  # shown to a destination that asks who sends
            context.load_cert_chain(settings.dicom_tls_certificate, settings.dicom_tls_key)
    except OSError as error:
        raise StartupError(
            "DERMSERVE_DELIVERY_CA, DERMSERVE_DICOM_TLS_CERTIFICATE or …_KEY is no PEM file of this kind."
        ) from error
    return context
