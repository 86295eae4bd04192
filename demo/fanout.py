"""A fanout: one cast that every server of the topic receives.

TRANSPORT_URL=fastmsg://guest:guest@localhost/ python fanout.py --arg all
python fanout.py --config-file service.conf --stop
"""

import logging
import os
import sys

import oslo_messaging
from oslo_config import cfg

CONF = cfg.CONF
CONF.register_cli_opts(
    [
        cfg.StrOpt("arg", default="hello, all of you"),
        cfg.BoolOpt("stop", default=False),
    ]
)


def main():
    logging.basicConfig(level=logging.WARNING)
    CONF(sys.argv[1:])
    transport = oslo_messaging.get_rpc_transport(
        CONF, url=os.environ.get("TRANSPORT_URL")
    )
    target = oslo_messaging.Target(topic="test", fanout=True)
    # get_rpc_client() came with oslo.messaging 14.1.
    make_client = getattr(oslo_messaging, "get_rpc_client", oslo_messaging.RPCClient)
    everybody = make_client(transport, target)

    everybody.cast({}, "test", arg=CONF.arg)
    print(f"fanout cast test(arg={CONF.arg!r})", flush=True)

    if CONF.stop:
        everybody.prepare(namespace="control", version="2.0").cast({}, "stop")
        print("fanout cast control.stop()", flush=True)
    transport.cleanup()


if __name__ == "__main__":
    main()
