"""Fixtures of the tests of what becomes of processes."""

from fix_driver import *  # noqa: F403
from fix_pythons import built
from fix_wsgi import wsgi_venv

__all__ = ["built", "wsgi_venv"]
