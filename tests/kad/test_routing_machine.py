"""Any history of a routing table, beside one of plain lists that searches all of them for everything."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mesh.kad.key import Key, common_prefix_length
from mesh.kad.routing import RoutingConfig, RoutingTable, ip_group
from tests.kad.small import info, numbers, peer, place

LOCAL = 0b0101_1010
CONFIG = RoutingConfig(
    bucket_size=3, replacements=2, max_per_ip_group=2, max_per_ip_group_in_table=4, max_failures=2, quiet_s=1.0
)
HOSTS = ("127.0.0.1", "203.0.113.1", "203.0.113.2", "198.51.100.1")
NUMBERS = [LOCAL ^ (1 << bit) ^ low for bit, count in zip(range(7, -1, -1), (8, 6, 4, 4, 3, 2, 1, 1), strict=True)
           for low in range(min(count, 1 << bit))]  # fmt: skip
"""Few, so that histories meet them again; more than a bucket's worth of the far ones, and some of every distance."""


@dataclass
class Row:
    number: int
    address: str | None
    seen_at: float
    failures: int = 0
    pinging: bool = False

    @property
    def group(self) -> str | None:
        return ip_group(info(self.number, self.address).addrs)


@dataclass
class PlainTable:
    """Rows in the order in which they were last heard of, whatever their bucket."""

    depth: int = 0
    rows: list[Row] = field(default_factory=list)
    waiting: list[Row] = field(default_factory=list)

    def bucket(self, number: int) -> int:
        return min(common_prefix_length(Key(LOCAL), Key(number), 8), self.depth)

    def beside(self, number: int, rows: list[Row]) -> list[Row]:
        return [row for row in rows if self.bucket(row.number) == self.bucket(number)]

    def find(self, number: int) -> Row | None:
        return next((row for row in self.rows if row.number == number), None)

    def has_room(self, number: int, group: str | None) -> bool:
        in_bucket = sum(row.group == group for row in self.beside(number, self.rows))
        in_table = sum(row.group == group for row in self.rows)
        return group is None or (in_bucket < 2 and in_table < 4)

    def hear(self, number: int, address: str | None, now: float) -> int | None:
        """Whom to ping."""
        if number == LOCAL:
            return None
        known = self.find(number)
        if known is not None:
            self.seen(number, now)
            group = Row(number, address, now).group
            if address is not None and (group == known.group or self.has_room(number, group)):
                known.address = address
            return None
        new = Row(number, address, now)
        if new.group is not None and sum(row.group == new.group for row in self.rows) >= 4:
            return None
        while not self.has_room(number, new.group) or len(self.beside(number, self.rows)) >= 3:
            if self.bucket(number) == self.depth and self.depth < 7:
                self.depth += 1
            elif self.has_room(number, new.group):
                return self.wait(new, now)
            else:
                return None
        self.waiting = [row for row in self.waiting if row.number != number]
        self.rows.append(new)
        return None

    def wait(self, new: Row, now: float) -> int | None:
        self.waiting = [row for row in self.waiting if row.number != new.number] + [new]
        others = self.beside(new.number, self.waiting)
        if len(others) > 2:
            self.waiting.remove(others[0])
        silent = self.beside(new.number, self.rows)[0]
        if silent.pinging or now - silent.seen_at < 1.0:
            return None
        silent.pinging = True
        return silent.number

    def seen(self, number: int, now: float) -> None:
        row = self.find(number)
        if row is not None:
            self.rows.remove(row)
            self.rows.append(row)
            row.seen_at, row.failures, row.pinging = now, 0, False

    def fail(self, number: int) -> bool:
        self.waiting = [row for row in self.waiting if row.number != number]
        row = self.find(number)
        if row is None:
            return False
        row.failures += 1
        if row.failures >= 2 or (row.pinging and self.beside(number, self.waiting)):
            self.leave(number)
            return True
        row.pinging = False
        return False

    def leave(self, number: int) -> None:
        self.waiting = [row for row in self.waiting if row.number != number]
        row = self.find(number)
        if row is None:
            return
        self.rows.remove(row)
        for candidate in reversed(self.beside(number, self.waiting)):
            if self.has_room(candidate.number, candidate.group):
                self.waiting.remove(candidate)
                self.rows.append(candidate)
                return


class TableMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.plain = PlainTable()
        self.table = RoutingTable(Key(LOCAL), config=CONFIG, place=place, bits=8)

    numbers = st.sampled_from([*NUMBERS, LOCAL])

    @rule(number=numbers, host=st.sampled_from(HOSTS) | st.none(), pause_s=st.sampled_from((0.1, 0.7)))
    def one_is_heard(self, number: int, host: str | None, pause_s: float) -> None:
        self.hear(number, host, pause_s)

    def hear(self, number: int, host: str | None, pause_s: float) -> None:
        self.now += pause_s
        address = None if host is None else f"/ip4/{host}/tcp/1"
        ping = self.table.add(info(number, address), now=self.now)
        assert (None if ping is None else int(place(ping.info.peer_id))) == self.plain.hear(number, address, self.now)

    @rule(some=st.lists(numbers, max_size=12))
    def hear_many(self, some: list[int]) -> None:
        for number in some:
            self.hear(number, None, 0.3)

    @rule(number=numbers)
    def seen(self, number: int) -> None:
        self.table.on_seen(peer(number), now=self.now)
        self.plain.seen(number, self.now)

    @rule(number=numbers)
    def ping_not_sent(self, number: int) -> None:
        self.table.cancel_ping(peer(number))
        row = self.plain.find(number)
        if row is not None:
            row.pinging = False

    @rule(number=numbers)
    def fail(self, number: int) -> None:
        assert self.table.on_failure(peer(number)) == self.plain.fail(number)

    @rule(number=numbers)
    def leave(self, number: int) -> None:
        self.table.remove(peer(number))
        self.plain.leave(number)

    @invariant()
    def holds_the_same_in_the_same_order(self) -> None:
        assert self.table.buckets == self.plain.depth + 1
        assert len(self.table) == len(self.plain.rows)
        for index in range(self.table.buckets):
            expected = [row for row in self.plain.rows if self.plain.bucket(row.number) == index]
            found = self.table.bucket_peers(index)
            assert numbers(found) == [row.number for row in expected]
            assert [str(i.addrs[0]) if i.addrs else None for i in found] == [row.address for row in expected]
            assert len(found) <= 3

    @invariant()
    def closest_is_what_sorting_all_gives(self) -> None:
        everybody = [row.number for row in self.plain.rows]
        for target in (0, LOCAL, 0b0101_0101, 0xFF):
            expected = sorted(everybody, key=lambda number: number ^ target)[:4]
            assert numbers(self.table.closest(Key(target), 4)) == expected


TestTable = TableMachine.TestCase
TestTable.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
