VERSION = "2.0.0"  # pyproject.toml takes it from here
