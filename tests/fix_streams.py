"""What the tests of option rabbit_stream_fanout share."""

import pytest
from fix_peer import stock_takes

__all__ = ["STREAMS", "needs_streams"]

#: Streams as a deployment sets them: they are not to be without the other two.
STREAMS = {
    "rabbit_stream_fanout": True,
    "rabbit_transient_quorum_queue": True,
    "rabbit_qos_prefetch_count": 5,
}

needs_streams = pytest.mark.skipif(
    not stock_takes("rabbit_stream_fanout", True),
    reason="streams came with oslo.messaging 14.7",
)
