"""What a node of RabbitMQ can be asked and told while it runs."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
from pathlib import Path
from typing import Any

from broker_home import COMMAND_S, BrokerError, Home, rabbitmq_version

__all__ = ["Console", "quote"]

# What the node is asked for, in Erlang. erl_call evaluates it in the node
# itself, some 20 ms, where rabbitmqctl starts a virtual machine first, 1 s.
TO_JSON = """
To = fun F(V) when is_boolean(V); is_number(V); is_binary(V) -> V;
         F(V) when is_atom(V) -> atom_to_binary(V, utf8);
         F(V) when is_pid(V) -> list_to_binary(pid_to_list(V));
         F({resource, _, _, Name}) -> Name;
         F({table, V}) -> F(V);
         F([{K, T, _} | _] = L) when is_binary(K), is_atom(T) ->
             maps:from_list([{Key, F(V)} || {Key, _, V} <- L]);
         F([{K, _} | _] = L) when is_atom(K) ->
             maps:from_list([{Key, F(V)} || {Key, V} <- L]);
         F(V) when is_list(V) -> [F(E) || E <- V];
         F(V) when is_map(V) -> maps:map(fun(_, E) -> F(E) end, V);
         F(V) -> list_to_binary(io_lib:format("~p", [V]))
     end,
"""


def quote(text: str) -> str:
    """Write an Erlang binary."""
    return "<<" + ",".join(map(str, text.encode())) + ">>"


class Console:
    """Questions and orders, from any thread; who derives from it runs the node."""

    user: str
    name: str
    virtual_host: str
    _data: Path
    _home: Home | None

    def __init__(self) -> None:
        self._exhausted: set[str] = set()

    def _environment(self) -> dict[str, str]:
        """Tell what the node's own commands have to know."""
        raise NotImplementedError

    def _inside(self, path: Path) -> str:
        """Tell what the node calls a path."""
        assert self._home is not None
        return self._home.inside(path)

    def known(self) -> list[str]:
        """Tell the nodes of the cluster that run, by what this one knows."""
        return list(self.query("rabbit_nodes:all_running()"))

    def rabbitmqctl(self, *arguments: str) -> str:
        """Run Debian's rabbitmqctl against this node; give what it prints."""
        assert self._home is not None
        command = [os.path.join(self._home.scripts, "rabbitmqctl"), "-q"]
        command += ["-n", self.name]
        return self._run([*command, *arguments], None)

    def evaluate(self, expression: str) -> str:
        """Evaluate Erlang in the node; give the value as Erlang prints it."""
        for is_last in (False, True):
            # A name of its own, or two calls at once would share one.
            caller = f"call{secrets.token_hex(4)}"
            command = ["erl_call", "-n", self.name, "-c", self._cookie()]
            command += ["-timeout", "60", "-h", caller, "-e"]
            try:
                answer = self._run(command, f"{expression}.\n").strip()
                break
            except BrokerError as error:
                # A busy node may miss the time of a handshake.
                if is_last or "failed to connect" not in str(error):
                    raise
        if not answer.startswith("{ok, ") or not answer.endswith("}"):
            raise BrokerError(f"{expression!r}: {answer}")
        return answer[len("{ok, ") : -1]

    def _cookie(self) -> str:
        assert self._home is not None
        return (self._home.path / ".erlang.cookie").read_text()

    def _run(self, command: list[str], given: str | None) -> str:
        assert self._home is not None
        try:
            done = subprocess.run(
                self._home.command(command),
                input=given or "",
                capture_output=True,
                text=True,
                timeout=COMMAND_S,
                env={**self._home.environment, **self._environment()},
            )
        except subprocess.TimeoutExpired:
            raise BrokerError(f"{command[0]}: no answer") from None
        if done.returncode != 0:
            raise BrokerError(f"{command[0]}: {done.stdout}{done.stderr}".strip())
        return done.stdout

    def query(self, expression: str) -> Any:
        """Evaluate Erlang in the node; give the value as JSON has it.

        Property lists and AMQP tables become dicts, atoms strings.
        """
        # Through a file: erl_call prints terms, and escapes as it likes.
        answer = self._data / f"answer-{secrets.token_hex(4)}"
        try:
            # Bound to a name first: nothing of ours must be in its scope.
            self.evaluate(
                f"Asked = ({expression}), {TO_JSON}"
                f"file:write_file({quote(self._inside(answer))}, "
                "rabbit_json:encode(#{asked => To(Asked)}))"
            )
            return json.loads(answer.read_text())["asked"]
        finally:
            answer.unlink(missing_ok=True)

    def _listing(self, expression: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.query(expression)
        for row in rows:
            for key in ("arguments", "client_properties"):
                if key in row and not row[key]:
                    row[key] = {}  # Erlang's empty list is both
        return rows

    def queues(self) -> list[dict[str, Any]]:
        """Tell each queue's name, durable, auto_delete, exclusive, arguments,
        messages, messages_ready, messages_unacknowledged, consumers."""
        rows = self._listing(
            f"rabbit_amqqueue:info_all({quote(self.virtual_host)}, "
            "[name, durable, auto_delete, exclusive, arguments, messages, "
            "messages_ready, messages_unacknowledged, consumers])"
        )
        for row in rows:
            # RabbitMQ 4 says so of each queue that was declared without a type.
            if row["arguments"].get("x-queue-type") == "classic":
                del row["arguments"]["x-queue-type"]
        return sorted(rows, key=lambda row: str(row["name"]))

    def queue(self, name: str) -> dict[str, Any] | None:
        """Give the row of :meth:`queues` with this name, None without one."""
        return next((row for row in self.queues() if row["name"] == name), None)

    def exchanges(self) -> list[dict[str, Any]]:
        """Tell each exchange's name, type, durable, auto_delete, internal,
        arguments; those that every virtual host has are left out."""
        rows = self._listing(
            f"rabbit_exchange:info_all({quote(self.virtual_host)}, "
            "[name, type, durable, auto_delete, internal, arguments])"
        )
        rows = [
            row for row in rows if row["name"] and not row["name"].startswith("amq.")
        ]
        return sorted(rows, key=lambda row: str(row["name"]))

    def bindings(self) -> list[dict[str, Any]]:
        """Tell each binding's source_name, destination_name, routing_key,
        arguments; those of the default exchange are left out."""
        rows = self._listing(
            f"rabbit_binding:info_all({quote(self.virtual_host)}, "
            "[source_name, destination_name, routing_key, arguments])"
        )
        return [row for row in rows if row["source_name"]]

    def connections(self) -> list[dict[str, Any]]:
        """Tell each connection's pid, node, name, user, vhost, state, channels,
        auth_mechanism, timeout, frame_max, client_properties."""
        return self._listing(
            # Without those that end while they are asked.
            "rabbit_misc:filter_exit_map(fun(P) -> "
            "[{pid, P}, {node, node(P)} | rabbit_networking:connection_info(P, "
            "[name, user, vhost, state, channels, auth_mechanism, timeout, "
            "frame_max, channel_max, client_properties])] end, "
            "rabbit_networking:connections())"
        )

    def channels(self) -> list[dict[str, Any]]:
        """Tell each channel's pid, connection, number, confirm, consumer_count,
        prefetch_count, messages_unacknowledged, messages_unconfirmed."""
        return self._listing(
            "rabbit_channel:info_all([pid, connection, number, confirm, "
            "consumer_count, prefetch_count, messages_unacknowledged, "
            "messages_unconfirmed])"
        )

    def consumers(self) -> list[dict[str, Any]]:
        """Tell each consumer's queue_name, consumer_tag, channel_pid, node (its
        connection's), ack_required, prefetch_count, arguments."""
        return self._listing(
            "[[{node, node(proplists:get_value(channel_pid, C))} | C] || C <- "
            f"rabbit_amqqueue:consumers_all({quote(self.virtual_host)})]"
            # Those of streams are in the channels' own metrics alone.
            " ++ [[{node, node(P)}, {queue_name, N}, {channel_pid, P}, "
            "{consumer_tag, T}, {ack_required, A}, {prefetch_count, C}, "
            "{arguments, Args}] || {{N, P, T}, _, A, C, _, _, Args} <- "
            "lists:append([rpc:call(Node, ets, tab2list, [consumer_created]) "
            "|| Node <- [node() | nodes()]]), {ok, Q} <- [rabbit_amqqueue:lookup(N)], "
            "amqqueue:get_type(Q) =:= rabbit_stream_queue, "
            # Which keep what has ended for a while.
            "rpc:call(node(P), erlang, is_process_alive, [P])]"
        )

    def add_vhost(self, name: str) -> None:
        """Make a virtual host, and let guest use it."""
        self.evaluate(f"rabbit_vhost:add({quote(name)}, {quote('test')})")
        self.set_permissions(self.user, name)

    def delete_vhost(self, name: str) -> None:
        """Remove a virtual host with everything in it."""
        self.evaluate(f"rabbit_vhost:delete({quote(name)}, {quote('test')})")

    def add_user(self, name: str, password: str, *, vhost: str | None = None) -> None:
        """Make a user who may do everything in one virtual host."""
        self.evaluate(
            f"rabbit_auth_backend_internal:add_user({quote(name)}, "
            f"{quote(password)}, {quote('test')})"
        )
        self.set_permissions(name, self.virtual_host if vhost is None else vhost)

    def set_permissions(
        self,
        user: str,
        vhost: str,
        configure: str = ".*",
        write: str = ".*",
        read: str = ".*",
    ) -> None:
        """Set what a user may do, as three regular expressions."""
        texts = (user, vhost, configure, write, read, "test")
        self.evaluate(
            "rabbit_auth_backend_internal:set_permissions("
            f"{', '.join(map(quote, texts))})"
        )

    def delete_queue(self, name: str) -> None:
        """Delete a queue, as an operator or its expiry would."""
        self.evaluate(
            f"{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r({self._r('queue', name)})),"
            f" rabbit_amqqueue:delete(Q, false, false, {quote('test')}), ok"
        )

    def delete_exchange(self, name: str) -> None:
        """Delete an exchange with its bindings."""
        self.evaluate(
            f"rabbit_exchange:delete(rabbit_misc:r({self._r('exchange', name)}),"
            f" false, {quote('test')}), ok"
        )

    def unbind(self, queue: str, exchange: str, routing_key: str) -> None:
        """Delete a binding, as whoever may configure the queue can."""
        exchange, queue = self._r("exchange", exchange), self._r("queue", queue)
        self.evaluate(
            f"rabbit_binding:remove({{binding, rabbit_misc:r({exchange}), "
            f"{quote(routing_key)}, rabbit_misc:r({queue}), []}}, {quote('test')})"
        )

    def purge_queue(self, name: str) -> None:
        """Drop the messages of a queue that are not out for delivery."""
        self.evaluate(
            f"{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r({self._r('queue', name)})),"
            " rabbit_amqqueue:purge(Q), ok"
        )

    def _r(self, kind: str, name: str) -> str:
        return f"{quote(self.virtual_host)}, {kind}, {quote(name)}"

    def close_connection(self, pid: str, reason: str = "closed by the test") -> None:
        """Close a connection as an operator does (connection.close 320).

        :param pid: as in :meth:`connections`.
        """
        self.evaluate(
            f'rabbit_networking:close_connection(list_to_pid("{pid}"), "{reason}"), ok'
        )

    def close_connections(self, reason: str = "closed by the test") -> int:
        """Close every connection as an operator does; tell how many there
        were. One whose client does not answer stays for half a minute."""
        return int(
            self.evaluate(
                "length([rabbit_networking:close_connection(P, "
                f'"{reason}") || P <- rabbit_networking:connections()])'
            )
        )

    def drop_connections(self) -> int:
        """End every connection at once and without a word, as a network does;
        tell how many there were. Who is connected need not answer."""
        return int(
            self.evaluate(
                "length([begin M = monitor(process, P), exit(P, kill), "
                "receive {'DOWN', M, _, _, _} -> ok after 10000 -> ok end end"
                " || P <- rabbit_networking:connections()])"
            )
        )

    def set_alarm(self, resource: str = "memory") -> None:
        """Have the node believe that it is short of memory or disk, so that
        it blocks whoever publishes."""
        self.evaluate(
            f"rabbit_alarm:set_alarm({{{{resource_limit, {resource}, node()}}, []}}), ok"
        )

    def clear_alarm(self, resource: str = "memory") -> None:
        """Take :meth:`set_alarm` back."""
        self.evaluate(
            f"rabbit_alarm:clear_alarm({{resource_limit, {resource}, node()}}), ok"
        )

    def exhaust(self, resource: str = "memory") -> None:
        """Have the node be short of memory or disk by the limits that an
        operator sets: it blocks whoever publishes. :meth:`relieve` ends it."""
        self._exhausted.add(resource)
        if resource == "memory":
            # Less than any node has in use.
            self.rabbitmqctl("set_vm_memory_high_watermark", "absolute", "1MB")
        else:
            self.rabbitmqctl("set_disk_free_limit", "1000000GB")

    def relieve(self, resource: str = "memory") -> None:
        """Take :meth:`exhaust` back."""
        if resource == "memory":
            self.rabbitmqctl("set_vm_memory_high_watermark", "0.6")
        else:
            self.rabbitmqctl("set_disk_free_limit", "1MB")
        self._exhausted.discard(resource)

    def publish(self, queue: str, body: bytes) -> None:
        """Publish from within the node, which no alarm holds up."""
        exchange = f"rabbit_misc:r({self._r('exchange', '')})"
        properties = (
            '[{content_type, <<"application/json">>}, {content_encoding, <<"utf-8">>}]'
        )
        codes = f"<<{','.join(map(str, body))}>>"
        if rabbitmq_version() < (4,):
            self.evaluate(
                f"rabbit_basic:publish({exchange}, {quote(queue)}, {properties}, "
                f"{codes}), ok"
            )
            return
        self.evaluate(
            f"{{ok, M}} = mc_amqpl:message({exchange}, {quote(queue)}, "
            f"rabbit_basic:build_content(rabbit_basic:properties({properties}), "
            f"{codes})), rabbit_queue_type:publish_at_most_once({exchange}, M), ok"
        )

    def reset(self) -> None:
        """Drop all connections and delete all queues and exchanges of the
        virtual host, as between two tests."""
        for resource in list(self._exhausted):
            self.relieve(resource)
        self.clear_alarm("memory")
        self.clear_alarm("disk")
        self.drop_connections()
        vhost = quote(self.virtual_host)
        self.evaluate(
            f"[rabbit_amqqueue:delete(Q, false, false, {quote('test')})"
            f" || Q <- rabbit_amqqueue:list({vhost})], ok"
        )
        for exchange in self.exchanges():
            self.delete_exchange(exchange["name"])
