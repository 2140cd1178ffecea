// LDK's KVStore over the bridge: one store of the other process, by its name.

import * as ldk from "lightningdevkit";

export class RemoteStore {
  constructor(bridge, name) {
    this.bridge = bridge;
    this.name = name;
    this.turn = "none"; // or "asked for", or "begun"
    this.kvStore = ldk.KVStore.new_impl(this);
    this.migratable = ldk.MigratableKVStore.new_impl(this, this);
  }

  // What LDK calls. Absence is NotFound, and nothing else is: LDK takes a NotFound for an update of
  // a monitor as "there are no more", and would go on with a stale monitor.

  read(primary, secondary, key) {
    const { header, body } = this.#call("read", { primary, secondary, key });
    return header.error
      ? ldk.Result_CVec_u8ZIOErrorZ.constructor_err(ioError(header))
      : ldk.Result_CVec_u8ZIOErrorZ.constructor_ok(new Uint8Array(body));
  }

  write(primary, secondary, key, value) {
    return nothing(this.#change("write", { primary, secondary, key }, value));
  }

  remove(primary, secondary, key, lazy) {
    return nothing(this.#change("remove", { primary, secondary, key, lazy }));
  }

  list(primary, secondary) {
    const { header } = this.#call("list", { primary, secondary });
    return header.error
      ? ldk.Result_CVec_StrZIOErrorZ.constructor_err(ioError(header))
      : ldk.Result_CVec_StrZIOErrorZ.constructor_ok(header.keys);
  }

  list_all_keys() {
    const { header } = this.#call("list_all_keys", {});
    if (header.error) {
      return ldk.Result_CVec_C3Tuple_StrStrStrZZIOErrorZ.constructor_err(ioError(header));
    }
    const keys = header.keys.map((names) => ldk.ThreeTuple_StrStrStrZ.constructor_new(...names));
    return ldk.Result_CVec_C3Tuple_StrStrStrZZIOErrorZ.constructor_ok(keys);
  }

  // What the node calls.

  // Begin a turn: what is changed from now on is stored by commit(), all of it or nothing. The other
  // process begins its transaction with the first change, so a turn without any costs nothing.
  begin() {
    this.turn = "asked for";
  }

  commit() {
    if (this.turn === "begun") confirm(this.#call("commit", {}));
    this.turn = "none";
  }

  // Return a value; null if there is none.
  find(key) {
    const { header, body } = this.#call("read", { primary: "", secondary: "", key });
    if (header.error === "NotFound") return null;
    confirm({ header });
    return new Uint8Array(body);
  }

  put(key, value) {
    confirm(this.#change("write", { primary: "", secondary: "", key }, value));
  }

  // Tell the other process what has happened, as a part of the turn.
  tell(event) {
    confirm(this.#change("event", { event }));
  }

  #change(call, fields, body) {
    if (this.turn === "asked for") {
      confirm(this.#call("begin", {}));
      this.turn = "begun";
    }
    return this.#call(call, fields, body);
  }

  #call(call, fields, body) {
    return this.bridge.call({ call, store: this.name, ...fields }, body);
  }
}

function ioError(header) {
  const { LDKIOError_NotFound, LDKIOError_Other } = ldk.IOError;
  return header.error === "NotFound" ? LDKIOError_NotFound : LDKIOError_Other;
}

function nothing({ header }) {
  return header.error
    ? ldk.Result_NoneIOErrorZ.constructor_err(ioError(header))
    : ldk.Result_NoneIOErrorZ.constructor_ok();
}

function confirm({ header }) {
  if (header.error) throw new Error(header.message);
}
