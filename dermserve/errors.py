"""One tree of errors; every door translates from it and none invents its own.

Each class carries a stable `code` (what programs match on), an HTTP status, a gRPC status name, a DICOM status
(PS3.4 annex B.2.3 for C-STORE, PS3.7 annex C where that says nothing) and a title for people. An instance adds a
`detail` that is safe to show to the sender: it never holds a path, a stack or another person's data.
"""

from __future__ import annotations

import re
from typing import ClassVar


class DermserveError(Exception):
    """Root of the tree. `retry_after` is in seconds, None where a retry of the same request cannot help."""

    code: ClassVar[str] = "internal_error"
    title: ClassVar[str] = "Something went wrong on our side"
    http_status: ClassVar[int] = 500
    grpc_status: ClassVar[str] = "INTERNAL"
    dicom_status: ClassVar[int] = 0x0110
    exit_status: int = 1
    """Of a command that ends with it."""

    def __init__(self, detail: str = "", *, retry_after: int | None = None) -> None:
        super().__init__(detail or self.title)
        self.detail = detail or self.title
        self.retry_after = retry_after

    def wire(self, index: int | None = None) -> str:
        """One line that survives a protocol without typed errors: `[code] image 2: detail` (see `from_wire`)."""
        place = "" if index is None else f"image {index}: "
        return f"[{self.code}] {place}{self.detail}"


class ImageError(DermserveError):
    """The bytes sent are not an image that can be scored; the same bytes will fail again."""

    code = "image_invalid"
    title = "The image cannot be used"
    http_status = 422
    grpc_status = "INVALID_ARGUMENT"
    dicom_status = 0xC000


class ImageEmpty(ImageError):
    code = "image_empty"
    title = "The request holds no image"
    dicom_status = 0xC006


class ImageTooLarge(ImageError):
    """More bytes, pixels or a longer side than allowed; found before any pixel is decoded."""

    code = "image_too_large"
    title = "The image is too large"
    dicom_status = 0xC002
    http_status = 413


class ImageTooSmall(ImageError):
    code = "image_too_small"
    title = "The image is too small"
    dicom_status = 0xC003


class UnsupportedImageType(ImageError):
    code = "unsupported_media_type"
    title = "Only JPEG, PNG and DICOM images are accepted"
    dicom_status = 0xC004
    http_status = 415


class ImageUndecodable(ImageError):
    """Truncated or corrupt: the header promises more than the data keeps."""

    code = "image_undecodable"
    title = "The image is damaged and cannot be decoded"
    dicom_status = 0xC005


class DicomNotUnderstood(ImageError):
    """The object cannot be told from others: it is damaged, or its SOP class or instance UID is missing or malformed."""

    code = "dicom_not_understood"
    title = "The DICOM object cannot be understood"
    dicom_status = 0xC001


class SopClassMismatch(DicomNotUnderstood):
    """The data set is of another SOP class than its sender announced (PS3.4 table B.2-1)."""

    code = "dicom_sop_class_mismatch"
    title = "The DICOM object is not of the announced class"
    dicom_status = 0xA900


class SopClassNotTaken(ImageError):
    """The object is of a SOP class that this server is not set up for."""

    code = "dicom_sop_class_not_taken"
    title = "DICOM objects of this class are not accepted"
    http_status = 415
    dicom_status = 0x0122


class StudyMismatch(ImageError):
    """The object is of another study than the one that it was sent to."""

    code = "dicom_study_mismatch"
    title = "The DICOM object belongs to another study"
    http_status = 409
    dicom_status = 0xA901


class UnreadableFile(ImageError):
    """The file system gives no bytes for this name; the file may be well, and no server was asked."""

    code = "image_unreadable"
    title = "The file cannot be read"


class RequestInvalid(DermserveError):
    code = "request_invalid"
    title = "The request is not valid"
    dicom_status = 0xC010
    http_status = 422
    grpc_status = "INVALID_ARGUMENT"


class RequestMalformed(RequestInvalid):
    """The body is not what its type says; images that came before the damage may be stored."""

    code = "request_malformed"
    title = "The body cannot be read"
    http_status = 400


class BatchTooLarge(DermserveError):
    """More images or bytes than one request may have; the first of them may be stored."""

    code = "batch_too_large"
    title = "The batch is too large"
    http_status = 413
    grpc_status = "INVALID_ARGUMENT"


class Unauthenticated(DermserveError):
    code = "unauthenticated"
    title = "Sign in or send a valid API key"
    http_status = 401
    grpc_status = "UNAUTHENTICATED"
    dicom_status = 0x0124


class Forbidden(DermserveError):
    code = "forbidden"
    title = "This is not allowed for you"
    http_status = 403
    grpc_status = "PERMISSION_DENIED"
    dicom_status = 0x0124


class NotFound(DermserveError):
    code = "not_found"
    title = "There is nothing here"
    dicom_status = 0x0112
    http_status = 404
    grpc_status = "NOT_FOUND"


class MethodNotAllowed(DermserveError):
    code = "method_not_allowed"
    title = "This address does not take such a request"
    http_status = 405
    grpc_status = "UNIMPLEMENTED"


class RequestTimeout(DermserveError):
    """The sender was too slow; the server stops waiting and keeps nothing."""

    code = "request_timeout"
    title = "The request did not arrive in time"
    http_status = 408
    grpc_status = "DEADLINE_EXCEEDED"


class Conflict(DermserveError):
    code = "conflict"
    title = "This conflicts with what is stored"
    dicom_status = 0x0111
    http_status = 409
    grpc_status = "ALREADY_EXISTS"


class IdempotencyConflict(Conflict):
    """The same idempotency key was used before with other bytes."""

    code = "idempotency_conflict"
    title = "This idempotency key belongs to another image"


class TooManyLesions(Conflict):
    """A new lesion would exceed what one account may have; images of lesions that exist are taken."""

    code = "too_many_lesions"
    title = "There are too many lesions"


class RateLimited(DermserveError):
    code = "rate_limited"
    title = "Too many requests"
    http_status = 429
    grpc_status = "RESOURCE_EXHAUSTED"
    dicom_status = 0xA700


class Unavailable(DermserveError):
    """A part of the server is not ready; nothing was stored, and the same request can be sent again."""

    code = "unavailable"
    title = "The service is not ready; please try again shortly"
    http_status = 503
    grpc_status = "UNAVAILABLE"
    dicom_status = 0xA700

    def __init__(self, detail: str = "", *, retry_after: int | None = 5) -> None:
        super().__init__(detail, retry_after=retry_after)


class InferenceUnavailable(Unavailable):
    code = "inference_unavailable"
    title = "The model server is not answering; please try again shortly"


class Overloaded(Unavailable):
    """A bounded queue is full or the deadline passed while waiting in it."""

    code = "overloaded"
    title = "The service is busy; please try again shortly"
    grpc_status = "RESOURCE_EXHAUSTED"


class DatabaseUnavailable(Unavailable):
    code = "database_unavailable"
    title = "The database is not answering; please try again shortly"


class StartupError(DermserveError):
    """A command cannot start (a port in use, an unsupported platform, a missing extra); `detail` says what to do."""

    code = "startup_failed"
    title = "dermserve cannot start"


class PreprocessingMismatch(StartupError):
    """This installation prepares images differently from the one the weights were trained and checked with."""

    code = "preprocessing_mismatch"
    title = "The model was made with another preprocessing"


def _subclasses(cls: type[DermserveError]) -> dict[str, type[DermserveError]]:
    found = {cls.code: cls}
    for child in cls.__subclasses__():
        found |= _subclasses(child)
    return found


BY_CODE: dict[str, type[DermserveError]] = _subclasses(DermserveError)

_WIRE = re.compile(r"\[(?P<code>[a-z_]+)\] (?:image (?P<index>\d+): )?(?P<detail>.*)", re.DOTALL)


def from_wire(message: str) -> tuple[DermserveError, int | None] | None:
    """Rebuild the error and the image's index from a line made by `DermserveError.wire`, wherever it stands in `message`.

    Returns None when the message holds no such line, so that a caller can keep the original error.
    """
    match = _WIRE.search(message)
    if match is None or match["code"] not in BY_CODE:
        return None
    index = None if match["index"] is None else int(match["index"])
    return BY_CODE[match["code"]](match["detail"].strip()), index
