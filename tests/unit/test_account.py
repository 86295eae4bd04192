"""The account of the tests with faults: it can fail, and says why."""

import threading

import pytest
from fix_account import Account


def ended(kind="cast", *events):
    account = Account()
    number = account.new(kind)
    for what, *more in events:
        account.note(number, what, *more)
    return account


CONFIRMED, ANSWERED = ("confirmed",), ("answered",)
RAISED = ("raised", "", "MessagingTimeout")
RUN, RUN_ELSEWHERE = ("executed", "a"), ("executed", "b")


@pytest.mark.parametrize(
    "account",
    [
        ended("cast", CONFIRMED, RUN),
        ended("call", RUN, ANSWERED),
        ended("fanout", CONFIRMED, RUN, RUN_ELSEWHERE),
        ended("notification", CONFIRMED, RUN, RUN),
    ],
    ids=lambda account: account.entries()[0].kind,
)
def test_what_went_well_balances(account):
    assert "1 sent" in account.balance(["a"])


@pytest.mark.parametrize(
    ("account", "problem"),
    [
        (ended("cast", CONFIRMED), "lost"),
        (ended("cast", RUN), "ended 0 times"),
        (ended("cast", CONFIRMED, RAISED, RUN), "ended 2 times"),
        (ended("cast", CONFIRMED, RUN, RUN), "executed twice by one"),
        (ended("cast", CONFIRMED, RUN, RUN_ELSEWHERE), "executed by several"),
        (ended("cast", RAISED), "raised .* MessagingTimeout"),
        (ended("call", ANSWERED), "lost"),
        (ended("call", RUN, CONFIRMED), "ended 0 times"),
        (ended("fanout", CONFIRMED, RUN_ELSEWHERE), "not heard by a"),
        (ended("fanout", CONFIRMED, RUN, RUN), "executed twice by one"),
        (ended("notification", CONFIRMED), "lost"),
        (ended("notification", CONFIRMED, RUN, RUN_ELSEWHERE), "by several"),
    ],
)
def test_what_nobody_explains_does_not_balance(account, problem):
    with pytest.raises(AssertionError, match=problem):
        account.balance(["a"], within=0)


def test_what_happens_while_it_is_looked_at_is_seen():
    class Late(Account):
        """The message is executed when the account has just been looked through."""

        def _unexplained(self, servers):
            found = super()._unexplained(servers)
            if not self.count("executed"):
                self.note(number, "executed", "a")
            return found

    account = Late()
    number = account.new("cast")
    account.note(number, "confirmed")
    assert "1 executed" in account.balance(["a"], within=60)


def test_what_nobody_sent_does_not_balance():
    account = ended("cast", CONFIRMED, RUN)
    account.note(7, "executed", "a")

    with pytest.raises(AssertionError, match=r"7 .* nobody sent it"):
        account.balance(within=0)


def test_an_account_without_messages_does_not_balance():
    with pytest.raises(AssertionError, match="nothing was sent"):
        Account().balance()


def test_an_excuse_explains_its_problem_for_its_messages_and_no_more():
    account = Account()
    for _ in range(2):
        account.note(account.new("call"), *RAISED)
    account.excuse("raised", "the queue died", limit=1)
    with pytest.raises(AssertionError, match="1 unexplained"):
        account.balance(within=0)

    account.excuse("lost", "another problem")
    account.excuse("raised", "another message", lambda entry: entry.number == 0)
    with pytest.raises(AssertionError, match="1 unexplained"):
        account.balance(within=0)

    account.excuse("raised", "this message", lambda entry: entry.number == 1)
    assert "1 raised: the queue died" in account.balance()


def test_balancing_waits_for_what_is_on_its_way():
    account = ended("cast", CONFIRMED)
    timer = threading.Timer(0.1, account.note, [0, *RUN])
    timer.start()

    assert account.balance() == "1 sent, 1 confirmed, 1 executed"
    timer.join()


def test_a_journal_is_taken_over_and_only_once(tmp_path):
    file = tmp_path / "journal"
    theirs, ours = Account(file, base=100), Account()
    theirs.note(theirs.new("cast"), "confirmed")
    ours.read(file)
    with file.open("ab") as half:
        half.write(b"[100, ")
    ours.read(file)

    ours.note(100, "executed", "a")

    assert ours.balance() == "1 sent, 1 confirmed, 1 executed"


def test_waiting_after_a_moment_counts_only_what_was_sent_after_it():
    account = ended("cast", CONFIRMED)
    moment = account.entries()[0].events[-1].at + 1e-9
    with pytest.raises(AssertionError, match="nothing confirmed"):
        account.wait_after("confirmed", moment, 0)

    account.note(account.new("cast"), "confirmed")

    assert account.wait_after("confirmed", moment, 0) >= 0
