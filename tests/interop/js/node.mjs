// A js-libp2p node with a Kademlia DHT, led by JSON lines on stdin, one answer line for each on stdout.
import './shim.mjs'
import { createInterface } from 'node:readline'
import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import { identify } from '@libp2p/identify'
import { kadDHT, passthroughMapper } from '@libp2p/kad-dht'
import { ping } from '@libp2p/ping'
import { tcp } from '@libp2p/tcp'
import { multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'
import { CID } from 'multiformats/cid'
import * as Digest from 'multiformats/hashes/digest'
import { generateKeyPair, publicKeyToProtobuf } from '@libp2p/crypto/keys'

const hex = (bytes) => Buffer.from(bytes).toString('hex')
const unhex = (text) => Uint8Array.from(Buffer.from(text, 'hex'))
const utf8 = (text) => new TextEncoder().encode(text)

// --- a mesh record: a msgpack array, signed over the same fields behind a domain -----------------------------------

function pack (value) {
  if (typeof value === 'boolean') return Buffer.from([value ? 0xc3 : 0xc2])
  if (typeof value === 'string') {
    const raw = utf8(value)
    return Buffer.concat([Buffer.from(raw.length < 32 ? [0xa0 | raw.length] : [0xd9, raw.length]), raw])
  }
  if (value instanceof Uint8Array) {
    const size = value.length < 256 ? Buffer.from([0xc4, value.length]) : Buffer.from([0xc5, value.length >> 8, value.length & 255])
    return Buffer.concat([size, value])
  }
  const number = BigInt(value)
  if (number < 128n) return Buffer.from([Number(number)])
  const out = Buffer.alloc(9)
  for (const [limit, tag, bytes] of [[256n, 0xcc, 1], [65536n, 0xcd, 2], [4294967296n, 0xce, 4], [1n << 64n, 0xcf, 8]]) {
    if (number < limit) {
      out.writeBigUInt64BE(number << BigInt(64 - 8 * bytes), 1)
      out[0] = tag
      return out.subarray(0, 1 + bytes)
    }
  }
}

const packAll = (fields) => Buffer.concat([Buffer.from([0x90 | fields.length]), ...fields.map(pack)])

async function sign (key, { name, value, expiry_ms, seq, subnet_id, genesis }) {
  const none = new Uint8Array()
  const owner = publicKeyToProtobuf(key.publicKey)
  const fields = [utf8(name), none, utf8(value), expiry_ms, seq, subnet_id, unhex(genesis), owner]
  const signature = await key.sign(packAll(['mesh/record/1', ...fields, false]))
  return packAll([1, ...fields, signature, false])
}

// --- the node --------------------------------------------------------------------------------------------------------

const key = await generateKeyPair('Ed25519')
const node = await createLibp2p({
  privateKey: key,
  addresses: { listen: ['/ip4/127.0.0.1/tcp/0'] },
  transports: [tcp()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  services: {
    identify: identify(),
    ping: ping(),
    dht: kadDHT({
      protocol: '/ipfs/kad/1.0.0',
      clientMode: false,
      peerInfoMapper: passthroughMapper,
      validators: { t: async () => {} },
      selectors: { t: () => 0 }
    })
  }
})

async function last (events, name, pick) {
  let found = null
  for await (const event of events) {
    if (event.name === name) found = pick(event)
  }
  return found
}

const commands = {
  async connect ({ address }) {
    await node.dial(multiaddr(address))
    for (let tries = 0; tries < 100; tries++) {
      if (node.services.dht.routingTable.size > 0) return { peers: node.services.dht.routingTable.size }
      await new Promise((resolve) => setTimeout(resolve, 50))
    }
    return { peers: 0 }
  },
  async sign (options) { return { record: hex(await sign(key, options)) } },
  async put ({ key: name, record }) {
    const stored = []
    const errors = []
    for await (const event of node.services.dht.put(utf8(name), unhex(record))) {
      if (event.name === 'PEER_RESPONSE' && event.messageName === 'PUT_VALUE') stored.push(event.from.toString())
      if (event.name === 'QUERY_ERROR') errors.push(String(event.error))
    }
    return { stored, errors }
  },
  async get ({ key: name }) {
    const values = []
    for await (const event of node.services.dht.get(utf8(name))) {
      if (event.name === 'VALUE') values.push(hex(event.value))
    }
    return { values }
  },
  async provide ({ digest }) {
    const cid = CID.createV1(0x55, Digest.decode(unhex(digest)))
    for await (const event of node.services.dht.provide(cid)) { void event }
    return {}
  },
  async providers ({ digest }) {
    const cid = CID.createV1(0x55, Digest.decode(unhex(digest)))
    const found = new Set()
    for await (const event of node.services.dht.findProviders(cid)) {
      if (event.name === 'PROVIDER') for (const provider of event.providers) found.add(provider.id.toString())
    }
    return { providers: [...found] }
  },
  async find ({ peer }) {
    const { peerIdFromString } = await import('@libp2p/peer-id')
    const found = await last(node.services.dht.findPeer(peerIdFromString(peer)), 'FINAL_PEER', (event) => event.peer)
    return { addresses: found === null ? [] : found.multiaddrs.map(String) }
  }
}

const say = (value) => process.stdout.write(JSON.stringify(value) + '\n')

say({ peer: node.peerId.toString(), addresses: node.getMultiaddrs().map(String) })
for await (const line of createInterface({ input: process.stdin })) {
  const { command, ...options } = JSON.parse(line)
  try {
    say(await commands[command](options))
  } catch (error) {
    say({ error: `${error.name}: ${error.message}` })
  }
}
await node.stop()
process.exit(0)
