import logging
import pathlib
import re

import pytest
from fix_core import make_conf
from oslo_config import cfg
from oslo_messaging import TransportURL
from oslo_messaging._drivers import impl_rabbit

from oslo_fastmsg import _compat, _options
from oslo_fastmsg._options import Settings


def read(query="", **rabbit):
    conf = make_conf(**rabbit)
    _options.register(conf)
    url = TransportURL.parse(conf, f"fastmsg://h/{query}")
    return Settings.read(_options.overlay(conf, url))


def test_defaults_of_settings_are_those_of_the_installed_options():
    settings = read()
    options = {opt.name: opt.default for opt in impl_rabbit.rabbit_opts}
    # What differs between machines and releases.
    names = ("hostname", "processname", "ssl_enforce_hostname_verification")
    theirs = {name: options[name] for name in names if name in options}
    assert Settings(**theirs) == settings


def test_the_url_overrides_the_configuration():
    settings = read("?rabbit_qos_prefetch_count=7", rabbit_qos_prefetch_count=3)
    assert settings.rabbit_qos_prefetch_count == 7
    assert read(rabbit_qos_prefetch_count=3).rabbit_qos_prefetch_count == 3


def test_the_url_may_name_options_of_both_groups():
    settings = read("?send_timeout=2.5&amqp_durable_queues=yes")
    assert settings.send_timeout == 2.5
    assert settings.amqp_durable_queues is True


def test_send_timeout_is_rpc_response_timeout_unless_set():
    assert read().send_timeout == 60
    assert read("?send_timeout=0.5").send_timeout == 0.5


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ("?no_such_option=1", cfg.NoSuchOptError),
        ("?kombu_reconnect_timeout=1", cfg.NoSuchOptError),  # an alias
        ("?rpc_response_timeout=1", cfg.NoSuchOptError),  # another group
        ("?heartbeat_timeout_threshold=soon", ValueError),
        ("?rabbit_login_method=MAGIC", ValueError),
        ("?send_timeout=soon", ValueError),
        ("?send_timeout=-1", ValueError),
        ("?send_timeout=0", ValueError),  # no broker confirms in no time
    ],
)
def test_bad_options_in_the_url_raise_as_in_the_stock_driver(query, error):
    with pytest.raises(error):
        read(query)
    if "send_timeout" not in query:
        conf = make_conf()
        with pytest.raises(error):
            impl_rabbit.RabbitDriver(
                conf, TransportURL.parse(conf, f"rabbit://h/{query}")
            )


def test_pool_sizes_that_stock_refuses_are_refused():
    with pytest.raises(RuntimeError, match="rpc_conn_pool_size"):
        read("?rpc_conn_pool_size=1&conn_pool_min_size=2")


@pytest.mark.options(
    "conn_pool_min_size",
    "conn_pool_ttl",
    "heartbeat_in_pthread",
    "heartbeat_rate",
    "rpc_conn_pool_size",
)
def test_what_is_set_in_vain_is_said_in_one_line(caplog):
    with caplog.at_level(logging.INFO):
        read("?conn_pool_ttl=1200")
        assert not caplog.records
        read(heartbeat_rate=7, rpc_conn_pool_size=99)
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert record.getMessage().endswith("driver: heartbeat_rate, rpc_conn_pool_size")
    caplog.clear()
    in_vain = {
        "conn_pool_min_size": 1,
        "conn_pool_ttl": 1,
        "heartbeat_in_pthread": True,
        "heartbeat_rate": 1,
        "rpc_conn_pool_size": 1,
    }
    assert set(in_vain) == _options._WITHOUT_MEANING
    known = {opt.name for opt in _compat.rabbit_opts()}
    values = {name: value for name, value in in_vain.items() if name in known}
    with caplog.at_level(logging.INFO):
        read(**values)
    assert caplog.records[0].getMessage().endswith(f"driver: {', '.join(values)}")


def aliases():
    return [
        pytest.param(option, alias, id=f"{option.name}-{alias.group}-{alias.name}")
        for option in _compat.rabbit_opts()
        if option.name not in _options._WITHOUT_MEANING
        for alias in option.deprecated_opts
    ]


@pytest.mark.parametrize(("option", "alias"), aliases())
def test_old_names_of_options_mean_what_they_mean_to_stock(tmp_path, option, alias):
    values = {bool: True, float: 2.5, int: 7, str: "PLAIN", type(None): "TLSv1_2"}
    value = values[type(option.default)]
    group = alias.group or "oslo_messaging_rabbit"
    file = tmp_path / "service.conf"
    file.write_text(f"[{group}]\n{alias.name or option.name} = {value}\n")
    conf = cfg.ConfigOpts()
    conf([], default_config_files=[str(file)], default_config_dirs=[])
    _options.register(conf)
    url = TransportURL.parse(conf, "fastmsg://h/")

    settings = Settings.read(_options.overlay(conf, url))

    name = next(
        (ours for ours, old in _options._MISSPELT.items() if old == option.name),
        option.name,
    )
    assert getattr(settings, name) == value


def test_each_setting_is_read_by_somebody():
    """An option that nobody looks at would be honoured on paper alone."""
    sources = "".join(
        path.read_text()
        for path in pathlib.Path(_options.__file__).parent.glob("*.py")
        if path.name != "_options.py"
    )
    unread = [
        name
        for name in Settings.__dataclass_fields__
        if not re.search(rf"\b{name}\b", sources)
    ]
    # What ssl_verify says in its stead.
    assert unread == ["ssl_enforce_hostname_verification"]


def test_an_unknown_compression_is_refused():
    assert read(kombu_compression="xz").kombu_compression == "xz"
    with pytest.raises(RuntimeError, match=r"kombu_compression 'rot13'.*bzip2, gzip"):
        read(kombu_compression="rot13")


def test_certificates_are_checked_unless_it_is_said():
    """Also where the stock driver checks no names by default (16.1)."""
    assert read().ssl_verify == "host"
    assert read("?ssl_verify=none").ssl_verify == "none"
    name = "ssl_enforce_hostname_verification"
    if name in {opt.name for opt in impl_rabbit.rabbit_opts}:
        assert read(**{name: True}).ssl_verify == "host"
        assert read(**{name: False}).ssl_verify == "chain"
        assert read(f"?{name}=false").ssl_verify == "chain"
        assert read("?ssl_verify=host", **{name: False}).ssl_verify == "host"


def test_the_envelope_is_stocks_unless_it_is_said():
    assert read().envelope == "json"
    for name in ("json", "auto", "msgpack"):
        assert read(f"?envelope={name}").envelope == name
    with pytest.raises(ValueError, match="xml"):
        read("?envelope=xml")


def test_list_opts_has_our_group_alone():
    ((group, opts),) = _options.list_opts()
    assert group == "oslo_messaging_fastmsg"
    assert [opt.name for opt in opts] == [
        "send_timeout",
        "compression_threshold",
        "envelope",
        "rpc_intake",
        "ssl_verify",
    ]


def test_registering_twice_is_allowed():
    conf = make_conf()
    _options.register(conf)
    _options.register(conf)
