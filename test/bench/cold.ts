/**
 * From the start of a program that is to do one thing, `participant --pipe bob:PORT` in a private room, until the first
 * byte of the service at bob's is on its standard output. The programs are the real ones, behind two NATs. Bob's has been
 * there for a while. With the state of an earlier run, and with none. Kinds of NAT may be given in pairs: `drop-drop`.
 */
import { rmSync } from "node:fs";
import type { Host, Nat, NatOptions } from "../lab/lab.ts";
import { Lab } from "../lab/lab.ts";
import { now, People, root } from "../lab/people.ts";
import { median, quick, table } from "./run.ts";

/** Of each of the two and of the introducer: between any two of them it is twice as long. */
const accessDelaysMs = quick([5, 20], [5]);
const tries = quick(10, 1);
const words = "cold starts in a private room";
const servicePort = 9000;
/** The longest that one may take. */
const deadlineMs = 20_000;

const kinds: Record<string, NatOptions> = {
  drop: {},
  rst: { unsolicited: "reset" },
  icmp: { unsolicited: "icmp" },
  sequential: { mapping: "sequential" },
  random: { mapping: "random" },
};

/** Says a byte to whoever connects. */
const service = `
Bun.listen({ hostname: "127.0.0.1", port: ${servicePort}, socket: { open(socket) { socket.write("!") }, data() {} } });
console.log("");`;

const emptyScript = `${import.meta.dir}/empty-fixture.ts`;

interface Times {
  bareMs: number[];
  firstMs: number[];
  withStateMs: number[];
}

/** In ms, until it has said something; it is ended then. */
async function firstByte(host: Host, endpoint: string, state: string): Promise<number> {
  const command = [process.execPath, "participant.ts", endpoint, "--name", "alice", "-q"];
  const startedAt = now();
  const alice = host.spawn([...command, "--pipe", `bob:${servicePort}`], {
    cwd: root,
    env: { ...process.env, XDG_STATE_HOME: state, ROOM: words },
    stdin: "pipe",
    stdout: "pipe",
    stderr: "inherit",
  });
  const timer = setTimeout(() => alice.kill("SIGKILL"), deadlineMs);
  const { value } = await alice.stdout.getReader().read();
  const afterMs = now() - startedAt;
  clearTimeout(timer);
  alice.kill("SIGTERM");
  await alice.exited;
  if (value === undefined) throw new Error(`no byte came within ${deadlineMs} ms`);
  return afterMs;
}

async function bareStart(host: Host): Promise<number> {
  const startedAt = now();
  await host.spawn([process.execPath, emptyScript], { cwd: root, stdout: "ignore" }).exited;
  return now() - startedAt;
}

async function measure(owdMs: number, [a, b]: [NatOptions, NatOptions]): Promise<Times> {
  await using lab = await Lab.create();
  await using people = new People();
  const natOf = (name: string, options: NatOptions): Promise<Nat> => lab.nat(name, { owdMs, ...options });
  const alice = await lab.host("alice", { behind: await natOf("natA", a) });
  const bobs = await lab.host("bob", { behind: await natOf("natB", b) });
  const introducer = await people.introducer(await lab.host("introducer", { owdMs }));
  const serving = bobs.spawn([process.execPath, "-e", service], { stdout: "pipe" });
  await serving.stdout.getReader().read();
  const options = ["--room", words, "--allow", String(servicePort), "--stay"];
  const bob = await people.participant("bob", bobs, introducer, options);
  await bob.next("mapping");
  const state = people.stateOf("alice");
  const times: Times = { bareMs: [], firstMs: [], withStateMs: [] };
  const one = async () => {
    const afterMs = await firstByte(alice, introducer.endpoint, state);
    await bob.next("left");
    return afterMs;
  };
  for (let count = 0; count < tries; count++) {
    rmSync(state, { recursive: true, force: true });
    times.bareMs.push(await bareStart(alice));
    times.firstMs.push(await one());
    times.withStateMs.push(await one());
  }
  return times;
}

export async function bench(pairs: string[]): Promise<void> {
  const rows = [["NATs", "one way", "Bun", "floor", "state", "median", "worst", "median ÷ floor", "goal"]];
  const ms = (value: number) => value.toFixed(0);
  for (const accessMs of accessDelaysMs) {
    for (const pair of pairs.length > 0 ? pairs : ["drop-drop"]) {
      const [a, b] = pair.split("-").map((kind) => kinds[kind]);
      if (!a || !b) throw new Error(`${pair} is no pair of ${Object.keys(kinds).join(", ")}`);
      const { bareMs, firstMs, withStateMs } = await measure(accessMs, [a, b]);
      const roundTripMs = 4 * accessMs;
      const bare = median(bareMs);
      // Bun; TCP and `register`; owd(A→I) + owd(I→B); 1.5 RTT(A,B).
      const floorMs = bare + 2 * roundTripMs + roundTripMs + 1.5 * roundTripMs;
      const add = (state: string, times: number[], goalMs: number) =>
        rows.push([
          pair,
          ms(accessMs),
          ms(bare),
          ms(floorMs),
          state,
          ms(median(times)),
          ms(Math.max(...times)),
          `${(median(times) / floorMs).toFixed(2)} ×`,
          `≤ ${ms(goalMs)}`,
        ]);
      add("none", firstMs, 1.5 * floorMs);
      add("kept", withStateMs, 1.25 * floorMs + 30);
      console.error(
        `${pair}, ${accessMs} ms: none ${firstMs.map(ms).join(" ")}; kept ${withStateMs.map(ms).join(" ")}`,
      );
    }
  }
  console.log(table(rows));
  console.log(`
Milliseconds, of ${tries} tries each. One way: from each of the three to the middle; between any two it is twice as long.
Bun: an empty script. The floor is Bun + TCP and \`register\` + owd(A→I) + owd(I→B) + 1.5 RTT(A,B), for the link alone.`);
}
