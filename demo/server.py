"""An RPC server: returns what it is given, until a client tells it to stop.

    TRANSPORT_URL=fastmsg://guest:guest@localhost/ python server.py
    python server.py --config-file service.conf --server server2

The URL comes from the environment or else from ``transport_url`` in the
configuration file, as it does in any service.
"""

import logging
import os
import sys
import threading

import oslo_messaging
from oslo_config import cfg

CONF = cfg.CONF
LOG = logging.getLogger("demo")  # endpoints run in several threads
CONF.register_cli_opts([cfg.StrOpt("server", default="server1")])


class ServerControlEndpoint:
    """Lets a client stop the server."""

    target = oslo_messaging.Target(namespace="control", version="2.0")

    def __init__(self):
        self.stopped = threading.Event()

    def stop(self, ctxt):
        LOG.info("stop()")
        self.stopped.set()


class TestEndpoint:
    """Returns what it is given."""

    def test(self, ctxt, arg):
        LOG.info("test(arg=%r)", arg)
        return arg


def main():
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    LOG.setLevel(logging.INFO)
    CONF(sys.argv[1:])
    transport = oslo_messaging.get_rpc_transport(
        CONF, url=os.environ.get("TRANSPORT_URL")
    )
    control = ServerControlEndpoint()
    server = oslo_messaging.get_rpc_server(
        transport,
        oslo_messaging.Target(topic="test", server=CONF.server),
        [control, TestEndpoint()],
    )
    server.start()
    LOG.info("listening")
    try:
        control.stopped.wait()
    except KeyboardInterrupt:
        pass
    server.stop()
    server.wait()
    transport.cleanup()
    LOG.info("stopped")


if __name__ == "__main__":
    main()
