"""A notifier: two warnings and an error, the latter about an instance.

    TRANSPORT_URL=fastmsg://guest:guest@localhost/ python notifier.py

Each goes to two topics, so a listener on both sees it twice.
"""

import logging
import os
import sys

import oslo_messaging
from oslo_config import cfg

CONF = cfg.CONF

INSTANCE = {
    "instance_id": "7a2f4ce5-0f45-4b8e-9d3c-3b7f0d0f6a11",
    "display_name": "web-1",
    "state": "error",
    "fault": {"code": 500, "message": "No valid host was found."},
}


def main():
    logging.basicConfig(level=logging.WARNING)
    CONF(sys.argv[1:])
    transport = oslo_messaging.get_notification_transport(
        CONF, url=os.environ.get("TRANSPORT_URL")
    )
    notifier = oslo_messaging.Notifier(
        transport,
        publisher_id="compute.host1",
        driver="messagingv2",
        topics=["notification", "notification_bis"],
    )
    network = notifier.prepare(publisher_id="network.host1")

    network.warn({}, "port.slow", {"port": "tap-1"})
    print("sent warn port.slow as network.host1", flush=True)
    notifier.warn({}, "disk.low", {"free_gb": 2})
    print("sent warn disk.low as compute.host1", flush=True)
    notifier.error({}, "compute.instance.create.error", INSTANCE)
    print("sent error compute.instance.create.error as compute.host1", flush=True)
    transport.cleanup()


if __name__ == "__main__":
    main()
