"""deploy/prometheus and deploy/grafana: what they ask for is what the exporter serves, and each alert is tested."""

import json
import re
import shutil
import subprocess
import threading
import time
import urllib.parse
import urllib.request

import pytest
import yaml
from conftest import eventually
from programs import ROOT
from states import COLLECTOR, STREAM, metric_names, start_exporter, write

from examples.exporter import HELP
from sandbox.redis import end_with_parent, free_port

PROMETHEUS, DASHBOARD = ROOT / "deploy/prometheus", ROOT / "deploy/grafana/dashboard.json"
RULES, TESTS = PROMETHEUS / "rules.yml", PROMETHEUS / "rules_test.yml"
# What Grafana puts in place of its variables.
VARIABLES = {"$prefix": ".*", "$instance": ".*", "$__rate_interval": "3s", "$__range": "10s"}
# Alerts of what is not there, and of a heartbeat that has failed for long: rules_test.yml raises them.
OF_ABSENCE = {"BybitNoCollector", "BybitNoHeartbeat", "BybitRedisUnreachable", "BybitExporterDown"}


def tool(name):
    return shutil.which(name) or pytest.skip(f"{name} is not installed")


def loaded(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def alerts():
    """The rules by the name of the alert."""
    rules = [rule for group in loaded(RULES)["groups"] for rule in group["rules"]]
    found = {rule["alert"]: rule for rule in rules}
    assert len(found) == len(rules)
    return found


def dashboard():
    return json.loads(DASHBOARD.read_text(encoding="utf-8"))


def queries():
    """The expressions of the dashboard, by panel and letter, as Grafana asks them."""
    found = {}
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            expression = target["expr"]
            for name, value in VARIABLES.items():
                expression = expression.replace(name, value)
            assert "$" not in expression
            found[f"{panel['title']} {target['refId']}"] = expression
    return found


def test_promtool_takes_configuration_and_rules():
    checked = subprocess.run(
        [tool("promtool"), "check", "config", PROMETHEUS / "prometheus.yml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(alerts())} rules found" in checked.stdout


def test_the_alerts_are_raised_when_they_should_be_and_only_then():
    checked = subprocess.run([tool("promtool"), "test", "rules", TESTS], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_each_alert_has_a_test_that_raises_it_and_one_that_does_not():
    checks = [check for test in loaded(TESTS)["tests"] for check in test["alert_rule_test"]]
    for is_raised in (True, False):
        assert {check["alertname"] for check in checks if bool(check["exp_alerts"]) is is_raised} == set(alerts())


def test_each_alert_says_what_and_how_bad():
    for name, rule in alerts().items():
        assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}, name
        assert set(rule["annotations"]) == {"summary", "description"}
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert "instance" not in re.findall(r"\w+", rule["expr"]), "this is exported_instance without honor_labels"


def test_everything_that_is_asked_for_is_served():
    for path in (RULES, TESTS, DASHBOARD):
        asked = metric_names(path.read_text(encoding="utf-8"))
        assert asked
        assert asked <= set(HELP), path.name
    assert {"prefix", "instance", "datasource"} == {each["name"] for each in dashboard()["templating"]["list"]}


def test_the_panels_of_the_dashboard_fit():
    """Grafana moves what overlaps. The file is as json writes it, so that a change of it shows what has changed."""
    used, ids = set(), set()
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & used, panel["title"]
        assert max(x for x, _ in cells) < 24
        assert panel["id"] not in ids
        used |= cells
        ids.add(panel["id"])
    assert DASHBOARD.read_text(encoding="utf-8") == json.dumps(dashboard(), indent=2) + "\n"


class World(threading.Thread):
    """Collectors that write their states: a leader and its standby under the prefix well, where all is well; under ill
    one of everything that alerts are about; under dead one that was killed.
    """

    def __init__(self, server):
        super().__init__(name="world")
        self.client, self.ended = server.client(), threading.Event()

    def __enter__(self):
        write(self.client, "dead_state", age=5)
        self.write(0)
        self.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.join()
        self.client.close()

    def run(self):
        number = 0
        while not self.ended.wait(0.1):
            number += 1
            self.write(number)

    def write(self, number):
        well = STREAM | {"messages": number, "gaps": 0, "rejected": 0, "topics": 10, "callback_failures": 0}
        of_two = COLLECTOR | {"ready": True, "behind": 0.0, "published": 100 * number, "outages": 0, "backlog_bytes": 0}
        for name, role in (("a", "leader"), ("b", "standby")):
            write(self.client, f"well_state:{name}", of_two | {"instance": name, "role": role}, Trades=well)
        ill = STREAM | {"up": False, "topics": 1, "delay_p99": 5, "gaps": 20 * number, "callback_failures": number}
        more = {"alive": False, "ready": False, "outages": number, "dropped": {"ill_trades": number}}
        filled = {"backlog_bytes": 10_000 + 100 * number, "buffer_bytes": 200_000, "buffer_share": 0.5}
        write(self.client, "ill_state", COLLECTOR | more | filled, Trades=ill)
        for prefix, event in (("ill", "gap"), ("ill", "alive"), ("well", "alive")):
            self.client.publish(f"{prefix}_status", json.dumps({"event": event, "topics": [], "shard": ""}))


@pytest.fixture
def prometheus(own_redis, tmp_path):
    """Prometheus with our configuration, but faster, and with an exporter; ask(query) returns the result."""
    binary = tool("prometheus")
    with World(own_redis):
        exporter, url = start_exporter(own_redis, "*")
        port = free_port()
        config = (PROMETHEUS / "prometheus.yml").read_text(encoding="utf-8")
        changed = config.replace("_interval: 5s", "_interval: 200ms")
        changed = changed.replace("127.0.0.1:9810", url.removeprefix("http://").removesuffix("/metrics"))
        (tmp_path / "prometheus.yml").write_text(changed, encoding="utf-8")
        shutil.copy(RULES, tmp_path)
        options = ("--config.file=prometheus.yml", "--storage.tsdb.path=data", "--log.level=error")
        server = subprocess.Popen(
            [binary, *options, f"--web.listen-address=127.0.0.1:{port}"], cwd=tmp_path, preexec_fn=end_with_parent
        )

        def ask(query):
            address = f"http://127.0.0.1:{port}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
            with urllib.request.urlopen(address, timeout=5) as response:
                answer = json.load(response)
            assert answer["status"] == "success"
            return answer["data"]["result"]

        try:
            eventually(lambda: answers(ask), 20)
            yield ask
        finally:
            for process in (server, exporter):
                process.kill()
                process.wait()
            exporter.stdout.close()


def answers(ask):
    """Whether Prometheus runs and has scraped twice, at least."""
    try:
        return ask("count_over_time(bybit_exporter_redis_up[1m]) > 1")
    except OSError:
        return False


def test_prometheus_answers_all_queries_of_the_alerts_and_of_the_dashboard(prometheus):
    eventually(lambda: prometheus('bybit_events_total{event="gap",prefix="ill"} > 2'))
    deadline = time.monotonic() + 15
    raised = {name: rule["expr"] for name, rule in alerts().items() if name not in OF_ABSENCE}
    waiting = {**queries(), **raised}
    while waiting:
        waiting = {name: query for name, query in waiting.items() if not prometheus(query)}
        assert time.monotonic() < deadline, f"no result: {waiting}"
    for name, rule in alerts().items():
        found = prometheus(rule["expr"])
        assert not [each for each in found if each["metric"].get("prefix") == "well"], name
        assert name not in OF_ABSENCE or not found
    # honor_labels: the instance is the collector's; one without a name has none, and not the exporter's.
    instances = {each["metric"].get("instance") for each in prometheus('bybit_collector_up{prefix="well"}')}
    assert instances == {"a", "b"}
    (single,) = prometheus('bybit_collector_up{prefix="ill"}')
    assert "instance" not in single["metric"]


def test_the_composition_runs_what_is_here(tmp_path):
    """Its Prometheus has our configuration, its exporter the packages of the tests; all stays on this machine."""
    composition = loaded(ROOT / "deploy/compose.metrics.yaml")
    services, configs = composition["services"], composition["configs"]
    inside = yaml.safe_load(configs["prometheus"]["content"])
    inside["scrape_configs"][0]["static_configs"] = [{"targets": ["127.0.0.1:9810"]}]
    assert inside == loaded(PROMETHEUS / "prometheus.yml")
    pinned = re.findall(r"\S+==\S+", services["exporter"]["build"]["dockerfile_inline"])
    known = (ROOT / "requirements.txt").read_text() + (ROOT / "requirements-dev.txt").read_text()
    assert len(pinned) == 2
    assert all(f"{package}\n" in known for package in pinned)
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
        mounted = [volume.split(":")[0] for volume in service.get("volumes", ()) if volume.startswith(".")]
        assert all((ROOT / "deploy" / path).is_file() for path in mounted)
        assert {each["source"] for each in service.get("configs", ())} <= set(configs)
    docker = shutil.which("docker")
    if docker and not subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        files = [word for name in ("compose.yaml", "compose.metrics.yaml") for word in ("-f", ROOT / "deploy" / name)]
        subprocess.run([docker, "compose", *files, "config", "--quiet"], check=True, cwd=tmp_path)
