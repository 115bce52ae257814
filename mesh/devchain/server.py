"""Substrate's JSON-RPC over websocket, for the dev chain.

A trio shell: it turns requests into calls of `DevChain` and blocks into notifications. The reply to a subscription
always goes out before its first notification. A connection that does not read what it is sent is closed.

Browser pages are kept out: the Host header must be an IP address, localhost or a configured name (so no name can be
rebound to us), and an Origin must be our own address or a configured one.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

import trio
from trio_websocket import (
    ConnectionClosed,
    WebSocketConnection,
    WebSocketRequest,
    wrap_server_stream,
)

from mesh.devchain import network_rpc
from mesh.devchain import scale as s
from mesh.devchain.chain import DevChain, DevChainConfig, parse_address
from mesh.devchain.extrinsic import Refused, blake2_256
from mesh.devchain.overlay import ReadState
from mesh.devchain.pallets import RUNTIME_VERSION, system
from mesh.devchain.plain import from_plain
from mesh.devchain.runtime import ZERO_HASH, Block
from mesh.devchain.store import HistoryDiscarded
from mesh.errors import ChainError, ConfigError, ListenFailed, MeshError

log = logging.getLogger(__name__)

SERVER_VERSION = "0.1.0"
HANDSHAKE_TIMEOUT_S = 10.0
DISCONNECT_TIMEOUT_S = 2.0

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603
UNKNOWN_BLOCK = 4003
TOO_MANY_SUBSCRIPTIONS = -32006


DEV_METHODS = frozenset({"dev_newBlock", "dev_setStorage", "dev_snapshot", "dev_restore"})
"""Answered with `dev_rpc` only: whoever can connect may then change everything."""


class RpcRefusal(MeshError):
    """A request that is answered with a JSON-RPC error."""

    def __init__(self, code: int, message: str, data: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = data


def _hex(raw: bytes) -> str:
    return "0x" + raw.hex()


def _unhex(value: Any, *, length: int | None = None) -> bytes:
    if not isinstance(value, str) or not value.startswith("0x"):
        raise RpcRefusal(INVALID_PARAMS, f"Invalid params: {value!r:.60} is no 0x hex string")
    try:
        raw = bytes.fromhex(value[2:])
    except ValueError:
        raise RpcRefusal(INVALID_PARAMS, f"Invalid params: {value[:60]!r} is no 0x hex string") from None
    if length is not None and len(raw) != length:
        raise RpcRefusal(INVALID_PARAMS, f"Invalid params: {len(raw)} bytes where {length} are wanted")
    return raw


def _number(value: Any) -> int:
    if isinstance(value, str):
        try:
            value = int(value, 16 if value.startswith("0x") else 10)
        except ValueError:
            value = None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 64:
        raise RpcRefusal(INVALID_PARAMS, "Invalid params: a number below 2**64 is wanted")
    return value


def _address(value: Any) -> bytes:
    try:
        return parse_address(value)
    except (ValueError, AttributeError):
        raise RpcRefusal(INVALID_PARAMS, "Invalid params: an address is 0x and 40 hex digits") from None


def header_json(block: Block) -> dict[str, Any]:
    """A header as the RPC shows it."""
    header = block.header
    return {
        "parentHash": _hex(header["parent_hash"]),
        "number": hex(header["number"]),
        "stateRoot": _hex(header["state_root"]),
        "extrinsicsRoot": _hex(header["extrinsics_root"]),
        "digest": {"logs": []},
    }


def version_json() -> dict[str, Any]:
    """The runtime version as the RPC shows it."""
    version: Mapping[str, Any] = RUNTIME_VERSION
    return {
        "specName": version["spec_name"],
        "implName": version["impl_name"],
        "authoringVersion": version["authoring_version"],
        "specVersion": version["spec_version"],
        "implVersion": version["impl_version"],
        "apis": [[_hex(each), number] for each, number in version["apis"]],
        "transactionVersion": version["transaction_version"],
        "stateVersion": version["system_version"],
        "systemVersion": version["system_version"],
    }


Method = Callable[..., Any]


class Connection:
    """One client: its requests, its subscriptions, and what is still to be sent to it."""

    def __init__(self, chain: DevChain, websocket: WebSocketConnection) -> None:
        self.chain = chain
        self.limits = chain.config.server
        self._socket = websocket
        self._send, self._queue = trio.open_memory_channel[str](self.limits.max_outgoing_messages)
        self._waiting_bytes = 0
        self._scope = trio.CancelScope()
        self._subscriptions: dict[str, Callable[[], None]] = {}
        self._next_id = 0
        self._watched_keys = 0
        self._heads: dict[str, Callable[[Block], None]] = {}
        self._later: list[Callable[[], None]] = []
        self._methods = self._table()

    async def run(self) -> None:
        """Serve until the client goes; never raises for what the client does."""
        self.chain.listeners.append(self._on_block)
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write)
                    await self._read()
                    nursery.cancel_scope.cancel()
        finally:
            self.chain.listeners.remove(self._on_block)
            for end in list(self._subscriptions.values()):
                end()
            self._send.close()
            self._queue.close()

    async def _read(self) -> None:
        while True:
            try:
                message = await self._socket.get_message()
            except ConnectionClosed:
                return
            try:
                request = json.loads(message)
            except (ValueError, RecursionError):
                self._push({"jsonrpc": "2.0", "error": {"code": PARSE_ERROR, "message": "Parse error"}, "id": None})
                continue
            if isinstance(request, list):
                await self._batch(request)
            else:
                reply = await self._answer(request)
                self._push(reply)
                self._flush()

    async def _batch(self, requests: list[Any]) -> None:
        if not 0 < len(requests) <= self.limits.max_batch:
            error = {"code": INVALID_REQUEST, "message": f"a batch has 1 to {self.limits.max_batch} requests"}
            self._push({"jsonrpc": "2.0", "error": error, "id": None})
            return
        texts: list[str] = []
        size = 0
        for each in requests:
            texts.append(json.dumps(await self._answer(each)))
            size += len(texts[-1])
            if size > self.limits.max_outgoing_bytes:
                break  # it goes no further, so the rest need not be made
            if not self._later:  # else a block could come, and be told to a subscription whose reply is still here
                await trio.lowlevel.checkpoint()
        self._push_text(f"[{', '.join(texts)}]")
        self._flush()

    async def _write(self) -> None:
        async for text in self._queue:
            try:
                await self._socket.send_message(text)
            except ConnectionClosed:
                self._scope.cancel()
                return
            self._waiting_bytes -= len(text)

    def _push(self, message: Any) -> None:
        self._push_text(json.dumps(message))

    def _push_text(self, text: str) -> None:
        try:
            if self._waiting_bytes + len(text) > self.limits.max_outgoing_bytes:
                raise trio.WouldBlock
            self._send.send_nowait(text)
            self._waiting_bytes += len(text)
        except trio.WouldBlock:
            log.warning("a client that does not read is closed: %d bytes wait for it", self._waiting_bytes)
            self._scope.cancel()

    def _flush(self) -> None:
        """Send the first notifications of subscriptions just made, after the reply."""
        later, self._later = self._later, []
        for send in later:
            send()

    async def _answer(self, request: Any) -> dict[str, Any]:
        reply: dict[str, Any] = {"jsonrpc": "2.0", "id": None}
        try:
            if not isinstance(request, dict) or not isinstance(request.get("method"), str):
                raise RpcRefusal(INVALID_REQUEST, "Invalid request")
            ident = request.get("id")
            reply["id"] = ident if isinstance(ident, int | str) else None
            reply["result"] = await self._call(request["method"], request.get("params"))
        except RpcRefusal as error:
            reply["error"] = {"code": error.code, "message": error.message}
            if error.data is not None:
                reply["error"]["data"] = error.data
        except Refused as error:
            reply["error"] = {"code": error.code, "message": error.title, "data": error.data}
        except HistoryDiscarded as error:
            reply["error"] = {"code": UNKNOWN_BLOCK, "message": f"Client error: UnknownBlock: {error}"}
        except ConfigError as error:
            reply["error"] = {"code": INVALID_PARAMS, "message": f"Invalid params: {error}"}
        except ChainError as error:
            reply["error"] = {"code": INTERNAL_ERROR, "message": f"Internal error: {error}"}
        except Exception:  # one request that the chain cannot bear must not end the connection of the others
            log.exception("request %s failed", reply["id"])
            reply["error"] = {"code": INTERNAL_ERROR, "message": "Internal error: the chain's log says more"}
        return reply

    async def _call(self, name: str, params: Any) -> Any:
        method = self._methods.get(name)
        if method is None and name in DEV_METHODS:
            raise RpcRefusal(
                METHOD_NOT_FOUND,
                f"Method not found: {name} is for a chain started with --dev-rpc; start it again with that flag",
            )
        if method is None:
            raise RpcRefusal(METHOD_NOT_FOUND, "Method not found")
        if params is None:
            params = []
        if not isinstance(params, list):
            raise RpcRefusal(INVALID_PARAMS, "Invalid params: an array is wanted")
        fn, least, most = method
        while len(params) > least and params[-1] is None:
            params = params[:-1]
        if not least <= len(params) <= most:
            raise RpcRefusal(INVALID_PARAMS, f"Invalid params: {name} takes {least} to {most}")
        result = fn(*params)
        return await result if isinstance(result, Awaitable) else result

    def _table(self) -> dict[str, tuple[Method, int, int]]:
        table: dict[str, tuple[Method, int, int]] = {
            "system_chain": (lambda: self.chain.config.name, 0, 0),
            "system_chainType": (lambda: "Development", 0, 0),
            "system_name": (lambda: "mesh devchain (single author, no Merkle state root)", 0, 0),
            "system_version": (lambda: SERVER_VERSION, 0, 0),
            "system_properties": (_properties, 0, 0),
            "system_health": (lambda: {"peers": 0, "isSyncing": False, "shouldHavePeers": False}, 0, 0),
            "system_accountNextIndex": (self._next_index, 1, 1),
            "account_nextIndex": (self._next_index, 1, 1),
            "rpc_methods": (lambda: {"methods": sorted(table)}, 0, 0),
            "chain_getHead": (self._block_hash, 0, 1),
            "chain_getBlockHash": (self._block_hash, 0, 1),
            "chain_getFinalizedHead": (lambda: _hex(self.chain.finalized_hash), 0, 0),
            "chain_getFinalisedHead": (lambda: _hex(self.chain.finalized_hash), 0, 0),
            "chain_getHeader": (self._header, 0, 1),
            "chain_getBlock": (self._get_block, 0, 1),
            "state_getMetadata": (self._metadata, 0, 1),
            "state_getRuntimeVersion": (self._version, 0, 1),
            "chain_getRuntimeVersion": (self._version, 0, 1),
            "state_getStorage": (self._storage, 1, 2),
            "state_getStorageAt": (self._storage, 1, 2),
            "state_getStorageHash": (self._storage_hash, 1, 2),
            "state_getStorageHashAt": (self._storage_hash, 1, 2),
            "state_getStorageSize": (self._storage_size, 1, 2),
            "state_getStorageSizeAt": (self._storage_size, 1, 2),
            "state_getKeys": (self._keys, 1, 2),
            "state_getKeysPaged": (self._keys_paged, 2, 4),
            "state_getKeysPagedAt": (self._keys_paged, 2, 4),
            "state_queryStorageAt": (self._query_storage, 1, 2),
            "state_call": (self._state_call, 2, 3),
            "state_callAt": (self._state_call, 2, 3),
            "payment_queryInfo": (self._payment_info, 1, 2),
            "payment_queryFeeDetails": (self._payment_details, 1, 2),
            "author_submitExtrinsic": (self._submit, 1, 1),
            "author_submitAndWatchExtrinsic": (self._submit_and_watch, 1, 1),
            "author_unwatchExtrinsic": (self._unsubscribe, 1, 1),
            "author_pendingExtrinsics": (lambda: [_hex(each.raw) for each in self.chain.pool], 0, 0),
            "state_subscribeStorage": (self._subscribe_storage, 0, 1),
            "state_subscribeRuntimeVersion": (self._subscribe_version, 0, 0),
            "chain_subscribeRuntimeVersion": (self._subscribe_version, 0, 0),
        }
        for name, method in network_rpc.METHODS.items():
            table[name] = (partial(self._network, method), method.least, method.most)
        new_head = partial(self._subscribe_heads, "chain_newHead", False)
        for name in ("chain_subscribeNewHeads", "chain_subscribeNewHead", "subscribe_newHead"):
            table[name] = (new_head, 0, 0)
        table["chain_subscribeAllHeads"] = (partial(self._subscribe_heads, "chain_allHead", False), 0, 0)
        for name in ("chain_subscribeFinalizedHeads", "chain_subscribeFinalisedHeads"):
            table[name] = (partial(self._subscribe_heads, "chain_finalizedHead", True), 0, 0)
        for name in (
            "chain_unsubscribeNewHeads",
            "chain_unsubscribeNewHead",
            "unsubscribe_newHead",
            "chain_unsubscribeAllHeads",
            "chain_unsubscribeFinalizedHeads",
            "chain_unsubscribeFinalisedHeads",
            "chain_unsubscribeRuntimeVersion",
            "state_unsubscribeStorage",
            "state_unsubscribeRuntimeVersion",
        ):
            table[name] = (self._unsubscribe, 1, 1)
        if self.chain.config.dev_rpc:
            table["dev_newBlock"] = (self._new_block, 0, 1)
            table["dev_setStorage"] = (self._set_storage, 1, 1)
            table["dev_snapshot"] = (lambda: _hex(self.chain.snapshot()), 0, 0)
            table["dev_restore"] = (lambda raw: _hex(self.chain.restore(_unhex(raw)).hash), 1, 1)
        return table

    # chain and system

    def _next_index(self, address: Any) -> int:
        return self.chain.next_nonce(_address(address))

    def _block_hash(self, number: Any = None) -> Any:
        if number is None:
            return _hex(self.chain.best.hash)
        if isinstance(number, list):
            if len(number) > self.limits.max_keys:
                raise RpcRefusal(INVALID_PARAMS, f"Invalid params: at most {self.limits.max_keys} numbers")
            return [self._block_hash(_number(each)) for each in number]
        value = _number(number)
        found = self.chain.store.hash_of(value) if value <= self.chain.best.number else None
        return None if found is None else _hex(found)

    def _find(self, block_hash: Any) -> Block | None:
        if block_hash is None:
            return self.chain.best
        return self.chain.store.block(_unhex(block_hash, length=32))

    def _header(self, block_hash: Any = None) -> Any:
        block = self._find(block_hash)
        return None if block is None else header_json(block)

    def _get_block(self, block_hash: Any = None) -> Any:
        block = self._find(block_hash)
        if block is None:
            return None
        body = {"header": header_json(block), "extrinsics": [_hex(each) for each in block.extrinsics]}
        return {"block": body, "justifications": None}

    def _known(self, block_hash: Any) -> None:
        """Refuse an unknown block; the genesis' parent counts as known, for clients ask about the head's parent."""
        if block_hash is None:
            return
        raw = _unhex(block_hash, length=32)
        if raw != ZERO_HASH and self.chain.store.number_of(raw) is None:
            raise RpcRefusal(UNKNOWN_BLOCK, f"Client error: UnknownBlock: Header was not found: {block_hash}")

    def _metadata(self, block_hash: Any = None) -> str:
        self._known(block_hash)
        return _hex(self.chain.runtime.metadata)

    def _version(self, block_hash: Any = None) -> dict[str, Any]:
        self._known(block_hash)
        return version_json()

    # state

    def _state(self, block_hash: Any) -> tuple[ReadState, int, bytes]:
        raw = None if block_hash is None else _unhex(block_hash, length=32)
        found = self.chain.state_at(raw)
        if found is None:
            raise RpcRefusal(UNKNOWN_BLOCK, f"Client error: UnknownBlock: State not found: {block_hash}")
        state, number = found
        return state, number, raw or self.chain.best.hash

    def _storage(self, key: Any, block_hash: Any = None) -> str | None:
        value = self._state(block_hash)[0].get(_unhex(key))
        return None if value is None else _hex(value)

    def _storage_hash(self, key: Any, block_hash: Any = None) -> str | None:
        value = self._state(block_hash)[0].get(_unhex(key))
        return None if value is None else _hex(blake2_256(value))

    def _storage_size(self, key: Any, block_hash: Any = None) -> int | None:
        value = self._state(block_hash)[0].get(_unhex(key))
        return None if value is None else len(value)

    def _keys(self, prefix: Any, block_hash: Any = None) -> list[str]:
        keys = list(self._state(block_hash)[0].keys(_unhex(prefix)))
        if len(keys) > self.limits.max_keys:
            raise RpcRefusal(INVALID_PARAMS, f"Invalid params: {len(keys)} keys; use state_getKeysPaged")
        return [_hex(each) for each in keys]

    def _keys_paged(self, prefix: Any, count: Any, start: Any = None, block_hash: Any = None) -> list[str]:
        wanted = _number(count)
        if wanted > self.limits.max_keys:
            raise RpcRefusal(
                INVALID_PARAMS, f"count exceeds maximum value. value: {wanted}, max: {self.limits.max_keys}"
            )
        after = None if start is None else _unhex(start)
        found: list[str] = []
        for key in self._state(block_hash)[0].keys(b"" if prefix is None else _unhex(prefix)):
            if after is not None and key <= after:
                continue
            if len(found) == wanted:
                break
            found.append(_hex(key))
        return found

    def _key_list(self, keys: Any) -> list[bytes]:
        """The keys, each once: a value that is large once must not be sent a thousand times."""
        if not isinstance(keys, list) or len(keys) > self.limits.max_keys:
            raise RpcRefusal(INVALID_PARAMS, f"Invalid params: an array of at most {self.limits.max_keys} keys")
        return list(dict.fromkeys(_unhex(each) for each in keys))

    def _query_storage(self, keys: Any, block_hash: Any = None) -> list[dict[str, Any]]:
        state, _, at = self._state(block_hash)
        return [self._change_set(at, state, self._key_list(keys))]

    def _change_set(self, block_hash: bytes, state: ReadState, keys: Sequence[bytes]) -> dict[str, Any]:
        changes: list[list[str | None]] = []
        room = self.limits.max_outgoing_bytes
        for key in keys:
            value = state.get(key)
            room -= 2 * (len(key) + len(value or b""))
            if room < 0:
                raise RpcRefusal(
                    INVALID_PARAMS, "Invalid params: the values are too large for one answer: ask for fewer"
                )
            changes.append([_hex(key), None if value is None else _hex(value)])
        return {"block": _hex(block_hash), "changes": changes}

    def _state_call(self, name: Any, data: Any, block_hash: Any = None) -> str:
        if not isinstance(name, str):
            raise RpcRefusal(INVALID_PARAMS, "Invalid params: the name of a runtime function is wanted")
        args = _unhex(data)
        runtime = self.chain.runtime
        core = {
            "Core_version": lambda _: system.runtime_version.encode(RUNTIME_VERSION),
            "Metadata_metadata": lambda _: s.bytes_.encode(runtime.metadata),
            "Metadata_metadata_versions": lambda _: s.vec(s.u32).encode([14]),
            "Metadata_metadata_at_version": self._metadata_at_version,
        }
        try:
            if name in core:
                self._known(block_hash)
                return _hex(core[name](args))
            if name in runtime.apis:
                return _hex(self._runtime_api(name, args, block_hash))
            state = self._state(block_hash)[0]
            if name == "AccountNonceApi_account_nonce":
                return _hex(s.u32.encode(runtime.account(state, s.account_id.decode_all(args))["nonce"]))
            if name in ("TransactionPaymentApi_query_info", "TransactionPaymentApi_query_fee_details"):
                return _hex(self._fee_api(name, args))
        except s.ScaleError as error:
            raise RpcRefusal(UNKNOWN_BLOCK, f"Client error: Execution failed: {name}: {error}") from error
        raise RpcRefusal(UNKNOWN_BLOCK, f"Client error: Execution failed: Exported method {name!r:.80} is not found")

    def _runtime_api(self, name: str, args: bytes, block_hash: Any) -> bytes:
        state, number, at = self._state(block_hash)
        pallet, fn = self.chain.runtime.apis[name]
        return fn(self.chain.runtime.context(state, pallet=pallet.name, block=number, parent_hash=at), args)

    def _network(self, method: network_rpc.RpcMethod, *params: Any) -> Any:
        try:
            args, block_hash = method.read(params)
        except (ValueError, s.ScaleEncodeError) as error:
            raise RpcRefusal(INVALID_PARAMS, f"Invalid params: {error}") from error
        try:
            encoded = self._runtime_api(method.api, args, block_hash)
            if len(encoded) * network_rpc.JSON_BYTES_PER_BYTE > self.limits.max_outgoing_bytes:
                raise RpcRefusal(network_rpc.RUNTIME_ERROR, "The answer is too large for JSON: use state_call")
            return method.answer(encoded)
        except HistoryDiscarded as error:
            raise RpcRefusal(network_rpc.RUNTIME_ERROR, f"Client error: UnknownBlock: {error}") from error
        except RpcRefusal as error:
            if error.code != UNKNOWN_BLOCK:
                raise
            raise RpcRefusal(network_rpc.RUNTIME_ERROR, error.message) from error

    def _metadata_at_version(self, args: bytes) -> bytes:
        version = s.u32.decode_all(args)
        return s.option(s.bytes_).encode(self.chain.runtime.metadata if version == 14 else None)

    def _fee_api(self, name: str, args: bytes) -> bytes:
        if len(args) < 4:
            raise s.ScaleError("an extrinsic and its length are wanted")
        raw, length = args[:-4], s.u32.decode_all(args[-4:])
        fee, ext = self.chain.runtime.query_info(raw)
        if name.endswith("query_info"):
            return (
                system.weight.encode(system.BASE_WEIGHT)
                + system.dispatch_class.encode("Normal")
                + s.u128.encode(fee + length - len(ext.raw))
            )
        base, by_length = self.chain.runtime.fee_parts(length)
        return b"\x01" + s.u128.encode(base) + s.u128.encode(by_length) + s.u128.encode(0)

    def _payment_info(self, data: Any, block_hash: Any = None) -> dict[str, Any]:
        self._known(block_hash)
        fee, _ = self.chain.runtime.query_info(_unhex(data))
        return {"weight": system.BASE_WEIGHT, "class": "normal", "partialFee": str(fee)}

    def _payment_details(self, data: Any, block_hash: Any = None) -> dict[str, Any]:
        self._known(block_hash)
        _, ext = self.chain.runtime.query_info(_unhex(data))
        base, by_length = self.chain.runtime.fee_parts(len(ext.raw))
        return {"inclusionFee": {"baseFee": hex(base), "lenFee": hex(by_length), "adjustedWeightFee": "0x0"}}

    # author

    def _submit(self, data: Any) -> str:
        return _hex(self.chain.submit(_unhex(data)).hash)

    def _submit_and_watch(self, data: Any) -> str:
        raw = _unhex(data)
        self._room()
        ext_hash = self.chain.submit(raw).hash
        ident = self._new_id()

        def watcher(status: str, other: bytes | None) -> None:
            body: Any = status if other is None else {status: _hex(other)}
            self._notify("author_extrinsicUpdate", ident, body)
            if status != "inBlock":
                self._subscriptions.pop(ident, None)

        self.chain.watch(ext_hash, watcher)
        self._subscriptions[ident] = partial(self.chain.unwatch, ext_hash, watcher)
        self._later.append(partial(self._notify, "author_extrinsicUpdate", ident, "ready"))
        return ident

    async def _new_block(self, options: Any = None) -> str:
        count = 1
        if isinstance(options, dict):
            count = _number(options.get("count", 1))
        elif options is not None:
            count = _number(options)
        if not 1 <= count <= self.limits.max_new_blocks:
            raise RpcRefusal(INVALID_PARAMS, f"Invalid params: count is 1 to {self.limits.max_new_blocks}")
        for _ in range(count):
            self.chain.new_block()
            await trio.lowlevel.checkpoint()  # the notifications of this block go out before the next one
        return _hex(self.chain.best.hash)

    def _set_storage(self, wanted: Any) -> str:
        """Raw entries [[key, value or null], ...], or by name {pallet: {item: value, map: [[keys, value], ...]}}."""
        entries: dict[bytes, bytes | None] = {}
        if isinstance(wanted, list):
            for pair in wanted:
                if not isinstance(pair, list) or len(pair) != 2:
                    raise RpcRefusal(INVALID_PARAMS, "Invalid params: pairs of a key and a value or null are wanted")
                entries[_unhex(pair[0])] = None if pair[1] is None else _unhex(pair[1])
        elif isinstance(wanted, dict):
            for pallet, items in wanted.items():
                if not isinstance(items, dict):
                    raise RpcRefusal(INVALID_PARAMS, f"Invalid params: the items of {pallet!r:.60} are an object")
                for name, value in items.items():
                    entries |= self._named_entries(pallet, name, value)
        if not 0 < len(entries) <= self.limits.max_keys:
            raise RpcRefusal(INVALID_PARAMS, f"Invalid params: 1 to {self.limits.max_keys} entries are wanted")
        return _hex(self.chain.set_storage(entries).hash)

    def _named_entries(self, pallet: str, name: str, value: Any) -> dict[bytes, bytes | None]:
        owner = self.chain.runtime.pallets.get(pallet)
        item = next((each for each in owner.storage if each.name == name), None) if owner else None
        if item is None:
            raise RpcRefusal(INVALID_PARAMS, f"Invalid params: there is no storage item {f'{pallet}.{name}'!r:.100}")
        pairs = value if item.hashed_keys else [[[], value]]
        if not isinstance(pairs, list) or not all(isinstance(each, list) and len(each) == 2 for each in pairs):
            raise RpcRefusal(
                INVALID_PARAMS, f"Invalid params: {name} is a map: a list of [[key, ...], value] is wanted"
            )
        kinds = s.TupleOf(tuple(kind for _, kind in item.hashed_keys))
        return {
            item.key(*from_plain(kinds, keys)): None
            if given is None
            else item.value.encode(from_plain(item.value, given))
            for keys, given in pairs
        }

    # subscriptions

    def _room(self) -> None:
        if len(self._subscriptions) >= self.limits.max_subscriptions:
            raise RpcRefusal(TOO_MANY_SUBSCRIPTIONS, "Too many subscriptions on the connection")

    def _new_id(self) -> str:
        self._next_id += 1
        return f"mesh{self._next_id}"

    def _notify(self, method: str, ident: str, result: Any) -> None:
        self._push({"jsonrpc": "2.0", "method": method, "params": {"subscription": ident, "result": result}})

    def _subscribe(
        self,
        on_block: Callable[[str, Block], None],
        first: Callable[[str], None],
        end: Callable[[], None] = lambda: None,
    ) -> str:
        self._room()
        ident = self._new_id()
        self._heads[ident] = partial(on_block, ident)
        self._subscriptions[ident] = end
        self._later.append(partial(first, ident))
        return ident

    def _subscribe_heads(self, method: str, finalized: bool) -> str:
        chain = self.chain

        def head() -> Block:
            found = chain.store.block(chain.finalized_hash) if finalized else chain.best
            assert found is not None  # the best block and its parent are always stored
            return found

        def on_block(ident: str, block: Block) -> None:
            if not finalized or block.number > 1:  # block 0 was final from the start
                self._notify(method, ident, header_json(head()))

        return self._subscribe(on_block, lambda ident: self._notify(method, ident, header_json(head())))

    def _subscribe_version(self) -> str:
        return self._subscribe(
            lambda _ident, _block: None,
            lambda ident: self._notify("state_runtimeVersion", ident, version_json()),
        )

    def _subscribe_storage(self, keys: Any = None) -> str:
        if keys is None:
            raise RpcRefusal(INVALID_PARAMS, "Invalid params: storage can be watched by key only")
        wanted = self._key_list(keys)
        chain = self.chain
        if self._watched_keys + len(wanted) > self.limits.max_watched_keys:
            raise RpcRefusal(TOO_MANY_SUBSCRIPTIONS, f"At most {self.limits.max_watched_keys} keys on the connection")

        def tell(ident: str, block: Block, keys: Sequence[bytes]) -> None:
            try:
                changes = self._change_set(block.hash, chain.state, keys)
            except RpcRefusal:
                log.warning("a client that watches more than it can be sent is closed")
                self._scope.cancel()
            else:
                self._notify("state_storage", ident, changes)

        def on_block(ident: str, block: Block) -> None:
            changed = [key for key in wanted if key in block.changes]
            if changed:
                tell(ident, block, changed)

        def first(ident: str) -> None:
            tell(ident, chain.best, wanted)

        def end() -> None:
            self._watched_keys -= len(wanted)

        ident = self._subscribe(on_block, first, end)
        self._watched_keys += len(wanted)
        return ident

    def _unsubscribe(self, ident: Any) -> bool:
        end = self._subscriptions.pop(ident, None) if isinstance(ident, str) else None
        if end is None:
            return False
        self._heads.pop(ident, None)
        end()
        return True

    def _on_block(self, block: Block) -> None:
        for tell in list(self._heads.values()):
            tell(block)


def _properties() -> dict[str, Any]:
    return {"tokenSymbol": "TENSOR", "tokenDecimals": 18, "ss58Format": 42, "isEthereum": True}


def refusal(
    host: str, headers: Sequence[tuple[bytes, bytes]], *, hosts: Sequence[str], origins: Sequence[str]
) -> str | None:
    """Why a websocket handshake with this Host and these other headers is refused, or None.

    A name in the Host header could be one that an attacker's DNS points at us, so only IP addresses, localhost and
    `hosts` are taken. A browser always sends an Origin; it must be this very address or one of `origins`.
    """
    name = host[1 : host.find("]")] if host.startswith("[") else host.partition(":")[0]
    if name.lower() != "localhost" and name not in hosts:
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return f"the Host {name!r:.80} is not accepted"
    for key, value in headers:
        if key.lower() == b"origin":
            origin = value.decode("latin-1")
            if origin not in origins and origin not in (f"http://{host}", f"https://{host}"):
                return f"pages of the origin {origin!r:.80} are not accepted"
    return None


async def listen(config: DevChainConfig) -> tuple[list[trio.SocketListener], int]:
    """(listening sockets, their port); `ListenFailed` when the address cannot be bound."""
    try:
        listeners = await trio.open_tcp_listeners(config.port, host=config.host)
    except OSError as error:
        raise ListenFailed(
            f"the dev chain cannot listen on {config.host} port {config.port} ({error.strerror or error}): "
            "stop what uses it or choose another port"
        ) from error
    return list(listeners), int(listeners[0].socket.getsockname()[1])


async def serve(chain: DevChain, listeners: list[trio.SocketListener]) -> None:
    """Answer JSON-RPC for `chain` until cancelled; closes the listeners."""
    limits = chain.config.server
    connections = 0

    async def handle(stream: trio.SocketStream) -> None:
        nonlocal connections
        if connections >= limits.max_connections:
            log.warning("a connection was turned away: %d are open, the limit", connections)
            with trio.move_on_after(DISCONNECT_TIMEOUT_S), contextlib.suppress(trio.BrokenResourceError):
                await stream.send_all(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
                await stream.receive_some(4096)  # closing with the request unread would take the answer back
            await trio.aclose_forcefully(stream)
            return
        connections += 1
        try:
            await _serve_stream(chain, stream)
        except Exception:  # one connection's error must not end the server
            log.warning("a connection ended by an error", exc_info=True)
        finally:
            connections -= 1
            await trio.aclose_forcefully(stream)

    await trio.serve_listeners(handle, listeners)


async def _serve_stream(chain: DevChain, stream: trio.SocketStream) -> None:
    limits = chain.config.server
    async with trio.open_nursery() as nursery:
        with trio.move_on_after(HANDSHAKE_TIMEOUT_S) as handshake:
            request: WebSocketRequest = await wrap_server_stream(
                nursery, stream, max_message_size=limits.max_message_bytes
            )
            host = request._event.host  # the one header that request.headers leaves out
            reason = refusal(host, request.headers, hosts=limits.allowed_hosts, origins=limits.allowed_origins)
            if reason is not None:
                log.warning("a websocket handshake was refused: %s", reason)
                await request.reject(403, body=reason.encode())
            else:
                websocket = await request.accept()
        if not handshake.cancelled_caught and reason is None:
            with contextlib.suppress(ConnectionClosed):
                await Connection(chain, websocket).run()
            with trio.move_on_after(DISCONNECT_TIMEOUT_S):
                await websocket.aclose()
        nursery.cancel_scope.cancel()
