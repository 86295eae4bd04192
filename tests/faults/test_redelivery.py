"""Row 12: the connection is cut before acknowledgements arrive."""

import pytest
from fix_account import Account
from fix_faults import QUICK
from fix_load import MARK, Accounting
from fix_objects import wait_until
from fix_proxy import named
from fix_wire import request

MANY = 10_000


def redeliver(driver, peers, proxy, broker, spy, topic, account, count):
    """Have a server execute casts none of whose acks arrives, twice in a row;
    give how many the broker gave out in all."""
    endpoint = Accounting(account, "server")
    proxy.drop(named("basic.ack", "basic.reject", from_client=True))
    # As many may be unacknowledged.
    options = {"rabbit": {**QUICK, "rabbit_qos_prefetch_count": MANY}, "threads": 8}
    peers.server(driver, endpoint, topic=topic, via=proxy, **options)
    numbers = [account.new("cast") for _ in range(count)]
    bodies = [request("take", arg=f"{MARK}{number}") for number in numbers]
    spy.send_many("openstack", topic, bodies)
    for number in numbers:
        account.note(number, "confirmed")  # the spy's channel ended in order
    account.wait("executed", count, 30)
    assert broker.queue(topic)["messages"] == count

    proxy.drop(None)
    proxy.cut()
    wait_until(lambda: broker.queue(topic)["messages"] == 0, 15, "an empty queue")
    return sum(
        frame.name == "basic.deliver"
        for link in proxy.links()
        for _, frame in link.received
    )


@pytest.mark.timeout(180)
@pytest.mark.parametrize("count", [2000, pytest.param(MANY, marks=pytest.mark.slow)])
def test_what_is_redelivered_is_not_executed_again(
    fast, peers, proxy, broker, spy, topic, account, figure, count
):
    delivered = redeliver(fast, peers, proxy, broker, spy, topic, account, count)

    assert delivered == 2 * count, "not all came twice: the test tests nothing"
    account.balance()
    twice = account.count("executed") - count
    figure(12, f"{count} twice", f"{twice} executed twice")


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_baseline_of_stock_that_is_redelivered_to(
    peers, proxy, broker, spy, topic, figure
):
    account = Account()
    delivered = redeliver("stock", peers, proxy, broker, spy, topic, account, MANY)

    assert delivered >= MANY
    twice = account.count("executed") - MANY
    figure(12, f"{MANY} twice", f"{twice} executed twice", "stock")
