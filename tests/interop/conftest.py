"""Fixtures of the tests with the stock driver at one end."""

from fix_driver import *  # noqa: F403
