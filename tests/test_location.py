"""Where Redis is and how to log in: REDIS_URL, REDIS_UNIX_SOCKET, files of passwords and of certificates; as tables."""

import re
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_settings import DEFAULTS, changed, sentence

from conf.location import NO_PARAMETERS, URL_WORDS, Url
from conf.rules import load

SOCKET = "/run/redis/redis.sock"


def place(settings):
    """What the program uses of it: where Redis is, whether with TLS, the database, the login."""
    login = settings.redis_username, settings.redis_password, settings.redis_password_file
    return settings.redis_host, settings.redis_ssl, settings.redis_db, *login


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("redis://redis-1", ("redis-1", 6379, False, 0, None, None)),
        ("redis://redis-1/", ("redis-1", 6379, False, 0, None, None)),
        ("redis://10.0.0.1:7000/3", ("10.0.0.1", 7000, False, 3, None, None)),
        ("redis://10.0.0.1:7000?db=3", ("10.0.0.1", 7000, False, 3, None, None)),
        ("redis://10.0.0.1/?db=3", ("10.0.0.1", 6379, False, 3, None, None)),
        ("rediss://redis.example.com", ("redis.example.com", 6379, True, 0, None, None)),
        ("REDIS://[2001:db8::7]:7000", ("2001:db8::7", 7000, False, 0, None, None)),
        ("redis://[::1]/1", ("::1", 6379, False, 1, None, None)),
        ("redis://:p%40ss%2Fw%23%3F%25rd@h", ("h", 6379, False, 0, None, "p@ss/w#?%rd")),
        ("redis://:p@ss@h", ("h", 6379, False, 0, None, "p@ss")),
        ("rediss://us%3Aer:%D0%BF:@h:1/2", ("h", 1, True, 2, "us:er", "п:")),
        ("redis://user@h", ("h", 6379, False, 0, "user", None)),
        (f"unix://{SOCKET}", (SOCKET, 0, False, 0, None, None)),
        (f"unix://user:p%20w@{SOCKET}?db=2", (SOCKET, 0, False, 2, "user", "p w")),
        ("unix:///run/my%20redis.sock", ("/run/my redis.sock", 0, False, 0, None, None)),
    ],
)
def test_a_url_says_it_all(url, found):
    host, port, tls, db, user, password = found
    settings = load({"REDIS_URL": url})
    assert place(settings) == (((host, port),), tls, db, user, password, "")
    assert settings.redis_unix_socket == ("" if port else host)
    assert settings.warnings == ()


@given(st.text(min_size=1), st.text(min_size=1))
def test_user_and_password_of_a_url_arrive_literally(user, password):
    try:
        url = f"redis://{quote(user, safe='')}:{quote(password, safe='')}@h"
    except UnicodeEncodeError:  # half a character
        return
    settings = load({"REDIS_URL": url})
    assert (settings.redis_username, settings.redis_password) == (user, password)


@pytest.mark.parametrize(
    "url",
    [
        *(
            "localhost",
            "localhost:6379",
            "http://h",
            "redis:h",
            "redis+sentinel://a,b/mymaster",
            "redis://a,b",
            "redis://",
        ),
        *("redis://:hidden@", "redis://:hid#den@h", "redis://h/hidden", "redis://h/0/1", "redis://h/-1", "redis://h:0"),
        *("redis://h:hidden", "redis://h:65536", "redis://[::1", "redis://h/1?db=2", "redis://h?db=1&db=2"),
        *("redis://h?db=hidden", "redis://h/1048576", "redis://:%ff@h", "redis://us er@h", "redis://h\x07"),
        *("unix://redis.sock", "unix://", f"unix://host{SOCKET}", "unix:///" + "a" * 103, f"unixs://{SOCKET}"),
    ],
)
def test_a_bad_url_is_refused_and_not_shown(url):
    assert sentence({"REDIS_URL": url}) == f"REDIS_URL=…: expected {URL_WORDS}"


@pytest.mark.parametrize("query", ["ssl_ca_certs=/ca.pem", "db=1&protocol=3", "hidden@h", "DB=1"])
def test_a_parameter_that_means_nothing_here_is_refused_and_not_shown(query):
    """It may be the end of a password with a question mark in it."""
    assert sentence({"REDIS_URL": f"redis://h?{query}"}) == f"REDIS_URL=…: expected {NO_PARAMETERS}"


def test_what_a_url_does_not_name_is_for_the_single_settings():
    """So a password need not be part of it."""
    single = {"REDIS_USERNAME": "user", "REDIS_PASSWORD_FILE": "/secret", "REDIS_DB": "4"}
    settings = load({"REDIS_URL": "rediss://h", **single})
    assert place(settings) == ((("h", 6379),), True, 4, "user", None, "/secret")
    assert settings.warnings == ()
    settings = load({"REDIS_URL": "redis://:p@h", "REDIS_USERNAME": "user"})
    assert (settings.redis_username, settings.redis_password, settings.warnings) == ("user", "p", ())


@pytest.mark.parametrize(
    ("url", "single", "names"),
    [
        ("redis://h", {"REDIS_HOST": "a,b"}, "REDIS_HOST"),
        ("redis://h", {"REDIS_HOST": "a", "REDIS_PORT": "1"}, "REDIS_HOST, REDIS_PORT"),
        ("redis://h", {"REDIS_PORT": "1"}, "REDIS_PORT"),
        ("redis://h", {"REDIS_SENTINELS": "a,b"}, "REDIS_SENTINELS"),
        ("redis://h", {"REDIS_SSL": "True"}, "REDIS_SSL"),
        ("redis://h", {"REDIS_UNIX_SOCKET": SOCKET}, "REDIS_UNIX_SOCKET"),
        (f"unix://{SOCKET}", {"REDIS_HOST": "a"}, "REDIS_HOST"),
        ("redis://h/1", {"REDIS_DB": "2"}, "REDIS_DB"),
        ("redis://u:p@h", {"REDIS_USERNAME": "a", "REDIS_PASSWORD": "b"}, "REDIS_USERNAME, REDIS_PASSWORD"),
        ("redis://:p@h", {"REDIS_PASSWORD_FILE": "/secret"}, "REDIS_PASSWORD_FILE"),
        # The defaults, as a copy of .env.example has them, and what says the same.
        ("redis://h", {"REDIS_HOST": "localhost", "REDIS_PORT": "6379", "REDIS_SSL": "False", "REDIS_DB": "0"}, ""),
        ("rediss://u:p@h:1/2", {"REDIS_HOST": "h:1", "REDIS_PORT": "1", "REDIS_SSL": "True", "REDIS_DB": "2"}, ""),
    ],
)
def test_single_settings_that_a_url_replaces_are_warned_about(url, single, names):
    settings = load({"REDIS_URL": url, **single})
    assert place(settings) == place(load({"REDIS_URL": url}))
    assert settings.warnings == ((f"REDIS_URL is set, so these have no effect: {names}",) if names else ())
    assert settings.redis_sentinels == ()


def test_a_unix_socket_takes_the_place_of_the_host():
    settings = load({"REDIS_UNIX_SOCKET": SOCKET, "REDIS_USERNAME": "user", "REDIS_PASSWORD": "p", "REDIS_DB": "1"})
    assert place(settings) == (((SOCKET, 0),), False, 1, "user", "p", "")
    assert settings.warnings == ()
    settings = load({"REDIS_UNIX_SOCKET": SOCKET, "REDIS_HOST": "a", "REDIS_PORT": "1"})
    assert settings.redis_host == ((SOCKET, 0),)
    assert settings.warnings == ("REDIS_UNIX_SOCKET is set, so these have no effect: REDIS_HOST, REDIS_PORT",)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            {"REDIS_UNIX_SOCKET": SOCKET, "REDIS_HOST": "a,b"},
            "REDIS_UNIX_SOCKET cannot be used with several hosts in REDIS_HOST: expected one of the two",
        ),
        (
            {"REDIS_UNIX_SOCKET": SOCKET, "REDIS_SENTINELS": "a"},
            "REDIS_UNIX_SOCKET cannot be used with REDIS_SENTINELS: expected one of the two",
        ),
        (
            {"REDIS_UNIX_SOCKET": SOCKET, "REDIS_SSL": "True"},
            "REDIS_UNIX_SOCKET cannot be used with REDIS_SSL=True: expected one of the two",
        ),
        (
            {"REDIS_PASSWORD": "hidden", "REDIS_PASSWORD_FILE": "/secret"},
            "REDIS_PASSWORD and REDIS_PASSWORD_FILE are both set: expected one of them",
        ),
        (
            {"REDIS_SENTINEL_PASSWORD": "hidden", "REDIS_SENTINEL_PASSWORD_FILE": "/secret"},
            "REDIS_SENTINEL_PASSWORD and REDIS_SENTINEL_PASSWORD_FILE are both set: expected one of them",
        ),
        *(
            (
                {name: "/file.pem", **more},
                f"{name} is set without TLS: expected REDIS_SSL=True, or REDIS_URL=rediss://…",
            )
            for name in ("REDIS_SSL_CA", "REDIS_SSL_CERT", "REDIS_SSL_KEY")
            for more in ({}, {"REDIS_URL": "redis://h", "REDIS_SSL": "True"})
        ),
        (
            {"REDIS_SSL": "True", "REDIS_SSL_KEY": "/key.pem"},
            "REDIS_SSL_KEY is set without REDIS_SSL_CERT: expected both",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, told):
    assert sentence(settings) == told


def test_certificates_go_with_a_url_too():
    files = {"REDIS_SSL_CA": "/ca", "REDIS_SSL_CERT": "/cert", "REDIS_SSL_KEY": "/key"}
    names = {name.lower(): file for name, file in files.items()}
    assert changed(load({"REDIS_SSL": "True", **files})) == {"redis_ssl": True, **names}
    found = changed(load({"REDIS_URL": "rediss://h", **files}))
    url = Url("h", 6379, True, None, None, None)
    assert found == {"redis_url": url, "redis_host": (("h", 6379),), "redis_ssl": True, **names}


def test_nothing_is_changed_where_nothing_is_said():
    assert load({"REDIS_URL": "", "REDIS_UNIX_SOCKET": "", "REDIS_PASSWORD_FILE": ""}) == DEFAULTS
    assert re.search(r"\bunix:///", URL_WORDS)
