/** Ports in a row, forwarded and allowed between real programs, with real curl. */
import { expect, setDefaultTimeout } from "bun:test";
import { Driven, met, startIntroducer } from "../driven-fixture.ts";
import type { ForwardRow } from "../../native/uses/forwards.ts";
import { missing, testNeeding, unlessRequired } from "../needing-fixture.ts";
import { testMs } from "../patience-fixture.ts";
import { newRoomWords } from "../../native/secure/words.ts";
import { curl, freePorts } from "../sockets-fixture.ts";

setDefaultTimeout(testMs);

const curlTest = testNeeding(unlessRequired(missing(["curl"], "Debian: curl")));

curlTest("all of a range are forwarded, or none; each leads to its own, and all go together", async () => {
  const [here, there] = [freePorts(4), freePorts(3)];
  const webs = [0, 1, 2].map((index) =>
    Bun.serve({ hostname: "127.0.0.1", port: there + index, fetch: () => new Response(`this is ${index}`) }),
  );
  const room = ["--room", newRoomWords(), "--stay"];
  await using house = startIntroducer();
  const range = `${here}-${here + 2}`;
  await using alice = new Driven(house.port, "alice", ...room, "-L", `${range}:bob:${there}-${there + 2}`);
  await using bob = new Driven(house.port, "bob", ...room, "--allow", `${there}-${there + 1}`);
  await met(alice, bob);
  const target = `localhost:${there}-${there + 2}`;
  expect(await alice.next("forwarding")).toMatchObject({ listen: `127.0.0.1:${range}`, target });
  const got = await Promise.all([0, 1, 2].map((index) => curl(`http://127.0.0.1:${here + index}/`)));
  expect(got.map(({ text }) => text)).toEqual(["this is 0", "this is 1", ""]);
  // The third is not allowed, so its connection is reset: while curl looks at it, sends, or reads, which is a race.
  expect(got.map(({ code }) => code).with(2, 0)).toEqual([0, 0, 0]);
  expect(got[2]!.code).toBeOneOf([7, 55, 56]);
  expect((await alice.next("forward-refused")).target).toBe(`localhost:${there + 2}`);

  alice.type("forwards");
  const [row, ...others] = (await shown(alice)).forwards;
  expect(others).toEqual([]);
  expect(row).toMatchObject({ listen: `127.0.0.1:${range}`, peer: "bob", target, total: 3 });

  // The last of them is taken: then nobody listens at the one before it, either.
  alice.type(`forward ${here + 3}:bob:80`, `unforward ${range}`);
  alice.type(`forward ${here + 2}-${here + 3}:bob:1-2`, "forwards");
  expect((await alice.next("error")).message).toEndWith(
    `a program listens there already; choose another port; so none of 127.0.0.1:${here + 2}-${here + 3} is forwarded`,
  );
  expect((await shown(alice)).forwards.map(({ listen }) => listen)).toEqual([`127.0.0.1:${here + 3}`]);
  // 7: connection refused.
  for (const port of [here, here + 1, here + 2])
    expect((await curl(`http://127.0.0.1:${port}/`)).code).toBe(7);
  await Promise.all(webs.map((web) => web.stop(true)));
});

/** The next table that was asked for. */
async function shown(who: Driven): Promise<{ forwards: ForwardRow[] }> {
  return (await who.next("forwards" as "said")) as unknown as { forwards: ForwardRow[] };
}
