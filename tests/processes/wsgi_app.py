"""The application that the WSGI hosts of these tests run: calls and answers.

What it needs is in the environment: WSGI_TEST_URL, WSGI_TEST_TOPIC, and
WSGI_TEST_CALLS_AT_IMPORT, if it is to use its transport before any request, and so
before its host forks. It needs nothing of the tests: it runs elsewhere.
"""

import json
import os
import time
import urllib.parse

import oslo_messaging
from oslo_config import cfg

conf = cfg.CONF  # where oslo.messaging has registered all that it looks at
conf([], default_config_files=[], default_config_dirs=[])
transport = oslo_messaging.get_rpc_transport(conf, os.environ["WSGI_TEST_URL"])
make = getattr(oslo_messaging, "get_rpc_client", oslo_messaging.RPCClient)  # 14.1
client = make(
    transport, oslo_messaging.Target(topic=os.environ["WSGI_TEST_TOPIC"]), timeout=20
)
if os.environ.get("WSGI_TEST_CALLS_AT_IMPORT"):
    assert client.call({}, "echo", arg="import") == "import"


def interpreter(environ):
    """Name the interpreter of this application, if its host has several."""
    return environ.get("mod_wsgi.application_group", "")


def application(environ, start_response):
    """Make `count` calls one by one, then wait for others who do the same.

    Answers with the results of the former and how long each of them took.
    """
    query = dict(urllib.parse.parse_qsl(environ["QUERY_STRING"]))
    results, times_ms = [], []
    for number in range(int(query["count"])):
        begin = time.perf_counter()
        results.append(client.call({}, "echo", arg=[query["word"], number]))
        times_ms.append((time.perf_counter() - begin) * 1e3)
    body = json.dumps(
        {
            "pid": os.getpid(),
            "interpreter": interpreter(environ),
            "results": results,
            "times_ms": times_ms,
            "met": client.call({}, "meet"),
        }
    ).encode()
    start_response(
        "200 OK",
        [("Content-Type", "application/json"), ("Content-Length", str(len(body)))],
    )
    return [body]
