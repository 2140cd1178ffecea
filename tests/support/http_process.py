"""A process that runs one request through a layer: the JSON in argv says on which store.

It says ``running`` in the application, and goes on when it is told to on stdin. At last it says the
status that its client got.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from support.engines import Engine
from support.http_apps import Given, Says, Web


def say(what: object) -> None:
    print(json.dumps(what), flush=True)


def application(given: Given) -> Says:
    say("running")
    sys.stdin.readline()
    return Says()


def main(told: dict[str, Any]) -> None:
    web = Web(told["face"], Engine(told["engine"], Path(), told["url"]))
    say(web.serve(application).post().status)
    web.store.close()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
