// One scripted life of @polkadot/api on a chain: node scenario.mjs URL SECRET RECIPIENT
// A JSON line on stdout for each step: {"step": ..., "seen": ...}; the last is "done". Blocks must come by themselves.
import { ApiPromise, Keyring, WsProvider } from "@polkadot/api";

const [url, secret, recipient] = process.argv.slice(2);
const tell = (step, seen) => console.log(JSON.stringify({ step, seen }));

const api = await ApiPromise.create({ provider: new WsProvider(url), noInitWarn: true });
const alice = new Keyring({ type: "ethereum" }).addFromSeed(Buffer.from(secret, "hex"));

const free = async (who, at = api) => (await at.query.system.account(who)).data.free.toString();

tell("connect", {
  chain: (await api.rpc.system.chain()).toString(),
  spec: api.runtimeVersion.specName.toString(),
  ethereum: api.registry.chainIsEthereum,
  token: api.registry.chainTokens,
  decimals: api.registry.chainDecimals,
  epochLength: api.consts.network.epochLength.toNumber(),
});
tell("query", { free: await free(alice.address), signer: alice.address });

// Watches an extrinsic to its end: every status, the fee event, and the name of a dispatch error.
function watch(tx, options) {
  return new Promise((resolve, reject) => {
    const statuses = [];
    tx.signAndSend(alice, options, (result) => {
      statuses.push(result.status.type);
      if (result.isError) reject(new Error(`the extrinsic ended as ${result.status.type}`));
      if (!result.status.isFinalized) return;
      let error = null;
      if (result.dispatchError) {
        error = result.dispatchError.isModule
          ? api.registry.findMetaError(result.dispatchError.asModule).name
          : result.dispatchError.toString();
      }
      const paid = result.events.find(({ event }) => event.method === "TransactionFeePaid");
      resolve({
        statuses,
        error,
        fee: paid.event.data[1].toString(),
        block: result.status.asFinalized.toHex(),
        events: result.events.map(({ event }) => `${event.section}.${event.method}`),
      });
    }).catch(reject);
  });
}

const heads = [];
const stopHeads = await api.rpc.chain.subscribeNewHeads((header) => heads.push(header.number.toNumber()));
const finals = [];
const stopFinals = await api.rpc.chain.subscribeFinalizedHeads((header) => finals.push(header.number.toNumber()));
const balances = [];
const stopBalances = await api.query.system.account(recipient, ({ data }) => balances.push(data.free.toString()));

const transfer = api.tx.balances.transferKeepAlive(recipient, 1000n);
const info = await transfer.paymentInfo(alice);
const immortal = await watch(transfer, { era: 0 });
const mortal = await watch(transfer, { era: 64 });
tell("transfers", { estimate: info.partialFee.toString(), immortal, mortal });

const block = await api.rpc.chain.getBlock(mortal.block);
const included = block.block.extrinsics.find((each) => each.isSigned);
tell("block", {
  methods: block.block.extrinsics.map(({ method }) => `${method.section}.${method.method}`),
  era: included.era.isMortalEra ? included.era.asMortalEra.period.toNumber() : 0,
  signer: included.signer.toString(),
});
// What the chain's author set by hand, in block 1.
const set = (await api.rpc.chain.getBlock(await api.rpc.chain.getBlockHash(1))).block.extrinsics;
tell("set", {
  methods: set.map(({ method }) => `${method.section}.${method.method}`),
  value: set[1].args[0][0][1].toHex(),
});
const before = await api.at(block.block.header.parentHash);
tell("past", { before: await free(recipient, before), now: await free(recipient) });

tell("failure", await watch(api.tx.network.addToDelegateStake(5, 1000n), {}));

const entries = await api.query.system.account.entries();
const causes = await api.query.books.burned.entries();
const several = await api.queryMulti([[api.query.system.account, recipient], api.query.network.minSubnetNodes]);
tell("maps", {
  accounts: entries.map(([key]) => key.args[0].toString()),
  causes: [...new Set(causes.map(([key]) => key.args[1].toUtf8()))],
  several: [several[0].data.free.toString(), several[1].toString()],
});

const broken = await transfer.signAsync(alice, {});
const bytes = broken.toU8a();
bytes[bytes.length - 1] ^= 1;
const refusal = await api.rpc.author.submitExtrinsic(`0x${Buffer.from(bytes).toString("hex")}`).catch((e) => e);
tell("refused", { code: refusal.code, message: refusal.message });

// A batch that is sent at once: nonces are counted by the client.
const start = (await api.rpc.system.accountNextIndex(alice.address)).toNumber();
const batch = await Promise.all([0, 1, 2].map((n) => watch(api.tx.balances.transferKeepAlive(recipient, BigInt(n + 1)), { nonce: start + n })));
tell("batch", { errors: batch.map(({ error }) => error), nonce: (await api.query.system.account(alice.address)).nonce.toNumber() - start });

stopHeads();
stopFinals();
stopBalances();
tell("subscriptions", { heads, finals, balances });
await api.disconnect();
tell("done", null);
process.exit(); // its timers would keep it for seconds
