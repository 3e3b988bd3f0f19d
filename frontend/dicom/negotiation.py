"""Which SOP classes are taken, and in which transfer syntaxes: what a requestor is offered."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

from pydicom import uid
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.service_class import StorageServiceClass
from pynetdicom.sop_class import uid_to_service_class

from dermserve import dicom
from dermserve.errors import StartupError
from dermserve.settings import Settings
from frontend.dicom import commitment
from frontend.dicom.sop_classes import taken

VERIFICATION: Final = "1.2.840.10008.1.1"

_PLAIN: Final = (uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian)


def keep_first(asked: Iterable[PresentationContext]) -> None:
    """Of each context that a requestor proposes leave the first transfer syntax that is read here, if any is.

    Its order is its preference: what its images are in comes first, and by far not every sender can change that.
    """
    for context in asked:
        readable = _readable(str(context.abstract_syntax))
        first = next((one for one in context.transfer_syntax if one in readable), None)
        if first is not None:
            context.transfer_syntax = [first]


def _readable(abstract_syntax: str) -> Collection[str]:
    return _PLAIN if abstract_syntax in (VERIFICATION, commitment.SOP_CLASS) else dicom.TRANSFER_SYNTAXES


def sop_classes(settings: Settings) -> tuple[str, ...]:
    """UIDs of the storage SOP classes that are taken.

    Raises:
        StartupError: the settings name what is no storage SOP class.
    """
    wanted = taken(settings)
    for one in wanted:
        if uid_to_service_class(one) is not StorageServiceClass:
            raise StartupError(f"DERMSERVE_DICOM_SOP_CLASSES: {one} is not the UID of a storage SOP class.")
    return wanted


def offered(settings: Settings) -> list[PresentationContext]:
    """Every service with its transfer syntaxes.

    Raises:
        StartupError: as of `sop_classes`.
    """
    asked = build_context(commitment.SOP_CLASS, list(_PLAIN))
    asked.scu_role, asked.scp_role = True, False  # the requestor may say that it is the user of the service
    storage = [build_context(one, list(dicom.TRANSFER_SYNTAXES)) for one in sop_classes(settings)]
    return [build_context(VERIFICATION, list(_PLAIN)), asked, *storage]
