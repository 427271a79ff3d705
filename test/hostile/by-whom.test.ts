/**
 * By whom: what a room member who takes another's name must not reach. Every one here knows the words, and runs the real
 * program; which certificate somebody has is in his own folder.
 */
import { expect, setDefaultTimeout, test } from "bun:test";
import { Driven, startIntroducer } from "../driven-fixture.ts";
import { testMs } from "../patience-fixture.ts";
import { client, freePort, readAll, target } from "../sockets-fixture.ts";

setDefaultTimeout(testMs);
const room = ["--room", "the words that all of them have"];

/** What comes from the forward's port: all of it, or how it was cut off. */
async function got(one: Driven & { port: number }): Promise<string> {
  if (one.count("forwarding") === 0) await one.next("forwarding");
  const { bytes, error } = await readAll(client(one.port));
  return error ?? bytes.toString();
}

async function fingerprintOf(one: Driven): Promise<string> {
  one.type("whoami");
  return ((await one.next("whoami" as never)) as { fingerprint: string }).fingerprint;
}

test("with --remember a name is whose certificate came first: nobody else reaches by it, and its owner by any", async () => {
  await using house = startIntroducer();
  await using server = await target((socket) => void socket.end("served"));
  const start = (home: string, ...options: string[]) => new Driven(house.port, home, ...room, ...options);
  const reaching = (home: string, ...options: string[]) => {
    const port = freePort();
    return Object.assign(start(home, "-L", `${port}:bob:${server.port}`, ...options), { port });
  };
  await using bob = start("bob", "--allow", `${server.port}@alice`, "--remember");
  await bob.registered;
  const alice = reaching("alice");
  await using carol = reaching("carol");
  const fingerprint = await fingerprintOf(alice);
  expect(await got(alice)).toBe("served");
  expect(await got(carol)).toBe("ECONNRESET");
  expect(await bob.next("forward-refused")).toMatchObject({ name: "carol", why: "not-allowed", by: "us" });
  alice.signal("SIGTERM");
  await alice.exited();
  // Another member is called alice before she comes back.
  await using mallory = reaching("mallory", "--name", "alice");
  expect((await mallory.registered).name).toBe("alice");
  const { message } = await bob.next("warning");
  expect(message).toContain("alice is not let in: its certificate is another one than was seen first");
  expect(message).toContain(`, and not SHA256:${fingerprint}; `);
  // She has the name, and alice is called otherwise; but it is still hers.
  await using back = reaching("alice");
  expect((await back.registered).name).toBe("alice-2");
  expect(await got(back)).toBe("served");
  bob.type("list");
  const { peers } = await bob.next("peers", ({ peers }) => peers.some(({ name }) => name === "alice-2"));
  expect(peers.map(({ name, state }) => [name, state])).toContainEqual(["alice", "untrusted"]);
  bob.type("forget alice", "list");
  const isBelieved = ({ name, state }: { name: string; state: string }) =>
    name === "alice" && state !== "untrusted";
  await bob.next("peers", ({ peers }) => peers.some(isBelieved));
  bob.type("forget nobody");
  expect((await bob.next("error")).message).toBe("no certificate is remembered for nobody in this room");
});

test("without it a name is a claim, as is said at the start; a certificate is none, and works by any name", async () => {
  await using house = startIntroducer();
  await using server = await target((socket) => void socket.end("served"));
  const start = (home: string, ...options: string[]) => new Driven(house.port, home, ...room, ...options);
  const one = start("ann");
  const fingerprint = await fingerprintOf(one);
  one.signal("SIGTERM");
  await one.exited();
  await using bob = start("bob", "--allow", `${server.port}@SHA256:${fingerprint}`, "--allow", "1@alice");
  expect((await bob.next("warning")).message).toBe(
    "whoever has the room's words can call itself alice, and then reach 1: with --remember it must have the certificate of the first alice, with 1@SHA256:… that one (`whoami` there)",
  );
  const reaching = (home: string, name: string) => {
    const port = freePort();
    return Object.assign(start(home, "--name", name, "-L", `${port}:bob:${server.port}`), { port });
  };
  await using ann = reaching("ann", "somebody");
  await using eve = reaching("eve", "ann");
  expect([await got(ann), await got(eve)]).toEqual(["served", "ECONNRESET"]);
});
