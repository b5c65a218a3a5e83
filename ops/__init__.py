import sys

# An older Python stumbles over what main.py imports after this.
if sys.version_info < (3, 11):  # noqa: UP036
    sys.stderr.write(f"Cannot start: Python 3.11 or newer is needed, this is {sys.version.split()[0]}\n")
    sys.exit(2)

VERSION = "2.5.0"  # pyproject.toml takes it from here
