/** Pipes between two sessions over carriers in memory, with real targets on loopback and real standard streams. */
import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { createServer, type AddressInfo, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Writable } from "node:stream";
import { MessageDecoder, type Message } from "../../native/uses/message.ts";
import { runPipe, type Input } from "../../native/uses/stdio.ts";
import { Pipe, pipePurpose } from "../../native/uses/pipe.ts";
import { servePipe } from "../../native/uses/serve.ts";
import { AllowList } from "../../native/uses/allow-list.ts";
import { type TcpTarget } from "../../native/uses/target.ts";
import { noSocketLeft, until } from "../native-fixture.ts";
import { Linked } from "../session/linked-fixture.ts";
import { randomBytes, randomFrom } from "../session/memory-fixture.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

const sha256 = (bytes: Uint8Array) => Bun.SHA256.hash(bytes, "hex");

/** Takes everything, at its own pace. */
class Sink extends Writable {
  readonly chunks: Buffer[] = [];
  failsAfterBytes = Infinity;
  override _write(chunk: Buffer, _encoding: BufferEncoding, written: (error?: Error) => void): void {
    this.chunks.push(Buffer.from(chunk));
    this.failsAfterBytes -= chunk.length;
    const gone = Object.assign(new Error("broken pipe"), { code: "EPIPE" });
    setImmediate(() => (this.failsAfterBytes < 0 ? written(gone) : written()));
  }
  get bytes(): Buffer {
    return Buffer.concat(this.chunks);
  }
}

async function* inChunks(bytes: Buffer, random = randomFrom(7)): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < bytes.length;) {
    const length = 1 + Math.floor(random() * 200_000);
    yield bytes.subarray(at, at + length);
    at += length;
  }
}

/** Never says anything, and never ends. */
async function* silence(): AsyncGenerator<Uint8Array> {
  await new Promise(() => {});
}

const outcome = (work: Promise<unknown>): Promise<string> =>
  work.then(
    () => "confirmed",
    (error: Error) => error.message,
  );

/** `--pipe bob` of alice and `--pipe alice` of bob. */
function pipeBoth(link: Linked, fromAlice: Input, toBob: Writable, fromBob: Input, toAlice: Writable) {
  const atBob = new Promise<Pipe>((resolve) => (link.onStream = (stream) => resolve(new Pipe(stream))));
  const atAlice = new Promise<Pipe>((resolve) => (link.onStreamBack = (stream) => resolve(new Pipe(stream))));
  const alice = outcome(
    runPipe(fromAlice, toAlice, new Pipe(link.alice.open(pipePurpose())), { incoming: atAlice }),
  );
  const bob = atBob.then(() =>
    outcome(runPipe(fromBob, toBob, new Pipe(link.bob.open(pipePurpose())), { incoming: atBob })),
  );
  return { alice, bob };
}

describe("from standard input to standard output", () => {
  test("both ways, every byte, while carriers break", async () => {
    using link = new Linked();
    const [there, back] = [randomBytes(randomFrom(1), 24_000_000), randomBytes(randomFrom(2), 16_000_001)];
    const [toAlice, toBob] = [new Sink(), new Sink()];
    const { alice, bob } = pipeBoth(link, inChunks(there), toBob, inChunks(back), toAlice);
    expect(await link.shaken(Promise.all([alice, bob]))).toBeGreaterThan(3);
    expect(await Promise.all([alice, bob])).toEqual(["confirmed", "confirmed"]);
    expect([sha256(toBob.bytes), sha256(toAlice.bytes)]).toEqual([sha256(there), sha256(back)]);
    await until("no stream is left", () => link.alice.streamCount + link.bob.streamCount === 0);
  });

  test("one way, or nothing at all", async () => {
    using link = new Linked();
    const toBob = new Sink();
    const { alice, bob } = pipeBoth(link, inChunks(Buffer.from("only this")), toBob, undefined, new Sink());
    expect(await Promise.all([alice, bob])).toEqual(["confirmed", "confirmed"]);
    expect(toBob.bytes.toString()).toBe("only this");
    using other = new Linked();
    const empty = pipeBoth(other, undefined, new Sink(), inChunks(Buffer.alloc(0)), new Sink());
    expect(await Promise.all([empty.alice, empty.bob])).toEqual(["confirmed", "confirmed"]);
  });

  test("the end of one half does not wait for the other", async () => {
    using link = new Linked();
    const toBob = new Sink();
    const { alice, bob } = pipeBoth(link, inChunks(Buffer.from("done")), toBob, silence(), new Sink());
    await until("bob's output has ended", () => toBob.writableFinished);
    link.alice.abandon("gone");
    expect(await alice).toContain("gone");
    link.bob.abandon("gone");
    expect(await bob).toContain("gone");
  });

  test("what was not written there is not confirmed", async () => {
    using link = new Linked();
    const stuck = new Writable({ write: () => {} });
    const { alice } = pipeBoth(link, inChunks(Buffer.from("x")), stuck, undefined, new Sink());
    let isOver = false;
    void alice.then(() => (isOver = true));
    await until("it has arrived", () => stuck.writableLength > 0);
    link.alice.finish("enough");
    await until("alice has given up", () => isOver);
    expect(await alice).not.toBe("confirmed");
  });

  test("a reader that goes away ends the other side with the reason", async () => {
    using link = new Linked();
    const toBob = new Sink();
    toBob.failsAfterBytes = 100_000;
    const endless = (async function* () {
      for (;;) yield Buffer.alloc(60_000);
    })();
    const { alice, bob } = pipeBoth(link, endless, toBob, silence(), new Sink());
    const reason = "whoever read the output has gone away (EPIPE)";
    expect(await bob).toBe(reason);
    expect(await alice).toBe(`the other side ended it: ${reason}`);
    await until("no stream is left", () => link.alice.streamCount + link.bob.streamCount === 0);
  });

  test("a reader that goes away as the last byte is written has confirmed nothing", async () => {
    using link = new Linked();
    const toBob = new Sink();
    toBob.failsAfterBytes = 0; // the callback of its end() has the error before anybody hears of an `error`
    const { alice, bob } = pipeBoth(link, inChunks(Buffer.from("x")), toBob, undefined, new Sink());
    const reason = "whoever read the output has gone away (EPIPE)";
    expect(await bob).toBe(reason);
    expect(await alice).toBe(`the other side ended it: ${reason}`);
  });

  test("an input that fails ends the other side with the reason", async () => {
    using link = new Linked();
    const broken = (async function* (): AsyncGenerator<Uint8Array> {
      yield Buffer.from("x");
      throw new Error("EIO: the disk");
    })();
    const { alice, bob } = pipeBoth(link, broken, new Sink(), silence(), new Sink());
    expect(await alice).toBe("EIO: the disk");
    expect(await bob).toBe("the other side ended it: EIO: the disk");
  });

  test("a reader that is slow stops the writer", async () => {
    using link = new Linked();
    const slow = new Writable({ write: () => {} });
    let sent = 0;
    const endless = (async function* () {
      for (;;) yield Buffer.alloc(60_000, (sent += 60_000));
    })();
    pipeBoth(link, endless, slow, silence(), new Sink());
    let [before, quiet] = [0, 0];
    await until("no more is sent", () => {
      quiet = sent === before && sent > 0 ? quiet + 1 : 0;
      before = sent;
      return quiet > 20;
    });
    expect(sent).toBeLessThan(4_000_000);
  });
});

test("a confirmation counts though the stream is over in the same moment", async () => {
  using link = new Linked();
  link.onStream = (stream) => {
    stream.write('{"type":"end","bytes":0}\n');
    stream.on("data", (bytes: Buffer) => {
      if (!bytes.includes('"received"')) return;
      // Both frames come at once, as a network would bring them.
      link.carriers.alice.pause();
      stream.end('{"type":"received","bytes":1}\n');
      stream.on("finish", () => setTimeout(() => link.carriers.alice.resume(), 5));
    });
  };
  const pipe = new Pipe(link.alice.open(pipePurpose()));
  expect(await outcome(runPipe(inChunks(Buffer.from("x")), new Sink(), pipe))).toBe("confirmed");
});

describe("to a target of the peer", () => {
  async function piped(
    serve: (socket: Socket) => void,
    input: Input,
    output: Writable,
    rules = ["*"],
    lingerMs = 20,
  ) {
    const server = createServer({ allowHalfOpen: true }, serve);
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    const allow = new AllowList();
    for (const rule of rules) allow.add(rule);
    const link = new Linked();
    link.onStream = (stream, purpose) => void servePipe(stream, purpose, { allow, peer: "alice" });
    const target: TcpTarget = {
      kind: "tcp",
      host: "localhost",
      port: (server.address() as AddressInfo).port,
    };
    const pipe = new Pipe(link.alice.open(pipePurpose(target)));
    const said = await outcome(runPipe(input, output, pipe, { lingerMs }));
    link[Symbol.dispose]();
    server.close();
    return said;
  }

  test("an echo", async () => {
    await using _ = noSocketLeft();
    const bytes = randomBytes(randomFrom(5), 3_000_000);
    const output = new Sink();
    expect(await piped((socket) => void socket.pipe(socket), inChunks(bytes), output)).toBe("confirmed");
    expect(sha256(output.bytes)).toBe(sha256(bytes));
  });

  test("one that answers and hangs up first", async () => {
    await using _ = noSocketLeft();
    const output = new Sink();
    const said = piped((socket) => void socket.resume().end("bye"), inChunks(Buffer.from("hello")), output);
    expect(await said).toBe("confirmed");
    expect(output.bytes.toString()).toBe("bye");
  });

  test("one that hangs up ends it, though the input says nothing and does not end", async () => {
    await using _ = noSocketLeft();
    const output = new Sink();
    expect(await piped((socket) => void socket.resume().end("bye"), silence(), output)).toBe("confirmed");
    expect(output.bytes.toString()).toBe("bye");
  });

  test("one that only ends its half gets all of an input that goes on", async () => {
    await using _ = noSocketLeft();
    const bytes = randomBytes(randomFrom(6), 3_000_000);
    const got: Buffer[] = [];
    const serve = (socket: Socket) => void socket.on("data", (piece: Buffer) => got.push(piece)).end();
    expect(await piped(serve, inChunks(bytes), new Sink(), ["*"], 10_000)).toBe("confirmed");
    expect(sha256(Buffer.concat(got))).toBe(sha256(bytes));
  });

  test("one that resets has confirmed nothing", async () => {
    await using _ = noSocketLeft();
    const serve = (socket: Socket) => {
      socket.on("error", () => {});
      socket.on("end", () => socket.resetAndDestroy()).resume();
    };
    expect(await piped(serve, inChunks(Buffer.from("hello")), new Sink())).toContain("ECONNRESET");
  });

  test("one that is not allowed", async () => {
    await using _ = noSocketLeft();
    expect(await piped(() => {}, silence(), new Sink(), [])).toMatch(/localhost:\d+ is not allowed/);
  });
});

describe("a peer that does not keep to the protocol", () => {
  test.each([
    ["confirms what was not sent", '{"type":"received","bytes":5}\n'],
    ["ends with another count", '{"type":"chunk","bytes":2}\nhi{"type":"end","bytes":3}\n'],
    ["goes on after the end", '{"type":"end","bytes":0}\n{"type":"chunk","bytes":1}\nx'],
    ["ends twice", '{"type":"end","bytes":0}\n{"type":"end","bytes":0}\n'],
    ["sends no JSON", "hello\n"],
    ["sends a chunk of nothing", '{"type":"chunk","bytes":0}\n'],
    ["sends an absurd chunk", '{"type":"chunk","bytes":1e12}\n'],
    ["never ends its line", "x".repeat(40_000)],
    ["names a type that is none", '{"type":["end"]}\n'],
  ])("%s", async (_, bytes) => {
    using link = new Linked();
    const reset = new Promise<string>((resolve) => {
      link.onStream = (stream) => {
        stream.on("error", (error) => resolve(error.message));
        stream.resume().write(bytes);
      };
    });
    const pipe = new Pipe(link.alice.open(pipePurpose()));
    const failed = new Promise<string>((resolve) => pipe.on("error", (error) => resolve(error.message)));
    pipe.resume();
    expect(await failed).toContain("does not keep to the protocol");
    expect(await reset).toContain("the other side ended it");
  });

  test("confirms another count than was sent", async () => {
    using link = new Linked();
    link.onStream = (stream) => {
      stream.on("data", (bytes: Buffer) => {
        if (bytes.includes('"end"')) stream.end('{"type":"end","bytes":0}\n{"type":"received","bytes":2}\n');
      });
    };
    const pipe = new Pipe(link.alice.open(pipePurpose()));
    const said = outcome(runPipe(inChunks(Buffer.from("x")), new Sink(), pipe));
    expect(await said).toContain("received of 2 bytes is not what comes next");
  });

  test("ends without having confirmed", async () => {
    using link = new Linked();
    link.onStream = (stream) => void stream.resume().end();
    const pipe = new Pipe(link.alice.open(pipePurpose()));
    expect(await outcome(runPipe(inChunks(Buffer.from("x")), new Sink(), pipe))).toBe(
      "the peer ended before it had confirmed every byte",
    );
  });
});

test("messages and raw bytes, cut anywhere", () => {
  const wire = Buffer.from('{"type":"a","x":1}\n{"type":"chunk","bytes":4}\n{"\n}{"type":"b"}\n');
  for (let size = 1; size <= wire.length; size++) {
    const decoder = new MessageDecoder();
    const messages: Message[] = [];
    let raw = "";
    for (let at = 0; at < wire.length; at += size) {
      for (const part of decoder.push(wire.subarray(at, at + size))) {
        if (Buffer.isBuffer(part)) raw += part.toString();
        else messages.push(part);
      }
    }
    expect([messages, raw]).toEqual([[{ type: "a", x: 1 }, { type: "b" }], '{"\n}']);
    expect(decoder.isBetween).toBe(true);
  }
});

describe("real standard streams", () => {
  const folder = mkdtempSync(join(tmpdir(), "pipe-"));
  const spawn = (name: string) => {
    const report = join(folder, name);
    const program = Bun.spawn([process.execPath, `${import.meta.dir}/pipe-fixture.ts`, report], {
      stdio: ["pipe", "pipe", "ignore"],
    });
    const reported = async () => (await program.exited, Bun.file(report).json());
    return { program, reported };
  };

  test("bytes go through exactly, and the reader learns of the end", async () => {
    const { program, reported } = spawn("whole");
    const bytes = randomBytes(randomFrom(3), 5_000_000);
    program.stdin.write(bytes);
    program.stdin.end();
    const got = await new Response(program.stdout).bytes();
    expect(sha256(got)).toBe(sha256(bytes));
    expect(await reported()).toEqual({ reasons: ["confirmed", "confirmed"], sent: bytes.length });
  });

  test("a reader that goes away is noticed", async () => {
    const shell = `yes | ${process.execPath} ${import.meta.dir}/pipe-fixture.ts ${folder}/gone | head -c 100`;
    const head = Bun.spawn(["sh", "-c", shell], { stdio: ["ignore", "pipe", "ignore"] });
    expect((await new Response(head.stdout).text()).length).toBe(100);
    await head.exited;
    const reason = "whoever read the output has gone away (EPIPE)";
    const { reasons } = await Bun.file(join(folder, "gone")).json();
    expect(reasons).toEqual([`the other side ended it: ${reason}`, reason]);
    rmSync(folder, { recursive: true });
  });
});
