"""Stands in for `vllm run-batch`: the same command line, the same files."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from tests.batch_server import reply


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("-i", "--input-file", type=Path)
    parser.add_argument("-o", "--output-file", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--fail", action="store_true")
    parser.add_argument("--die-after", type=int)
    parser.add_argument("--cut-after", type=int)
    parser.add_argument("--once", type=Path)
    chosen = parser.parse_args()
    if chosen.fail:
        print("no such model")
        sys.exit(3)
    if chosen.once and chosen.once.exists():
        chosen.die_after = chosen.cut_after = None
    if chosen.once:
        chosen.once.touch()
    time.sleep(chosen.seconds)
    with chosen.output_file.open("w") as output:
        for number, text in enumerate(chosen.input_file.read_text().splitlines()):
            request = json.loads(text)
            assert request["body"]["model"] == chosen.model
            if number == chosen.die_after:
                output.flush()
                sys.exit(1)
            print(f"asked {request['custom_id']}")
            result = json.dumps(reply(request))
            if number == chosen.cut_after:
                output.write(result[:-50])
                output.flush()
                sys.exit(1)
            output.write(f"{result}\n")


if __name__ == "__main__":
    main()
