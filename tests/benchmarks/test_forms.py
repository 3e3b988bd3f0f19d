from benchmarks.forms import password_form, token

PAGE = """
<form action="/search"><input name="q"></form>
<form method="post" action="/login">
  <input type="hidden" name="csrf_token" value="abc&amp;1">
  <label>E-mail <input type="email" name="email" required></label>
  <input type="password" name="password"/>
  <button name="go">Log in</button>
</form>
<input name="outside" value="not sent">
"""


def test_a_form_goes_back_as_a_browser_would_send_it():
    form = password_form(PAGE)

    assert form.action == "/login"
    assert form.filled({"email": "a@example.org", "password": "correct horse"}) == {
        "csrf_token": "abc&1",
        "email": "a@example.org",
        "password": "correct horse",
    }


def test_the_token_is_found_in_whichever_form_carries_it():
    assert token(PAGE) == "abc&1"
    assert token("<form><input name='csrf_token'></form>") is None


def test_a_page_without_a_password_has_no_such_form():
    assert password_form("<form><input name='q'></form>") is None
