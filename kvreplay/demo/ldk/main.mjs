// Two LDK nodes in one process, which does what the process with the stores asks.
//
//     node main.mjs INPUT OUTPUT
//
// INPUT and OUTPUT are the descriptors of two pipes; see bridge.mjs.

import fs from "node:fs";
import { fileURLToPath } from "node:url";

import * as ldk from "lightningdevkit";

import { Bridge } from "./bridge.mjs";
import { LightningNode, unwrap } from "./node.mjs";
import { RemoteStore } from "./store.mjs";

const bridge = new Bridge(Number(process.argv[2]), Number(process.argv[3]));
const nodes = new Map();

// Let the nodes talk until neither has anything to say.
function settle() {
  for (let busy = true; busy; ) {
    busy = false;
    for (const node of nodes.values()) busy = node.readPeer() || busy;
  }
}

// Mine a block for both nodes, with these transactions.
function mine(transactions = []) {
  const header = Buffer.alloc(80);
  header.writeUInt32LE(Math.floor(Date.now() / 1000), 68);
  const indexed = transactions.map((transaction, index) =>
    ldk.TwoTuple_usizeTransactionZ.constructor_new(index + 1, transaction),
  );
  const height = Math.max(...[...nodes.values()].map((node) => node.height)) + 1;
  for (const node of nodes.values()) node.confirmBlock(new Uint8Array(header), height, indexed);
}

const commands = {
  start({ node: name, turns, maximum_pending_updates = 100 }) {
    const node = new LightningNode(name, new RemoteStore(bridge, name), {
      takesTurns: turns,
      maximumPendingUpdates: maximum_pending_updates,
    });
    nodes.set(name, node);
    return { loaded: node.start() };
  },

  connect({ node: name, peer: other }) {
    const [node, peer] = [nodes.get(name), nodes.get(other)];
    node.openSocket(peer, 1);
    peer.openSocket(node, 2);
    peer.listen();
    node.dial();
    settle();
  },

  open_channel({ node: name, satoshis, push_msat }) {
    const node = nodes.get(name);
    node.openChannel(satoshis, push_msat);
    settle();
    mine([node.funding]);
    for (let confirmations = 1; confirmations < 6; confirmations++) mine();
    settle();
    return { usable: node.isUsable && node.peer.isUsable };
  },

  invoice({ node: name, msat, description, expiry_seconds }) {
    return nodes.get(name).makeInvoice(msat, description, expiry_seconds);
  },

  // As invoice, in a turn that the other process has begun; "left" says that it has ended it.
  invoice_in_turn({ node: name, msat, description, expiry_seconds }) {
    const node = nodes.get(name);
    return node.joinTurn(() => node.makeInvoice(msat, description, expiry_seconds));
  },

  left({ node: name }) {
    nodes.get(name).leaveTurn();
  },

  pay({ node: name, bolt11 }) {
    const node = nodes.get(name);
    const hash = node.pay(bolt11);
    settle();
    return { payment_hash: hash, ended: node.payments.get(hash) ?? "pending" };
  },

  // Let the nodes do what time would make them do.
  tick() {
    for (const node of nodes.values()) node.turn(() => node.manager.timer_tick_occurred());
    settle();
  },

  describe() {
    return Object.fromEntries([...nodes].map(([name, node]) => [name, node.describe()]));
  },

  stop() {
    for (const node of nodes.values()) node.stop();
  },

  // LDK's own migration, from one store to another.
  migrate({ source, target }) {
    const [from, to] = [source, target].map((name) => new RemoteStore(bridge, name));
    unwrap(ldk.UtilMethods.constructor_migrate_kv_store_data(from.migratable, to.migratable));
  },
};

const wasm = fileURLToPath(import.meta.resolve("lightningdevkit/liblightningjs.wasm"));
await ldk.initializeWasmFromBinary(fs.readFileSync(wasm));

for (let frame; (frame = bridge.receive()) !== null; ) {
  const { command, ...fields } = frame.header;
  try {
    bridge.send({ done: commands[command](fields) ?? null });
  } catch (error) {
    bridge.send({ failed: `${error.stack}` });
    // Its turn is not stored, so what it has in memory is ahead of its store: it must not go on.
    if ([...nodes.values()].some((node) => node.inTurn)) process.exit(1);
  }
}
process.exit(0);
