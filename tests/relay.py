"""A server that hands requests on to the one at RELAY_TO, run as a script: ``relay.py [serve] MODEL --port PORT``."""

from __future__ import annotations

import argparse
import json
import os
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Relay(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    name = ""
    num_requests = 0

    def do_GET(self) -> None:
        self.send(200, json.dumps({"data": [{"id": self.name}]}).encode())

    def do_POST(self) -> None:
        Relay.num_requests += 1
        died = Path(os.readlink("/proc/self/fd/1")).with_name("died")  # beside the log
        if Relay.num_requests > 1 and "RELAY_DIES" in os.environ and not died.exists():
            died.touch()
            os._exit(1)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        url = os.environ["RELAY_TO"] + self.path.removeprefix("/v1")
        try:
            with urllib.request.urlopen(urllib.request.Request(url, body, dict(self.headers))) as response:
                self.send(response.status, response.read())
        except urllib.error.HTTPError as error:
            self.send(error.code, error.read())

    def send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Silence."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("words", nargs="+")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int)
    parser.add_argument("--served-model-name")
    options = parser.parse_args()
    Relay.name = os.environ.get("RELAY_NAME") or options.served_model_name or options.words[-1]
    ThreadingHTTPServer((options.host, options.port), Relay).serve_forever()


if __name__ == "__main__":
    main()
