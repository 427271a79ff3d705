/** Listeners that a peer lends, as `ssh -R` has them, between real programs and with real curl. */
import { expect, setDefaultTimeout } from "bun:test";
import { Driven, met, startIntroducer } from "../driven-fixture.ts";
import type { ForwardRow } from "../../native/uses/forwards.ts";
import { missing, testNeeding, unlessRequired } from "../needing-fixture.ts";
import { newRoomWords } from "../../native/secure/words.ts";
import { until } from "../native-fixture.ts";
import { client, curl, freePort, readAll, target } from "../sockets-fixture.ts";

/** Several programs on a busy machine, and what is asked again after up to 10 s. */
setDefaultTimeout(120_000);
const curlTest = testNeeding(unlessRequired(missing(["curl"], "Debian: curl")));

async function shown(who: Driven): Promise<ForwardRow[]> {
  who.type("forwards");
  return ((await who.next("forwards" as "said")) as unknown as { forwards: ForwardRow[] }).forwards;
}

function listens(port: number): boolean {
  try {
    Bun.listen({ hostname: "127.0.0.1", port, socket: { data() {} } }).stop(true);
    return false;
  } catch {
    return true;
  }
}

/** Somebody may listen for a moment longer. */
const isClosed = (port: number) => until("nobody listens", () => !listens(port));

curlTest("what the peer lends leads here; withdrawn it ends, and with the link, and comes back", async () => {
  const web = Bun.serve({
    hostname: "127.0.0.1",
    port: 0,
    fetch: async (request) => new Response(`${(await request.bytes()).length} bytes`),
  });
  await using house = startIntroducer();
  const room = ["--room", newRoomWords(), "--stay"];
  const [lent, other, third] = [freePort(), freePort(), freePort()];
  const listen = `127.0.0.1:${lent}`;
  const remote = ["-R", `${lent}:bob:${web.port}`, "-R", `${other}:bob:${web.port}`];
  await using alice = new Driven(house.port, "alice", ...room, ...remote);
  await using bob = new Driven(house.port, "bob", ...room, "--allow-listen", String(lent));
  await met(alice, bob);

  expect(await alice.next("listening")).toMatchObject({
    ...{ name: "bob", by: "peer", listen, target: `localhost:${web.port}` },
  });
  expect(await bob.next("listening")).toMatchObject({ name: "alice", by: "us", listen });
  const answers = await Promise.all([1, 2, 3].map(() => curl("--data", "abc", `http://${listen}/`)));
  expect(answers.map(({ text }) => text)).toEqual(["3 bytes", "3 bytes", "3 bytes"]);
  const big = await fetch(`http://${listen}/`, { method: "POST", body: Buffer.alloc(2_000_000) });
  expect(await big.text()).toBe("2000000 bytes");
  expect(await shown(alice)).toMatchObject([
    { listen: `${listen} at bob`, target: `localhost:${web.port}`, remote: "listening", total: 4 },
    { listen: `127.0.0.1:${other} at bob`, remote: expect.stringMatching(/asking|refused/) },
  ]);
  expect(await shown(bob)).toMatchObject([{ listen, peer: "alice", total: 4 }]);

  // The other port is not allowed, until it is; then what is taken is told, and had as soon as it is free.
  const about = { listen: `127.0.0.1:${other}`, why: "not-allowed" };
  expect(await alice.next("listen-refused")).toMatchObject({ ...about, name: "bob", by: "peer" });
  expect(await bob.next("listen-refused")).toMatchObject({ ...about, name: "alice", by: "us" });
  expect(listens(other)).toBe(false);
  const taken = Bun.listen({ hostname: "127.0.0.1", port: other, socket: { data() {} } });
  bob.type(`allow-listen ${other}`);
  const told = await alice.next("listen-refused", ({ why }) => why === "no-answer");
  expect(told.reason).toContain("a program listens there already");
  taken.stop(true);
  await alice.next("listening", ({ listen: at }) => at === `127.0.0.1:${other}`);
  expect((await curl(`http://127.0.0.1:${other}/`)).text).toBe("0 bytes");
  expect(alice.count("listen-refused")).toBe(2);
  alice.type(`forward -R ${other}:bob:1`);
  expect((await alice.next("error")).message).toBe(`127.0.0.1:${other} at bob is forwarded already`);

  // Withdrawn at either side, nobody listens, and what is open is cut off.
  await using held = await target(() => {});
  bob.type(`allow-listen ${third}`);
  alice.type(`forward -R ${third}:bob:${held.port}`);
  await alice.next("listening", ({ listen: at }) => at.endsWith(`:${third}`));
  const open = client(third);
  const ended = readAll(open);
  await until("it is through", () => held.open.size === 1);
  bob.type(`disallow-listen ${third}`);
  expect((await ended).error).toBe("ECONNRESET");
  const reason = `listening on 127.0.0.1:${third} is not allowed any more`;
  await alice.next("listen-refused", (event) => event.reason === reason);
  await isClosed(third);
  alice.type(`unforward -R ${other}:bob`, `unforward -R ${third}:bob`);
  await isClosed(other);
  expect((await shown(alice)).map(({ listen: at }) => at)).toEqual([`${listen} at bob`]);

  // It ends with the link, and comes back with it. That the peer quits is no refusal.
  const refusals = alice.count("listen-refused");
  bob.signal("SIGTERM");
  await bob.exited();
  await using next = new Driven(house.port, "bob", ...room, "--allow-listen", String(lent));
  await next.next("listening");
  expect(alice.count("listen-refused")).toBe(refusals);
  next.signal("SIGKILL");
  await next.exited();
  await isClosed(lent);
  await using again = new Driven(house.port, "bob", ...room, "--allow-listen", `${lent}-${lent + 1}`);
  await again.next("listening");
  expect((await curl(`http://${listen}/`)).text).toBe("0 bytes");
  alice.signal("SIGTERM");
  expect(await alice.exited()).toBe(0);
  await isClosed(lent);
  expect(await shown(again)).toEqual([]);
  await web.stop(true);
});
