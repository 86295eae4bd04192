import pathlib
import re
import subprocess
import sys
import uuid

import oslo_messaging
import pytest
from oslo_config import cfg
from oslo_messaging._drivers import base, impl_rabbit

import oslo_fastmsg
from oslo_fastmsg import _compat

PACKAGE = pathlib.Path(oslo_fastmsg.__file__).parent

PRIVATE = re.compile(
    r"""oslo_messaging(\.\w+)*\._      # import oslo_messaging._drivers
      | from\ oslo_messaging(\.\w+)*\ import\ [^#]*\b_\w
      | oslo_messaging\.(rpc|notify)\.\w+ # modules below those are private too
    """,
    re.VERBOSE,
)


def test_only_compat_imports_private_names_of_oslo_messaging():
    offenders = {
        path.name
        for path in PACKAGE.glob("*.py")
        for line in path.read_text().splitlines()
        if PRIVATE.search(line)
    }
    assert offenders == {"_compat.py"}


@pytest.mark.parametrize(
    "statement",
    [
        "from oslo_messaging._drivers import base",
        "import oslo_messaging._drivers.base",
        "from oslo_messaging import _utils as utils",
        "from oslo_messaging import Target, _utils",
        "x = oslo_messaging.rpc.client._client_opts",
    ],
)
def test_the_search_for_private_names_finds_them(statement):
    assert PRIVATE.search(statement)


def test_importing_the_package_does_no_work():
    program = (
        "import sys, threading, os\n"
        "before = set(os.listdir('/proc/self/fd'))\n"
        "import oslo_fastmsg\n"
        "assert oslo_fastmsg.__version__\n"
        "assert 'oslo_messaging' not in sys.modules\n"
        "assert 'oslo_fastmsg._core' not in sys.modules\n"
        "assert threading.active_count() == 1\n"
        "assert len(os.listdir('/proc/self/task')) == 1\n"
        "assert set(os.listdir('/proc/self/fd')) == before\n"
    )
    # -S: no site, so that nothing imports anything before us.
    subprocess.run(
        [sys.executable, "-S", "-c", program],
        check=True,
        env={"PYTHONPATH": str(PACKAGE.parent)},
    )


def test_options_are_the_objects_of_the_stock_driver():
    ours = _compat.rabbit_opts()
    for opt in impl_rabbit.rabbit_opts:
        assert any(opt is our for our in ours)
    assert len({opt.name for opt in ours}) == len(ours)


def test_both_drivers_are_loaded_with_one_configuration():
    from oslo_fastmsg.driver import FastmsgDriver

    for order in ((0, 1), (1, 0)):
        conf = cfg.ConfigOpts()
        conf([], default_config_files=[], default_config_dirs=[])
        drivers = [FastmsgDriver, impl_rabbit.RabbitDriver]
        for i in order:
            url = oslo_messaging.TransportURL.parse(conf, "x://h/?ssl=true")
            assert drivers[i](conf, url).conf.oslo_messaging_rabbit.ssl is True


def test_incoming_has_the_message_id_of_this_release():
    call = Incoming({}, {}, "id", 3)
    cast = Incoming({}, {}, None, None)
    assert call.msg_id == "id"
    assert call.client_timeout == 3
    # Judged by what the stock base class does, not by a version.
    if "msg_id" in base.IncomingMessage.__init__.__code__.co_varnames:
        assert str(uuid.UUID(cast.msg_id)) == cast.msg_id
    else:
        assert cast.msg_id is None


class Incoming(_compat.IncomingMessage):
    def requeue(self):
        raise NotImplementedError

    def reply(self, reply=None, failure=None):
        raise NotImplementedError

    def heartbeat(self):
        raise NotImplementedError
