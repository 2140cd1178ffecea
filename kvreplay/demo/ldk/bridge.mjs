// Calls to the process that has the stores, over two pipes.
//
// LDK's calls to its store return when the change is durable, so they cannot be promises. Each is a
// frame to the other process, and a read that blocks until the answer is there.
//
// A frame is two lengths (32 bits, little-endian), a header in JSON, and a body of bytes: a value.

import fs from "node:fs";

export class Bridge {
  constructor(input, output) {
    this.input = input;
    this.output = output;
  }

  // Return the next frame; null if the other process has closed the pipe.
  receive() {
    const lengths = this.#read(8);
    if (lengths === null) return null;
    const header = JSON.parse(this.#read(lengths.readUInt32LE(0)).toString());
    return { header, body: this.#read(lengths.readUInt32LE(4)) };
  }

  send(header, body = new Uint8Array(0)) {
    const text = Buffer.from(JSON.stringify(header));
    const lengths = Buffer.alloc(8);
    lengths.writeUInt32LE(text.length, 0);
    lengths.writeUInt32LE(body.length, 4);
    const frame = Buffer.concat([lengths, text, body]);
    for (let sent = 0; sent < frame.length; ) {
      sent += fs.writeSync(this.output, frame, sent);
    }
  }

  // Send a call, and wait for its answer.
  call(header, body) {
    this.send(header, body);
    const answer = this.receive();
    if (answer === null) process.exit(1); // without its store a node must not go on
    return answer;
  }

  #read(length) {
    const buffer = Buffer.alloc(length);
    for (let have = 0; have < length; ) {
      const got = fs.readSync(this.input, buffer, have, length - have, null);
      if (got === 0) return null;
      have += got;
    }
    return buffer;
  }
}
