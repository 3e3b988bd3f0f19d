import pytest

from benchmarks.senders import Http, WrongAnswer, with_key
from dermserve.errors import StartupError
from tests.benchmarks import fake

IMAGE = b"the bytes that were sent"


def test_one_connection_carries_all_images_of_a_sender():
    with fake.Api() as api:
        send = Http(api.url, "derm_key")()
        for _ in range(3):
            send(IMAGE)

    assert api.connections == 1


def test_a_server_that_ends_its_connections_costs_the_image_that_met_it_and_no_other():
    with fake.Api(hang_up=True) as api:
        send = Http(api.url, "derm_key")()
        send(IMAGE)
        with pytest.raises(WrongAnswer, match="no answer"):
            send(IMAGE)
        send(IMAGE)


@pytest.mark.parametrize(
    ("answered", "said"),
    [
        ((503, {"Retry-After": "1"}, b'{"code": "overloaded"}'), "503 overloaded"),
        ((201, {}, fake.answer(b"another image")), "belongs to another image"),
        ((201, {}, b""), "not JSON"),
    ],
)
def test_a_wrong_answer_is_raised(answered, said):
    with fake.Api(lambda *_: answered) as api, pytest.raises(WrongAnswer, match=said):
        Http(api.url, "derm_key")()(IMAGE)


def test_nobody_listening_is_a_fault_that_says_so():
    with pytest.raises(WrongAnswer, match="no answer"):
        Http("http://127.0.0.1:9", "derm_key")()(IMAGE)


def test_tls_is_refused_before_anything_is_sent():
    with pytest.raises(StartupError, match="plain http"):
        Http("https://127.0.0.1:8000", "derm_key")()


def test_a_percent_sign_in_a_header_is_only_that():
    with fake.Api() as api:
        Http(api.url, "50%d")()(IMAGE)

    assert with_key("50%d")["Authorization"] == "Bearer 50%d"
