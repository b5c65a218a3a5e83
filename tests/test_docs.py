"""The documentation: its links lead somewhere, its code compiles, and the recipe for a new channel works."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
PROGRAM = ("main.py", "callbacks", "conf", "ops", "relay")


def code_blocks(page):
    """The Python of a page, without the indentation that a list gives it."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for indent, code in re.findall(r"^( *)```python\n(.*?)^ *```$", text, re.M | re.S):
        yield re.sub(rf"^{indent}", "", code, flags=re.M)


def anchors(page):
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_inside_the_repository_lead_to_a_file_and_a_heading(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_compiles(page):
    for code in code_blocks(page):
        compile(code, str(page), "exec")


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_the_recipe_for_a_new_channel_works(tmp_path):
    """CONTRIBUTING.md's candles, added to a copy of the program."""
    for name in PROGRAM:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    row, callback, stream = code_blocks("CONTRIBUTING.md")
    insert(tmp_path / "relay/kinds.py", row, before="\ndef carries(")
    (tmp_path / "callbacks/kline.py").write_text(callback, encoding="utf-8")
    insert(tmp_path / "main.py", stream, before="\ndef run_stream(")
    program = (
        "import callbacks, main\n"
        "from conf.streams import plan_streams\n"
        "from relay.kinds import KLINE\n"
        "(spec,) = plan_streams(main.STREAMS[-1], 'linear', 50, 21_000)\n"
        "print(spec.name, spec.kind is KLINE, KLINE.topic_for('BTCUSDT', 'linear', 50), callbacks.CHANNELS[4])\n"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=30)
    assert result.stderr == ""
    assert result.stdout == "Kline True kline.1.BTCUSDT stream:bybit_kline\n"


def insert(path, code, before):
    text = path.read_text(encoding="utf-8")
    assert text.count(before) == 1
    path.write_text(text.replace(before, f"\n{code}\n{before}"), encoding="utf-8")


def log_lines():
    """The fixed parts of the lines in the tables of operations.md, "The log"."""
    text = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    section = text[text.index("## The log") : text.index("## Exit codes")]
    tables = section.split("After `Lost Bybit:`")[0]
    for row in re.findall(r"^\| [IWE]? ?(`.*?) \|", tables, re.M):
        yield from re.findall(r"`([^`]+)`", row)


def test_each_line_of_the_log_table_is_in_the_program():
    files = [ROOT / "main.py", *(path for name in PROGRAM[1:] for path in (ROOT / name).rglob("*.py"))]
    source = re.sub(r'"\s*f?"', "", "\n".join(path.read_text(encoding="utf-8") for path in files))
    missing = []
    for line in log_lines():
        # What varies: …, words in capitals, names and numbers of an example. A single word tells nothing.
        for part in re.split(r"…(?:\.env)?|: |\b[A-Z_]{3,}\b|\b[A-CX]\b|a, b, c, d and|[\d,.]*\d[\d,.]*", line):
            words = part.strip(" :;,.()")
            if " " in words and words not in source:
                missing.append((line, words))
    assert missing == []
