"""oslo.messaging over RabbitMQ with a core in C: the ``fastmsg://`` driver.

A service needs nothing from here by name: oslo.messaging finds the driver by
the scheme of ``transport_url`` and loads :mod:`oslo_fastmsg.driver`, whose
docstring is the place to start reading. Importing this package does no work.

Who wants to look inside a running process has :func:`stats` and :func:`health`, and
:func:`decode` shows what is in a message.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as in typing, which need not be imported for it
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from oslo_fastmsg._looking import Health, Stats

__all__ = ["__version__", "decode", "health", "stats"]

__version__ = "0.1.0"


def stats() -> Stats:
    """Count what this process has done at its brokers, and does.

    Never waits for a broker. Everything is plain: dicts, lists, texts, numbers and
    None, as ``json.dumps()`` takes them. Counts begin when a broker's connections
    come into use and only grow; numbers that are read together may be of moments
    some microseconds apart. What was forked counts for itself.

    :returns: ``pid``; ``time``, seconds since 1970; ``events_lost``, lines that the
        log could not keep up with; ``brokers``, a list with one dict for each set of
        connections, the oldest first, empty before the first use. Its members are
        in the operator's guide, each with type and unit. No password is among
        them.
    """
    from oslo_fastmsg import _looking

    return _looking.stats()


def health() -> Health:
    """Tell whether this process can call and be called.

    Looks at what the core knows, so it does no I/O and waits for nothing; it may be
    asked from any thread or greenthread, as often as one likes. What is just being
    set up or repaired is reported as what it is, not there: a probe should give it
    some seconds before it draws conclusions.

    :returns: ``ok``, a bool; ``reasons``, a list of texts that say why not, empty
        if `ok`; ``brokers``, a list with one dict for each set of connections,
        which has `ok` and `reasons` of its own and what they were drawn from (the
        operator's guide has its members). A process without a transport, or whose
        transports are not in use yet, is ok: there is nothing to be wrong.
    """
    from oslo_fastmsg import _looking

    return _looking.health()


def decode(body: bytes, properties: Mapping[str, Any]) -> str:
    """Show what is in a message that was captured on a broker.

    Of either envelope, compressed or not, and of version 1 notifications. The text has
    all of it: context, tokens and whatever else is secret.

    :param body: as the broker has it.
    :param properties: its basic properties by name, of which ``content_type``,
        ``content_encoding`` and ``headers`` (in py-amqp ``application_headers``) are
        looked at; what is not there is as if the sender had left it out.
    :returns: the payload as indented JSON, its members in their order: what the driver
        adds (``_msg_id``, ``_context_...``) is among them.
    :raises ValueError: receivers reject it; the text says why.
    """
    from oslo_fastmsg import _envelope

    return _envelope.show(body, properties)
