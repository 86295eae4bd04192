"""An RPC client: calls ``test`` and compares, and may cast ``stop``.

TRANSPORT_URL=fastmsg://guest:guest@localhost/ python client.py --arg hello
python client.py --config-file service.conf --stop
"""

import logging
import os
import sys

import oslo_messaging
from oslo_config import cfg

CONF = cfg.CONF
CONF.register_cli_opts(
    [
        cfg.StrOpt("arg", default="hello"),
        cfg.BoolOpt("stop", default=False),
    ]
)


def main():
    logging.basicConfig(level=logging.WARNING)
    CONF(sys.argv[1:])
    transport = oslo_messaging.get_rpc_transport(
        CONF, url=os.environ.get("TRANSPORT_URL")
    )
    target = oslo_messaging.Target(topic="test")
    # get_rpc_client() came with oslo.messaging 14.1.
    make_client = getattr(oslo_messaging, "get_rpc_client", oslo_messaging.RPCClient)
    client = make_client(transport, target, timeout=10)

    answer = client.call({}, "test", arg=CONF.arg)
    print(f"call test(arg={CONF.arg!r}) returned {answer!r}", flush=True)

    if CONF.stop:
        control = client.prepare(namespace="control", version="2.0")
        control.cast({}, "stop")
        print("cast control.stop()", flush=True)
    transport.cleanup()
    return 0 if answer == CONF.arg else 1


if __name__ == "__main__":
    sys.exit(main())
