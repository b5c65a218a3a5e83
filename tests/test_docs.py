"""The documentation: its links lead somewhere, its code compiles, and the recipe for a new channel works."""

import ast
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


def test_the_readme_counts_the_faults_of_the_guarantees():
    for readme, guarantees in (("README.md", "guarantees.md"), ("docs/README.ru.md", "guarantees.ru.md")):
        text = (ROOT / "docs" / guarantees).read_text(encoding="utf-8")
        tables = re.findall(r"^\|.*\n\|-.*\n((?:\|.*\n)+)", text, re.M)
        leader, failover, _, faults = (rows.count("\n") for rows in tables)
        found = re.search(rf"\[(\d+) [^]]+\]\([^)]*{guarantees}\)", (ROOT / readme).read_text(encoding="utf-8"))
        assert found
        assert int(found[1]) == leader + failover + faults


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
        "from conf.streams import checked\n"
        "from relay.kinds import KLINE\n"
        "entry = checked(main.STREAMS[-1], 'linear')\n"
        "topics = entry.topics('linear', 50, None)\n"
        "print(entry.name, entry.kind is KLINE, *topics, callbacks.CHANNELS[4])\n"
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


def sources():
    """The text of each file of the program."""
    files = [ROOT / "main.py", *(path for name in PROGRAM[1:] for path in (ROOT / name).rglob("*.py"))]
    return [path.read_text(encoding="utf-8") for path in files]


def test_each_line_of_the_log_table_is_in_the_program():
    source = re.sub(r'"\s*f?"', "", "\n".join(sources()))
    missing = []
    for line in log_lines():
        # What varies: …, words in capitals, names and numbers of an example. A single word tells nothing.
        for part in re.split(r"…(?:\.env)?|: |\b[A-Z_]{3,}\b|\b[A-CX]\b|a, b, c, d and|[\d,.]*\d[\d,.]*", line):
            words = part.strip(" :;,.()")
            if " " in words and words not in source:
                missing.append((line, words))
    assert missing == []


def logged():
    """The formats of the program's log lines that are written where they are logged."""
    for source in sources():
        for node in ast.walk(ast.parse(source)):
            match node:
                case ast.Call(
                    func=ast.Attribute(value=ast.Name("log"), attr="info" | "warning" | "error" | "exception"),
                    args=[ast.Constant(str(text)), *_],
                ):
                    yield text


def plain(text):
    """Its words, without punctuation."""
    return " ".join(re.sub(r"[:;,.()%]", " ", text).split())


def test_each_line_of_the_program_is_in_the_log_table():
    table = plain(" | ".join(log_lines()))
    missing = []
    for text in logged():
        parts = [plain(part).split() for part in re.split(r"%(?:\(\w+\))?[\d.]*[a-z]", text)]
        words = next((part for part in parts if len(part) > 2), max(parts, key=len))
        # Its first part that tells something begins so in the table, which may break off earlier with a …
        if " ".join(words[:3]) not in table and " ".join([*words[:2], "…"]) not in table:
            missing.append(text)
    assert missing == []
