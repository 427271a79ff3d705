/** Forwards between two sessions over carriers in memory, with real clients and real targets on loopback. */
import { describe, expect, setDefaultTimeout, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Forward } from "../../native/uses/forward.ts";
import { Names } from "../../native/uses/names.ts";
import { serveForward, type Served, type ServeOptions } from "../../native/uses/serve.ts";
import { AllowList } from "../../native/uses/allow-list.ts";
import type { StreamTarget } from "../../native/uses/target.ts";
import { noSocketLeft, until } from "../native-fixture.ts";
import { client, readAll, sha256, target } from "../sockets-fixture.ts";
import { Linked } from "../session/linked-fixture.ts";
import { randomBytes, randomFrom } from "../session/memory-fixture.ts";
import { testMs } from "../patience-fixture.ts";

setDefaultTimeout(testMs);

interface Forwarded extends Disposable {
  link: Linked;
  forward: Forward;
  served: Served[];
  refused: string[];
}

/** alice listens, bob serves. */
function forwarding(
  port: number,
  {
    rules = ["*"],
    host = "localhost",
    to = { kind: "tcp", host, port },
    ...options
  }: Partial<ServeOptions> & { rules?: string[]; host?: string; to?: StreamTarget } = {},
): Forwarded {
  const link = new Linked();
  const allow = new AllowList();
  for (const rule of rules) allow.add(rule);
  const served: Served[] = [];
  const refused: string[] = [];
  link.onStream = async (stream, purpose) =>
    served.push(await serveForward(stream, purpose, { allow, peer: "alice", ...options }));
  const forward = new Forward({
    listen: { kind: "tcp" as const, bind: "127.0.0.1", port: 0 },
    target: to,
    link: async () => link.alice,
    onRefused: (_, reason) => refused.push(reason),
  });
  return {
    ...{ link, forward, served, refused },
    [Symbol.dispose]() {
      forward.close();
      link[Symbol.dispose]();
    },
  };
}

describe("bytes", () => {
  test("arrive both ways, and a half-close leaves the other half open", async () => {
    await using _ = noSocketLeft();
    const answer = randomBytes(randomFrom(2), 3_000_000);
    const heard: string[] = [];
    await using server = await target((socket) => {
      void readAll(socket).then(({ bytes }) => {
        heard.push(sha256(bytes));
        socket.end(answer);
      });
    });
    using forwarded = forwarding(server.port);
    const question = randomBytes(randomFrom(1), 2_000_000);
    const socket = client(forwarded.forward.port);
    socket.end(question);
    const { bytes, error } = await readAll(socket);
    expect({ error, heard, answer: sha256(bytes) }).toEqual({
      error: undefined,
      heard: [sha256(question)],
      answer: sha256(answer),
    });
    const { forward } = forwarded;
    await until("the connection is over", () => forward.open === 0);
    expect([forward.total, forward.bytesOut, forward.bytesIn]).toEqual([1, question.length, answer.length]);
    await until(
      "no stream is left",
      () => forwarded.link.alice.streamCount + forwarded.link.bob.streamCount === 0,
    );
  });

  test("the target may be the first to end its half", async () => {
    await using _ = noSocketLeft();
    let heard: Buffer = Buffer.alloc(0);
    await using server = await target((socket) => {
      socket.end("farewell");
      void readAll(socket).then(({ bytes }) => (heard = bytes));
    });
    using forwarded = forwarding(server.port);
    const socket = client(forwarded.forward.port);
    expect((await readAll(socket)).bytes.toString()).toBe("farewell");
    const late = randomBytes(randomFrom(3), 1_000_000);
    socket.end(late);
    await until("the target has heard all", () => heard.length > 0);
    expect(sha256(heard)).toBe(sha256(late));
    await until("it is over", () => forwarded.forward.open === 0);
  });

  test("a target at a path that answers and closes at once has answered, and its client has an end", async () => {
    await using _ = noSocketLeft();
    const folder = mkdtempSync(join(tmpdir(), "forward-"));
    using _folder = { [Symbol.dispose]: () => rmSync(folder, { recursive: true }) };
    const path = join(folder, "socket");
    using _server = Bun.listen({ unix: path, socket: { data() {}, open: (one) => void one.end("welcome") } });
    using forwarded = forwarding(0, { rules: [path], to: { kind: "unix", path } });
    const socket = client(forwarded.forward.port);
    const { bytes, error } = await readAll(socket);
    expect([bytes.toString(), error]).toEqual(["welcome", undefined]);
    socket.end();
    await until("it is over at both ends", () => forwarded.forward.open === 0);
    expect(forwarded.served).toEqual([{ target: path }]);
  });

  test("none is lost while carriers break", async () => {
    await using _ = noSocketLeft();
    await using server = await target((socket) => void socket.pipe(socket));
    using forwarded = forwarding(server.port);
    const echoes = Promise.all(
      Array.from({ length: 8 }, async (_, index) => {
        const bytes = randomBytes(randomFrom(index), 1_500_000 + index);
        const socket = client(forwarded.forward.port);
        socket.end(bytes);
        expect(sha256((await readAll(socket)).bytes)).toBe(sha256(bytes));
      }),
    );
    expect(await forwarded.link.shaken(echoes)).toBeGreaterThan(3);
    await echoes;
    await until("all is over", () => forwarded.forward.open === 0);
  });

  test("a client that does not read stops only itself", async () => {
    await using _ = noSocketLeft();
    const written: number[] = [];
    await using server = await target((socket) => {
      socket.write(Buffer.alloc(64 * 1024 * 1024), () => written.push(1));
      socket.on("data", (chunk) => socket.write(chunk));
    });
    using forwarded = forwarding(server.port);
    const stalled = client(forwarded.forward.port);
    stalled.pause();
    await until("the target has been connected to", () => server.open.size === 1);
    const other = client(forwarded.forward.port);
    let received = 0;
    other.on("data", (chunk) => (received += chunk.length));
    await until("the other has all of its 64 MiB", () => received === 64 * 1024 * 1024);
    expect([written.length, forwarded.forward.open]).toEqual([1, 2]);
    stalled.resetAndDestroy();
    other.resetAndDestroy();
    await until("both are over", () => forwarded.forward.open === 0 && server.open.size === 0);
  });
});

test("a target that does not read stops its client", async () => {
  await using _ = noSocketLeft();
  await using server = await target((socket) => void socket.pause());
  using forwarded = forwarding(server.port);
  const { forward } = forwarded;
  const socket = client(forward.port);
  socket.write(Buffer.alloc(256 * 1024 * 1024));
  let [before, quiet] = [0, 0];
  await until("no more is taken", () => {
    quiet = forward.bytesOut === before && before > 0 ? quiet + 1 : 0;
    before = forward.bytesOut;
    return quiet > 50;
  });
  expect(forward.bytesOut).toBeLessThan(32 * 1024 * 1024);
  socket.resetAndDestroy();
  await until("it is over", () => forward.open === 0);
});

describe("resets", () => {
  test("a client's reaches the target", async () => {
    await using _ = noSocketLeft();
    const errors: string[] = [];
    await using server = await target((socket) => {
      socket.on("error", (error: NodeJS.ErrnoException) => errors.push(error.code ?? ""));
      socket.resume();
    });
    using forwarded = forwarding(server.port);
    const socket = client(forwarded.forward.port);
    socket.write("x");
    await until("the target has been connected to", () => server.open.size === 1);
    socket.resetAndDestroy();
    await until("the target is reset", () => server.open.size === 0);
    expect(errors).toEqual(["ECONNRESET"]);
  });

  test("a target's reaches the client, and is no refusal", async () => {
    await using _ = noSocketLeft();
    await using server = await target((socket) => void socket.on("data", () => socket.resetAndDestroy()));
    using forwarded = forwarding(server.port);
    const socket = client(forwarded.forward.port);
    socket.write("x");
    expect((await readAll(socket)).error).toBe("ECONNRESET");
    expect(forwarded.refused).toEqual([]);
  });

  test("the end of the link resets both", async () => {
    await using _ = noSocketLeft();
    const errors: string[] = [];
    await using server = await target((socket) => {
      socket.on("error", (error: NodeJS.ErrnoException) => errors.push(error.code ?? ""));
      socket.resume();
    });
    using forwarded = forwarding(server.port);
    const socket = client(forwarded.forward.port);
    await until("the target has been connected to", () => server.open.size === 1);
    forwarded.link.alice.abandon("gone");
    expect((await readAll(socket)).error).toBe("ECONNRESET");
    forwarded.link.bob.abandon("gone");
    await until("the target is reset", () => server.open.size === 0);
    expect(errors).toEqual(["ECONNRESET"]);
  });
});

describe("refusals", () => {
  /** What the client got, and what the serving side was told; the other side the same, or what is `told`. */
  async function refusal(
    forwarded: Forwarded,
    told?: string,
  ): Promise<[error: string | undefined, reasons: string[]]> {
    const { error } = await readAll(client(forwarded.forward.port));
    await until("both sides know", () => forwarded.refused.length === 1 && forwarded.served.length === 1);
    expect(forwarded.refused[0]).toEndWith(told ?? forwarded.served[0]!.refused!.reason);
    return [error, forwarded.served.map(({ refused }) => refused!.reason)];
  }

  /** A name server that counts what it is asked. */
  function nameServer(...answers: string[][]): { names: Names; asked: string[] } {
    const asked: string[] = [];
    const names = new Names(async (name) => (asked.push(name), answers.shift() ?? []));
    return { names, asked };
  }

  test("what is not allowed is neither looked up nor dialled", async () => {
    await using _ = noSocketLeft();
    let connections = 0;
    await using server = await target(() => connections++);
    const { names, asked } = nameServer(["127.0.0.1"]);
    using forwarded = forwarding(server.port, { rules: ["other.example:*"], host: "sly.example", names });
    expect(await refusal(forwarded)).toEqual(["ECONNRESET", [`sly.example:${server.port} is not allowed`]]);
    expect([connections, asked]).toEqual([0, []]);
  });

  test.each([["127.0.0.0/8:80"], ["10.0.0.0/8:80"], ["80"]])(
    "a name that no rule names is not looked up for %s",
    async (rule) => {
      await using _ = noSocketLeft();
      const { names, asked } = nameServer(["127.0.0.1"]);
      using forwarded = forwarding(80, { rules: [rule], host: "sly.example", names });
      expect(await refusal(forwarded)).toEqual(["ECONNRESET", ["sly.example:80 is not allowed"]]);
      expect(asked).toEqual([]);
    },
  );

  test.each(["127.0.0.1", "::1", "169.254.169.254", "fe80::1", "0.0.0.0", "::", "::ffff:127.0.0.1"])(
    "a name that is allowed, but leads to %s, of which only our user is told",
    async (address) => {
      await using _ = noSocketLeft();
      const { names } = nameServer([address]);
      using forwarded = forwarding(80, { rules: ["sly.example:80"], host: "sly.example", names });
      const [error, [reason]] = await refusal(forwarded, "sly.example:80 is not allowed");
      expect(error).toBe("ECONNRESET");
      const shown = address.replace("::ffff:", "");
      expect(reason).toStartWith(`sly.example:80 is not allowed at ${shown} (\`--allow `);
    },
  );

  test("a name is looked up once, and what was checked is dialled", async () => {
    await using _ = noSocketLeft();
    await using server = await target((socket) => void socket.end("right"));
    // A name server that first says what is allowed, then what is not.
    const { names, asked } = nameServer(["127.0.0.1"], ["127.0.0.9"]);
    const rules = ["sly.example:*", "127.0.0.1:*"];
    using forwarded = forwarding(server.port, { rules, host: "sly.example", names });
    for (const _again of [1, 2, 3]) {
      const socket = client(forwarded.forward.port);
      expect((await readAll(socket)).bytes.toString()).toBe("right");
      socket.end();
    }
    expect(asked).toEqual(["sly.example"]);
    await until("it is over", () => forwarded.forward.open === 0);
  });

  test("nobody listens there", async () => {
    await using _ = noSocketLeft();
    let port: number;
    {
      await using gone = await target(() => {});
      port = gone.port;
    }
    using forwarded = forwarding(port);
    const told = `localhost:${port}: nothing listens there (ECONNREFUSED)`;
    expect(await refusal(forwarded, told)).toEqual([
      "ECONNRESET",
      [`127.0.0.1:${port}: nothing listens there (ECONNREFUSED)`],
    ]);
  });

  test("only at the second of its addresses", async () => {
    await using _ = noSocketLeft();
    await using server = await target((socket) => void socket.end("right"));
    const { names } = nameServer(["127.0.0.9", "127.0.0.1"]);
    const rules = ["two.example:*", "127.0.0.0/8:*"];
    using forwarded = forwarding(server.port, { rules, host: "two.example", names });
    const socket = client(forwarded.forward.port);
    expect((await readAll(socket)).bytes.toString()).toBe("right");
    socket.end();
    await until("it is over", () => forwarded.forward.open === 0);
  });

  test("no such name", async () => {
    await using _ = noSocketLeft();
    const names = new Names(() => Promise.reject(Object.assign(new Error("no"), { code: "ENOTFOUND" })));
    using forwarded = forwarding(80, { rules: ["*:*"], host: "nowhere.example", names });
    const reason = "nowhere.example can't be resolved (ENOTFOUND)";
    expect(await refusal(forwarded)).toEqual(["ECONNRESET", [reason]]);
  });

  test.each([{}, { host: "localhost" }, { host: "../x", port: 1 }, { host: "localhost", port: "22" }])(
    "a purpose made by hand: %j",
    async (purpose) => {
      using link = new Linked();
      const served: Served[] = [];
      const allow = new AllowList();
      allow.add("*:*");
      link.onStream = async (stream, wanted) =>
        served.push(await serveForward(stream, wanted, { allow, peer: "alice" }));
      const errors: string[] = [];
      link.alice.open({ use: "forward", ...purpose }).on("error", (error) => errors.push(error.message));
      await until("it is refused", () => errors.length === 1);
      expect(served[0]!.refused!.why).toBe("not-allowed");
      expect(served[0]!.refused!.reason).toContain("must be");
      expect(errors[0]).toContain(served[0]!.refused!.reason);
    },
  );
});

describe("waiting for the link", () => {
  test("a connection waits, with all that it said", async () => {
    await using _ = noSocketLeft();
    await using server = await target((socket) => void socket.pipe(socket));
    using link = new Linked();
    const allow = new AllowList();
    allow.add("*");
    link.onStream = (stream, purpose) => void serveForward(stream, purpose, { allow, peer: "alice" });
    const { promise, resolve } = Promise.withResolvers<Linked>();
    const options = {
      listen: { kind: "tcp" as const, bind: "127.0.0.1", port: 0 },
      target: { kind: "tcp" as const, host: "localhost", port: server.port },
    };
    const forward = new Forward({ ...options, link: async () => (await promise).alice });
    const said = randomBytes(randomFrom(9), 700_000);
    const socket = client(forward.port);
    socket.end(said);
    await until("it is there", () => forward.open === 1);
    resolve(link);
    expect(sha256((await readAll(socket)).bytes)).toBe(sha256(said));
    await until("it is over", () => forward.open === 0);
    forward.close();
  });

  test("whoever leaves meanwhile is forgotten", async () => {
    await using _ = noSocketLeft();
    using link = new Linked();
    let opened = 0;
    link.onStream = () => opened++;
    const { promise, resolve } = Promise.withResolvers<Linked>();
    const options = {
      listen: { kind: "tcp" as const, bind: "127.0.0.1", port: 0 },
      target: { kind: "tcp" as const, host: "localhost", port: 80 },
    };
    const forward = new Forward({ ...options, link: async () => (await promise).alice });
    const socket = client(forward.port);
    await until("it is there", () => forward.open === 1);
    socket.resetAndDestroy();
    await until("it is gone", () => forward.open === 0);
    resolve(link);
    const later = client(forward.port);
    await until("one stream is opened, for the one that stayed", () => opened === 1);
    later.resetAndDestroy();
    forward.close();
    expect([opened, forward.total]).toEqual([1, 2]);
  });

  test("not for ever", async () => {
    await using _ = noSocketLeft();
    const refused: string[] = [];
    const forward = new Forward({
      listen: { kind: "tcp" as const, bind: "127.0.0.1", port: 0 },
      target: { kind: "tcp" as const, host: "localhost", port: 80 },
      link: () => new Promise(() => {}),
      onRefused: (_, reason, why) => refused.push(`${why}: ${reason}`),
      patienceMs: 20,
    });
    expect((await readAll(client(forward.port))).error).toBe("ECONNRESET");
    expect([forward.open, refused]).toEqual([0, ["no-link: none came within 0.02 s"]]);
    forward.close();
  });

  test("a port that is taken is said at once", async () => {
    await using server = await target(() => {});
    const listen = { kind: "tcp" as const, bind: "127.0.0.1", port: server.port };
    const link = () => Promise.reject(new Error("none"));
    expect(
      () => new Forward({ listen, target: { kind: "tcp" as const, host: "localhost", port: 80 }, link }),
    ).toThrow("a program listens there already; choose another port");
  });
});

test("a thousand connections at once", async () => {
  await using _ = noSocketLeft();
  await using server = await target((socket) => void socket.pipe(socket));
  using forwarded = forwarding(server.port);
  const sockets = Array.from({ length: 1000 }, () => client(forwarded.forward.port));
  for (const [index, socket] of sockets.entries()) socket.write(`number ${index}`);
  const heard = await Promise.all(
    sockets.map(
      (socket) => new Promise<string>((resolve) => socket.once("data", (one) => resolve(one.toString()))),
    ),
  );
  expect(heard).toEqual(sockets.map((_, index) => `number ${index}`));
  expect(forwarded.forward.open).toBe(1000);
  for (const socket of sockets) socket.end();
  await Promise.all(sockets.map(readAll));
  await until("all are over", () => forwarded.forward.open === 0);
  expect(forwarded.forward.total).toBe(1000);
});
