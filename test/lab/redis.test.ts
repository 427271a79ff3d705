/**
 * Two introducers that share a Redis, and two participants behind NATs who are given one of them each: every way that links
 * them at one introducer does so at two.
 */
import { expect, setDefaultTimeout } from "bun:test";
import { noRedis, RedisServer } from "../introducer/redis-fixture.ts";
import { Lab, labTestNeeding } from "./lab.ts";
import { disconnect, expectRoute, gather, mapped, type Expected } from "./meeting.ts";
import { People } from "./people.ts";
import { MiniUpnpd, routerTest } from "./router.ts";
import { apart, behind, between, owdMs, type Layout } from "./sides.ts";
import { storm } from "./storm.ts";
import { testMs } from "../patience-fixture.ts";

/** Some wait for a place among the labs. */
setDefaultTimeout(3 * testMs);
const stormSeconds = 8;
const sharedTest = labTestNeeding(noRedis);

/** The introducers, and the Redis between them. */
async function share(lab: Lab, people: People) {
  const redis = await RedisServer.start(await lab.host("redis", { owdMs: 1 }));
  const hosts = [await lab.host("here", { owdMs }), await lab.host("there", { owdMs })];
  const options = ["--redis", redis.url];
  const [here, there] = await Promise.all(
    hosts.map((host) => people.introducer(host, 7000, undefined, options)),
  );
  await Promise.all([here!.next("shared"), there!.next("shared")]);
  return { here: here!, there: there!, [Symbol.asyncDispose]: () => redis[Symbol.asyncDispose]() };
}

const [kept, sequential, random] = [
  behind({}),
  behind({ mapping: "sequential" }),
  behind({ mapping: "random" }),
];
const reset = behind({ unsolicited: "reset" });

const rows: [where: string, layout: Layout, expected: Expected, options: string[]][] = [
  ["kept ↔ kept", apart(), "public", ["--direct"]],
  ["kept, RST ↔ kept, ICMP", between(reset, behind({ unsolicited: "icmp" })), "public/listen", ["--direct"]],
  ["sequential ↔ kept", between(sequential, kept), "predicted/listen", ["--direct"]],
  ["sequential ↔ sequential", between(sequential, sequential), "predicted/listen", ["--direct"]],
  ["random ↔ kept", between(random, kept), "birthday/listen", ["--direct"]],
  ["random ↔ sequential", between(random, sequential), "relay", []],
];

sharedTest.concurrent.each(rows)(
  "%s at two introducers, either side asking",
  async (_, layout, expected, options) => {
    await using lab = await Lab.create();
    await using people = new People();
    await using shared = await share(lab, people);
    const { here, there } = shared;
    const meeting = await gather(lab, people, await layout(lab), here, options, there);
    const { alice, bob } = meeting;
    for (const asker of ["alice", "bob"] as const) {
      await expectRoute(meeting, asker, expected, 6);
      await disconnect(alice, bob);
    }
  },
);

routerTest.concurrent(
  "random ↔ random at two introducers, where one's router opens a port, either side asking",
  async () => {
    await using lab = await Lab.create();
    await using people = new People();
    await using shared = await share(lab, people);
    const nat = await lab.nat("natA", { owdMs, mapping: "random" });
    const hosts = { alice: await lab.host("alice", { behind: nat }), bob: await random(lab, "bob") };
    await using _router = await MiniUpnpd.start(lab, nat, ["pcp"]);
    const { here, there } = shared;
    const meeting = await gather(lab, people, hosts, here, ["--direct"], there);
    const { alice, bob } = meeting;
    await mapped(meeting);
    for (const asker of ["alice", "bob"] as const) {
      await expectRoute(meeting, asker, "mapped/listen", 6);
      await disconnect(alice, bob);
    }
  },
);

sharedTest.concurrent(
  `${stormSeconds} s of introducers and Redis being killed and stopped: links live, nobody is lost, all see the same`,
  async () => {
    const seed = crypto.getRandomValues(new Uint32Array(1))[0]!;
    await using lab = await Lab.create({ isIdle: true });
    await using people = new People();
    const story: string[] = [];
    const { problems, connects } = await storm(lab, people, stormSeconds, seed, (line) => story.push(line));
    if (problems.length > 0) console.log(`seed ${seed}\n${story.join("\n")}`);
    expect(problems).toEqual([]);
    expect(connects).toBeGreaterThan(0);
  },
  6 * testMs,
);
