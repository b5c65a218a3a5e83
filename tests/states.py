"""State hashes as a collector writes them, and the exporter that reads them."""

import json
import os
import re
import subprocess
import sys
import time
import urllib.request

from programs import ROOT
from prometheus_client.parser import text_string_to_metric_families

from sandbox.redis import end_with_parent, free_port

STREAM = {
    "up": True,
    "topics": 9,
    "wanted": 10,
    "waits": False,
    "rejected": 1,
    "messages": 1234,
    "rate": 20.5,
    "connections": 3,
    "reconnects": 2,
    "age": 0.5,
    "delay_p50": 0.001,
    "delay_p99": 0.25,
    "gaps": 4,
    "callback_failures": 5,
    "ignored": 6,
}
COLLECTOR = {
    "instance": "",
    "role": "single",
    "term": 0,
    "pending": 7,
    "waited": 1.5,
    "requests": 8,
    "requests_rejected": 9,
    "version": "2.5.0",
    "started": 1_795_000_000_500,
    "interval": 1,
    "alive": True,
    "published": 5000,
    "dropped": {},
    "outages": 2,
    "outage_seconds": 2.5,
    "backlog_bytes": 1000,
    "buffer_bytes": 4000,
    "buffer_share": 0.25,
}


def write(client, key, collector=COLLECTOR, age=0.0, **streams):
    """Writes a state that is `age` seconds old. collector, and each stream by its name: the fields."""
    now = round(time.time() * 1000)
    fields = {"*": collector} | streams
    with client.pipeline() as pipeline:  # a transaction: nobody sees it between DEL and PEXPIRE
        pipeline.delete(key)
        pipeline.hset(key, mapping={name: json.dumps(values | {"ts": now}) for name, values in fields.items()})
        pipeline.pexpire(key, round((15 - age) * 1000))
        pipeline.execute()


def start_exporter(server, *arguments, **settings):
    """The exporter as its user starts it, and its URL. Whoever calls this ends the process."""
    address = f"127.0.0.1:{free_port()}"
    process = subprocess.Popen(
        [sys.executable, "examples/exporter.py", *arguments, "--listen", address],
        cwd=ROOT,
        env=os.environ | {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": str(server.port)} | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=end_with_parent,
    )
    assert process.stdout.readline().endswith(b"/metrics\n")
    return process, f"http://{address}/metrics"


def scrape(url):
    """What the exporter serves."""
    with urllib.request.urlopen(url, timeout=10) as response:
        return response.read().decode()


def samples(text):
    """The value of each sample, by name and labels as text: {"bybit_stream_up{stream=Trades}": 1.0}; empty labels are
    left out, as Prometheus does.
    """
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()) if value)
            name = f"{sample.name}{{{labels}}}" if labels else sample.name
            assert name not in found
            found[name] = sample.value
    return found


def metric_names(text):
    """The metrics that a text names; not channels, which have a colon before."""
    return set(re.findall(r"(?<!:)\bbybit_\w+", text))
