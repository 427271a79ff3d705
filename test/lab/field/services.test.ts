/** What runs for days: an introducer that is upgraded, or moves, under those who use it; and a day, made short. */
import { expect } from "bun:test";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Endpoint } from "../../../protocol.ts";
import { homeOf } from "../../driven-fixture.ts";
import { until } from "../../native-fixture.ts";
import { client, freePort, target } from "../../sockets-fixture.ts";
import type { Host } from "../lab.ts";
import { linkedBoth, talk } from "../meeting.ts";
import { type Place, root, thisHost } from "../people.ts";
import { apart, owdMs } from "../sides.ts";
import { longLabScenario, longScenario } from "./field-fixture.ts";
import {
  eventually,
  printedLine,
  randomFile,
  room,
  seconds,
  sha256OfFile,
  Village,
} from "./village-fixture.ts";

const random = { mapping: "random" } as const;
const backMs = 30_000;

longLabScenario()(
  "an introducer that is upgraded while it relays a download: that goes on",
  async () => {
    await using village = await Village.create(apart(random, random));
    const { hosts, folder, people, lab } = village;
    const place = await lab.host("introducer", { owdMs });
    const options = ["--relay-rate", "2M"];
    const introducer = await people.introducer(place, 7000, undefined, options);
    const env = { INTRODUCER: introducer.endpoint };
    await randomFile(join(folder, "file"), 30_000_000);
    const startedAt = performance.now();
    const sender = village.participant(hosts.alice, "alice", ["send", "file"], env);
    const line = await printedLine(sender.stderr);
    const receiver = village.participant(hosts.bob, "bob", [...line, "got"], env);
    await introducer.next("relaying", () => true, backMs);
    await until("some of it is there", () => readdirSync(folder).includes("got"), backMs);
    introducer.process.kill("SIGTERM");
    const isStarted = () =>
      people.introducer(place, 7000, undefined, options).then(
        () => true,
        () => false,
      );
    await eventually("it has been started again", isStarted); // as a service manager does
    expect(await Promise.all([sender.exited, receiver.exited])).toEqual([0, 0]);
    expect(await sha256OfFile(join(folder, "got/file"))).toBe(await sha256OfFile(join(folder, "file")));
    return `30 MB in ${seconds(startedAt)}, SHA-256 the same`;
  },
  180_000,
);

/** As that host, with a file of its own as /etc/hosts. */
const withHosts = (host: Host, file: string): Place => ({
  name: host.name,
  address: host.address,
  spawn: (command, options) => {
    const script = `mount --bind ${file} /etc/hosts; exec "$@"`;
    return host.spawn(["unshare", "-m", "sh", "-c", script, "sh", ...command], options);
  },
});

longLabScenario()(
  "an introducer whose name leads to another host from now on: all come there, and links go on",
  async () => {
    await using village = await Village.create();
    const { hosts, folder, people, lab } = village;
    const names = join(folder, "hosts");
    const [one, other] = [await lab.host("one", { owdMs }), await lab.host("other", { owdMs })];
    const leadsTo = (host: Host) => writeFileSync(names, `${host.address} meeting.example\n`);
    leadsTo(one);
    const first = await people.introducer(one);
    const named = { endpoint: "meeting.example:7000" as Endpoint };
    const options = [...room, "--stay"];
    const [alice, bob] = await Promise.all([
      people.participant("alice", withHosts(hosts.alice, names), named, options),
      people.participant("bob", withHosts(hosts.bob, names), named, options),
    ]);
    await alice.sees(bob);
    alice.type("connect bob");
    await linkedBoth(alice, bob);
    leadsTo(other);
    await people.introducer(other);
    const movedAt = performance.now();
    await first.kill("SIGKILL");
    await Promise.all([alice, bob].map((person) => person.next("registered", () => true, backMs)));
    const took = seconds(movedAt);
    await talk(alice, bob);
    expect([alice, bob].map((person) => person.all("unlinked"))).toEqual([[], []]);
    return `both were there after ${took}; the link stayed`;
  },
);

/** How much of a day, and how much faster than it is: FIELD_HOURS=24 for all of it. */
const day = { hours: Number(process.env.FIELD_HOURS ?? 6), speed: Number(process.env.FIELD_SPEED ?? 100) };

longScenario(
  `${day.hours} hours of an introducer and a forward, ${day.speed} times as fast: nothing grows, and little is told`,
  async () => {
    await using echo = await target((socket) => void socket.pipe(socket));
    const [port, at] = [freePort(), freePort()];
    const targeted = `127.0.0.1:${echo.port}`;
    const [introducer, person] = ["introducer.ts", "participant.ts"];
    const named = (name: string) => [`127.0.0.1:${at}`, "--name", name, ...room];
    const all = [
      new Fast("introducer", introducer, [String(at), "--probe-ports", "none"]),
      new Fast("bob", person, [...named("bob"), "--allow", targeted]),
      new Fast("alice", person, [...named("alice"), "-L", `${port}:bob:${targeted}`]),
    ];
    try {
      await echoed(port);
      const totalMs = (day.hours * 3_600_000) / day.speed;
      await Bun.sleep(totalMs / 6);
      const before = all.map((one) => one.usage);
      await Bun.sleep((totalMs * 5) / 6);
      const after = all.map((one) => one.usage);
      await echoed(port);
      const grown = (what: keyof (typeof before)[0]) => after.map((one, n) => one[what] - before[n]![what]);
      expect(Math.max(...grown("descriptors"))).toBeLessThanOrEqual(5);
      expect(Math.max(...grown("rssMB"))).toBeLessThan(40);
      const lines = grown("lines").reduce((sum, count) => sum + count);
      expect(lines).toBeLessThan(60 * day.hours);
      const signed = grown("rssMB").map((mb) => `${mb > 0 ? "+" : ""}${mb}`);
      return `works at the end; ${lines} lines told after the first sixth; memory ${signed.join(", ")} MB`;
    } finally {
      for (const one of all) one.process.kill("SIGKILL");
      await Promise.all(all.map((one) => one.process.exited));
    }
  },
  (day.hours * 3_600_000) / day.speed + 120_000,
);

/** A program whose time runs faster. */
class Fast {
  readonly process: Bun.Subprocess<"ignore", "ignore", "pipe">;
  #told = "";

  constructor(name: string, program: string, args: string[]) {
    const command = ["--preload", join(import.meta.dir, "faster-fixture.ts"), join(root, program), ...args];
    const env = { ...process.env, FIELD_SPEED: String(day.speed), XDG_STATE_HOME: homeOf(name) };
    const options = { env, stdin: "ignore", stdout: "ignore", stderr: "pipe" } as const;
    const running = thisHost.spawn([process.execPath, ...command], options);
    this.process = running;
    void (async () => {
      for await (const text of running.stderr.pipeThrough(new TextDecoderStream())) this.#told += text;
    })();
  }

  get usage() {
    const place = `/proc/${this.process.pid}`;
    const rss = Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`${place}/status`, "utf8"))?.[1]);
    return {
      descriptors: readdirSync(`${place}/fd`).length,
      rssMB: Math.round(rss / 1024),
      lines: this.#told.split("\n").length,
    };
  }
}

/** Resolves once what is sent to that port comes back. */
async function echoed(port: number): Promise<void> {
  for (;;) {
    const socket = client(port);
    const { promise, resolve } = Promise.withResolvers<boolean>();
    socket.on("data", () => resolve(true));
    socket.on("error", () => resolve(false)).on("close", () => resolve(false));
    socket.write("hello");
    const isEchoed = await Promise.race([promise, Bun.sleep(10_000)]);
    socket.destroy();
    if (isEchoed) return;
    await Bun.sleep(100);
  }
}
