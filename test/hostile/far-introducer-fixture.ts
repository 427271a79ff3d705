/**
 * An introducer out in the Internet (203.0.113.1) that names, in each of its messages, what is in our network or on our
 * host, and the participant's real program. All of it in a network namespace of its own, in which these addresses are.
 * Prints how often each bait was visited, as JSON.
 *
 *   unshare -Urn bun test/hostile/far-introducer-fixture.ts
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  Bait,
  hex,
  type LineSocket,
  LyingIntroducer,
  peerLine,
  peersLine,
  punchLine,
  registered,
  until,
} from "./wire.ts";

const four = ["203.0.113.1/32", "203.0.113.9/32", "192.168.1.5/24", "10.1.2.3/32", "169.254.1.1/32"];
// Without `nodad` such an address can't be listened on for a moment.
const six = ["fd00::5/64", "2001:db8::5/64"].map((one) => `${one} nodad`);
const set = [...four, ...six].map((one) => `ip addr add ${one} dev lo`);
for (const command of ["ip link set lo up", ...set]) {
  const { success, stderr } = Bun.spawnSync(command.split(" "));
  if (!success) throw new Error(`${command}: ${stderr.toString()}`);
}
const hosts =
  "127.0.0.1 127.9.9.9 ::1 203.0.113.9 192.168.1.5 10.1.2.3 169.254.1.1 fd00::5 2001:db8::5".split(" ");
const baits = new Map<string, Bait>();
for (const host of hosts) {
  for (const port of [0, 25, 443]) {
    const bait = await Bait.listen(host, () => {}, port);
    baits.set(`${host} ${port === 0 ? "high" : port}`, bait);
  }
}
const written = (host: string, port: number) =>
  host.includes(":") ? `[${host}]:${port}` : `${host}:${port}`;
const endpoints = [...baits].map(([name, { port }]) => written(name.split(" ")[0]!, port));
const mapped = endpoints.map((one) => one.replace(/^(\d+\.\d+\.\d+\.\d+):/, "[::ffff:$1]:"));
const isUsable = (one: string) => !/169.254|\b0\.0|224/.test(one);
const all = [...new Set([...endpoints, ...mapped])].filter(isUsable);
/** Where it sends the participant, which comes back each time instead. */
const nearer = ["127.0.0.1", "127.9.9.9", "169.254.1.1", "::1", "0.0.0.0"];

/** Of one visit. */
const orders = 6 * all.length;
/** Resolves once each order has been answered, by what came of it. */
const answered = (visitor: LineSocket) =>
  until("all orders are answered", () => {
    const answers = visitor.lines.all.filter(({ type }) => type === "failed" || type === "measured");
    return answers.length >= orders;
  });

let visits = 0;
const home = mkdtempSync(join(tmpdir(), "far-introducer-"));
const house = await LyingIntroducer.listen(
  (line, visitor) => {
    if (line.type !== "register") return;
    const others = all.slice((4 * visits) % all.length).slice(0, 4);
    const verify = { endpoint: all[visits % all.length], token: hex(16) };
    // In turn it says that we ourselves are somewhere near.
    const observed = ["203.0.113.77:4000", "127.0.0.1:4000", "192.168.1.5:4000"][visits++ % 3];
    visitor.say(registered(line, { alternates: others, verify, public: observed }), peersLine());
    let id = 2;
    for (const endpoint of all) {
      const lies = [
        { public: endpoint },
        { public: "203.0.113.1:9", otherPublic: endpoint },
        { public: "203.0.113.1:9", mapped: endpoint },
        { public: "203.0.113.1:9", private: [endpoint] },
        { public: endpoint, private: all.slice(0, 10), mapped: endpoint, otherPublic: endpoint },
      ];
      for (const lie of lies) {
        const peer = peerLine({ id: id++, name: `p${id}`, instance: hex(8), ...lie });
        const prediction = { endpoint, step: 1 };
        visitor.say(
          punchLine(peer, { own: prediction, theirs: prediction, way: "predicted", deadlineMs: 300 }),
        );
      }
      const peer = peerLine({ id: id++, name: `r${id}`, instance: hex(8), public: "203.0.113.1:9" });
      visitor.say({ type: "measure", peer, token: hex(16), way: "fresh" });
    }
    const at = nearer[visits % nearer.length]!;
    const elsewhere = { type: "elsewhere", host: at, port: baits.get(`${at} high`)?.port ?? 7000 };
    if (visits < 4) void answered(visitor).then(() => visitor.say(elsewhere));
  },
  () => {},
  "203.0.113.1",
);
const program = join(import.meta.dir, "..", "..", "participant.ts");
const child = Bun.spawn(
  [process.execPath, program, `203.0.113.1:${house.port}`, "--name", "alice", "--json", "--stay"],
  {
    env: { PATH: process.env.PATH, XDG_STATE_HOME: home },
    cwd: home,
    stdin: "ignore",
    stdout: "ignore",
    stderr: "ignore",
  },
);
await until("it has come back", () => visits === 4);
await answered(house.guests.at(-1)!);
child.kill("SIGKILL");
await child.exited;
rmSync(home, { recursive: true, force: true });
const heard: Record<string, number> = {};
for (const { type } of house.heard.all) heard[type] = (heard[type] ?? 0) + 1;
const counts = Object.fromEntries([...baits].map(([name, { total }]) => [name, total]));
console.log(JSON.stringify({ visits, heard, counts }));
process.exit(0);
