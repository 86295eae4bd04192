"""A notification listener with an endpoint for warnings and one for errors.

    TRANSPORT_URL=fastmsg://guest:guest@localhost/ python notification_listener.py

Ctrl-C or SIGTERM ends it.
"""

import logging
import os
import signal
import sys
import threading

import oslo_messaging
from oslo_config import cfg

CONF = cfg.CONF
LOG = logging.getLogger("demo")  # endpoints run in several threads


class WarnEndpoint:
    """Takes warnings, of compute services alone."""

    filter_rule = oslo_messaging.NotificationFilter(publisher_id=r"^compute\.")

    def warn(self, ctxt, publisher_id, event_type, payload, metadata):
        LOG.info("warn: %s of %s: %s", event_type, publisher_id, payload)
        return oslo_messaging.NotificationResult.HANDLED


class ErrorEndpoint:
    """Takes errors of everybody."""

    def error(self, ctxt, publisher_id, event_type, payload, metadata):
        LOG.info("error: %s of %s: %s", event_type, publisher_id, payload)
        return oslo_messaging.NotificationResult.HANDLED


def main():
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    LOG.setLevel(logging.INFO)
    CONF(sys.argv[1:])
    done = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: done.set())

    transport = oslo_messaging.get_notification_transport(
        CONF, url=os.environ.get("TRANSPORT_URL")
    )
    listener = oslo_messaging.get_notification_listener(
        transport,
        [
            oslo_messaging.Target(topic="notification"),
            oslo_messaging.Target(topic="notification_bis"),
        ],
        [WarnEndpoint(), ErrorEndpoint()],
    )
    listener.start()
    LOG.info("listening")
    done.wait()
    listener.stop()
    listener.wait()
    transport.cleanup()
    LOG.info("stopped")


if __name__ == "__main__":
    main()
