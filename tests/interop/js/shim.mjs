// What js-libp2p 3 takes from Node 22, for Node 20.
if (Promise.withResolvers === undefined) {
  Promise.withResolvers = function () {
    let resolve, reject
    const promise = new Promise((yes, no) => { resolve = yes; reject = no })
    return { promise, resolve, reject }
  }
}
if (globalThis.CustomEvent === undefined) {
  globalThis.CustomEvent = class extends Event {
    constructor (name, init) { super(name, init); this.detail = init?.detail }
  }
}
