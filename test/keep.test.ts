/** Links that are kept up, between real programs: by --connect and by forwards, until something ends that. */
import { expect, setDefaultTimeout, test } from "bun:test";
import { Client, registration } from "./client-fixture.ts";
import { Driven, homeOf, link, met, startIntroducer } from "./driven-fixture.ts";
import { Pty } from "./pty-fixture.ts";
import { freePort } from "./sockets-fixture.ts";
import { testMs } from "./patience-fixture.ts";

const room = ["--room", "of the tests of keep"];
setDefaultTimeout(testMs);

/** Resolves once it has done all it was told before. */
async function isDone(one: Driven, said: string): Promise<void> {
  one.type(`echo ${said}`);
  await one.next("echo", ({ text }) => text === said);
}

/** Longer than the first pause before a link is sought again: there is nothing else to see of what does not come. */
const quietMs = 1_700;

test.concurrent("a send without a link fails at once, and the next line of the script is read", async () => {
  await using house = startIntroducer();
  await using alice = new Driven(house.port, "alice", ...room);
  await using bob = new Driven(house.port, "bob", ...room);
  await met(alice, bob);
  alice.type(`send bob ${import.meta.path}`, `send nobody ${import.meta.path}`, "list", "quit");
  expect((await alice.next("error")).message).toBe("not linked with bob; `connect bob` first");
  expect((await alice.next("error")).message).toContain("nobody here is called nobody");
  await alice.next("peers", ({ peers }) => peers.length === 1);
  expect(await alice.exited()).toBe(1);
});

test.concurrent("a link that the peer ends comes back, once, however many forwards want it", async () => {
  await using house = startIntroducer();
  await using alice = new Driven(house.port, "alice", ...room);
  await using bob = new Driven(house.port, "bob", ...room, "--stay");
  await met(alice, bob);
  const ports = [freePort(), freePort(), freePort()];
  alice.type(...ports.map((port) => `forward ${port}:bob:1`));
  for (let times = 0; times < 2; times++) {
    await Promise.all([alice, bob].map((one) => one.next("linked")));
    bob.type("disconnect alice");
    await alice.next("unlinked", ({ reason }) => reason === "peer-disconnected");
  }
  await alice.next("linked");
  expect([alice.count("linked"), alice.count("failed")]).toEqual([3, 0]);
});

test.concurrent("after the last unforward a link that the peer ends does not come back", async () => {
  await using house = startIntroducer();
  await using alice = new Driven(house.port, "alice", ...room);
  await using bob = new Driven(house.port, "bob", ...room);
  await met(alice, bob);
  const [first, second] = [freePort(), freePort()];
  alice.type(`forward ${first}:bob:1`, `forward ${second}:bob:1`);
  await Promise.all([alice, bob].map((one) => one.next("linked")));
  alice.type(`unforward ${first}`, `unforward ${second}`);
  await isDone(alice, "none is left");
  const before = alice.count("punching");
  bob.type("disconnect alice");
  await alice.next("unlinked", ({ reason }) => reason === "peer-disconnected");
  await Bun.sleep(quietMs);
  expect([alice.count("punching"), alice.count("linked")]).toEqual([before, 1]);
  await link(alice, bob); // by hand it can be had
});

/** Registered as bob, in the lobby; what it is told to punch it does not. */
async function idler(port: number): Promise<Client & { id: number; punches: number }> {
  const client = new Client(port);
  client.send(registration("bob"));
  const { id } = await client.next("registered");
  client.send({ type: "mapping", mapping: "endpoint-independent" });
  const punches = { get: () => client.types().filter((type) => type === "punch").length };
  return Object.defineProperty(Object.assign(client, { id, punches: 0 }), "punches", punches);
}

test.concurrent.each(["bob", "id"])(
  "disconnect, by %s, ends the seeking of a link while it punches",
  async (by) => {
    await using house = startIntroducer();
    using bob = await idler(house.port);
    await using alice = new Driven(house.port, "alice");
    await alice.registered;
    alice.type(`forward ${freePort()}:bob:1`);
    await bob.next("punch");
    alice.type(`disconnect ${by === "id" ? bob.id : by}`);
    await alice.next("failed", ({ reason }) => reason === "cancelled");
    const before = bob.punches;
    await Bun.sleep(quietMs);
    expect([bob.punches, alice.count("failed"), alice.count("error")]).toEqual([before, 1, 0]);
  },
);

test.concurrent("disconnect ends --connect at a prompt, while it punches", async () => {
  await using house = startIntroducer();
  using bob = await idler(house.port);
  const command = [process.execPath, "participant.ts", `127.0.0.1:${house.port}`, "--name", "alice"];
  await using alice = new Pty([...command, "--connect", "bob"], { XDG_STATE_HOME: homeOf("alice") });
  await bob.next("punch");
  await alice.shows("punching towards");
  await alice.answers("disconnect bob\r", "you cancelled it");
  const before = bob.punches;
  await Bun.sleep(quietMs);
  expect(bob.punches).toBe(before);
  await alice.answers("disconnect bob\r", "error: not linked with bob");
});

test.concurrent("disconnect ends the waiting for a peer that is not there", async () => {
  await using house = startIntroducer();
  await using alice = new Driven(house.port, "alice", ...room, "-L", `${freePort()}:bob:1`);
  await alice.registered;
  alice.type("disconnect bob");
  await isDone(alice, "it is not sought");
  await using bob = new Driven(house.port, "bob", ...room, "--stay");
  await met(alice, bob);
  await Bun.sleep(quietMs);
  expect([alice.count("punching"), alice.count("linked"), alice.count("error")]).toEqual([0, 0, 0]);
});
