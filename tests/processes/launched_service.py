"""A service with workers, as oslo.service launches it, for test_oslo_service.py.

``python launched_service.py BACKEND URL TOPIC WORKERS WHERE``. WHERE is
``children``, or ``both``: then the parent serves TOPIC-parent before it forks.
"""
# ruff: noqa: E402

import sys

BACKEND = sys.argv[1]
if BACKEND == "threading":
    # Before anything that asks for a backend, such as oslo.messaging.
    from oslo_service import backend

    backend.init_backend(backend.BackendType.THREADING)
else:
    import eventlet

    eventlet.monkey_patch()

import json
import logging
import os
import time
import warnings

with warnings.catch_warnings():
    # What other people's modules say of each other when they are imported.
    warnings.simplefilter("ignore")
    import oslo_messaging
    from oslo_config import cfg
    from oslo_service import service


def say(**answer):
    os.write(1, (json.dumps(answer) + "\n").encode())


class Endpoint:
    def who(self, ctxt):
        return os.getpid()

    def last(self, ctxt, seconds):
        say(busy=os.getpid())
        time.sleep(seconds)
        return os.getpid()


def start_server(url, topic):
    server = oslo_messaging.get_rpc_server(
        oslo_messaging.get_rpc_transport(cfg.CONF, url=url),
        oslo_messaging.Target(topic=topic, server=f"s{os.getpid()}"),
        [Endpoint()],
        executor=BACKEND,
    )
    server.start()
    return server


class Service(service.Service):
    def __init__(self, url, topic):
        super().__init__()
        self._url = url
        self._topic = topic
        self._server = None

    def start(self):
        super().start()
        self._server = start_server(self._url, self._topic)
        say(up=os.getpid())

    def stop(self, graceful=False):
        if self._server is not None:
            self._server.stop()
            self._server.wait()
            self._server = None
        super().stop(graceful)


def main(url, topic, workers, where):
    logging.disable(logging.CRITICAL)
    conf = cfg.CONF
    conf([], project="launched", default_config_files=[], default_config_dirs=[])
    parent = os.getpid()
    parents = start_server(url, f"{topic}-parent") if where == "both" else None
    launcher = service.launch(conf, Service(url, topic), workers=int(workers))
    try:
        launcher.wait()
    finally:  # which the threading backend leaves by sys.exit()
        if os.getpid() == parent:
            if parents is not None:
                parents.stop()
                parents.wait()
            say(over=parent)


if __name__ == "__main__":
    main(*sys.argv[2:])
