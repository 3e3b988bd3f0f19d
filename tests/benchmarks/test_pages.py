from __future__ import annotations

from benchmarks import pages
from benchmarks.images import drawn
from benchmarks.stack import running


def test_every_page_is_visited_and_weighed() -> None:
    with running() as stack:
        found = pages.measure(stack, drawn(3), count=2)
    assert {len(visit.ms) for visit in found.values()} == {2}
    assert all(visit.with_static >= visit.size > 0 for visit in found.values())
    upload = found["upload"]
    assert upload.with_static > upload.size + 20_000, "scripts that scripts import count, too"
    assert found["history as CSV"].with_static == found["history as CSV"].size
