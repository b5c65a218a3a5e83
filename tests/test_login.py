"""Files of settings and passwords, read at the start and again: what counts then, and what a mistake in them does."""

import pytest
import redis
from test_settings import ROOT, start

from conf.converters import SettingsError
from conf.live import Live
from relay.redis.dial import connections
from relay.redis.endpoint import Hosts
from relay.redis.link import Timeouts
from relay.redis.login import Login
from sandbox.redis import LocalRedis


@pytest.fixture
def file(tmp_path):
    """A settings file: file.write(text), and file.live(**environment), the settings that come from both."""
    return File(tmp_path / "collector.env")


class File:
    def __init__(self, path):
        self.path = path

    def write(self, text):
        self.path.write_text(text, encoding="utf-8")
        self.path.chmod(0o600)

    def live(self, **environ):
        return Live(self.path.parent / ".env", {"ENV_FILE": str(self.path), **environ})


def sentence(make, *arguments, **named):
    with pytest.raises(SettingsError) as error:
        make(*arguments, **named)
    return str(error.value)


# The settings file.


@pytest.mark.parametrize("more", [{}, {"PYTHON_DOTENV_DISABLED": "1"}], ids=["", "without .env"])
def test_env_file_names_a_file_in_place_of_the_one_beside_main(file, more):
    file.write("REDIS_DB=1\nREDIS_PORT=7000\n")
    (file.path.parent / ".env").write_text("REDIS_DB=2\nREDIS_BUFFER_MB=9\n")
    settings = file.live(REDIS_PORT="7001", **more).settings
    assert (settings.redis_db, settings.redis_buffer_mb, settings.redis_port) == (1, 256, 7001)


def test_env_file_may_be_empty_and_relative(file, monkeypatch):
    file.write("REDIS_DB=1\n")
    beside = file.path.parent / ".env"
    assert Live(beside, {"ENV_FILE": ""}).settings.redis_db == 0
    monkeypatch.chdir(file.path.parent)
    live = Live(beside, {"ENV_FILE": "collector.env"})
    monkeypatch.chdir("/")
    file.write("REDIS_DB=1\nREDIS_USERNAME=me\n")
    assert live.reload().live == ["REDIS_USERNAME"]


def test_a_file_that_was_named_must_be_there(file):
    """The sentence names it; so do those about what is in it."""
    assert sentence(file.live) == f"{file.path} cannot be read: No such file or directory"
    assert start(ROOT, ENV_FILE=str(file.path)) == (2, "", f"Cannot start: {sentence(file.live)}\n")
    file.write("REDIS_PORT\n")
    assert sentence(file.live) == "collector.env, line 1: expected NAME=value"
    file.write("SYMBOL=BTCUSDT\n")
    assert file.live().settings.warnings[0].startswith("collector.env: SYMBOL is not a setting")


def test_what_systemd_alone_can_read_does_not_matter_where_it_has_read_it(file):
    """An installation whose file was written for systemd starts as before: what it made of the lines counts."""
    file.write("; a comment\n;REDIS_DB=3\nREDIS_PASSWORD='back\\'\nREDIS_DB=1\n")
    live = file.live(REDIS_PASSWORD="back\\", REDIS_DB="1")
    assert (live.login(), live.settings.warnings) == ((None, "back\\"), ())
    assert sentence(file.live) == "collector.env, line 3: expected NAME=value"
    assert sentence(live.reload) == "collector.env, line 3: expected NAME=value"
    assert live.login() == (None, "back\\")


def test_quotes_that_mean_the_same_to_systemd(file):
    """The units' comment has this rule; in such quotes systemd changes \\" and \\\\ only."""
    file.write('REDIS_PASSWORD="a\\"b\\\\c$d`e #f\'g;"\n')
    assert file.live().login() == (None, "a\"b\\c$d`e #f'g;")


@pytest.mark.parametrize(
    ("line", "warned"),
    [
        ("REDIS_PASSWORD=x", True),
        ("REDIS_SENTINEL_PASSWORD=x", True),
        ("REDIS_URL=redis://:x@h", True),
        ("REDIS_URL=redis://h", False),
        ("REDIS_PASSWORD=", False),
    ],
)
def test_a_file_with_a_password_that_everybody_can_read_is_warned_about(file, line, warned):
    file.write(f"{line}\n")
    assert file.live().settings.warnings == ()
    file.path.chmod(0o604)
    warning = f"{file.path} holds a password and everybody can read it: chmod o-r {file.path}"
    assert file.live().settings.warnings == ((warning,) if warned else ())


# Read again.


def test_what_has_changed_in_the_file_counts_also_over_the_environment(file):
    """systemd has put the file into the environment at the start, and cannot do so again."""
    file.write("REDIS_PASSWORD=old\nLOG_LEVEL=INFO\nREDIS_DB=1\n")
    live = file.live(REDIS_PASSWORD="old", REDIS_USERNAME="me")
    file.write("REDIS_PASSWORD=new\nLOG_LEVEL=DEBUG\nREDIS_DB=1\n")
    changes = live.reload()
    assert live.login() == ("me", "new")
    assert changes == (["REDIS_PASSWORD", "LOG_LEVEL"], [], [], "DEBUG")
    assert live.reload() == ([], [], [], "DEBUG")


def test_what_has_not_changed_in_the_file_leaves_the_environment_as_it_is(file):
    file.write("REDIS_PASSWORD=of the file\nREDIS_USERNAME=me\n")
    live = file.live(REDIS_PASSWORD="of the environment")
    file.write("REDIS_PASSWORD=of the file\nREDIS_USERNAME=you\n")
    assert live.reload().live == ["REDIS_USERNAME"]
    assert live.login() == ("you", "of the environment")


def test_a_line_that_is_gone_is_gone_from_the_environment_if_it_came_from_there(file):
    file.write("REDIS_PASSWORD=of the file\nREDIS_USERNAME=me\n")
    live = file.live(REDIS_PASSWORD="of the file", REDIS_USERNAME="you")
    secret = file.path.parent / "secret"
    secret.write_text("of the secret")
    file.write(f"REDIS_PASSWORD_FILE={secret}\n")
    assert live.reload().live == ["REDIS_PASSWORD", "REDIS_PASSWORD_FILE"]
    assert live.login() == ("you", "of the secret")


def test_the_login_of_a_url_counts_and_the_rest_of_it_waits_for_a_restart(file):
    file.write("REDIS_URL=redis://me:old@h\n")
    live = file.live()
    file.write("REDIS_URL=redis://you:new@h\n")
    assert live.reload() == (["REDIS_URL"], [], [], "INFO")
    assert live.login() == ("you", "new")
    file.write("REDIS_URL=redis://you:new@other/1\nSYMBOLS=ETHUSDT\nSYMBOL=x\n")
    changes = live.reload()
    assert changes[:2] == ([], ["SYMBOLS", "REDIS_URL"])
    assert [warning.partition(" is not")[0] for warning in changes.warnings] == ["collector.env: SYMBOL"]
    changes = live.reload()
    assert changes == ([], ["SYMBOLS", "REDIS_URL"], [], "INFO"), "they still wait"
    assert "hidden" not in repr(changes)


def test_the_login_at_sentinel_counts_too(file):
    file.write("REDIS_SENTINELS=a\nREDIS_SENTINEL_PASSWORD=old\n")
    live = file.live()
    file.write("REDIS_SENTINELS=a\nREDIS_SENTINEL_PASSWORD=new\nREDIS_SENTINEL_USERNAME=me\n")
    assert live.reload().live == ["REDIS_SENTINEL_USERNAME", "REDIS_SENTINEL_PASSWORD"]
    assert live.sentinel_login() == ("me", "new")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("REDIS_PASSWORD=new\nREDIS_PORT=no\n", "REDIS_PORT=no: expected a port from 1 to 65535"),
        ("REDIS_PASSWORD=new\nnonsense\n", "collector.env, line 2: expected NAME=value"),
        ("REDIS_PASSWORD_FILE=/no/file\n", "REDIS_PASSWORD_FILE: /no/file cannot be read: No such file or directory"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_a_mistake_in_the_file_leaves_all_as_it_was(file, text, told):
    file.write("REDIS_PASSWORD=old\n")
    live = file.live(REDIS_PASSWORD="old")
    file.path.unlink() if text is None else file.write(text)
    assert sentence(live.reload).endswith(told)
    assert live.login() == (None, "old")
    file.write("REDIS_PASSWORD=new\n")
    assert live.reload().live == ["REDIS_PASSWORD"]


def test_without_a_file_there_is_nothing_to_read_again(file):
    live = Live(file.path, {"PYTHON_DOTENV_DISABLED": "1"})
    assert sentence(live.reload) == "they come from the environment alone, where nobody can change them"
    assert sentence(Live(file.path, {}).reload) == f"{file.path} cannot be read: No such file or directory"


# Files of passwords.


@pytest.mark.parametrize(
    ("content", "password"),
    [
        ("secret", "secret"),
        ("secret\n", "secret"),
        ("secret\r\n", "secret"),
        (" a b \n\n", " a b \n"),
        ("п#'\"", "п#'\""),
    ],
)
def test_a_password_is_the_content_of_its_file(file, content, password):
    """World-readable is no reason for a warning: the mounted secrets of Docker and Kubernetes are."""
    secret = file.path.parent / "secret"
    secret.write_bytes(content.encode())
    secret.chmod(0o644)
    live = Live(file.path, {"REDIS_PASSWORD_FILE": str(secret), "REDIS_SENTINEL_PASSWORD_FILE": str(secret)})
    assert live.login() == live.sentinel_login() == (None, password)
    assert live.settings.warnings == ()


def test_a_file_of_a_password_must_be_there_at_the_start(file):
    secret = file.path.parent / "secret"
    for name in ("REDIS_PASSWORD_FILE", "REDIS_SENTINEL_PASSWORD_FILE"):
        settings = {name: str(secret)}
        assert sentence(Live, file.path, settings) == f"{name}: {secret} cannot be read: No such file or directory"
        secret.write_text("\n")
        assert sentence(Live, file.path, settings) == f"{name}: {secret} is empty: expected a password"
        secret.write_bytes(b"\xff")
        assert sentence(Live, file.path, settings) == f"{name}: {secret} cannot be read: it is not UTF-8"
        secret.unlink()


def test_a_file_of_a_password_is_read_each_time_and_its_last_content_holds_while_it_is_away(file, caplog):
    secret = file.path.parent / "secret"
    secret.write_text("first")
    live = Live(file.path, {"REDIS_PASSWORD_FILE": str(secret)})
    for content, password, logged in (
        ("second", "second", 0),
        (None, "second", 1),
        ("", "second", 1),
        ("third", "third", 1),
        ("", "third", 2),
    ):
        secret.write_text(content) if content is not None else secret.unlink()
        assert live.login() == (None, password)
        assert caplog.text.count("going on with the password that it held before") == logged


# Files of certificates.


def test_certificates_that_cannot_be_used_are_refused_at_the_start(file, authority, tmp_path):
    ca, ca_file = authority
    issued = ca.issue_cert("collector")
    cert, key, both, other = (tmp_path / name for name in ("cert.pem", "key.pem", "both.pem", "other.pem"))
    issued.cert_chain_pems[0].write_to_path(cert)
    issued.private_key_pem.write_to_path(key)
    issued.private_key_and_cert_chain_pem.write_to_path(both)
    ca.issue_cert("another").private_key_pem.write_to_path(other)
    (tmp_path / "text.pem").write_text("no certificate")

    def told(**files):
        names = {f"REDIS_SSL_{name.upper()}": str(path) for name, path in files.items()}
        return sentence(Live, file.path, {"REDIS_SSL": "True", **names})

    for good in ({"ca": ca_file}, {"cert": both}, {"cert": cert, "key": key}, {"ca": ca_file, "cert": both}):
        Live(file.path, {"REDIS_SSL": "True"} | {f"REDIS_SSL_{name.upper()}": str(p) for name, p in good.items()})
    for path in (tmp_path / "none.pem", tmp_path / "text.pem"):
        assert told(ca=path).startswith(f"REDIS_SSL_CA: {path} cannot be used: ")
    assert "No such file or directory; expected PEM" in told(ca=tmp_path / "none.pem")
    for bad, words in (({"cert": cert}, "the same file"), ({"cert": cert, "key": other}, other)):
        assert told(**bad).startswith(f"REDIS_SSL_CERT: {cert} with the key of {words} cannot be used: ")


# Connections.


def test_every_connection_logs_in_with_what_is_current():
    """Also when it connects anew by itself; without a login where there is none."""
    current = ["", None]
    with LocalRedis(password="secret") as server:
        server.client().execute_command("ACL", "SETUSER", "me", "on", ">word", "+@all")
        connect = connections(
            Hosts([("127.0.0.1", server.port)]), Timeouts(), False, credential_provider=Login(lambda: current)
        )
        connection = connect()

        def who():
            connection.disconnect()
            try:
                connection.connect()
                connection.send_command("ACL", "WHOAMI")
                return connection.read_response()
            except redis.RedisError as error:
                return type(error)
            finally:
                connection.disconnect()

        assert who() is redis.AuthenticationError
        current[:] = None, "secret"
        assert who() == b"default"
        current[:] = "me", "word"
        assert who() == b"me"
        current[:] = "me", None
        assert who() is redis.AuthenticationError
    with LocalRedis() as server:
        current[:] = None, None
        connection = connections(
            Hosts([("127.0.0.1", server.port)]), Timeouts(), False, credential_provider=Login(lambda: current)
        )()
        assert who() == b"default"
