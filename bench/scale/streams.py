"""main.py with its four entries of STREAMS divided: BENCH_PARTS entries for each channel, a connection each."""

import os
import sys

import main


def divided(entry: dict[str, object], parts: int) -> list[dict[str, object]]:
    symbols, callback = entry["args"]  # type: ignore[misc]
    return [
        {**entry, "name": f"{entry['name']}_{part + 1}", "args": (symbols[part::parts], callback)}
        for part in range(parts)
    ]


if __name__ == "__main__":
    number = int(os.environ["BENCH_PARTS"])
    main.STREAMS[:] = [one for entry in main.STREAMS for one in divided(entry, number)]
    sys.exit(main.main())
