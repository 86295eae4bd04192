"""A server in the manner of nova's conductor.

    TRANSPORT_URL=fastmsg://guest:guest@localhost/ python conductor.py

Ctrl-C or SIGTERM ends it.
"""

import json
import logging
import os
import signal
import sys
import threading

import faults
import oslo_messaging
from oslo_config import cfg

CONF = cfg.CONF
LOG = logging.getLogger("demo")  # endpoints run in several threads
CONF.register_cli_opts([cfg.StrOpt("server", default="conductor1")])


class ComputeTaskEndpoint:
    """Builds instances, or says so."""

    target = oslo_messaging.Target(namespace="compute_task", version="1.24")

    def build_instances(self, ctxt, instances, image, request_spec):
        for instance in instances:
            data = instance["nova_object.data"]
            flavor = data["flavor"]["nova_object.data"]
            LOG.info(
                "build_instances: %s (%s, %s vCPUs) for %s, %s B of arguments",
                data["display_name"],
                flavor["name"],
                flavor["vcpus"],
                ctxt["user_id"],
                len(json.dumps([instances, image, request_spec])),
            )

    @oslo_messaging.expected_exceptions(faults.InstanceNotFound)
    def get_instance(self, ctxt, instance_id):
        LOG.info("get_instance(%s): raising InstanceNotFound", instance_id)
        raise faults.InstanceNotFound(instance_id)


def main():
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    LOG.setLevel(logging.INFO)
    CONF(sys.argv[1:])
    done = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: done.set())

    transport = oslo_messaging.get_rpc_transport(
        CONF, url=os.environ.get("TRANSPORT_URL")
    )
    server = oslo_messaging.get_rpc_server(
        transport,
        oslo_messaging.Target(topic="conductor", server=CONF.server),
        [ComputeTaskEndpoint()],
    )
    server.start()
    LOG.info("listening")
    done.wait()
    server.stop()
    server.wait()
    transport.cleanup()
    LOG.info("stopped")


if __name__ == "__main__":
    main()
