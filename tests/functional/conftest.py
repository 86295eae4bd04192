"""Fixtures of the tests of the driver with a broker."""

from fix_driver import *  # noqa: F403
