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
CONF.register_cli_opts([cfg.StrOpt("server", default="conductor1")])


class ComputeTaskEndpoint:
    """Builds instances, or says so."""

    target = oslo_messaging.Target(namespace="compute_task", version="1.24")

    def build_instances(self, ctxt, instances, image, request_spec):
        for instance in instances:
            data = instance["nova_object.data"]
            flavor = data["flavor"]["nova_object.data"]
            print(
                f"build_instances: {data['display_name']} ({flavor['name']},"
                f" {flavor['vcpus']} vCPUs) for {ctxt['user_id']},"
                f" {len(json.dumps([instances, image, request_spec]))} B of arguments",
                flush=True,
            )

    @oslo_messaging.expected_exceptions(faults.InstanceNotFound)
    def get_instance(self, ctxt, instance_id):
        print(f"get_instance({instance_id}): raising InstanceNotFound", flush=True)
        raise faults.InstanceNotFound(instance_id)


def main():
    logging.basicConfig(level=logging.WARNING)
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
    print("listening", flush=True)
    done.wait()
    server.stop()
    server.wait()
    transport.cleanup()
    print("stopped", flush=True)


if __name__ == "__main__":
    main()
