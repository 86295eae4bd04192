"""oslo.messaging over RabbitMQ with a core in C: the ``fastmsg://`` driver.

A service needs nothing from here by name: oslo.messaging finds the driver by
the scheme of ``transport_url`` and loads :mod:`oslo_fastmsg.driver`, whose
docstring is the place to start reading. Importing this package does no work.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
