from __future__ import annotations

import pytest

from dermserve.errors import BY_CODE, DermserveError, ImageUndecodable, StartupError, Unavailable, from_wire


def test_codes_are_unique_and_every_error_knows_all_its_doors() -> None:
    def family(cls: type[DermserveError]) -> list[type[DermserveError]]:
        return [cls, *(one for child in cls.__subclasses__() for one in family(child))]

    classes = [cls for cls in family(DermserveError) if cls.__module__ == "dermserve.errors"]  # a room may refine them
    assert len({cls.code for cls in classes}) == len(classes) == len(BY_CODE)
    for cls in classes:
        assert 400 <= cls.http_status < 600
        assert cls.grpc_status.isupper()
        assert 0x0100 <= cls.dicom_status <= 0xFFFF
        # PS3.4 B.2.3: a sender retries on 0xA7xx; an error that passes must look so at the DICOM door, too.
        assert issubclass(cls, Unavailable) <= (cls.dicom_status == 0xA700 and cls().retry_after is not None)


@pytest.mark.parametrize("index", [None, 0, 41])
def test_an_error_survives_the_wire_whatever_triton_puts_around_it(index: int | None) -> None:
    line = ImageUndecodable("The JPEG data is truncated or corrupt.").wire(index)
    found = from_wire(f"in ensemble 'melanoma', {line}")
    assert found is not None
    error, place = found
    assert type(error) is ImageUndecodable
    assert error.detail == "The JPEG data is truncated or corrupt."
    assert place == index


@pytest.mark.parametrize("message", ["", "Socket closed", "[no_such_code] image 1: x", "image 3: broken"])
def test_other_messages_are_not_taken_for_ours(message: str) -> None:
    assert from_wire(message) is None


def test_an_error_without_detail_says_its_title() -> None:
    assert str(StartupError()) == StartupError().detail == "dermserve cannot start"
