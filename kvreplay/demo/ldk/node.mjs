// A Lightning node of LDK's parts, with everything that it must remember in one store.
//
// A *turn* is one round of the node: what its peer has sent is read, events are handled, and the
// channel manager is written if it has changed. If the node takes turns, all that a turn writes is
// one commit, and what the node says to its peer leaves after the commit. If it does not, each
// write is a commit of its own and what is said leaves at once, as in most nodes today.

import * as ldk from "lightningdevkit";

const NETWORK = ldk.Network.LDKNetwork_Regtest;
const NOW = () => Math.floor(Date.now() / 1000);

export class LightningNode {
  constructor(name, store, { takesTurns, maximumPendingUpdates }) {
    this.name = name;
    this.store = store;
    this.takesTurns = takesTurns;
    this.maximumPendingUpdates = BigInt(maximumPendingUpdates);
    this.inTurn = false;
    this.inbox = []; // what the peer has sent
    this.outbox = []; // what is said in this turn
    this.events = [];
    this.errors = []; // what LDK has logged
    this.payments = new Map(); // payment hash, "sent" or why it failed
    this.kept = []; // what LDK uses and the collector must not free
  }

  // Starting

  // Load the node from its store, or make a new one.
  start() {
    this.#makeParts();
    const stored = this.store.find("manager");
    if (stored === null) {
      this.#makeManager();
    } else {
      this.#loadManager(stored);
    }
    const ignorer = this.#keep(ldk.IgnoringMessageHandler.constructor_new());
    this.peers = this.#keep(
      ldk.PeerManager.constructor_new(
        this.manager.as_ChannelMessageHandler(),
        ignorer.as_RoutingMessageHandler(),
        ignorer.as_OnionMessageHandler(),
        ignorer.as_CustomMessageHandler(),
        NOW(),
        this.keys.as_EntropySource().get_secure_random_bytes(),
        this.logger,
        this.keys.as_NodeSigner(),
      ),
    );
    this.id = this.manager.get_our_node_id();
    this.turn(() => this.#write("manager", this.manager));
    return stored !== null;
  }

  #makeParts() {
    const node = this;
    this.logger = this.#keep(
      ldk.Logger.new_impl({
        log(record) {
          if (record.get_level() >= ldk.Level.LDKLevel_Error) node.errors.push(record.get_args());
        },
      }),
    );
    this.fees = this.#keep(
      ldk.FeeEstimator.new_impl({ get_est_sat_per_1000_weight: () => 253 }),
    );
    this.broadcast = [];
    this.broadcaster = this.#keep(
      ldk.BroadcasterInterface.new_impl({
        broadcast_transactions: (transactions) => this.broadcast.push(...transactions),
      }),
    );
    this.keys = this.#keep(
      ldk.KeysManager.constructor_new(this.#seed(), BigInt(NOW()), Number(process.hrtime.bigint() % 1000000000n)),
    );
    const entropy = this.keys.as_EntropySource();
    this.graph = this.#read(
      "network_graph",
      (bytes) => ldk.NetworkGraph.constructor_read(bytes, this.logger),
      () => ldk.NetworkGraph.constructor_new(NETWORK, this.logger),
    );
    const decay = ldk.ProbabilisticScoringDecayParameters.constructor_default();
    this.scorer = this.#read(
      "scorer",
      (bytes) => ldk.ProbabilisticScorer.constructor_read(bytes, decay, this.graph, this.logger),
      () => ldk.ProbabilisticScorer.constructor_new(decay, this.graph, this.logger),
    );
    this.score = this.#keep(ldk.MultiThreadedLockableScore.constructor_new(this.scorer.as_Score()));
    this.router = this.#keep(
      ldk.DefaultRouter.constructor_new(
        this.graph,
        this.logger,
        entropy,
        this.score.as_LockableScore(),
        ldk.ProbabilisticScoringFeeParameters.constructor_default(),
      ),
    );
    this.messageRouter = this.#keep(
      ldk.DefaultMessageRouter.constructor_new(this.graph, entropy),
    );
    this.persister = this.#keep(
      ldk.MonitorUpdatingPersister.constructor_new(
        this.store.kvStore,
        this.logger,
        this.maximumPendingUpdates,
        entropy,
        this.keys.as_SignerProvider(),
        this.broadcaster,
        this.fees,
      ),
    );
    this.chain = this.#keep(
      ldk.ChainMonitor.constructor_new(
        ldk.Option_FilterZ.constructor_none(),
        this.broadcaster,
        this.logger,
        this.fees,
        this.persister.as_Persist(),
      ),
    );
    this.config = this.#keep(ldk.UserConfig.constructor_default());
    const handshake = this.config.get_channel_handshake_config();
    handshake.set_minimum_depth(1);
    handshake.set_max_inbound_htlc_value_in_flight_percent_of_channel(100);
    this.config.set_channel_handshake_config(handshake);
  }

  #makeManager() {
    const best = ldk.BestBlock.constructor_from_network(NETWORK);
    this.manager = this.#keep(
      ldk.ChannelManager.constructor_new(
        this.fees,
        this.chain.as_Watch(),
        this.broadcaster,
        this.router.as_Router(),
        this.messageRouter.as_MessageRouter(),
        this.logger,
        this.keys.as_EntropySource(),
        this.keys.as_NodeSigner(),
        this.keys.as_SignerProvider(),
        this.config,
        ldk.ChainParameters.constructor_new(NETWORK, best),
        NOW(),
      ),
    );
  }

  // The monitors first, each with its updates; then the manager, which is told of them.
  #loadManager(stored) {
    const pairs = unwrap(this.persister.read_all_channel_monitors_with_updates());
    const monitors = pairs.map((pair) => this.#keep(pair.get_b()));
    const read = ldk.UtilMethods.constructor_C2Tuple_ThirtyTwoBytesChannelManagerZ_read(
      stored,
      this.keys.as_EntropySource(),
      this.keys.as_NodeSigner(),
      this.keys.as_SignerProvider(),
      this.fees,
      this.chain.as_Watch(),
      this.broadcaster,
      this.router.as_Router(),
      this.messageRouter.as_MessageRouter(),
      this.logger,
      this.config,
      monitors,
    );
    this.manager = this.#keep(unwrap(read).get_b());
    this.turn(() => {
      for (const monitor of monitors) {
        unwrap(this.chain.as_Watch().watch_channel(monitor.get_funding_txo().get_a(), monitor));
      }
    });
  }

  #seed() {
    const stored = this.store.find("keys_seed");
    if (stored !== null) return stored;
    const seed = crypto.getRandomValues(new Uint8Array(32));
    this.#inTurn(() => this.store.put("keys_seed", seed));
    return seed;
  }

  #read(key, read, make) {
    const stored = this.store.find(key);
    return this.#keep(stored === null ? make() : unwrap(read(stored)));
  }

  #write(key, part) {
    this.store.put(key, part.write());
  }

  #keep(part) {
    this.kept.push(part);
    return part;
  }

  // Turns

  // Do a part of the node's work, and all that follows from it, as one turn.
  turn(work) {
    this.#inTurn(() => {
      work();
      this.#handleEvents();
      this.peers?.process_events();
      if (this.manager.get_and_clear_needs_persistence()) this.#write("manager", this.manager);
    });
  }

  #inTurn(work) {
    const begins = this.takesTurns && !this.inTurn;
    if (begins) this.store.begin();
    this.inTurn = true;
    work();
    if (!begins) return;
    this.store.commit();
    this.inTurn = false;
    this.#say();
  }

  // For a turn that the other process has begun, and will end after this work.
  joinTurn(work) {
    this.inTurn = true;
    const result = work();
    this.#write("manager", this.manager);
    return result;
  }

  leaveTurn() {
    this.inTurn = false;
    this.#say();
  }

  // Read what the peer has sent; say whether there was something.
  readPeer() {
    if (this.inbox.length === 0) return false;
    const received = this.inbox.splice(0);
    this.turn(() => {
      for (const data of received) unwrap(this.peers.read_event(this.socket, data));
      this.peers.process_events();
    });
    return true;
  }

  #say() {
    for (const data of this.outbox.splice(0)) this.peer.inbox.push(data);
  }

  // Events

  #handleEvents() {
    const handler = ldk.EventHandler.new_impl({
      handle_event: (event) => {
        this.events.push(event);
        return ldk.Result_NoneReplayEventZ.constructor_ok();
      },
    });
    for (;;) {
      this.manager.as_EventsProvider().process_pending_events(handler);
      this.chain.as_EventsProvider().process_pending_events(handler);
      if (this.events.length === 0) return;
      for (const event of this.events.splice(0)) this.#handle(event);
    }
  }

  #handle(event) {
    if (event instanceof ldk.Event_FundingGenerationReady) {
      this.funding = fundingTransaction(event.output_script, event.channel_value_satoshis);
      const [channel, peer] = [event.temporary_channel_id, event.counterparty_node_id];
      unwrap(this.manager.funding_transaction_generated(channel, peer, this.funding));
    } else if (event instanceof ldk.Event_PendingHTLCsForwardable) {
      this.manager.process_pending_htlc_forwards();
    } else if (event instanceof ldk.Event_PaymentClaimable) {
      this.manager.claim_funds(event.purpose.preimage().some);
    } else if (event instanceof ldk.Event_PaymentClaimed) {
      const msat = Number(event.amount_msat);
      this.store.tell({ kind: "payment_claimed", payment_hash: hex(event.payment_hash), msat });
    } else if (event instanceof ldk.Event_PaymentSent) {
      this.payments.set(hex(event.payment_hash), "sent");
      this.store.tell({ kind: "payment_sent", payment_hash: hex(event.payment_hash) });
    } else if (event instanceof ldk.Event_PaymentFailed) {
      const hash = hex(event.payment_hash.some);
      this.payments.set(hash, `failed: ${event.reason?.some}`);
      this.store.tell({ kind: "payment_failed", payment_hash: hash });
    } else if (event instanceof ldk.Event_ChannelClosed) {
      this.store.tell({ kind: "channel_closed", reason: event.reason.to_str() });
    }
  }

  // The peer

  // A socket whose other end is the peer's inbox.
  openSocket(peer, number) {
    this.peer = peer;
    this.inbox = [];
    this.outbox = [];
    const send = (data) => (this.takesTurns ? this.outbox : peer.inbox).push(data);
    this.socket = this.#keep(
      ldk.SocketDescriptor.new_impl({
        send_data(data) {
          send(data);
          return data.length;
        },
        disconnect_socket() {},
        eq: (other) => other.hash() === BigInt(number),
        hash: () => BigInt(number),
      }),
    );
  }

  listen() {
    const address = ldk.Option_SocketAddressZ.constructor_none();
    this.turn(() => unwrap(this.peers.new_inbound_connection(this.socket, address)));
  }

  dial() {
    const address = ldk.Option_SocketAddressZ.constructor_none();
    const dialled = this.peers.new_outbound_connection(this.peer.id, this.socket, address);
    this.peer.inbox.push(unwrap(dialled));
  }

  // Channels and payments

  openChannel(satoshis, pushMsat) {
    this.turn(() => {
      const [value, push] = [BigInt(satoshis), BigInt(pushMsat)];
      unwrap(this.manager.create_channel(this.peer.id, value, push, 0n, null, this.config));
    });
  }

  confirmBlock(header, height, transactions) {
    this.turn(() => {
      for (const part of [this.chain.as_Confirm(), this.manager.as_Confirm()]) {
        if (transactions.length > 0) part.transactions_confirmed(header, transactions, height);
        part.best_block_updated(header, height);
      }
    });
  }

  get height() {
    return this.manager.current_best_block().get_height();
  }

  get isUsable() {
    return this.manager.list_usable_channels().length > 0;
  }

  makeInvoice(msat, description, expirySeconds) {
    return unwrap(
      this.manager.create_bolt11_invoice(
        ldk.Option_u64Z.constructor_some(BigInt(msat)),
        ldk.Bolt11InvoiceDescription.constructor_direct(
          unwrap(ldk.Description.constructor_new(description)),
        ),
        ldk.Option_u32Z.constructor_some(expirySeconds),
        ldk.Option_u16Z.constructor_none(),
        ldk.Option_ThirtyTwoBytesZ.constructor_none(),
      ),
    ).to_str();
  }

  // Return the payment's hash.
  pay(bolt11) {
    const invoice = unwrap(ldk.Bolt11Invoice.constructor_from_str(bolt11));
    const hash = invoice.payment_hash();
    const parameters = unwrap(
      ldk.UtilMethods.constructor_payment_parameters_from_invoice(invoice),
    );
    this.turn(() => {
      const [onion, route] = [parameters.get_b(), parameters.get_c()];
      const retry = ldk.Retry.constructor_attempts(1);
      unwrap(this.manager.send_payment(hash, onion, hash, route, retry));
    });
    return hex(hash);
  }

  // Write what may be a little old after a restart, and costs no money then.
  stop() {
    this.#inTurn(() => {
      this.#write("network_graph", this.graph);
      this.#write("scorer", this.score);
    });
  }

  describe() {
    return {
      height: this.height,
      errors: this.errors,
      channels: this.manager.list_channels().map((channel) => ({
        id: hex(channel.get_channel_id().get_a()),
        usable: channel.get_is_usable(),
        outbound_msat: Number(channel.get_outbound_capacity_msat()),
        inbound_msat: Number(channel.get_inbound_capacity_msat()),
        pending_htlcs:
          channel.get_pending_inbound_htlcs().length + channel.get_pending_outbound_htlcs().length,
      })),
    };
  }
}

// Return a transaction with that one output. Nobody checks its input: there is no chain behind it.
function fundingTransaction(script, satoshis) {
  const transaction = Buffer.concat([
    Buffer.from("02000000" + "0001" + "01" + "00".repeat(36) + "00" + "ffffffff" + "01", "hex"),
    Buffer.alloc(8),
    Buffer.from([script.length]),
    script,
    Buffer.from("01" + "01" + "ff" + "00000000", "hex"), // a witness, and the lock time
  ]);
  transaction.writeBigUInt64LE(BigInt(satoshis), 49);
  return new Uint8Array(transaction);
}

export function hex(bytes) {
  return Buffer.from(bytes).toString("hex");
}

// Return the value of one of LDK's results; throw if it is an error.
export function unwrap(result) {
  if (result.is_ok()) return result.res;
  const reason = result.err?.to_str?.() ?? result.err?.err ?? result.err;
  throw new Error(`${result.constructor.name}: ${reason}`);
}
